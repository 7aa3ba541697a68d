"""Mixtures of experts: a router that chooses a few of many gated MLPs for each token, and shared ones that all tokens see.

The router is plain operators. Its choices hand the tokens to the experts by ``lading.Dispatch``, between which and
``lading.Combine`` each expert is an ordinary MLP over the rows of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from frontends.configuration.specs import Kind, Setting, flag, number, size
from frontends.parts.builder import Builder, Layer
from frontends.parts.feed_forward import Glu
from frontends.parts.fused import Matrix, split
from ir.base.diag import LadingError
from ir.base.types import BOOL, F32, I64, Dim, Shape, TensorType
from ir.dialects.experts import COMBINE, DISPATCH
from ir.graph.graph import Value
from ir.tensor.base import Tensor
from ir.tensor.rearranged import reshaped, row_slice, transposed

LEAST = -1e30
"""Score of what is not to be chosen; infinity has no place in the files of some runtimes."""

MOST_EXPERTS = 1 << 14


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_EXPERTS


def counts(spec: Setting) -> Setting:
    """A field for a whole number, or a list of one for each layer."""
    kind = Kind(
        f"an integer from 1 to {MOST_EXPERTS}, or a list of such for the layers",
        lambda value: _is_count(value) or (isinstance(value, list) and bool(value) and all(map(_is_count, value))),
    )
    return field(default=spec, metadata={"kind": kind})


@dataclass(frozen=True)
class Stacked:
    """Tensors that hold a matrix of every expert, for checkpoints that store experts so.

    Attributes:
        gate_up, down: the tensors, of three axes, the first of which numbers the experts.
        order: order of the rows of gate and up (see `frontends.parts.fused`).
        axes: the other axes: ``out|in`` as linear layers have them, or ``in|out``.
        bias: what is added to a tensor's name for that of its biases ``[experts, out]``; empty for none.
    """

    gate_up: str = "experts.gate_up_proj"
    down: str = "experts.down_proj"
    order: str = "gate|up"
    axes: Literal["out|in", "in|out"] = "out|in"
    bias: str = ""


@dataclass(frozen=True)
class ClampedGlu(Glu):
    """A gated MLP whose operands are bounded: ``down((up + 1) * gate * sigmoid(alpha * gate))``.

    As gpt-oss has it (arXiv:2508.10925).

    Attributes:
        limit: gates are at most this, the other operands between this and its negative.
        alpha: see above.
    """

    limit: Setting = number(("swiglu_limit", 7.0))
    alpha: Setting = number(("swiglu_alpha", 1.702))

    def product(
        self, b: Builder, x: Value, gate: Matrix, up: Matrix, down: Matrix, at: str, rows: Shape | None
    ) -> Value:
        """As `Glu.product`."""
        inner = None if rows is None else (*rows[:-1], self.inner)
        high, low = b.setting("swiglu_limit", self.limit), b.setting("swiglu_least", -self.limit)
        gated = b.same("Min", [b.apply(x, gate, inner), high], f"{at}bounded_gate")
        lifted = b.same("Min", [b.apply(x, up, inner), high], f"{at}bounded_above")
        lifted = b.same("Max", [lifted, low], f"{at}bounded_up")
        raised = b.same("Add", [lifted, b.setting("one", 1.0)], f"{at}raised_up")
        active = b.add("Swish", [gated], f"{at}act_fn", gated.shape, {"alpha": float(self.alpha)})
        return b.apply(b.same("Mul", [raised, active], f"{at}product"), down, rows)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538).

    Attributes:
        at: what stands before the names of the modules.
        count: number of experts, of all layers or of each.
        best: how many each token chooses.
        router, router_bias: the module that gives a score for each expert, and whether it has a bias.
        score: what becomes of the scores: ``softmax`` over all experts, ``sigmoid``, ``logits`` (softmax over the chosen
            ones), or ``sparsemixer`` (see `_mixed`).
        correction: tensor that is added to the scores by which experts are chosen, but not to their weights (DeepSeek-V3,
            arXiv:2412.19437, section 2.1.2); empty for none.
        groups, keep, grouped: equal groups of experts, of which so many are kept to choose from, if `grouped`.
        group_by: a group counts as its ``max``, or as the sum of its two best, ``top2``.
        renorm: weights are divided by their sum.
        eps, floor: added to that sum; least value of it.
        scale: multiplier of the weights.
        jitter: how far below the best a score may be to count, for ``sparsemixer``.
        each: one expert; ``{e}`` in its names is the number of the expert.
        stacked: how the experts are stored where they are stored together.
        shared: an expert that sees every token; None for none.
        shared_count: how often the width of `shared` is taken; 0 or null for no shared expert.
        shared_gate: module that gives a number for each token, whose sigmoid multiplies what the shared expert gives.
    """

    at: str = "mlp."
    count: Setting = counts(("num_experts", "num_local_experts", "n_routed_experts"))
    best: Setting = counts("num_experts_per_tok")
    router: str = "gate"
    router_bias: bool = False
    score: Literal["softmax", "sigmoid", "logits", "sparsemixer"] = "softmax"
    correction: str = ""
    groups: Setting = size(1, most=MOST_EXPERTS, optional=True)
    keep: Setting = size(1, most=MOST_EXPERTS, optional=True)
    grouped: Setting = flag(True)
    group_by: Literal["max", "top2"] = "max"
    renorm: Setting = flag(False)
    eps: float = 0.0
    floor: Setting = number(0.0, 0.0)
    scale: Setting = number(1.0)
    jitter: Setting = number(0.0, 0.0)
    each: Glu = Glu(at="experts.{e}.", inner="moe_intermediate_size")
    stacked: Stacked = Stacked()
    shared: Glu | None = None
    shared_count: Setting = size(1, least=0, most=MOST_EXPERTS, optional=True)
    shared_gate: str = ""

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """f32[1, seq, hidden] of the same."""
        at = f"{layer.base}.{self.at}"
        count, best = _of_layer(self.count, layer), _of_layer(self.best, layer)
        self._check(count, best, layer)
        weights, choices = self._routed(b, x, at, count, best)
        matrices = self._matrices(b, at, count)
        sizes = [b.graph.add_dim(Dim(f"layer{layer.index}_expert{e}", 0, None)) for e in range(count)]
        types = [TensorType(F32, (1, rows, b.hidden)) for rows in sizes]
        names = [f"{at}experts.{e}.rows" for e in range(count)]
        given = b.graph.add(
            DISPATCH, [x, choices], {"experts": count}, outputs=names, types=types, name=f"{at}dispatch"
        ).outputs
        made = []
        for e, rows in enumerate(given):
            inside = at + self.each.at.format(e=e)
            made.append(self.each.product(b, rows, *matrices[e], inside, (1, sizes[e], b.hidden)))
        mixed = b.add(COMBINE, [choices, weights, *made], f"{at}experts", b.rows())
        return self._with_shared(b, x, mixed, at)

    def _check(self, count: int, best: int, layer: Layer) -> None:
        groups = self._groups
        if count % groups or (self.keep is not None and groups > 1 and self.keep > groups):
            raise LadingError(
                "F536", f"{count} experts are not {groups} equal groups, of which {self.keep} are kept", layer.base
            )
        available = count if groups == 1 else self.keep * (count // groups)
        if best > available:
            raise LadingError("F536", f"{best} experts cannot be chosen from {available}", layer.base)

    @property
    def _groups(self) -> int:
        return self.groups if self.grouped and self.groups else 1

    # ---- the router ----

    def _routed(self, b: Builder, x: Value, at: str, count: int, best: int) -> tuple[Value, Value]:
        """Weights f32[1, seq, best] and choices i64[1, seq, best]."""
        logits = b.linear(x, at + self.router, count, b.hidden, self.router_bias)
        if self.score == "sparsemixer":
            return self._mixed(b, logits, at, count, best)
        scores = logits
        if self.score == "softmax":
            scores = b.add("Softmax", [logits], f"{at}scores", logits.shape, {"axis": -1})
        elif self.score == "sigmoid":
            scores = b.same("Sigmoid", [logits], f"{at}scores")
        judged = scores
        if self.correction:
            name = at + self.correction
            flat = b.stored.shape(name)[:-1] in ((), (1,))
            stored = b.stored.get(name, b.stored.shape(name) if flat and b.stored.has(name) else (count,))
            judged = b.same("Add", [scores, b.const(name, reshaped(stored, (count,)))], f"{at}judged")
        if self._groups > 1:
            judged = self._limited(b, judged, at, count)
        weights, choices = _largest(b, judged, best, f"{at}weights", f"{at}choices")
        if self.correction:
            weights = b.add("GatherElements", [scores, choices], f"{at}chosen_scores", weights.shape, {"axis": -1})
        if self.score == "logits":
            weights = b.add("Softmax", [weights], f"{at}softmax", weights.shape, {"axis": -1})
        if self.renorm:
            total = _reduced(b, "ReduceSum", weights, f"{at}total")
            if self.eps:
                total = b.same("Add", [total, b.setting("eps", self.eps)], f"{at}total_eps")
            if self.floor:
                total = b.same("Max", [total, b.setting("floor", self.floor)], f"{at}total_floor")
            weights = b.same("Div", [weights, total], f"{at}shares")
        return b.times(weights, self.scale, "routed_scaling_factor"), choices

    def _limited(self, b: Builder, judged: Value, at: str, count: int) -> Value:
        """The scores with those outside of the best groups taken out of the race."""
        groups = self._groups
        grouped = b.heads(judged, groups, count // groups, f"{at}grouped")
        if self.group_by == "max":
            of_group = _reduced(b, "ReduceMax", grouped, f"{at}best_of_group")
        else:
            two = min(2, count // groups)
            best, _ = _largest(b, grouped, two, f"{at}two_of_group", f"{at}two_of_group.places")
            of_group = _reduced(b, "ReduceSum", best, f"{at}best_of_group")
        flat = b.add("Squeeze", [of_group, b.ints("last_axis", -1)], f"{at}groups", (1, b.seq, groups))
        kept, _ = _largest(b, flat, self.keep, f"{at}kept_groups", f"{at}kept_groups.places")
        least = _reduced(b, "ReduceMin", kept, f"{at}least_kept")
        stays = b.add("GreaterOrEqual", [flat, least], f"{at}group_stays", flat.shape, dtype=BOOL)
        column = (1, b.seq, groups, 1)
        stays = b.add("Unsqueeze", [stays, b.ints("last_axis", -1)], f"{at}expert_stays", column, dtype=BOOL)
        limited = b.add("Where", [stays, grouped, b.setting("least", LEAST)], f"{at}limited", grouped.shape)
        return b.merged(limited, count, f"{at}limited_flat")

    def _mixed(self, b: Builder, logits: Value, at: str, count: int, best: int) -> tuple[Value, Value]:
        """Choices one after the other, each weighed among those scores that are close to the best one left.

        A score ``s`` counts when ``(m - s) / max(|s|, m) <= 2 * jitter``, where ``m`` is the best; the weight is the
        softmax of the best over those that count (SparseMixer-v2, arXiv:2409.12136).
        """
        left, weights, choices = logits, [], []
        size_of = b.same("Abs", [logits], f"{at}magnitudes")
        experts = b.ints("experts", *range(count))
        for turn in range(best):
            most, place = _largest(b, left, 1, f"{at}best_{turn}", f"{at}choice_{turn}")
            gap = b.same("Sub", [logits, most], f"{at}gap_{turn}")
            gap = b.same("Neg", [gap], f"{at}behind_{turn}")
            unit = b.same("Max", [size_of, most], f"{at}unit_{turn}")
            far = b.same("Div", [gap, unit], f"{at}far_{turn}")
            limit = b.setting("twice_jitter", 2 * self.jitter)
            out = b.add("Greater", [far, limit], f"{at}out_{turn}", logits.shape, dtype=BOOL)
            near = b.add("Where", [out, b.setting("least", LEAST), left], f"{at}near_{turn}", logits.shape)
            shares = b.add("Softmax", [near], f"{at}shares_{turn}", logits.shape, {"axis": -1})
            weights.append(b.add("GatherElements", [shares, place], f"{at}weight_{turn}", most.shape, {"axis": -1}))
            choices.append(place)
            if turn + 1 < best:
                taken = b.add("Equal", [experts, place], f"{at}taken_{turn}", logits.shape, dtype=BOOL)
                left = b.add("Where", [taken, b.setting("least", LEAST), left], f"{at}left_{turn}", logits.shape)
        shape = (1, b.seq, best)
        return (
            b.add("Concat", weights, f"{at}weights", shape, {"axis": -1}),
            b.add("Concat", choices, f"{at}choices", shape, {"axis": -1}, I64),
        )

    # ---- the experts ----

    def _matrices(self, b: Builder, at: str, count: int) -> list[tuple[Matrix, Matrix, Matrix]]:
        """Gate, up and down of each expert."""
        if b.stored.has(at + self.stacked.gate_up):
            return self._stacked(b, at, count)
        found = []
        for e in range(count):
            inside = at + self.each.at.format(e=e)
            down = b.matrix(inside + self.each.down, b.hidden, self.each.inner, self.each.bias)
            found.append((*self.each.first(b, inside), down))
        return found

    def _stacked(self, b: Builder, at: str, count: int) -> list[tuple[Matrix, Matrix, Matrix]]:
        inner, how = self.each.inner, self.stacked
        both = _parts_of(b, at + how.gate_up, count, 2 * inner, b.hidden, how)
        down = _parts_of(b, at + how.down, count, b.hidden, inner, how)
        found = []
        for e in range(count):
            inside = at + self.each.at.format(e=e)
            parts = split(both[e], how.order, {"gate": inner, "up": inner}, inner)
            gate, up = parts["gate"].called(inside + self.each.gate), parts["up"].called(inside + self.each.up)
            found.append((gate, up, down[e].called(inside + self.each.down)))
        return found

    def _with_shared(self, b: Builder, x: Value, mixed: Value, at: str) -> Value:
        if self.shared is None or not self.shared_count:
            return mixed
        shared = replace(self.shared, inner=self.shared.inner * self.shared_count)
        given = shared.apply(b, x, at + shared.at, None)
        if self.shared_gate:
            gate = b.apply(x, b.matrix(at + self.shared_gate, 1, b.hidden))
            gate = b.same("Sigmoid", [gate], f"{at}shared_share")
            given = b.same("Mul", [given, gate], f"{at}shared")
        return b.same("Add", [mixed, given], f"{at}sum")


def _of_layer(number: int | list[int], layer: Layer) -> int:
    """A number of all layers, or that of one."""
    if isinstance(number, int):
        return number
    if layer.index >= len(number):
        raise LadingError("F536", f"a list of {len(number)} numbers says nothing of layer {layer.index}", layer.base)
    return number[layer.index]


def _largest(b: Builder, x: Value, count: int, name: str, places: str) -> tuple[Value, Value]:
    """The largest elements of the last axis in order, and where they are."""
    shape = (*x.dims[:-1], count)
    node = b.graph.add(
        "TopK",
        [x, b.ints(f"best_{count}", count)],
        {"axis": -1},
        outputs=(name, places),
        types=(TensorType(F32, shape), TensorType(I64, shape)),
        name=name,
    )
    return node.outputs[0], node.outputs[1]


def _reduced(b: Builder, op: str, x: Value, name: str) -> Value:
    """The last axis reduced to one element."""
    return b.add(op, [x, b.ints("last_axis", -1)], name, (*x.dims[:-1], 1), {"keepdims": 1})


def _parts_of(b: Builder, name: str, count: int, outputs: int, inputs: int, how: Stacked) -> list[Matrix]:
    """The matrix of each expert out of a tensor that holds all."""
    turned = how.axes == "in|out"
    rows, columns = (inputs, outputs) if turned else (outputs, inputs)
    flat = reshaped(b.stored.get(name, (count, rows, columns)), (count * rows, columns))
    biases = b.stored.get(name + how.bias, (count, outputs)) if how.bias else None
    return [
        Matrix(f"{name}.{e}", _oriented(row_slice(flat, e * rows, (e + 1) * rows), turned), _row(biases, e))
        for e in range(count)
    ]


def _oriented(part: Tensor, turned: bool) -> Tensor:
    return transposed(part) if turned else part


def _row(biases: Tensor | None, e: int) -> Tensor | None:
    return None if biases is None else reshaped(row_slice(biases, e, e + 1), (biases.row_size,))


__all__ = ["ClampedGlu", "Experts", "Stacked"]
