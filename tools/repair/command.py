"""``python -m tools.repair``: write a model that somebody else exported again so that other MNN releases run it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ir.base.diag import LadingError
from tools.shared.cli import JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    import numpy as np

    from backends.mnn.doctor.findings import Report
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.target.releases import MnnTarget
    from backends.mnn.verify.logits import Measurement
    from backends.mnn.write.weight_layout import Layout
    from ir.evaluate.divergence import Distance
    from ir.graph.graph import Graph
    from passes.framework.manager import Report as PassReport

Verify = Literal["auto", "none", "quick"]

TOKENS, PREFILL = 32, 24
"""Token ids of a verification; so many in one call, the others one by one."""


@dataclass
class Repaired:
    """What was done.

    Attributes:
        out: the new directory.
        releases: releases it was written for.
        before, after: releases of the target on which the old and the new model are healthy.
        operators: number of operators before and after.
        kept: True when all codes and scales were copied as they were; False when scales were widened.
        verified: MNN release that the result was run on; empty when it was not run.
        unverified: why it was not run; empty when it was.
        error: largest difference of a logit from the stored weights in float arithmetic; None when it was not run.
        from_original: the same from what the original model gives on that release; None where it was not compared.
        not_compared: why the result was run and not compared with the original; empty otherwise.
    """

    out: Path
    releases: tuple[str, ...]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    operators: tuple[int, int] = (0, 0)
    kept: bool = True
    verified: str = ""
    unverified: str = ""
    error: float | None = None
    from_original: float | None = None
    not_compared: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "out": str(self.out), "releases": list(self.releases), "healthy_before": self.before,
            "healthy_after": self.after, "operators": list(self.operators), "bytes_kept": self.kept,
            "verified": self.verified or None, "unverified": self.unverified or None, "error": self.error,
            "from_original": self.from_original, "not_compared": self.not_compared or None,
        }  # fmt: skip


@command("repair")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--target", default="portable", show_default=True, metavar="VERSIONS",
              help="Releases to write for: 'portable', a version, or clauses such as \">=3.4,<3.6\".")  # fmt: skip
@click.option("--verify", default="auto", show_default=True, type=click.Choice(["auto", "none", "quick"]),
              help="Run the result on the installed MNN; auto: where that is a release of the target.")  # fmt: skip
@click.option("--guard", is_flag=True, help="Also write modules that check an application's inputs.")
@click.option("--force", is_flag=True, help="Replace a folder written before.")
@JSON_OPTION
@QUIET_OPTION
def main(
    path: Path, out: Path, target: str, verify: Verify, guard: bool, force: bool, as_json: bool, quiet: bool
) -> int:
    """Write the MNN model directory PATH again in forms that the target's releases run, with a contract.

    Weights keep their codes and scales. PATH is not changed.
    """
    done = repair(path, out, target, verify=verify, guard=guard, force=force)
    if not quiet:
        Screen(as_json, quiet).data(done.as_dict(), _words(path, done))
    return 0


def _words(path: Path, done: Repaired) -> str:
    lines = [
        f"{path}: healthy on {', '.join(done.before) or 'none'} of {', '.join(done.releases)}",
        f"{done.out}: healthy on {', '.join(done.after)}",
        f"operators {done.operators[0]} -> {done.operators[1]}; "
        f"{'weights kept bit for bit' if done.kept else 'codes kept bit for bit, half-float scales widened'}",
    ]
    if not done.verified:
        return "\n".join([*lines, f"not run: {done.unverified}"])
    gaps = ((done.error, "the stored weights"), (done.from_original, "the original"))
    told = [f"logits at most {gap:.2g} off {whose}" for gap, whose in gaps if gap is not None]
    told += [f"not compared with the original: {done.not_compared}"] if done.not_compared else []
    return "\n".join([*lines, f"run on MNN {done.verified}: {'; '.join(told)}"])


def repair(
    path: Path,
    out: Path,
    target_name: str = "portable",
    *,
    verify: Verify = "none",
    guard: bool = False,
    force: bool = False,
) -> Repaired:
    """Lift, rewrite, judge and run; the directory appears complete or not at all.

    Raises:
        LadingError: B710 to B742, F640 to F646, U951 when the result is not healthy, U952 when it gives other logits,
            U953 when it cannot be run as asked.
    """
    from backends.mnn.doctor.examine import examine
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.target.releases import target
    from backends.mnn.write.rewritten_folder import describe, require_readable, rewrite
    from backends.staging import check_target, staged_directory

    chosen = target(target_name)
    check_target(out, force)
    release, reason = _release_to_run(chosen, verify)
    subject = Subject(path)
    require_readable(subject)
    before = examine(path, chosen.releases)
    graph, report = lifted(subject, chosen)
    with staged_directory(out, force=force) as staging, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        describe(graph, subject, pool)
        emission = rewrite(graph, subject, staging, chosen, pool)
        after = examine(staging, chosen.releases)
        _require_healthy(after, path)
        done = Repaired(
            out,
            chosen.versions,
            [version for version in chosen.versions if before.healthy_on(version)],
            [version for version in chosen.versions if after.healthy_on(version)],
            (len(subject.net["oplists"]), len(graph.nodes)),
            not _widened(emission.layout),
            release,
            reason,
        )
        measured = _run(done, graph, path, staging) if release else []
        _write_contract(graph, emission, chosen, report, measured, guard, pool)
    return done


def _require_healthy(after: Report, path: Path) -> None:
    if after.healthy:
        return
    problems = [item.diagnostic() for item in after.findings if item.severity == "error"]
    error = LadingError("U951", f"the repaired model is not healthy: {problems[0].message}", where=str(path))
    error.diagnostics += tuple(problems)
    raise error


def _widened(layout: Layout) -> bool:
    """True when a scale is written with another width than it was read with."""
    quantized = [item.weight.quantized for item in layout.matrices.values() if item.weight.quantized is not None]
    alphas = [(getattr(item.source, "alpha", None), item.spec.scale) for item in quantized]
    return any(alpha is not None and alpha.type.dtype.name != scale for alpha, scale in alphas)


def _write_contract(
    graph: Graph,
    emission: Any,
    chosen: MnnTarget,
    report: PassReport,
    measured: list[Measurement],
    guard: bool,
    pool: ThreadPoolExecutor,
) -> None:
    from backends.backend import Made
    from backends.contract import write
    from backends.guard.write import add_guard
    from backends.mnn.contract import make_contract

    contract = make_contract(
        graph,
        emission,
        target=chosen,
        made=Made(report.pipeline, [(item.name, item.counts) for item in report.passes]),
        errors={},
        measurements=measured,
        executor=pool,
    )
    if guard:
        contract = add_guard(contract, emission.folder)
    write(contract, emission.folder)


# ---- the graph ----


def lifted(subject: Subject, target: MnnTarget) -> tuple[Graph, PassReport]:
    """The model as a legal graph in the target's convention, its embedding rows as a table, and what the passes did."""
    from backends.mnn.lower.exporter_spellings import spell_channels, spell_rotations
    from frontends.mnn.lift import lift
    from passes.framework.context import PassContext
    from passes.framework.load import load
    from passes.framework.manager import PassManager

    llm = subject.llm_config.values
    scale, window = llm.get("attn_scale", 0.0), llm.get("sliding_window")
    graph = lift(
        subject.net,
        subject.weight_path,
        convention=target.signature,
        attention_scale=float(scale) if isinstance(scale, (int, float)) else 0.0,
        scale="" if target.f16_scales else "f32",
    )
    _set_masks(graph, window if llm.get("attention_type") == "mix" and type(window) is int else 0)
    spell_channels(graph)
    if "rope" in target.fused_forms:
        spell_rotations(graph)
    _set_embedding(graph, subject, target)
    return graph, PassManager(load(clean_up(target))).run(graph, PassContext())


def clean_up(target: MnnTarget) -> str:
    """What is run on a lifted graph: it finds packed layouts again, which reading forgets, and fuses where the target
    can."""
    if not target.fused_forms:
        return "sink-layouts,cse,dce"
    # Queries and keys must be seen to be turned by the same angles.
    return f"cse,sink-layouts,fuse-mnn{{fuse=[{','.join(target.fused_forms)}]}},cse,dce"


def _set_masks(graph: Graph, window: int) -> None:
    """Note the window of attention, and which forms of the mask the graph takes."""
    from dataclasses import replace

    from ir.facts.inputs import DynamicInputs

    fact: DynamicInputs = graph.facts[DynamicInputs.name]
    planes = graph.value("attention_mask").type.rank == 5
    found = tuple(
        replace(item, shapes=tuple(shape for shape in item.shapes if (len(shape) == 5) is planes))
        if item.kind == "attention-mask"
        else item
        for item in fact.discoveries
    )
    windows = (0, window) if window else fact.windows
    graph.set_fact(DynamicInputs.name, replace(fact, discoveries=found, windows=windows))


def _set_embedding(graph: Graph, subject: Subject, target: MnnTarget) -> None:
    """Make embedding rows a table of the graph, but for quantized ones in a file of their own."""
    from backends.mnn.doctor.files import tie_forms, tie_numbers
    from frontends.mnn.weights import WeightFile, add_weight, embedding_matrix

    tie = subject.llm_config.values.get("tie_embeddings")
    found = tie_numbers(tie)
    if found is None:
        _set_rows(graph, subject)
        return
    if found[0] == 0:
        return
    half = tie.get("alpha_dtype") == "fp16" if isinstance(tie, dict) else tie[5:] == [1]
    layer = subject.logits_layer or {}
    rows = layer.get("main", {}).get("common", {}).get("outputCount", 0)
    columns = graph.value("input_ids").shape[-1]
    weights = WeightFile(subject.weight_path, "" if target.f16_scales else "f32")
    matrix = embedding_matrix(weights, found, rows, columns, half, layer)
    forms = (tie_forms(subject, tie) or set()) - {"object", "six"}
    readable = all(forms <= set(release.tie_embeddings) for release in target.releases)
    if readable:
        graph.set_table("embedding", add_weight(graph, "embedding", matrix, rows_first=True))
        return
    _split_embedding(graph, matrix)


def _set_rows(graph: Graph, subject: Subject) -> None:
    """The bfloat16 rows of the embedding file, where there is one."""
    from frontends.mnn.weights import WeightFile
    from ir.base.types import BF16, TensorType

    columns, path = graph.value("input_ids").shape[-1], subject.embedding_path
    rows = path.stat().st_size // (2 * columns) if path.is_file() else 0
    if rows:
        tensor = WeightFile(path).tensor(0, TensorType(BF16, (rows, columns)), "embedding")
        graph.set_table("embedding", graph.add_const(graph.fresh_name("embedding"), tensor))


def _split_embedding(graph: Graph, matrix: Any) -> None:
    """Rows that a release cannot decode come exactly from a file of their own, as a sum of bfloat16 parts."""
    from backends.mnn.lower.legalize import Lowering
    from ir.base.types import F32
    from ir.tensor.base import Tensor
    from ir.tensor.elementwise import cast

    table = cast(matrix, F32) if isinstance(matrix, Tensor) else matrix.source
    graph.set_table("embedding", graph.add_const("embedding", table))
    Lowering(graph).embedding_parts()


# ---- running it ----


def _release_to_run(chosen: MnnTarget, verify: Verify) -> tuple[str, str]:
    """The release that verification runs on, or why there is none.

    Raises:
        LadingError: U953 verification is asked for and the installed MNN is no release of the target.
    """
    from backends.mnn.target.environments import installed_version

    here = installed_version()
    if verify == "none":
        return "", "verification is off"
    if here is not None and any(item.version == here and item.llm_on_pypi for item in chosen.releases):
        return here, ""
    reason = (
        "MNN is not installed" if here is None else f"the installed MNN {here} is no release of the target that runs"
    )
    if verify == "quick":
        hint = f"pip install MNN=={chosen.versions[-1]}, or --verify none"
        raise LadingError("U953", f"the result cannot be run: {reason}", hint=hint)
    return "", reason


def _run(done: Repaired, graph: Graph, path: Path, folder: Path) -> list[Measurement]:
    """Run the result and compare with its stored weights in float arithmetic, and with the original where that runs.

    Raises:
        LadingError: U952 other logits, B667 to B669 a run of the result that fails.
    """
    import numpy as np

    from backends.mnn.run.native import EXACT_CONFIG
    from backends.mnn.verify.logits import Measurement
    from ir.facts.model_card import ModelCard
    from tools.matrix.cell import this_platform

    context = ModelCard.of(graph).context or TOKENS
    rng = np.random.default_rng(3)
    ids = [int(token) for token in rng.integers(0, ModelCard.of(graph).vocab_size, min(TOKENS, context))]
    got = _logits(folder, ids, done.verified)
    found: list[Measurement] = []
    if "embedding" in graph.tables:
        distance = _distance(_stored_logits(graph, ids), got, "the stored weights give", path)
        done.error = distance.max_abs
        settings = {key: EXACT_CONFIG[key] for key in ("memory", "precision", "thread_num")}
        found.append(Measurement(done.verified, this_platform(), settings, "decoded weights", len(ids), distance, 0, 0))
    if done.verified not in done.before:
        done.not_compared = "it is broken on this release"
        return found
    try:
        wanted = _logits(path, ids, done.verified)
    except LadingError as error:
        done.not_compared = f"it was found healthy, but {error.diagnostics[0].message}"
        return found
    done.from_original = _distance(wanted, got, "the original gives", path).max_abs
    return found


def _logits(folder: Path, ids: list[int], version: str) -> np.ndarray:
    """Logits of exact arithmetic, float32[tokens, vocabulary]: a prefill, then single tokens through the cache."""
    import numpy as np

    from backends.mnn.run.native import EXACT_CONFIG, run_model
    from backends.mnn.write.configs import config_for

    config = config_for(folder, version)
    pieces = [ids[:PREFILL], *([token] for token in ids[PREFILL:])]
    actions = [{"do": "forward", "pieces": pieces}]
    run = run_model(config, actions, overrides=EXACT_CONFIG, timeout_s=1800).require(str(config))
    return np.concatenate((run.results[0] or {})["logits"])


def _stored_logits(graph: Graph, ids: list[int]) -> np.ndarray:
    """What the graph that was written gives in onnxruntime."""
    import numpy as np

    from backends.mnn.verify.logits import MEMORY_LIMIT
    from ir.evaluate.evaluator import Evaluator
    from ir.facts.inputs import DynamicInputs

    fact: DynamicInputs = graph.facts[DynamicInputs.name]
    (logits,) = Evaluator(graph, memory_limit=MEMORY_LIMIT).run(fact.feeds(graph, np.array(ids), index=0)).values()
    return logits.reshape(-1, logits.shape[-1])


def _distance(wanted: np.ndarray, got: np.ndarray, whose: str, path: Path) -> Distance:
    """How far the result is from a reference.

    Raises:
        LadingError: U952 further than rounding explains.
    """
    from backends.mnn.verify.logits import EXACT_BAR
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
