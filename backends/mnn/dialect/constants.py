"""Tensors that nothing computes: inputs and constants of a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import DATA_TYPES, Decoded, Main, MnnOperator, Operands, data_type
from backends.mnn.read.net_file import numbers
from backends.mnn.read.sizes import Ints
from backends.mnn.read.stored_tensors import WeightFile
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.base.types import BOOL, I32, I64, DType, TensorType
from ir.graph.graph import Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

_NUMBERS = {"DT_FLOAT": "float32s", "DT_INT32": "int32s"}
"""Field of a blob that holds its numbers."""


def write_input(value: Value) -> dict[str, Any]:
    """The parameters of the operator ``Input`` that stands for an input of the graph; int64 and bool become int32.

    Raises:
        LadingError: B611 MNN has no such tensors.
    """
    if value.shape is None:
        raise LadingError("B611", f"MNN has no inputs of unknown rank, as {value.type}", where=value.name)
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return {"dims": dims, "dtype": data_type(held(value.dtype), value.name), "dformat": "NCHW"}


def held(dtype: DType) -> DType:
    """The element type in which MNN's tensors hold one of the graph's."""
    return I32 if dtype in (I64, BOOL) else dtype


def write_constant(value: Value, layout: Layout) -> dict[str, Any]:
    """The parameters of the operator ``Const`` that stands for a constant, whose numbers lie in the weight file where
    the layout has a place for them; int64 becomes int32.

    Raises:
        LadingError: B611 a constant of a type MNN has not.
    """
    dtype = I32 if value.dtype == I64 else value.dtype
    if dtype not in DATA_TYPES.values():
        raise LadingError("B611", f"MNN has no constants of type {dtype}", where=value.name)
    name = data_type(dtype, value.name)
    stored = layout.constants.get(value)
    if stored is not None:
        place = [stored.offset, stored.nbytes]
        return {"dims": list(value.sizes), "dataFormat": "NCHW", "dataType": name, "external": place}
    array = value.tensor.load()
    return {
        "dims": list(array.shape), "dataFormat": "NCHW", "dataType": name, _NUMBERS[name]: array.reshape(-1).tolist(),
    }  # fmt: skip


def _read_constant(builder: Builder, main: Main, operands: Operands) -> Decoded:
    tensor = _blob(builder.weights, builder.op)
    if tensor.type.dtype == I32 and tensor.type.rank in (0, 1) and tensor.nbytes <= 256:
        array = tensor.load()
        return Ints(tuple(array.reshape(-1).tolist()), array.ndim == 0)
    return builder.graph.add_const(builder.graph.fresh_name(str(builder.op.get("name"))), tensor)


def _blob(weights: WeightFile, op: Main) -> Tensor:
    """The numbers of a constant; F643 for another element type or another count, F642 beyond the weight file."""
    main, name = op["main"], str(op.get("name"))
    kind = main.get("dataType", "DT_FLOAT")
    dtype = DATA_TYPES.get(kind)
    if dtype is None:
        raise LadingError("F643", f"constants of type {main.get('dataType')} are not read", where=name)
    shape, external = tuple(numbers(main.get("dims"))), numbers(main.get("external"))
    if len(external) > 1:
        return weights.tensor(external[0], TensorType(dtype, shape), name)
    data = main.get(_NUMBERS[kind])
    count = 0 if data is None else len(data)
    if count != math.prod(shape):
        raise LadingError("F643", f"a constant of shape {list(shape)} has {count} numbers", where=name)
    return InlineTensor(np.array(data, dtype.numpy).reshape(shape))


ROWS = (MnnOperator(type="Const", parameter="Blob", decode=_read_constant),)
"""Rows for `backends.mnn.dialect.table`."""
