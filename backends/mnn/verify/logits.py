"""Run a finished model directory on the installed MNN and measure how far its logits are from references.

Three references: the original float weights (what quantization cost), the stored weights decoded to float (what exact
arithmetic must give) and the runtime model: the stored weights with activations quantized as the runtime quantizes them
under the shipped settings (`backends.mnn.dialect.activations`). All are evaluated in onnxruntime in segments, so that
memory stays far below the model's size; MNN runs in child processes. Greedy decoding through the KV cache is compared
without decoding twice: the reference reads prompt and decoded tokens in one pass, and its first choice at each step
must be the token that MNN chose.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends.bars import Loss, exact_bar, judged
from backends.mnn.card import last_size
from backends.mnn.lower.simulated import integer_weight, simulated
from backends.mnn.run.native import EXACT_CONFIG, run_model
from backends.mnn.sampling.translate import Sampler
from backends.mnn.verify.sampling import Trial, judge, require_sampled, trial
from backends.mnn.write.configs import config_for, deciding
from backends.verdict import Implementation, Reading, compare_reading, compared, untrained
from frontends.checkpoint.original import Original
from ir.base.diag import Diagnostic, LadingError
from ir.evaluate.divergence import Distance, DistanceMeter, PairedLoss, PairedLossMeter, PerplexityMeter
from ir.evaluate.evaluator import Evaluator
from ir.evaluate.token_feeds import window_feeds
from ir.evaluate.untrained import Guesses
from ir.facts.inputs import DynamicInputs
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph

MEMORY_LIMIT = 256 << 20
"""Bytes of constants that one segment of a reference may hold."""

LOGITS_LIMIT = 256 << 20
"""Bytes of one set of logits of the perplexity text that is held at once; there are up to five sets."""

LONGEST = 2048
"""Tokens of a sequence of a model that does not say how long its sequences may be."""

WINDOW = 256
"""Tokens per window of the perplexity text; each window starts from an empty cache."""

ACTIVATION_BAR = 0.15
"""Largest allowed difference of measured and predicted activation loss, relative to the predicted one; besides, five
standard errors of the difference are allowed. Of 105 combinations of models, widths and settings none was above
0.08."""

EXACT_LOSS = 1e-8
"""KL divergence, in nats, that the rounding of floats may cause."""

MODELLED = ("x86_64", "AMD64")
"""Machines whose activation quantization is the one that is modelled; on others the prediction is not judged."""

ReferenceName = Literal["float", "decoded weights", "runtime model", "transformers", "onnxruntime"]


@dataclass(frozen=True)
class Level:
    """How much is run: prompts, decoded tokens per prompt, windows of the perplexity text.

    `sampled`: tokens drawn with the settings as written.
    `choices`: also measure other runtime settings, and predict the loss of exact arithmetic from the decoded weights.
    `original`: also compare with the original implementation of a checkpoint.
    """

    prompts: int
    decode: int
    windows: int
    sampled: int = 8
    choices: bool = False
    original: bool = False


LEVELS = {
    "quick": Level(2, 48, 2),
    "full": Level(4, 64, 16, sampled=48, choices=True, original=True),
}
"""What is run by level."""
OTHER = Level(2, 32, 0)
"""What is run on releases besides the installed one."""


@dataclass(frozen=True)
class Measurement:
    """One comparison of a real run with a reference.

    Attributes:
        release, platform: what ran where.
        settings: memory, precision and threads of the run, and ``dynamic_option`` where it is not 0.
        reference: ``float``, ``decoded weights``, ``runtime model``, ``transformers`` or ``onnxruntime``.
        prompt_tokens: tokens of all prompts.
        distance: over all positions of prompts, decoding and, but for the decoded weights, text.
        decode_tokens, decode_equal: greedy tokens and how many of them came before the first difference, over prompts.
        decode_close: further tokens that are not counted: the two best scores of the reference are too close to tell.
        perplexity, perplexity_reference: on the text, or None.
        kl_predicted, perplexity_predicted: against the float model, what the decoded weights or the runtime model give
            in place of the real run; None where they were not evaluated.
    """

    release: str
    platform: str
    settings: Mapping[str, Any]
    reference: ReferenceName
    prompt_tokens: int
    distance: Distance
    decode_tokens: int
    decode_equal: int
    decode_close: int = 0
    perplexity: float | None = None
    perplexity_reference: float | None = None
    kl_predicted: float | None = None
    perplexity_predicted: float | None = None


@dataclass
class Verification:
    """All measurements of one artefact on one release, and what is below its bar.

    `problems` are errors, `warnings` what is worse than usual. `loss` is what is lost under the shipped settings,
    `trained` whether the model looks so, and `reading` whether its checkpoint was read right. `activations` is the loss
    that quantized activations add to the stored weights, measured and predicted; None where the shipped settings
    quantize none.
    """

    measurements: list[Measurement] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    loss: Loss | None = None
    trained: bool = True
    reading: Reading = field(default_factory=Reading)
    activations: PairedLoss | None = None
    load_s: float = 0.0
    sample: list[int] = field(default_factory=list)
    """Ids that the runtime decoded greedily after the first prompt."""
    encoded: list[list[int] | None] = field(default_factory=list)
    """Ids that the runtime made of the texts; None for one that it cannot be given."""
    trial: Trial | None = None
    """What was sampled, for further releases."""

    def require(self) -> None:
        """Raise the problems, if there are any."""
        if self.problems:
            raise LadingError.of(self.problems)


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        folder: the model directory.
        original: the float graph of whole-sequence logits, from token ids or from what the runtime feeds.
        final: the graph that was emitted.
        prompts: token ids of each prompt.
        text: token ids of the perplexity text; empty for none.
        settings: runtime settings written into the configuration.
        sampler: the sampler in the configuration that the release reads; None to sample nothing.
        ends: ids that end generation.
        texts: strings to encode on the runtime.
        readable: the prompts are text, not ids at random.
        checkpoint: the folder that the original implementation reads; None where there is none.
        implementation: computes the model too, at every level; None where nothing does.
    """

    folder: Path
    original: Graph
    final: Graph
    prompts: Sequence[Sequence[int]]
    text: Sequence[int]
    settings: Mapping[str, Any]
    sampler: Sampler | None = None
    ends: Sequence[int] = ()
    texts: Sequence[str] = ()
    readable: bool = True
    checkpoint: Path | None = None
    implementation: Implementation | None = None


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
        max_kl: bar for the KL divergence from the float model; None takes those of `backends.bars`.
        progress: told what happens.

    Raises:
        LadingError: B667 to B669 when the runtime fails; distances below the bar are `Verification.problems`.
    """
    work = _Work(subject, level, version, interpreter, progress or (lambda what: None))
    work.first()
    work.rest()
    found = Verification(work.measurements(), load_s=work.exact.load_s, sample=work.sample())
    found.activations = work.activations.result() if work.quantizes else None
    found.encoded, found.trial = work.encoded, work.trial
    _judge(found, work, subject.final, max_kl)
    found.problems += work.sampling_problems()
    found.warnings += work.too_short
    return found


def _too_short(tokens: int, width: int) -> Diagnostic:
    message = f"the text has {tokens} tokens and fills no window of {width}, so no perplexity is measured"
    hint = "give a longer text, such as a chapter or a source file"
    return Diagnostic("B787", message, hint=hint, severity="warning")


class _Run:
    """One set of settings: prefill and greedy decoding of every prompt, the first windows of the text, others on
    demand."""

    def __init__(self, name: str, work: _Work, overrides: Mapping[str, Any], decode: int) -> None:
        self.name, self.work, self.overrides = name, work, dict(overrides)
        given = work.subject.settings
        self.settings = {**given, **{k: v for k, v in overrides.items() if k in given or k == "dynamic_option"}}
        budget = [min(decode, work.context - len(prompt)) for prompt in work.prompt_ids]
        actions = [
            {"do": "greedy", "prompt": prompt, "tokens": tokens, "keep": "all"}
            for prompt, tokens in zip(work.prompt_ids, budget, strict=True)
        ]
        more = work.more_actions() if name == "shipped" else []
        results = self._run([*actions, *map(_forward, work.first_windows), *more])
        windows = results[len(actions) : len(results) - len(more)]
        self.more = results[len(results) - len(more) :]
        self.first_windows: list[np.ndarray] = [item["logits"][0] for item in windows]
        results = results[: len(actions)]
        self.decoded: list[list[int]] = [item["ids"] for item in results]
        self.logits = [np.concatenate(item["logits"]) for item in results]
        self.sequences = [p + list(ids[:-1]) for p, ids in zip(work.prompt_ids, self.decoded, strict=True)]
        self.meters: dict[str, DistanceMeter] = {}
        self.equal: dict[str, tuple[int, int, int]] = {}
        self.perplexity = PerplexityMeter()

    def _run(self, actions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        config = config_for(self.work.subject.folder, self.work.version)
        python = self.work.interpreter or sys.executable
        found = run_model(config, actions, overrides=self.overrides, interpreter=python, timeout_s=1800)
        require_sampled(found, str(config))
        run = found.require(str(config))
        self.load_s = float(run.load["load_s"])
        return [dict(item) for item in run.results if item is not None]

    def read(self, windows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits of every position of windows of the text."""
        return [item["logits"][0] for item in self._run([_forward(window) for window in windows])]

    def compare(self, reference: str, wanted: Sequence[np.ndarray]) -> None:
        """Add the prompts and decoded tokens to the distance from a reference."""
        meter = self.meters.setdefault(reference, DistanceMeter())
        equal = total = 0
        for prompt, ids, logits, rows in zip(self.work.prompt_ids, self.decoded, self.logits, wanted, strict=True):
            meter.add(rows, logits)
            chosen = rows[len(prompt) - 1 :].argmax(axis=1)
            same = [int(a) == int(b) for a, b in zip(chosen, ids, strict=True)]
            equal += same.index(False) if False in same else len(same)
            total += len(same)
        self.equal[reference] = (total, equal, 0)

    def compare_original(self, reference: str, found: Original) -> None:
        """The same for the original, which may give some rows only; steps that rounding decides are not counted."""
        meter = self.meters.setdefault(reference, DistanceMeter())
        equal = total = close = 0
        rows = found.rows or [np.arange(len(item)) for item in found.logits]
        for prompt, ids, logits, wanted, places in zip(
            self.work.prompt_ids, self.decoded, self.logits, found.logits, rows, strict=True
        ):
            meter.add(wanted, logits[places])
            steps = wanted[places >= len(prompt) - 1]
            taken = np.asarray(ids)[places[places >= len(prompt) - 1] - len(prompt) + 1]
            best = np.partition(steps, -2, axis=1)[:, -2:] if steps.shape[-1] > 1 else np.tile(steps, 2)
            told = np.abs(best[:, 1] - best[:, 0]) >= exact_bar(float(np.abs(steps).max(initial=0)))
            same = (steps.argmax(axis=1) == taken)[told]
            equal += int(same.argmin()) if not same.all() else len(same)
            total += len(same)
            close += int((~told).sum())
        self.equal[reference] = (total, equal, close)

    def compare_windows(self, reference: str, wanted: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> None:
        """Add windows of the text to the distance from a reference."""
        meter = self.meters.setdefault(reference, DistanceMeter())
        for rows, got in zip(wanted, logits, strict=True):
            meter.add(rows, got)


class _Work:
    """What the steps of one verification share.

    Logits of one kind exist for the prompts, or for one group of windows of the text, at a time.
    """

    def __init__(
        self,
        subject: Subject,
        level: Level,
        version: str,
        interpreter: Path | str | None,
        say: Callable[[str], None],
    ) -> None:
        self.subject, self.level, self.version, self.interpreter, self.say = subject, level, version, interpreter, say
        self.context = _steady_context(subject.original)
        self.prompt_ids = [list(prompt[: self.context // 2]) for prompt in subject.prompts[: level.prompts]]
        width = min(WINDOW, self.context)
        cuts = range(0, len(subject.text) - width + 1, width)
        windows = [list(subject.text[cut : cut + width]) for cut in cuts][: level.windows]
        self.too_short = [] if windows or not subject.text else [_too_short(len(subject.text), width)]
        step = max(1, LOGITS_LIMIT // (4 * (last_size(subject.original.outputs[0]) or 1) * width))
        self.window_groups = [windows[start : start + step] for start in range(0, len(windows), step)]
        self.first_windows = self.window_groups[0] if windows else []
        self.option = int(subject.settings.get("dynamic_option", 0))
        self.integer = [weight for weight in map(integer_weight, subject.final.nodes) if weight is not None]
        self.quantizes = subject.settings["memory"] == "low" and bool(self.integer)
        self.predicted: dict[str, DistanceMeter] = {"exact": DistanceMeter(), "shipped": DistanceMeter()}
        self.perplexities = {name: PerplexityMeter() for name in ("float", "decoded weights", "runtime model")}
        self.activations = PairedLossMeter()
        self.trial = self._trial()
        self.reading = Reading(unread=ModelCard.of(subject.original).unread.get("unknown", ()))
        self.guesses = Guesses(last_size(subject.original.outputs[0]) or 1)
        say("running on MNN")
        self.exact = _Run("exact", self, EXACT_CONFIG, level.decode)
        self.shipped = _Run("shipped", self, {"all_logits": True}, level.decode)
        self.others = [_Run("other", self, setting, 1) for setting in self._choices()]

    def _trial(self) -> Trial | None:
        if self.subject.sampler is None or not self.prompt_ids:
            return None
        prompt, rows = self.prompt_ids[0], last_size(self.subject.final.outputs[0]) or 0
        tokens = min(self.level.sampled, self.context - len(prompt))
        return trial(prompt, tokens, self.subject.ends, rows)

    def more_actions(self) -> list[dict[str, Any]]:
        """What is done with the shipped settings besides: tokens are sampled, end tokens tried, texts encoded."""
        encode = [{"do": "encode", "texts": list(self.subject.texts)}] if self.subject.texts else []
        return [*encode, *(self.trial.actions() if self.trial is not None else [])]

    @property
    def encoded(self) -> list[list[int] | None]:
        """What the runtime made of the texts."""
        return list(self.shipped.more[0]["ids"]) if self.subject.texts else []

    def sampling_problems(self) -> list[Diagnostic]:
        """What is wrong with the sampled tokens and with what ends generation."""
        if self.trial is None or self.subject.sampler is None:
            return []
        return judge(self.trial, self.subject.sampler, self.shipped.more[-2:], self.version)

    def _choices(self) -> Iterator[dict[str, Any]]:
        """Other settings worth knowing the loss of."""
        blocks = {weight.block for weight in self.integer}
        if self.level.choices and self.quantizes and all(block % 8 == 0 for block in blocks):
            yield {"all_logits": True, "dynamic_option": 0 if self.option == 2 else 2}

    def sample(self) -> list[int]:
        """What was decoded greedily after the first prompt."""
        return list(self.exact.decoded[0]) if self.exact.decoded else []

    def first(self) -> None:
        """Compare prompts, decoding and the first windows of the text with every reference."""
        exact, shipped, windows = self.exact, self.shipped, self.first_windows
        runs = (exact, shipped, *self.others)
        self.say("evaluating the float reference")
        *floats, text = _distinct(self.float_logits, [*(run.sequences for run in runs), windows])
        for run, wanted in zip(runs, floats, strict=True):
            run.compare("float", wanted)
        texts = {"float": text}
        for prompt, rows in zip(self.prompt_ids, floats[0], strict=True):
            self.guesses.add(rows[: len(prompt)], np.array(prompt) if self.subject.readable else None)
        for window, rows in zip(windows, text, strict=True):
            self.guesses.add(rows, np.array(window))
        if self.subject.implementation is not None:
            self._compare_implementation(self.subject.implementation, floats[0])
        elif self.level.original:
            self._compare_original(floats[0])
        self.say("evaluating the decoded weights")
        count = len(self.prompt_ids)
        found = self.decoded_logits(exact.sequences + (windows if self.level.choices else []))
        decoded, texts["decoded weights"] = found[:count], found[count:]
        exact.compare("decoded weights", decoded)
        _add_all(self.predicted["exact"], floats[0], decoded)
        if self.quantizes:
            self.say("evaluating what the runtime makes of activations")
            joint = [len(prompt) for prompt in self.prompt_ids + windows]
            found = self.modelled_logits(shipped.sequences + windows, joint)
            texts["runtime model"] = found[count:]
            self._compare_model(floats[1], found[:count])
        self._compare_text(windows, texts, {run: run.first_windows for run in runs})

    def _compare_original(self, floats: Sequence[np.ndarray]) -> None:
        """Compare the float model and the exact run with the original implementation, on prompts and decoding."""
        self.say("running transformers")
        exact = self.exact
        self.reading = compare_reading(self.subject.checkpoint, self.subject.original, exact.sequences, floats)
        if self.reading.distance is not None:
            exact.compare_original(_kind(self.reading.original), self.reading.original)

    def _compare_implementation(self, implementation: Implementation, floats: Sequence[np.ndarray]) -> None:
        """The same for what computes the model at every level."""
        self.say("running the original")
        self.reading = replace(compared(implementation(self.exact.sequences), floats), expected=True)
        if self.reading.distance is not None:
            self.exact.compare_original(_kind(self.reading.original), self.reading.original)

    def _compare_model(self, floats: Sequence[np.ndarray], modelled: Sequence[np.ndarray]) -> None:
        """Compare prompts and decoding with the runtime model; the loss of activations where both runs read the
        same."""
        exact, shipped = self.exact, self.shipped
        shipped.compare("runtime model", modelled)
        _add_all(self.predicted["shipped"], floats, modelled)
        for number, prompt in enumerate(self.prompt_ids):
            rows = len(prompt) + _common(exact.decoded[number][:-1], shipped.decoded[number][:-1])
            logits = (exact.logits[number], shipped.logits[number], modelled[number])
            self.activations.add(*(item[:rows] for item in logits))

    def rest(self) -> None:
        """Compare the other windows of the text with every reference, a few at a time."""
        done = len(self.first_windows)
        for windows in self.window_groups[1:]:
            self.say(f"reading the text, window {done + 1} of {sum(map(len, self.window_groups))}")
            done += len(windows)
            texts = {"float": self.float_logits(windows)}
            if self.level.choices:
                texts["decoded weights"] = self.decoded_logits(windows)
            if self.quantizes:
                texts["runtime model"] = self.modelled_logits(windows, [len(window) for window in windows])
            self._compare_text(
                windows, texts, {run: run.read(windows) for run in (self.exact, self.shipped, *self.others)}
            )

    def _compare_text(
        self,
        windows: Sequence[list[int]],
        texts: Mapping[str, Sequence[np.ndarray]],
        got: Mapping[_Run, Sequence[np.ndarray]],
    ) -> None:
        """Add windows to every distance; `texts` are the logits of the references, none where one was not evaluated."""
        floats = texts["float"]
        for reference, logits in texts.items():
            if logits:
                _add_text(self.perplexities[reference], windows, logits)
        for run, logits in got.items():
            run.compare_windows("float", floats, logits)
            _add_text(run.perplexity, windows, logits)
        decoded, modelled = texts.get("decoded weights"), texts.get("runtime model")
        if decoded:
            _add_all(self.predicted["exact"], floats, decoded)
        if modelled:
            _add_all(self.predicted["shipped"], floats, modelled)
            self.shipped.compare_windows("runtime model", modelled, got[self.shipped])
            for triple in zip(got[self.exact], got[self.shipped], modelled, strict=True):
                self.activations.add(*triple)

    # ---- references ----

    def float_logits(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits of the original model, every position of each sequence."""
        graph = self.subject.original
        return _logits(graph, window_feeds(graph, [np.asarray(ids) for ids in sequences]))

    def decoded_logits(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits that the stored weights give in float arithmetic."""
        return _logits(self.subject.final, self._feeds(sequences))

    def modelled_logits(self, sequences: Sequence[Sequence[int]], joint: Sequence[int]) -> list[np.ndarray]:
        """Logits of the runtime model; the first `joint` tokens of a sequence are read in one call, others one by
        one."""
        feeds = self._feeds(sequences)
        with simulated(self.subject.final, self.option) as count:
            for given, rows in zip(feeds, joint, strict=True):
                given[count.name] = np.array([rows], np.int32)
            return _logits(self.subject.final, feeds)

    def _feeds(self, sequences: Sequence[Sequence[int]]) -> list[dict[str, np.ndarray]]:
        graph = self.subject.final
        fact = graph.required_fact(DynamicInputs)
        return [fact.feeds(graph, np.array(ids), index=0) for ids in sequences]

    # ---- results ----

    def measurements(self) -> list[Measurement]:
        """Everything that was compared, the exact run first."""
        found = [self._measurement(self.exact, "decoded weights", None)]
        found.append(self._measurement(self.exact, "float", "decoded weights"))
        found.append(self._measurement(self.shipped, "float", "runtime model" if self.quantizes else None))
        if self.quantizes:
            found.append(self._measurement(self.shipped, "runtime model", None))
        found += [self._measurement(run, "float", None) for run in self.others]
        if self.reading.distance is not None:
            found.append(self._measurement(self.exact, _kind(self.reading.original), None))
        return found

    def _measurement(self, run: _Run, reference: ReferenceName, predictor: ReferenceName | None) -> Measurement:
        texted = reference in self.perplexities and reference != "decoded weights"
        predicted = self.predicted[run.name].result() if predictor is not None else None
        whole = predictor is not None and (not self.first_windows or self.perplexities[predictor].tokens > 0)
        return Measurement(
            self.version,
            f"{platform.system()} {platform.machine()}",
            run.settings,
            reference,
            sum(map(len, self.prompt_ids)),
            run.meters[reference].result(),
            *run.equal[reference],
            _result(run.perplexity) if texted else None,
            _result(self.perplexities[reference]) if texted else None,
            predicted.kl if predicted is not None and whole else None,
            _result(self.perplexities[predictor]) if predictor is not None and whole else None,
        )


def _kind(original: Original) -> ReferenceName:
    """What ran the original."""
    return "onnxruntime" if original.file else "transformers"


def _distinct(
    evaluate: Callable[[Sequence[Sequence[int]]], list[np.ndarray]], groups: Sequence[Sequence[Sequence[int]]]
) -> list[list[np.ndarray]]:
    """The logits of each sequence of each group; equal sequences are evaluated once, and one that another begins with
    too."""
    wanted = sorted({tuple(item) for group in groups for item in group}, key=len, reverse=True)
    longest: list[tuple[int, ...]] = []
    for item in wanted:
        if not any(other[: len(item)] == item for other in longest):
            longest.append(item)
    found = dict(zip(longest, evaluate(longest), strict=True))

    def rows(item: tuple[int, ...]) -> np.ndarray:
        return next(logits[: len(item)] for other, logits in found.items() if other[: len(item)] == item)

    return [[rows(tuple(item)) for item in group] for group in groups]


def _forward(window: Sequence[int]) -> dict[str, Any]:
    """The action that reads a window from an empty cache."""
    return {"do": "forward", "pieces": [list(window)]}


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items agree."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _add_all(meter: DistanceMeter, wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> None:
    for rows, logits in zip(wanted, got, strict=True):
        meter.add(rows, logits)


def _add_text(meter: PerplexityMeter, windows: Sequence[Sequence[int]], logits: Sequence[np.ndarray]) -> None:
    for window, rows in zip(windows, logits, strict=True):
        meter.add(rows, np.array(window))


def _result(meter: PerplexityMeter) -> float | None:
    return meter.result() if meter.tokens else None


def _steady_context(graph: Graph) -> int:
    """Longest sequence whose logits do not depend on how it is cut into calls.

    Ropes whose frequencies change with the length leave cached keys as they were rotated, so beyond that length
    decoding through the cache and reading at once differ by design.
    """
    return ModelCard.of(graph).steady_context or LONGEST


def _logits(graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    name = graph.outputs[0].name
    results = Evaluator(graph, memory_limit=MEMORY_LIMIT).run_many(feeds)
    return [result[name].reshape(-1, result[name].shape[-1]) for result in results]


# ---- bars ----


HINT = "use more bits or smaller blocks, keep the worst weights with keep=..., or set --kl-bar"


def _judge(found: Verification, work: _Work, graph: Graph, max_kl: float | None) -> None:
    """Fill in what is below the bars, and what is worse than usual."""
    decoded, exact, shipped = found.measurements[:3]
    found.reading = work.reading
    found.problems = [*found.reading.problems, *_beyond_exact(decoded)]
    if found.activations is not None and platform.machine() in MODELLED:
        found.problems += _beyond_model(shipped.release, found.activations)
    narrowest = min((item.bits for item in deciding(graph)), default=32)
    found.trained = not work.guesses.untrained
    if not found.trained:
        found.warnings.append(untrained(work.guesses))
    text = work.subject.readable or bool(work.first_windows)
    judgements = []
    for item, what in ((exact, "exact arithmetic"), (shipped, "the shipped settings")):
        found.loss = Loss(item.distance.kl, item.distance.top1, narrowest, what, text=text)
        judgements.append(judged(found.loss, "V701", HINT, trained=found.trained, bar=max_kl))
    errors = [item for items in judgements for item in items if item.severity == "error"]
    found.problems += errors
    if not errors:
        found.warnings += judgements[-1]


def _beyond_exact(decoded: Measurement) -> list[Diagnostic]:
    bar = exact_bar(decoded.distance.max_logit)
    if decoded.distance.max_abs <= bar:
        return []
    message = (
        f"MNN {decoded.release} computes other logits than the stored weights give: "
        f"{decoded.distance.max_abs:.3g} off where {bar:.3g} is allowed"
    )
    hint = "the model directory was not written; please report the checkpoint's configuration"
    return [Diagnostic("V700", message, hint=hint)]


def _beyond_model(release: str, loss: PairedLoss) -> list[Diagnostic]:
    """The runtime loses another amount to its activations than the model of it says."""
    allowed = ACTIVATION_BAR * loss.predicted + 5 * loss.error + EXACT_LOSS
    if abs(loss.measured - loss.predicted) <= allowed:
        return []
    message = (
        f"MNN {release} loses {loss.measured:.3g} nats to quantized activations where {loss.predicted:.3g} was predicted "
        f"and a difference of {allowed:.2g} is allowed"
    )
    hint = "the model directory was not written; compile with --memory normal, and please report the configuration"
    return [Diagnostic("Q471", message, hint=hint)]
