"""Demands of operators that choose by number, and of control flow."""

from __future__ import annotations

from ir.base.types import BOOL, I64, TensorType
from ir.graph.graph import Graph, Node
from ir.infer.free.demand import At, Demand, Extents, demands, is_known, subgraph
from ir.infer.symbolic import Extent


def _within(extent: Extent | None) -> tuple[int | None, int | None]:
    """The legal numbers of places along an axis, from the end too."""
    return (-extent, extent - 1) if isinstance(extent, int) and extent else (None, None)


def _axis(at: At, rank: int | None) -> int | None:
    axis = at.attr("axis") or 0
    return axis % rank if rank and -rank <= axis < rank else None


def _of(extent: Extent | None) -> str:
    return f" of {extent}" if is_known(extent) else ""


@demands("Gather")
def _gather(at: At) -> Demand | None:
    data, index, out = at.shape(0), at.shape(1), at.out()
    if at.index == 0:
        if index is None or out is None:
            axis = at.attr("axis") or 0
            return Demand(words="places are chosen from it", least=axis + 1 if axis >= 0 else -axis)
        axis = _axis(at, len(out) - len(index) + 1)
        if axis is None:
            return None
        return Demand((*out[:axis], None, *out[axis + len(index) :]), words="places are chosen from it")
    axis = _axis(at, len(data) if data is not None else None)
    extent = data[axis] if data is not None and axis is not None else None
    low, high = _within(extent)
    shape: Extents | None = None
    if data is not None and out is not None and axis is not None and len(out) >= len(data) - 1:
        shape = out[axis : axis + len(out) - len(data) + 1]
    words = f"it chooses places{_of(extent)} along axis {axis if axis is not None else at.attr('axis')}"
    # Of an axis whose size the run says, the last place is as sure to be there as the first, and more often meant.
    return Demand(shape, low=low, high=high, default=0 if isinstance(extent, int) else -1, words=words)


@demands("GatherElements")
def _gather_elements(at: At) -> Demand | None:
    data, out = at.shape(0), at.out()
    axis = _axis(at, len(data or out or ()))
    if at.index == 0:
        return Demand((None,) * len(out), words="elements are chosen from it") if out is not None else None
    extent = data[axis] if data is not None and axis is not None else None
    low, high = _within(extent)
    shape = out if out is not None else ((None,) * len(data) if data is not None else None)
    return Demand(shape, low=low, high=high, default=0, words=f"it chooses elements{_of(extent)} along axis {axis}")


@demands("GatherND")
def _gather_nd(at: At) -> Demand | None:
    data, index, out = at.shape(0), at.shape(1), at.out()
    if at.index == 0:
        return None
    if data is None:
        return Demand(None, default=0, words="it chooses places of several axes")
    shape: Extents | None = None
    if out is not None and index is None:
        # The fewest axes that fit: one number for each place.
        last = next(
            (n for n in range(1, len(data) + 1) if tuple(out[len(out) - (len(data) - n) :]) == tuple(data[n:])), None
        )
        shape = (*out[: len(out) - (len(data) - last)], last) if last is not None else None
    count = (shape or index or (None,))[-1]
    extents = data[:count] if isinstance(count, int) and count else data
    sizes = [extent for extent in extents if isinstance(extent, int)]
    low, high = _within(min(sizes) if len(sizes) == len(extents) else None)
    return Demand(shape, low=low, high=high, default=0, words="it chooses places of several axes")


@demands("ScatterElements", "Scatter")
def _scatter_elements(at: At) -> Demand | None:
    data, index, updates = at.shape(0), at.shape(1), at.shape(2)
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    twin = updates if at.index == 1 else index
    shape = twin if twin is not None else ((None,) * len(data) if data is not None else None)
    axis = _axis(at, len(data) if data is not None else None)
    low, high = (
        _within(data[axis] if data is not None and axis is not None else None) if at.index == 1 else (None, None)
    )
    return Demand(shape, low=low, high=high, words="elements are written to places")


@demands("ScatterND")
def _scatter_nd(at: At) -> Demand | None:
    data, index, updates = at.shape(0), at.shape(1), at.shape(2)
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    if at.index == 2 and data is not None and index is not None and isinstance(index[-1], int):
        return Demand((*index[:-1], *data[index[-1] :]), words="it is written to places")
    if at.index == 1 and data is not None and updates is not None:
        last = next((n for n in range(1, len(data) + 1) if updates[len(updates) - len(data) + n :] == data[n:]), None)
        if last is not None:
            return Demand((*updates[: len(updates) - len(data) + last], last), low=0, words="it names places")
    return None


@demands("TopK")
def _top(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    axis = at.attr("axis")
    if at.index == 0:
        if out is None:
            return None
        place = axis % len(out)
        return Demand((*out[:place], None, *out[place + 1 :]), words="the largest of it are taken")
    extent = x[axis] if x is not None and -len(x) <= axis < len(x) else None
    kept = out[axis] if out is not None and -len(out) <= axis < len(out) else None
    values = ((kept,),) if isinstance(kept, int) else None
    high = extent if isinstance(extent, int) else None
    return Demand((1,), low=1, high=high, default=1, values=values, words=f"it says how many{_of(extent)} are taken")


@demands("OneHot")
def _one_hot(at: At) -> Demand | None:
    out, axis = at.out(), at.attr("axis")
    if at.index == 1:
        depth = out[axis] if out is not None and -len(out) <= axis < len(out) else None
        return Demand(
            (),
            low=1,
            values=((depth,),) if isinstance(depth, int) else None,
            words="it says how many classes there are",
        )
    if at.index == 2:
        return Demand((2,), words="it holds the values for off and on")
    if out is None:
        return None
    place = axis % len(out)
    return Demand((*out[:place], *out[place + 1 :]), low=0, default=0, words="it names a class")


@demands("Compress")
def _compress(at: At) -> Demand | None:
    data, axis = at.shape(0), at.node.attrs.get("axis")
    if at.index == 0:
        out = at.out()
        return (
            Demand((None,) * len(out), words="parts of it are kept") if out is not None and axis is not None else None
        )
    extent = data[axis] if data is not None and axis is not None and -len(data) <= axis < len(data) else None
    return Demand((extent,), words="it says which parts are kept")


@demands("ReverseSequence")
def _reverse(at: At) -> Demand | None:
    x = at.shape(0)
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    return Demand(
        (x[at.attr("batch_axis")] if x is not None else None,), low=1, words="it holds the length of each sequence"
    )


@demands("NonMaxSuppression")
def _suppression(at: At) -> Demand | None:
    if at.index < 2:
        other = at.shape(1 - at.index)
        if at.index == 0:
            return Demand((other[0] if other else None, other[2] if other else None, 4), words="it holds boxes")
        return Demand(
            (other[0] if other else None, None, other[1] if other else None), words="it holds scores of boxes"
        )
    return Demand((), words="it is a limit")


@demands("NonZero", "Shape", "Size", "ArgMax", "ArgMin")
def _any(at: At) -> Demand | None:
    out = at.out()
    if at.node.op in ("ArgMax", "ArgMin") and at.attr("keepdims") and out is not None:
        axis = at.attr("axis") % len(out)
        return Demand((*out[:axis], None, *out[axis + 1 :]), words="the place of its largest or smallest is taken")
    if at.node.op != "Shape":
        return None
    if out is not None and isinstance(out[0], int) and not at.node.attrs.get("start"):
        return Demand((None,) * out[0], words="its shape is taken")
    return Demand(
        words="its shape is taken", least=max((_places(at, node) for node in at.node.output.users), default=0)
    )


def _places(at: At, reader: Node) -> int:
    """How many axes a shape has at least, by what is taken from it."""
    if reader.op != "Gather" or reader.input(0) is not at.node.output:
        return 0
    taken = at.numbers(reader.input(1)) or ()
    start = int(at.node.attrs.get("start") or 0)
    return max((place + 1 + start if place >= 0 else -place for place in taken), default=0)


# ---- control flow ----


@demands("If")
def _if(at: At) -> Demand | None:
    return Demand((), BOOL, default=1, words="it chooses a branch")


@demands("Loop")
def _loop(at: At) -> Demand | None:
    if at.index == 0:
        return Demand((), I64, low=0, words="it says how often a loop runs at most")
    if at.index == 1:
        return Demand((), BOOL, default=1, words="it says whether a loop begins")
    return _carried(at, subgraph(at.node, "body"), at.index, "it is what a loop begins with")


@demands("Scan")
def _scan(at: At) -> Demand | None:
    body = subgraph(at.node, "body")
    states = len(at.node.inputs) - int(at.node.attrs.get("num_scan_inputs") or 0)
    if at.index < states:
        return _carried(at, body, at.index, "it is what a scan begins with")
    found = _carried(at, body, at.index, "a scan goes along it")
    if found is None or found.shape is None:
        return found
    axes = at.node.attrs.get("scan_input_axes") or (0,) * len(at.node.inputs)
    axis = axes[at.index - states] % (len(found.shape) + 1)
    return Demand((*found.shape[:axis], None, *found.shape[axis:]), found.dtype, words=found.words)


def _carried(at: At, body: Graph | None, index: int, words: str) -> Demand | None:
    if body is None or index >= len(body.inputs):
        return None
    value = body.inputs[index]
    shape, dtype = at.known(value), at.element(value)
    result = at.node.outputs[index - (2 if at.node.op == "Loop" else 0)] if index < len(at.node.inputs) else None
    if shape is None and result is not None and isinstance(result.type, TensorType):
        shape = result.shape
    return Demand(shape, dtype, words=words)
