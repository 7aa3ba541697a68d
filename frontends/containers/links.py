"""Names of the links to a file of a model in the folder that was made of it."""

from __future__ import annotations

from pathlib import Path

LINK, TOKENIZER_LINK = "model.gguf", "tokenizer.gguf"
"""Links to a GGUF file: for its weights, and for its tokenizer."""


def is_unfolded(folder: Path) -> bool:
    """True for a folder that was made of a file, or looks so."""
    return (folder / LINK).is_symlink()


__all__ = ["LINK", "TOKENIZER_LINK", "is_unfolded"]
