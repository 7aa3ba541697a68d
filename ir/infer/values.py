"""Rules that follow small integer tensors element by element, so that computed shapes keep their symbols.

Exported graphs compute shapes at run time (``Shape``, ``Gather``, ``Concat``, ``Reshape``); without these rules every
such shape would be unknown.
"""

from __future__ import annotations

from ir.graph.graph import Node
from ir.infer.inference import Inference
from ir.infer.numeric import tensor
from ir.infer.rule_table import KNOWN_LIMIT, Known, follows, known_array
from ir.infer.symbolic import Extent


def _rank(node: Node) -> int:
    return len(node.outputs[0].shape or ())


@follows("Shape")
def _shape(run: Inference, node: Node) -> Known | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return None
    rank = len(x.shape)
    return Known(1, x.shape[slice(node._attrs.get("start", 0), node._attrs.get("end", rank))])


@follows("Size")
def _size(run: Inference, node: Node) -> Known | None:
    x = tensor(node.inputs[0])
    return None if x is None or x.shape is None else Known(0, (run.table.product(x.shape),))


@follows("Constant")
def _constant(run: Inference, node: Node) -> Known | None:
    attrs = node._attrs
    if "value_int" in attrs:
        return Known(0, (attrs["value_int"],))
    if "value_ints" in attrs:
        return Known(1, tuple(attrs["value_ints"]))
    value = attrs.get("value")
    if value is None or (value.type.size or 0) > 256:
        return None
    return known_array(value.load())


@follows("Cast")
def _cast(run: Inference, node: Node) -> Known | None:
    """The elements; of a cast to booleans, what each is as a boolean."""
    found = run.known_of(node.inputs[0])
    if found is None or node.outputs[0].dtype.kind != "b":
        return same_elements(run, node)
    return Known(_rank(node), tuple(_truth(entry) for entry in found.entries))


def _truth(entry: Extent | None) -> int | None:
    """1 or 0 for an extent that is certainly not, or certainly, zero; else None."""
    if entry is None or isinstance(entry, int):
        return None if entry is None else int(entry != 0)
    return 1 if entry.low > 0 else None


@follows("Identity", "Reshape", "Squeeze", "Unsqueeze")
def same_elements(run: Inference, node: Node) -> Known | None:
    """The elements of the first input."""
    found = run.known_of(node.inputs[0])
    return None if found is None else Known(_rank(node), found.entries)


@follows("Concat")
def concat_elements(run: Inference, node: Node) -> Known | None:
    """The elements of all inputs, one input after the other."""
    entries: list[Extent | None] = []
    for value in node.inputs:
        found = run.known_of(value)
        if found is None:
            type_ = tensor(value)
            size = type_.size if type_ is not None else None
            if size is None or size > KNOWN_LIMIT:
                return None
            entries.extend([None] * size)
        else:
            entries.extend(found.entries)
    return Known(1, tuple(entries))


@follows("Gather")
def _gather(run: Inference, node: Node) -> Known | None:
    found, places = run.known_of(node.inputs[0]), run.ints_of(node.inputs[1])
    if found is None or places is None or found.rank != 1:
        return None
    size = len(found.entries)
    if any(not -size <= place < size for place in places):
        return None
    return Known(_rank(node), tuple(found.entries[place] for place in places))


@follows("Slice")
def _slice(run: Inference, node: Node) -> Known | None:
    found = run.known_of(node.inputs[0])
    if found is None or found.rank != 1 or "starts" in node._attrs:
        return None
    start, end = run.ints_of(node.inputs[1]), run.ints_of(node.inputs[2])
    step = run.ints_of(node.input(4)) if node.input(4) is not None else (1,)
    if not start or not end or not step or step[0] == 0:
        return None
    return Known(1, found.entries[slice(start[0], end[0], step[0])])


@follows("Split")
def _split(run: Inference, node: Node) -> Known | None:
    found = run.known_of(node.inputs[0])
    if found is None or found.rank != 1:
        return None
    start, first = 0, None
    for value in node.outputs:
        size = value.shape[0] if value.shape else None
        if type(size) is not int:
            return None
        part = Known(1, found.entries[start : start + size])
        run.known[value] = part
        first, start = first or part, start + size
    return first


@follows("Add", "Sub", "Mul", "Div", "Min", "Max", "Equal", "Less", "Greater", "GreaterOrEqual", "LessOrEqual")
def _binary(run: Inference, node: Node) -> Known | None:
    if len(node.inputs) != 2:
        return None
    a, b = run.known_of(node.inputs[0]), run.known_of(node.inputs[1])
    if a is None or b is None:
        return None
    size = max(len(a.entries), len(b.entries)) if a.entries and b.entries else 0
    left, right = _spread(a.entries, size), _spread(b.entries, size)
    if left is None or right is None:
        return None
    return Known(_rank(node), tuple(_operate(run, node.op, x, y) for x, y in zip(left, right, strict=True)))


def _spread(entries: tuple[Extent | None, ...], size: int) -> tuple[Extent | None, ...] | None:
    if len(entries) == size:
        return entries
    return entries * size if len(entries) == 1 else None


def _operate(run: Inference, op: str, a: Extent | None, b: Extent | None) -> Extent | None:
    if a is None or b is None:
        return None
    if type(a) is int and type(b) is int:
        return _operate_ints(op, a, b)
    table = run.table
    if op in ("Equal", "GreaterOrEqual", "LessOrEqual") and a == b:
        return 1
    if op == "Equal":
        return 0 if (a == -1 and table.nonnegative(b)) or (b == -1 and table.nonnegative(a)) else None
    if op == "Add":
        return table.add(a, b)
    if op == "Sub":
        return table.subtract(a, b)
    if op == "Mul":
        return table.multiply(a, b)
    if op == "Div":
        return table.floordiv(a, b) if table.nonnegative(a) and table.nonnegative(b) else None
    if op in ("Max", "Min"):
        return _extreme(op, a, b)
    return None


def _extreme(op: str, a: Extent, b: Extent) -> Extent | None:
    """The larger or smaller of two extents when their ranges decide it."""
    if a == b:
        return a
    for one, other in ((a, b), (b, a)):
        low = one if isinstance(one, int) else one.low
        high = other if isinstance(other, int) else other.high
        if high is not None and low >= high and (isinstance(one, int) or one.name[:1] != "?"):
            return one if op == "Max" else other
    return None


def _operate_ints(op: str, a: int, b: int) -> int | None:
    if op == "Div":
        # ONNX divides integers towards zero.
        return None if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)
    simple = {
        "Add": a + b,
        "Sub": a - b,
        "Mul": a * b,
        "Min": min(a, b),
        "Max": max(a, b),
        "Equal": int(a == b),
        "Less": int(a < b),
        "Greater": int(a > b),
        "GreaterOrEqual": int(a >= b),
        "LessOrEqual": int(a <= b),
    }
    return simple[op]


@follows("Where")
def _where(run: Inference, node: Node) -> Known | None:
    choose, a, b = (run.known_of(value) for value in node.inputs)
    if choose is None or a is None or b is None:
        return None
    size = max(len(choose.entries), len(a.entries), len(b.entries))
    flags, left, right = (_spread(found.entries, size) for found in (choose, a, b))
    if flags is None or left is None or right is None:
        return None
    picked = (
        (None if x != y else x) if flag is None else (x if flag else y)
        for flag, x, y in zip(flags, left, right, strict=True)
    )
    return Known(_rank(node), tuple(picked))


@follows("ConstantOfShape")
def _filled(run: Inference, node: Node) -> Known | None:
    count = run.ints_of(node.inputs[0])
    fill = node._attrs.get("value")
    if count is None or fill is None or len(count) > 1 or (count and count[0] > 256):
        return None
    if not fill.type.size:
        return None
    return Known(len(count), (int(fill.load().reshape(-1)[0]),) * (count[0] if count else 1))


@follows("Range")
def _range(run: Inference, node: Node) -> Known | None:
    bounds = [run.ints_of(value) for value in node.inputs]
    if not all(bounds):
        return None
    start, limit, step = (bound[0] for bound in bounds if bound)
    if step == 0 or (limit - start) // step > KNOWN_LIMIT:
        return None
    return Known(1, tuple(range(start, limit, step)))


@follows("Expand")
def _expand(run: Inference, node: Node) -> Known | None:
    found, shape = run.known_of(node.inputs[0]), node.outputs[0].shape or ()
    if found is None or len(shape) != 1 or type(shape[0]) is not int or shape[0] > KNOWN_LIMIT:
        return None
    entries = _spread(found.entries, shape[0])
    return None if entries is None else Known(1, entries)


@follows("ReduceProd", "ReduceSum")
def _reduce(run: Inference, node: Node) -> Known | None:
    found = run.known_of(node.inputs[0])
    rank = _rank(node)
    entries = [entry for entry in found.entries if entry is not None] if found is not None else []
    if found is None or found.rank != 1 or len(entries) < len(found.entries) or node.outputs[0].shape not in ((), (1,)):
        return None
    if len(found.entries) > 1 and node.input(1) is not None and run.ints_of(node.input(1)) is None:
        return None
    if node.op == "ReduceProd":
        return Known(rank, (run.table.product(entries),))
    total: Extent = 0
    for entry in entries:
        total = run.table.add(total, entry)
    return Known(rank, (total,))


@follows("Neg", "Abs")
def _sign(run: Inference, node: Node) -> Known | None:
    found = run.ints_of(node.inputs[0])
    if found is None:
        return None
    return Known(_rank(node), tuple(-entry if node.op == "Neg" else abs(entry) for entry in found))


@follows("Not")
def _not(run: Inference, node: Node) -> Known | None:
    found = run.known_of(node.inputs[0])
    if found is None:
        return None
    return Known(found.rank, tuple(1 - entry if isinstance(entry, int) else None for entry in found.entries))


__all__ = []
