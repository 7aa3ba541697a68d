"""Evaluation of graphs in pieces, and distances between what two graphs give."""
