"""MNN's operators, with their meaning in ONNX terms."""
