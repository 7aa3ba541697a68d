"""Choose how every weight matrix is stored, by policy; the decision is recorded and `insert-qdq` makes it real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ir.decisions import PrecisionPlan, Storage
from ir.diag import LadingError
from ir.graph import Graph, Node, Value
from ir.quant import METHODS, fit_block
from ir.tensor import same_tensor, transposed
from ir.types import TensorType
from passes.base import Pass, PassContext
from passes.discovery import is_rowwise
from passes.options import option
from passes.plan_file import Rule, load_rules

EMBEDDING_WIDTHS = (4, 8, 16, 32)
"""Widths at which runtimes read embedding rows."""


@dataclass(frozen=True)
class Weight:
    """One matrix to plan: the constant, its role, and the length of its rows of input features."""

    value: Value
    role: Literal["layer", "logits", "embedding"]
    columns: int
    rows: int


@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Give every weight matrix a storage: rules of a file first, then the options by role.

    Norm gains, biases and every other vector stay in single precision. A block that does not divide a row of input
    features is replaced by the largest that does (32, 16, 8 or 4 at least), else by one scale a row. Embedding and logits
    matrix are stored once when the checkpoint ties them and both get the same storage.
    """

    name = "assign-precision"
    requires = ("signature",)
    establishes = ("precision-plan",)

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(4, help="width of the layers' weights")
    logits_bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(8, help="width of the logits matrix")
    embedding_bits: Literal[0, 4, 8, 16, 32] = option(0, help="width of the embedding rows; 0 follows logits-bits")
    block: int = option(64, help="input features that share a scale; 0 for one scale a row", low=0)
    symmetric: bool = option(False, help="no zero point")
    zero: Literal["int", "float"] = option(
        "int", help="integer zero point (ONNX) or a real one; always real with scale=f16"
    )
    scale: Literal["auto", "f32", "f16"] = option(
        "auto",
        help="element type of scales; f16 needs MNN 3.6.0; auto is f16 where every release of the target reads it",
    )
    method: str = option("rtn", help="quantization method")
    keep: tuple[str, ...] = option((), help="patterns of weights that stay in single precision")
    plan: Path | None = option(None, help="quantization file (TOML or JSON)")

    def prepare(self) -> tuple[Rule, ...]:
        """Read the quantization file, so that a bad one fails before any work."""
        rules = tuple(Rule(pattern, "", {"bits": 32}, f"keep={pattern}") for pattern in self.keep)
        rules += load_rules(self.plan) if self.plan is not None else ()
        for method in sorted({self.method, *(rule.storage.get("method", self.method) for rule in rules)}):
            if method not in METHODS:
                raise LadingError("Q413", f"unknown quantization method {method!r}", hint=f"known: {sorted(METHODS)}")
        return rules

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        weights = weights_of(graph)
        rules: tuple[Rule, ...] = ctx.prepared
        used: set[str] = set()
        storage: dict[str, Storage] = {}
        for weight in weights:
            storage[weight.value.name] = self._choose(weight, rules, used)
        _require_used(rules, used, weights)
        tied = _tie(weights, storage)
        graph.set_fact(PrecisionPlan.name, PrecisionPlan(storage, tied))
        return {"weights": len(storage), **_histogram(storage)}

    def _choose(self, weight: Weight, rules: tuple[Rule, ...], used: set[str]) -> Storage:
        name = weight.value.name
        rule = next((rule for rule in rules if rule.applies(name, weight.role)), None)
        base = Storage(
            self._width(weight), self.block, self.symmetric, self.zero, self._scale(), self.method, weight.role
        )
        if rule is not None:
            used.add(rule.where)
            base = replace(base, **rule.storage, rule=rule.where)
        if weight.role == "embedding":
            base = _embedding_storage(base, weight, explicit=rule is not None and "bits" in rule.storage)
        if base.bits > 8:
            return Storage(base.bits, rule=base.rule)
        if base.scale == "f16" and not base.symmetric:
            # The runtime reads the product of zero point and scale, which half precision would round away from the codes.
            base = replace(base, zero="float")
        return replace(base, block=fit_block(weight.columns, base.block))

    def _scale(self) -> Literal["f32", "f16"]:
        # Single precision is what every release reads; whoever knows the target replaces "auto" before the pass runs.
        return "f32" if self.scale == "auto" else self.scale

    def _width(self, weight: Weight) -> int:
        if weight.role == "layer":
            return self.bits
        if weight.role == "embedding" and self.embedding_bits:
            return self.embedding_bits
        return self.logits_bits


def _embedding_storage(storage: Storage, weight: Weight, *, explicit: bool) -> Storage:
    """Widths that runtimes cannot read rows of are raised to the next they can, unless a rule asked for them."""
    if storage.bits not in EMBEDDING_WIDTHS:
        if explicit:
            raise LadingError(
                "Q414",
                f"embedding rows cannot be stored at {storage.bits} bits",
                where=f"{storage.rule}, weight {weight.value.name}",
                hint=f"use one of {list(EMBEDDING_WIDTHS)}",
            )
        wider = next(width for width in EMBEDDING_WIDTHS if width >= storage.bits)
        storage = replace(storage, bits=wider)
    if storage.bits == 4 and weight.rows % 2:
        # MNN 3.4 drops the last row of a 4-bit table with an odd number of rows.
        storage = replace(storage, bits=8, rule=f"{storage.rule}, 8 bits for an odd vocabulary")
    return storage


def _tie(weights: list[Weight], storage: Mapping[str, Storage]) -> bool:
    """True when the embedding rows can be read from the stored logits matrix."""
    tables = [weight for weight in weights if weight.role == "embedding"]
    heads = [weight for weight in weights if weight.role == "logits"]
    if len(tables) != 1 or len(heads) != 1:
        return False
    table, head = tables[0].value, heads[0].value
    if not same_tensor(table.const, transposed(head.const)):  # type: ignore[arg-type]
        return False
    chosen = storage[table.name]
    return chosen.bits in (4, 8, 16) and chosen.same_bytes(storage[head.name])


def _require_used(rules: tuple[Rule, ...], used: set[str], weights: list[Weight]) -> None:
    idle = [rule for rule in rules if rule.where not in used]
    if not idle:
        return
    rule = idle[0]
    shadowed = [w.value.name for w in weights if rule.applies(w.value.name, w.role)]
    what = "is shadowed by earlier rules" if shadowed else "matches no weight"
    names = ", ".join(weight.value.name for weight in weights[:3])
    raise LadingError(
        "Q412",
        f"the rule match={rule.match!r} role={rule.role!r} {what}",
        where=rule.where,
        hint="put it before the rule that takes its weights" if shadowed else f"weights are called {names}, ...",
    )


def _histogram(storage: Mapping[str, Storage]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in storage.values():
        counts[f"bits{item.bits}"] = counts.get(f"bits{item.bits}", 0) + 1
    return counts


def weights_of(graph: Graph) -> list[Weight]:
    """Constant float matrices that a MatMul multiplies by or that the runtime reads rows of, in program order."""
    found: dict[Value, Weight] = {}
    for value in graph.tables.values():
        if _is_matrix(value):
            rows, columns = value.shape
            found[value] = Weight(value, "embedding", columns, rows)
    for node in graph.nodes:
        weight = node.input(1)
        if node.op == "MatMul" and weight is not None and _is_matrix(weight) and weight not in found:
            columns, rows = weight.shape
            role: Literal["layer", "logits"] = "logits" if _reaches_output(node) else "layer"
            found[weight] = Weight(weight, role, columns, rows)
    return list(found.values())


def _is_matrix(value: Value) -> bool:
    is_float = value.is_const and isinstance(value.type, TensorType) and value.dtype.is_float
    return is_float and value.type.rank == 2


def _reaches_output(node: Node) -> bool:
    """True when the product becomes a graph output through element-wise nodes alone."""
    while True:
        if node.output.is_output:
            return True
        users = node.output.users
        if len(users) != 1 or users[0].op == "MatMul" or not is_rowwise(users[0]):
            return False
        node = users[0]
