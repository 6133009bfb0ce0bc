"""The sweep on a CPU, compiled by Numba."""
