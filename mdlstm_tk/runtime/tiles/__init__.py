"""Tiled exports: grids of any size in bounded memory."""
