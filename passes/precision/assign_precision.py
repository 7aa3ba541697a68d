"""Choose how every weight matrix is stored, by policy or by measurement; `insert-qdq` makes the decision real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from ir.base.diag import LadingError
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.methods.base import METHODS
from ir.quant.storage import Storage
from ir.target.target import Target
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.limits import Limits, limits_of
from passes.precision.plan_file import Rule, check_pattern, load_rules
from passes.precision.planned_weights import Weight, kept_weights, same_matrix, weights_of
from passes.precision.storage_rules import Preferences, Prepared, floor_of, require_used

T = TypeVar("T")

USUAL_BLOCK = 64
"""Input features that share a scale when no option says."""
MEASURED_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
"""Widths that measurement chooses from when no option says."""
MEASURED_BLOCKS = (32, 64, 128, 0)
"""Blocks that measurement chooses from when no option says; 0 stands for a whole row."""
FORMS = ("asymmetric", "symmetric")
"""Forms of integer storage."""


@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Give every weight matrix a storage: by rules and by role, or by measurement under a limit.

    Norm gains, biases and every other vector stay in single precision. A block that does not divide a row of input
    features is replaced by the largest that does (32, 16, 8 or 4 at least), else by one scale a row. When the checkpoint
    ties embedding and logits matrix, the rows are stored as the logits matrix is unless an option or a rule speaks of
    them, and both are one matrix in the file, at a width at which rows can be read. Weights that came quantized are kept
    as they are; a limit on the size counts them, and rules and options say nothing of them unless raise-weights was
    told to requantize them.

    With any of budget, max-size, max-kl and min-speed the storages are chosen by measurement: how much each weight's
    error costs in KL divergence on held-out text, and how that error falls with every candidate. Several limits are kept
    together. It needs the pass calibrate before it and text to measure with. Rules then narrow the candidates of the
    weights they match.
    """

    name = "assign-precision"
    requires = ("typed",)
    establishes = ("precision-plan",)

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(4, help="width of the layers' weights")
    logits_bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(8, help="width of the logits matrix")
    router_bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = option(
        16, help="least width of the matrices that choose the experts of a mixture"
    )
    embedding_bits: Literal[0, 4, 8, 16, 32] = option(0, help="width of the embedding rows; 0 follows logits-bits")
    block: int = option(USUAL_BLOCK, help="input features that share a scale; 0 for one scale a row", low=0)
    block_trade: float = option(
        0.0,
        help="measure the errors of larger blocks, too, and take them where each percent fewer bytes read for a token "
        "costs at most this many percent of the error; 0 leaves the block as it is, and so does another block than 64",
        low=0,
    )
    symmetric: bool = option(False, help="no zero point")
    zero: Literal["int", "float"] = option(
        "int", help="integer zero point (ONNX) or a real one; always real with scale=f16"
    )
    scale: Literal["auto", "f32", "f16"] = option(
        "auto",
        help="element type of scales; auto is f16 where every release of the target reads it, else f32",
    )
    method: str = option("auto", help="quantization method; auto is rtn, and gptaq with a limit")
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
    min_speed: str | None = option(
        None,
        help="measure: least loss at this share of the decoding speed of the fastest uniform width, such as 0.95x; auto for "
        "that of 4 bits in every weight at the size that is given, as far as it can be had",
    )
    device: str = option("", help="what the model is to run fast on; by default the first that the target knows of")
    widths: tuple[Literal[2, 3, 4, 5, 6, 7, 8, 16], ...] = option(
        (), help="widths that measurement chooses from; by default all that the target computes right"
    )
    blocks: tuple[int, ...] = option(
        (), help="blocks that measurement chooses from, 0 for a row; by default 32, 64, 128 and a row", low=0
    )
    forms: tuple[Literal["asymmetric", "symmetric"], ...] = option(
        (), help="forms that measurement chooses from; by default both where the target computes both right"
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
        """Read the quantization file and the limits, so that a bad one fails before any work."""
        limits = limits_of(*self._limits)
        for pattern in self.keep:
            check_pattern(pattern, f"keep={pattern[:200]}")
        rules = tuple(Rule(pattern, "", {"bits": 32}, f"keep={pattern}") for pattern in self.keep)
        rules += load_rules(self.plan) if self.plan is not None else ()
        methods = {rule.storage["method"] for rule in rules if "method" in rule.storage}
        for method in sorted({*methods, self.chosen_method, self.embedding_method}):
            if method not in METHODS:
                raise LadingError("Q413", f"unknown quantization method {method!r}", hint=f"known: {sorted(METHODS)}")
            if METHODS[method].needs == "both-sides":
                hint = "choose gptq, and put the pass calibrate-outputs behind assign-precision: --passes tuned"
                raise LadingError("Q413", f"the method {method!r} cannot be chosen before widths are", hint=hint)
        if METHODS[self.embedding_method].needs in ("second-moments", "both-sides"):
            raise LadingError("Q413", f"embedding-method={self.embedding_method} needs inputs, which rows do not have")
        return Prepared(rules, tuple(floor_of(text) for text in self.floor), limits)

    @property
    def _limits(self) -> tuple[str | None, str | None, float | None, str | None]:
        return self.budget, self.max_size, self.max_kl, self.min_speed

    @property
    def limit_text(self) -> str:
        """The limits that measurement has to keep, as they were asked for; empty without any."""
        limits = limits_of(*self._limits)
        return limits.text if limits is not None else ""

    @property
    def chosen_method(self) -> str:
        """The method of weights that no rule gives one."""
        if self.method != "auto":
            return self.method
        measured = any(limit is not None for limit in self._limits)
        return "gptaq" if measured else "rtn"

    @property
    def needs_statistics(self) -> bool:
        """True when the pass calibrate has to run before: there is a limit, or a method looks at inputs.

        Raises:
            LadingError: the options or their files are wrong, as in `prepare`.
        """
        prepared = self.prepare()
        methods = {rule.storage["method"] for rule in prepared.rules if "method" in rule.storage}
        needed = any(METHODS[method].needs == "second-moments" for method in {*methods, self.chosen_method})
        return prepared.limits is not None or needed

    @property
    def follows(self) -> bool:
        """True when the pass recalibrate has to run behind: a method makes up for errors made before a weight.

        Raises:
            LadingError: as for `needs_statistics`.
        """
        rules = self.prepare().rules
        methods = {rule.storage["method"] for rule in rules if "method" in rule.storage}
        return any(METHODS[method].follows != "" for method in {*methods, self.chosen_method})

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        weights = weights_of(graph)
        wanted = self.preferences(ctx.target, ctx.prepared)
        require_used((*wanted.rules, *wanted.floors), weights, [item.name for item in kept_weights(graph)])
        if wanted.limits is None:
            plan = _by_policy(weights, wanted, ctx)
            integers = any(item.is_integer for item in plan.storage.values())
            if self.block_trade > 0 and self.block == USUAL_BLOCK and integers:
                from passes.precision.measured.block_choice import with_larger_blocks

                plan = with_larger_blocks(graph, ctx, wanted, weights, plan, self.block_trade)
        elif not weights:
            plan = _nothing_to_choose(graph, wanted)
        else:
            # Measuring takes many modules, which assigning by policy must not pay for.
            from passes.precision.measured.plan import by_measurement

            plan, sensitivity = by_measurement(graph, ctx, wanted, weights)
            graph.set_fact(sensitivity.name, sensitivity)
        if weights and any(item.is_integer for item in plan.storage.values()):
            from passes.precision.decode_speed import warn_if_slow

            warn_if_slow(weights, plan.storage, plan.tied, wanted, ctx)
        exact = wanted.limits is None and min(self.bits, self.logits_bits) > 8
        graph.set_fact(PrecisionPlan.name, replace(plan, exact=exact))
        return {"weights": len(plan.storage), **_histogram(plan.storage)}

    def preferences(self, target: Target, prepared: Prepared) -> Preferences:
        """What the options come to for a target: what they leave open is what every release of it computes right.

        Raises:
            LadingError: Q415 an option asks measurement to choose from what the target cannot compute; Q479 nothing is
                known of the device.
        """
        embedding_bits = self.embedding_bits or (0 if target.rows_in_weight_file else 32)
        scale = self.scale if self.scale != "auto" else "f16" if target.f16_scales else "f32"
        widths = _chosen("widths", self.widths, MEASURED_WIDTHS, lambda bits: bits > 8 or bits in target.widths, target)
        blocks = _chosen("blocks", self.blocks, MEASURED_BLOCKS, lambda size: size % target.block_unit == 0, target)
        forms = _chosen("forms", self.forms, FORMS, lambda form: form != "symmetric" or target.symmetric, target)
        return Preferences(
            target=target,
            device=target.device(self.device),
            rules=prepared.rules,
            floors=prepared.floors,
            limits=prepared.limits,
            bits=self.bits,
            router_bits=self.router_bits,
            logits_bits=self.logits_bits,
            embedding_bits=embedding_bits,
            block=self.block,
            symmetric=self.symmetric,
            zero=self.zero,
            scale=scale,
            method=self.chosen_method,
            embedding_method=self.embedding_method,
            widths=widths,
            blocks=blocks,
            forms=forms,
            tie=self.tie,
            rounds=self.rounds,
        )


def _chosen(
    name: str, asked: Sequence[T], all_of_them: Sequence[T], fits: Callable[[T], bool], target: Target
) -> tuple[T, ...]:
    """What an option lists, or when it lists nothing, whatever fits the target."""
    unfit = [item for item in asked if not fits(item)]
    if unfit:
        hint = f"leave {name}= out, or use of {[item for item in all_of_them if fits(item)]}"
        raise LadingError("Q415", f"{name}={list(asked)}: the target {target.name} cannot compute {unfit}", hint=hint)
    return tuple(asked) or tuple(item for item in all_of_them if fits(item))


def _by_policy(weights: Sequence[Weight], wanted: Preferences, ctx: PassContext) -> PrecisionPlan:
    chosen = {weight.name: _choose(weight, wanted) for weight in weights}
    pair = same_matrix(weights)
    tied = pair is not None and _stored_once(*pair, chosen, wanted, ctx)
    storage = {name: item for name, (item, _) in chosen.items()}
    for weight in weights:
        if weight.role == "embedding" and not tied:
            storage[weight.name] = wanted.own_rows(storage[weight.name])
    if pair is not None and not tied:
        _tell_cost(*pair, storage, wanted, ctx)
    return PrecisionPlan(storage, tied, rules={name: rule for name, (_, rule) in chosen.items()})


def _nothing_to_choose(graph: Graph, wanted: Preferences) -> PrecisionPlan:
    """The plan of a graph whose every weight came quantized; Q451 where they are larger than the limit."""
    from passes.precision.measured.plan import given_of
    from passes.precision.measured.search import require_room

    assert wanted.limits is not None
    sizes = Limits(tuple(limit for limit in wanted.limits.each if limit.value))
    require_room((), sizes, given_of(graph, (), wanted))
    return PrecisionPlan()


def _stored_once(
    table: Weight, head: Weight, chosen: dict[str, tuple[Storage, str]], wanted: Preferences, ctx: PassContext
) -> bool:
    """Settle the storages of an embedding that equals its logits matrix; True when they are stored once.

    Rows about which nothing is said of their own are stored as the logits matrix is. Where rows cannot be read at its
    width and no rule names it, both take the next width at which they can: one wider matrix is smaller than two.
    """
    (rows, _), (logits, why) = chosen[table.name], chosen[head.name]
    if wanted.rows_follow(table):
        readable = wanted.tied_width(table, head, logits.bits)
        rule = wanted.rule_of(head)
        if readable is not None and (readable == logits.bits or rule is None or "bits" not in rule.storage):
            if readable != logits.bits:
                why = f"{why}, {readable} bits to be stored once"
                message = (
                    f"the logits matrix is stored at {readable} bits instead of {logits.bits}, because rows of the "
                    f"embedding are read from it and can be read at {readable}; stored apart both would be larger"
                )
                ctx.note("Q464", message, head.name, "give it a rule with bits to have it stored apart all the same")
            logits = wanted.settled(head, replace(logits, bits=readable))
            chosen[head.name], chosen[table.name] = (logits, why), (logits, f"{why}, as the logits matrix")
            return True
    return wanted.can_tie(rows, logits)


def _tell_cost(
    table: Weight, head: Weight, storage: Mapping[str, Storage], wanted: Preferences, ctx: PassContext
) -> None:
    """Warn where an option or a rule has equal matrices stored twice, and of what that costs."""
    named = wanted.rule_of(head) is not None or not wanted.rows_follow(table)
    if not named or not wanted.target.rows_in_weight_file:
        return
    from passes.precision.measured.candidates import size_of_storage

    rows, logits = storage[table.name], storage[head.name]
    size = size_of_storage(table, rows, wanted.target)
    ctx.warn(
        "Q465",
        f"the embedding ({rows.words}) is stored apart from the logits matrix ({logits.words}), which it equals: "
        f"{size:,} bytes more than stored once",
        where=table.name,
        hint=f"give both the same storage, of {' or '.join(str(bits) for bits in wanted.target.tied_widths if bits <= 8)} bits",
    )


def _choose(weight: Weight, wanted: Preferences) -> tuple[Storage, str]:
    """The storage of a weight and what chose it, for people."""
    rule = wanted.rule_of(weight)
    bits = wanted.width(weight)
    base = wanted.storage(bits=bits, block=wanted.block, symmetric=wanted.symmetric)
    if rule is not None:
        base = replace(base, **{"bits": rule.bounded(bits), **rule.storage})
    base = replace(base, bits=max(base.bits, wanted.floor(weight)))
    why = wanted.why(weight, weight.role)
    if weight.role == "embedding":
        base, more = wanted.readable_rows(base, weight, rule)
        why = f"{why}, {more}" if more else why
    return wanted.settled(weight, base), why


def _histogram(storage: Mapping[str, Storage]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in storage.values():
        counts[f"bits{item.bits}"] = counts.get(f"bits{item.bits}", 0) + 1
    return counts


__all__ = ["AssignPrecision"]
