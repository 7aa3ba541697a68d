"""`ir.Graph` to graph-surgeon graphs: new ones, or the contents of one that a caller holds.

Constants stay lazy: their data is made when graph-surgeon reads or exports them. Documentation, metadata and overloads
of nodes are lost, because graph-surgeon has no place for them; what would change the meaning of a graph is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from backends.onnx.write import to_model
from ir.base.diag import LadingError
from ir.base.types import MapType, OptionalType, SequenceType, ValueType, dtype_of_onnx
from ir.graph.describe import describe
from ir.graph.graph import OPSET, EmptyList, Graph, Node, Value
from ir.onnx.export import onnx_dtype, tensor_proto
from ir.onnx.keys import DEFAULT
from ir.onnx.proto_tensor import ProtoTensor
from ir.ops.registry import opsets_of
from ir.tensor.base import Tensor

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def to_graphsurgeon(graph: Graph) -> gs.Graph:
    """A new graph-surgeon graph.

    Args:
        graph: a root graph; constants whose data is in files need the files as long as the result is used.

    Raises:
        LadingError: B694 what graph-surgeon cannot hold; T230 as `backends.onnx.write.to_model`.
    """
    import onnx_graphsurgeon as gs

    _refuse_what_is_lost(graph)
    made = gs.import_onnx(to_model(graph, data=False))
    _fill_constants(made, graph)
    return made


def update(held: gs.Graph, graph: Graph) -> None:
    """Make a graph-surgeon graph, in place, what an IR graph is.

    Tensors of the same name and nodes with the same operator and first output stay the same Python objects, so that
    what a caller holds of them stays valid; nodes that are gone are disconnected.

    Args:
        held: the graph to change; it is left as it was when there is an error.
        graph: a root graph.

    Raises:
        LadingError: as `to_graphsurgeon`.
    """
    _Update(held, to_graphsurgeon(graph)).run()


# ---- new graphs ----


def _refuse_what_is_lost(graph: Graph) -> None:
    for table in graph.tables:
        name = table.removeprefix(DEFAULT)
        if name != table and any(value.name == name for value in graph.inputs):
            raise _lost(f"the default value of input {name!r}")
    for value in (*graph.inputs, *graph.outputs):
        if not _is_plain(value.type):
            raise _lost(f"{value.name!r} of type {value.type}")
    for node in graph.walk():
        for name, item in node.attrs.items():
            if isinstance(item, ValueType) or (
                isinstance(item, tuple) and item and isinstance(item[0], Tensor | Graph)
            ):
                raise _lost(f"attribute {name!r}", node)
            if isinstance(item, EmptyList) and item.kind in ("tensors", "graphs", "types"):
                raise _lost(f"attribute {name!r}", node)
            if isinstance(item, bytes):
                raise _lost(f"attribute {name!r}, which is not text", node)
        if node.overload:
            raise _lost(f"overload {node.overload!r} of a function", node)
    if any(":" in name for name in graph.functions):
        raise _lost("overloads of functions")


def _is_plain(type_: ValueType | None) -> bool:
    if isinstance(type_, SequenceType):
        return not isinstance(type_.element, SequenceType | MapType | OptionalType)
    return not isinstance(type_, MapType | OptionalType)


def _lost(what: str, node: Node | None = None) -> LadingError:
    where = describe(node) if node is not None else ""
    return LadingError("B694", f"graph-surgeon cannot hold {what}", where, "emit an ONNX model instead")


def _fill_constants(made: gs.Graph, graph: Graph) -> None:
    """Give the constants of a graph, and of those inside it, their data."""
    import onnx_graphsurgeon as gs

    for tensor in _all_tensors(made):
        if isinstance(tensor, gs.Constant) and tensor.name in graph.consts:
            tensor._values = lazy_values(graph.consts[tensor.name])
    for inner in made.subgraphs(recursive=True):
        _fill_constants(inner, graph)


def _all_tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """The tensors of a graph's own level."""
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs


def lazy_values(value: Value) -> Any:
    """The contents of a constant as graph-surgeon reads them: a ``LazyValues``."""
    return _lazy_class()(value.const, opsets_of(value.graph).get("", OPSET))


def _lazy_class() -> type:
    global _Lazy
    if _Lazy is None:
        _Lazy = _make_lazy_class()
    return _Lazy


_Lazy: type | None = None


def _make_lazy_class() -> type:
    import onnx_graphsurgeon.ir.tensor as held

    class TensorValues(held.LazyValues):
        """Contents of a constant that an IR tensor gives when they are asked for.

        Attributes:
            source: the tensor.
        """

        def __init__(self, source: Tensor, opset: int) -> None:
            stored = dtype_of_onnx(onnx_dtype(source.type.dtype, opset))
            self.source = source
            self.opset = opset
            self.shape = list(source.shape)
            self.dtype = stored.numpy if stored.kind != "s" else np.dtype(object)
            self.nbytes = source.nbytes

        @cached_property
        def tensor(self) -> onnx.TensorProto:
            """The message with the data, as graph-surgeon exports it."""
            if isinstance(self.source, ProtoTensor):
                proto = onnx.TensorProto()
                proto.CopyFrom(self.source.proto)
                return proto
            return tensor_proto(self.source, "", self.opset)

        def load(self) -> np.ndarray:
            """A new array."""
            return np.array(self.source.load()).astype(self.dtype, copy=False)

    return TensorValues


# ---- graphs that somebody holds ----


class _Update:
    def __init__(self, held: gs.Graph, new: gs.Graph) -> None:
        self.held = held
        self.new = new
        self.tensors = {tensor.name: tensor for tensor in _all_tensors(held) if tensor.name}
        self.nodes = {node.outputs[0].name: node for node in held.nodes if len(node.outputs) and node.outputs[0].name}
        # The tensors themselves are kept too, so that no other one gets the same id.
        self.outer = {id(tensor): tensor for tensor in _all_tensors(new) if tensor.name}
        self.mapped: dict[int, gs.Tensor] = {}

    def run(self) -> None:
        """Move nodes, inputs, outputs and functions over."""
        held, new = self.held, self.new
        plan = [(node, list(node.inputs), list(node.outputs)) for node in new.nodes]
        # All links are made anew. Removing them one by one would compare nodes by what they contain.
        for item in (*held.nodes, *new.nodes, *_all_tensors(held), *_all_tensors(new)):
            list.clear(item.inputs)
            list.clear(item.outputs)
        held.nodes[:] = [self.node(node, inputs, outputs) for node, inputs, outputs in plan]
        held.inputs = [self.tensor(item) for item in new.inputs]
        held.outputs = [self.tensor(item) for item in new.outputs]
        held.functions = new.functions
        held.opset, held.import_domains = new.opset, new.import_domains

    def node(self, node: gs.Node, inputs: list[gs.Tensor], outputs: list[gs.Tensor]) -> gs.Node:
        """The node to keep for a new node: the one that made the same tensor by the same operator, if there was one."""
        kept = self.nodes.get(outputs[0].name) if outputs else None
        if kept is None or kept.op != node.op or kept.domain != node.domain:
            kept = node
        kept.name, kept.attrs = node.name, node.attrs
        kept.inputs.extend([self.tensor(item) for item in inputs])
        kept.outputs.extend([self.tensor(item) for item in outputs])
        for graph in node.attrs.values():
            self.inside(graph)
        return kept

    def inside(self, graph: Any) -> None:
        """Make the nodes of a subgraph read the tensors that are kept."""
        import onnx_graphsurgeon as gs

        if not isinstance(graph, gs.Graph):
            return
        for node in graph.nodes:
            for place, item in enumerate(node.inputs):
                if id(item) in self.outer:
                    kept = self.tensor(item)
                    list.__setitem__(node.inputs, place, kept)
                    list.append(kept.outputs, node)
            for inner in node.attrs.values():
                self.inside(inner)
        graph.outputs = [self.tensor(item) if id(item) in self.outer else item for item in graph.outputs]

    def tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor to keep for a new tensor: the one that had its name, made like it."""
        import onnx_graphsurgeon as gs

        if not tensor.name:
            return gs.Variable.empty()
        if id(tensor) in self.mapped:
            return self.mapped[id(tensor)]
        kept = self.tensors.get(tensor.name)
        if kept is None:
            kept = tensor
        elif isinstance(tensor, gs.Constant):
            if not isinstance(kept, gs.Constant):
                kept.to_constant(tensor._values)
            kept._values, kept.data_location, kept.export_dtype = tensor._values, None, None
        else:
            if isinstance(kept, gs.Constant):
                kept.to_variable(tensor.dtype, tensor.shape)
            kept.dtype, kept.shape, kept.type = tensor.dtype, tensor.shape, tensor.type
        self.mapped[id(tensor)] = kept
        return kept


__all__ = ["lazy_values", "to_graphsurgeon", "update"]
