"""Element types, types and tensors as ONNX messages and bytes.

Element types that ONNX or the opset lacks are widened to the next type that holds every value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ir.base.types import Dim, DType, MapType, OptionalType, SequenceType, TensorType, ValueType, dtype_of_onnx
from ir.graph.graph import OPSET, EmptyList
from ir.onnx.keys import is_unknown
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor, bytes_of
from ir.tensor.rearranged import transposed

if TYPE_CHECKING:
    import onnx

PIECE_BYTES = 4 << 20
_WIDENED = {25: 21, 26: 22}
"""2-bit types exist from opset 25 on; before, they are written as 4-bit ones."""


def onnx_dtype(dtype: DType, opset: int = OPSET) -> int:
    """Number of an element type in ``onnx.TensorProto.DataType``, widened where the opset lacks it."""
    return _WIDENED.get(dtype.onnx, dtype.onnx) if opset < 25 else dtype.onnx


def write_type(proto: onnx.TypeProto, type_: ValueType, opset: int = OPSET) -> None:
    """Fill a ``TypeProto``."""
    if isinstance(type_, SequenceType):
        write_type(proto.sequence_type.elem_type, type_.element, opset)
    elif isinstance(type_, OptionalType):
        write_type(proto.optional_type.elem_type, type_.element, opset)
    elif isinstance(type_, MapType):
        proto.map_type.key_type = onnx_dtype(type_.key, opset)
        write_type(proto.map_type.value_type, type_.value, opset)
    else:
        proto.tensor_type.elem_type = onnx_dtype(type_.dtype, opset)
        if type_.shape is None:
            return
        shape = proto.tensor_type.shape
        shape.SetInParent()
        for dim in type_.shape:
            if isinstance(dim, int):
                shape.dim.add(dim_value=dim)
            elif is_unknown(dim.name):
                shape.dim.add()
            else:
                shape.dim.add(dim_param=dim.name)


def attribute_value(proto: onnx.AttributeProto) -> Any:
    """The value of an attribute that holds no graph and no type; tensors are those that the message holds itself."""
    import onnx
    from onnx import numpy_helper

    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return InlineTensor(numpy_helper.to_array(value))
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, int | float):
        return value
    items = [item.decode(errors="surrogateescape") if isinstance(item, bytes) else item for item in value]
    kinds = {onnx.AttributeProto.FLOATS: "floats", onnx.AttributeProto.STRINGS: "strings"}
    return tuple(items) or EmptyList(kinds.get(proto.type, "ints"))


def read_type(
    proto: onnx.TypeProto, dims: Mapping[str, Dim], unknown: Callable[[], Any] = lambda: None
) -> ValueType | None:
    """The type of a ``TypeProto``, or None when it says nothing.

    Args:
        proto: the type.
        dims: dimensions by name; a name that is not there makes a new one.
        unknown: makes the entry of a dimension that the type does not tell.
    """
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        element = read_type(proto.sequence_type.elem_type, dims, unknown)
        return None if element is None else SequenceType(element)
    if kind == "optional_type":
        element = read_type(proto.optional_type.elem_type, dims, unknown)
        return None if element is None else OptionalType(element)
    if kind == "map_type":
        element = read_type(proto.map_type.value_type, dims, unknown)
        return None if element is None else MapType(dtype_of_onnx(proto.map_type.key_type), element)
    if kind != "tensor_type" or not proto.tensor_type.elem_type:
        return None
    dtype = dtype_of_onnx(proto.tensor_type.elem_type)
    if not proto.tensor_type.HasField("shape"):
        return TensorType(dtype)
    shape: list[Any] = []
    for dim in proto.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        else:
            shape.append(dims.get(dim.dim_param) or Dim(dim.dim_param) if dim.dim_param else unknown())
    return TensorType(dtype, tuple(shape))


def tensor_proto(tensor: Tensor, name: str, opset: int = OPSET) -> onnx.TensorProto:
    """A tensor with its bytes inside."""
    import onnx

    proto = onnx.TensorProto(name=name, data_type=onnx_dtype(tensor.type.dtype, opset))
    proto.dims.extend(tensor.shape)
    if tensor.type.dtype.kind == "s":
        proto.string_data.extend(_utf8(item) for item in tensor.load().reshape(-1))
    else:
        proto.raw_data = onnx_bytes(tensor.load(), tensor.type.dtype, opset)
    return proto


def _utf8(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def onnx_bytes(array: np.ndarray, dtype: DType, opset: int = OPSET) -> bytes:
    """Bytes of an array as ``TensorProto.raw_data`` holds them, widened as `onnx_dtype` says."""
    stored = dtype_of_onnx(onnx_dtype(dtype, opset))
    if stored != dtype and stored.bits != dtype.bits:
        array = array.astype(np.int8 if stored.kind == "i" else np.uint8).astype(stored.numpy)
    return bytes_of(array, stored)


def stored_bytes(tensor: Tensor, opset: int = OPSET) -> int:
    """Size of `onnx_bytes` of a whole tensor."""
    return dtype_of_onnx(onnx_dtype(tensor.type.dtype, opset)).nbytes(tensor.type.size or 0)


def write_constant(file: Any, tensor: Tensor, offset: int, opset: int = OPSET) -> None:
    """Write a tensor at an offset of a seekable binary file, in pieces of about `PIECE_BYTES`.

    The transpose of a stored matrix is written in one pass over that matrix.
    """
    dtype, itemsize = tensor.type.dtype, tensor.type.dtype.numpy.itemsize
    bits = dtype_of_onnx(onnx_dtype(dtype, opset)).bits
    if tensor.recipe()[0] == "transposed" and tensor.shape[1] % 8 == 0:
        base, width = transposed(tensor), tensor.shape[1]
        step = max(4 * PIECE_BYTES // max(base.row_size * itemsize, 1) // 8, 1) * 8
        for low in range(0, width, step):
            columns = np.ascontiguousarray(base.rows(low, min(low + step, width)).T)
            for row, part in enumerate(columns):
                file.seek(offset + (row * width + low) * bits // 8)
                file.write(onnx_bytes(part, dtype, opset))
        return
    count = tensor.type.size or 0
    # A multiple of eight sub-byte elements fills whole bytes, so pieces can be packed on their own.
    step = max(PIECE_BYTES // itemsize // 8, 1) * 8
    file.seek(offset)
    for start in range(0, count, step):
        file.write(onnx_bytes(tensor.elements(start, min(count, start + step)), dtype, opset))


__all__ = [
    "attribute_value",
    "onnx_bytes",
    "onnx_dtype",
    "read_type",
    "stored_bytes",
    "tensor_proto",
    "write_constant",
    "write_type",
]
