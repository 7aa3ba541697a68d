"""What the elements of an input may be, by the operators that read it: indices, sizes, axes, counts, probabilities.

`Draw.array` makes numbers of an input that its readers can work with. It looks through operators that only arrange or
convert elements; what is computed from an input before it becomes an index or a size is not followed, which is why what
is drawn may still be refused: `ir.evaluate.feed_sets` tries it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ir.base.types import Dim, TensorType
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute, has_trait

NORMAL, UNIT, PIXELS, SPECIAL = "normal", "unit", "pixels", "special"
STYLES = (NORMAL, SPECIAL, UNIT, SPECIAL, PIXELS)
"""How floats are drawn, in turn: from the normal distribution, special numbers (zeros, halves between whole numbers, equal and
negative ones), from 0 to 1, whole numbers from 0 to 255."""

FREE, SMALL, ONES, ZEROS = range(4)
"""How far integers go that no reader bounds: over a real range with negatives, from 0 to 3, all 1, all 0."""

SPECIALS = (0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.5, -2.5, 2.0, -3.0, 0.25, 1e-3, -1e-3, 20.0, -20.0)
"""Floats at which operators change their mind, ties of rounding among them."""
FEW = 64
"""Elements below which all are special numbers, where some are."""
WIDE = 100
"""Integers that nothing bounds lie this far around 0."""
MOST_STEPS = 256
"""Operators that are looked through."""


@dataclass(frozen=True)
class Draw:
    """One draw of all inputs.

    Attributes:
        sizes: sizes of symbolic dimensions by name.
        rng: the generator.
        style: one of `STYLES`.
        level: how far integers go that no reader bounds.
    """

    sizes: Mapping[str, int]
    rng: np.random.Generator
    style: str = NORMAL
    level: int = FREE

    def array(self, value: Value, shape: tuple[int, ...]) -> np.ndarray:
        """Elements of an input of numbers, of the element type of its type."""
        dtype = value.dtype
        places = [Place(self, value, node, index, shape) for node, index in readers(value)]
        found = self._by_readers(places, shape)
        if found is None:
            found = self._floats(value, shape) if dtype.is_float else self._integers(value, shape)
        return _fitted(found, dtype.numpy).reshape(shape)

    def _by_readers(self, places: list[Place], shape: tuple[int, ...]) -> np.ndarray | None:
        for place in places:
            rule = DRAWN.get(place.key)
            made = rule(place) if rule is not None else None
            if made is not None:
                return np.asarray(made)
        bounds = [
            found for place in places if place.key in BOUNDED and (found := BOUNDED[place.key](place)) is not None
        ]
        if not bounds:
            return None
        low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
        if isinstance(low, int) and isinstance(high, int):
            return self.rng.integers(low, max(low, high) + 1, shape)
        return self.rng.uniform(low, high, shape)

    def _floats(self, value: Value, shape: tuple[int, ...]) -> np.ndarray:
        style = self.style
        if style == PIXELS and not _is_image(value):
            style = NORMAL
        if style == UNIT:
            return self.rng.random(shape)
        if style == PIXELS:
            return self.rng.integers(0, 256, shape)
        found = self.rng.standard_normal(shape)
        if style == SPECIAL:
            few = found.size < FEW
            picked = self.rng.random(shape) < (1.0 if few else 0.5)
            found = np.where(picked, self.rng.choice(np.array(SPECIALS), shape), found)
        return found

    def _integers(self, value: Value, shape: tuple[int, ...]) -> np.ndarray:
        dtype = value.dtype
        if dtype.kind == "b":
            return self.rng.random(shape) < 0.5
        if "mask" in value.name.lower():
            return _mask(self.rng, shape)
        if (known := _compared(value)).size and self.rng.random() < 0.5:
            return self.rng.choice(known, shape)
        if self.level == FREE:
            low, high = (0, 255) if dtype.kind == "u" else (-WIDE, WIDE)
            low, high = max(low, dtype.low), min(high, dtype.high)
            found = self.rng.integers(low, high + 1, shape)
            ends = np.array([low, high, 0, 1])
            picked = self.rng.random(shape) < (0.3 if self.style == SPECIAL else 0.0)
            return np.where(picked, self.rng.choice(ends, shape), found)
        return self.rng.integers(0, 4, shape) if self.level == SMALL else np.full(shape, int(self.level == ONES))


@dataclass(frozen=True)
class Place:
    """One operator that reads an input.

    Attributes:
        draw: the draw.
        value: the input.
        node: the operator.
        index: which of its operands the input becomes.
        shape: of the array that is drawn.
    """

    draw: Draw
    value: Value
    node: Node
    index: int
    shape: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int]:
        """Operator and operand."""
        return self.node.op, self.index

    @property
    def rng(self) -> np.random.Generator:
        """The generator."""
        return self.draw.rng

    @property
    def count(self) -> int:
        """Elements of the array that is drawn."""
        return int(np.prod(self.shape, dtype=np.int64))

    def operand(self, index: int) -> Value | None:
        """An operand of the operator."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def rank(self, index: int = 0) -> int | None:
        """Axes of an operand."""
        value = self.operand(index)
        return len(value.shape) if value is not None and value.shape is not None else None

    def extent(self, axis: int, index: int = 0) -> int | None:
        """Size of an axis of an operand; None when it is not known."""
        value = self.operand(index)
        shape = value.shape if value is not None and isinstance(value.type, TensorType) else None
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        return self.draw.sizes.get(size.name) if isinstance(size, Dim) else size

    def extents(self, index: int = 0) -> list[int] | None:
        """All sizes of an operand; None when one is not known."""
        found = [self.extent(axis, index) for axis in range(self.rank(index) or 0)]
        known = [size for size in found if size is not None]
        return known if self.rank(index) is not None and len(known) == len(found) else None

    def constant(self, index: int) -> np.ndarray | None:
        """An operand that is a constant."""
        value = self.operand(index)
        return value.const.load() if value is not None and value.const is not None else None


def readers(value: Value) -> Iterator[tuple[Node, int]]:
    """The operators that a value reaches, and as which operand, looking through what arranges or converts elements."""
    seen = {value}
    waiting = [value]
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        for node, index in waiting.pop(0).uses:
            if index == 0 and _arranges(node) and node.op not in ("Gather", "GatherElements"):
                fresh = [item for item in node.outputs[:1] if item not in seen]
                seen.update(fresh)
                waiting += fresh
            yield node, index


def _arranges(node: Node) -> bool:
    return node.op in ("Expand", "Identity") or has_trait(node, "positional") or has_trait(node, "conversion")


def _is_image(value: Value) -> bool:
    return value.shape is not None and len(value.shape) >= 3


def _fitted(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in another element type, without wrapping around."""
    if np.dtype(dtype).kind in "iu" and array.dtype.kind in "iuf":
        info = np.iinfo(dtype)
        return np.clip(array, max(info.min, -(1 << 62)), min(info.max, 1 << 62)).astype(dtype)
    return array.astype(np.float32).astype(dtype) if array.dtype.kind == "f" else array.astype(dtype)


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ones and behind them zeros; each row has a one."""
    if not shape:
        return np.ones(shape, np.int64)
    lengths = rng.integers((shape[-1] + 1) // 2, shape[-1] + 1, shape[:-1])
    return (np.arange(shape[-1]) < lengths[..., None]).astype(np.int64)


def _compared(value: Value) -> np.ndarray:
    """The constants that integers are compared with: sampling rates, numbers of tokens."""
    found = [
        operand.const.load().reshape(-1)
        for node, _ in readers(value)
        if node.op == "Equal"
        for operand in node.inputs
        if operand is not None and operand.const is not None and (operand.const.type.size or 0) in range(1, 9)
    ]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


# ---- bounds ----

Bounds = tuple[float, float]


def _indices(place: Place, axis: int | None = None, data: int = 0) -> Bounds:
    """Numbers of rows, also counted from the end; of as many as the run says the first or the last."""
    where = attribute(place.node, "axis") if axis is None else axis
    extent = place.extent(where or 0, data)
    return (-1, 0) if extent is None else (-extent, max(extent - 1, 0))


def _classes(place: Place, axis: int, data: int = 0) -> Bounds:
    extent = place.extent(axis, data)
    return 0, max(extent - 1, 0) if extent is not None else 0


def _lengths(place: Place, axis: int, data: int = 0) -> Bounds:
    extent = place.extent(axis, data)
    return 1, max(extent, 1) if extent is not None else 1


def _depth(place: Place) -> Bounds:
    depth = place.constant(1)
    limit = int(depth.reshape(-1)[0]) if depth is not None and depth.size else 2
    return -limit, max(limit - 1, 0)


def _axis(place: Place) -> Bounds:
    rank = place.rank()
    return (-rank, rank - 1) if rank else (0, 0)


def _base(place: Place) -> Bounds | None:
    """What is raised to a power is positive, unless the power is a whole number."""
    power = place.constant(1)
    return (0.1, 3.0) if power is None or not np.all(power == np.round(power)) else None


def _bits(place: Place) -> Bounds:
    return 0, place.value.dtype.bits - 1


def _within(low: float, high: float) -> Callable[[Place], Bounds]:
    return lambda place: (low, high)


def _mostly(low: float, high: float) -> Callable[[Place], Bounds | None]:
    """Where the operator gives numbers; beyond, where it gives none, with special numbers."""
    return lambda place: None if place.draw.style == SPECIAL else (low, high)


BOUNDED: dict[tuple[str, int], Callable[[Place], Bounds | None]] = {
    ("Gather", 1): _indices,
    ("GatherElements", 1): _indices,
    ("OneHot", 0): _depth,
    ("CumSum", 1): _axis,
    ("CumProd", 1): _axis,
    ("DFT", 2): lambda place: (1, max(1, (place.rank() or 3) - 2)),
    ("TopK", 1): lambda place: (1, place.extent(attribute(place.node, "axis"), 0) or 1),
    ("Loop", 0): _within(0, 4),
    ("Trilu", 1): _within(-2, 2),
    ("NonMaxSuppression", 1): _within(0.0, 1.0),
    ("NonMaxSuppression", 2): _within(1, 3),
    ("NonMaxSuppression", 3): _within(0.3, 0.7),
    ("NonMaxSuppression", 4): _within(0.1, 0.4),
    ("RoiAlign", 2): partial(_classes, axis=0),
    ("GridSample", 1): _within(-1.3, 1.3),
    ("LSTM", 4): partial(_lengths, axis=0),
    ("GRU", 4): partial(_lengths, axis=0),
    ("RNN", 4): partial(_lengths, axis=0),
    ("ReverseSequence", 1): lambda place: _lengths(place, attribute(place.node, "time_axis")),
    ("NegativeLogLikelihoodLoss", 1): partial(_classes, axis=1),
    ("SoftmaxCrossEntropyLoss", 1): partial(_classes, axis=1),
    ("Dropout", 1): _within(0.0, 0.9),
    ("Dropout", 2): _within(0, 0),
    ("BatchNormalization", 4): _within(0.5, 2.0),
    ("QuantizeLinear", 1): _within(0.01, 0.2),
    ("DequantizeLinear", 1): _within(0.01, 0.2),
    ("Pow", 0): _base,
    ("Pow", 1): lambda place: (-2, 3),
    ("Sqrt", 0): _mostly(0.0, 9.0),
    ("Log", 0): _mostly(0.01, 9.0),
    ("Acos", 0): _mostly(-1.0, 1.0),
    ("Asin", 0): _mostly(-1.0, 1.0),
    ("Atanh", 0): _mostly(-0.99, 0.99),
    ("Acosh", 0): _mostly(1.0, 9.0),
    ("BitShift", 1): _bits,
    ("Bernoulli", 0): _within(0.0, 1.0),
    ("BlackmanWindow", 0): _within(4, 16),
    ("HammingWindow", 0): _within(4, 16),
    ("HannWindow", 0): _within(4, 16),
    ("STFT", 1): _within(2, 4),
    ("STFT", 3): _within(4, 8),
    ("Attention", 6): partial(_lengths, axis=-2, data=1),
    ("RotaryEmbedding", 3): partial(_classes, axis=0, data=1),
    ("ConstantOfShape", 0): _within(1, 4),
    ("Tile", 1): _within(1, 3),
}
"""The least and the largest number that an operand may be, by operator and operand; whole numbers for integers."""


# ---- arrays whose elements belong together ----


def _cells(place: Place) -> np.ndarray | None:
    """Indices of cells, each once, so that the order in which they are written does not matter."""
    extents = place.extents()
    if extents is None or not place.shape:
        return None
    first = attribute(place.node, "batch_dims") or 0
    inner = extents[first : first + place.shape[-1]]
    total, count = int(np.prod(inner, dtype=np.int64)), place.count // max(place.shape[-1], 1)
    if not total or len(inner) != place.shape[-1]:
        return None
    picked = place.rng.permutation(total)[:count] if count <= total else place.rng.integers(0, total, count)
    found = np.stack(np.unravel_index(picked, inner), -1)
    behind = place.rng.random(found.shape) < 0.3
    return np.where(behind, found - np.array(inner), found).reshape(place.shape)


def _scattered(place: Place) -> np.ndarray | None:
    """Indices along an axis, in each line each once."""
    axis = attribute(place.node, "axis") or 0
    extent = place.extent(axis)
    if extent is None or not place.shape or place.shape[axis] > extent:
        return None
    lines = np.moveaxis(np.empty(place.shape, np.int64), axis, -1)
    wide = np.broadcast_to(np.arange(extent), (*lines.shape[:-1], extent))
    found = np.moveaxis(place.rng.permuted(wide, axis=-1)[..., : lines.shape[-1]], -1, axis)
    return np.where(place.rng.random(found.shape) < 0.3, found - extent, found)


def _reshaped(place: Place) -> np.ndarray | None:
    """A shape for the elements there are: the first axes as they are, the rest in one, or further axes of 1."""
    rank = place.rank()
    if rank is None:
        return None
    kept = min(place.count, rank)
    zeros = not attribute(place.node, "allowzero")
    sizes = [0] * kept if zeros else place.extents()
    if sizes is None:
        return None
    found = np.array([*sizes[:kept], *[1] * (place.count - kept)], np.int64)
    if place.count < rank and place.count:
        found[-1] = -1
    return found


def _expanded(place: Place) -> np.ndarray | None:
    extents = place.extents()
    if extents is None:
        return np.ones(place.count, np.int64)
    found = [2] * max(0, place.count - len(extents)) + [3 if size == 1 else size for size in extents]
    return np.array(found[-place.count :] if place.count else [], np.int64)


def _scales(place: Place) -> np.ndarray:
    """The last two axes, or all that there are, become larger or smaller."""
    found = np.ones(place.count)
    factors = (1.5, 2.0, 3.0) if place.node.op == "Upsample" else (0.5, 1.5, 2.0, 3.0)
    found[-2:] = place.rng.choice(factors, len(found[-2:]))
    return found


def _resized(place: Place) -> np.ndarray | None:
    extents = place.extents()
    if extents is None or len(extents) < place.count:
        return None
    found = np.array(extents[-place.count :], np.int64)
    found[-2:] = found[-2:] * place.rng.integers(1, 4, len(found[-2:])) + place.rng.integers(0, 2, len(found[-2:]))
    return found


def _sliced_axes(place: Place) -> list[int]:
    axes = place.constant(3)
    return axes.reshape(-1).tolist() if axes is not None else list(range(place.count))


def _starts(place: Place) -> np.ndarray:
    extents = [place.extent(axis) or 1 for axis in _sliced_axes(place)][: place.count]
    return np.array([place.rng.integers(-size, max(size // 2, 1)) for size in extents], np.int64)


def _ends(place: Place) -> np.ndarray:
    extents = [place.extent(axis) or 1 for axis in _sliced_axes(place)][: place.count]
    return np.array([place.rng.choice([size, max(size - 1, 1), 1 << 30]) for size in extents], np.int64)


def _axes(place: Place) -> np.ndarray | None:
    """Different axes of the first operand, some counted from the end."""
    rank = place.rank()
    if rank is None or rank < place.count:
        return None
    found = place.rng.permutation(rank)[: place.count]
    return np.where(place.rng.random(found.shape) < 0.3, found - rank, found)


def _ones(place: Place) -> np.ndarray | None:
    """Axes of size 1."""
    extents = place.extents() or []
    found = [axis for axis, size in enumerate(extents) if size == 1]
    return np.array(found[: place.count]) if len(found) >= place.count else None


def _split(place: Place) -> np.ndarray | None:
    extent = place.extent(attribute(place.node, "axis") or 0)
    if extent is None or not place.count:
        return None
    found = np.full(place.count, extent // place.count, np.int64)
    found[-1] += extent - int(found.sum())
    return found


def _boxes(place: Place) -> np.ndarray:
    """Corners of boxes within the unit square, the lower one first."""
    corners = np.sort(place.rng.random((*place.shape[:-1], 2, 2)), axis=-2)
    return corners.reshape(place.shape)


def _rois(place: Place) -> np.ndarray | None:
    height, width = place.extent(-2), place.extent(-1)
    if height is None or width is None:
        return None
    corners = np.sort(place.rng.random((*place.shape[:-1], 2, 2)), axis=-2) * np.array([width - 1, height - 1])
    return corners.reshape(place.shape)


def _not_zero(place: Place) -> np.ndarray | None:
    """Integers to divide by."""
    if place.value.dtype.is_float:
        return None
    found = place.rng.integers(1, 10, place.shape)
    signed = place.value.dtype.kind == "i"
    return np.where(place.rng.random(place.shape) < 0.4, -found, found) if signed else found


def _range_end(number: int) -> Callable[[Place], np.ndarray]:
    """Start, end and step of a range."""
    low, high = ((-2, 3), (5, 12), (1, 3))[number]
    return lambda place: place.rng.integers(low, high, place.shape)


def _grid_size(place: Place) -> np.ndarray:
    return np.array([place.extent(0) or 1, *(2, 3, 4, 5)[: place.count - 1]], np.int64)


DRAWN: dict[tuple[str, int], Callable[[Place], np.ndarray | None]] = {
    ("GatherND", 1): _cells,
    ("ScatterND", 1): _cells,
    ("ScatterElements", 1): _scattered,
    ("Scatter", 1): _scattered,
    ("Reshape", 1): _reshaped,
    ("Expand", 1): _expanded,
    ("Resize", 2): _scales,
    ("Upsample", 1): _scales,
    ("Resize", 3): _resized,
    ("Slice", 1): _starts,
    ("Slice", 2): _ends,
    ("Slice", 3): _axes,
    ("Slice", 4): lambda place: place.rng.integers(1, 3, place.shape),
    ("Pad", 1): lambda place: place.rng.integers(0, 3, place.shape),
    ("Pad", 3): _axes,
    ("Split", 1): _split,
    ("Squeeze", 1): _ones,
    ("Unsqueeze", 1): lambda place: np.arange(place.count),
    ("NonMaxSuppression", 0): _boxes,
    ("RoiAlign", 1): _rois,
    ("Div", 1): _not_zero,
    ("Mod", 1): _not_zero,
    ("Range", 0): _range_end(0),
    ("Range", 1): _range_end(1),
    ("Range", 2): _range_end(2),
    ("AffineGrid", 1): _grid_size,
    ("CenterCropPad", 1): lambda place: place.rng.integers(2, 8, place.shape),
    **{
        (f"Reduce{name}", 1): _axes
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
"""Arrays for operands whose elements belong together."""

__all__ = ["FREE", "NORMAL", "ONES", "PIXELS", "SMALL", "SPECIAL", "STYLES", "UNIT", "ZEROS", "Draw", "readers"]
