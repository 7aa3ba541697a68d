"""Measure a finished model directory on a real MNN runtime: distance from a reference, perplexity, speed and memory.

The reference is computed once and serves any number of directories, settings and releases: its logits lie on disk, one
file a window, and the process that runs MNN compares there, so that neither holds more than one window of logits.

    reference = FloatReference(graph, windows, default_store())
    for folder in folders:
        found = measure(folder, reference, {"memory": "low"}, speed=Speed(prompt=256, decode=32))
        print(found.kl, found.kl_error, found.top1, found.perplexity, found.decode_tokens_per_s)
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from backends.mnn.run.native import ModelRun, run_child
from backends.mnn.target.environments import installed_version
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.base.store import FolderStore, Store
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.token_feeds import window_feeds
from ir.graph.graph import Graph
from ir.quant.statistics.moments import windows_digest
from ir.text.printer import print_graph

SCORER = Path(__file__).resolve().parents[1] / "run" / "scorer.py"

MEMORY_LIMIT = 256 << 20
"""Bytes of constants that one segment of the reference may hold."""

LOGITS_LIMIT = 512 << 20
"""Bytes of logits that are computed at once; each group of windows reads the weights anew."""

NEUTRAL: Mapping[str, Any] = {"all_logits": True, "use_mmap": False, "sampler_type": "greedy"}
"""Settings that every measurement adds to those of the directory: they change no logit."""


class FloatReference:
    """Logits of a graph in float arithmetic over token windows, computed when first asked for and kept on disk.

    Attributes:
        windows: int32[n] token ids of each window; each is read from an empty cache.
    """

    def __init__(
        self,
        graph: Graph,
        windows: Sequence[Sequence[int] | np.ndarray],
        store: Store | None = None,
        *,
        threads: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            graph: from token ids to logits of every position, or a graph with its `DynamicInputs` recorded; it must not
                change while the reference is used.
            windows: token ids, two or more a window.
            store: where logits are kept for later runs, by digest of graph and window, and held as long as this object
                lives; None for a temporary folder that goes when this object goes.
            threads: threads of onnxruntime; None lets it choose.
            progress: told what happens.
        """
        self.windows = [np.asarray(window, np.int32).reshape(-1) for window in windows]
        if not self.windows or min(map(len, self.windows)) < 2:
            raise ValueError("a reference needs windows of two or more tokens")
        self._graph = graph
        self._is_temporary = store is None
        if store is None:
            temporary = ExitStack()
            store = FolderStore(temporary.enter_context(scratch_folder()))
            weakref.finalize(self, temporary.close)
        self._store = store
        self._threads = threads
        self._say = progress or (lambda what: None)
        self._paths: list[Path] | None = None
        self._held: ExitStack | None = None

    def paths(self) -> list[Path]:
        """A file of float32[tokens, vocabulary] for `numpy.load` for each window, computed now where it is missing.

        Raises:
            LadingError: Q470 they cannot be kept; T220 to T225 the graph cannot be evaluated.
        """
        if self._paths is None:
            stem = "window" if self._is_temporary else graph_digest(self._graph)
            digests = [windows_digest([window]) for window in self.windows]
            names = [f"logits/{stem}-{digest}" for digest in digests]
            if self._held is None:
                self._held = ExitStack()
                self._held.enter_context(self._store.holding())
                weakref.finalize(self, self._held.close)
            missing = {
                name: window for name, window in zip(names, self.windows, strict=True) if self._store.find(name) is None
            }
            if missing:
                self._compute(missing)
            self._paths = [self._path(name) for name in names]
        return self._paths

    def _path(self, name: str) -> Path:
        kept = self._store.find(name)
        if kept is None:
            raise LadingError("Q470", "reference logits vanished or changed after they were written", where=name)
        return kept.path

    def logits(self, number: int) -> np.ndarray:
        """float32[tokens, vocabulary] of a window, mapped from disk."""
        return np.load(self.paths()[number], mmap_mode="r", allow_pickle=False)

    def _compute(self, missing: Mapping[str, np.ndarray]) -> None:
        self._say(f"evaluating the reference on {len(missing)} windows")
        graph, name = self._graph, self._graph.outputs[0].name
        width = (graph.outputs[0].shape or (None,))[-1]
        width = width if isinstance(width, int) else 1 << 18
        evaluator = Evaluator(graph, memory_limit=MEMORY_LIMIT, threads=self._threads)
        for group in _groups(list(missing.items()), max(1, LOGITS_LIMIT // (4 * width))):
            results = evaluator.run_many(window_feeds(graph, [window for _, window in group]))
            for (entry, window), result in zip(group, results, strict=True):
                self._save(entry, result[name].reshape(len(window), -1))

    def _save(self, name: str, logits: np.ndarray) -> None:
        hint = "free some space, or measure with fewer or shorter windows"
        with self._store.put(name, "Q470", "reference logits", hint) as scratch, scratch.open("wb") as file:
            np.save(file, np.ascontiguousarray(logits, np.float32))


def _groups(items: list[tuple[str, np.ndarray]], most: int) -> list[list[tuple[str, np.ndarray]]]:
    """The items in order, in groups of at most so many tokens (or of one item)."""
    groups: list[list[tuple[str, np.ndarray]]] = []
    tokens = 0
    for item in items:
        tokens += len(item[1])
        if not groups or tokens > most:
            groups.append([])
            tokens = len(item[1])
        groups[-1].append(item)
    return groups


def graph_digest(graph: Graph) -> str:
    """Digest of what a graph computes: operators and the bytes of constants, which are read; not where files lie."""
    state = blake2b(digest_size=16)
    for item in (*graph.inputs, *graph.nodes, *(sub for node in graph.nodes for sub in node.subgraphs)):
        text = print_graph(item) if isinstance(item, Graph) else repr(item)
        state.update(f"{text}\n".encode())
    state.update(repr([value.name for value in graph.outputs]).encode())
    for name, value in sorted(graph.consts.items()):
        state.update(f"{name} {value.tensor.digest()}\n".encode())
    return state.hexdigest()


@dataclass(frozen=True)
class Speed:
    """How speed is taken: tokens of the prompt (from the first windows), tokens decoded, repetitions."""

    prompt: int = 256
    decode: int = 32
    repeat: int = 3


@dataclass(frozen=True)
class Measured:
    """What one directory does with one set of settings on one release.

    Attributes:
        release: the MNN release, as it calls itself.
        settings: what was merged over the directory's own settings.
        positions: logits rows compared.
        kl: mean KL(reference || measured) in nats per position.
        kl_error: standard error of that mean over the windows' positions.
        top1: share of positions at which both put the same token first.
        perplexity, perplexity_reference: exp of the mean negative log-likelihood of the next token.
        nll_error: standard error of the mean difference of both negative log-likelihoods.
        max_abs, max_logit: largest absolute difference of a logit; largest absolute reference logit.
        median_abs: median over positions of the largest absolute difference of a logit.
        load_s: seconds from opening to ready.
        prefill_tokens_per_s, decode_tokens_per_s: medians; None when speed was not asked for.
        prefill_spread, decode_spread: tokens a second of the slowest and of the fastest repetition; None likewise.
        peak_rss: highest resident bytes of the process after loading and the speed runs, before scoring begins.
    """

    release: str
    settings: Mapping[str, Any]
    positions: int
    kl: float
    kl_error: float
    top1: float
    perplexity: float
    perplexity_reference: float
    nll_error: float
    max_abs: float
    max_logit: float
    median_abs: float
    load_s: float
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_spread: tuple[float, float] | None = None
    decode_spread: tuple[float, float] | None = None
    peak_rss: int | None = None
    rows: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    """float64 numbers for each position, all windows in order, by the names that ``scorer.py`` gives them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, without those of single positions."""
        found = asdict(self)
        del found["rows"]
        return {**found, "settings": dict(self.settings)}


def measure(
    folder: Path,
    reference: FloatReference,
    settings: Mapping[str, Any] | None = None,
    *,
    tail: int = 0,
    speed: Speed | None = None,
    version: str | None = None,
    interpreter: Path | str | None = None,
    timeout_s: float = 1800,
) -> Measured:
    """Run every window of a reference on a model directory in a fresh process and compare the logits.

    Args:
        folder: the model directory.
        reference: what to compare with.
        settings: runtime settings such as ``memory``, ``precision``, ``dynamic_option``, ``attention_mode``,
            ``thread_num``, merged over those in ``config.json``; None for the settings that are shipped.
        tail: how many of the last tokens of each window are decoded one at a time through the key/value cache; the
            others are read in one call. With dynamic activations both differ.
        speed: also take speeds, before the windows; None for none.
        version: MNN release of the interpreter; None for the installed one.
        interpreter: Python that has the release; None for this one.
        timeout_s: limit for the whole run.

    Raises:
        LadingError: B667 crash, B668 time limit, B669 an exception of the binding; what `FloatReference.paths` raises.
    """
    if not 0 <= tail < min(map(len, reference.windows)):
        raise ValueError(f"{tail} tokens cannot be decoded in every window")
    paths = reference.paths()
    actions: list[dict[str, Any]] = [] if speed is None else [_bench(reference.windows, speed)]
    actions += [
        {"do": "score", "ids": window.tolist(), "tail": tail, "reference": str(path.absolute())}
        for window, path in zip(reference.windows, paths, strict=True)
    ]
    config = config_for(folder, version or installed_version() or "")
    request = {"config": str(config.resolve()), "overrides": {**NEUTRAL, **(settings or {})}, "actions": actions}
    child = run_child(SCORER, request, interpreter=interpreter or sys.executable, timeout_s=timeout_s)
    load = next((record for record in child.records if record["index"] < 0), {})
    done = {record["index"]: record for record in child.records}
    run = ModelRun(tuple(actions), child, load, tuple(done.get(index) for index in range(len(actions))))
    return _measured(run.require(str(config)), dict(settings or {}), speed is not None)


def _bench(windows: Sequence[np.ndarray], speed: Speed) -> dict[str, Any]:
    stream = np.concatenate(windows)
    prompt = np.resize(stream, speed.prompt).tolist()
    return {"do": "bench", "prompt": prompt, "tokens": speed.decode, "repeat": speed.repeat}


def _measured(run: ModelRun, settings: Mapping[str, Any], timed: bool) -> Measured:
    names = ("kl", "gap", "scale", "hit", "nll", "nll_reference")
    arrays, first = run.child.arrays, int(timed)
    rows = {
        name: np.concatenate([arrays[f"{index}/{name}"] for index in range(first, len(run.actions))]) for name in names
    }
    bench: Mapping[str, Any] = (run.results[0] if timed else None) or {}
    count = len(rows["kl"])
    return Measured(
        release=str(run.load["version"]),
        settings=settings,
        positions=count,
        kl=float(rows["kl"].mean()),
        kl_error=float(rows["kl"].std() / np.sqrt(count)),
        top1=float(rows["hit"].mean()),
        perplexity=float(np.exp(rows["nll"].mean())),
        perplexity_reference=float(np.exp(rows["nll_reference"].mean())),
        nll_error=float((rows["nll"] - rows["nll_reference"]).std() / np.sqrt(len(rows["nll"]))),
        max_abs=float(rows["gap"].max()),
        max_logit=float(rows["scale"].max()),
        median_abs=float(np.median(rows["gap"])),
        load_s=float(run.load["load_s"]),
        prefill_tokens_per_s=bench.get("prefill_tokens_per_s"),
        decode_tokens_per_s=bench.get("decode_tokens_per_s"),
        prefill_spread=_spread(bench.get("prefill_s", ()), 1, len(run.actions[0].get("prompt", ()))),
        decode_spread=_spread(bench.get("decode_s", ()), run.actions[0].get("tokens", 1), 1),
        peak_rss=(bench or run.load).get("peak_rss"),
        rows=rows,
    )


def _spread(seconds: Sequence[float], steps: int, tokens: int) -> tuple[float, float] | None:
    """Tokens a second of the slowest and of the fastest repetition, by the median of its steps.

    Args:
        seconds: of every step of all repetitions.
        steps: steps of one repetition.
        tokens: tokens of one step.
    """
    rates = [tokens / float(np.median(seconds[at : at + steps])) for at in range(0, len(seconds), steps)]
    return (min(rates), max(rates)) if rates else None


__all__ = ["FloatReference", "Measured", "Speed", "graph_digest", "measure"]
