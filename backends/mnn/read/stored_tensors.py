"""Parts of a weight file as lazy tensors."""

from __future__ import annotations

from pathlib import Path

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
