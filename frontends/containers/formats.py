"""Formats in which checkpoints store their weights: what recognises one, and what opens it.

The loader asks each row in turn; the first that recognises a folder opens it. Rows of plugins are asked before those of
the source tree, of which the last one takes whatever is left and says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from frontends.containers.links import is_unfolded
from ir.base.diag import Diagnostic
from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.facts.model_card import SourceFile
from ir.tensor.base import Tensor


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by the names and in the shapes of the plain one, not read yet.

    Attributes:
        tensors: by name; quantized ones are decoded when they are read (`ir.quant.coded.decoded`).
        files: the files they lie in.
        notes: what to tell.
        encodings: for people, how each quantized tensor is stored, by name.
        spare: biases that may be left out where the model has none and they are zero.
    """

    tensors: Mapping[str, Tensor]
    files: Mapping[str, SourceFile]
    notes: tuple[Diagnostic, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()


class Format(Protocol):
    """One format; a row of the table ``formats``."""

    def recognises(self, folder: Path) -> bool:
        """True when the weights in a folder are of this format."""

    def open(self, folder: Path) -> Weights:
        """The weights of a folder; LadingError for what is wrong with them."""


class Safetensors:
    """Safetensors files, in one piece or in shards, of plain or quantized tensors."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """True for every folder: there is no other format in the source tree."""
        return True

    @staticmethod
    def open(folder: Path) -> Weights:
        """The tensors of the files, their headers read and checked.

        Raises:
            LadingError: F510 to F527 for the files; F535, F577, F578 and F581 for quantized tensors.
        """
        from frontends.containers.encodings.table import declared_in, decode
        from frontends.containers.safetensors import open_checkpoint

        found = open_checkpoint(folder)
        files = {item.name: SourceFile(item.nbytes, item.header_digest, "header") for item in found.sources()}
        plain = decode(found.tensors, declared_in(folder), str(folder))
        return Weights(plain.tensors, files, plain.notes, plain.encodings, plain.spare)


class GgufFile:
    """A GGUF file, of which a folder was made that links to it."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """True for folders made of a file."""
        return is_unfolded(folder)

    @staticmethod
    def open(folder: Path) -> Weights:
        """The tensors of the file under the names of a checkpoint; errors F510 to F525, F583 to F586."""
        from frontends.gguf.unfold import opened

        found = opened(folder)
        return Weights(found.tensors, found.files, encodings=found.encodings)


PLAIN = "safetensors"
"""The format that takes whatever no other one recognises."""

FORMATS: Table[Format] = Table("checkpoint format", {"gguf": GgufFile(), PLAIN: Safetensors()}, rows_of("formats"))
"""The formats by name. Open to plugins."""


def format_of(folder: Path) -> Format:
    """The first format that recognises a folder, those of plugins first."""
    rows = [FORMATS[name] for name in sorted(FORMATS, key=lambda name: name == PLAIN)]
    return next(row for row in rows if row.recognises(folder))


def open_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder."""
    return format_of(folder).open(folder)


__all__ = ["FORMATS", "Format", "Safetensors", "Weights", "format_of", "open_weights"]
