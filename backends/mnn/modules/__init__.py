"""Any ONNX graph as one ``.mnn`` file: made legal for the converter of MNN's wheels, converted, read back, and run."""
