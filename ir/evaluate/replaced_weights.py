"""How much the predictions of a model change when weights are replaced, for many replacements in one pass over it.

Each variant replaces some constants. Its values are carried beside those of the float graph from the first segment that
reads a replaced constant on, so that a weight is loaded once for all variants, and a variant costs nothing before it
differs. The product with the logits matrix is computed a piece of the vocabulary at a time.

Other machines take some of the variants each, and where there are fewer of them than machines, some of the windows. Each
evaluates the float graph for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise, repeat

import numpy as np

from ir.base.diag import LadingError
from ir.base.executor import SERIAL, JobExecutor, here, run_jobs
from ir.base.store import UNFINISHED, Store, default_store, using_store
from ir.evaluate.divergence import Divergence, PieceMeter, WindowMeter, combine
from ir.evaluate.evaluator import Evaluator, Track
from ir.evaluate.onnxruntime_session import give_memory_back
from ir.evaluate.segments import Segment
from ir.evaluate.token_feeds import window_feeds
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Node
from ir.quant.weight import keep_all
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import transposed
from ir.text.parser import parse
from ir.text.printer import print_graph

Variant = Mapping[str, Tensor]
"""Other contents for constants, by name, in the orientation of the graph."""

PIECE_BYTES = 16 << 20
"""Largest piece of the logits matrix, in single precision."""
LEAST_PIECE = 256
"""Tokens in a piece of the logits matrix, at least."""
FEW = 8
"""Variants that a machine is given at least, where there are more of them: each reads the whole model."""
POSITIONS = 128
"""Positions that a job compares at once."""
TOKENS = 4096
"""Tokens of the vocabulary that are compared at once where logits are there as a whole."""


def divergences(
    graph: Graph,
    windows: Sequence[np.ndarray],
    variants: Sequence[Variant],
    *,
    memory_limit: int = 256 << 20,
    threads: int | None = None,
    executor: Executor = SERIAL,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Divergence]:
    """Distance of each variant's predictions from those of the graph as it is.

    Args:
        graph: a decoder that gives logits ``[1, positions, vocabulary]``, with recorded dynamic inputs, or with one
            integer input for token ids.
        windows: int[n] token ids; predictions at all positions are compared.
        variants: replaced constants; a table of the graph that is replaced changes the embedding rows that are fed.
        memory_limit: bytes of constants to hold at once. The values of all variants come on top: about ``positions x
            hidden size x 4`` bytes each.
        threads: threads of the evaluation; None for one per processor.
        executor: quantizes replacements of slow methods, and compares predictions.
        progress: called with (done, total, what).

    Raises:
        ValueError: a replaced name is no constant of the graph, or its replacement has another shape.
        LadingError: Q437, Q438 the windows cannot be fed, and whatever evaluation and the replacements raise.
    """
    replaced = [_checked(graph, variant) for variant in variants]
    keep_all((tensor for variant in replaced for tensor in variant.values()), executor)
    tell = progress or (lambda done, total, what: None)
    piece = _piece_of(graph, replaced)
    if isinstance(executor, JobExecutor) and executor.shares_files and replaced:
        parts = _spread(graph, windows, replaced, (memory_limit, threads or executor.threads, piece), executor, tell)
    else:
        count = threads or os.cpu_count() or 1
        parts = _Comparison(graph, windows, replaced, memory_limit, count, piece, executor, tell).run()
    return [combine([part for window in found for part in window]) for found in parts]


def _checked(graph: Graph, variant: Variant) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in variant.items():
        value = graph.consts.get(name)
        if value is None:
            raise ValueError(f"{name!r} is not a constant of the graph")
        if tensor.type.shape != value.shape:
            raise ValueError(f"the replacement of {name!r} is {tensor.type}, the constant is {value.type}")
        found[name] = cast(tensor, value.dtype) if tensor.type.dtype != value.dtype else tensor
    return found


def head_of(graph: Graph) -> Node | None:
    """The product with a constant matrix that gives the logits; None when they are computed otherwise."""
    node = graph.outputs[0].producer
    if node is None or node.op != "MatMul":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const is None or len(weight.shape or ()) != 2:
        return None
    return node if weight.dtype.is_float else None


def _piece_of(graph: Graph, variants: Sequence[Variant]) -> int:
    """Tokens of the vocabulary in a piece of the logits matrices, of which there may be several."""
    head = head_of(graph)
    if head is None:
        return TOKENS
    weight = head.operand(1)
    heads = {weight.tensor, *(variant[weight.name] for variant in variants if weight.name in variant)}
    return max(PIECE_BYTES // (4 * weight.sizes[0] * len(heads)), LEAST_PIECE)


Parts = list[list[list[dict[str, np.ndarray]]]]
"""For each variant and window what `WindowMeter.results` gives of each run of positions."""


@dataclass(frozen=True)
class _Text:
    """Where the text of a graph is."""

    store: Store
    name: str


@dataclass(frozen=True)
class _PartJob:
    """Some variants on some windows; plain data.

    Attributes:
        graph: where its text is.
        variants: numbers and replaced constants.
        windows: the first of them, and token ids.
        limits: bytes of constants, threads, tokens of a piece of the vocabulary.
    """

    graph: _Text
    variants: tuple[tuple[int, dict[str, Tensor]], ...]
    windows: tuple[int, tuple[np.ndarray, ...]]
    limits: tuple[int, int, int]

    alone = True

    def run(self) -> Parts:
        """What the meters found."""
        with using_store(self.graph.store):
            graph = _opened(self.graph)
            variants = [variant for _, variant in self.variants]
            return _Comparison(graph, self.windows[1], variants, *self.limits, here(), lambda *_: None).run()


@lru_cache(maxsize=1)
def _opened(text: _Text) -> Graph:
    kept = text.store.find(text.name)
    if kept is None:
        message = "the graph of a comparison that is not finished is no longer in the cache folder"
        raise LadingError("Q430", message, where=text.name, hint="run the same command again")
    return parse(kept.read().decode())


def _run_part(job: _PartJob) -> Parts:
    return job.run()


def _spread(
    graph: Graph,
    windows: Sequence[np.ndarray],
    variants: Sequence[dict[str, Tensor]],
    limits: tuple[int, int, int],
    executor: JobExecutor,
    progress: Callable[[int, int, str], None],
) -> Parts:
    """Compare on other machines."""
    store, text = default_store(), print_graph(graph)
    name = f"{UNFINISHED}/{blake2b(text.encode(), digest_size=16).hexdigest()}.graph"
    with store.put(name, "Q431", "the graph of a comparison") as scratch:
        scratch.write_text(text, encoding="utf-8")
    turns = min(executor.width, max(min(len(variants), FEW), len(variants) // FEW))
    runs = min(len(windows), -(-executor.width // turns))
    edges = np.linspace(0, len(windows), runs + 1).astype(int).tolist()
    # Late variants cost less than early ones: each machine has some of both.
    groups = [tuple(enumerate(variants))[turn::turns] for turn in range(turns)]
    jobs = [
        _PartJob(_Text(store, name), group, (first, tuple(windows[first:last])), limits)
        for group in groups
        for first, last in pairwise(edges)
    ]
    found: Parts = [[[] for _ in windows] for _ in variants]
    what = f"comparing {len(variants)} variants"
    progress(0, len(jobs), what)
    for done, (job, parts) in enumerate(zip(jobs, run_jobs(executor, _run_part, jobs), strict=True), 1):
        for (number, _), of_windows in zip(job.variants, parts, strict=True):
            found[number][job.windows[0] : job.windows[0] + len(of_windows)] = of_windows
        progress(done, len(jobs), what)
    store.remove(name)
    return found


class _Comparison:
    """One evaluation of the graph and some variants."""

    def __init__(
        self,
        graph: Graph,
        windows: Sequence[np.ndarray],
        variants: Sequence[dict[str, Tensor]],
        memory_limit: int,
        threads: int,
        piece: int,
        executor: Executor,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.graph = graph
        self.windows = windows
        self.variants = variants
        self.progress = progress
        self.piece = piece
        self.executor = executor
        self.memory_limit = memory_limit
        self.head = head_of(graph)
        self.wanted = self.head.operand(0) if self.head is not None else graph.outputs[0]
        self.evaluator = Evaluator(
            graph,
            [self.wanted.name],
            memory_limit=memory_limit,
            threads=threads,
            replaceable=dict.fromkeys(name for variant in variants for name in variant),
        )

    def run(self) -> Parts:
        """Evaluate segment by segment, then compare."""
        segments = self.evaluator.segments
        what, steps = f"comparing {len(self.variants)} variants", len(segments) + 1
        base = self.evaluator.track(window_feeds(self.graph, self.windows))
        tracks = self._fed_otherwise()
        for place, segment in enumerate(segments):
            self.progress(place, steps, what)
            for number, variant in enumerate(self.variants):
                if number not in tracks and _reads(segment, variant):
                    tracks[number] = base.fork({self.graph.consts[name]: item for name, item in variant.items()})
            self.evaluator.advance(place, [base, *tracks.values()])
        self.progress(len(segments), steps, what)
        results = self._compare(base, [tracks.get(number, base) for number in range(len(self.variants))])
        self.progress(steps, steps, what)
        return results

    def _fed_otherwise(self) -> dict[int, Track]:
        """The variants whose embedding rows come from another table."""
        tables = {value.name for value in self.graph.tables.values()}
        if DynamicInputs.name not in self.graph.facts:
            return {}
        return {
            number: self.evaluator.track(window_feeds(self.graph, self.windows, variant), variant)
            for number, variant in enumerate(self.variants)
            if not tables.isdisjoint(variant)
        }

    def _compare(self, base: Track, finals: Sequence[Track]) -> Parts:
        """Distances from the last values of every version."""
        meters = [_Meters(window, len(finals), self.executor) for window in self.windows]
        if self.head is None:
            self._compare_logits(base, finals, meters)
        else:
            self._compare_products(base, finals, meters)
        return [[item.results(number) for item in meters] for number in range(len(finals))]

    def _compare_logits(self, base: Track, finals: Sequence[Track], meters: Sequence[_Meters]) -> None:
        """Logits that the graph computes as a whole."""
        for place, meter in enumerate(meters):
            reference = self._rows(base, place)
            versions = [reference if track is base else self._rows(track, place) for track in finals]
            for start in range(0, reference.shape[1], TOKENS):
                stop = start + TOKENS
                meter.add(start, reference[:, start:stop], [part[:, start:stop] for part in versions])

    def _compare_products(self, base: Track, finals: Sequence[Track], meters: Sequence[_Meters]) -> None:
        """Logits as products with pieces of the logits matrix, each read once."""
        assert self.head is not None
        weight = self.head.operand(1)
        own = [variant.get(weight.name) for variant in self.variants]
        heads = dict.fromkeys([weight.tensor, *(tensor for tensor in own if tensor is not None)])
        last = [[self._rows(track, place) for place in range(len(meters))] for track in (base, *finals)]
        count = weight.sizes[1]
        for start in range(0, count, self.piece):
            stop = min(start + self.piece, count)
            rows = {tensor: _vocabulary(tensor, start, stop) for tensor in heads}
            for place, meter in enumerate(meters):
                reference = last[0][place] @ rows[weight.tensor].T
                versions = (
                    reference
                    if track is base and tensor is None
                    else last[number + 1][place] @ rows[tensor or weight.tensor].T
                    for number, (track, tensor) in enumerate(zip(finals, own, strict=True))
                )
                meter.add(start, reference, versions)
            give_memory_back()

    def _rows(self, track: Track, place: int) -> np.ndarray:
        """float32[positions, features]: what the evaluation ended with for a window."""
        found = self.evaluator.fetch(track, place)[self.wanted.name]
        rows = found.reshape(-1, found.shape[-1]).astype(np.float32, copy=False)
        if len(rows) != len(self.windows[place]):
            raise ValueError(f"the graph predicts {len(rows)} positions of {len(self.windows[place])}")
        return rows


def _reads(segment: Segment, names: Container[str]) -> bool:
    """True when a segment reads one of the constants."""
    values = [*segment.constants, *(v for node in segment.nodes for v in node.inputs if v is not None)]
    return any(value.const is not None and value.name in names for value in values)


def _vocabulary(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """float32[tokens, features]: columns `start` to `stop` of a logits matrix."""
    return transposed(tensor).rows(start, stop).astype(np.float32, copy=False)


class _Meters:
    """The meters of one window, one for each run of positions that a job compares at once.

    A job gives back the meter it was given, so that it may be done in another process.
    """

    def __init__(self, window: np.ndarray, versions: int, executor: Executor) -> None:
        ids = np.asarray(window).astype(np.int64)
        self._executor = executor
        self._spans = [slice(at, min(at + POSITIONS, len(ids))) for at in range(0, len(ids), POSITIONS)]
        self._meters = [
            WindowMeter(span.stop - span.start, ids[span.start + 1 : span.stop + 1], versions) for span in self._spans
        ]

    def add(self, start: int, reference: np.ndarray, versions: Iterable[np.ndarray]) -> None:
        """Count in one piece of the vocabulary."""
        parts = [reference[span] for span in self._spans]
        pieces = list(self._executor.map(WindowMeter.add, self._meters, repeat(start), parts))
        for number, logits in enumerate(versions):
            parts = [logits[span] for span in self._spans]
            pieces = list(self._executor.map(PieceMeter.add, pieces, repeat(number), parts))
        self._meters = [piece.meter for piece in pieces]

    def results(self, version: int) -> list[dict[str, np.ndarray]]:
        """What `WindowMeter.results` gives, for each run of positions."""
        return [meter.results(version) for meter in self._meters]


__all__ = ["Divergence", "Variant", "divergences", "head_of"]
