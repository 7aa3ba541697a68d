"""Run a finished model directory on the installed MNN and measure how far its logits are from the reference.

Two references: the original float weights (what quantization cost) and the stored weights decoded to float (what the
runtime's own arithmetic adds). Both are evaluated in onnxruntime in segments, so that memory stays far below the model's
size; MNN runs in a child process. Greedy decoding through the KV cache is compared without decoding twice: the reference
reads prompt and decoded tokens in one pass, and its first choice at each step must be the token that MNN chose.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends.mnn.configs import config_for
from backends.mnn.metrics import Distance, DistanceMeter, PerplexityMeter
from backends.mnn.native import EXACT_CONFIG, run_model
from ir.decisions import DynamicInputs, PrecisionPlan
from ir.diag import Diagnostic, LadingError
from ir.evaluate import Evaluator
from ir.graph import Graph

MEMORY_LIMIT = 256 << 20
"""Bytes of constants that one segment of the reference may hold."""

WINDOW = 256
"""Tokens per window of the perplexity text; each window starts from an empty cache."""

EXACT_BAR = 1e-3
"""Largest allowed logit error, per unit of the larger of 1 and a tenth of the largest logit, against decoded weights."""

KL_BARS = {32: 1e-5, 16: 1e-3, 8: 0.02, 7: 0.04, 6: 0.08, 5: 0.2, 4: 0.6, 3: 3.0, 2: float("inf")}
"""Largest allowed mean KL divergence from the float model, by the narrowest width of a layer."""


@dataclass(frozen=True)
class Level:
    """How much is run: prompts, decoded tokens per prompt, windows of the perplexity text."""

    prompts: int
    decode: int
    windows: int


LEVELS = {"quick": Level(2, 48, 2), "full": Level(4, 64, 16)}


@dataclass(frozen=True)
class Measurement:
    """One comparison of a real run with a reference.

    Attributes:
        release, platform: what ran where.
        settings: memory, precision and threads of the run.
        reference: ``float`` or ``decoded weights``.
        prompt_tokens: tokens of all prompts.
        distance: over all positions of prompts, decoding and, against the float model, text.
        decode_tokens, decode_equal: greedy tokens and how many of them came before the first difference, over prompts.
        perplexity, perplexity_reference: on the text, or None.
    """

    release: str
    platform: str
    settings: Mapping[str, Any]
    reference: Literal["float", "decoded weights"]
    prompt_tokens: int
    distance: Distance
    decode_tokens: int
    decode_equal: int
    perplexity: float | None = None
    perplexity_reference: float | None = None


@dataclass
class Verification:
    """All measurements of one artefact on one release, and what is below its bar."""

    measurements: list[Measurement] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    load_s: float = 0.0
    sample: list[int] = field(default_factory=list)
    """Ids that the runtime decoded greedily after the first prompt."""

    def require(self) -> None:
        """Raise the problems, if there are any."""
        if self.problems:
            raise LadingError.of(self.problems)


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        folder: the model directory.
        original: the float graph from token ids to whole-sequence logits.
        final: the graph that was emitted.
        prompts: token ids of each prompt.
        text: token ids of the perplexity text; empty for none.
        settings: runtime settings written into the configuration.
    """

    folder: Path
    original: Graph
    final: Graph
    prompts: Sequence[Sequence[int]]
    text: Sequence[int]
    settings: Mapping[str, Any]


def verify(
    subject: Subject,
    level: Level,
    *,
    version: str,
    interpreter: Path | str | None = None,
    max_kl: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Run and compare.

    Args:
        subject: what to run and what to compare with.
        level: how much to run.
        version: MNN release of the interpreter.
        interpreter: Python that has the release; None for this one.
        max_kl: bar for the KL divergence from the float model; None takes it from `KL_BARS`.
        progress: told what happens.

    Raises:
        LadingError: B667 to B669 when the runtime fails; distances below the bar are `Verification.problems`.
    """
    say = progress or (lambda what: None)
    say("running on MNN")
    exact = _Run(subject, level, version, interpreter, EXACT_CONFIG)
    shipped = _Run(subject, level, version, interpreter, {"all_logits": True})
    sequences = [run + list(decoded[:-1]) for run, decoded in zip(exact.prompts, exact.decoded, strict=True)]
    say("evaluating the float reference")
    floats = _reference_float(subject.original, sequences + shipped.sequences() + exact.windows)
    say("evaluating the decoded weights")
    decoded = _reference_decoded(subject.final, sequences)
    count = len(sequences)
    found = Verification(load_s=exact.load_s, sample=list(exact.decoded[0]) if exact.decoded else [])
    windows = floats[2 * count :]
    perplexity = _perplexity(exact.windows, exact.window_logits), _perplexity(exact.windows, windows)
    found.measurements = [
        exact.measure("decoded weights", decoded, [], (None, None)),
        exact.measure("float", floats[:count], windows, perplexity),
        shipped.measure(
            "float",
            floats[count : 2 * count],
            windows,
            (_perplexity(exact.windows, shipped.window_logits), perplexity[1]),
        ),
    ]
    found.problems = _below_bar(found.measurements, subject.final, max_kl)
    return found


class _Run:
    """One child process: prefill with all rows and greedy decoding of every prompt, then the windows of the text."""

    def __init__(
        self, subject: Subject, level: Level, version: str, interpreter: Path | str | None, overrides: Mapping[str, Any]
    ) -> None:
        self.version = version
        self.settings = {**subject.settings, **{k: v for k, v in overrides.items() if k in subject.settings}}
        context = _steady_context(subject.original)
        self.prompts = [list(prompt[: context // 2]) for prompt in subject.prompts[: level.prompts]]
        width = min(WINDOW, context)
        cuts = range(0, len(subject.text) - width + 1, width)
        self.windows = [list(subject.text[cut : cut + width]) for cut in cuts][: level.windows]
        actions: list[dict[str, Any]] = [
            {"do": "greedy", "prompt": prompt, "tokens": min(level.decode, context - len(prompt)), "keep": "all"}
            for prompt in self.prompts
        ]
        actions += [{"do": "forward", "pieces": [window]} for window in self.windows]
        extra = {} if interpreter is None else {"interpreter": interpreter}
        config = config_for(subject.folder, version)
        run = run_model(config, actions, overrides=overrides, timeout_s=1800, **extra).require(str(config))
        self.load_s = float(run.load["load_s"])
        results = [dict(item) for item in run.results if item is not None]
        self.decoded = [item["ids"] for item in results[: len(self.prompts)]]
        self.logits = [np.concatenate(item["logits"]) for item in results[: len(self.prompts)]]
        self.window_logits = [item["logits"][0] for item in results[len(self.prompts) :]]

    def sequences(self) -> list[list[int]]:
        """What the model read: each prompt and all decoded tokens but the last."""
        return [prompt + list(ids[:-1]) for prompt, ids in zip(self.prompts, self.decoded, strict=True)]

    def measure(
        self,
        reference: Literal["float", "decoded weights"],
        wanted: Sequence[np.ndarray],
        windows: Sequence[np.ndarray],
        perplexity: tuple[float | None, float | None],
    ) -> Measurement:
        """Compare with reference logits of each sequence, and of the windows where they are given."""
        meter = DistanceMeter()
        if windows:
            for rows, logits in zip(windows, self.window_logits, strict=True):
                meter.add(rows, logits)
        equal = total = 0
        for prompt, ids, logits, rows in zip(self.prompts, self.decoded, self.logits, wanted, strict=True):
            meter.add(rows, logits)
            chosen = rows[len(prompt) - 1 :].argmax(axis=1)
            same = [int(a) == int(b) for a, b in zip(chosen, ids, strict=True)]
            equal += same.index(False) if False in same else len(same)
            total += len(same)
        return Measurement(
            self.version,
            f"{platform.system()} {platform.machine()}",
            self.settings,
            reference,
            sum(map(len, self.prompts)),
            meter.result(),
            total,
            equal,
            *perplexity,
        )


def _steady_context(graph: Graph) -> int:
    """Longest sequence whose logits do not depend on how it is cut into calls.

    Ropes whose frequencies change with the length leave cached keys as they were rotated, so beyond that length decoding
    through the cache and reading at once differ by design.
    """
    context, steady = graph.metadata["context"], graph.metadata["rope"]["steady"]
    return context if steady is None else min(context, steady)


def _reference_float(graph: Graph, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    name = graph.inputs[0].name
    feeds = [{name: np.array([ids], dtype=np.int64)} for ids in sequences]
    return _logits(graph, feeds)


def _reference_decoded(graph: Graph, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    fact: DynamicInputs = graph.facts[DynamicInputs.name]
    feeds = [fact.feeds(graph, np.array(ids), index=0) for ids in sequences]
    return _logits(graph, feeds)


def _logits(graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    name = graph.outputs[0].name
    results = Evaluator(graph, memory_limit=MEMORY_LIMIT).run_many(feeds)
    return [result[name].reshape(-1, result[name].shape[-1]) for result in results]


def _perplexity(windows: Sequence[Sequence[int]], logits: Sequence[np.ndarray]) -> float | None:
    if not windows:
        return None
    meter = PerplexityMeter()
    for window, rows in zip(windows, logits, strict=True):
        meter.add(rows, np.array(window))
    return meter.result()


def _below_bar(measurements: Sequence[Measurement], graph: Graph, max_kl: float | None) -> list[Diagnostic]:
    decoded, exact, shipped = measurements
    problems = []
    bar = EXACT_BAR * max(1.0, decoded.distance.max_logit / 10)
    if not decoded.distance.max_abs <= bar:
        problems.append(
            Diagnostic(
                "V700",
                f"MNN {decoded.release} computes other logits than the stored weights give: "
                f"{decoded.distance.max_abs:.3g} off where {bar:.3g} is allowed",
                hint="the model directory was not written; please report the checkpoint's configuration",
            )
        )
    plan: PrecisionPlan = graph.facts[PrecisionPlan.name]
    narrowest = min((item.bits for item in plan.storage.values()), default=32)
    limit = KL_BARS[narrowest] if max_kl is None else max_kl
    for item, what in ((exact, "exact arithmetic"), (shipped, "the shipped settings")):
        if not item.distance.kl <= limit:
            problems.append(
                Diagnostic(
                    "V701",
                    f"KL divergence {item.distance.kl:.3g} from the float model with {what} is above {limit:.3g}, "
                    f"the bar for {narrowest} bits",
                    hint="use more bits or smaller blocks, keep the worst weights with keep=..., or set --max-kl",
                )
            )
    return problems
