"""What the rows of the table of encodings are given and give: stored tensors, what is declared of them, plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from frontends.configuration.keys import shown
from ir.base.diag import LadingError
from ir.base.types import F32
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import looked_up
from ir.tensor.rearranged import reshaped

FLOAT8 = ("f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz")
SCALES = ("f32", "f16", "bf16", "f8e8m0", "u8")
"""Element types of scales; bytes are exponents of 2."""

BESIDE = (
    "activation_scale",
    "activation_scale_inv",
    "input_global_scale",
    "input_scale",
    "input_scale_inv",
    "input_scale_ub",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "qscale_act",
    "weight_zero_point",
)
"""What may lie beside a quantized weight and is not needed to decode it: scales of activations, zeros of symmetric codes."""
CACHE = ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "prob_output_scale", "kv_scale")
"""Scales of a quantized key/value cache, beside the weights of attention."""


@dataclass(frozen=True)
class Declared:
    """What a checkpoint's configuration says of its quantization.

    Attributes:
        record: the JSON object, empty when there is none.
        where: file and key.
    """

    record: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def method(self) -> str:
        """Name of the method in small letters; empty where none is said."""
        for key in ("quant_method", "quant_algo"):
            name = self.record.get(key)
            if isinstance(name, str) and name:
                return name.lower()
        return ""

    def number(self, *keys: str) -> int | None:
        """The integer under the first of some keys that is there; None where none is.

        Raises:
            LadingError: F577 another value.
        """
        for key in keys:
            value = self.record.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise LadingError("F577", f"{key} is {shown(value)}, not a whole number", self.where)
            return value
        return None

    def word(self, *keys: str) -> str:
        """The text under the first of some keys that has one, in small letters; empty where none has."""
        values = (self.record.get(key) for key in keys)
        return next((value.lower() for value in values if isinstance(value, str)), "")

    def says(self, key: str) -> bool | None:
        """A flag; None where it is not given."""
        value = self.record.get(key)
        return value if isinstance(value, bool) else None


@dataclass(frozen=True)
class Found:
    """One quantized weight.

    Attributes:
        name: what the plain checkpoint calls it.
        tensor: its numbers, decoded when they are read.
        made_of: names of the stored tensors that it takes the place of, besides those of `BESIDE`.
        words: for people: ``GPTQ, 4 bits in groups of 128``.
    """

    name: str
    tensor: Tensor
    made_of: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a checkpoint, what is declared of them, and the folder."""

    tensors: Mapping[str, Tensor]
    declared: Declared
    where: str

    def ending(self, suffix: str) -> Iterator[tuple[str, Tensor]]:
        """Tensors whose names end so, with what stands before."""
        for name, tensor in self.tensors.items():
            if name.endswith(suffix):
                yield name[: -len(suffix)], tensor

    def need(self, name: str, of: str) -> Tensor:
        """A tensor that a weight cannot do without; LadingError F578 where it is missing."""
        found = self.tensors.get(name)
        if found is None:
            hint = "fetch the checkpoint again, or quantize it anew"
            raise LadingError(
                "F578", f"tensor {name} is missing, without which {of} cannot be decoded", self.where, hint
            )
        return found

    def there(self, *names: str) -> tuple[str, ...]:
        """Those names that are stored."""
        return tuple(name for name in names if name in self.tensors)

    def misfit(self, what: str, *names: str) -> LadingError:
        """The error of tensors that do not fit each other."""
        shapes = ", ".join(f"{name} {self.tensors[name].type}" for name in names if name in self.tensors)
        return LadingError("F578", f"{what}: {shapes}", self.where, "fetch the checkpoint again, or quantize it anew")

    def contradicts(self, says: str, but: str) -> LadingError:
        """The error of a configuration that says something else than the tensors."""
        hint = "mend the entry, or remove it: the tensors alone are enough"
        return LadingError("F577", f"the configuration says {says}, but {but}", self.declared.where, hint)


@dataclass(frozen=True)
class Encoding:
    """One encoding of weights; a row of the table of encodings.

    Attributes:
        name: for people.
        methods: what configurations call it (``quant_method``).
        find: the weights that are stored so, by their tensors alone. It raises F577 where the configuration contradicts
            them and F578 where they do not fit each other.
    """

    name: str
    methods: tuple[str, ...]
    find: Callable[[Stored], Iterable[Found]]


def exponents(bias: int) -> InlineTensor:
    """f32[256]: ``2 ** (i - bias)`` for each byte; the last one is no number (OCP Microscaling 1.0, section 5.4.1)."""
    powers = np.ldexp(np.float32(1), np.arange(256) - bias).astype(np.float32)
    powers[255] = np.nan
    return InlineTensor(powers)


def scale_numbers(tensor: Tensor) -> Tensor:
    """Scales as f32."""
    return looked_up(tensor, exponents(127)) if tensor.type.dtype.name == "u8" else cast(tensor, F32)


def in_blocks(stored: Stored, codes: Tensor, names: tuple[str, ...], block: tuple[int, ...] = ()) -> Tensor:
    """Numbers of codes with scales, and zeros if there are any.

    Args:
        stored: the tensors.
        codes: the codes, of any rank.
        names: the scales and, where there is a second name, the zeros, which have the type of the codes. Their shape is
            that of the codes divided by blocks, or one number for the whole, or for each row.
        block: codes along each axis that share a scale as far as somebody says so; only asked where it matters.
    """
    scale = scale_numbers(stored.tensors[names[0]])
    tile = tile_of(codes.shape, scale.shape, block)
    if tile is None:
        raise stored.misfit("scales do not fit the codes", *names)
    counts = tuple(-(-size // each) for size, each in zip(codes.shape, tile, strict=True))
    parts = [scale, *(stored.tensors[name] for name in names[1:])]
    if any(part.type.size != scale.type.size for part in parts):
        raise stored.misfit("zeros do not fit the scales", *names)
    return decoded(codes, *(reshaped(part, counts) for part in parts), tile=tile)


def tile_of(codes: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """How many codes of each axis share a scale; None where the shapes do not say."""
    rank = len(codes)
    if np.prod(scales, dtype=np.int64) == 1:
        return codes
    if len(scales) == 1 and scales[0] == codes[-2]:
        scales = (*scales, 1)
    if len(scales) != rank:
        return None
    tile = []
    for axis, (size, count) in enumerate(zip(codes, scales, strict=True)):
        wanted = block[axis - rank + len(block)] if axis >= rank - len(block) else 0
        choices = [wanted, 128] if size % max(count, 1) else [wanted, size // max(count, 1)]
        fitting = [each for each in choices if each > 0 and -(-size // each) == count]
        if not fitting:
            return None
        tile.append(size if count == 1 else fitting[0])
    return tuple(tile)


def group_words(columns: int, groups: int) -> str:
    """For people: how scales are shared along a row."""
    if groups <= 1:
        return ", one scale a row"
    return f" in groups of {-(-columns // groups)}"


def small(tensor: Tensor) -> np.ndarray | None:
    """The numbers of a small tensor; None where only headers are there to be read."""
    try:
        return tensor.load()
    except LadingError as error:
        if error.diagnostics[0].code in ("T252", "T253"):
            return None
        raise
