"""Decisions that passes record on a graph."""
