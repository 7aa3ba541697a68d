"""Formats in which checkpoints store their weights: what recognises one, and what opens it.

The loader asks each row in turn; the first that recognises a folder opens it. Rows of plugins are asked before those of
the source tree, of which the last one takes whatever is left and says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.facts.model_card import SourceFile
from ir.tensor.base import Tensor


@dataclass(frozen=True)
class Weights:
    """The stored tensors of a checkpoint by name, not read yet, and the files they lie in."""

    tensors: Mapping[str, Tensor]
    files: Mapping[str, SourceFile]


class Format(Protocol):
    """One format; a row of the table ``formats``."""

    def recognises(self, folder: Path) -> bool:
        """True when the weights in a folder are of this format."""

    def open(self, folder: Path) -> Weights:
        """The weights of a folder; LadingError for what is wrong with them."""


class Safetensors:
    """Plain safetensors files, in one piece or in shards."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """True for every folder: there is no other format in the source tree."""
        return True

    @staticmethod
    def open(folder: Path) -> Weights:
        """The tensors of the files, their headers read and checked; errors F510 to F527."""
        from frontends.containers.safetensors import open_checkpoint

        found = open_checkpoint(folder)
        files = {item.name: SourceFile(item.nbytes, item.header_digest, "header") for item in found.sources()}
        return Weights(found.tensors, files)


PLAIN = "safetensors"
"""The format that takes whatever no other one recognises."""

FORMATS: Table[Format] = Table("checkpoint format", {PLAIN: Safetensors()}, rows_of("formats"))
"""The formats by name. Open to plugins."""


def format_of(folder: Path) -> Format:
    """The first format that recognises a folder, those of plugins first."""
    rows = [FORMATS[name] for name in sorted(FORMATS, key=lambda name: name == PLAIN)]
    return next(row for row in rows if row.recognises(folder))


def open_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder."""
    return format_of(folder).open(folder)


__all__ = ["FORMATS", "Format", "Safetensors", "Weights", "format_of", "open_weights"]
