"""Cells: equations, the recorded graph of a cell, and its gradient."""
