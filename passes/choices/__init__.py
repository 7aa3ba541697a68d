"""Choices between graphs (`If`) that can be made while a graph is compiled."""
