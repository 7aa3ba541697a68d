"""Parts of a weight file as lazy tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.tensor.files import FileTensor


class WeightFile:
    """The external weight file of a model.

    Args:
        path: where it is.
        scale: storage of scales to write, ``f32`` or ``f16``; empty keeps theirs.
    """

    def __init__(self, path: Path, scale: str = "") -> None:
        self.path = path
        self.scale = scale
        self.size = path.stat().st_size if path.is_file() else 0

    def tensor(self, offset: int, type: TensorType, key: str) -> FileTensor:
        """A tensor at an offset.

        Raises:
            LadingError: F642 it reaches behind the end.
        """
        nbytes = type.nbytes or 0
        if offset < 0 or offset + nbytes > self.size:
            raise LadingError(
                "F642", f"{key} needs bytes {offset:,} to {offset + nbytes:,} of {self.size:,}", where=str(self.path)
            )
        return FileTensor(self.path, offset, type, key)


@dataclass(frozen=True)
class FirstCode:
    """Where the codes of a matrix begin behind its header, their width, and whether code i stands for i - 2^(bits-1)."""

    place: int
    bits: int
    straight: bool


def first_code(head: np.ndarray, nbytes: int, shape: tuple[int, int]) -> FirstCode | None:
    """What the header of integer codes says; None when it is for another matrix.

    Args:
        head: uint8, the first bytes of the blob, at most 270: number of dimensions, dimensions, table.
        nbytes: size of the whole blob.
        shape: rows and columns that are wanted.
    """
    for kind, size in (("<u2", 2), ("<u4", 4)):
        place = 1 + 2 * size
        if head.size <= place:
            return None
        dims = tuple(head[1:place].copy().view(kind).tolist())
        count = int(head[place]) or 256
        bits = count.bit_length() - 1
        whole = 1 + place + count + (shape[0] * shape[1] * bits + 7) // 8
        if head[0] == 2 and dims == shape and count == 1 << bits and whole == nbytes:
            table = head[place + 1 : place + 1 + count].view(np.int8)
            return FirstCode(place + 1 + count, bits, np.array_equal(table, np.arange(-count // 2, count // 2)))
    return None
