"""What an ONNX file is, and what MNN's converter and the engine would do with it."""
