"""Roles of the inputs of a decoder, tried out: what each is fed for so many tokens after so many earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import product

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import BOOL, Dim, TensorType
from ir.facts.raised import PortKind
from ir.graph.graph import Graph, Value
from ir.onnx.keys import UNMADE
from passes.raising.content import Content

ROLES: dict[str, tuple[PortKind, str]] = {
    "ones": ("attention-mask", "one for each token that may be attended to, earlier ones included"),
    "causal": ("attention-mask", "0 where a token may attend, and the lowest number where it may not"),
    "allowed": ("attention-mask", "true where a token may attend"),
    "positions": ("positions", "the position of each token"),
    "past": ("length", "how many earlier tokens there are"),
    "total": ("length", "how many tokens there are, earlier ones included"),
    "last": ("length", "the position of the last token"),
    "tokens": ("length", "how many tokens are new"),
}
"""What an input may be fed: the kind of its port, and what that means."""


@dataclass(frozen=True)
class Probe:
    """What to evaluate a decoder with.

    Attributes:
        tokens, past, batch: sizes.
        large: ``values`` or ``scores``: numbers at which a bound shows that small ones never reach.
    """

    tokens: int
    past: int = 0
    batch: int = 1
    large: str = ""

    def __str__(self) -> str:
        text = f"{self.tokens} token{'s' * (self.tokens != 1)}"
        text += f" after {self.past}" if self.past else ""
        text += f", batch of {self.batch}" if self.batch > 1 else ""
        return text + (f" with large {self.large}" if self.large else "")


@dataclass(frozen=True)
class Roles:
    """What each input that is neither ids nor history is fed.

    Attributes:
        of: the role of each input, a key of `ROLES`.
        head_size: elements of a head in histories that do not say it.
    """

    of: Mapping[Value, str]
    head_size: int = 0

    def takes_matrix(self, needed: Set[Value]) -> bool:
        """Whether a needed input says for each token whom it sees."""
        return any(value in needed and role in ("causal", "allowed") for value, role in self.of.items())

    def feeds(
        self, content: Content, probe: Probe, rng: np.random.Generator, needed: Set[Value]
    ) -> dict[Value, np.ndarray]:
        """Arrays for those inputs that are needed; histories of random numbers.

        A mask that is a matrix of very many tokens fills the memory, so that none is made for nothing.
        """
        ids = content.ids
        shape = (probe.batch, probe.tokens) if ids.rank == 2 else (probe.tokens,)
        made: dict[Value, np.ndarray] = {ids: np.zeros(shape, ids.dtype.numpy)}
        for value, role in self.of.items():
            if value in needed:
                made[value] = _array(value, role, probe)
        for value in content.history:
            if value in needed:
                made[value] = rng.normal(0, 1, history_shape(value, content, probe, self.head_size)).astype(
                    value.dtype.numpy
                )
        for value in needed - made.keys():
            # What attention reads of it is its shape alone.
            if value.is_input and isinstance(value.type, TensorType):
                made[value] = np.zeros(_usual_shape(value, probe), value.dtype.numpy)
        return made


def _usual_shape(value: Value, probe: Probe) -> tuple[int, ...]:
    """The shape of an input with a number for each token, as far as its own does not say another."""
    usual = (probe.batch, probe.tokens) if (value.rank or 0) > 1 else (probe.tokens,)
    dims = value.shape or ()
    return tuple(dim if isinstance(dim, int) else (*usual, *(1 for _ in dims))[place] for place, dim in enumerate(dims))


def possible_roles(graph: Graph, content: Content, read: set[Value]) -> Iterator[Roles]:
    """Roles of the inputs that attention reads, likely ones first.

    Args:
        graph: the graph.
        content: its content.
        read: the inputs whose role matters.
    """
    open_ = [value for value in graph.inputs if value in read and value is not content.ids]
    open_ = [value for value in open_ if value not in content.history]
    choices = [_choices(value, content) for value in open_]
    for picks in product(*choices):
        yield Roles(dict(zip(open_, picks, strict=True)))


def _choices(value: Value, content: Content) -> Sequence[str]:
    """Roles that an input may have by its type, likely ones first; none for a type that no role has."""
    if not isinstance(value.type, TensorType) or value.shape is None:
        return ("ones", "positions", "total", "past")
    if is_unmade(value):
        return ("ones", "positions", "total", "past")
    rank, dtype = value.rank or 0, value.dtype
    if rank == 3 and dtype.is_integer:
        return ("positions",)
    if rank > 4:
        return ()
    if rank >= 3:
        return ("allowed",) if dtype == BOOL else ("causal",) if dtype.is_float else ()
    if dtype.is_float:
        return ("causal",) if rank == 2 else ()
    if dtype == BOOL:
        return ("ones",) if rank == 2 else ()
    if rank == 2 and dtype.is_integer:
        same = value.dims[-1] == content.ids.dims[-1]
        indexing = _indexes(value)
        first = ("positions", "ones") if same and indexing else ("ones", "positions")
        return first
    return ("positions", "last", "total", "past", "tokens") if rank == 1 else ("total", "past", "last", "tokens")


def is_unmade(value: Value) -> bool:
    """True for an input that the file reads and never declares: its shape is what readers force, and may be another."""
    return value.loc.startswith(UNMADE)


def _indexes(value: Value) -> bool:
    """True when the numbers of an input are used as numbers: cast to floats, or to choose rows."""
    for node, place in value.uses:
        if node.op == "Gather" and place == 1:
            return True
        if node.op in ("Unsqueeze", "Reshape", "Expand") and _indexes(node.output):
            return True
        if node.op == "Cast" and node.output.dtype.is_float:
            return True
        if node.op in ("RotaryEmbedding", "com.microsoft.RotaryEmbedding", "com.microsoft.GroupQueryAttention"):
            return True
    return False


def history_shape(value: Value, content: Content, probe: Probe, head_size: int) -> tuple[int, ...]:
    """The shape of a history: axes of unknown size are the batch, the past and, where it is last, the head's size."""
    batch = content.ids.dims[0] if content.ids.rank == 2 else None
    free = [place for place, dim in enumerate(value.dims) if isinstance(dim, Dim)]
    sizes = {place: probe.past for place in free}
    if free and (
        value.dims[free[0]] == batch or len(free) == 3 or (len(free) == 2 and free[-1] != len(value.dims) - 1)
    ):
        sizes[free[0]] = probe.batch
    if free and free[-1] == len(value.dims) - 1:
        sizes[free[-1]] = head_size
    return tuple(dim if isinstance(dim, int) else sizes[place] for place, dim in enumerate(value.dims))


def names_head_size(value: Value) -> bool:
    """Whether a history says how many elements a head has."""
    return isinstance(value.dims[-1], int)


def _array(value: Value, role: str, probe: Probe) -> np.ndarray:
    tokens, past, batch = probe.tokens, probe.past, probe.batch
    total, kind, rank = past + tokens, value.dtype.numpy, value.rank or 0
    if is_unmade(value) and role in ("ones", "positions"):
        rank = 2
    if role == "ones":
        return np.ones((batch, total), kind)
    if role == "positions":
        line = np.arange(past, total).astype(kind)
        # Ropes of several axes take the same positions for each of them in text.
        return np.broadcast_to(line, (3, batch, tokens)[-rank:]).copy() if rank > 1 else line
    if role in ("causal", "allowed"):
        seen = np.arange(total)[None] <= np.arange(past, total)[:, None]
        plane = seen if role == "allowed" else np.where(seen, 0.0, np.finfo(np.float32).min).astype(kind)
        shape = (1,) * max(0, rank - 2) + plane.shape
        return np.repeat(plane.reshape(shape), batch, 0) if rank > 2 else plane
    number = {"past": past, "total": total, "last": total - 1, "tokens": tokens}[role]
    if rank == 0:
        return np.array(number, kind)
    fixed = value.dims[0] if rank == 1 else 1
    count = fixed if isinstance(fixed, int) else batch
    return np.full((count,) + (1,) * (rank - 1), number, kind)


def require_free_length(ids: Value) -> None:
    """Refuse a decoder that computes one length alone.

    Raises:
        LadingError: P381.
    """
    if ids.rank in (1, 2) and isinstance(ids.dims[-1], int) and ids.dims[-1] > 1:
        raise LadingError(
            "P381",
            f"the model computes exactly {ids.dims[-1]} tokens, and a runtime asks for any number",
            where=ids.name,
            hint="export it with a dynamic sequence axis",
        )
