"""Static quantization: activations and weights in 8-bit integers, with ranges from calibration data."""
