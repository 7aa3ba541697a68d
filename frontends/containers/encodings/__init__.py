"""Encodings of quantized weights, a file each: which tensors make one, and the plain tensor they decode to."""
