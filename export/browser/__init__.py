"""The web page that runs an exported model: build.py writes it, static/ holds its files."""
