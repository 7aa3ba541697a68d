"""The text that a ladder is measured on: a file, the example's own, or the packaged sample's held-out part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.diag import LadingError


@dataclass(frozen=True)
class Text:
    """The text that rungs are measured on.

    Attributes:
        name: what it is, for people.
        origin: ``file``, ``example`` or ``sample``.
        windows: int32[n] token ids of each window.
        sha256: of the file, or of the token ids of a packaged sample.
    """

    name: str
    origin: str
    windows: tuple[np.ndarray, ...]
    sha256: str

    @property
    def tokens(self) -> int:
        """Token ids in all windows."""
        return sum(map(len, self.windows))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "origin": self.origin,
            "sha256": self.sha256,
            "windows": len(self.windows),
            "tokens": self.tokens,
            "longest_window": max(map(len, self.windows)),
        }


def read_text(path: Path, origin: str, folder: Path, count: int, width: int) -> Text:
    """Windows of a text file; each begins with what the tokenizer puts before a text, such as a BOS token.

    Args:
        path: UTF-8 text; bytes that are none are replaced.
        origin: ``file`` or ``example``.
        folder: checkpoint whose tokenizer cuts it.
        count: windows at most, spread evenly over the text.
        width: tokens a window.

    Raises:
        LadingError: U903 no such file, U938 too short for one window, Q435 no tokenizer.
    """
    from hashlib import sha256

    from frontends.text.tokenizer import open_tokenizer, prefix_of

    try:
        content = path.read_bytes()
    except OSError as error:
        raise LadingError("U903", f"the text cannot be read: {error.strerror}", where=str(path)) from error
    tokenizer = open_tokenizer(folder)
    prefix = prefix_of(tokenizer)
    ids = tokenizer.encode(content.decode("utf-8", "replace"), add_special_tokens=False).ids
    step = width - len(prefix)
    whole = len(ids) // step if step > 0 else 0
    if not whole:
        message = f"the text has {len(ids)} tokens, which is less than one window of {width}"
        raise LadingError("U938", message, where=str(path), hint="give a longer text, or shorter windows")
    starts = sorted({number * whole // count * step for number in range(count)})
    windows = tuple(np.array(prefix + ids[start : start + step], np.int32) for start in starts)
    return Text(path.name, origin, windows, sha256(content).hexdigest())


def sample_text(folder: Path, count: int, width: int) -> Text:
    """The held-out part of the text that comes with the package, which no statistic has seen.

    Raises:
        LadingError: U938 it is too short for one window; Q434, Q435 the chat template or the tokenizer fails.
    """
    from frontends.text.calibration_text import load_calibration
    from ir.quant.statistics.moments import windows_digest

    pieces = [
        piece
        for window in load_calibration(None, folder).held_out
        for start in range(0, len(window), width)
        if len(piece := np.asarray(window, np.int32)[start : start + width]) > 1
    ][:count]
    if not pieces:
        raise LadingError("U938", "the packaged sample has no held-out tokens for this model", hint="give --text FILE")
    return Text("the held-out part of the packaged sample", "sample", tuple(pieces), windows_digest(pieces))
