"""What the compiler makes of the tiny checkpoints, judged by their goldens: right, refused with which code, or wrong.

``python -m tests.support.families.judge [CASE ...] [--to mnn] [--release R ...] [--json FILE] [--folder DIR]``
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from ir.base.diag import LadingError
from ir.graph.graph import Graph
from tests.support.families.cases import CASES
from tests.support.families.checkpoints import Golden, kept

GRAPH = "graph"
"""The column of the graph itself, evaluated by onnxruntime."""

MNN_BAR = 10.0
"""How much further than `Golden.bar` a runtime may be off: 1e-3 where logits reach 10."""


@dataclass(frozen=True)
class Verdict:
    """How one checkpoint fares in one column.

    Attributes:
        status: ``right``, ``refused``, ``wrong`` or ``broken`` (an exception that is no `LadingError`, a crash).
        code: of the error, where it was refused.
        error: largest difference of a logit.
        message: what was said, or where it went wrong.
    """

    status: str
    code: str = ""
    error: float | None = None
    message: str = ""

    @property
    def short(self) -> str:
        """In one cell."""
        if self.status == "right":
            return f"{self.error:.0e}"
        if self.status == "refused":
            return self.code
        return self.status.upper() if self.error is None else f"{self.status.upper()} {self.error:.1g}"


def judge_graph(folder: Path, golden: Golden) -> Verdict:
    """Evaluate the graph of a checkpoint and compare all logits."""
    from frontends.checkpoint.load import load
    from ir.evaluate.evaluator import Evaluator

    try:
        evaluator = Evaluator(load(folder), threads=1)
        found = [evaluator.run({"input_ids": ids})["logits"][0] for ids in golden.ids]
    except LadingError as error:
        return _refused(error)
    except Exception as error:
        return _broken(error)
    return compare(found, golden.logits, golden.bar)


def judge_mnn(folder: Path, golden: Golden, releases: Sequence[str], out: Path) -> dict[str, Verdict]:
    """Compile in float32 and run on releases of MNN: prefill of each prompt, and one prompt through the cache.

    One directory for all releases is tried first, then one for each.
    """
    from backends.mnn.target.environments import interpreters

    known = interpreters()
    try:
        _compile(folder, out / "all", None)
    except Exception:
        verdicts = {}
        for release in releases:
            try:
                _compile(folder, out / release, release)
            except LadingError as error:
                verdicts[release] = _refused(error)
            except Exception as error:
                verdicts[release] = _broken(error)
            else:
                verdicts[release] = _run_mnn(folder, out / release, golden, release, known[release])
        return verdicts
    return {release: _run_mnn(folder, out / "all", golden, release, known[release]) for release in releases}


def _compile(folder: Path, out: Path, target: str | None) -> None:
    from tools.compile.job import Request, compile_model

    tokenizer: Any = None if (folder / "tokenizer.json").exists() else "none"
    request = Request(
        str(folder), out, "fp32", target=target, to="mnn-llm", verify="none", tokenizer=tokenizer, force=True
    )
    compile_model(request)


def _run_mnn(source: Path, folder: Path, golden: Golden, release: str, interpreter: Path | str) -> Verdict:
    from backends.mnn.run.native import run_model
    from backends.mnn.write.configs import config_for
    from frontends.checkpoint.load import load
    from ir.facts.model_card import ModelCard

    graph = load(source)
    steady = ModelCard.of(graph).steady_context or 1 << 20
    actions = [{"do": "forward", "pieces": [ids[0].tolist()]} for ids in golden.ids]
    whole = [number for number, ids in enumerate(golden.ids) if ids.shape[1] <= steady]
    if whole:
        ids = golden.ids[whole[-1]][0].tolist()
        several = 4 if _forgets(graph, release) else 11
        cut = [ids[:3], ids[3:4], ids[4:several], *([token] for token in ids[several:])]
        actions.append({"do": "forward", "pieces": [piece for piece in cut if piece]})
    run = run_model(config_for(folder, release), actions, interpreter=interpreter, timeout_s=120)
    if run.failure:
        lines = [line for line in run.child.log.splitlines() if line.strip()]
        return Verdict("broken", message=f"{run.failure}: {lines[-1] if lines else ''}"[:300])
    found = [np.concatenate(result["logits"]) for result in run.results if result is not None]
    wanted = [*golden.logits, *([golden.logits[whole[-1]]] if whole else [])]
    return compare(found, wanted, MNN_BAR * golden.bar)


def _forgets(graph: Graph, release: str) -> bool:
    """True where a release is known to lose a model's history before several tokens at once, of which it is warned."""
    from backends.mnn.target.needs import warnings
    from backends.mnn.target.releases import RELEASES

    return any("several tokens behind a history" in item.message for item in warnings(graph, [RELEASES[release]]))


def compare(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], bar: float) -> Verdict:
    """Right when no logit is further off than the bar."""
    gaps = []
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a.shape != b.shape:
            return Verdict("wrong", message=f"prompt {number}: logits {a.shape} instead of {b.shape}")
        gap = float(np.abs(a - b).max())
        gaps.append(gap if np.isfinite(gap) else float("inf"))
    worst = max(gaps)
    said = "" if worst <= bar else "off by " + ", ".join(f"{gap:.2g}" for gap in gaps) + f" where {bar:.1g} is allowed"
    return Verdict("right" if worst <= bar else "wrong", error=worst, message=said)


def _refused(error: LadingError) -> Verdict:
    return Verdict("refused", error.code, message=error.diagnostics[0].message)


def _broken(error: Exception) -> Verdict:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Verdict(
        "broken", message=f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"[:300]
    )


def table(results: dict[str, dict[str, Verdict]], columns: Sequence[str]) -> str:
    """A line for each checkpoint, then what is wrong in words, then counts."""
    lines = [f"{'case':26}" + "".join(f"{column:>14}" for column in columns)]
    for name, row in results.items():
        lines.append(f"{name:26}" + "".join(f"{row[column].short if column in row else '':>14}" for column in columns))
    lines.append("")
    for name, row in results.items():
        said: dict[str, list[str]] = {}
        for column, verdict in row.items():
            if verdict.status != "right":
                said.setdefault(f"{verdict.status} {verdict.code} {verdict.message}", []).append(column)
        lines += [f"{name} [{', '.join(places)}]: {text[:220]}" for text, places in said.items()]
    for column in columns:
        counts = Counter(row[column].status for row in results.values() if column in row)
        lines.append(f"{column}: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    return "\n".join(lines)


@click.command()
@click.argument("patterns", nargs=-1)
@click.option("--to", type=click.Choice([GRAPH, "mnn"]), default=GRAPH)
@click.option("--release", "releases", multiple=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), help="Where checkpoints are kept; they are made once.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the page of the manual.")
def main(
    patterns: Sequence[str],
    to: str,
    releases: Sequence[str],
    json_file: Path | None,
    folder: Path | None,
    markdown: Path | None,
) -> None:
    """Judge all cases, or those that a pattern names."""
    from backends.mnn.target.environments import LLM_RELEASES

    names = [name for name in CASES if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    columns = [GRAPH, *((releases or LLM_RELEASES) if to == "mnn" else ())]
    results: dict[str, dict[str, Verdict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, golden = kept(place, name)
            row = {GRAPH: judge_graph(source, golden)}
            if to == "mnn" and row[GRAPH].status != "refused":
                row |= judge_mnn(source, golden, columns[1:], Path(scratch) / "mnn" / name)
            results[name] = row
            print(f"{name}: " + " ".join(verdict.short for verdict in row.values()), file=sys.stderr, flush=True)
    print(table(results, columns))
    if json_file:
        found = {name: {key: asdict(verdict) for key, verdict in row.items()} for name, row in results.items()}
        json_file.write_text(json.dumps(found, indent=1))
    if markdown:
        from tests.support.families.page import family_page

        markdown.write_text(family_page(results, columns, date.today().isoformat()))


if __name__ == "__main__":
    main()
