"""Numbers of fewer bits in a converted net: weights of 2 to 8 bits, half floats, and convolutions on 8-bit integers."""
