"""A format of checkpoints: the tensors as arrays in ``weights.npz``, under the names that the family gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frontends.containers.formats import Weights
from ir.base.diag import LadingError
from ir.facts.model_card import SourceFile
from ir.tensor.inline import InlineTensor

FILE = "weights.npz"


class Npz:
    """One row of the table ``formats``."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """True for folders with that file."""
        return (folder / FILE).is_file()

    @staticmethod
    def open(folder: Path) -> Weights:
        """All arrays; LadingError F511 for a file that cannot be read."""
        from hashlib import sha256

        path = folder / FILE
        try:
            data = path.read_bytes()
            with np.load(path, allow_pickle=False) as arrays:
                tensors = {name: InlineTensor(arrays[name]) for name in arrays.files}
        except (OSError, ValueError) as error:
            raise LadingError("F511", f"cannot read: {error}", where=str(path)) from None
        return Weights(tensors, {FILE: SourceFile(len(data), sha256(data).hexdigest())})


FORMAT = Npz()
