"""The byte layout of ``llm.mnn.weight``, computed before anything is written.

The size of every stored weight follows from its type, so all offsets are known first and filling is a set of
independent jobs, each with its own range. Offsets are absolute; nothing needs alignment. Formats: MNN
``source/core/ConvolutionCommon.cpp`` (``IDST`` codes) and ``transformers/llm/engine/src/diskembedding.cpp``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ir.base.diag import LadingError
from ir.base.types import BF16, F32
from ir.graph.graph import Graph, Node, Value
from ir.quant.storage_size import scale_bytes
from ir.quant.stored_weight import StoredWeight, is_weight, obstacle, storage_of

MAX_ELEMENTS = 2**31 - 1
"""The loader keeps the number of elements of one convolution in a signed 32-bit integer."""

INLINE = 1024
"""Most numbers of a constant that is written into the model file itself, as text on its way there."""

NORMS = ("mnn.LayerNorm", "mnn.PackedNorm", "mnn.AddNorm")
"""Operators whose last two inputs are a gain and a shift in the weight file."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One stored matrix: header, codes, alpha and bias, contiguous in that order.

    Attributes:
        weight: what is stored.
        offset: first byte in the weight file.
        header_bytes: dimension header and code table of integer storage, else 0.
        code_bytes: packed codes, halves or floats.
        alpha_bytes: scales, or (zero, scale) pairs, of integer storage.
        bias: the vector stored behind, or None for a matrix that only serves embedding rows.
        bias_bytes: its size.
    """

    weight: StoredWeight
    offset: int
    header_bytes: int
    code_bytes: int
    alpha_bytes: int
    bias: Value | None
    bias_bytes: int

    @property
    def code_offset(self) -> int:
        """First byte of the codes."""
        return self.offset + self.header_bytes

    @property
    def alpha_offset(self) -> int:
        """First byte of the scales."""
        return self.code_offset + self.code_bytes

    @property
    def bias_offset(self) -> int:
        """First byte of the bias."""
        return self.alpha_offset + self.alpha_bytes

    @property
    def end(self) -> int:
        """First byte behind."""
        return self.bias_offset + self.bias_bytes

    @property
    def blocks(self) -> int:
        """Scales in a row; 0 for float storage."""
        return self.weight.columns // self.weight.block if self.weight.block else 0

    @property
    def wide_header(self) -> bool:
        """True when the header's dimensions need 32 bits."""
        return max(self.weight.rows, self.weight.columns) > 0xFFFF


@dataclass(frozen=True)
class Vector:
    """Float32 numbers stored back to back: gain and shift of a norm, or one large constant."""

    values: tuple[Value, ...]
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """First byte behind."""
        return self.offset + self.nbytes


@dataclass
class Layout:
    """Where everything lies.

    Attributes:
        matrices: by convolution node.
        vectors: by norm node.
        constants: large constants of single precision that other operators read, such as tables of angles.
        embedding: the matrix that serves embedding rows from the weight file, or None when they have a file of their
            own.
        embedding_shared: True when that matrix is the logits convolution's.
        embedding_file: table stored as bfloat16 rows in ``embeddings_bf16.bin``, or None.
        nbytes: size of the weight file.
    """

    matrices: dict[Node, Matrix] = field(default_factory=dict)
    vectors: dict[Node, Vector] = field(default_factory=dict)
    constants: dict[Value, Vector] = field(default_factory=dict)
    embedding: Matrix | None = None
    embedding_shared: bool = False
    embedding_file: StoredWeight | None = None
    nbytes: int = 0


def plan_layout(graph: Graph) -> Layout:
    """Assign a range of the weight file to everything the graph stores, in program order.

    Raises:
        LadingError: B601 a matrix too large for the loader, B602 embedding rows in a form no runtime reads, B604 a weight
            in a form that the file cannot hold.
    """
    layout = Layout()
    for node in graph.nodes:
        if node.op == "mnn.Convolution":
            matrix = _matrix(_weight(node.operand(1), matmul=True), layout.nbytes, bias=node.inputs[2])
            layout.matrices[node] = matrix
            layout.nbytes = matrix.end
        elif node.op in NORMS:
            count = len(node.inputs)
            values = (node.operand(count - 2), node.operand(count - 1))
            vector = Vector(values, layout.nbytes, sum(4 * math.prod(value.sizes) for value in values))
            layout.vectors[node] = vector
            layout.nbytes = vector.end
        elif not is_weight(node.output):
            _place_constants(layout, node)
    if "embedding" in graph.tables:
        _place_embedding(layout, _weight(graph.tables["embedding"], matmul=False))
    return layout


def _place_constants(layout: Layout, node: Node) -> None:
    for value in node.inputs:
        if value is None or value.const is None or value.dtype != F32 or value in layout.constants:
            continue
        count = math.prod(value.sizes)
        if count > INLINE:
            layout.constants[value] = Vector((value,), layout.nbytes, 4 * count)
            layout.nbytes += 4 * count


def _weight(value: Value, *, matmul: bool) -> StoredWeight:
    found = storage_of(value, matmul=matmul)
    if found is None:
        raise unheld(value, matmul=matmul)
    return found


def unheld(value: Value, *, matmul: bool) -> LadingError:
    """The error of a dequantized matrix that the weight file has no form for; `matmul` as for `storage_of`."""
    return LadingError(
        "B604",
        f"the weight file cannot hold this matrix: {obstacle(value, matmul=matmul)}",
        where=f"%{value.name} {value.loc}".rstrip(),
        hint="quantize it with one scale for the matrix, for each output, or for blocks that divide the input features",
    )


def _matrix(weight: StoredWeight, offset: int, *, bias: Value | None) -> Matrix:
    count = weight.rows * weight.columns
    if count > MAX_ELEMENTS:
        raise LadingError(
            "B601",
            f"{weight.rows} x {weight.columns} weights are more than the {MAX_ELEMENTS} that one MNN operator can hold",
            where=weight.name,
        )
    bias_bytes = 4 * weight.rows if bias is not None else 0
    storage = weight.storage
    wide = max(weight.rows, weight.columns) > 0xFFFF
    return Matrix(
        weight=weight,
        offset=offset,
        header_bytes=2 + (8 if wide else 4) + (1 << storage.bits) if storage.is_integer else 0,
        code_bytes=(count * storage.bits + 7) // 8,
        alpha_bytes=scale_bytes(weight.rows, weight.columns, storage),
        bias=bias,
        bias_bytes=bias_bytes,
    )


def _place_embedding(layout: Layout, table: StoredWeight) -> None:
    if table.quantized is None and table.floats.type.dtype == BF16:
        layout.embedding_file = table
        return
    if table.bits not in (4, 8, 16):
        raise LadingError(
            "B602", f"embedding rows of {table.bits} bits cannot be read by the runtime", where=table.name
        )
    for matrix in layout.matrices.values():
        if _same_storage(matrix.weight, table):
            layout.embedding, layout.embedding_shared = matrix, True
            return
    # The runtime takes an offset of 0 for "not in this file"; anything stored before keeps it above.
    layout.embedding = _matrix(table, layout.nbytes, bias=None)
    layout.nbytes = layout.embedding.end


def _same_storage(left: StoredWeight, right: StoredWeight) -> bool:
    from ir.tensor.base import same_tensor

    if left.quantized is not None or right.quantized is not None:
        return left.quantized is right.quantized
    same_shape = (left.rows, left.columns, left.bits) == (right.rows, right.columns, right.bits)
    return same_shape and same_tensor(left.floats, right.floats)
