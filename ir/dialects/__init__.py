"""Operators of domains of our own that belong to no runtime."""
