"""What a method of quantization is given and what it promises: the words that all methods share.

A row of input features is cut into blocks; each block has a scale, and a zero when asymmetric. Codes are signed,
``-2^(bits-1)`` to ``2^(bits-1)-1``. Rows never depend on each other, so pieces and threads cannot change a byte.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.base.types import DType
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage

Needs = Literal["nothing", "diagonal", "second-moments", "both-sides"]


class Blocks(NamedTuple):
    """Quantized rows; the arrays may lie in scratch memory and are then valid until its next use.

    Attributes:
        codes: int8[n, length].
        scale: float32[n, blocks].
        zero: int8 zero points or float32 zeros [n, blocks], None when symmetric.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None

    def rows(self, chosen: slice | np.ndarray) -> Blocks:
        """Those of some rows."""
        return Blocks(self.codes[chosen], self.scale[chosen], None if self.zero is None else self.zero[chosen])

    def kept(self) -> Blocks:
        """A copy that is no longer in scratch memory."""
        return Blocks(self.codes.copy(), self.scale.copy(), None if self.zero is None else self.zero.copy())

    @classmethod
    def below(cls, parts: Sequence[Blocks]) -> Blocks:
        """Rows of one storage, those of one part below those of the part before."""
        zeros = [part.zero for part in parts if part.zero is not None]
        codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scale for part in parts])
        return cls(codes, scales, np.concatenate(zeros) if zeros else None)


class Scratch:
    """Buffers that are reused from piece to piece; one per thread."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialized array over the buffer `name`, which grows as needed."""
        kind = np.dtype(dtype)
        count = kind.itemsize
        for size in shape:
            count *= size
        held = self._held.get(name)
        if held is None or held.size < count:
            held = self._held[name] = np.empty(count, np.uint8)
        return held[:count].view(kind).reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(held.size for held in self._held.values())


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.scratch = Scratch()


_PER_THREAD = _PerThread()


def thread_scratch() -> Scratch:
    """The scratch memory of the calling thread."""
    return _PER_THREAD.scratch


class NotFinite(ValueError):
    """Raised by methods for rows with NaN or infinity; `row` counts from the first row given."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is not finite")
        self.row = row


class OutOfScale(ValueError):
    """Raised by methods when scale or zero of a row do not fit the storage type."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} does not fit")
        self.row = row


class QuantMethod(Protocol):
    """A way to choose codes, without randomness. Rows are treated independently of each other unless `together` says so.

    Independent means that a row gets the same bytes whatever rows come with it, however many threads there are.

    Attributes:
        name: key in `METHODS`.
        accepts: element types that `quantize` takes as they are; rows of any other type come as float32.
        needs: statistics that `quantize` uses. ``nothing``: it is always given None. ``diagonal``: it weighs errors by
            the mean squares of the features, and all alike when it is given None. ``second-moments``: it cannot work
            without them. ``both-sides``: nor without those of the gradients behind the rows.
        follows: for a method that makes up for errors that weights before have made, the name of the one that it is
            where nothing is known of those. Its statistics are to be gathered once those weights are quantized, by the
            pass recalibrate.
        chosen_as: for a method that a pass gives to weights once widths are chosen, the one to choose before.
        together: rows from a multiple of it on, as many or those that are left, are quantized in one call and depend on
            each other; 0 for rows that do not.
        slow: a whole weight is quantized once and kept on disk, since doing it again would take long.
        version: to be raised whenever the method gives other bytes than before, so that kept results are not used.
    """

    name: str
    accepts: frozenset[DType]
    needs: Needs = "nothing"
    follows: str = ""
    chosen_as: str = ""
    slow: bool = False
    version: int = 1
    together: int = 0

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """Quantize rows ``[n, length]``, any rows of a weight, whose length is a multiple of the block.

        Raises:
            NotFinite: a row has NaN or infinity.
            OutOfScale: a scale or zero does not fit its storage.
        """


def check_method(name: str, method: QuantMethod) -> None:
    """ValueError for a method that lacks an attribute, a mistake of its author."""
    for attribute in ("accepts", "needs", "slow", "version"):
        if not hasattr(method, attribute):
            raise ValueError(f"the quantization method {name!r} lacks the attribute {attribute!r}")
    if method.needs not in get_args(Needs):
        raise ValueError(f"the quantization method {name!r} needs {method.needs!r}, not one of {get_args(Needs)}")


METHODS: Table[QuantMethod] = Table(
    "quantization method",
    {
        "rtn": "ir.quant.methods.rtn:METHOD",
        "clip": "ir.quant.methods.clip:METHOD",
        "hqq": "ir.quant.methods.hqq:METHOD",
        "gptq": "ir.quant.methods.gptq:METHOD",
        "gptaq": "ir.quant.methods.gptaq:METHOD",
        "yaqa": "ir.quant.methods.yaqa:METHOD",
        "stored": "ir.quant.stored_codes:METHOD",
    },
    rows_of("quantizers"),
    check_method,
)
"""Methods by name. Open to plugins."""


def real_zero(scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """float32 value of signed code 0: ``-zero_point * scale`` for integer zero points, real zeros as they are."""
    if zero is None or zero.dtype == np.float32:
        return zero
    return np.negative(zero.astype(np.float32) * scale)


def dequantize(blocks: Blocks) -> np.ndarray:
    """float32[n, length] as runtimes compute it: ``codes * scale + zero`` in float32, each operation rounded."""
    count, per_row = blocks.scale.shape
    if not blocks.codes.size:
        return blocks.codes.astype(np.float32)
    real = blocks.codes.reshape(count, per_row, -1).astype(np.float32) * blocks.scale[:, :, None]
    zero = real_zero(blocks.scale, blocks.zero)
    if zero is not None:
        real += zero[:, :, None]
    return real.reshape(blocks.codes.shape)
