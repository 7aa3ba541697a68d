"""ONNX type messages to types of the IR, with one table of named dimensions for each graph."""

from __future__ import annotations

import re
from typing import Any

import onnx

from frontends.onnx.tensors import Place, element_type
from ir.base.diag import LadingError
from ir.base.types import MOST_AXES, Dim, MapType, OptionalType, SequenceType, TensorType, ValueType
from ir.graph.graph import Graph
from ir.onnx.keys import UNKNOWN

_OWN_NAME = re.compile(re.escape(UNKNOWN) + r"\d+'*")


class Types:
    """Reads the types of one root graph or function body and declares the dimensions they name.

    A dimension without a name gets a fresh one, so that no two of them are equal by accident. So does one with a
    negative size, by which some exporters say that it is not known.
    """

    def __init__(self, graph: Graph, place: Place) -> None:
        self.graph = graph
        self.place = place
        self._serial = 0

    def read(self, proto: onnx.TypeProto, name: str) -> ValueType | None:
        """The type of the value `name`; None when the message says nothing.

        Raises:
            LadingError: F611 sparse and opaque types, F613 too many dimensions or an unknown element type.
        """
        if proto.HasField("tensor_type"):
            tensor = proto.tensor_type
            if not tensor.elem_type:
                return None
            dtype = element_type(tensor.elem_type, self._where(name))
            return TensorType(dtype, self._shape(tensor.shape, name) if tensor.HasField("shape") else None)
        kind = proto.WhichOneof("value")
        if kind is None:
            return None
        if kind == "sequence_type":
            element = self.read(proto.sequence_type.elem_type, name)
            return None if element is None else SequenceType(element)
        if kind == "optional_type":
            element = self.read(proto.optional_type.elem_type, name)
            return None if element is None else OptionalType(element)
        if kind == "map_type":
            element = self.read(proto.map_type.value_type, name)
            key = element_type(proto.map_type.key_type, self._where(name))
            return None if element is None else MapType(key, element)
        raise LadingError("F611", f"a value of kind {kind.removesuffix('_type')} is not supported", self._where(name))

    def _shape(self, proto: onnx.TensorShapeProto, name: str) -> tuple[int | Dim, ...]:
        if len(proto.dim) > MOST_AXES:
            raise LadingError("F613", f"{len(proto.dim)} dimensions are too many", self._where(name))
        return tuple([self._dim(item, name) for item in proto.dim])

    def _dim(self, proto: onnx.TensorShapeProto.Dimension, name: str) -> int | Dim:
        if proto.HasField("dim_value"):
            return proto.dim_value if proto.dim_value >= 0 else self._unknown()
        text = proto.dim_param
        if type(text) is not str:
            raise LadingError("F616", f"{text!r} is not text", self._where(name), "the file is damaged")
        if not text or text[0] == "?":
            return self._unknown()
        if _OWN_NAME.fullmatch(text):
            text += "'"
        return self.graph.dims.get(text) or self.graph.add_dim(Dim(text))

    def _unknown(self) -> Dim:
        dim = Dim(f"{UNKNOWN}{self._serial}")
        self._serial += 1
        return self.graph.add_dim(dim)

    def _where(self, name: str) -> str:
        return f"{self.place}, value {name!r}"


def denotation(proto: onnx.TypeProto) -> dict[str, Any]:
    """What a type says about the meaning of a value and its dimensions; empty for most."""
    found: dict[str, Any] = {}
    if proto.denotation:
        found["denotation"] = proto.denotation
    if proto.HasField("tensor_type"):
        dims = [item.denotation for item in proto.tensor_type.shape.dim]
        if any(dims):
            found["dims"] = dims
    return found


__all__ = ["Types", "denotation"]
