"""Evaluation of any stage of a graph in onnxruntime: what passes, calibration and verification compare with.

Only what the wanted values need is computed. With a memory limit the graph is cut, in program order, into segments
whose constants fit; live values are carried from one to the next, and operators on a single larger constant are
computed in pieces (`ir.evaluate.large_weights`). What follows from constants alone, such as a dequantized weight, is
computed where it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ir.base.diag import LadingError, suggest
from ir.base.types import Dim, TensorType, dtype_of_onnx
from ir.evaluate import large_weights as pieces
from ir.evaluate.kernels import ChildDied, Kernels, OpenModel, kernels_for
from ir.evaluate.onnxruntime_session import constant_values, give_memory_back, holds_tensor, load_constant
from ir.evaluate.random_feeds import sample_feeds
from ir.evaluate.segments import Plan, Segment, plan_segments
from ir.evaluate.small_arrays import small_results
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.onnx.export import export_nodes, tensor_proto
from ir.ops.registry import opdef
from ir.tensor.base import Tensor

FOLD_BYTES = 16 << 20
"""Default limit of `evaluate_constants` for one operand or result."""
MOST_PIECE_BYTES = 16 << 20
"""Largest piece of a weight that is computed with in pieces."""


@dataclass(eq=False)
class Track:
    """One version of a graph while it is evaluated.

    Attributes:
        states: for each set of feeds the live values, as arrays or as ``OrtValue``.
        replaced: constants that have other contents in this version, by value of the graph.
    """

    states: list[dict[Value, Any]]
    replaced: Mapping[Value, Tensor] = field(default_factory=dict)

    def fork(self, replaced: Mapping[Value, Tensor]) -> Track:
        """Another version with the same live values."""
        return Track([dict(state) for state in self.states], replaced)


Observer = Callable[[Track, int, str, np.ndarray], None]
"""Is given the track, the index of the feeds, the name of a wanted value, and the value, which it must not keep."""


class Evaluator:
    """Runs a graph several times; every constant is loaded once for each call of `run_many`.

    Without a memory limit constants, and weights that are computed from them, stay in memory between calls.
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Sequence[str] | None = None,
        *,
        memory_limit: int | None = None,
        threads: int | None = None,
        keep: bool = True,
        reserve: Mapping[str, int] | None = None,
        replaceable: Iterable[str] = (),
        ends: Iterable[str] = (),
    ) -> None:
        """Plan the evaluation.

        Args:
            graph: the graph; it is not changed and must not change while the evaluator is used.
            outputs: names of the values wanted, any in the graph; None for the graph's outputs.
            memory_limit: bytes of constants to hold at once, what is computed from constants included.
            threads: threads of onnxruntime; None lets it choose.
            keep: False for an evaluator that only `advance` is used of: what it makes is let go once nothing reads it.
            reserve: bytes that an observer needs for a wanted value until its segment is done, by name; with a memory
                limit a segment ends before its observers need more than that.
            replaceable: names of constants that a `Track` may replace.
            ends: names of values that no segment both makes and reads, so that what a track replaces behind them may
                depend on them.

        Raises:
            LadingError: T223 no value of a wanted name, T224 a constant too large for the limit.
        """
        self.graph = graph
        self.memory_limit = memory_limit
        self._kernels = kernels_for(graph)
        self._threads = threads
        names = [value.name for value in graph.outputs] if outputs is None else outputs
        self._wanted = {name: _find(graph, name) for name in names}
        plan = Plan(
            memory_limit,
            keep,
            {self._wanted[name]: size for name, size in (reserve or {}).items()},
            frozenset(_find(graph, name) for name in replaceable),
            frozenset(_find(graph, name) for name in ends),
        )
        self._segments = plan_segments(graph, list(self._wanted.values()), plan)
        self._needed = _needed_inputs(graph, self._segments, self._wanted.values())
        _require_direct(self._segments, plan.fed)
        self._held: dict[Tensor, Any] = {}
        self._computed: dict[Value, Any] = {}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What `advance` runs, in order."""
        return tuple(self._segments)

    @property
    def needed(self) -> tuple[Value, ...]:
        """The inputs that the wanted values depend on, be it on their shape alone."""
        return tuple(self._needed)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The wanted values for one set of feeds; see `run_many`."""
        return self.run_many([feeds])[0]

    def run_many(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The wanted values for each set of feeds, segment by segment.

        Args:
            feeds: arrays by input name, of exactly the declared element type (``ml_dtypes`` for types that numpy lacks,
                int8 for the odd widths). Inputs that the wanted values do not depend on may be left out.

        Raises:
            LadingError: T221 an input is missing, T222 an array does not fit, T220 onnxruntime failed, T225 a value is
                not a tensor, T280 the child that computes a foreign graph did not survive it.
        """
        try:
            return self._run_all(feeds)
        except ChildDied as error:
            raise self._blamed(error, feeds) from error

    def _run_all(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        track = self.track(feeds)
        for place in range(len(self._segments)):
            self.advance(place, [track])
        return [self.fetch(track, number) for number in range(len(track.states))]

    def _blamed(self, error: ChildDied, feeds: Sequence[Mapping[str, np.ndarray]]) -> LadingError:
        """The error, with the first node in program order at which the child dies."""
        nodes = [node for segment in self._segments for node in segment.nodes]
        nodes = [node for node in self.graph.nodes if node in set(nodes)]
        fewest, most = 0, len(nodes)  # Without the first, the child lives; with the second, it dies.
        while most - fewest > 1:
            middle = (fewest + most) // 2
            names = [value.name for node in nodes[:middle] for value in node.outputs]
            inner = Evaluator(self.graph, names, memory_limit=self.memory_limit, threads=self._threads)
            try:
                inner._run_all([{v.name: feed[v.name] for v in inner._needed if v.name in feed} for feed in feeds])
            except ChildDied:
                most = middle
                continue
            except LadingError:
                pass
            fewest = middle
        found = error.diagnostics[0]
        return LadingError(found.code, found.message, describe(nodes[most - 1]) if nodes else found.where, found.hint)

    def track(self, feeds: Sequence[Mapping[str, np.ndarray]], replaced: Mapping[str, Tensor] | None = None) -> Track:
        """The states before the first segment; errors as for `run_many`.

        Args:
            feeds: as for `run_many`.
            replaced: other contents of the same shape for constants that were named replaceable.
        """
        tensors = {_find(self.graph, name): tensor for name, tensor in (replaced or {}).items()}
        return Track([self._feed(given) for given in feeds], tensors)

    def advance(self, place: int, tracks: Sequence[Track], observe: Observer | None = None) -> None:
        """Run one segment for all states of all tracks; constants that they share are loaded once.

        Args:
            place: index of the segment; they have to be run in order.
            tracks: versions of the graph.
            observe: told of every wanted value as soon as it is there.
        """
        segment = self._segments[place]
        if segment.in_pieces:
            self._run_pieces(segment, tracks, observe)
        else:
            self._run_session(segment, tracks, observe)
        if self.memory_limit is not None:
            give_memory_back()

    def live(self, track: Track) -> list[Mapping[str, np.ndarray]] | None:
        """The values of each state that nodes have computed, by name, each an array of its own whenever it is asked for;
        None when one of them is not plain numbers."""
        for state in track.states:
            for value in state:
                plain = isinstance(value.type, TensorType) and value.dtype.numpy.kind in "fiubc"
                if value.producer is not None and not plain:
                    return None
        return [_Live(state, self._kernels) for state in track.states]

    def restore(self, track: Track, place: int, values: Sequence[Mapping[str, np.ndarray]]) -> bool:
        """Put back what `live` gave before segment `place`; False, and nothing done, when it does not fit the plan."""
        made = {value for segment in self._segments[:place] for value in segment.outputs}
        needed = {v for segment in self._segments[place:] for v in segment.inputs if v in made}
        names = {value.name: value for value in made}
        fits = 0 <= place <= len(self._segments) and len(values) == len(track.states)
        for arrays in values:
            fits = fits and {value.name for value in needed} <= set(arrays) <= set(names)
            fits = fits and all(names[name].dtype.numpy == array.dtype for name, array in arrays.items())
        if fits:
            for state, arrays in zip(track.states, values, strict=True):
                state.update((names[name], array) for name, array in arrays.items())
        return fits

    def _finish(self, segment: Segment, track: Track, number: int, observe: Observer | None) -> None:
        """Show what a segment made of a state, and drop what nothing reads any more."""
        state = track.states[number]
        if observe is not None:
            for name, value in self._wanted.items():
                if value in segment.outputs:
                    observe(track, number, name, _array(value, state, self._kernels))
        for value in segment.dead:
            state.pop(value, None)

    def _feed(self, given: Mapping[str, np.ndarray]) -> dict[Value, Any]:
        sizes: dict[str, tuple[int, str]] = {}
        unknown = set(given) - {value.name for value in self.graph.inputs}
        if unknown:
            name = min(unknown)
            known = [value.name for value in self.graph.inputs]
            raise LadingError("T223", f"the graph has no input {name!r}", self.graph.name, suggest(name, known))
        state: dict[Value, Any] = {}
        for value in self._needed:
            if value.name not in given:
                needed = ", ".join(f"{item.name}: {item.type}" for item in self._needed)
                raise LadingError("T221", f"input {value.name!r} is not fed", self.graph.name, f"feed {needed}")
            array = np.asarray(given[value.name])
            check_feed(value, array, sizes)
            state[value] = array
        return state

    def _run_session(self, segment: Segment, tracks: Sequence[Track], observe: Observer | None) -> None:
        fixed = {**self._weights(segment), **self._constants(segment)}
        shared = _Replacements(segment, tracks, self._kernels)
        for track in tracks:
            own = fixed
            if any(value in track.replaced for value in segment.constants):
                replaced = shared.take(track)
                own = {**fixed, **self._weights(segment, replaced), **_present(replaced, segment.consts)}
                del replaced
            for number, state in enumerate(track.states):
                fed = {**own, **{value: _carried(value, state, self._kernels) for value in segment.inputs}}
                if segment.session is None:
                    segment.session = self._open(segment, fed)
                state.update(_run(segment, fed))
                del fed
                self._finish(segment, track, number, observe)
                if self.memory_limit is not None:
                    give_memory_back()

    def _weights(self, segment: Segment, replaced: Mapping[Value, Any] | None = None) -> dict[Value, Any]:
        """The large weights that a segment reads, computed from constants; those that replaced ones change, if
        given."""
        found: dict[Value, Any] = {}
        for made in segment.weights:
            if replaced is not None and not any(value in replaced for value in made.consts):
                continue
            if replaced is None and made.outputs[0] in self._computed:
                found.update((value, self._computed[value]) for value in made.outputs)
                continue
            constants = {**self._constants(made, hold=False), **_present(replaced or {}, made.consts)}
            if made.session is None:
                made.session = self._open(made, constants)
            found.update(_run(made, constants))
            del constants
            give_memory_back()
        if self.memory_limit is None and replaced is None:
            self._computed.update(found)
        return found

    def _constants(self, segment: Segment, hold: bool = True) -> dict[Value, Any]:
        """The constants that are fed to a segment; without a memory limit they are held for later."""
        tensors = {value: value.tensor for value in segment.consts}
        missing = dict.fromkeys(tensor for tensor in tensors.values() if tensor not in self._held)
        loaded = {**self._held, **constant_values(missing, self._kernels.value)}
        if hold and self.memory_limit is None:
            self._held = loaded
        return {value: loaded[tensor] for value, tensor in tensors.items()}

    def _open(self, segment: Segment, fed: Mapping[Value, Any]) -> OpenModel:
        """Load the model of a segment, its inputs declared as the values that are really fed."""
        model = export_nodes(
            self.graph,
            segment.nodes,
            [value for value in fed if value.const is None],
            segment.outputs,
            constants=lambda value: None if value in fed else tensor_proto(value.tensor, value.name),
            types={value: _declared(value, item) for value, item in fed.items()},
        )
        first, last = segment.nodes[0], segment.nodes[-1]
        where = describe(first) if first is last else f"{len(segment.nodes)} nodes\nfrom {first!r}\nto {last!r}"
        return self._kernels.open(model, self._threads, where)

    def _run_pieces(self, segment: Segment, tracks: Sequence[Track], observe: Observer | None) -> None:
        node = segment.nodes[0]
        weight = pieces.large_weight(node)
        by_tensor: dict[Tensor | None, list[Track]] = {}
        for track in tracks:
            by_tensor.setdefault(track.replaced.get(weight), []).append(track)
        for tensor, group in by_tensor.items():
            states = [(track, number) for track in group for number in range(len(track.states))]
            operands = [
                [
                    None if value is None or value is weight else _operand(value, track, number, self._kernels)
                    for value in node.inputs
                ]
                for track, number in states
            ]
            try:
                results = pieces.run(node, operands, self._piece_bytes(), tensor)
            except (IndexError, ValueError) as error:
                raise LadingError("T220", str(error), describe(node)) from error
            del operands
            for (track, number), result in zip(states, results, strict=True):
                track.states[number][node.outputs[0]] = result
                self._finish(segment, track, number, observe)

    def _piece_bytes(self) -> int:
        if self.memory_limit is None:
            return MOST_PIECE_BYTES
        # Dequantizing a piece takes a few arrays of its size.
        return min(max(self.memory_limit // 16, 1 << 14), MOST_PIECE_BYTES)

    def peek(self, track: Track, number: int, name: str) -> np.ndarray | None:
        """A value of a state, by name, between two segments; None when it is not there."""
        value = _find(self.graph, name)
        return _array(value, track.states[number], self._kernels) if value in track.states[number] else None

    def fetch(self, track: Track, number: int) -> dict[str, np.ndarray]:
        """The wanted values of one state after the last segment."""
        return {name: _array(value, track.states[number], self._kernels) for name, value in self._wanted.items()}


class _Live(Mapping[str, np.ndarray]):
    """The computed values of a state, by name, each made an array when it is asked for."""

    def __init__(self, state: Mapping[Value, Any], kernels: Kernels) -> None:
        self._state, self._kernels = state, kernels
        self._values = {value.name: value for value in state if value.producer is not None}

    def __getitem__(self, name: str) -> np.ndarray:
        return _array(self._values[name], self._state, self._kernels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Replacements:
    """The replaced constants of one segment, loaded when a track needs them and kept while a later one still does."""

    def __init__(self, segment: Segment, tracks: Sequence[Track], kernels: Kernels) -> None:
        self._kernels = kernels
        self._values = segment.constants
        self._left = Counter(tensor for track in tracks for tensor in self._of(track).values())
        self._loaded: dict[Tensor, Any] = {}

    def _of(self, track: Track) -> dict[Value, Tensor]:
        return {value: track.replaced[value] for value in self._values if value in track.replaced}

    def take(self, track: Track) -> dict[Value, Any]:
        """What one track reads; each track asks once."""
        found: dict[Value, Any] = {}
        for value, tensor in self._of(track).items():
            if tensor not in self._loaded:
                (self._loaded[tensor],) = constant_values([tensor], self._kernels.value).values()
            found[value] = self._loaded[tensor]
            self._left[tensor] -= 1
            if not self._left[tensor]:
                del self._loaded[tensor]
        return found


def _require_direct(segments: Iterable[Segment], replaceable: Set[Value]) -> None:
    """Weights that are read in pieces can be replaced, but not what such a weight is computed from."""
    for segment in segments:
        if not segment.in_pieces or not replaceable:
            continue
        node = segment.nodes[0]
        waiting = [pieces.large_weight(node).producer]
        while waiting:
            inner = waiting.pop()
            if inner is None:
                continue
            if replaceable & set(inner.inputs):
                raise ValueError(f"{inner!r} computes a weight beyond the memory limit from a constant to be replaced")
            waiting += [value.producer for value in inner.inputs if value is not None]


def _present(found: Mapping[Value, Any], values: Iterable[Value]) -> dict[Value, Any]:
    return {value: found[value] for value in values if value in found}


def _operand(value: Value, track: Track, number: int, kernels: Kernels) -> np.ndarray:
    if value in track.replaced:
        return load_constant(track.replaced[value])
    return _array(value, track.states[number], kernels)


def _run(segment: Segment, fed: Mapping[Value, Any]) -> dict[Value, Any]:
    """Outputs of the loaded model of a segment."""
    assert segment.session is not None
    feeds = {value.name: item for value, item in fed.items()}
    results = segment.session.run(feeds, [value.name for value in segment.outputs])
    return dict(zip(segment.outputs, results, strict=True))


def _array(value: Value, state: Mapping[Value, Any], kernels: Kernels) -> np.ndarray:
    if value.const is not None:
        return load_constant(value.const)
    found = state[value]
    if isinstance(found, np.ndarray):
        return found
    return kernels.array(found, value.type.dtype if isinstance(value.type, TensorType) else None)


def _carried(value: Value, state: Mapping[Value, Any], kernels: Kernels) -> Any:
    """The ``OrtValue`` of a value; arrays are wrapped anew, since a wrapper does not keep its array alive."""
    found = state[value]
    return kernels.value(found, value.dtype) if isinstance(found, np.ndarray) else found


def _declared(value: Value, carried: Any) -> Any:
    """Type of a value that comes into a segment: its element type, so that any run-time shape is taken."""
    if not holds_tensor(carried):
        return value.type
    if carried.data_type() == "tensor(string)":
        return TensorType(dtype_of_onnx(8))
    return TensorType(dtype_of_onnx(carried.element_type()))


def _find(graph: Graph, name: str) -> Value:
    if name in graph.tables:
        return graph.tables[name]
    try:
        return graph.value(name)
    except KeyError:
        known = [value.name for value in graph.outputs] + [v.name for node in graph.nodes for v in node.outputs]
        raise LadingError("T223", f"the graph has no value {name!r}", graph.name, suggest(name, known)) from None


def check_feed(value: Value, array: np.ndarray, sizes: dict[str, tuple[int, str]]) -> None:
    """Raise LadingError T222 when an array does not fit its input.

    Args:
        value: the input.
        array: what is fed.
        sizes: size and input of each symbolic dimension met so far; it is extended.
    """
    type_ = value.type
    found = f"{array.dtype}{list(array.shape)}"
    if not isinstance(type_, TensorType):
        raise LadingError("T225", f"input {value.name!r} of type {type_} cannot be fed", value.graph.name)
    if array.dtype != type_.dtype.numpy:
        hint = f"convert it with .astype({type_.dtype.numpy})"
        raise LadingError("T222", f"input {value.name!r} is {type_}, the array is {found}", value.graph.name, hint)
    if type_.shape is None:
        return
    fits = len(type_.shape) == array.ndim and all(
        dim == size if isinstance(dim, int) else dim.accepts(size)
        for dim, size in zip(type_.shape, array.shape, strict=True)
    )
    if not fits:
        raise LadingError(
            "T222", f"input {value.name!r} is {type_}, the array is {found}", value.graph.name, _legal(type_)
        )
    for dim, size in zip(type_.shape, array.shape, strict=True):
        if type(dim) is Dim:
            known, where = sizes.setdefault(dim.name, (size, value.name))
            if known != size:
                message = f"dimension {dim} is {known} in {where!r} and {size} in {value.name!r}"
                raise LadingError("T222", message, value.graph.name)


def _legal(type_: TensorType) -> str:
    dims = [dim for dim in type_.shape or () if type(dim) is Dim]
    ranges = [f"{dim} is {dim.low}..{'' if dim.high is None else dim.high}" for dim in dims]
    ranges += [f"{dim} is a multiple of {dim.multiple_of}" for dim in dims if dim.multiple_of > 1]
    return "; ".join(dict.fromkeys(ranges))


def _needed_inputs(graph: Graph, segments: list[Segment], wanted: Iterable[Value]) -> list[Value]:
    read = {value for segment in segments for value in segment.inputs} | set(wanted)
    return [value for value in graph.inputs if value in read]


# ---- functions ----


def evaluate(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    *,
    outputs: Sequence[str] | None = None,
    memory_limit: int | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Values of a graph by name, computed by onnxruntime; arguments and errors as for `Evaluator`."""
    return Evaluator(graph, outputs, memory_limit=memory_limit, threads=threads).run(feeds)


def evaluate_constants(nodes: Iterable[Node], *, limit: int = FOLD_BYTES) -> dict[str, np.ndarray]:
    """Results of those nodes that follow from constants alone, by value name.

    What numpy gives bit for bit is computed with it; one session computes all the rest.
    Nodes with an operand or result of more than `limit` bytes, random and stateful ones and what depends on them are
    left out, and so are results that are not tensors.

    Args:
        nodes: nodes of one graph in program order.
        limit: largest operand or result in bytes.

    Raises:
        LadingError: T220 when onnxruntime cannot compute one of them.
    """
    chosen: dict[Node, None] = {}
    for node in nodes:
        if _is_foldable(node, chosen, limit):
            chosen[node] = None
    if not chosen:
        return {}
    graph = next(iter(chosen)).graph
    assert graph is not None
    small = small_results(chosen, limit)
    names = [value.name for node in chosen for value in node.outputs if value.name not in small]
    found = Evaluator(graph, names).run({}) if names else {}
    return {**small, **{name: array for name, array in found.items() if array.nbytes <= limit}}


def _is_foldable(node: Node, chosen: Mapping[Node, None], limit: int) -> bool:
    definition = opdef(node)
    if definition is None or not definition.has("constant_foldable") or node.subgraphs:
        return False
    for value in node.inputs:
        if value is None:
            continue
        if value.const is None and value.producer not in chosen:
            return False
        if value.const is not None and value.const.nbytes > limit:
            return False
    types = [value.type for value in node.outputs]
    return all(t is None or (isinstance(t, TensorType) and (t.nbytes or 0) <= limit) for t in types)


__all__ = ["Evaluator", "Observer", "Track", "check_feed", "evaluate", "evaluate_constants", "sample_feeds"]
