"""Reading and writing arrays, images and files."""
