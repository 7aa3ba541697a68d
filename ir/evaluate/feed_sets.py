"""Sets of made-up inputs that a model accepts: several sizes of each free dimension, several kinds of numbers.

Which sizes and numbers a model accepts is found by running it: whatever its reference computes is an input, whatever it
refuses is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from time import monotonic

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType, ValueType
from ir.evaluate.random_feeds import MOST_ELEMENTS, legal_size, sample_feeds
from ir.evaluate.value_ranges import FREE, NORMAL, PIXELS, SPECIAL, STYLES, UNIT, ZEROS, Draw
from ir.graph.copy import copied
from ir.graph.graph import Graph, Value

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]
"""What computes a model; it raises `LadingError` for what the model does not accept."""

LENGTHS = (8, 5, 16, 32, 64, 3, 128, 224, 256, 512, 2, 1, 640, 1024, 4096, 16000)
"""Sizes that dimensions other than those of batches and images are tried with, until one is accepted."""
IMAGES = (64, 32, 48, 224, 256, 8, 16, 128, 640, 1024, 4, 2, 1)
"""Sizes that models of images are tried with."""
BATCHES = (2, 1, 3, 4)
"""Sizes that dimensions of batches are tried with."""
RANKS = (2, 3, 4, 1, 0, 5)
"""Numbers of axes of an input that does not say how many it has."""
UNKNOWN = "axes of "
"""Beginning of the names of such numbers."""
WORDS = {
    NORMAL: "normal numbers", SPECIAL: "zeros, ties and special numbers", UNIT: "numbers from 0 to 1",
    PIXELS: "whole numbers from 0 to 255",
}  # fmt: skip
"""Kinds of numbers for people."""
MOST_OTHERS = 4
"""Dimensions other than those of batches, of which each may be one after all."""
MOST_TRIES = 800
"""Sets of inputs that are tried until one is accepted."""
SECONDS = {"quick": 20.0, "full": 120.0}
"""Time after which no further inputs are sought, by how much to verify."""
COUNTS = {"quick": 10, "full": 30}
"""Sets of inputs at most."""


@dataclass(frozen=True)
class FeedSet:
    """Inputs that a model accepts, and what it gives for them.

    Attributes:
        feeds: arrays by name.
        wanted: what the reference gives.
        sizes: sizes of the free dimensions by name.
        style: kind of numbers, one of `ir.evaluate.value_ranges.STYLES`; what given inputs were read from.
        seed: of the generator.
        given: they were not made up.
    """

    feeds: Feeds
    wanted: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    style: str
    seed: int = 0
    given: bool = False

    def __str__(self) -> str:
        if self.given:
            return self.style
        sizes = "".join(f", {name} = {size}" for name, size in self.sizes.items())
        return f"made-up inputs number {self.seed} ({WORDS[self.style]}{sizes})"


def feed_sets(graph: Graph, run: Run, *, most: int, seconds: float, styles: Sequence[str] = STYLES) -> list[FeedSet]:
    """Inputs for a model, at least one; the first has the usual sizes and normal numbers.

    Args:
        graph: the model, for the types and readers of its inputs.
        run: computes it.
        most: how many at most.
        seconds: time after which no more are sought.
        styles: kinds of numbers, in turn.

    Raises:
        LadingError: T225 an input for which nothing can be made up, U965 the model accepts nothing that was made up.
    """
    return _Search(graph, run, seconds).sets(most, styles)


class _Search:
    def __init__(self, graph: Graph, run: Run, seconds: float) -> None:
        self._graph = _typed(graph)
        self._run = run
        self._until = monotonic() + seconds
        self._refused: LadingError | None = None
        self._tries = 0
        self._dims = {
            dim.name: dim for value in self._graph.inputs for dim in getattr(value.type, "shape", None) or ()
            if isinstance(dim, Dim)
        }  # fmt: skip
        self._unranked = [value.name for value in self._graph.inputs if _lacks_rank(value)]

    def sets(self, most: int, styles: Sequence[str]) -> list[FeedSet]:
        first = self._first()
        found = [first]
        level = self._level
        choices = [first.sizes, *self._variants(first.sizes)]
        accepted: list[Mapping[str, int]] = [first.sizes]
        style = 1
        for sizes in choices[1:]:
            if len(found) >= max(most - len(styles) + 1, 2) or monotonic() > self._until:
                break
            made = self._try(sizes, styles[style % len(styles)], len(found), level)
            if made is not None:
                found.append(made)
                accepted.append(sizes)
                style += 1
        number = 0
        while len(found) < most and number < 2 * most and monotonic() < self._until:
            sizes = accepted[number % len(accepted)]
            made = self._try(sizes, styles[(style + number) % len(styles)], len(found), level)
            if made is not None:
                found.append(made)
            number += 1
            if not self._dims and not self._unranked and len(found) >= len(styles) + 1:
                break
        return found

    def _first(self) -> FeedSet:
        """The first inputs that are accepted; integers that nothing bounds become smaller until they are."""
        for level in range(FREE, ZEROS + 1):
            for sizes in self._bases():
                if self._tries >= MOST_TRIES or (self._tries and monotonic() > self._until):
                    break
                made = self._try(sizes, NORMAL, 0, level)
                if made is not None:
                    self._level = level
                    return made
        message = f"none of {self._tries} sets of made-up inputs is accepted by the model itself"
        place = self._refused.diagnostics[0].message if self._refused is not None else ""
        raise LadingError("U965", message, place, "give real inputs with --inputs FILE")

    def _bases(self) -> Iterator[Mapping[str, int]]:
        """Sizes of all dimensions that are worth a try, the usual ones first."""
        seen: set[tuple[tuple[str, int], ...]] = set()
        batches = _batches(self._graph)
        lengths = IMAGES if any(map(_is_open_image, self._graph.inputs)) else LENGTHS
        for ranks in product(RANKS, repeat=len(self._unranked)):
            base = {UNKNOWN + name: rank for name, rank in zip(self._unranked, ranks, strict=True)}
            others = [name for name in self._dims if name not in batches]
            # Files often do not say that one more dimension is that of batches.
            more = [None, *(others if 1 < len(others) <= MOST_OTHERS else ())]
            for batch, other, length, step in product(BATCHES[:2], more, lengths, (True, False)):
                # Different sizes show what is taken for each other.
                wanted = {name: length + step * place * (length // 2) for place, name in enumerate(others)}
                wanted |= dict.fromkeys([*batches, *([other] if other is not None else [])], batch)
                sizes = base | {name: legal_size(dim, wanted[name]) for name, dim in self._dims.items()}
                key = tuple(sorted(sizes.items()))
                if key not in seen:
                    seen.add(key)
                    yield sizes

    def _variants(self, base: Mapping[str, int]) -> list[Mapping[str, int]]:
        """Other sizes: all dimensions 1, odd or larger at once, then one after the other."""
        batches = _batches(self._graph)
        names = [name for name in base if name in self._dims]

        def changed(name: str, kind: int) -> int:
            size = base[name]
            wanted = (1, 3 if name in batches else size // 2 * 2 + 3, 4 if name in batches else 2 * size)[kind]
            return legal_size(self._dims[name], wanted)

        together = [{**base, **{name: changed(name, kind) for name in names}} for kind in range(3)]
        single = [{**base, name: changed(name, kind)} for kind in range(3) for name in names] if len(names) > 1 else []
        found: list[Mapping[str, int]] = []
        for sizes in [*together, *single]:
            if sizes != base and sizes not in found:
                found.append(sizes)
        return found

    def _try(self, sizes: Mapping[str, int], style: str, seed: int, level: int) -> FeedSet | None:
        feeds = self._feeds(sizes, style, seed, level)
        if feeds is None:
            return None
        self._tries += 1
        try:
            wanted = self._run(feeds)
        except LadingError as error:
            self._refused = self._refused or error
            return None
        return FeedSet(feeds, wanted, sizes, style, seed)

    def _feeds(self, sizes: Mapping[str, int], style: str, seed: int, level: int) -> Feeds | None:
        """The arrays; None for sizes that are too large to be made up."""
        if "dynamic-inputs" in self._graph.facts:
            return sample_feeds(self._graph, sizes, seed)
        draw = Draw(sizes, np.random.default_rng(seed), style, level)
        found = {}
        for value in self._graph.inputs:
            shape = _shape(value, sizes)
            if np.prod([max(size, 1) for size in shape], dtype=np.float64) > MOST_ELEMENTS:
                return None
            found[value.name] = draw.array(value, shape)
        return found


def _typed(graph: Graph) -> Graph:
    """A copy of the graph with the types of all its values, as far as they can be told; what readers ask of an input beyond
    what it declares is added to its type."""
    from ir.infer.engine import infer_types

    twin = copied(graph)
    infer_types(twin)
    for declared, value in zip(graph.inputs, twin.inputs, strict=True):
        twin.set_type(value, _narrowed(declared.type, value.type))
    return twin


def _narrowed(declared: ValueType | None, found: ValueType | None) -> ValueType | None:
    if not isinstance(declared, TensorType) or not isinstance(found, TensorType) or declared.shape is None:
        return found if declared is None or isinstance(declared, TensorType) else declared
    if found.shape is None or len(found.shape) != len(declared.shape):
        return declared
    pairs = zip(declared.shape, found.shape, strict=True)
    return TensorType(declared.dtype, tuple(one if isinstance(one, int) else other for one, other in pairs))


def _lacks_rank(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.shape is None


def _shape(value: Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype.kind not in "fiub":
        raise LadingError("T225", f"no feed can be made for input {value.name!r} of type {type_}", value.graph.name)
    if type_.shape is None:
        return (4, 3, 8, 8, 2)[: sizes[UNKNOWN + value.name]]
    return tuple(sizes[dim.name] if isinstance(dim, Dim) else dim for dim in type_.shape)


def _is_open_image(value: Value) -> bool:
    """True for floats on four axes of which one that is neither the first nor all of the others is free."""
    shape = value.shape or ()
    return len(shape) == 4 and value.dtype.is_float and sum(isinstance(dim, Dim) for dim in shape[1:]) in (1, 2)


def _batches(graph: Graph) -> set[str]:
    """Dimensions that are called batches, or are the first axis of inputs of several and no other axis of any."""
    shapes = [value.shape for value in graph.inputs if value.shape is not None]
    named = {dim.name for shape in shapes for dim in shape if isinstance(dim, Dim) and _BATCH.search(dim.name)}
    first = {shape[0].name for shape in shapes if len(shape) > 1 and isinstance(shape[0], Dim)}
    return named | (first - {dim.name for shape in shapes for dim in shape[1:] if isinstance(dim, Dim)})


_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)

__all__ = ["COUNTS", "SECONDS", "FeedSet", "Run", "feed_sets"]
