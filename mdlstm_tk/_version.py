"""The version; the package and its build both read it from here."""

__version__ = "1.0.0"
