"""What a device streams from memory to decode one token: codes as its kernels read them, scales and zeros.

Decoding reads every weight once for each token and does little else, so the bytes read are what its speed follows from.
They are not the bytes stored: a kernel that has no form for a width reads codes that were widened when the model was
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ir.quant.storage import FLOAT_BITS, INTEGER_BITS, Storage


class Figure(NamedTuple):
    """A number and how it is known: a probe, a file of the runtime's source, or ``not measured``."""

    value: float
    evidence: str


@dataclass(frozen=True)
class Device:
    """A kind of processor as one runtime uses it.

    Attributes:
        name: as the user names it.
        meaning: one line for people.
        codes: bytes that the kernels read for each weight, by stored bits; every width of `Storage` is there.
        zeros, plain: bytes for each row and block, with a zero and without.
        row: bytes for each row whatever its blocks, such as a bias and sums of codes.
        speed: how far bytes foretell the speed, for people.
    """

    name: str
    meaning: str
    codes: Mapping[int, Figure]
    zeros: Figure
    plain: Figure
    row: Figure
    speed: str = ""

    def streamed(self, rows: int, columns: int, storage: Storage) -> int:
        """Bytes read to multiply one position by a matrix ``[rows, columns]``."""
        total = rows * columns * self.codes[storage.bits].value + rows * self.row.value
        if storage.is_integer:
            blocks = columns // (storage.block or columns)
            total += rows * blocks * (self.plain if storage.symmetric else self.zeros).value
        return round(total)


def as_stored() -> Device:
    """A device that reads codes as they are stored, for runtimes of which nothing else is known."""
    said = "not measured: taken as stored"
    return Device(
        "stored",
        "reads weights as they are stored",
        {bits: Figure(bits / 8, said) for bits in (*INTEGER_BITS, *FLOAT_BITS)},
        Figure(8, said),
        Figure(4, said),
        Figure(0, said),
        said,
    )


__all__ = ["Device", "Figure", "as_stored"]
