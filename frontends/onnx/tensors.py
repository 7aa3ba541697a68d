"""ONNX tensor messages to lazy tensors, everything that a file says about them checked first.

Data inside the model stays in its message until it is read; external data stays in its file. Nothing here trusts a
size, an offset or a path of the file.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import numpy as np
import onnx

from frontends.containers.stand_ins import require_real
from frontends.onnx.without_weights import SELF
from ir.base.diag import LadingError
from ir.base.types import DType, TensorType, dtype_of_onnx
from ir.onnx.proto_tensor import ProtoTensor
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor

DENSE_BYTES = 1 << 30
"""Largest dense form that a sparse tensor is given."""
DENSE_FREE = 1 << 20
"""Dense form that a sparse tensor may have whatever it holds."""
DENSE_RATIO = 1000
"""Times that the dense form may otherwise be larger than what is in the file: one number in a thousand is kept."""

_TYPED = {
    1: ("float_data", 1), 14: ("float_data", 2), 15: ("double_data", 2), 11: ("double_data", 1), 7: ("int64_data", 1),
    12: ("uint64_data", 1), 13: ("uint64_data", 1), 8: ("string_data", 1),
}  # fmt: skip
"""Field that holds the elements of a type when they are not raw bytes, and entries per element; else int32_data."""


class Place:
    """Where a model came from, and so which files its tensors may live in.

    Args:
        folder: the folder that external data is relative to, or None when there is none.
        file: the model's own file, when there is one.
        data: the model's own bytes, when it was given as bytes.
    """

    def __init__(self, folder: Path | None, file: Path | None = None, data: memoryview | None = None) -> None:
        self.folder = folder
        self.file = file
        self.data = data
        self._checked: dict[str, tuple[str, int]] = {}
        # A model reached through a link, as in a download cache, may have its data beside the link or beside its
        # target.
        self._roots = [] if folder is None else [folder.resolve()]
        if file is not None:
            self._roots.append(file.resolve().parent)

    def __str__(self) -> str:
        return str(self.file) if self.file is not None else "the model"

    def locate(self, location: str, name: str) -> tuple[str, int]:
        """Path and size of a data file.

        Raises:
            LadingError: F608 a path that leaves the model's folder, F609 no such file.
        """
        found = self._checked.get(location)
        if found is None:
            found = self._checked[location] = self._locate(location, name)
        return found

    def _locate(self, location: str, name: str) -> tuple[str, int]:
        where = f"{self}, tensor {name!r}"
        if location == SELF and self.file is not None:
            return str(self.file), os.stat(self.file).st_size
        if self.folder is None:
            message = f"the data is in the file {location!r}, and the model was not read from a folder"
            raise LadingError("F608", message, where, "say which folder holds it: load(model, base=folder)")
        parts = Path(location).parts
        if not location or "\0" in location or Path(location).is_absolute() or ".." in parts or "\\" in location:
            message = f"the data is said to be in {location!r}, which is not a file below the model's folder"
            raise LadingError("F608", message, where)
        path = self.folder / location
        try:
            found, real = os.stat(path), path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LadingError("F609", f"the data file {location!r} cannot be read: {reason}", where) from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise LadingError("F608", f"the data file {location!r} is a link that leaves the model's folder", where)
        if not stat.S_ISREG(found.st_mode):
            raise LadingError("F609", f"the data file {location!r} is not a regular file", where)
        require_real(path)
        return str(path), found.st_size


def tensor_of(proto: onnx.TensorProto, place: Place, name: str) -> Tensor:
    """The tensor of a message, without reading its data.

    Raises:
        LadingError: F607 data that does not fit shape and type, F608 to F610 external data, F611 segments.
    """
    type_ = tensor_type(proto, place, name)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        return _external(proto, type_, place, name)
    if proto.HasField("segment"):
        raise LadingError("F611", "a tensor in segments is not supported", f"{place}, tensor {name!r}")
    _check_size(proto, type_, place, name)
    return ProtoTensor(proto, type_)


def tensor_type(proto: onnx.TensorProto, place: Place, name: str) -> TensorType:
    """Element type and shape; LadingError F607 when there are no such tensors."""
    try:
        found = TensorType(dtype_of_onnx(proto.data_type), tuple(proto.dims))
    except KeyError:
        raise _malformed(place, name, f"element type {proto.data_type} is unknown") from None
    if not found.is_countable:
        raise _malformed(place, name, f"the shape {list(proto.dims)} is impossible")
    return found


def _malformed(place: Place, name: str, message: str) -> LadingError:
    return LadingError("F607", message, f"{place}, tensor {name!r}")


def _check_size(proto: onnx.TensorProto, type_: TensorType, place: Place, name: str) -> None:
    count = type_.size or 0
    dtype = type_.dtype
    if proto.HasField("raw_data"):
        if dtype.kind == "s":
            raise _malformed(place, name, "strings cannot be raw bytes")
        found, wanted, unit = len(proto.raw_data), dtype.nbytes(count), "bytes"
    else:
        field, each = _TYPED.get(proto.data_type, ("int32_data", 1))
        found, unit = len(getattr(proto, field)), f"entries of {field}"
        # Types below one byte share the entries.
        wanted = count * each if dtype.bits in (0, *range(8, 129)) else dtype.nbytes(count)
    if found != wanted:
        raise _malformed(place, name, f"{type_} needs {wanted} {unit}, the file has {found}")


def _external(proto: onnx.TensorProto, type_: TensorType, place: Place, name: str) -> Tensor:
    entries = {item.key: item.value for item in proto.external_data}
    where = f"{place}, tensor {name!r}"
    if type_.dtype.kind == "s":
        raise LadingError("F607", "strings cannot be external data", where)
    nbytes = type_.nbytes or 0
    offset, length = _number(entries, "offset", 0, where), _number(entries, "length", nbytes, where)
    if length != nbytes:
        raise LadingError("F607", f"{type_} needs {nbytes} bytes, the external data has {length}", where)
    location = entries.get("location", "")
    if location == SELF and place.data is not None:
        return _view(place.data, offset, type_, where)
    path, size = place.locate(location, name)
    if offset + nbytes > size:
        shown = os.path.basename(path)
        message = f"the data is at {offset} to {offset + nbytes} of {shown!r}, which has {size} bytes"
        raise LadingError("F610", message, where, "the file is truncated or belongs to another model")
    return FileTensor(path, offset, type_, name)


def _view(data: memoryview, offset: int, type_: TensorType, where: str) -> Tensor:
    """A tensor over the bytes that the model was given as."""
    end = offset + (type_.nbytes or 0)
    if end > len(data):
        raise LadingError("F610", f"the data is at {offset} to {end} of {len(data)} bytes", where)
    from ir.tensor.inline import array_of

    array = array_of(np.frombuffer(data[offset:end], np.uint8), type_.dtype, type_.size or 0)
    return InlineTensor(array.reshape(type_.sizes or ()), type_.dtype)


def _number(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise LadingError("F610", f"the {key} of the external data is {text!r}, not a number of bytes", where)
    return int(text)


def dense(proto: onnx.SparseTensorProto, place: Place, name: str) -> Tensor:
    """A sparse tensor with its zeros.

    Raises:
        LadingError: F607 indices that do not fit, F611 a dense form of more than a gigabyte, or of more than a
            thousand times what is in the file; others as `tensor_of`.
    """
    values = tensor_of(proto.values, place, name)
    indices = tensor_of(proto.indices, place, name)
    shape, dtype = tuple(proto.dims), values.type.dtype
    if not shape or not TensorType(dtype, shape).is_countable:
        raise _malformed(place, name, f"the shape {list(shape)} is impossible")
    total = math.prod(shape)
    needed, held = total * dtype.numpy.itemsize, values.nbytes + indices.nbytes
    if needed > min(DENSE_BYTES, max(DENSE_FREE, DENSE_RATIO * held)):
        message = f"the sparse tensor {list(shape)} of {held} bytes would take {needed} bytes with its zeros"
        raise LadingError("F611", message, f"{place}, tensor {name!r}")
    flat = _flat_indices(values, indices, shape, place, name)
    out = np.full(total, "", object) if dtype.kind == "s" else np.zeros(total, dtype.numpy)
    out[flat] = values.load().reshape(-1)
    return InlineTensor(out.reshape(shape), dtype)


def _flat_indices(values: Tensor, indices: Tensor, shape: tuple[int, ...], place: Place, name: str) -> np.ndarray:
    count = values.type.size or 0
    linear, by_axis = (count,), (count, len(shape))
    if values.type.rank != 1 or indices.type.dtype.name != "i64" or indices.type.shape not in (linear, by_axis):
        message = f"indices {indices.type} do not address the {count} values of a tensor {list(shape)}"
        raise _malformed(place, name, message)
    found = indices.load()
    is_linear = indices.type.shape == linear
    limit = np.array([math.prod(shape)] if is_linear else shape)
    table = found.reshape(count, 1 if is_linear else len(shape))
    if table.size and (int(table.min()) < 0 or bool((table >= limit).any())):
        raise _malformed(place, name, "an index lies outside the tensor")
    return table[:, 0] if is_linear else np.ravel_multi_index(tuple(table.T), shape)


def element_type(code: int, where: str) -> DType:
    """The element type of a number in a type; LadingError F613 when there is none."""
    try:
        return dtype_of_onnx(code)
    except KeyError:
        raise LadingError("F613", f"element type {code} is unknown", where) from None


__all__ = ["Place", "dense", "element_type", "tensor_of", "tensor_type"]
