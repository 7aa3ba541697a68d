"""Statistics of activations that quantization methods weigh errors with."""
