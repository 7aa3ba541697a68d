"""Hugging Face checkpoints as graphs."""
