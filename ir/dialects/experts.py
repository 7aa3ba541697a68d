"""Operators that hand each token to the experts it chose and add up what they give.

What stands between the two are ordinary nodes over ``[1, n, H]``, a row for each token that chose the expert, so that
the matrices of an expert are weights like any others. A router that chooses one expert twice for a token is summed
twice. The definitions sort the choices by expert once, so that their size does not grow with the number of experts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ir.base.types import Shape, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import positive, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.infer.symbolic import Extent
from ir.ops.meaning import Body
from ir.ops.registry import ANY, AttrDef, OpDef

DISPATCH, COMBINE = "lading.Dispatch", "lading.Combine"
FORMS = ("[S, H]", "[1, S, H]")
"""Shape of hidden rows, by the number of axes before S."""


def partner(node: Node) -> Node | None:
    """The Combine that belongs to a Dispatch, or the Dispatch of a Combine: the one that reads the same choices; None
    when there is none, or more than one."""
    wanted, place = (COMBINE, 0) if node.op == DISPATCH else (DISPATCH, 1)
    choices = node.operand(1 if node.op == DISPATCH else 0)
    found = [user for user, index in choices.uses if user.op == wanted and index == place]
    return found[0] if len(found) == 1 else None


def _rows(run: Inference, choices: Value, expert: int) -> Extent:
    """How many tokens chose an expert: one extent for everything that reads the same choices."""
    type_ = tensor(choices)
    limit = run.table.product(type_.shape) if type_ is not None and type_.shape is not None else None
    high = limit if limit is None or isinstance(limit, int) else limit.high
    return run.table.opaque(f"rows {expert} of {choices.name}", high=high)


def _check_choices(choices: TensorType | None) -> None:
    if choices is not None and choices.shape is not None and len(choices.shape) != 3:
        raise TypeMismatch(f"choices {choices} are not [1, S, K]")


def dispatched_types(run: Inference, node: Node, outer: int) -> tuple[ValueType | None, ...]:
    """Types of the rows that experts are given, of hidden rows with so many axes before S, each of extent 1."""
    positive(node, "experts")
    hidden, choices = (tensor(value) for value in node.inputs)
    _check_choices(choices)
    count = node._attrs["experts"]
    if len(node.outputs) != count:
        raise TypeMismatch(f"{count} experts give {count} outputs, not {len(node.outputs)}")
    if hidden is None:
        return (None,) * count
    ones = (1,) * outer
    if hidden.shape is None:
        return (typed(hidden.dtype, (*ones, None, None)),) * count
    if len(hidden.shape) != outer + 2:
        raise TypeMismatch(f"rows {hidden} are not {FORMS[outer]}")
    width = hidden.shape[-1]
    return tuple(typed(hidden.dtype, (*ones, _rows(run, node.operand(1), place), width)) for place in range(count))


def combined_type(run: Inference, node: Node, outer: int, given: Sequence[Value] | None) -> ValueType | None:
    """The type of the sums, of rows with so many axes before them; `given` are the rows that the experts got, if
    known."""
    choices, weights = tensor(node.inputs[0]), tensor(node.inputs[1])
    _check_choices(choices)
    parts = [tensor(value) for value in node.inputs[2:]]
    if choices is not None and weights is not None:
        _check_same("weights", weights.shape, choices.shape)
    shapes = [part.shape for part in parts if part is not None and part.shape is not None]
    for shape in shapes:
        if len(shape) != outer + 2:
            raise TypeMismatch(f"rows of rank {len(shape)} are not {FORMS[outer].replace('S', 'n')}")
        if type(shape[-1]) is int and type(shapes[0][-1]) is int and shape[-1] != shapes[0][-1]:
            raise TypeMismatch(f"experts give rows of {shapes[0][-1]} and of {shape[-1]}")
    if given is not None:
        _check_rows(node, given, outer)
    dtype = next((part.dtype for part in parts if part is not None), None)
    if dtype is None:
        return None
    sizes = choices.shape[:2] if choices is not None and choices.shape is not None else (None, None)
    return typed(dtype, (*sizes[1 - outer :], shapes[0][-1] if shapes else None))


def _dispatch_type(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    return dispatched_types(run, node, 1)


def _combine_type(run: Inference, node: Node) -> ValueType | None:
    dispatch = partner(node)
    return combined_type(run, node, 1, dispatch.outputs if dispatch is not None else None)


def _check_same(what: str, found: Shape | None, wanted: Shape | None) -> None:
    if found is None or wanted is None:
        return
    sizes = zip(found, wanted, strict=False)
    if len(found) != len(wanted) or any(type(a) is int and type(b) is int and a != b for a, b in sizes):
        raise TypeMismatch(
            f"{what} {list(map(str, found))} are not one for each of the choices {list(map(str, wanted))}"
        )


def _check_rows(node: Node, given: Sequence[Value], axis: int) -> None:
    """TypeMismatch where what an expert gives cannot be the rows that it got."""
    if len(given) != len(node.inputs) - 2:
        raise TypeMismatch(f"{len(node.inputs) - 2} results for {len(given)} experts")
    for place, (before, after) in enumerate(zip(given, node.inputs[2:], strict=True)):
        got, gives = before.shape, after.shape if after is not None else None
        if got is not None and gives is not None and len(gives) == len(got) and got[axis] != gives[axis]:
            raise TypeMismatch(f"expert {place} is given {got[axis]} rows and gives {gives[axis]}")


# ---- meaning ----


def _sorted_choices(body: Body, choices: Value) -> tuple[Value, Value]:
    """The choices one after the other, and where each stands when they are sorted by expert, tokens in order."""
    flat = body.op("Reshape", choices, body.ints(-1))
    return flat, _order(body, flat)


def _order(body: Body, numbers: Value) -> Value:
    """Places of the elements in rising order; of equal ones the first comes first, as TopK has it."""
    node = body.graph.add("TopK", [numbers, body.op("Shape", numbers)], {"axis": 0, "largest": 0}, outputs=("", ""))
    return node.outputs[1]


def dispatched(body: Body, axis: int) -> list[Value]:
    """The rows for each expert, of hidden rows that lie along an axis."""
    hidden, choices = body.operand(0), body.operand(1)
    count = body.attr("experts")
    flat, order = _sorted_choices(body, choices)
    each = body.op("Gather", body.op("Shape", choices), body.int(2))
    rows = body.op("Gather", hidden, body.op("Div", order, each), axis=axis)
    if count == 1:
        return [rows]
    wide = body.op("Cast", flat, to=7)
    hits = body.op("Equal", body.op("Reshape", wide, body.ints(-1, 1)), body.ints(*range(count)))
    counts = body.reduce("ReduceSum", body.op("Cast", hits, to=7), (0,), keep=False)
    return list(body.graph.add("Split", [rows, counts], {"axis": axis}, outputs=("",) * count).outputs)


def combined(body: Body, axis: int) -> Value:
    """The weighted sums ``[1, S, H]`` of rows that lie along an axis."""
    choices, weights, *parts = (body.operand(place) for place in range(len(body.inputs)))
    _, order = _sorted_choices(body, choices)
    joined = parts[0] if len(parts) == 1 else body.op("Concat", *parts, axis=axis)
    rows = body.op("Gather", joined, _order(body, order), axis=axis)
    width = body.op("Gather", body.op("Shape", rows), body.ints(axis + 1))
    apart = body.op("Reshape", rows, body.op("Concat", body.op("Shape", choices), width, axis=0))
    weighted = body.op("Mul", apart, body.op("Unsqueeze", weights, body.ints(3)))
    return body.reduce("ReduceSum", weighted, (2,), keep=False)


DEFINITIONS = (
    OpDef(
        DISPATCH,
        inputs=("hidden", "choices"),
        min_inputs=2,
        max_inputs=2,
        max_outputs=ANY,
        attrs={"experts": AttrDef("experts", "int", required=True)},
        infer=_dispatch_type,
        define=lambda body: dispatched(body, 1),
        role="layout",
        label=lambda node: f"to {len(node.outputs)} experts",
        doc="For each expert the rows of hidden [1, S, H] whose tokens chose it, in order: [1, n_e, H], where n_e may be "
        "0. Choices [1, S, K] are numbers of experts.",
    ),
    OpDef(
        COMBINE,
        inputs=("choices", "weights", "rows"),
        min_inputs=3,
        max_inputs=ANY,
        infer=_combine_type,
        define=lambda body: [combined(body, 1)],
        role="layout",
        doc="The rows [1, n_e, H] that the experts made of a Dispatch by the same choices [1, S, K], each times its "
        "weight [1, S, K], added up for each token: [1, S, H].",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
