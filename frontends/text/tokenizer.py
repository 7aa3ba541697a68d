"""The original tokenizer of a checkpoint, as the tokenizers library reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ir.base.diag import LadingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, which neither cuts nor fills up what it encodes.

    Raises:
        LadingError: Q435 ``tokenizer.json`` is missing or cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises bare Exception for whatever is wrong with the file, or panics, which is no Exception at all.
    except BaseException as error:
        hint = "save the checkpoint's tokenizer with transformers"
        raise LadingError("Q435", f"cannot read the tokenizer: {error}", where=str(path), hint=hint) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """The ids that a tokenizer puts in front of every text, such as BOS."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    return next((whole[:at] for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), [])
