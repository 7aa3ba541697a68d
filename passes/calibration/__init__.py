"""Statistics of activations, and equivalent transformations that use them."""
