"""ONNX models that read tensors which nothing makes."""
