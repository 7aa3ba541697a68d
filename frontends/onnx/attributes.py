"""ONNX attribute messages to attribute values of the IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from frontends.onnx.tensors import Place, tensor_of
from frontends.onnx.types import Types
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.graph.graph import EmptyList
from ir.tensor.inline import InlineTensor

GRAPH, GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_SPARSE = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)


class Attributes:
    """Reads attributes that are not graphs."""

    def __init__(self, place: Place, types: Types) -> None:
        self.place = place
        self.types = types
        self._readers: dict[int, Callable[[onnx.AttributeProto, str], Any]] = {
            1: lambda proto, where: proto.f,
            2: lambda proto, where: proto.i,
            3: lambda proto, where: text_or_bytes(proto.s),
            4: lambda proto, where: tensor_of(proto.t, self.place, where),
            6: lambda proto, where: tuple(proto.floats) or EmptyList("floats"),
            7: lambda proto, where: tuple(proto.ints) or EmptyList("ints"),
            8: lambda proto, where: tuple(map(text_or_bytes, proto.strings)) or EmptyList("strings"),
            9: lambda proto, where: (
                tuple(tensor_of(t, self.place, where) for t in proto.tensors) or EmptyList("tensors")
            ),
            13: lambda proto, where: self._type(proto.tp, where),
            14: lambda proto, where: tuple(self._type(t, where) for t in proto.type_protos) or EmptyList("types"),
        }

    def read(self, proto: onnx.AttributeProto, where: str) -> Any:
        """The value of an attribute.

        Raises:
            LadingError: F611 a sparse tensor, F612 an attribute of no known kind; others as `tensor_of` and
                `Types.read`.
        """
        kind = proto.type or kind_of(proto)
        reader = self._readers.get(kind)
        if reader is not None:
            return reader(proto, where)
        if kind in _SPARSE:
            raise LadingError("F611", f"the sparse tensor in attribute {proto.name!r} is not supported", where)
        raise LadingError("F612", f"attribute {proto.name!r} has no kind that is known ({kind})", where)

    def _type(self, proto: onnx.TypeProto, where: str) -> Any:
        found = self.types.read(proto, where)
        if found is None:
            raise LadingError("F612", "a type attribute does not name a type", where)
        return found


def kind_of(proto: onnx.AttributeProto) -> int:
    """The kind of an attribute that does not state it, as files before format version 2 do; 0 when it has no value."""
    for kind, field in ((1, "f"), (2, "i"), (3, "s"), (4, "t"), (5, "g"), (11, "sparse_tensor"), (13, "tp")):
        if proto.HasField(field):
            return kind
    lists = ((6, "floats"), (7, "ints"), (8, "strings"), (9, "tensors"), (10, "graphs"), (14, "type_protos"))
    return next((kind for kind, field in lists if len(getattr(proto, field))), 0)


def stand_in(kind: int, where: str) -> Any:
    """A value of a kind of attribute, in place of one that the caller of a function chooses.

    Raises:
        LadingError: F611 a kind that no stand-in can be made for: graphs and sparse tensors.
    """
    if kind == 13:
        return TensorType(F32)
    if kind == 4:
        return InlineTensor(np.zeros((), np.float32))
    plain: dict[int, Any] = {1: 0.0, 2: 0, 3: ""}
    lists = {6: "floats", 7: "ints", 8: "strings", 9: "tensors", 14: "types"}
    if kind in plain:
        return plain[kind]
    if kind in lists:
        return EmptyList(lists[kind])
    raise LadingError("F611", f"a reference to an attribute of kind {kind} is not supported", where)


def text_or_bytes(item: bytes) -> str | bytes:
    """Text where the bytes are text, else the bytes."""
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


__all__ = ["GRAPH", "GRAPHS", "Attributes", "kind_of", "stand_in", "text_or_bytes"]
