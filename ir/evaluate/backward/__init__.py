"""Gradients of a graph's values, by vector-Jacobian products of its operators."""
