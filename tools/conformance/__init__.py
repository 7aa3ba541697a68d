"""Judge the compiler by ONNX's own backend test cases: right, refused with a reason, or wrong."""
