"""Demands of operators that move, cut and lay out: their data, and the shapes and axes that they are told."""

from __future__ import annotations

from itertools import permutations

from ir.base.types import Dim
from ir.infer.free.demand import At, Demand, Extents, demands, is_known
from ir.infer.symbolic import Extent

_MOST_RANK = 6
"""Rank up to which axes are looked for by trying all."""


def fixed(shape: Extents | None) -> tuple[int, ...] | None:
    """The sizes of a shape whose every extent is a number."""
    if shape is None or not all(isinstance(extent, int) for extent in shape):
        return None
    return shape  # type: ignore[return-value]


def named(shape: Extents | None) -> bool:
    """True when every extent of a shape is a number or has a name."""
    return shape is not None and all(is_known(extent) for extent in shape)


def vector(count: int | None) -> Extents:
    """The shape of a vector."""
    return (count,)


# ---- Reshape and its kind ----


@demands("Reshape")
def _reshape(at: At) -> Demand | None:
    out = at.out()
    if at.index == 0:
        words = "any shape of as many elements as the result has will do"
        asked = at.ints(1)
        if asked is not None and all(size > 0 for size in asked):
            out = asked
        return Demand(out, words=words, loose=True) if out is not None else None
    if out is None:
        return Demand((None,), low=-1, words="it says the shape of the result, whose rank nothing tells")
    words = f"the result is {_shown(out)}"
    data = at.shape(0)
    values = _reshapes(data, out)
    if values is not None:
        return Demand(vector(len(out)), values=values, words=words)
    return Demand(vector(len(out)), low=-1, words=f"it says the shape of the result, which has {len(out)} axes")


def _reshapes(data: Extents | None, out: Extents) -> tuple[tuple[int, ...], ...] | None:
    """The one shape to ask for that gives `out` at every size of its dimensions; None when there is none."""
    if 0 in out:
        return None
    entries: list[int] = []
    for axis, extent in enumerate(out):
        if isinstance(extent, int):
            entries.append(extent)
        elif extent is not None and data is not None and axis < len(data) and data[axis] == extent:
            entries.append(0)
        else:
            entries.append(-1)
    if entries.count(-1) > 1:
        return None
    if entries.count(0) == 1 and -1 not in entries:
        entries[entries.index(0)] = -1
    return (tuple(entries),)


@demands("Expand")
def _expand(at: At) -> Demand | None:
    out = at.out()
    if at.index == 0:
        # What is computed has the shape that it is computed with, and any that broadcasts will do here.
        given = out is not None and at.node.operand(0).producer is None
        return Demand(out, words="the result has its shape or a wider one", loose=True) if given else None
    if out is None:
        return Demand((None,), low=0, words="it says the shape of the result, whose rank nothing tells")
    sizes = fixed(out)
    return Demand(
        vector(len(out)), low=0, values=(sizes,) if sizes is not None else None, words=f"the result is {_shown(out)}"
    )


@demands("ConstantOfShape")
def _filled(at: At) -> Demand | None:
    out = at.out()
    sizes = fixed(out)
    count = len(out) if out is not None else None
    return Demand(
        vector(count), low=0, values=(sizes,) if sizes is not None else None, words="it says the shape of the result"
    )


@demands("Tile")
def _tile(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    if at.index == 0:
        repeats = at.ints(1)
        if out is None:
            return Demand((None,) * len(repeats), words="it is repeated") if repeats else None
        sizes = fixed(out)
        known = sizes is not None and repeats is not None and all(repeats)
        return Demand(
            tuple(a // b for a, b in zip(sizes, repeats, strict=True)) if known else (None,) * len(out),  # type: ignore[arg-type]
            words="it is repeated",
        )
    rank = len(x if x is not None else out or ())
    a, b = fixed(x), fixed(out)
    values = None
    if a is not None and b is not None and all(a):
        values = (tuple(y // n for n, y in zip(a, b, strict=True)),)
    return Demand(
        vector(rank if x is not None or out is not None else None), low=0, values=values, words="it repeats each axis"
    )


@demands("Squeeze", "Unsqueeze")
def _axes(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    thin, wide = (out, x) if at.node.op == "Squeeze" else (x, out)
    if at.index == 0:
        given = at.ints(1) or at.node.attrs.get("axes")
        if given is None or out is None:
            return None
        return Demand(
            _thinned(out, given) if at.node.op == "Unsqueeze" else _widened(out, given), words="axes of size 1"
        )
    if thin is None or wide is None:
        return Demand((None,), words="it names axes of size 1")
    count = len(wide) - len(thin)
    found = [
        places
        for places in _subsets(len(wide), count)
        if all(wide[place] in (1, None) or not is_known(wide[place]) for place in places)
        and _same([extent for place, extent in enumerate(wide) if place not in places], thin)
    ]
    exact = [places for places in found if all(wide[place] == 1 for place in places)] or found
    words = f"{_shown(x or ())} becomes {_shown(out or ())}"
    # Which of several axes of size 1 side by side is meant makes no difference.
    return Demand(vector(count), values=tuple(exact[:1]) if _equivalent(wide, exact) else tuple(exact), words=words)


def _equivalent(wide: Extents, found: list[tuple[int, ...]]) -> bool:
    return len(found) > 1 and all(all(wide[place] == 1 for place in places) for places in found)


def _thinned(shape: Extents, axes: tuple[int, ...]) -> Extents:
    dropped = {axis % len(shape) for axis in axes}
    return tuple(extent for place, extent in enumerate(shape) if place not in dropped)


def _widened(shape: Extents, axes: tuple[int, ...]) -> Extents:
    rank = len(shape) + len(axes)
    rest = iter(shape)
    ones = {axis % rank for axis in axes}
    return tuple(1 if place in ones else next(rest) for place in range(rank))


def _subsets(rank: int, count: int) -> list[tuple[int, ...]]:
    if rank > _MOST_RANK or count < 0:
        return []
    return [places for places in permutations(range(rank), count) if list(places) == sorted(places)]


def _same(a: list[Extent | None], b: Extents) -> bool:
    return len(a) == len(b) and all(x == y or not is_known(x) or not is_known(y) for x, y in zip(a, b, strict=True))


@demands("Transpose")
def _transpose(at: At) -> Demand | None:
    out = at.out()
    order = at.node.attrs.get("perm")
    if order is None:
        return Demand(tuple(reversed(out)), words="its axes are exchanged") if out is not None else None
    if out is None:
        out = (None,) * len(order)
    if sorted(order) != list(range(len(out))):
        return None
    shape: list[Extent | None] = [None] * len(out)
    for place, axis in enumerate(order):
        shape[axis] = out[place]
    return Demand(tuple(shape), words="its axes are exchanged")


@demands("Flatten")
def _flatten(at: At) -> Demand | None:
    axis = at.attr("axis")
    out = at.out() if axis == 1 else None
    return Demand(out, words="it is flattened", loose=True, least=max(axis, 1))


# ---- pieces ----


@demands("Concat")
def _concat(at: At) -> Demand | None:
    axis = at.attr("axis")
    shapes = [shape for i in range(len(at.node.inputs)) if i != at.index and (shape := at.shape(i)) is not None]
    out = at.out()
    like = shapes[0] if shapes else out
    if like is None:
        return Demand(words="it stands beside others", least=_axes_before(axis))
    if not -len(like) <= axis < len(like):
        return None
    axis %= len(like)
    rest = [shape[axis] for shape in shapes]
    whole = out[axis] if out is not None else None
    known = isinstance(whole, int) and len(rest) == len(at.node.inputs) - 1 and all(isinstance(x, int) for x in rest)
    size = whole - sum(rest) if known else None
    return Demand((*like[:axis], size, *like[axis + 1 :]), words="it stands beside others")


@demands("Split")
def _split(at: At) -> Demand | None:
    outs = [at.out(number) for number in range(len(at.node.outputs))]
    axis = at.attr("axis") or 0
    parts = [shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None for shape in outs]
    if at.index == 0:
        like = next((shape for shape in outs if shape is not None), None)
        if like is None:
            return Demand(words="it is split", least=_axes_before(axis))
        whole = sum(parts) if all(isinstance(part, int) for part in parts) else None  # type: ignore[arg-type]
        place = axis % len(like)
        return Demand((*like[:place], whole, *like[place + 1 :]), words="it is split")
    sizes = fixed(tuple(parts))
    return Demand(
        vector(len(outs)), low=0, values=(sizes,) if sizes is not None else None, words="it says the sizes of the parts"
    )


@demands("Pad")
def _pad(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    rank = len(x or out or ())
    if at.index == 0:
        return Demand((None,) * rank, words="it is padded") if rank else None
    if at.index == 2:
        return Demand((), words="it is what is padded with")
    if at.index == 3:
        return Demand((None,), low=-rank, high=rank - 1, words="it names the axes that are padded")
    axes = at.ints(3)
    count = 2 * (len(axes) if axes is not None else rank) or None
    return Demand(vector(count), default=0, words="it says how much is added before and behind each axis")


# ---- Slice ----


@demands("Slice")
def _slice(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    if at.index == 0:
        rank = len(out) if out is not None else None
        cut = at.ints(3)
        if rank is None or out is None:
            return Demand(words="it is cut", least=max((_axes_before(axis) for axis in cut or ()), default=0))
        kept = () if cut is None else {axis % rank for axis in cut}
        return Demand(
            tuple(e if cut is not None and i not in kept else None for i, e in enumerate(out)), words="it is cut"
        )
    count = next((length for i in (1, 2, 3, 4) if i != at.index and (length := _length(at, i)) is not None), None)
    if count is None and not at.has(3) and x is not None:
        count = len(x)
    if at.index == 3:
        return _slice_axes(at, x, out, count)
    if at.index == 4:
        return Demand(vector(count), default=1, words="it says the steps of a cut")
    axes = at.ints(3) if at.has(3) else tuple(range(count or 0))
    extent = _extent(x, axes)
    low, high = (-extent, extent - 1) if isinstance(extent, int) and extent else (None, None)
    if at.index == 1:
        words = f"it says where {_axis_words(axes, x)} is cut"
        return Demand(vector(count), low=low, high=high, default=_first(at, axes, x, out), words=words)
    return Demand(vector(count), default=2**31 - 1, words=f"it says where the cut of {_axis_words(axes, x)} ends")


def _length(at: At, index: int) -> int | None:
    shape = at.shape(index)
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def _extent(x: Extents | None, axes: tuple[int, ...] | None) -> Extent | None:
    if x is None or not axes or len(axes) != 1 or not -len(x) <= axes[0] < len(x):
        return None
    return x[axes[0]]


def _axis_words(axes: tuple[int, ...] | None, x: Extents | None) -> str:
    extent = _extent(x, axes)
    if axes is None or len(axes) != 1:
        return "its data"
    return f"axis {axes[0]}" + (f" of {extent}" if extent is not None and is_known(extent) else "")


def _first(at: At, axes: tuple[int, ...] | None, x: Extents | None, out: Extents | None) -> int:
    """The start that gives a result as it is recorded, where the cut goes to the end; else 0, which cuts nothing."""
    ends = at.ints(2)
    if not axes or len(axes) != 1 or ends is None or out is None or x is None or not -len(out) <= axes[0] < len(out):
        return 0
    kept, whole = out[axes[0]], x[axes[0]]
    to_end = ends[0] >= 2**31 - 1 or ends[0] == whole
    return -kept if to_end and isinstance(kept, int) and kept and kept != whole else 0


def _slice_axes(at: At, x: Extents | None, out: Extents | None, count: int | None) -> Demand:
    if x is None or count is None:
        rank = len(x or out or ())
        return Demand(
            vector(count), low=-rank or None, high=rank - 1 if rank else None, words="it names the axes that are cut"
        )
    rank = len(x)
    open_ = Demand(vector(count), low=-rank, high=rank - 1, default=0 if count == 1 else None,
                   words="it names the axes that are cut, and nothing tells which")  # fmt: skip
    if not named(out) or out is None or not named(x) or len(out) != rank or rank > _MOST_RANK:
        return open_
    starts, ends = at.ints(1), at.ints(2)
    steps = at.ints(4) if at.has(4) else (1,) * count
    changed = {place for place, (a, b) in enumerate(zip(x, out, strict=True)) if a != b}
    found = []
    for places in permutations(range(rank), count):
        if not changed <= set(places):
            continue
        if all(
            _cuts(x[place], out[place], _item(starts, i), _item(ends, i), _item(steps, i))
            for i, place in enumerate(places)
        ):
            found.append(places)
    if not found:
        return open_
    return Demand(vector(count), values=tuple(found), words=f"the cut makes {_shown(out)} of {_shown(x)}")


def _item(items: tuple[int, ...] | None, place: int) -> int | None:
    return items[place] if items is not None and place < len(items) else None


def _cuts(whole: Extent | None, kept: Extent | None, start: int | None, end: int | None, step: int | None) -> bool:
    """True when a cut of an axis may leave what is kept."""
    if not isinstance(whole, int) or not isinstance(kept, int):
        if isinstance(kept, int) and start is not None and start < 0 and end is not None and end >= 2**31 - 1:
            return kept <= -start
        return (whole == kept and (start in (0, None)) and (end is None or end >= 2**31 - 1)) or isinstance(
            kept, Dim | int
        )
    if start is None or end is None or step is None:
        return kept <= whole
    return len(range(whole)[start:end:step]) == kept


# ---- others that are told a shape or axes ----


@demands("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare")  # fmt: skip
def _reduced(at: At) -> Demand | None:
    x, out, keep = at.shape(0), at.out(), bool(at.attr("keepdims"))
    if at.index == 0:
        axes = at.ints(1) if at.has(1) else at.node.attrs.get("axes")
        if axes is None or out is None:
            return None
        if keep:
            kept = {axis % len(out) for axis in axes}
            return Demand(
                tuple(None if place in kept else extent for place, extent in enumerate(out)), words="it is reduced"
            )
        rank = len(out) + len(axes)
        rest, lost = iter(out), {axis % rank for axis in axes}
        return Demand(tuple(None if place in lost else next(rest) for place in range(rank)), words="it is reduced")
    if x is None:
        return Demand((None,), words="it names the axes that are reduced")
    rank = len(x)
    open_ = Demand(
        (None,), low=-rank, high=rank - 1, words="it names the axes that are reduced, and nothing tells which"
    )
    if out is None or not named(x) or not named(out) or rank > _MOST_RANK:
        return open_
    if keep:
        gone = tuple(place for place, (a, b) in enumerate(zip(x, out, strict=False)) if a != b)
        sure = len(out) == rank and gone and all(x[place] != 1 for place in range(rank) if place not in gone)
        return Demand(vector(len(gone)), values=(gone,), words=f"{_shown(x)} becomes {_shown(out)}") if sure else open_
    count = rank - len(out)
    found = [places for places in _subsets(rank, count) if _same([e for i, e in enumerate(x) if i not in places], out)]
    return Demand(vector(count), values=tuple(found), words=f"{_shown(x)} becomes {_shown(out)}") if found else open_


@demands("Resize", "Upsample")
def _resize(at: At) -> Demand | None:
    x, out = at.shape(0), at.out()
    rank = len(x or out or ()) or None
    if at.index == 0:
        return Demand((None,) * rank, words="it is resized") if rank else None
    names = {1: "roi", 2: "scales", 3: "sizes"} if at.node.op == "Resize" else {1: "scales"}
    name = names[at.index]
    sizes = fixed(out)
    if name == "sizes":
        return Demand(
            vector(rank), low=1, values=(sizes,) if sizes is not None else None, words="it says the size of each axis"
        )
    count = 2 * rank if name == "roi" and rank else rank
    return Demand(vector(count), default=1.0 if name == "scales" else None, words=f"it holds the {name} of each axis")


@demands("Trilu")
def _triangle(at: At) -> Demand | None:
    return (
        Demand(at.out(), words="the result has its shape")
        if at.index == 0
        else Demand((), default=0, words="it names a diagonal")
    )


@demands("Range")
def _range(at: At) -> Demand | None:
    return Demand((), default={0: 0, 1: None, 2: 1}[at.index], words="a range starts, ends and steps by single numbers")


@demands("DepthToSpace", "SpaceToDepth")
def _blocks(at: At) -> Demand | None:
    out, size = at.out(), at.attr("blocksize")
    if out is None or len(out) != 4:
        return None
    n, c, h, w = out
    square = size * size
    sizes = all(isinstance(item, int) for item in (c, h, w))
    if not sizes:
        return Demand((n, None, None, None), words="its blocks are laid out")
    shape = (
        (n, c * square, h // size, w // size) if at.node.op == "DepthToSpace" else (n, c // square, h * size, w * size)
    )
    return Demand(shape, words="its blocks are laid out")


def _axes_before(axis: int) -> int:
    """How many axes there are at least where one of them is named."""
    return axis + 1 if axis >= 0 else -axis


def _shown(shape: Extents) -> str:
    return "[" + ", ".join("?" if extent is None else str(extent) for extent in shape) + "]"
