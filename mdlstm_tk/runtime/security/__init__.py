"""Check untrusted models before ONNX Runtime loads them."""
