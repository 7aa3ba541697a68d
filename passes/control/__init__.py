"""Choices and loops as runtimes can take them."""
