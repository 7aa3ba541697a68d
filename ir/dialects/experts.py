"""Operators that hand each token to the experts it chose and add up what they give.

What stands between the two are ordinary nodes over ``[1, n, H]``, a row for each token that chose the expert, so that
the matrices of an expert are weights like any others. A router that chooses one expert twice for a token is summed
twice. The definitions sort the choices by expert once, so that their size does not grow with the number of experts.
"""

from __future__ import annotations

from ir.base.types import Shape, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import positive, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.infer.symbolic import Extent
from ir.ops.meaning import Body
from ir.ops.registry import ANY, AttrDef, OpDef

DISPATCH, COMBINE = "lading.Dispatch", "lading.Combine"


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


def _dispatch_type(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    positive(node, "experts")
    hidden, choices = (tensor(value) for value in node.inputs)
    _check_choices(choices)
    count = node._attrs["experts"]
    if len(node.outputs) != count:
        raise TypeMismatch(f"{count} experts give {count} outputs, not {len(node.outputs)}")
    if hidden is None:
        return (None,) * count
    if hidden.shape is None:
        return (typed(hidden.dtype, (1, None, None)),) * count
    if len(hidden.shape) != 3:
        raise TypeMismatch(f"rows {hidden} are not [1, S, H]")
    width = hidden.shape[2]
    return tuple(typed(hidden.dtype, (1, _rows(run, node.operand(1), place), width)) for place in range(count))


def _combine_type(run: Inference, node: Node) -> ValueType | None:
    choices, weights = tensor(node.inputs[0]), tensor(node.inputs[1])
    _check_choices(choices)
    parts = [tensor(value) for value in node.inputs[2:]]
    if choices is not None and weights is not None:
        _check_same("weights", weights.shape, choices.shape)
    shapes = [part.shape for part in parts if part is not None and part.shape is not None]
    for shape in shapes:
        if len(shape) != 3:
            raise TypeMismatch(f"rows of rank {len(shape)} are not [1, n, H]")
        if type(shape[2]) is int and type(shapes[0][2]) is int and shape[2] != shapes[0][2]:
            raise TypeMismatch(f"experts give rows of {shapes[0][2]} and of {shape[2]}")
    _check_rows(node)
    dtype = next((part.dtype for part in parts if part is not None), None)
    if dtype is None:
        return None
    outer = choices.shape[:2] if choices is not None and choices.shape is not None else (None, None)
    return typed(dtype, (*outer, shapes[0][2] if shapes else None))


def _check_same(what: str, found: Shape | None, wanted: Shape | None) -> None:
    if found is None or wanted is None:
        return
    sizes = zip(found, wanted, strict=False)
    if len(found) != len(wanted) or any(type(a) is int and type(b) is int and a != b for a, b in sizes):
        raise TypeMismatch(
            f"{what} {list(map(str, found))} are not one for each of the choices {list(map(str, wanted))}"
        )


def _check_rows(node: Node) -> None:
    """TypeMismatch where what an expert gives cannot be the rows that the same choices hand to it."""
    dispatch = partner(node)
    if dispatch is None:
        return
    if len(dispatch.outputs) != len(node.inputs) - 2:
        raise TypeMismatch(f"{len(node.inputs) - 2} results for {len(dispatch.outputs)} experts")
    for place, (given, made) in enumerate(zip(dispatch.outputs, node.inputs[2:], strict=True)):
        before, after = given.shape, made.shape if made is not None else None
        if before is not None and after is not None and len(after) == 3 and before[1] != after[1]:
            raise TypeMismatch(f"expert {place} is given {before[1]} rows and gives {after[1]}")


# ---- meaning ----


def _sorted_choices(body: Body, choices: Value) -> tuple[Value, Value]:
    """The choices one after the other, and where each stands when they are sorted by expert, tokens in order."""
    flat = body.op("Reshape", choices, body.ints(-1))
    return flat, _order(body, flat)


def _order(body: Body, numbers: Value) -> Value:
    """Places of the elements in rising order; of equal ones the first comes first, as TopK has it."""
    node = body.graph.add("TopK", [numbers, body.op("Shape", numbers)], {"axis": 0, "largest": 0}, outputs=("", ""))
    return node.outputs[1]


def _dispatch(body: Body) -> list[Value]:
    hidden, choices = body.operand(0), body.operand(1)
    count = body.attr("experts")
    flat, order = _sorted_choices(body, choices)
    each = body.op("Gather", body.op("Shape", choices), body.int(2))
    rows = body.op("Gather", hidden, body.op("Div", order, each), axis=1)
    if count == 1:
        return [rows]
    wide = body.op("Cast", flat, to=7)
    hits = body.op("Equal", body.op("Reshape", wide, body.ints(-1, 1)), body.ints(*range(count)))
    counts = body.reduce("ReduceSum", body.op("Cast", hits, to=7), (0,), keep=False)
    return list(body.graph.add("Split", [rows, counts], {"axis": 1}, outputs=("",) * count).outputs)


def _combine(body: Body) -> list[Value]:
    choices, weights, *parts = (body.operand(place) for place in range(len(body.inputs)))
    _, order = _sorted_choices(body, choices)
    joined = parts[0] if len(parts) == 1 else body.op("Concat", *parts, axis=1)
    rows = body.op("Gather", joined, _order(body, order), axis=1)
    width = body.op("Gather", body.op("Shape", rows), body.ints(2))
    apart = body.op("Reshape", rows, body.op("Concat", body.op("Shape", choices), width, axis=0))
    weighted = body.op("Mul", apart, body.op("Unsqueeze", weights, body.ints(3)))
    return [body.reduce("ReduceSum", weighted, (2,), keep=False)]


DEFINITIONS = (
    OpDef(
        DISPATCH,
        inputs=("hidden", "choices"),
        min_inputs=2,
        max_inputs=2,
        max_outputs=ANY,
        attrs={"experts": AttrDef("experts", "int", required=True)},
        infer=_dispatch_type,
        define=_dispatch,
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
        define=_combine,
        role="layout",
        doc="The rows [1, n_e, H] that the experts made of a Dispatch by the same choices [1, S, K], each times its "
        "weight [1, S, K], added up for each token: [1, S, H].",
    ),
)
"""Rows for `ir.ops.registry.OPERATORS`."""
