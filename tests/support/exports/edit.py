"""Small edits of ONNX models: who makes a value, who reads it, what a constant holds, a node put behind a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Editor:
    """The main graph of a model while it is edited; `finish` puts the nodes in order."""

    def __init__(self, model: onnx.ModelProto):
        self.model, self.graph = model, model.graph
        self._count = 0

    def nodes(self, *kinds: str) -> list[onnx.NodeProto]:
        """Nodes of these operators, in order."""
        return [node for node in self.graph.node if node.op_type in kinds]

    def maker(self, value: str) -> onnx.NodeProto | None:
        """The node that makes a value; none for inputs and initializers."""
        return next((node for node in self.graph.node if value in node.output), None)

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in node.input]

    def constant(self, value: str) -> np.ndarray | None:
        """What a value holds, if it is an initializer or made by Constant."""
        for item in self.graph.initializer:
            if item.name == value:
                return numpy_helper.to_array(item)
        node = self.maker(value)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def back(self, value: str) -> Iterator[onnx.NodeProto]:
        """The nodes on the way from a value towards the inputs, nearest first."""
        waiting, seen = [value], set()
        while waiting:
            node = self.maker(waiting.pop(0))
            if node is not None and node.output[0] not in seen:
                seen.add(node.output[0])
                yield node
                waiting += node.input

    def fresh(self, stem: str) -> str:
        """A name that no value has."""
        self._count += 1
        return f"{stem}.{self._count}"

    def add_constant(self, array: np.ndarray) -> str:
        """Add an initializer; returns its name."""
        name = self.fresh("given")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of the default domain; returns its output."""
        name = self.fresh(kind.lower())
        self.graph.node.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def replace_input(self, node: onnx.NodeProto, index: int, value: str) -> None:
        """Let a node read another value."""
        node.input[index] = value

    def behind(self, value: str, kind: str, others: Sequence[str], **attributes: Any) -> str:
        """Put a node behind a value: every reader so far reads ``kind(value, *others)`` instead."""
        readers = self.readers(value)
        made = self.add(kind, [value, *others], **attributes)
        for node in readers:
            for index, name in enumerate(node.input):
                if name == value:
                    node.input[index] = made
        return made

    def finish(self) -> onnx.ModelProto:
        """Order the nodes so that values are made before they are read; returns the model."""
        made_by = {name: index for index, node in enumerate(self.graph.node) for name in node.output}
        order: list[int] = []
        state: dict[int, bool] = {}
        for root in range(len(self.graph.node)):
            stack = [root]
            while stack:
                index = stack[-1]
                if index not in state:
                    state[index] = False
                    needed = (made_by[name] for name in self.graph.node[index].input if name in made_by)
                    stack += [item for item in needed if item not in state]
                    continue
                stack.pop()
                if not state[index]:
                    state[index] = True
                    order.append(index)
        nodes = [onnx.NodeProto.FromString(self.graph.node[index].SerializeToString()) for index in order]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        return self.model
