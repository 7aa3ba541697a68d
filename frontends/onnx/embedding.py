"""Models that take the rows of their embedding: the table from a file beside them, and token ids in the place of rows.

Some exporters leave the embedding out of the graph and write it into a file of its own: the exporter of MNN as
bfloat16 numbers without a header, others as a second ONNX model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from frontends.onnx.beside import folders_of
from ir.base.diag import LadingError
from ir.base.types import BF16, F32, I64, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.onnx.keys import EMBEDDING
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor

RAW = "embeddings_bf16.bin"
"""Rows of bfloat16 numbers and nothing else, as MNN's exporter writes them."""
MODELS = ("embed_tokens.onnx", "embeddings.onnx", "embedding.onnx")
"""Models that look rows up, as other exporters call them."""


def take_ids(graph: Graph, path: Path, named: Path | None = None) -> None:
    """Let a graph that takes embedding rows take token ids, where the table is at hand.

    Args:
        graph: a graph as it was read; what it took is kept in its metadata.
        path: its file.
        named: the file with the table, or a checkpoint that has it; None looks beside the file.

    Raises:
        LadingError: F641 the file that is named has no such table, or the model takes no rows.
    """
    rows = _rows_input(graph)
    if rows is None:
        if named is not None:
            message = "the model takes no rows of an embedding, so no table can be named for it"
            raise LadingError("F641", message, str(path), "leave --embedding out")
        return
    file = named if named is not None else next(_beside(path), None)
    table = _table(graph, file, rows) if file is not None else None
    if table is None:
        if named is not None:
            message = f"no table with rows of {rows.dims[-1]} numbers is in this file"
            hint = f"name {RAW}, a .npy file, a model that looks rows up, or the checkpoint"
            raise LadingError("F641", message, str(named), hint)
        return
    _look_up(graph, rows, table)


def _rows_input(graph: Graph) -> Value | None:
    """The one float input with a row for each token, of a graph without token ids."""
    found = []
    for value in graph.inputs:
        if not isinstance(value.type, TensorType) or value.shape is None:
            continue
        if value.dtype.is_integer and any(node.op == "Gather" and place == 1 for node, place in value.uses):
            table = next(node.input(0) for node, place in value.uses if node.op == "Gather" and place == 1)
            if table is not None and table.is_const and table.dtype.is_float and table.rank == 2:
                return None
        if value.dtype.is_float and value.rank == 3 and isinstance(value.dims[-1], int) and value.dims[-1] > 1:
            found.append(value)
    return found[0] if len(found) == 1 else None


def _beside(path: Path) -> Iterator[Path]:
    folders = dict.fromkeys((*folders_of(path), path.absolute().parent.parent))
    for folder in folders:
        for name in (RAW, *MODELS):
            if (folder / name).is_file() and (folder / name) != path.absolute():
                yield folder / name


def _table(graph: Graph, file: Path, rows: Value) -> Tensor | None:
    """float32[tokens, width] of a file; None when it has no such table."""
    width = rows.dims[-1]
    assert isinstance(width, int)
    if file.is_dir():
        return _of_checkpoint(graph, file, width)
    if file.suffix == ".onnx":
        return _of_model(file, width)
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
        return InlineTensor(array.astype(np.float32)) if array.ndim == 2 and array.shape[1] == width else None
    size = file.stat().st_size
    if not size or size % (2 * width):
        return None
    return cast(FileTensor(file, 0, TensorType(BF16, (size // (2 * width), width))), F32)


def _of_model(file: Path, width: int) -> Tensor | None:
    """The table that another model takes rows from by ids."""
    from frontends.onnx.load import load

    graph = load(file)
    found = [node.operand(0).const for node in graph.nodes if node.op == "Gather" and node.attrs.get("axis", 0) == 0]
    tables = [one for one in found if one is not None and len(one.shape) == 2 and one.shape[1] == width]
    return cast(tables[0], F32) if len(tables) == 1 and tables[0].type.dtype.is_float else None


def _of_checkpoint(graph: Graph, folder: Path, width: int) -> Tensor | None:
    """The matrix of a checkpoint with most rows of that width; of two, the one that is not the model's own already."""
    from frontends.containers.formats import open_weights

    tensors = [
        item for item in open_weights(folder).tensors.values() if len(item.shape) == 2 and item.shape[1] == width
    ]
    most = max((item.shape[0] for item in tensors), default=0)
    found = [item for item in tensors if item.shape[0] == most]
    if len(found) > 1:
        found = [item for item in found if not _holds(graph, item)]
    return cast(found[0], F32) if len(found) == 1 else None


def _holds(graph: Graph, tensor: Tensor) -> bool:
    """Whether a constant of a graph is the transpose of a matrix, by its first rows."""
    first = tensor.rows(0, 8).astype(np.float32)
    matrices = (value.const for value in graph.consts.values())
    same = (item for item in matrices if item is not None and item.shape == tensor.shape[::-1])
    return any(np.array_equal(item.load()[:, :8].astype(np.float32).T, first) for item in same)


def _look_up(graph: Graph, rows: Value, table: Tensor) -> None:
    """Put a look-up of token ids in the place of the rows."""
    name, shape = rows.name, rows.dims
    # A batch of 1 behind the tokens is how MNN lays rows out.
    first = isinstance(shape[0], Dim) and shape[1] == 1
    seq = shape[0] if first else shape[1]
    batch = 1 if first else shape[0]
    graph.rename(rows, graph.fresh_name(f"{name}.rows"))
    ids = graph.add_input(graph.fresh_name("token_ids"), TensorType(I64, (batch, seq)), rows.loc, index=0)
    const = graph.add_const(graph.fresh_name("embedding"), table)
    types = [TensorType(F32, (batch, seq, shape[2]))]
    node = graph.add("Gather", [const, ids], {"axis": 0}, types=types, before=graph.first)
    result = node.output
    if first:
        sizes = graph.add_const(graph.fresh_name("rows.shape"), InlineTensor(np.array([-1, 1, shape[2]], np.int64)))
        result = graph.add("Reshape", [result, sizes], types=[TensorType(F32, shape)], after=node).output
        node = result.producer  # type: ignore[assignment]
    if rows.dtype != F32:
        types = [TensorType(rows.dtype, shape)]
        result = graph.add("Cast", [result], {"to": rows.dtype.onnx}, types=types, after=node).output
    graph.replace(rows, result)
    sizes_of = [dim if isinstance(dim, int) else dim.name for dim in shape]
    graph.metadata[EMBEDDING] = {
        "input": name,
        "ids": ids.name,
        "table": const.name,
        "dtype": rows.dtype.name,
        "shape": sizes_of,
    }
    graph.remove_input(rows)


__all__ = ["RAW", "take_ids"]
