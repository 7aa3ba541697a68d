"""What exporters and onnxruntime add to ONNX's operators, in terms of those."""
