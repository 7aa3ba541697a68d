"""Tensors held by an ``onnx.TensorProto`` and decoded when they are first read."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ir.base.types import TensorType
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor, array_of

if TYPE_CHECKING:
    import onnx


class ProtoTensor(InlineTensor):
    """Data inside an ONNX model in memory.

    The message is not copied and must not change while the tensor is used.

    Attributes:
        proto: the message, whose data fits `type`; whoever makes the tensor has checked that.
    """

    def __init__(self, proto: onnx.TensorProto, type: TensorType) -> None:
        self.proto = proto
        Tensor.__init__(self, type, "inline")

    @cached_property
    def _array(self) -> np.ndarray:
        array = _decode(self.proto, self.type)
        array.flags.writeable = False
        return array


def _decode(proto: onnx.TensorProto, type: TensorType) -> np.ndarray:
    dtype, shape = type.dtype, type.sizes or ()
    if dtype.kind == "s":
        items = np.empty(len(proto.string_data), object)
        items[:] = [_text(item) for item in proto.string_data]
        return items.reshape(shape)
    if proto.HasField("raw_data"):
        return array_of(proto.raw_data, dtype, type.size or 0).reshape(shape)
    from onnx import numpy_helper

    array = numpy_helper.to_array(proto)
    return np.ascontiguousarray(array.astype(dtype.numpy, copy=False)).reshape(shape)


def _text(item: bytes) -> str | bytes:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


__all__ = ["ProtoTensor"]
