"""Inference rules of the ONNX operators that make, read or rearrange shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.base.types import DTYPES, F32, I64, Dim, TensorType, ValueType
from ir.graph.graph import Node
from ir.infer.inference import Inference
from ir.infer.numeric import Shape, axis_of, broadcast, one_dtype, part_axis, tensor, typed
from ir.infer.rule_table import KNOWN_LIMIT, Known, TypeMismatch, rule
from ir.infer.symbolic import Extent

FAR = 2**31 - 1
"""Slice bounds at or beyond this mean the end of an axis."""


@rule("Shape", "Size", "NonZero")
def shape_of(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    rank = x.rank if x is not None else None
    if node.op == "Size":
        return TensorType(I64, ())
    if node.op == "NonZero":
        return typed(I64, (rank, run.table.fresh()))
    if rank is None:
        return typed(I64, (None,))
    start, end, _ = slice(node._attrs.get("start", 0), node._attrs.get("end", rank)).indices(rank)
    return TensorType(I64, (max(end - start, 0),))


@rule("Constant")
def constant(run: Inference, node: Node) -> ValueType | None:
    for name, value in node._attrs.items():
        if name == "value":
            return value.type
        if name in ("value_int", "value_ints"):
            return TensorType(I64, (len(value),) if name.endswith("s") else ())
        if name in ("value_float", "value_floats"):
            return TensorType(F32, (len(value),) if name.endswith("s") else ())
        if name in ("value_string", "value_strings"):
            return TensorType(DTYPES["str"], (len(value),) if name.endswith("s") else ())
    return None


@rule("ConstantOfShape")
def constant_of_shape(run: Inference, node: Node) -> ValueType | None:
    fill = node._attrs.get("value")
    dtype = fill.type.dtype if fill is not None else F32
    return typed(dtype, _wanted(run, node, 0))


def _wanted(run: Inference, node: Node, index: int) -> Shape | None:
    """The shape that an integer input spells, as far as it is known; None too for a rank beyond all sense."""
    found = run.known_of(node.inputs[index])
    if found is not None:
        return found.entries
    count = run.length_of(node.inputs[index])
    return None if count is None or count > KNOWN_LIMIT else (None,) * count


@rule("Range")
def range_(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None:
        return None
    start, limit, delta = (_scalar(run, node, index) for index in range(3))
    if start is None or limit is None or delta is None:
        return typed(x.dtype, (run.table.fresh(),))
    if any(bound != bound for bound in (start, limit, delta)):
        raise TypeMismatch("a bound is not a number")
    if isinstance(start, int | float) and isinstance(limit, int | float) and isinstance(delta, int | float):
        count = -(-(limit - start) // delta)
        if count != count:
            raise TypeMismatch(f"there is no telling how many numbers lie from {start} to {limit}")
        return typed(x.dtype, (max(int(count), 0),))
    if delta != 1 or isinstance(start, float) or isinstance(limit, float):
        return typed(x.dtype, (run.table.fresh(),))
    length = run.table.subtract(limit, start)
    return typed(x.dtype, (length if run.table.nonnegative(length) else run.table.fresh(),))


def _scalar(run: Inference, node: Node, index: int) -> Extent | float | None:
    found = run.known_of(node.inputs[index])
    if found is not None:
        if len(found.entries) != 1:
            raise TypeMismatch(f"a bound has {len(found.entries)} elements, not 1")
        return found.entries[0]
    value = node.inputs[index]
    if value is not None and value.const is not None and value.const.type.size == 1:
        return float(value.const.load().reshape(()))
    return None


# ---- the same elements in another shape ----


@rule("Reshape")
def reshape(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None:
        return None
    if "shape" in node._attrs:
        target: Shape | None = tuple(node._attrs["shape"])
    else:
        target = _wanted(run, node, 1)
    if target is None:
        return TensorType(x.dtype)
    return typed(x.dtype, reshaped(run, x.shape, target, bool(node._attrs.get("allowzero"))))


def reshaped(run: Inference, shape: Shape | None, target: Shape, allow_zero: bool = False) -> Shape:
    """The result of ONNX Reshape: 0 copies an axis, one -1 takes what is left.

    Raises TypeMismatch or ArithmeticError when the element counts differ.
    """
    result = list(target)
    for axis, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            if shape is not None and axis >= len(shape):
                raise TypeMismatch(f"the 0 at place {axis} copies an axis that the operand has not")
            result[axis] = shape[axis] if shape is not None else None
    open_axes = [axis for axis, dim in enumerate(result) if type(dim) is int and dim == -1]
    if len(open_axes) > 1:
        raise TypeMismatch("more than one -1 in the wanted shape")
    rest = [dim for dim in result if dim is not None and not (type(dim) is int and dim == -1)]
    known = [dim for dim in shape if dim is not None] if shape is not None else []
    complete = shape is not None and len(known) == len(shape) and len(rest) + len(open_axes) == len(result)
    if open_axes:
        result[open_axes[0]] = run.table.quotient(known, rest) if complete and 0 not in rest else None
    elif complete:
        _check_count(known, result)
    return tuple(result)


def _check_count(shape: Sequence[Extent | None], target: Sequence[Extent | None]) -> None:
    before, after = _count(shape), _count(target)
    if before is not None and after is not None and before != after:
        raise TypeMismatch(f"{before} elements cannot be arranged as {after}")


def _count(shape: Sequence[Extent | None]) -> int | None:
    total = 1
    for dim in shape:
        if type(dim) is not int:
            return None
        total *= dim
    return total


@rule("Flatten")
def flatten(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return None if x is None else typed(x.dtype, (None, None))
    axis = node._attrs.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return typed(x.dtype, (run.table.product(x.shape[:axis]), run.table.product(x.shape[axis:])))


@rule("Transpose")
def transpose(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    order = node._attrs.get("perm") or range(len(x.shape) - 1, -1, -1)
    if len(order) != len(x.shape):
        raise TypeMismatch(f"perm has {len(order)} axes, the operand {len(x.shape)}")
    if len({axis_of(axis, len(x.shape)) for axis in order}) != len(order):
        raise TypeMismatch(f"perm {tuple(order)} names an axis twice")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in order))


@rule("Squeeze")
def squeeze(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    given = node.input(1) is not None or "axes" in node._attrs
    axes = run.attribute_or_input(node, "axes", 1) if given else None
    if axes is None and given:
        count = run.length_of(node.input(1))
        if count is not None and count > len(x.shape):
            raise TypeMismatch(f"{count} axes of an operand of rank {len(x.shape)}")
        return typed(x.dtype, None if count is None else (None,) * (len(x.shape) - count))
    if axes is None:
        if not x.is_static:
            return TensorType(x.dtype)
        axes = tuple(axis for axis, dim in enumerate(x.shape) if dim == 1)
    return typed(x.dtype, squeezed_shape(x.shape, axes))


def squeezed_shape(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """A shape without the axes of extent 1 named; TypeMismatch when one has another extent."""
    gone = {part_axis(axis, len(shape)) for axis in axes}
    for axis in gone:
        if type(shape[axis]) is int and shape[axis] != 1:
            raise TypeMismatch(f"axis {axis} has extent {shape[axis]}, not 1")
    return tuple(dim for axis, dim in enumerate(shape) if axis not in gone)


@rule("Unsqueeze")
def unsqueeze(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    axes = run.attribute_or_input(node, "axes", 1)
    if axes is None:
        count = run.length_of(node.input(1))
        known = (None,) * (len(x.shape) + count) if count is not None and count <= KNOWN_LIMIT else None
        return typed(x.dtype, known)
    return typed(x.dtype, unsqueezed_shape(x.shape, axes))


def unsqueezed_shape(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """A shape with axes of extent 1 put in at the places `axes` of the result."""
    rank = len(shape) + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise TypeMismatch(f"axes {axes} name a place twice")
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


# ---- parts and joins ----


@rule("Concat")
def concat(run: Inference, node: Node) -> ValueType | None:
    types = [type_ for type_ in map(tensor, node.inputs) if type_ is not None]
    if len(types) < len(node.inputs):
        return None
    dtype = one_dtype(*types)
    shapes: list[Shape | None] = [type_.shape for type_ in types]
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return typed(dtype, None)
    axis = part_axis(node._attrs.get("axis", 1), len(known[0]))
    return typed(dtype, concat_shape(run, shapes, axis))


def concat_shape(run: Inference, shapes: list[Shape | None], axis: int) -> Shape:
    """Shape of a concatenation; at least one shape is known."""
    known = [shape for shape in shapes if shape is not None]
    rank = len(known[0])
    if any(len(shape) != rank for shape in known):
        raise TypeMismatch(f"operands of ranks {sorted({len(shape) for shape in known})} cannot be joined")
    result = [None if index == axis else _agreed([shape[index] for shape in known], index) for index in range(rank)]
    sizes = [size for shape in known if (size := shape[axis]) is not None]
    if len(sizes) == len(shapes):
        total: Extent = 0
        for size in sizes:
            total = run.table.add(total, size)
        result[axis] = total
    return tuple(result)


def _agreed(dims: list[Extent | None], axis: int) -> Extent | None:
    """The extent that operands share: a number when one has it."""
    numbers = {dim for dim in dims if type(dim) is int}
    if len(numbers) > 1:
        raise TypeMismatch(f"extents {sorted(numbers)} of axis {axis} differ")
    return numbers.pop() if numbers else dims[0]


@rule("Split")
def split(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    count = len(node.outputs)
    if x is None or x.shape is None:
        return (x,) * count
    axis = part_axis(node._attrs.get("axis", 0), len(x.shape))
    return tuple(
        typed(x.dtype, (*x.shape[:axis], part, *x.shape[axis + 1 :])) for part in _parts(run, node, x.shape[axis])
    )


def _parts(run: Inference, node: Node, whole: Extent) -> list[Extent | None]:
    count = len(node.outputs)
    given = node.input(1) is not None or "split" in node._attrs
    if given:
        sizes = run.known_of(node.input(1)) if "split" not in node._attrs else Known(1, node._attrs["split"])
        if sizes is None:
            return [None] * count
        if len(sizes.entries) != count or (type(whole) is int and sizes.ints and sum(sizes.ints) != whole):
            raise TypeMismatch(f"sizes {list(sizes.entries)} do not split extent {whole} into {count}")
        return list(sizes.entries)
    if type(whole) is not int:
        if count == 1:
            return [whole]
        # With num_outputs the last part may be smaller; without it the parts are equal by definition.
        equal = "num_outputs" not in node._attrs
        return [run.table.quotient([whole], [count])] * count if equal else [run.table.fresh() for _ in range(count)]
    size = -(-whole // count)
    if size * count != whole and "num_outputs" not in node._attrs:
        raise TypeMismatch(f"extent {whole} cannot be split into {count} equal parts")
    if size * (count - 1) > whole:
        # Too few elements for so many parts; what becomes of the last ones is not defined.
        return [None] * count
    return [max(min(size, whole - size * index), 0) for index in range(count)]


@rule("Slice")
def slice_(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    if "starts" in node._attrs:
        starts, ends = node._attrs["starts"], node._attrs["ends"]
        axes = node._attrs.get("axes", tuple(range(len(starts))))
        return typed(x.dtype, sliced_shape(run, x.shape, starts, ends, axes, (1,) * len(starts)))
    axes = run.ints_of(node.input(3)) if node.input(3) is not None else None
    count = _length(run, node)
    if axes is None and count is not None and count > len(x.shape):
        raise TypeMismatch(f"{count} axes of an operand of rank {len(x.shape)}")
    if axes is None and node.input(3) is None and count is not None:
        axes = tuple(range(count))
    if axes is None:
        return typed(x.dtype, (None,) * len(x.shape))
    starts, ends = (_entries(run, node, index, len(axes)) for index in (1, 2))
    steps = _entries(run, node, 4, len(axes)) if node.input(4) is not None else (1,) * len(axes)
    return typed(x.dtype, sliced_shape(run, x.shape, starts, ends, axes, steps))


def _length(run: Inference, node: Node) -> int | None:
    """How many axes a Slice without axes cuts."""
    first = run.length_of(node.inputs[1])
    return first if first is not None else run.length_of(node.inputs[2])


def _entries(run: Inference, node: Node, index: int, count: int) -> tuple[Extent | None, ...]:
    found = run.known_of(node.input(index))
    return found.entries if found is not None else (None,) * count


def sliced_shape(run: Inference, shape: Shape, starts: Any, ends: Any, axes: tuple[int, ...], steps: Any) -> Shape:
    """Shape of a Slice; a bound that is not known is None."""
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise TypeMismatch(f"{len(starts)} starts, {len(ends)} ends and {len(steps)} steps for {len(axes)} axes")
    result = list(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = part_axis(axis, len(shape))
        result[axis] = _sliced(run, shape[axis], start, end, step)
    return tuple(result)


def _sliced(run: Inference, dim: Extent | None, start: Extent | None, end: Extent | None, step: Any) -> Extent | None:
    if dim is None:
        return None
    high = dim if isinstance(dim, int) else dim.high
    if start is None or end is None or type(step) is not int:
        return run.table.fresh(0, high)
    if step == 0:
        raise TypeMismatch("a step of 0")
    if type(dim) is int and dim < 0:
        raise TypeMismatch(f"an axis of size {dim}")
    if type(dim) is int and type(start) is int and type(end) is int:
        return len(range(*slice(start, end, step).indices(dim)))
    if step == -1 and start == -1 and type(end) is int and end <= -FAR:
        return dim
    if step != 1:
        return run.table.fresh(0, high)
    first, last = _bound(run, dim, start), _bound(run, dim, end)
    if first is None or last is None:
        return run.table.opaque("slice", dim, start, end, high=high)
    length = run.table.subtract(last, first)
    return length if run.table.nonnegative(length) or _below(first, last) else run.table.fresh(0, high)


def _bound(run: Inference, dim: Extent, bound: Extent) -> Extent | None:
    """A slice bound clamped to ``0..dim``, or None when that depends on unknown sizes."""
    low = dim if isinstance(dim, int) else dim.low
    if bound == dim:
        return dim
    if isinstance(bound, int):
        if bound >= FAR:
            return dim
        if 0 <= bound <= low:
            return bound
        return run.table.subtract(dim, -bound) if -low <= bound < 0 else None
    if not run.table.nonnegative(bound):
        return None
    return bound if bound.high is not None and bound.high <= low else None


def _below(first: Extent, last: Extent) -> bool:
    """True when a first bound cannot lie behind the last."""
    return type(first) is int and (first == 0 or (type(last) is Dim and last.low >= first))


@rule("Gather")
def gather(run: Inference, node: Node) -> ValueType | None:
    x, places = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None:
        return None
    if x.shape is None or places is None or places.shape is None:
        return TensorType(x.dtype)
    axis = axis_of(node._attrs.get("axis", 0), len(x.shape))
    return TensorType(x.dtype, x.shape[:axis] + places.shape + x.shape[axis + 1 :])


@rule("GatherElements")
def gather_elements(run: Inference, node: Node) -> ValueType | None:
    x, places = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if x is None else TensorType(x.dtype, None if places is None else places.shape)


@rule("GatherND")
def gather_nd(run: Inference, node: Node) -> ValueType | None:
    x, places = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None:
        return None
    if x.shape is None or places is None or places.shape is None:
        return TensorType(x.dtype)
    if not places.shape:
        raise TypeMismatch("places without an axis of coordinates")
    if type(places.shape[-1]) is not int:
        return TensorType(x.dtype)
    depth = node._attrs.get("batch_dims", 0) + places.shape[-1]
    if depth > len(x.shape):
        raise TypeMismatch(f"places of {places.shape[-1]} coordinates in an operand of rank {len(x.shape)}")
    return TensorType(x.dtype, places.shape[:-1] + x.shape[depth:])


@rule("Expand")
def expand(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None:
        return None
    wanted = _wanted(run, node, 1)
    return typed(x.dtype, broadcast(run, (x.shape, wanted)))


@rule("Tile")
def tile(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    times = run.known_of(node.inputs[1])
    if times is None:
        return typed(x.dtype, (None,) * len(x.shape))
    if len(times.entries) != len(x.shape):
        raise TypeMismatch(f"{len(times.entries)} repeats for rank {len(x.shape)}")
    pairs = zip(x.shape, times.entries, strict=True)
    return typed(x.dtype, tuple(None if n is None else run.table.multiply(dim, n) for dim, n in pairs))


__all__ = ["concat_shape", "reshaped", "sliced_shape", "squeezed_shape", "typed", "unsqueezed_shape"]
