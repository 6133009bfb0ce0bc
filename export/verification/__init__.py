"""Does an ONNX file compute what the network does? Each export asks before it writes a file."""
