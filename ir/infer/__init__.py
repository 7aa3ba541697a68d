"""Type and shape inference with symbolic dimensions."""
