"""Run a repaired model and its original, and compare them.

The original is the judge: what is compared are the logits that it gives on a release that runs it. The result runs on a
release of the target where this machine has one, else on another release that can read it, since the forms that are
written are computed alike by all. Float arithmetic over the stored weights is compared too, but it comes from the same
reading of the original as the result, so it cannot tell a misreading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ir.base.diag import LadingError

if TYPE_CHECKING:
    import numpy as np

    from backends.mnn.read.model_folder import Subject
    from backends.mnn.verify.logits import Measurement
    from ir.evaluate.divergence import Distance
    from ir.graph.graph import Graph

Verify = Literal["auto", "none", "quick", "full"]

TOKENS, PREFILL = 32, 24
"""Token ids of a verification; so many in one call, the others one by one."""


@dataclass
class Outcome:
    """What a verification found.

    Attributes:
        releases: MNN releases that the result was run on; empty when it was not run.
        outside: those of them that are no release of the target.
        original: release that the original was run on; empty when it was not compared.
        as_module: the original was run as a plain module, a prefill only.
        reason: why the result was not compared with the original; empty when it was.
        error: largest difference of a logit from the stored weights in float arithmetic; None when it was not run.
        from_original: the same from what the original gives; None when it was not compared.
        measurements: for the contract, of releases of the target.
    """

    releases: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    original: str = ""
    as_module: bool = False
    reason: str = ""
    error: float | None = None
    from_original: float | None = None
    measurements: list[Measurement] = field(default_factory=list)


@dataclass(frozen=True)
class Runs:
    """Where the result and the original can run.

    Attributes:
        interpreters: interpreter of each release that this machine can run.
        target: releases that the result is written for.
        result: releases on which the doctor finds the result healthy, those of the target first.
        original: releases on which the doctor finds the original healthy.
        module: releases on which all that is missing from the original is an input that the runtime feeds.
    """

    interpreters: Mapping[str, Path | str]
    target: Sequence[str]
    result: Sequence[str]
    original: Sequence[str]
    module: Sequence[str] = ()

    def of_result(self, installed: str | None, level: Verify) -> list[str]:
        """The releases to run the result on: all of the target that are here with ``full``, else the best one."""
        inside = [version for version in self.target if version in self.interpreters]
        if level == "full" and inside:
            return inside
        here = [version for version in self.result if version in self.interpreters]
        for choice in (inside, here):
            if choice:
                return [installed if installed in choice else choice[-1]]
        return []

    def of_original(self, preferred: str) -> list[tuple[str, bool]]:
        """The releases to try the original on, the best first, and whether to run it as a plain module there."""
        return [
            (version, plain)
            for releases, plain in ((self.original, False), (self.module, True))
            for version in sorted(reversed(releases), key=lambda version: version != preferred)
            if version in self.interpreters
        ]


def verified(runs: Runs, installed: str | None, level: Verify, graph: Graph, path: Path, folder: Path) -> Outcome:
    """Run the result, and compare it with its stored weights and with the original.

    Args:
        runs: where both can run.
        installed: release of this environment, which is preferred.
        level: how much to run.
        graph: what was written.
        path: the original.
        folder: the result.

    Raises:
        LadingError: U952 other logits, U953 a run is asked for and no release is here, B667 to B669 a run of the result
            that fails.
    """
    found = Outcome()
    if level == "none":
        found.reason = "verification is off"
        return found
    chosen = runs.of_result(installed, level)
    if not chosen:
        return _not_run(found, runs, level)
    ids = _sample(graph)
    found.releases, found.outside = chosen, [version for version in chosen if version not in runs.target]
    got = {version: logits(folder, ids, version, runs.interpreters[version]) for version in chosen}
    _compare_with_stored(found, graph, ids, got, path)
    wanted = _original_logits(found, runs, graph, path, ids, chosen[-1])
    if wanted is not None:
        whose = f"the original gives on MNN {found.original}"
        # A plain module runs a prefill only; a model that returns the last row of each call has the last rows.
        gaps = [
            _distance(wanted, rows[: len(wanted)] if found.as_module else rows[-len(wanted) :], whose, path)
            for rows in got.values()
        ]
        found.from_original = max(gap.max_abs for gap in gaps)
    return found


def _not_run(found: Outcome, runs: Runs, level: Verify) -> Outcome:
    here = ", ".join(runs.interpreters) or "no MNN with a language-model runtime"
    found.reason = f"it cannot be run here, where there is {here}"
    if level != "auto":
        hint = "python -m tools.releases makes environments of all releases; --verify none does not run the result"
        raise LadingError("U953", f"the result cannot be run: there is {here}", hint=hint)
    return found


def _sample(graph: Graph) -> list[int]:
    import numpy as np

    from ir.facts.model_card import ModelCard

    count = min(TOKENS, ModelCard.of(graph).context or TOKENS)
    return [int(token) for token in np.random.default_rng(3).integers(0, ModelCard.of(graph).vocab_size, count)]


def _compare_with_stored(
    found: Outcome, graph: Graph, ids: list[int], got: Mapping[str, np.ndarray], path: Path
) -> None:
    """Add measurements where the embedding rows are known."""
    from backends.mnn.run.native import EXACT_CONFIG
    from backends.mnn.verify.logits import Measurement
    from tools.matrix.cell import this_platform

    if "embedding" not in graph.tables:
        return
    settings = {key: EXACT_CONFIG[key] for key in ("memory", "precision", "thread_num")}
    wanted = stored_logits(graph, ids)
    for version, rows in got.items():
        distance = _distance(wanted, rows, "the stored weights give", path)
        found.error = max(found.error or 0.0, distance.max_abs)
        if version not in found.outside:
            item = Measurement(version, this_platform(), settings, "decoded weights", len(ids), distance, 0, 0)
            found.measurements.append(item)


def _original_logits(
    found: Outcome, runs: Runs, graph: Graph, path: Path, ids: list[int], preferred: str
) -> np.ndarray | None:
    """What the original gives on the first release that runs it; None with the reason noted when none does."""
    problems = []
    for version, plain in runs.of_original(preferred):
        try:
            run = module_logits if plain else logits
            wanted = run(path, ids, version, runs.interpreters[version], *([graph] if plain else []))
        except LadingError as error:
            verdict = "only lacks inputs" if plain else "was found healthy"
            problems.append(f"on MNN {version} it {verdict}, but {error.diagnostics[0].message}")
            continue
        found.original, found.as_module = version, plain
        return wanted
    found.reason = "; ".join(problems) or _why_none(runs)
    return None


def _why_none(runs: Runs) -> str:
    if not runs.original and not runs.module:
        return "it is broken on every release"
    return f"it runs on {', '.join(runs.original or runs.module)}, and here there is {', '.join(runs.interpreters)}"


def logits(folder: Path, ids: list[int], version: str, interpreter: Path | str) -> np.ndarray:
    """Logits of exact arithmetic, float32[tokens, vocabulary]: a prefill, then single tokens through the cache.

    Raises:
        LadingError: B667 to B669 the run fails.
    """
    import numpy as np

    from backends.mnn.run.native import EXACT_CONFIG, run_model
    from backends.mnn.write.configs import config_for

    config = config_for(folder, version)
    pieces = [ids[:PREFILL], *([token] for token in ids[PREFILL:])]
    actions = [{"do": "forward", "pieces": pieces}]
    run = run_model(config, actions, overrides=EXACT_CONFIG, interpreter=interpreter, timeout_s=1800)
    return np.concatenate((run.require(str(config)).results[0] or {})["logits"])


def module_logits(folder: Path, ids: list[int], version: str, interpreter: Path | str, graph: Graph) -> np.ndarray:
    """Logits of a prefill, float32[tokens, vocabulary], by a model that lacks an input which the runtime feeds.

    The file is loaded as a plain module, as a program does that knows its inputs by name.

    Raises:
        LadingError: B667 to B669 the run fails, U953 its inputs are not the known ones.
    """
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.run.native import RUNNER, run_child

    subject = Subject(folder)
    feeds = _module_feeds(subject, ids[:PREFILL], graph)
    request = {"model": str(subject.model_path.resolve()), "inputs": list(feeds), "outputs": ["logits"]}
    script = RUNNER.with_name("module_runner.py")
    ended = run_child(script, request, feeds, interpreter=interpreter, timeout_s=1800)
    if not ended.ok:
        raise LadingError("B669", f"as a plain module it {ended.outcome}", ended.log[-400:])
    found = ended.arrays["outputs/logits"]
    return found.reshape(-1, found.shape[-1])


def _module_feeds(subject: Subject, ids: list[int], graph: Graph) -> dict[str, np.ndarray]:
    """Inputs of a first call with `ids`, as the model declares them.

    Raises:
        LadingError: U953 an input that is not known, or declared otherwise.
    """
    import numpy as np

    from ir.facts.inputs import DynamicInputs

    fact = graph.required_fact(DynamicInputs)
    count, places = len(ids), np.arange(len(ids), dtype=np.int32)
    seen = places[:, None] >= places
    known = {
        "input_ids": fact.feeds(graph, np.array(ids), index=0)["input_ids"] if "embedding" in graph.tables else None,
        "attention_mask": np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32)[None, None],
        "position_ids": places,
    }
    feeds: dict[str, np.ndarray] = {}
    for name in subject.read_inputs:
        declared = np.asarray(subject.inputs[name].get("dims", ())).tolist()
        value = known.get(name)
        if name == "position_ids" and len(declared) == 2:
            value = places[None]
        # A mask that is declared without axes is fed with them all the same.
        sizes = () if value is None or (name == "attention_mask" and not declared) else value.shape
        fits = len(sizes) == len(declared) and all(
            size in (1, -1, count) or size == own for size, own in zip(declared, sizes, strict=True)
        )
        if value is None or not fits:
            raise LadingError("U953", f"its input {name} is declared as {declared}, which is not known", where=name)
        feeds[name] = value
    return feeds


def stored_logits(graph: Graph, ids: list[int]) -> np.ndarray:
    """What the graph that was written gives in onnxruntime, float32[tokens, vocabulary]."""
    import numpy as np

    from backends.mnn.verify.logits import MEMORY_LIMIT
    from ir.evaluate.evaluator import Evaluator
    from ir.facts.inputs import DynamicInputs

    fact = graph.required_fact(DynamicInputs)
    (found,) = Evaluator(graph, memory_limit=MEMORY_LIMIT).run(fact.feeds(graph, np.array(ids), index=0)).values()
    return found.reshape(-1, found.shape[-1])


def _distance(wanted: np.ndarray, got: np.ndarray, whose: str, path: Path) -> Distance:
    """How far the result is from a reference.

    Raises:
        LadingError: U952 further than rounding explains.
    """
    from backends.bars import EXACT_BAR
    from ir.evaluate.divergence import DistanceMeter

    meter = DistanceMeter()
    meter.add(wanted, got)
    found = meter.result()
    bar = EXACT_BAR * max(1.0, found.max_logit / 10)
    if not found.max_abs <= bar:
        message = (
            f"the repaired model gives other logits than {whose}: {found.max_abs:.3g} off where {bar:.3g} is allowed"
        )
        raise LadingError("U952", message, where=str(path), hint="please report the model")
    return found
