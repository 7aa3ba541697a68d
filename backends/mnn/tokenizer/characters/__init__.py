"""Patterns and normal forms as the runtime computes them."""
