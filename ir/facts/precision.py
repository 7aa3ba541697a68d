"""The decisions that passes record for the backend and the contract: dynamic inputs and the precision plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ir.base.diag import Diagnostic
from ir.graph.facts import Fact, register

if TYPE_CHECKING:
    from ir.graph.graph import Graph

Why = Literal["runtime-feeds", "frozen-by-tracing", "shape-computed", "whole-sequence", "kv-cache", "renamed"]


@dataclass(frozen=True)
class Discovery:
    """Why one input was declared.

    Attributes:
        input: name of the declared graph input.
        kind: meaning, one of the kinds of `ir.target.signature`.
        why: what the graph did before.
        reason: one sentence for people.
        node: node or value of the original graph where it was found; empty when nowhere in particular.
        default: value to feed when nothing better is known.
        shapes: every shape that the runtime may feed, as ints and dimension names.
        low, high: legal values of an integer input.
        meaning: what the runtime feeds.
    """

    input: str
    kind: str
    why: Why
    reason: str
    node: str = ""
    default: float | int | None = None
    shapes: tuple[tuple[int | str, ...], ...] = ()
    low: int | None = None
    high: int | None = None
    meaning: str = ""


@register
@dataclass(frozen=True)
class DynamicInputs(Fact):
    """The reconciliation of a graph with a calling convention."""

    name: ClassVar[str] = "dynamic-inputs"

    signature: str
    discoveries: tuple[Discovery, ...]
    keeps_cache: bool = True
    windows: tuple[int, ...] = ()
    """Distinct attention windows of the graph (0 for full attention), in the order of the mask planes."""

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        data = asdict(self)
        data["discoveries"] = [{**item, "shapes": [list(s) for s in item["shapes"]]} for item in data["discoveries"]]
        data["windows"] = list(self.windows)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> DynamicInputs:
        """Inverse of `to_data`."""
        found = tuple(
            Discovery(**{**item, "shapes": tuple(tuple(shape) for shape in item["shapes"])})
            for item in data["discoveries"]
        )
        return cls(data["signature"], found, data["keeps_cache"], tuple(data["windows"]))

    def renamed(self, old: str, new: str) -> DynamicInputs:
        """The fact with an input called otherwise."""
        if all(item.input != old for item in self.discoveries):
            return self
        found = tuple(replace(item, input=new) if item.input == old else item for item in self.discoveries)
        return replace(self, discoveries=found)

    def find(self, kind: str) -> Discovery | None:
        """The discovery of a kind, or None."""
        return next((item for item in self.discoveries if item.kind == kind), None)

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every discovered input is still declared."""
        declared = {value.name for value in graph.inputs}
        return [
            Diagnostic("I190", f"the discovered input {item.input!r} is not an input of the graph", graph.name)
            for item in self.discoveries
            if item.input not in declared
        ]

    def feeds(self, graph: Graph, ids: np.ndarray, *, index: int = 0) -> dict[str, np.ndarray]:
        """What the runtime feeds for a fresh prefill of token ids (int[seq]), for evaluation.

        `index` is the value of ``logits_index``: 0 for all rows, -1 for the last.
        """
        ids = np.asarray(ids).reshape(-1)
        seq = len(ids)
        made: dict[str, np.ndarray] = {}
        for value in graph.inputs:
            found = next((item for item in self.discoveries if item.input == value.name), None)
            if found is None:
                raise KeyError(f"input {value.name!r} was not discovered")
            if found.kind == "embedding-rows":
                rows = table_rows(graph, "embedding", ids)
                made[value.name] = np.ascontiguousarray(rows.reshape(seq, 1, -1))
            elif found.kind == "positions":
                made[value.name] = np.arange(seq, dtype=np.int32).reshape(1, seq)
            elif found.kind == "output-rows":
                made[value.name] = np.array([index], dtype=np.int32)
            elif found.kind == "attention-mask":
                made[value.name] = self._mask(value.type.rank, seq)
            else:
                raise KeyError(f"unknown kind {found.kind!r} of input {value.name!r}")
        return made

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """Feeds of the graph with declared inputs that mean the same as token ids did before, all rows wanted."""
        ids = next(array for array in feeds.values() if np.issubdtype(array.dtype, np.integer))
        return self.feeds(graph, ids, index=0)

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """The same outputs under the names that the runtime reads."""
        names = [value.name for value in graph.outputs]
        return dict(zip(names, outputs.values(), strict=True))

    def _mask(self, rank: int | None, seq: int) -> np.ndarray:
        if rank == 0:
            return np.zeros((), dtype=np.float32)
        gap = np.arange(seq)[:, None] - np.arange(seq)[None, :]
        low = np.finfo(np.float32).min
        window = max(self.windows, default=0)
        full = np.where(gap >= 0, 0.0, low).astype(np.float32)
        near = np.where((gap >= 0) & (gap < window), 0.0, low).astype(np.float32)
        return np.stack([full, near])[:, None, None]


def table_rows(graph: Graph, name: str, ids: np.ndarray) -> np.ndarray:
    """Rows of a table of the graph as float32[len(ids), width], reading no others.

    The table may be a constant or the output of a blocked dequantization or a Cast of constants.
    """
    value = graph.tables[name]
    unique, inverse = np.unique(ids, return_inverse=True)
    from ir.quant.stored_weight import storage_of

    weight = storage_of(value)
    rows = np.concatenate([weight.dequantized_rows(int(i), int(i) + 1) for i in unique])
    return rows[inverse]


@dataclass(frozen=True)
class Storage:
    """How one weight is stored.

    Attributes:
        bits: 2 to 8 for blocked integers, 16 for half floats, 32 for single floats.
        block: number of input features that share a scale; 0 for one scale a row. Meaningless above 8 bits.
        symmetric: no zero point.
        zero: ``int`` for an ONNX integer zero point, ``float`` for a real-valued one.
        scale: element type of the scale, ``f32`` or ``f16``.
        method: name of the quantization method.
        rule: which rule chose it, for people.
    """

    bits: int
    block: int = 0
    symmetric: bool = False
    zero: Literal["int", "float"] = "int"
    scale: Literal["f32", "f16"] = "f32"
    method: str = "rtn"
    rule: str = ""

    def same_bytes(self, other: Storage) -> bool:
        """True when both would store the same bytes (the rule that chose them aside)."""
        return replace(self, rule="") == replace(other, rule="")


@dataclass(frozen=True)
class Outcome:
    """What is known of a plan that was chosen by measurement.

    Attributes:
        limit: what was asked for, such as ``budget=4.5bpw``.
        bytes: size of the weight file and of embedding rows kept in a file of their own.
        bits_per_weight: stored bits of the planned weights, scales and zeros included, for each of them.
        predicted: KL divergence from the float model that was predicted before it was measured, nats per token.
        measured: KL divergence on held-out text.
        top1: share of held-out positions whose most likely token is that of the float model.
        positions: held-out positions.
    """

    limit: str
    bytes: int
    bits_per_weight: float
    predicted: float
    measured: float
    top1: float
    positions: int


@register
@dataclass(frozen=True)
class PrecisionPlan(Fact):
    """Storage of every planned constant, by constant name; what was predicted and measured when it was measured."""

    name: ClassVar[str] = "precision-plan"

    storage: Mapping[str, Storage] = field(default_factory=dict)
    tied: bool = False
    """True when the embedding rows are read from the stored logits matrix."""
    outcome: Outcome | None = None
    """What was measured of the plan; None when it was chosen by policy."""

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        data: dict[str, Any] = {
            "tied": self.tied,
            "storage": {key: asdict(item) for key, item in self.storage.items()},
        }
        if self.outcome is not None:
            data["outcome"] = asdict(self.outcome)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> PrecisionPlan:
        """Inverse of `to_data`."""
        outcome = Outcome(**data["outcome"]) if "outcome" in data else None
        return cls({key: Storage(**item) for key, item in data["storage"].items()}, data["tied"], outcome)

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Every planned constant is still there or has become a stored one."""
        return [
            Diagnostic("I191", f"the plan speaks of {name!r}, which the graph does not hold", graph.name)
            for name in self.storage
            if not graph.has(name)
        ]

    def renamed(self, old: str, new: str) -> PrecisionPlan:
        """The plan with a weight called otherwise."""
        if old not in self.storage:
            return self
        return replace(self, storage={new if key == old else key: item for key, item in self.storage.items()})


@dataclass(frozen=True)
class CurvePoint:
    """One way to store a weight, and what it costs.

    Attributes:
        bits, block, symmetric, method: as in `Storage`.
        bytes: size in the weight file.
        error: expected squared error of the weight's outputs, ``tr((W - W') E[x x^T] (W - W')^T)``; for embedding rows
            the squared error of the rows.
        loss: predicted KL divergence from the float model when only this weight is stored so, nats per token.
    """

    bits: int
    block: int
    symmetric: bool
    method: str
    bytes: int
    error: float
    loss: float


@dataclass(frozen=True)
class WeightSensitivity:
    """How much the model minds errors of one weight.

    Attributes:
        name: the weight.
        role: ``layer``, ``logits`` or ``embedding``.
        layer, kind: place in the model as the name tells; None and the last word of the name outside layers.
        elements: numbers in the weight.
        probe: storage in which this weight alone was measured, such as ``3 bits, block 64``; empty when it was not.
        kl: KL divergence from the float model that was measured then, nats per token.
        kl_per_error: KL divergence for each unit of error at the chosen point.
        factor: correction of the predicted losses by what was measured of whole plans.
        curve: the ways to store it that were weighed, by size; losses without `factor`.
        chosen: index into `curve` of what the plan takes; None when it takes something else, such as single precision.
    """

    name: str
    role: str
    layer: int | None
    kind: str
    elements: int
    probe: str
    kl: float
    kl_per_error: float
    factor: float
    curve: tuple[CurvePoint, ...]
    chosen: int | None


@dataclass(frozen=True)
class TriedPlan:
    """A whole plan that was measured on held-out text.

    Attributes:
        name: how it came about, such as ``mixed, round 2`` or ``uniform 4 bits, block 64``.
        bytes: size of all weights.
        bits_per_weight: stored bits of the planned weights for each of them.
        predicted: KL divergence that was predicted, nats per token.
        measured: KL divergence that was measured, and its standard error.
        top1: share of positions whose most likely token is that of the float model.
        taken: True for the plan that was chosen.
    """

    name: str
    bytes: int
    bits_per_weight: float
    predicted: float
    measured: float
    measured_error: float
    top1: float
    taken: bool = False


@register
@dataclass(frozen=True)
class Sensitivity(Fact):
    """What was measured to choose a precision plan.

    Attributes:
        limit: the limit asked for, such as ``budget=4.5bpw``.
        tokens: positions of held-out text on which single weights and whole plans were measured.
        weights: each planned weight, in program order.
        plans: each plan measured, in the order of measuring.
    """

    name: ClassVar[str] = "sensitivity"

    limit: str
    tokens: tuple[int, int]
    weights: tuple[WeightSensitivity, ...]
    plans: tuple[TriedPlan, ...]

    def to_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Inverse of `to_data`."""
        weights = tuple(
            WeightSensitivity(**{**item, "curve": tuple(CurvePoint(**point) for point in item["curve"])})
            for item in data["weights"]
        )
        plans = tuple(TriedPlan(**item) for item in data["plans"])
        single, whole = data["tokens"]
        return cls(data["limit"], (single, whole), weights, plans)

    def renamed(self, old: str, new: str) -> Sensitivity:
        """The fact with a weight called otherwise."""
        if all(item.name != old for item in self.weights):
            return self
        weights = tuple(replace(item, name=new) if item.name == old else item for item in self.weights)
        return replace(self, weights=weights)
