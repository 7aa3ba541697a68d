"""What the converter and the CPU runtime of MNN's releases compute right of ONNX's operators, with the evidence."""
