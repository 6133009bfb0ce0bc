"""Read and write arrays, images and tables; write files atomically."""
