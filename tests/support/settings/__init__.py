"""Checkpoints that differ in what they say about generation."""
