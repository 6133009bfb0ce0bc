"""The sweep in plain torch operations."""
