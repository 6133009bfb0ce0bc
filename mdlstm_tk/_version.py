"""The version; the package and its build both read it from here."""

__version__ = "0.6.0"
