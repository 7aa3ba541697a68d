"""Choose how every weight matrix is stored, by policy or by measurement; `insert-qdq` makes the decision real."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ir.base.diag import LadingError
from ir.facts.precision import PrecisionPlan, Storage
from ir.graph.graph import Graph
from ir.quant.weight import METHODS, fit_block
from passes.framework.base import Pass, PassContext
from passes.framework.options import option
from passes.precision.limits import Limit, limit_of
from passes.precision.plan_file import ROLES, WIDTHS, Rule, load_rules
from passes.precision.planned_weights import EMBEDDING_WIDTHS, Weight, can_tie, same_matrix, weights_of


class Prepared(NamedTuple):
    """What the options say, read before any work.

    Attributes:
        rules: of `keep` and of the quantization file, first match wins.
        floors: least widths; every one that matches holds.
        limit: what measurement has to keep; None for policy.
    """

    rules: tuple[Rule, ...]
    floors: tuple[Rule, ...]
    limit: Limit | None


@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Give every weight matrix a storage: by rules and by role, or by measurement under a limit.

    Norm gains, biases and every other vector stay in single precision. A block that does not divide a row of input
    features is replaced by the largest that does (32, 16, 8 or 4 at least), else by one scale a row. Embedding and
    logits matrix are stored once when the checkpoint ties them and both get the same storage.

    With one of budget, max-size and max-kl the storages are chosen by measurement: how much each weight's error costs
    in KL divergence on held-out text, and how that error falls with every candidate. It needs the pass calibrate before
    it and text to measure with. Rules then narrow the candidates of the weights they match.
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
    method: str = option("auto", help="quantization method; auto is rtn, and gptq with a limit")
    embedding_method: str = option(
        "clip", help="method of embedding rows stored on their own when the other method needs inputs, which they lack"
    )
    keep: tuple[str, ...] = option((), help="patterns of weights that stay in single precision")
    plan: Path | None = option(None, help="quantization file (TOML or JSON)")
    floor: tuple[str, ...] = option(
        (), help="least widths as PATTERN:BITS, the pattern being a role or one of names: [logits:6,*.o_proj.weight:4]"
    )
    budget: str | None = option(None, help="measure: least loss at this many stored bits per weight, such as 4.5bpw")
    max_size: str | None = option(None, help="measure: least loss in a weight file of this size, such as 300MB")
    max_kl: float | None = option(None, help="measure: smallest size with at most this KL divergence, nats per token")
    widths: tuple[Literal[2, 3, 4, 5, 6, 7, 8, 16], ...] = option(
        (2, 3, 4, 5, 6, 7, 8, 16), help="widths that measurement chooses from"
    )
    blocks: tuple[int, ...] = option((32, 64, 128, 0), help="blocks that measurement chooses from; 0 for a row", low=0)
    forms: tuple[Literal["asymmetric", "symmetric"], ...] = option(
        ("asymmetric", "symmetric"), help="forms that measurement chooses from"
    )
    tie: tuple[Literal["qkv", "gate-up"], ...] = option(
        (), help="layers that measurement stores alike, as fused forms of them need"
    )
    rounds: int | None = option(
        None,
        help="how often measurement corrects its model of the losses by whole plans; by default once, and not at all "
        "in models of more than 50 million weights, whose plans take minutes to make",
        low=0,
        high=8,
    )

    def prepare(self) -> Prepared:
        """Read the quantization file and the limit, so that a bad one fails before any work."""
        limit = limit_of(self.budget, self.max_size, self.max_kl)
        rules = tuple(Rule(pattern, "", {"bits": 32}, f"keep={pattern}") for pattern in self.keep)
        rules += load_rules(self.plan) if self.plan is not None else ()
        methods = {rule.storage["method"] for rule in rules if "method" in rule.storage}
        for method in sorted({*methods, self.chosen_method, self.embedding_method}):
            if method not in METHODS:
                raise LadingError("Q413", f"unknown quantization method {method!r}", hint=f"known: {sorted(METHODS)}")
        if METHODS[self.embedding_method].needs == "second-moments":
            raise LadingError("Q413", f"embedding-method={self.embedding_method} needs inputs, which rows do not have")
        return Prepared(rules, tuple(_floor(text) for text in self.floor), limit)

    @property
    def chosen_method(self) -> str:
        """The method of weights that no rule gives one."""
        if self.method != "auto":
            return self.method
        measured = any(limit is not None for limit in (self.budget, self.max_size, self.max_kl))
        return "gptq" if measured else "rtn"

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        weights = weights_of(graph)
        prepared: Prepared = ctx.prepared
        _require_used((*prepared.rules, *prepared.floors), weights)
        if prepared.limit is None:
            plan = self._by_policy(weights, prepared)
        else:
            from passes.precision.measured.plan import by_measurement

            plan, sensitivity = by_measurement(graph, ctx, self, weights, prepared)
            graph.set_fact(sensitivity.name, sensitivity)
        graph.set_fact(PrecisionPlan.name, plan)
        return {"weights": len(plan.storage), **_histogram(plan.storage)}

    def _by_policy(self, weights: list[Weight], prepared: Prepared) -> PrecisionPlan:
        storage = {weight.name: self._choose(weight, prepared) for weight in weights}
        pair = same_matrix(weights)
        tied = pair is not None and can_tie(storage[pair[0].name], storage[pair[1].name])
        for weight in weights:
            if weight.role == "embedding" and not tied:
                storage[weight.name] = self.own_rows(storage[weight.name])
        return PrecisionPlan(storage, tied)

    def own_rows(self, storage: Storage) -> Storage:
        """The storage of embedding rows that are not read from the logits matrix: by a method that needs no inputs."""
        if storage.bits > 8 or METHODS[storage.method].needs != "second-moments":
            return storage
        return replace(storage, method=self.embedding_method)

    def _choose(self, weight: Weight, prepared: Prepared) -> Storage:
        rule = first_rule(prepared.rules, weight)
        bits = self._width(weight)
        base = self.storage(weight, bits, self.block, self.symmetric)
        if rule is not None:
            base = replace(base, bits=rule.bounded(bits), rule=rule.where)
            base = replace(base, **rule.storage)
        base = replace(base, bits=max([base.bits, *(item.min_bits for item in floors_of(prepared.floors, weight))]))
        if weight.role == "embedding":
            base = readable_rows(base, weight, explicit=rule is not None and "bits" in rule.storage)
        return self.settled(weight, base)

    def storage(self, weight: Weight, bits: int, block: int, symmetric: bool) -> Storage:
        """A storage with what the options say of everything else, as yet unsettled."""
        return Storage(bits, block, symmetric, self.zero, self._scale(), self.chosen_method, weight.role)

    def settled(self, weight: Weight, storage: Storage) -> Storage:
        """A storage with its block fitted to the rows, and what does not apply left out."""
        if storage.bits > 8:
            return Storage(storage.bits, rule=storage.rule)
        if storage.scale == "f16" and not storage.symmetric:
            # The runtime reads the product of zero point and scale, which half precision would round away from the
            # codes.
            storage = replace(storage, zero="float")
        return replace(storage, block=fit_block(weight.columns, storage.block))

    def _scale(self) -> Literal["f32", "f16"]:
        # Single precision is what every release reads; whoever knows the target replaces "auto" before the pass runs.
        return "f32" if self.scale == "auto" else self.scale

    def _width(self, weight: Weight) -> int:
        if weight.role == "layer":
            return self.bits
        if weight.role == "embedding" and self.embedding_bits:
            return self.embedding_bits
        return self.logits_bits


def first_rule(rules: tuple[Rule, ...], weight: Weight) -> Rule | None:
    """The rule that decides about a weight."""
    return next((rule for rule in rules if rule.applies(weight.name, weight.role)), None)


def floors_of(floors: tuple[Rule, ...], weight: Weight) -> list[Rule]:
    """Every floor that holds for a weight."""
    return [rule for rule in floors if rule.applies(weight.name, weight.role)]


def _floor(text: str) -> Rule:
    """``logits:6`` as a rule with a least width; Q411 for anything that is not a pattern and a width."""
    pattern, colon, number = text.rpartition(":")
    bits = int(number) if re.fullmatch(r"\d{1,2}", number) else 0
    if not colon or not pattern or bits not in WIDTHS:
        hint = f"PATTERN:BITS with a width of {list(WIDTHS)}"
        raise LadingError("Q411", f"{text!r} is not a floor", where=f"floor={text}", hint=hint)
    is_role = pattern in ROLES
    return Rule("" if is_role else pattern, pattern if is_role else "", {}, f"floor={text}", bits)


def readable_rows(storage: Storage, weight: Weight, *, explicit: bool) -> Storage:
    """Widths that runtimes cannot read rows of are raised to the next they can, unless a rule asked for them."""
    if storage.bits not in EMBEDDING_WIDTHS:
        if explicit:
            raise LadingError(
                "Q414",
                f"embedding rows cannot be stored at {storage.bits} bits",
                where=f"{storage.rule}, weight {weight.name}",
                hint=f"use one of {list(EMBEDDING_WIDTHS)}",
            )
        wider = next(width for width in EMBEDDING_WIDTHS if width >= storage.bits)
        storage = replace(storage, bits=wider)
    if storage.bits == 4 and weight.rows % 2:
        # MNN 3.4 drops the last row of a 4-bit table with an odd number of rows.
        storage = replace(storage, bits=8, rule=f"{storage.rule}, 8 bits for an odd vocabulary")
    return storage


def _require_used(rules: tuple[Rule, ...], weights: list[Weight]) -> None:
    """Raise Q412 for the first rule that decides nothing; floors never shadow each other."""
    plain = [rule for rule in rules if not rule.where.startswith("floor=")]
    used = {rule.where for weight in weights if (rule := first_rule(tuple(plain), weight)) is not None}
    for rule in rules:
        matched = [weight.name for weight in weights if rule.applies(weight.name, weight.role)]
        if rule.where in used or (matched and rule not in plain):
            continue
        what = "is shadowed by earlier rules" if matched else "matches no weight"
        names = ", ".join(weight.name for weight in weights[:3])
        raise LadingError(
            "Q412",
            f"the rule match={rule.match!r} role={rule.role!r} {what}",
            where=rule.where,
            hint="put it before the rule that takes its weights" if matched else f"weights are called {names}, ...",
        )


def _histogram(storage: Mapping[str, Storage]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in storage.values():
        counts[f"bits{item.bits}"] = counts.get(f"bits{item.bits}", 0) + 1
    return counts


__all__ = ["EMBEDDING_WIDTHS", "AssignPrecision", "Prepared", "weights_of"]
