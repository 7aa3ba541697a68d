"""Tokenizer files of other kinds than ``tokenizer.json``, read into what a ``tokenizer.json`` holds."""
