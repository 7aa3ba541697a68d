"""Run a module on MNN, every release of its target that is there, and compare it with the model that it was made from.

The reference is the model itself: its file in onnxruntime without optimisation, or in ONNX's own evaluator where onnxruntime
has no kernel. What is fed is made up (`ir.evaluate.feed_sets`) or given. MNN runs in child processes, one model for one
set of inputs after the other and all of them twice, as an application would do.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from backends.bars import ERROR_BARS
from backends.mnn.modules.blame import Case, Convert, Culprit, first_fatal, first_wrong
from backends.mnn.modules.child import Converter
from backends.mnn.modules.closeness import Gap, Misfit, misfit
from backends.mnn.modules.edit.codes import ActivationCodes
from backends.mnn.modules.edit.rounded import Rounding, rounded
from backends.mnn.target.environments import module_packages
from ir.base.child import ChildFailed
from ir.base.diag import Diagnostic, LadingError
from ir.base.types import TensorType
from ir.evaluate.feed_sets import COUNTS, SECONDS, FeedSet, feed_sets
from ir.evaluate.reference import GraphReference, Reference, open_reference
from ir.evaluate.value_ranges import SPECIAL
from ir.graph.graph import Graph
from ir.ops.registry import has_trait

Level = Literal["quick", "full"]
Feeds = Mapping[str, np.ndarray]

RUN_SECONDS = 60.0
"""Time that MNN may take for one set of inputs."""
HALF_BAR = 3e-2
"""Root mean square by which outputs may be off, relative to their own, where the original computes in half precision."""
DRAWS = 4
"""Runs of the reference with inputs changed in their last bit, where a result is not what it should be."""
CODES = {"type": "V706", "shape": "V706", "not a number": "V709", "value": "V703"}


@dataclass(frozen=True)
class Measurement:
    """One comparison on one release.

    Attributes:
        release, platform: what ran where.
        reference: ``decoded weights`` for what the written graph means, ``float`` for the original.
        feeds: sets of inputs.
        max_abs: largest absolute difference of an element of an output.
        error: root mean square of the difference relative to that of the output, of the worst output.
    """

    release: str
    platform: str
    reference: Literal["decoded weights", "float"]
    feeds: int
    max_abs: float
    error: float


@dataclass
class Verification:
    """What was run and measured.

    Attributes:
        reference: what computed the original; empty when nothing could.
        sets: the inputs.
        measurements: how far each release was off.
        problems: what is wrong; nothing may be written then.
        warnings: what the user should know.
    """

    reference: str = ""
    sets: Sequence[FeedSet] = ()
    measurements: list[Measurement] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)

    def require(self) -> None:
        """Raise the problems, if there are any."""
        if self.problems:
            raise LadingError.of(self.problems)


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        graph: the graph that was written; its inputs and outputs are those of the module, in this order.
        original: the model as it was read, with as many inputs and outputs.
        model: the file that was written.
        source: the ONNX file that the original was read from; None for a model of another format.
        command: words of the command that compiles the model, to name the one that finds its smallest part that fails.
        convert: writes a changed graph in the same way, to find the node that fails; None names none.
    """

    graph: Graph
    original: Graph
    model: Path
    source: Path | None = None
    command: Sequence[str] = ()
    convert: Convert | None = None


def verify(
    subject: Subject,
    *,
    versions: Sequence[str],
    level: Level = "quick",
    given: Mapping[str, Feeds] | None = None,
    bar: float | None = None,
) -> Verification:
    """Run and compare; nothing is raised for what is wrong with the result, see `Verification.require`.

    Args:
        subject: what to run.
        versions: releases of the target, of which those are run that this machine has.
        level: how much to run.
        given: inputs to run in place of made-up ones, by what they were read from (`ir.evaluate.given_feeds`).
        bar: how far off the original outputs may be, as root mean square relative to that of the output, where weights are
            stored in fewer bits; what is stored is then compared exactly. None for weights as they were.

    Raises:
        LadingError: T225 and U965 no inputs can be made up, U906 MNN is not installed.
    """
    return _Verification(subject, level, bar).run(versions, given)


class _Verification:
    def __init__(self, subject: Subject, level: Level, bar: float | None) -> None:
        self._subject = subject
        self._level = level
        self._bar = bar
        self._half = _computes_in_halves(subject.original)
        self._rounds = subject.graph.fact(ActivationCodes) is not None
        # What came quantized rounds at places of its own; how far both are from floats is judged by `Rounding`.
        self._given_rounded = self._rounds and any(node.op == "QuantizeLinear" for node in subject.original.walk())
        self._reference: Reference | None = None
        self._random = False
        self.found = Verification()

    def run(self, versions: Sequence[str], given: Mapping[str, Feeds] | None) -> Verification:
        found = self.found
        try:
            self._reference = open_reference(self._subject.source, self._subject.original)
        except LadingError as error:
            found.warnings.append(_no_reference(error))
            return found
        found.reference = self._reference.name
        found.sets = self._sets(given)
        if self._is_random():
            found.warnings.append(_random(found.reference))
        packages = module_packages(versions)
        if not packages:
            raise LadingError(
                "U906",
                "verification needs the MNN runtime, which is not installed",
                hint="pip install MNN, or --verify none",
            )
        stored = self._stored()
        for release, folder in packages.items():
            with Converter(folder) as converter:
                self._release(release, converter, stored)
            if found.problems:
                break
        return found

    def _sets(self, given: Mapping[str, Feeds] | None) -> list[FeedSet]:
        reference, level = self._reference, self._level
        assert reference is not None
        if given is not None:
            for name, feeds in given.items():
                _check_held(feeds, name)
            return [FeedSet(feeds, reference.run(feeds), {}, name, given=True) for name, feeds in given.items()]
        original = self._subject.original
        return feed_sets(original, reference.run, most=COUNTS[level], seconds=SECONDS[level])

    def _is_random(self) -> bool:
        """True when the original gives other numbers for the same inputs."""
        assert self._reference is not None
        first = self.found.sets[0]
        self._random = any(has_trait(node, "random") for node in self._subject.original.walk()) and not all(
            np.array_equal(array, first.wanted[name], equal_nan=array.dtype.kind == "f")
            for name, array in self._reference.run(first.feeds).items()
        )
        return self._random

    def _stored(self) -> list[list[np.ndarray]]:
        """What the written graph means, for each set; what the original gives where weights are as they were."""
        if self._bar is None:
            return [self._ordered(item.wanted) for item in self.found.sets]
        from ir.evaluate.evaluator import Evaluator

        evaluator = Evaluator(rounded(self._subject.graph) if self._rounds else self._subject.graph)
        return [list(evaluator.run(self._as_written(item.feeds)).values()) for item in self.found.sets]

    def _ordered(self, wanted: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [wanted[value.name] for value in self._subject.original.outputs]

    def _as_written(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The inputs under the names and in the types of the written graph."""
        pairs = zip(self._subject.graph.inputs, self._subject.original.inputs, strict=True)
        return {mine.name: feeds[its.name].astype(mine.dtype.numpy) for mine, its in pairs}

    def _release(self, release: str, converter: Converter, stored: Sequence[Sequence[np.ndarray]]) -> None:
        found, subject = self.found, self._subject
        names = [value.name for value in subject.graph.outputs]
        feeds = [held(self._as_written(item.feeds)) for item in found.sets]
        try:
            got = converter.run_many(subject.model, feeds, names, again=True, seconds=RUN_SECONDS)
        except ChildFailed as error:
            found.problems.append(self._died(release, converter, feeds, names, error))
            return
        gaps = Gap(), Gap()
        rounding = Rounding(subject.graph) if self._rounds else None
        for number, (item, one, other) in enumerate(zip(found.sets, got[: len(feeds)], got[len(feeds) :], strict=True)):
            for place, name in enumerate(names):
                problem = self._judged(release, number, place, one[name], stored[number][place], converter)
                if problem is None and not self._random and not np.array_equal(one[name], other[name], equal_nan=True):
                    problem = _unstable(release, name, item, one[name], other[name])
                if problem is not None and problem.severity == "error":
                    found.problems.append(problem)
                    return
                if problem is not None and problem.code not in {item.code for item in found.warnings}:
                    found.warnings.append(problem)
                gaps[0].add(place, stored[number][place], one[name])
                gaps[1].add(place, self._ordered(item.wanted)[place], one[name])
            if rounding is not None:
                rounding.add(self._as_written(item.feeds), [one[name] for name in names], stored[number])
        if rounding is not None and (said := rounding.beyond()):
            hint = "nothing was written; give inputs like those it was calibrated on with --inputs: others leave its ranges"
            found.problems.append(Diagnostic("V703", f"on MNN {release} {said}", hint=hint))
        where = f"{platform.system()} {platform.machine()}"
        count = len(found.sets)
        if self._bar is not None:
            found.measurements.append(
                Measurement(release, where, "decoded weights", count, gaps[0].largest, gaps[0].relative)
            )
            if not gaps[1].relative <= self._bar and not self._given_rounded:
                found.problems.append(_beyond_width(release, gaps[1].relative, self._bar))
        found.measurements.append(Measurement(release, where, "float", count, gaps[1].largest, gaps[1].relative))
        limit = HALF_BAR if self._half else ERROR_BARS[32]
        if not self._rounds and not self._random and gaps[0].relative > limit:
            found.problems.append(self._far(release, gaps[0].relative, limit, converter))

    def _judged(
        self, release: str, number: int, place: int, got: np.ndarray, wanted: np.ndarray, converter: Converter
    ) -> Diagnostic | None:
        by = self.found.reference if self._bar is None else "what is stored"
        found = misfit(wanted, got, by=by, half=self._half)
        if found is not None and found.kind == "value" and (self._rounds or self._random):
            # One code more or less is no fault; how far all of them are off is judged by `Rounding`.
            return None
        if found is not None and found.kind == "value":
            found = misfit(wanted, got, by=by, half=self._half, noise=self._noise(number, place))
        return None if found is None else self._differs(release, number, place, found, converter)

    def _noise(self, number: int, place: int) -> np.ndarray:
        """How far an output of the original moves when its inputs change in their last bit; 0 for whole inputs."""
        assert self._reference is not None
        item = self.found.sets[number]
        wanted = self._ordered(item.wanted)[place].astype(np.float64)
        noise = np.zeros(wanted.shape)
        rng = np.random.default_rng(number)
        for _ in range(DRAWS):
            feeds = {
                name: _shaken(array, rng, item.given or item.style == SPECIAL) for name, array in item.feeds.items()
            }
            try:
                moved = self._ordered(self._reference.run(feeds))[place].astype(np.float64)
            except LadingError:
                continue
            if moved.shape == wanted.shape:
                with np.errstate(invalid="ignore"):
                    noise = np.maximum(noise, np.nan_to_num(np.abs(moved - wanted), nan=0.0, posinf=0.0))
        return noise

    def _differs(self, release: str, number: int, place: int, found: Misfit, converter: Converter) -> Diagnostic:
        name = self._subject.original.outputs[place].name
        code = CODES[found.kind]
        message = f"on MNN {release} output {name!r} {found.text}"
        culprit = self._blamed(lambda: first_wrong(self._case(number), converter))
        where = [str(self.found.sets[number]), *(culprit.lines() if culprit is not None else ())]
        if culprit is not None and culprit.how == "grown":
            message = f"{message}; no operator is wrong by itself: what is rounded grows"
            return Diagnostic("V708", message, "\n".join(where), severity="warning")
        return Diagnostic(code, message, "\n".join(where), self._hint())

    def _far(self, release: str, error: float, limit: float, converter: Converter) -> Diagnostic:
        """What is said of outputs that are each no farther off than rounding may bring them, and together too far."""
        message = f"on MNN {release} outputs are off by {error:.3g} of their size, and {limit:.3g} is allowed"
        found: Culprit | None = None
        for number in range(len(self.found.sets)):
            found = self._blamed(partial(first_wrong, self._case(number), converter)) or found
            if found is not None and found.how == "wrong":
                where = [str(self.found.sets[number]), *found.lines()]
                return Diagnostic("V703", message, "\n".join(where), self._hint())
        hint = "nothing was written; the model lets what is rounded grow"
        return Diagnostic(
            "V708", f"{message}; no operator is wrong by itself", "\n".join(found.lines() if found else ()), hint
        )

    def _died(
        self, release: str, converter: Converter, feeds: Sequence[Feeds], names: Sequence[str], error: ChildFailed
    ) -> Diagnostic:
        where: list[str] = []
        for number, (item, one) in enumerate(zip(self.found.sets, feeds, strict=True)):
            try:
                converter.run_many(self._subject.model, [one], names, seconds=RUN_SECONDS)
            except ChildFailed as alone:
                error = alone
                culprit = self._blamed(partial(first_fatal, self._case(number), converter))
                where = [str(item), *(culprit.lines() if culprit is not None else ())]
                break
        message = f"the process that runs the module on MNN {release} {error.how}"
        return Diagnostic("V704", message, "\n".join([*where, *_last_words(error)]), self._hint())

    def _case(self, number: int) -> Case:
        """What is looked into to find the node that is to blame for the results of one set."""
        subject, feeds = self._subject, self.found.sets[number].feeds
        written = self._as_written(feeds)
        assert self._reference is not None
        exact = self._bar is None
        reference = self._reference if exact else GraphReference(subject.graph)
        return Case(
            subject.original, subject.graph, subject.model, reference, feeds if exact else written, held(written),
            self._half, subject.convert,
        )  # fmt: skip

    def _blamed(self, look: Callable[[], Culprit | None]) -> Culprit | None:
        """The culprit; None where looking for it fails, which hides nothing of what was found before."""
        try:
            return look()
        except (LadingError, ChildFailed):
            return None

    def _hint(self) -> str:
        words = self._subject.command
        return "nothing was written" + (f"; to find the smallest part that fails: {shlex.join(words)}" if words else "")


def held(feeds: Feeds) -> dict[str, np.ndarray]:
    """Arrays in the element types of MNN's tensors: float32, and int32 for integers and booleans."""
    return {name: x.astype(np.float32 if x.dtype.kind not in "iub" else np.int32) for name, x in feeds.items()}


def _check_held(feeds: Feeds, where: str) -> None:
    """Require integers that MNN can hold; LadingError U963."""
    for name, array in feeds.items():
        if array.dtype.kind in "iu" and array.size and not -(1 << 31) <= int(array.min()) <= int(array.max()) < 1 << 31:
            message = f"input {name!r} has numbers from {array.min()} to {array.max()}, and MNN holds 32-bit integers"
            raise LadingError("U963", message, where)


def _shaken(array: np.ndarray, rng: np.random.Generator, special: bool) -> np.ndarray:
    """Floats changed by up to their last bit; special numbers among them, which decide what is done, stay."""
    if array.dtype.kind != "f":
        return array
    step = np.finfo(array.dtype).eps
    moved = (array * (1 + step * rng.uniform(-1, 1, array.shape))).astype(array.dtype)
    return np.where(array * 4 == np.round(array * 4), array, moved) if special else moved


def _computes_in_halves(graph: Graph) -> bool:
    values = (*graph.inputs, *(value for node in graph.walk() for value in node.outputs))
    return any(isinstance(value.type, TensorType) and value.dtype.name in ("f16", "bf16") for value in values)


def _last_words(error: ChildFailed) -> list[str]:
    """What a process printed last of itself, without the report on where the interpreter was."""
    lines = error.detail.splitlines()
    end = next((number for number, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    return [line for line in lines[:end] if line.strip() and "The device supports" not in line][-3:]


def _no_reference(error: LadingError) -> Diagnostic:
    message = "nothing here computes the original model, so that the module was not compared with it"
    return Diagnostic("V707", message, error.diagnostics[0].message, severity="warning")


def _random(reference: str) -> Diagnostic:
    message = f"{reference} gives other numbers for the same inputs, so that shapes and types alone were compared"
    return Diagnostic("V707", message, severity="warning")


def _unstable(release: str, name: str, item: FeedSet, one: np.ndarray, other: np.ndarray) -> Diagnostic:
    place = np.argwhere(~((one == other) | (np.isnan(one) & np.isnan(other))))[0] if one.shape == other.shape else []
    message = f"MNN {release} gives another output {name!r} when it runs again on the same inputs"
    at = tuple(int(index) for index in place)
    where = str(item) + (f": {one[at]} and {other[at]} at {list(at)}" if at else "")
    return Diagnostic("V705", message, where, "nothing was written; please report the model")


def _beyond_width(release: str, error: float, bar: float) -> Diagnostic:
    message = f"on MNN {release} outputs are off the original by {error:.3g} of their size, and {bar:.3g} is allowed"
    return Diagnostic("V702", message, hint="nothing was written; use more bits, or blocks of fewer weights")


__all__ = ["Convert", "Measurement", "Subject", "Verification", "held", "verify"]
