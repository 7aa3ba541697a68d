"""Names of the links to a file of a model in the folder that was made of it."""

from __future__ import annotations

LINK, TOKENIZER_LINK = "model.gguf", "tokenizer.gguf"
"""Links to a GGUF file: for its weights, and for its tokenizer."""

__all__ = ["LINK", "TOKENIZER_LINK"]
