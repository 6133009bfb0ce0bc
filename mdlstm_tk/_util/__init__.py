"""Small helpers without a place of their own."""
