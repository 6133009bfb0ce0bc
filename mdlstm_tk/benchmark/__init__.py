"""The layer, measured against its matrix products and against other networks."""
