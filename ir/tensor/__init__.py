"""Lazy tensors: type and place are free, bytes are read in row ranges, derived tensors are recipes over others."""
