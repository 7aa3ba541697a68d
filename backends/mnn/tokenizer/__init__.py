"""Tokenizers in the forms that MNN reads."""
