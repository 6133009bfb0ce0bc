"""Plots and pictures of runs and samples. Importing this package imports neither torch nor Matplotlib."""
