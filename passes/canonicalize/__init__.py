"""Passes that make graphs smaller and plainer without changing what they compute."""
