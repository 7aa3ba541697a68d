"""RNN, LSTM and GRU in the forms that are right, or step by step.

Source: ONNX, docs/Operators.md, ``RNN``, ``LSTM``, ``GRU``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from backends.mnn.modules.build import Build, numbers
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision.sizes import END, reshaped, size, sliced, squeezed, unsqueezed, vector
from ir.base.types import F32
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
USUAL = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
"""Activations where none are given, for one direction."""
RESULTS = {"RNN": 2, "GRU": 2, "LSTM": 3}
MOST_STEPS = 256
"""Steps that are written out one by one."""


def directions(node: Node) -> int:
    """How many directions a node reads its sequence in."""
    return 2 if _word(attribute(node, "direction")) == "bidirectional" else 1


def _word(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def activations(node: Node) -> list[str]:
    """The activations of a node, those of its first direction first."""
    given = [_word(each) for each in attribute(node, "activations") or ()]
    usual = [*USUAL[node.op]] * directions(node)
    return given[: len(usual)] or usual


def is_usual(node: Node) -> bool:
    """Whether a node has no attribute or operand that the converter leaves unread."""
    return (
        activations(node) == [*USUAL[node.op]] * directions(node)
        and not attribute(node, "clip")
        and not attribute(node, "input_forget")
        and not attribute(node, "layout")
        and node.input(4) is None
        and (node.op != "LSTM" or node.input(7) is None)
    )


def is_right(node: Node) -> bool:
    """Whether a node is of the forms that were shown to be right: forwards or both ways, with constant weights and a bias,
    all results read, and a length that is known where the runtime takes it from the file."""
    values = [node.input(index) for index in (1, 2, 3)]
    if not is_usual(node) or any(value is None or not value.is_const for value in values):
        return False
    if _word(attribute(node, "direction")) == "reverse" or len(node.outputs) < RESULTS[node.op]:
        return False
    if not all(value.use_count for value in node.outputs):
        return False
    length = node.operand(0).dims[0] if node.operand(0).rank == 3 else None
    if node.op == "GRU":
        return bool(attribute(node, "linear_before_reset")) and all(
            isinstance(each, int) for each in node.operand(0).shape or (None,)
        )
    return node.op == "RNN" or isinstance(length, int) or directions(node) == 2 or node.input(5) is None


def batch_second(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Sequences along the first axis."""
    if not attribute(node, "layout"):
        return None
    inputs = list(node.inputs)
    for index, order in ((0, [1, 0, 2]), (5, [1, 0, 2]), (6, [1, 0, 2])):
        value = node.input(index)
        if value is not None:
            inputs[index] = b.add("Transpose", value, perm=order)
    made = b.nodes(node.op, inputs, {**node.attrs, "layout": 0}, len(node.outputs))
    orders = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
    return [b.add("Transpose", value, perm=order) for value, order in zip(made, orders, strict=False)]


def one_way(node: Node, b: Build) -> Sequence[Value | None] | None:
    """Each of two directions as a node of its own; both at once are kept where that is right."""
    if directions(node) == 1 or attribute(node, "layout") or _gets_right(node):
        return None
    results: list[tuple[Value, ...]] = []
    for index, way in enumerate(("forward", "reverse")):
        inputs = list(node.inputs)
        for place in (1, 2, 3, 5, 6, 7):
            value = node.input(place)
            if value is not None:
                inputs[place] = sliced(b, value, 0, index, index + 1)
        attrs = {**node.attrs, "direction": way}
        for name in ("activations", "activation_alpha", "activation_beta"):
            given = attribute(node, name)
            if given:
                share = len(given) // 2
                attrs[name] = list(given[index * share : (index + 1) * share])
        results.append(b.nodes(node.op, inputs, attrs, RESULTS[node.op]))
    pairs = zip(zip(*results, strict=True), (1, 0, 0), strict=False)
    return [b.add("Concat", *pair, axis=axis) for pair, axis in pairs][: len(node.outputs)]


def _gets_right(node: Node) -> bool:
    """Whether a node is right once a bias is given and all results are named."""
    shape = node.operand(0).shape
    if shape is None:
        return False
    weights = [node.input(index) for index in (1, 2)]
    bias = node.input(3)
    if not is_usual(node) or any(value is None or not value.is_const for value in weights):
        return False
    if bias is not None and not bias.is_const:
        return False
    if node.op == "GRU":
        return bool(attribute(node, "linear_before_reset")) and all(isinstance(each, int) for each in shape)
    return True


def all_read(node: Node, b: Build) -> Sequence[Value | None] | None:
    """A bias is given and every result read, as the converter wants. What reads backwards, and initial states of a sequence
    of any length, go in as one of two directions, the other of which has nothing but zeros."""
    way = _word(attribute(node, "direction"))
    if attribute(node, "layout") or not _gets_right(node) or is_right(node):
        return None
    inputs = [node.input(index) for index in range(7 if node.op == "LSTM" else 6)]
    hidden = int(attribute(node, "hidden_size") or node.operand(2).sizes[2])
    if inputs[3] is None:
        inputs[3] = b.const(np.zeros((directions(node), 2 * GATES[node.op] * hidden), np.float32), "bias")
    attrs = {**node.attrs, "hidden_size": hidden}
    open_ended = node.op == "LSTM" and not isinstance(node.operand(0).dims[0], int)
    slot = int(way == "reverse")
    doubled = bool(slot) or (way == "forward" and open_ended and any(value is not None for value in inputs[5:]))
    if node.op == "LSTM" and (inputs[5] is None) != (inputs[6] is None):
        present = inputs[5] or inputs[6]
        assert present is not None
        zeros = b.add("Mul", present, b.like(0, present))
        inputs[5], inputs[6] = inputs[5] or zeros, inputs[6] or zeros
    if doubled:
        for place in (1, 2, 3, 5, 6):
            value = inputs[place] if place < len(inputs) else None
            if value is not None:
                inputs[place] = _beside_nothing(b, value, slot)
        attrs["direction"] = "bidirectional"
    while inputs and inputs[-1] is None:
        inputs.pop()
    made = b.nodes(node.op, inputs, attrs, RESULTS[node.op])
    if doubled:
        made = tuple(sliced(b, value, axis, slot, slot + 1) for value, axis in zip(made, (1, 0, 0), strict=False))
    wanted = [index < len(node.outputs) and node.outputs[index].use_count > 0 for index in range(len(made))]
    if not all(wanted):
        made = _read_all(b, made)
    return made[: len(node.outputs)]


def _beside_nothing(b: Build, value: Value, slot: int) -> Value:
    """What belongs to one direction as that of two, the other of which has zeros. Weights stay constants of any size."""
    known = numbers(value)
    if known is not None:
        pair = (np.zeros_like(known), known) if slot else (known, np.zeros_like(known))
        return b.const(np.concatenate(pair, axis=0), "both")
    nothing = b.add("Mul", value, b.like(0, value))
    return b.add("Concat", *((nothing, value) if slot else (value, nothing)), axis=0)


def _read_all(b: Build, made: Sequence[Value]) -> tuple[Value, ...]:
    """Results as parts of one value, so that none is left out for not being read."""
    sequence, *states = made
    whole = b.add("Concat", sequence, *(unsqueezed(b, state, 0) for state in states), axis=0)
    count = len(states)
    ends = [sliced(b, whole, 0, index - count, index - count + 1 or END) for index in range(count)]
    return sliced(b, whole, 0, 0, -count), *(squeezed(b, end, 0) for end in ends)


# ---- step by step ----


@dataclass(frozen=True)
class _Cell:
    """One direction of a node, its gates as matrices.

    Attributes:
        gate: the function of a number of a gate, by its place among the activations.
    """

    b: Build
    node: Node
    hidden: int
    recurrence: Value
    bias: Value | None
    gate: Callable[[int, Value], Value]
    peepholes: Value | None


def step_by_step(node: Node, b: Build) -> Sequence[Value | None] | None:
    """The steps of a sequence of known length, one after the other."""
    x = node.operand(0)
    way = _word(attribute(node, "direction"))
    if attribute(node, "layout") or way == "bidirectional" or x.rank != 3 or _gets_right(node):
        return None
    length, hidden = x.dims[0], node.operand(2).dims[2]
    if not isinstance(length, int) or length > MOST_STEPS or not isinstance(hidden, int):
        return None
    names = activations(node)
    if any(name not in _FUNCTIONS for name in names):
        return None
    gates = GATES[node.op]
    weights = b.add("Transpose", squeezed(b, node.operand(1), 0), perm=[1, 0])
    inputs = b.add("MatMul", x, weights)
    bias = node.input(3)
    after = None
    if bias is not None:
        before, after = (
            sliced(b, squeezed(b, bias, 0), 0, part * gates * hidden, (part + 1) * gates * hidden) for part in (0, 1)
        )
        inputs = b.add("Add", inputs, before)
    alphas, betas = ([float(each) for each in attribute(node, name) or ()]
                     for name in ("activation_alpha", "activation_beta"))  # fmt: skip
    parameters = _parameters(names, alphas, betas)
    bound = attribute(node, "clip")

    def gate(index: int, value: Value) -> Value:
        # what leaves the memory of an LSTM is not cut off, as onnxruntime has it
        if bound and index < 2:
            value = b.add("Min", b.add("Max", value, b.like(-float(bound), value)), b.like(float(bound), value))
        return _FUNCTIONS[names[index]](b, value, *parameters[index])

    batch = size(b, x, 1)
    peepholes = node.input(7) if node.op == "LSTM" else None
    cell = _Cell(b, node, hidden, b.add("Transpose", squeezed(b, node.operand(2), 0), perm=[1, 0]), after, gate,
                 squeezed(b, peepholes, 0) if peepholes is not None else None)  # fmt: skip
    states = []
    for place in (5, 6)[: 2 if node.op == "LSTM" else 1]:
        given = node.input(place)
        if given is not None:
            states.append(squeezed(b, given, 0))
        elif isinstance(batch, int):
            states.append(b.const(np.zeros((batch, hidden), np.float32), "zeros"))
        else:
            empty = b.const(np.zeros((1, hidden), np.float32), "zeros")
            states.append(b.add("Expand", empty, vector(b, [batch, hidden])))
    lengths = node.input(4)
    counted = b.cast(reshaped(b, lengths, [batch, 1]), F32) if lengths is not None else None
    made: dict[int, Value] = {}
    for step in range(length) if way == "forward" else reversed(range(length)):
        row = squeezed(b, sliced(b, inputs, 0, step, step + 1), 0)
        fresh = _STEPS[node.op](cell, row, states)
        shown = fresh[0]
        if counted is not None:
            runs = b.add("Greater", counted, b.scalar(step))
            shown = b.add("Where", runs, fresh[0], b.like(0, fresh[0]))
            fresh = [b.add("Where", runs, new, old) for new, old in zip(fresh, states, strict=True)]
        states = fresh
        made[step] = unsqueezed(b, shown, 0, 1)
    whole = b.add("Concat", *(made[step] for step in range(length)), axis=0) if length > 1 else made[0]
    return [whole, *(unsqueezed(b, state, 0) for state in states)][: len(node.outputs)]


def _split(cell: _Cell, value: Value, axis: int) -> list[Value]:
    return [
        sliced(cell.b, value, axis, index * cell.hidden, (index + 1) * cell.hidden)
        for index in range(GATES[cell.node.op])
    ]


def _carried(cell: _Cell, state: Value) -> Value:
    made = cell.b.add("MatMul", state, cell.recurrence)
    return made if cell.bias is None else cell.b.add("Add", made, cell.bias)


def _rnn(cell: _Cell, row: Value, states: Sequence[Value]) -> list[Value]:
    return [cell.gate(0, cell.b.add("Add", row, _carried(cell, states[0])))]


def _gru(cell: _Cell, row: Value, states: Sequence[Value]) -> list[Value]:
    b, (state,) = cell.b, states
    update_in, reset_in, hidden_in = _split(cell, row, 1)
    parts = _split(cell, _carried(cell, state), 1)
    update = cell.gate(0, b.add("Add", update_in, parts[0]))
    reset = cell.gate(0, b.add("Add", reset_in, parts[1]))
    if attribute(cell.node, "linear_before_reset"):
        carried = b.add("Mul", reset, parts[2])
    else:
        matrix = sliced(b, cell.recurrence, 1, 2 * cell.hidden, 3 * cell.hidden)
        carried = b.add("MatMul", b.add("Mul", reset, state), matrix)
        if cell.bias is not None:
            carried = b.add("Add", carried, sliced(b, cell.bias, 0, 2 * cell.hidden, 3 * cell.hidden))
    fresh = cell.gate(1, b.add("Add", hidden_in, carried))
    kept = b.add("Mul", update, state)
    return [b.add("Add", b.add("Mul", b.add("Sub", b.like(1, update), update), fresh), kept)]


def _lstm(cell: _Cell, row: Value, states: Sequence[Value]) -> list[Value]:
    b, (state, memory) = cell.b, states
    summed = b.add("Add", row, _carried(cell, state))
    into, out, forget, fresh = _split(cell, summed, 1)
    looks: list[Value | None] = [None] * 3
    if cell.peepholes is not None:
        looks = [sliced(b, cell.peepholes, 0, index * cell.hidden, (index + 1) * cell.hidden) for index in range(3)]

    def with_memory(value: Value, look: Value | None, seen: Value) -> Value:
        return value if look is None else b.add("Add", value, b.add("Mul", look, seen))

    taken = cell.gate(0, with_memory(into, looks[0], memory))
    if attribute(cell.node, "input_forget"):
        left = b.add("Sub", b.like(1, taken), taken)
    else:
        left = cell.gate(0, with_memory(forget, looks[2], memory))
    memory = b.add("Add", b.add("Mul", left, memory), b.add("Mul", taken, cell.gate(1, fresh)))
    shown = cell.gate(0, with_memory(out, looks[1], memory))
    return [b.add("Mul", shown, cell.gate(2, memory)), memory]


_STEPS: dict[str, Callable[[_Cell, Value, Sequence[Value]], list[Value]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}

_DEFAULTS = {"LeakyRelu": (0.01,), "ThresholdedRelu": (1.0,), "HardSigmoid": (0.2, 0.5), "Elu": (1.0,), "Affine": (1.0, 0.0),
             "ScaledTanh": (1.0, 1.0)}  # fmt: skip


def _parameters(names: Sequence[str], alphas: list[float], betas: list[float]) -> list[tuple[float, ...]]:
    """The numbers of activations, which take them from the lists in turn."""
    found: list[tuple[float, ...]] = []
    for name in names:
        usual = _DEFAULTS.get(name, ())
        values = [rest.pop(0) if rest else number for rest, number in zip((alphas, betas), usual, strict=False)]
        found.append(tuple(values))
    return found


def _named(op: str) -> Callable[..., Value]:
    return lambda b, value: b.add(op, value)


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    **{name: _named(name) for name in ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")},
    "LeakyRelu": lambda b, value, alpha: b.add("LeakyRelu", value, alpha=alpha),
    "ThresholdedRelu": lambda b, value, alpha: b.add("ThresholdedRelu", value, alpha=alpha),
    "HardSigmoid": lambda b, value, alpha, beta: b.add("HardSigmoid", value, alpha=alpha, beta=beta),
    "Elu": lambda b, value, alpha: b.add("Elu", value, alpha=alpha),
    "Affine": lambda b, value, alpha, beta: b.add(
        "Add", b.add("Mul", value, b.like(alpha, value)), b.like(beta, value)
    ),
    "ScaledTanh": lambda b, value, alpha, beta: b.add(
        "Mul", b.add("Tanh", b.add("Mul", value, b.like(beta, value))), b.like(alpha, value)
    ),
}
"""Activations of the specification."""

REWRITES: Table = {op: (batch_second, one_way, all_read, step_by_step) for op in GATES}
"""Rewrites by operator."""
