"""Damage to ONNX models, field by field, whatever fields the format has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tools.fuzz.inputs.mutate import BIG, damage_bytes

_TEXTS = ("", "x", ".", "a.b", "../x", "é", "\x00", "graph", "Add", "If", "ai.onnx", "location")


def damage_model(rng: random.Random, model: Any, actions: int = 3) -> Any:
    """A copy of an ONNX message with damaged fields: sizes, types, names (which makes cycles), parts lost or twice."""
    found = type(model)()
    found.CopyFrom(model)
    for _ in range(rng.choice([1, 1, actions])):
        places = list(_places(found))
        message, field = rng.choice(places)
        (_damage_many if field.is_repeated else _damage_one)(rng, message, field, places)
    return found


def stretch_model(rng: random.Random, model: Any) -> Any:
    """A copy of an ONNX model with one part that promises more than it holds: sizes, depths, files elsewhere."""
    found = type(model)()
    found.CopyFrom(model)
    rng.choice([_sparse, _sparse, _sizes, _sizes, _external, _nested, _deep_type, _divisions])(rng, found)
    return found


def _size(rng: random.Random) -> int:
    return rng.choice([0, 0, 1, 2, 3, 1000, 1 << 28, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, -1])


def _sparse(rng: random.Random, model: Any) -> None:
    """A sparse initializer of few values that would be large with its zeros."""
    part = model.graph.sparse_initializer.add()
    count = rng.choice([0, 1, 1, 2])
    part.values.name, part.values.data_type = "sparse", rng.choice([1, 1, 7, 8, 16, 22])
    part.values.dims.append(count)
    if part.values.data_type == 8:
        part.values.string_data.extend([b"x"] * count)
    elif part.values.data_type == 7:
        part.values.int64_data.extend([1] * count)
    else:
        part.values.raw_data = b"\0" * count * {1: 4, 16: 2}.get(part.values.data_type, 1)
    part.indices.data_type = 7
    part.indices.dims.append(count)
    part.indices.int64_data.extend(rng.choice([0, 1, _size(rng)]) for _ in range(count))
    part.dims.extend(_size(rng) for _ in range(rng.choice([1, 1, 2, 70])))
    model.graph.output.add(name="sparse")


def _sizes(rng: random.Random, model: Any) -> None:
    """A tensor without data, an input or a shape to be filled, of impossible sizes."""
    sizes = [_size(rng) for _ in range(rng.choice([1, 2, 2, 65]))]
    kind = rng.randrange(3)
    if kind == 0:
        tensor = model.graph.initializer.add(name="stretched", data_type=rng.choice([1, 7, 8, 22]), dims=sizes)
        model.graph.output.add(name=tensor.name)
    elif kind == 1:
        value = model.graph.input.add(name="stretched")
        value.type.tensor_type.elem_type = 1
        for size in sizes:
            value.type.tensor_type.shape.dim.add(dim_value=size)
        model.graph.output.add().CopyFrom(value)
    else:
        model.graph.initializer.add(name="wanted", data_type=7, dims=[len(sizes)], int64_data=sizes)
        op = rng.choice(["ConstantOfShape", "Expand", "Tile", "Reshape", "Range", "OneHot", "Pad", "Resize", "EyeLike"])
        inputs = {"ConstantOfShape": ["wanted"], "EyeLike": ["wanted"], "Range": ["wanted"] * 3}.get(
            op, ["wanted", "wanted"]
        )
        model.graph.node.add(op_type=op, input=inputs, output=["stretched"])
        model.graph.output.add(name="stretched")


def _external(rng: random.Random, model: Any) -> None:
    """Data in a file that is elsewhere, or is none."""
    names = ("/etc/passwd", "../x", "~/x", "~nobody-of-this-name/x", "", ".", "a" * 300, "x\x00y", "model.onnx", "/dev/zero",
             "loop", "a/" * 2100, "\\\\host\\x", "*")  # fmt: skip
    tensor = model.graph.initializer.add(name="outside", data_type=1, dims=[_size(rng), 1], data_location=1)
    for key, value in (("location", rng.choice(names)), ("offset", str(_size(rng))), ("length", str(_size(rng)))):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)
    model.graph.output.add(name="outside")


def _nested(rng: random.Random, model: Any) -> None:
    """Branches within branches, or functions that call the next one."""
    depth = rng.choice([3, 30, 95, 150])
    if rng.random() < 0.5:
        graph = model.graph
        graph.initializer.add(name="so", data_type=9, dims=[], raw_data=b"\1")
        for number in range(depth):
            node = graph.node.add(op_type="If", input=["so"], output=[f"o{number}"])
            graph.output.add(name=f"o{number}")
            other = node.attribute.add(name="else_branch", type=5)
            other.g.node.add(op_type="Identity", input=["so"], output=[f"e{number}"])
            other.g.output.add(name=f"e{number}")
            graph = node.attribute.add(name="then_branch", type=5).g
        graph.node.add(op_type="Identity", input=["so"], output=["last"])
        graph.output.add(name="last")
        return
    model.opset_import.add(domain="own", version=1)
    for number in range(depth):
        body = model.functions.add(name=f"f{number}", domain="own", input=["a"], output=["b"])
        body.opset_import.add(domain="own", version=1)
        body.opset_import.add(domain="", version=20)
        last = number == depth - 1
        for _ in range(1 if last else rng.choice([1, 2])):
            op, domain = ("Neg", "") if last else (f"f{number + 1}", "own")
            del body.node[1:]
            body.node.add(op_type=op, domain=domain, input=["a"], output=["b" if not body.node else "c"])
    model.graph.initializer.add(name="fed", data_type=1, dims=[1], float_data=[1.0])
    model.graph.node.add(op_type="f0", domain="own", input=["fed"], output=["called"])
    model.graph.output.add(name="called")


def _deep_type(rng: random.Random, model: Any) -> None:
    """A sequence of sequences of ..."""
    value = model.graph.input.add(name="deep")
    type_ = value.type
    for _ in range(rng.choice([3, 40, 95, 200])):
        type_ = rng.choice([type_.sequence_type, type_.optional_type]).elem_type
    type_.tensor_type.elem_type = 1
    model.graph.output.add().CopyFrom(value)


def _divisions(rng: random.Random, model: Any) -> None:
    """Integer arithmetic at the ends of the range."""
    code, low = rng.choice([(7, -(2**63)), (6, -(2**31)), (3, -128), (5, -(2**15))])
    field = "int64_data" if code == 7 else "int32_data"
    for name, number in (("low", rng.choice([low, 1, -low - 1])), ("by", rng.choice([-1, 0, 65, low]))):
        model.graph.initializer.add(name=name, data_type=code, dims=[1], **{field: [number]})
    op = rng.choice(["Div", "Mod", "Mul", "Pow", "Sub", "Neg", "Abs", "BitShift"])
    node = model.graph.node.add(op_type=op, input=["low", "by"][: 1 if op in ("Neg", "Abs") else 2], output=["divided"])
    if op == "BitShift":
        node.attribute.add(name="direction", type=3, s=b"LEFT")
    model.graph.output.add(name="divided")


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every message with every field that it has set, and one that it has not."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from _places(part)
    absent = [
        field for field in message.DESCRIPTOR.fields if not field.is_repeated and field.type != field.TYPE_MESSAGE
    ]
    yield from ((message, field) for field in absent[:3])


def _damage_one(rng: random.Random, message: Any, field: Any, places: list) -> None:
    if field.type == field.TYPE_MESSAGE or rng.random() < 0.1:
        message.ClearField(field.name)
        return
    _set(rng, field, places, lambda value: setattr(message, field.name, value), getattr(message, field.name))


def _damage_many(rng: random.Random, message: Any, field: Any, places: list) -> None:
    values = getattr(message, field.name)
    if not len(values):
        return
    one, two = rng.randrange(len(values)), rng.randrange(len(values))
    action = rng.randrange(5)
    if action == 0:
        del values[one]
    elif action == 1:
        _append(values, values[one])
    elif action == 2:
        parts = [_copied(value) for value in values]
        parts[one], parts[two] = parts[two], parts[one]
        message.ClearField(field.name)
        for part in parts:
            _append(getattr(message, field.name), part)
    elif field.type != field.TYPE_MESSAGE:
        _set(rng, field, places, lambda value: values.__setitem__(one, value), values[one])
    else:
        message.ClearField(field.name)


def _copied(value: Any) -> Any:
    if not hasattr(value, "CopyFrom"):
        return value
    made = type(value)()
    made.CopyFrom(value)
    return made


def _append(values: Any, value: Any) -> None:
    if hasattr(value, "CopyFrom"):
        values.add().CopyFrom(value)
    else:
        values.append(value)


def _set(rng: random.Random, field: Any, places: list, put: Any, old: Any) -> None:
    value: Any
    if field.type == field.TYPE_STRING:
        value = rng.choice([*_TEXTS, *_names(places, rng)])
    elif field.type == field.TYPE_BYTES:
        value = damage_bytes(rng, old or b"x")
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        value = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    else:
        value = rng.choice([*range(-3, 30), 999, *BIG])
    try:
        put(value)
    except (ValueError, TypeError):
        put(type(old)(1))


def _names(places: list, rng: random.Random) -> list[str]:
    """Some names that the model uses."""
    found = []
    for message, field in rng.choices(places, k=12):
        if field.type == field.TYPE_STRING:
            value = getattr(message, field.name)
            found += list(value)[:3] if field.is_repeated else [value]
    return found


__all__ = ["damage_model", "stretch_model"]
