"""Constants of MNN graphs as lazy tensors over the weight file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F16, F32, TensorType
from ir.graph.graph import Graph, Value
from ir.quant.stored_codes import stored_codes, stored_weight
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed

U8 = DTYPES["u8"]


def listed(vector: Any) -> list:
    """A vector field as a list; empty when absent."""
    return [] if vector is None else np.asarray(vector).tolist()


class WeightFile:
    """The external weight file of a model.

    Args:
        path: where it is.
        scale: storage of scales to write, ``f32`` or ``f16``; empty keeps theirs.
    """

    def __init__(self, path: Path, scale: str = "") -> None:
        self.path = path
        self.scale = scale
        self.size = path.stat().st_size if path.is_file() else 0

    def tensor(self, offset: int, type: TensorType, key: str) -> FileTensor:
        """A tensor at an offset.

        Raises:
            LadingError: F642 it reaches behind the end.
        """
        nbytes = type.nbytes or 0
        if offset < 0 or offset + nbytes > self.size:
            raise LadingError(
                "F642", f"{key} needs bytes {offset:,} to {offset + nbytes:,} of {self.size:,}", where=str(self.path)
            )
        return FileTensor(self.path, offset, type, key)

    def matrix(self, op: Mapping[str, Any]) -> tuple[Tensor | QuantizedWeight, Tensor]:
        """Weight ``[rows, columns]`` and bias ``f32[rows]`` of a convolution.

        Raises:
            LadingError: F642 beyond the file, F643 a form that is not read.
        """
        main, name = op["main"], str(op.get("name"))
        common, quant, external = main.get("common", {}), main.get("quanParameter"), listed(main.get("external"))
        rows, columns = common.get("outputCount", 0), common.get("inputCount", 0)
        if len(external) < 3:
            return self._inline(main, rows, columns, name)
        alpha_bytes, bias_bytes = (external[2], external[3]) if quant else (0, external[2])
        offset = external[0]
        end = offset + external[1] + alpha_bytes
        bias: Tensor = InlineTensor(np.zeros(rows, np.float32))
        if bias_bytes:
            bias = self.tensor(end, TensorType(F32, (rows,)), f"{name}.bias")
        if quant is None:
            return self.tensor(offset, TensorType(F32, (rows, columns)), name), bias
        if quant.get("type") == 3:
            return self.tensor(offset, TensorType(F16, (rows, columns)), name), bias
        if quant.get("type") != 1 or not math.isclose(quant.get("quantScale", 0.0), 1.0):
            raise LadingError("F643", f"weights of type {quant.get('type')} are not read", where=name)
        return self._codes(quant, offset, external[1], alpha_bytes, (rows, columns), name), bias

    def _inline(self, main: Mapping[str, Any], rows: int, columns: int, name: str) -> tuple[Tensor, Tensor]:
        weight, bias = main.get("weight"), main.get("bias")
        if weight is None or len(weight) != rows * columns or main.get("quanParameter"):
            raise LadingError("F643", "weights inside the model file are read as single floats only", where=name)
        zeros = np.zeros(rows, np.float32)
        return (
            InlineTensor(np.array(weight, np.float32).reshape(rows, columns)),
            InlineTensor(zeros if bias is None else np.array(bias, np.float32)),
        )

    def _codes(
        self, quant: Mapping[str, Any], offset: int, nbytes: int, alpha_bytes: int, shape: tuple[int, int], name: str
    ) -> QuantizedWeight:
        rows, columns = shape
        start, bits = self._header(offset, nbytes, shape, name)
        half = quant.get("scaleStorage") == "FP16"
        pairs = bool(quant.get("readType"))
        blocks, rest = divmod(alpha_bytes, rows * (2 if half else 4) * (2 if pairs else 1))
        if rest or not blocks or columns % blocks:
            raise LadingError("F643", f"{alpha_bytes} bytes of scales do not fit {rows} rows of {columns}", where=name)
        kind = TensorType(F16 if half else F32, (rows, blocks, 2) if pairs else (rows, blocks))
        low = quant.get("aMin", 0) if pairs else 0
        codes = self.tensor(start, TensorType(U8, (offset + nbytes - start,)), f"{name}.codes")
        alpha = self.tensor(offset + nbytes, kind, f"{name}.alpha")
        # A positive aMin says that zeros are the value of code 0; the runtime takes 0 for -128.
        low = 0 if low > 0 else (low or -128) if pairs else 0
        return stored_weight(stored_codes(codes, alpha, rows, columns, bits, low), self.scale)

    def _header(self, offset: int, nbytes: int, shape: tuple[int, int], name: str) -> tuple[int, int]:
        """Place of the first code and width of the codes, from the dimensions and the table before them."""
        head = self.tensor(offset, TensorType(U8, (min(nbytes, 270),)), name).load()
        for kind, size in (("<u2", 2), ("<u4", 4)):
            place = 1 + 2 * size
            dims = tuple(head[1:place].copy().view(kind).tolist())
            count = int(head[place]) or 256
            bits = count.bit_length() - 1
            whole = 1 + place + count + (shape[0] * shape[1] * bits + 7) // 8
            table = head[place + 1 : place + 1 + count].view(np.int8)
            straight = np.array_equal(table, np.arange(-count // 2, count // 2))
            if head[0] == 2 and dims == shape and count == 1 << bits and whole == nbytes and straight:
                return offset + place + 1 + count, bits
        raise LadingError("F643", f"the codes of a matrix {list(shape)} have another header or table", where=name)

    def vectors(self, op: Mapping[str, Any], size: int, gain_alone: bool = False) -> tuple[Tensor, Tensor]:
        """Gain and shift ``f32[size]`` of a norm, a missing shift as zeros.

        Args:
            op: the operator, or one made up around the norm inside another.
            size: elements of the axis.
            gain_alone: a gain inside the model file counts without a shift too: so it does in a rotation's norms
                (``CPURoPE.cpp``), and not in an operator that is a norm (``CPULayerNorm.cpp``).

        Raises:
            LadingError: F642 beyond the file, F643 a gain or shift of another size.
        """
        main, name = op["main"], str(op.get("name"))
        external = listed(main.get("external"))
        type_ = TensorType(F32, (size,))
        if len(external) > 1:
            gamma = self.tensor(external[0], type_, f"{name}.gamma")
            has_beta = len(external) > 2 and external[2]
            beta = self.tensor(external[0] + external[1], type_, f"{name}.beta") if has_beta else None
            return gamma, beta or InlineTensor(np.zeros(size, np.float32))
        gamma_list, beta_list = listed(main.get("gamma")), listed(main.get("beta"))
        if not gamma_list or not (beta_list or gain_alone):
            gamma_list, beta_list = [1.0] * size, []
        found = [np.array(part, np.float32) for part in (gamma_list, beta_list or [0.0] * size)]
        if any(part.shape != (size,) for part in found):
            sizes = " and ".join(str(part.size) for part in found)
            raise LadingError("F643", f"a norm of {size} elements has {sizes} of gain and shift", where=name)
        return InlineTensor(found[0]), InlineTensor(found[1])

    def blob(self, op: Mapping[str, Any]) -> Tensor:
        """A constant: f32 or i32.

        Raises:
            LadingError: F643 another element type.
        """
        main, name = op["main"], str(op.get("name"))
        kind = {"DT_FLOAT": "f32", "DT_INT32": "i32"}.get(main.get("dataType", "DT_FLOAT"))
        if kind is None:
            raise LadingError("F643", f"constants of type {main.get('dataType')} are not read", where=name)
        shape, external = tuple(listed(main.get("dims"))), listed(main.get("external"))
        if len(external) > 1:
            return self.tensor(external[0], TensorType(DTYPES[kind], shape), name)
        data = main.get("float32s" if kind == "f32" else "int32s")
        count = 0 if data is None else len(data)
        if count != math.prod(shape):
            raise LadingError("F643", f"a constant of shape {list(shape)} has {count} numbers", where=name)
        return InlineTensor(np.array(data, DTYPES[kind].numpy).reshape(shape))


def add_weight(graph: Graph, name: str, weight: Tensor | QuantizedWeight, *, rows_first: bool = False) -> Value:
    """Put a matrix into a graph in the form that `ir.quant.stored_weight.storage_of` reads, ``[in, out]`` unless
    `rows_first`."""
    if isinstance(weight, Tensor):
        oriented = weight if rows_first else transposed(weight)
        const = graph.add_const(name, oriented)
        if weight.type.dtype == F32:
            return const
        type_ = TensorType(F32, oriented.type.shape)
        return graph.add("Cast", [const], {"to": F32.onnx}, outputs=[f"{name}.wide"], types=[type_]).output
    parts = [("codes", weight.codes), ("scale", weight.scale), ("zero", weight.zero_point)]
    inputs = [
        graph.add_const(f"{name}.{word}", part if rows_first else transposed(part))
        for word, part in parts
        if part is not None
    ]
    shape = weight.shape if rows_first else weight.shape[::-1]
    return graph.add(
        "DequantizeLinear" if weight.storage.symmetric else "lading.AffineDequantize",
        inputs,
        {"axis": 1 if rows_first else 0, "block_size": weight.storage.block or weight.shape[1]},
        outputs=[f"{name}.weight"],
        types=[TensorType(F32, shape)],
    ).output


def embedding_matrix(
    weights: WeightFile, place: list[int], rows: int, columns: int, half: bool, layer: Mapping[str, Any]
) -> Tensor | QuantizedWeight:
    """Embedding rows inside the weight file; the logits layer's own matrix when they are its codes.

    Args:
        weights: the weight file.
        place: offset of codes, offset and size of scales, bits and block, as ``tie_embeddings`` says.
        rows, columns: vocabulary and width of a row.
        half: scales are half floats.
        layer: the operator that computes the logits, or empty.

    Raises:
        LadingError: F642 beyond the file, F643 sizes that do not fit.
    """
    offset, alpha_offset, alpha_bytes, bits, _ = place
    if layer:
        own, _ = weights.matrix(layer)
        start = own.offset if isinstance(own, FileTensor) else getattr(own, "source", None)
        start = start.codes.offset if hasattr(start, "codes") else start
        if start == offset:
            return own
    if bits == 16:
        return weights.tensor(offset, TensorType(F16, (rows, columns)), "embedding")
    size = 2 if half else 4
    count = alpha_bytes // size // max(rows, 1)
    blocks = columns // place[4] if place[4] else 1
    if count not in (blocks, 2 * blocks) or not rows:
        raise LadingError("F643", f"{alpha_bytes} bytes of scales do not fit {rows} embedding rows of {columns}")
    kind = TensorType(F16 if half else F32, (rows, blocks, 2) if count == 2 * blocks else (rows, blocks))
    codes = weights.tensor(offset, TensorType(U8, ((rows * columns * bits + 7) // 8,)), "embedding.codes")
    alpha = weights.tensor(alpha_offset, kind, "embedding.alpha")
    return stored_weight(stored_codes(codes, alpha, rows, columns, bits), weights.scale)
