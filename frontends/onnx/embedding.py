"""The embedding of a model whose graph takes rows of it: from a file of rows, or from the checkpoint that was exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from frontends.containers.formats import open_weights
from frontends.onnx.beside import folders_of
from ir.base.diag import LadingError
from ir.base.types import BF16, F32, DType, TensorType
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor

ROWS = "embeddings_bf16.bin"
"""The file of rows that an exporter writes beside a model: bfloat16 numbers and nothing else."""

SAMPLED = 16
"""Rows by which two matrices are told apart."""

ALIKE = 0.5
"""Difference, relative to their size, below which matrices are the same one, though one of them may be quantized."""

HINT = "name it with --embedding: a file of bfloat16 or float32 rows, or the folder of the checkpoint that was exported"


@dataclass(frozen=True)
class Rows:
    """An embedding.

    Attributes:
        table: float[tokens, width].
        source: where it is from.
        stored: it is from a checkpoint, whose model may scale what it looks up.
    """

    table: Tensor
    source: Path
    stored: bool


class Wanted(Protocol):
    """What is known of an embedding: its sizes, and the matrix of the scores, which a checkpoint holds too."""

    @property
    def tokens(self) -> int:
        """How many rows it has."""

    @property
    def width(self) -> int:
        """How many numbers a row has."""

    @property
    def head(self) -> Tensor | None:
        """The matrix of the scores, float or quantized, in either orientation."""


def find_rows(path: Path, named: Path | None, wanted: Wanted) -> Rows:
    """The embedding of a model.

    Args:
        path: the ONNX file.
        named: what the user names; None looks beside the file.
        wanted: what is known of it.

    Raises:
        LadingError: B673 there is none, B674 what there is does not fit.
    """
    tokens, width = wanted.tokens, wanted.width
    for place in (named,) if named is not None else folders_of(path):
        rows = place / ROWS if place.is_dir() else place
        if rows.is_file():
            return Rows(_of_file(rows, tokens, width), rows, stored=False)
        if place.is_dir() and any(place.glob("*.safetensors")):
            return Rows(
                _of_checkpoint(open_weights(place).tensors, place, tokens, width, wanted.head), place, stored=True
            )
    if named is not None:
        message = "no embedding is found there: it is no file, and no folder with .safetensors files"
        raise LadingError("B674", message, str(named), HINT)
    message = (
        f"the graph takes rows of an embedding of {width} numbers each, and the embedding is not in it or beside it"
    )
    raise LadingError("B673", message, str(path), HINT)


def _of_file(path: Path, tokens: int, width: int) -> Tensor:
    size = path.stat().st_size
    kinds: dict[int, DType] = {2 * tokens * width: BF16, 4 * tokens * width: F32}
    if size not in kinds:
        message = (
            f"the file has {size:,} bytes; {tokens:,} rows of {width} numbers are {2 * tokens * width:,} or twice that"
        )
        raise LadingError("B674", message, str(path), HINT)
    return FileTensor(path, 0, TensorType(kinds[size], (tokens, width)), "rows")


def _of_checkpoint(tensors: Mapping[str, Tensor], folder: Path, tokens: int, width: int, head: Tensor | None) -> Tensor:
    """The one matrix of the right size; of two the one that is not the matrix of the scores."""
    fitting = [tensor for tensor in tensors.values() if tensor.type.shape == (tokens, width)]
    if len(fitting) == 2 and head is not None:
        others = [tensor for tensor in fitting if not _same(tensor, head)]
        fitting = others or fitting[:1]
    if len(fitting) != 1:
        message = f"the checkpoint has {len(fitting)} matrices of {tokens:,} rows of {width} numbers, which is not one"
        raise LadingError("B674", message, str(folder), HINT)
    return fitting[0]


def _same(tensor: Tensor, head: Tensor) -> bool:
    """True when rows of both are alike; the other one may be transposed."""
    if head.type.dtype.is_float:
        array = head.load() if tuple(head.shape) == tensor.shape else head.load().T
        places = np.linspace(0, tensor.row_count - 1, SAMPLED, dtype=int)
        mine = np.concatenate([tensor.rows(int(at), int(at) + 1) for at in places]).astype(np.float64)
        gap = np.linalg.norm(mine - array.reshape(tensor.shape)[places].astype(np.float64))
        return bool(gap <= ALIKE * np.linalg.norm(mine))
    return False


__all__ = ["ROWS", "Rows", "find_rows"]
