"""What options, rules and target say of the storage of a weight, for policy and measurement alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ir.base.diag import LadingError
from ir.quant.methods.base import METHODS
from ir.quant.storage import Storage
from ir.target.device import Device
from ir.target.target import Target
from passes.precision.limits import Limits
from passes.precision.plan_file import ROLES, WIDTHS, Rule
from passes.precision.planned_weights import Weight


class Prepared(NamedTuple):
    """What the options say, read before any work.

    Attributes:
        rules: of `keep` and of the quantization file, first match wins.
        floors: least widths; every one that matches holds.
        limits: what measurement has to keep; None for policy.
    """

    rules: tuple[Rule, ...]
    floors: tuple[Rule, ...]
    limits: Limits | None


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What the options of `assign-precision` come to for one target.

    Attributes:
        target: what the graph is compiled for.
        device: whose speed counts.
        rules, floors, limits: as in `Prepared`.
        bits, router_bits, logits_bits, embedding_bits: widths by role; 0 for embedding rows that follow the logits matrix.
        block: input features that share a scale; 0 for a whole row.
        symmetric, zero, scale, method: of storages that no rule decides about.
        embedding_method: method of embedding rows stored on their own when the other needs inputs, which they lack.
        widths, blocks, forms: what measurement chooses from.
        tie: layers that measurement stores alike.
        rounds: how often measurement corrects its model; None for its own choice.
    """

    target: Target
    device: Device
    rules: tuple[Rule, ...]
    floors: tuple[Rule, ...]
    limits: Limits | None
    bits: int
    router_bits: int
    logits_bits: int
    embedding_bits: int
    block: int
    symmetric: bool
    zero: Literal["int", "float"]
    scale: Literal["f32", "f16"]
    method: str
    embedding_method: str
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    forms: tuple[str, ...]
    tie: tuple[str, ...]
    rounds: int | None

    def width(self, weight: Weight) -> int:
        """The width of a weight that no rule decides about."""
        if weight.role == "layer":
            return self.bits
        if weight.role == "router":
            return max(self.bits, self.router_bits)
        if weight.role == "embedding" and self.embedding_bits:
            return self.embedding_bits
        return self.logits_bits

    def storage(self, *, bits: int, block: int, symmetric: bool) -> Storage:
        """A storage with what is said of everything else, as yet unsettled."""
        return Storage(
            bits=bits,
            block=block,
            symmetric=symmetric,
            zero=self.zero,
            scale=self.scale,
            method=self.method,
        )

    def settled(self, weight: Weight, storage: Storage) -> Storage:
        """A storage with its block fitted to the rows, and what does not apply left out."""
        if storage.bits > 8:
            return Storage(bits=storage.bits)
        if storage.scale == "f16" and not storage.symmetric:
            # Runtimes read the product of zero point and scale, which half precision would round away from the codes.
            storage = replace(storage, zero="float")
        return storage.fit(weight.columns)

    def own_rows(self, storage: Storage) -> Storage:
        """The storage of embedding rows that are not read from the logits matrix: by a method that needs no inputs."""
        if storage.bits > 8 or METHODS[storage.method].needs in ("nothing", "diagonal"):
            return storage
        return replace(storage, method=self.embedding_method)

    def readable_rows(self, storage: Storage, weight: Weight, rule: Rule | None) -> tuple[Storage, str]:
        """Widths at which rows cannot be read are raised to the next that can, unless a rule asked for them.

        Gives the storage, and why it is wider where the number of rows is the reason.

        Raises:
            LadingError: Q414 a rule asked for one.
        """
        widths = self.target.embedding_widths
        if storage.bits not in widths:
            if rule is not None and "bits" in rule.storage:
                raise LadingError(
                    "Q414",
                    f"embedding rows cannot be stored at {storage.bits} bits",
                    where=f"{rule.where}, weight {weight.name}",
                    hint=f"use one of {list(widths)}",
                )
            storage = replace(storage, bits=next(width for width in widths if width >= storage.bits))
        if not self.target.reads_rows(storage.bits, weight.rows):
            wider = next(width for width in widths if self.target.reads_rows(width, weight.rows))
            return replace(storage, bits=wider), f"{wider} bits for an odd vocabulary"
        return storage, ""

    def can_tie(self, table: Storage, head: Storage) -> bool:
        """True when rows of an embedding stored like this can be read from its logits matrix stored like that."""
        return table.bits in self.target.tied_widths and table == head

    def rows_follow(self, table: Weight) -> bool:
        """True when nothing is said of embedding rows but what is said of the logits matrix."""
        return not self.embedding_bits and self.rule_of(table) is None

    def tied_width(self, table: Weight, head: Weight, bits: int) -> int | None:
        """The least width from `bits` on at which a logits matrix and the rows read from it are one; None without."""
        least = max(bits, self.floor(table), self.floor(head))
        widths = [width for width in self.target.tied_widths if self.target.reads_rows(width, table.rows)]
        return next((width for width in widths if width >= least), None)

    def rule_of(self, weight: Weight) -> Rule | None:
        """The rule that decides about a weight."""
        return first_rule(self.rules, weight)

    def why(self, weight: Weight, otherwise: str) -> str:
        """What chose the storage of a weight, for people: its rule, or `otherwise`."""
        rule = self.rule_of(weight)
        return rule.where if rule is not None else otherwise

    def floor(self, weight: Weight) -> int:
        """The least width of a weight; 0 when nothing says."""
        return max([0, *(rule.min_bits for rule in self.floors if rule.applies(weight.name, weight.role))])


def first_rule(rules: tuple[Rule, ...], weight: Weight) -> Rule | None:
    """The rule that decides about a weight."""
    return next((rule for rule in rules if rule.applies(weight.name, weight.role)), None)


def floor_of(text: str) -> Rule:
    """``logits:6`` as a rule with a least width; Q411 for anything that is not a pattern and a width."""
    pattern, colon, number = text.rpartition(":")
    bits = int(number) if re.fullmatch(r"\d{1,2}", number) else 0
    if not colon or not pattern or bits not in WIDTHS:
        hint = f"PATTERN:BITS with a width of {list(WIDTHS)}"
        raise LadingError("Q411", f"{text!r} is not a floor", where=f"floor={text}", hint=hint)
    is_role = pattern in ROLES
    return Rule("" if is_role else pattern, pattern if is_role else "", {}, f"floor={text}", bits)


def require_used(rules: tuple[Rule, ...], weights: list[Weight], kept: Sequence[str] = ()) -> None:
    """Raise Q412 for the first rule that decides nothing; floors never shadow each other.

    `kept` names the weights that came quantized, about which rules do not decide.
    """
    plain = [rule for rule in rules if not rule.where.startswith("floor=")]
    used = {rule.where for weight in weights if (rule := first_rule(tuple(plain), weight)) is not None}
    for rule in rules:
        matched = [weight.name for weight in weights if rule.applies(weight.name, weight.role)]
        if rule.where in used or (matched and rule not in plain):
            continue
        what = "is shadowed by earlier rules" if matched else "matches no weight"
        stored = [] if matched or rule.role else [name for name in kept if rule.applies(name, "")]
        if stored:
            raise LadingError(
                "Q412",
                f"the rule match={rule.match!r} matches {stored[0]}, which came quantized and is kept as it is",
                where=rule.where,
                hint="name it in requantize=[...] as well to have it stored anew",
            )
        names = ", ".join(weight.name for weight in weights[:3])
        raise LadingError(
            "Q412",
            f"the rule match={rule.match!r} role={rule.role!r} {what}",
            where=rule.where,
            hint="put it before the rule that takes its weights" if matched else f"weights are called {names}, ...",
        )
