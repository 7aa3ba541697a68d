"""Gradients of a loss of a decoder's last features with respect to its weight matrices, a run of nodes at a time.

What does not depend on the weights is computed once by an `Evaluator`: embedding rows, masks, angles. The nodes behind
are cut into parts whose weights fit a limit. Forwards, every part is run for all windows and only what it is given is
kept; backwards, it is run again from there, so that the activations of one window in one part are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ir.base.diag import LadingError
from ir.evaluate.backward.rules import RULES, lacking
from ir.evaluate.backward.words import Pull
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.onnxruntime_session import load_constant
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value

State = dict[Value, np.ndarray]
Matrices = Callable[[str], np.ndarray]
"""Numbers of a weight by name, float32[in, out]."""
Receive = Callable[[str, np.ndarray, np.ndarray], None]
"""Is given a weight's name, features float32[positions, in], and gradients of what the product gives [positions,
out]."""


@dataclass
class Part:
    """Nodes that are run together.

    Attributes:
        nodes: in program order.
        inputs: values of earlier parts, or not depending on the weights, that it reads.
        outputs: values that later parts read, or the last value.
        dead: values that no later part reads.
    """

    nodes: list[Node]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    dead: list[Value] = field(default_factory=list)


class Backward:
    """Runs a decoder forwards and backwards with other numbers for some of its matrices.

    Attributes:
        parts: what is run in turn.
        final: the value that the loss is of.
    """

    def __init__(
        self, graph: Graph, weights: Sequence[str], final: Value, *, memory_limit: int = 64 << 20, threads: int = 0
    ) -> None:
        """Plan.

        Args:
            graph: the graph; it must not change afterwards.
            weights: names of constant matrices that MatMul nodes multiply by, whose numbers `run` is given.
            final: a value that depends on all of them.
            memory_limit: bytes of constants to hold at once.
            threads: threads of the `Evaluator`; 0 for one per processor.

        Raises:
            LadingError: Q493 an operator behind the weights has no rule.
        """
        self.graph, self.final = graph, final
        self.weights = frozenset(graph.value(name) for name in weights)
        nodes = _behind(graph, self.weights, final)
        missing = lacking(nodes)
        if missing:
            first = next(node for node in nodes if node.op == missing[0])
            raise LadingError(
                "Q493",
                f"no gradients pass {', '.join(missing)}",
                where=describe(first),
                hint="leave what needs them out: --passes calibrated",
            )
        self.parts = _cut(nodes, final, memory_limit)
        made = {value for node in nodes for value in node.outputs}
        frozen = {value for part in self.parts for value in part.inputs if value not in made}
        self._frozen = sorted(frozen, key=lambda value: value.name)
        self._evaluator = Evaluator(
            graph, [value.name for value in self._frozen], memory_limit=4 * memory_limit, threads=threads or None
        )

    def start(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[State]:
        """What each window begins with; equal arrays are held once."""
        held: dict[tuple, np.ndarray] = {}
        states: list[State] = []
        for found in self._evaluator.run_many([self._needed(feed) for feed in feeds]):
            state: State = {}
            for value in self._frozen:
                array = np.asarray(found[value.name])
                state[value] = held.setdefault((value, array.shape, array.tobytes()), array)
            states.append(state)
        return states

    def _needed(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {value.name: feed[value.name] for value in self._evaluator.needed}

    def run(
        self,
        states: Sequence[State],
        matrices: Matrices,
        loss: Callable[[list[np.ndarray]], list[np.ndarray]],
        receive: Receive,
    ) -> None:
        """Forwards, then backwards.

        Args:
            states: from `start`.
            matrices: the numbers to compute with.
            loss: from the last values to the gradient with respect to each.
            receive: told, part by part from the last and window by window, what makes up the gradient of each matrix:
                ``features.T @ gradients``, summed over the calls.
        """
        finals, entered = self._forwards(states, matrices)
        gradients: list[State] = [{self.final: item} for item in loss(finals)]
        del finals
        for part, given in zip(reversed(self.parts), reversed(entered), strict=True):
            constants = self._constants(part, matrices)
            for place, state in enumerate(given):
                gradients[place] = self._back(part, {**state, **constants}, gradients[place], receive)

    def _forwards(self, states: Sequence[State], matrices: Matrices) -> tuple[list[np.ndarray], list[list[State]]]:
        """The last values, and what each part was given."""
        live = [dict(state) for state in states]
        entered: list[list[State]] = []
        for part in self.parts:
            constants = self._constants(part, matrices)
            entered.append([{value: state[value] for value in part.inputs} for state in live])
            for state in live:
                inside = {**{value: state[value] for value in part.inputs}, **constants}
                for node in part.nodes:
                    self._apply(node, inside)
                state.update((value, inside[value]) for value in part.outputs)
                for value in part.dead:
                    state.pop(value, None)
        return [state[self.final] for state in live], entered

    def _apply(self, node: Node, inside: State) -> Pull:
        """Compute a node; gives the way back."""
        inputs = [None if value is None else inside[value] for value in node.inputs]
        with np.errstate(over="ignore", under="ignore"):
            found = RULES[node.op](node, inputs)
        inside[node.output] = found.output
        return found.pull

    def _back(self, part: Part, inside: State, gradients: State, receive: Receive) -> State:
        """Gradients of what enters a part, from those of what leaves it."""
        pulls = [(node, self._product(node, inside, receive) or self._apply(node, inside)) for node in part.nodes]
        found = dict(gradients)
        for node, pull in reversed(pulls):
            gradient = found.pop(node.output, None)
            if gradient is None:
                continue
            for value, item in zip(node.inputs, pull(gradient), strict=True):
                if value is not None and item is not None and value.const is None:
                    found[value] = found[value] + item if value in found else item
        entering = set(part.inputs) - set(self._frozen)
        return {value: item for value, item in found.items() if value in entering or value in gradients}

    def _product(self, node: Node, inside: State, receive: Receive) -> Pull | None:
        """Compute a product with a constant matrix, whose own gradient is told and not made."""
        matrix = node.input(1) if node.op == "MatMul" else None
        if matrix is None or matrix.const is None or inside[matrix].ndim != 2:
            return None
        left, right = inside[node.operand(0)], inside[matrix]
        inside[node.output] = left @ right
        return partial(self._pull_product, matrix, left, right, receive)

    def _pull_product(
        self, matrix: Value, left: np.ndarray, right: np.ndarray, receive: Receive, gradient: np.ndarray
    ) -> tuple[np.ndarray | None, None]:
        rows = gradient.reshape(-1, gradient.shape[-1])
        if matrix in self.weights:
            receive(matrix.name, left.reshape(-1, left.shape[-1]), rows)
        return (rows @ right.T).reshape(left.shape), None

    def _constants(self, part: Part, matrices: Matrices) -> State:
        constants = {value for node in part.nodes for value in node.inputs if value is not None and value.is_const}
        return {
            value: matrices(value.name) if value in self.weights else load_constant(value.tensor) for value in constants
        }


def _behind(graph: Graph, weights: frozenset[Value], final: Value) -> list[Node]:
    """The nodes between the weights and the last value, in program order."""
    varying: set[Value] = set(weights)
    nodes: list[Node] = []
    for node in graph.nodes:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
            nodes.append(node)
    wanted = {final}
    found: list[Node] = []
    for node in reversed(nodes):
        if any(value in wanted for value in node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
            found.append(node)
    return found[::-1]


def _cut(nodes: Sequence[Node], final: Value, limit: int) -> list[Part]:
    """Runs of nodes whose constants fit a limit, with what each is given and gives."""
    parts: list[Part] = []
    size = 0
    for node in nodes:
        more = sum(4 * (value.tensor.type.size or 0) for value in node.inputs if value is not None and value.is_const)
        if not parts or size + more > limit:
            parts.append(Part([]))
            size = 0
        parts[-1].nodes.append(node)
        size += more
    last = {value: at for at, part in enumerate(parts) for n in part.nodes for value in n.inputs if value is not None}
    last[final] = len(parts)
    for at, part in enumerate(parts):
        inside = {value for node in part.nodes for value in node.outputs}
        read = [v for node in part.nodes for v in node.inputs if v is not None and not v.is_const and v not in inside]
        part.inputs = list(dict.fromkeys(read))
        part.outputs = [value for node in part.nodes for value in node.outputs if last.get(value, at) > at]
        part.dead = [value for value in part.inputs if last[value] == at]
    return parts


__all__ = ["Backward", "Matrices", "Receive", "State"]
