"""The weights of a graph as precision is assigned to them: role, shape, ties between them, and their stored form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ir.base.types import BF16, F16, F32, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.quant.methods.base import METHODS
from ir.quant.statistics.moments import input_of
from ir.quant.storage import Storage
from ir.quant.stored_weight import StoredWeight, storage_of
from ir.quant.weight import QuantizedWeight, shared_quantized
from ir.tensor.base import Tensor, same_tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import transposed
from passes.inputs.row_choice import is_rowwise
from passes.precision.mixtures import Seat, routers_of, seats_of

Role = Literal["layer", "router", "logits", "embedding"]
"""What a weight is; a router chooses the experts of a mixture."""
LAYERS = ("layers", "h", "blocks")
"""What checkpoints call the list of layers."""


@dataclass(frozen=True)
class Weight:
    """One matrix to plan: the constant, its role, the length of its rows of input features, and its place in an expert,
    if it has one."""

    value: Value
    role: Role
    columns: int
    rows: int
    seat: Seat | None = None

    @property
    def name(self) -> str:
        """Name of the constant, which is the checkpoint's key."""
        return self.value.name

    @property
    def elements(self) -> int:
        """Numbers in the matrix."""
        return self.rows * self.columns

    @property
    def source(self) -> Tensor:
        """The float matrix as output-major rows ``[rows, columns]``, as narrow as it is stored."""
        tensor = self.value.tensor
        source = tensor if self.role == "embedding" else transposed(tensor)
        return as_stored(source)

    def quantized(self, storage: Storage, moments: str) -> QuantizedWeight:
        """The recipe of a storage of at most 8 bits; `moments` is the key of the statistics, empty for none."""
        return shared_quantized(self.source, storage, moments)

    def restored(self, storage: Storage, moments: str) -> Tensor:
        """What the runtime computes with when the weight is stored so: f32 in the orientation of the constant."""
        tensor = self.value.tensor
        if storage.bits == 32:
            return tensor
        if storage.bits == 16:
            return cast(cast(tensor, F16), F32)
        rows = self.quantized(storage, moments).dequantized()
        return rows if self.role == "embedding" else transposed(rows)


def as_stored(source: Tensor) -> Tensor:
    """A tensor before it was widened from half precision, else itself."""
    name, args, _ = source.recipe()
    return args[0] if name == "cast" and args[0].type.dtype in (BF16, F16) else source


def weights_of(graph: Graph) -> list[Weight]:
    """Constant float matrices that a MatMul multiplies by or that the runtime reads rows of, in program order."""
    found: dict[Value, Weight] = {}
    routers, seats = routers_of(graph), seats_of(graph)
    for value in graph.tables.values():
        if _is_matrix(value):
            rows, columns = value.sizes
            found[value] = Weight(value, "embedding", columns, rows)
    for node in graph.nodes:
        weight = node.input(1)
        if node.op == "MatMul" and weight is not None and _is_matrix(weight) and weight not in found:
            columns, rows = weight.sizes
            role: Role = "router" if weight in routers else "logits" if _reaches_output(node) else "layer"
            found[weight] = Weight(weight, role, columns, rows, seats.get(weight))
    return list(found.values())


def kept_weights(graph: Graph) -> list[StoredWeight]:
    """Matrices that came quantized and are stored as they are, each once, tables first."""
    found: dict[int, StoredWeight] = {}
    products = [node.operand(1) for node in graph.nodes if node.op == "MatMul" and node.input(1) is not None]
    uses = [(value, False) for value in graph.tables.values()] + [(value, True) for value in products]
    for value, matmul in uses:
        stored = storage_of(value, matmul=matmul) if value.const is None else None
        if stored is not None and stored.quantized is not None:
            found.setdefault(id(stored.quantized), stored)
    return list(found.values())


def _is_matrix(value: Value) -> bool:
    is_float = value.is_const and isinstance(value.type, TensorType) and value.dtype.is_float
    return is_float and value.rank == 2


def _reaches_output(node: Node) -> bool:
    """True when the product becomes a graph output through element-wise nodes alone."""
    while True:
        if node.output.is_output:
            return True
        users = node.output.users
        if len(users) != 1 or users[0].op == "MatMul" or not is_rowwise(users[0]):
            return False
        node = users[0]


def bias_of(node: Node) -> tuple[Value | None, Value]:
    """The constant vector that the only reader of a product by a matrix adds, if any, and the value after it."""
    users = node.output.users
    if len(users) == 1 and users[0].op == "Add" and node.output.use_count == 1:
        other = next((value for value in users[0].inputs if value is not node.output), None)
        if other is not None and other.is_const and other.shape == node.operand(1).dims[1:]:
            return other, users[0].output
    return None, node.output


def same_matrix(weights: Sequence[Weight]) -> tuple[Weight, Weight] | None:
    """The embedding and the logits matrix, in this order, when the graph has one of each and they are equal."""
    tables = [weight for weight in weights if weight.role == "embedding"]
    heads = [weight for weight in weights if weight.role == "logits"]
    if len(tables) != 1 or len(heads) != 1:
        return None
    table, head = tables[0], heads[0]
    equal = same_tensor(table.value.tensor, transposed(head.value.tensor))
    return (table, head) if equal else None


def place_of(name: str) -> tuple[int | None, str]:
    """Number of the layer and kind of a weight as far as its name tells: ``(3, "q_proj")``; None outside layers.

    The layer is the number behind a word of `LAYERS`, else the first number.
    """
    parts = [part for part in name.split(".") if part not in ("weight", "kernel")]
    numbered = [at for at, part in enumerate(parts) if re.fullmatch(r"\d{1,6}", part)]
    named = [at for at in numbered if at and parts[at - 1] in LAYERS]
    layer = next((int(parts[at]) for at in (*named, *numbered)), None)
    words = [part for part in parts if not part.isdigit()]
    return layer, words[-1] if words else name


def moments_for(storage: Storage, key: str) -> str:
    """What a storage is quantized with of the statistics of a weight: their key, "" where it uses none.

    Args:
        storage: how the weight is stored.
        key: of all that is known of the weight; those of both of its sides may be joined in it.
    """
    needs = METHODS[storage.method].needs if storage.bits <= 8 else "nothing"
    if needs == "nothing":
        return ""
    return key if needs == "both-sides" else input_of(key)


__all__ = [
    "LAYERS",
    "Role",
    "Weight",
    "as_stored",
    "bias_of",
    "kept_weights",
    "moments_for",
    "place_of",
    "same_matrix",
    "weights_of",
]
