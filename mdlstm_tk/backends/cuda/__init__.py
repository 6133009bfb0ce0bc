"""The sweep on an NVIDIA GPU, compiled by Triton."""
