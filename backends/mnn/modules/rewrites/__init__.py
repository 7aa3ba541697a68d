"""Operators in terms of others: each function gives what stands for the results of a node, or None."""
