"""Checkpoints whose matrices are quantized in every encoding that is read, with the plain numbers they stand for.

`encodings` writes the tensors of one matrix from the published layouts, without a line of the compiler; the files in
``tests/data/quantized`` were written by the libraries that own the encodings and hold them to the same numbers.
"""
