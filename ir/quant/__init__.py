"""Quantized weights: how they are specified, made, stored and read back."""
