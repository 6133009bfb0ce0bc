"""Checks of models that come from strangers."""
