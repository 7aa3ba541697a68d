"""Tokenizers, chat templates and text to calibrate with."""
