"""From `mdlstm::Wavefront` nodes to standard ONNX operators."""
