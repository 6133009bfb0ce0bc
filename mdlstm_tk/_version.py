"""The version; the package and its build both read it from here."""

__version__ = "2.0.0.dev0"
