"""Inputs made from a seed: random graphs, sample files, and what damages them."""
