"""Every ONNX backend test case goes through the compiler, and what ran right before runs right after.

``docs/conformance.md`` says what was covered and what was not; ``pytest --accept`` writes it anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.framework.base import Pass
from passes.framework.pipeline import Pipeline
from tests.support import onnx_cases
from tests.support.onnx_cases import Outcome
from tests.support.paths import ROOT
from tools.conformance.cases import KINDS, Case

PAGE = ROOT / "docs" / "conformance.md"
SECONDS = 240
PACKAGES = ("onnx", "onnxruntime")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """What became of every case, by key; computed once."""
    out = tmp_path_factory.mktemp("conformance") / "outcomes.jsonl"
    command = [sys.executable, "-m", "tests.support.onnx_cases", str(out), "--frozen"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, timeout=SECONDS, env=threads, stderr=subprocess.DEVNULL)
    rows = [Outcome(**json.loads(line)) for line in out.read_text().splitlines()]
    return {row.key: row for row in rows}


def test_what_ran_right_before_runs_right_after(outcomes):
    trouble = [f"{row.key}: {text}" for row in outcomes.values() for text in row.trouble]
    assert not trouble, f"{len(trouble)} problems, such as\n" + "\n".join(trouble[:20])


def test_nearly_every_case_is_covered(outcomes):
    plain = [row for row in outcomes.values() if not row.key.startswith("frozen-")]
    by_runner = Counter(row.runner for row in plain if row.right)
    assert len(plain) >= 1800 and {row.key.partition("/")[0] for row in plain} >= {
        "node",
        "simple",
        "pytorch-operator",
        "light",
    }
    assert by_runner["onnxruntime"] >= 1500
    assert sum(1 for row in plain if row.reason) <= 0.02 * len(plain)
    before, after = (sum(row.nodes[side] for row in plain) for side in (0, 1))
    assert after < 0.6 * before, "the pipeline does its work"


def test_the_page_says_what_was_covered(outcomes, request):
    text = page(outcomes)
    if request.config.getoption("--accept"):
        PAGE.write_text(text)
    found = PAGE.read_text()
    if versions() not in found:
        pytest.skip(f"docs/conformance.md is not about the installed {versions()}")
    assert found == text, "run pytest --accept tests/frontends/onnx/test_onnx_conformance.py"


# ---- the page ----


def versions() -> str:
    """The packages that the numbers depend on."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def page(outcomes: dict[str, Outcome]) -> str:
    """The text of ``docs/conformance.md``."""
    rows = sorted(outcomes.values(), key=lambda row: row.key)
    plain = [row for row in rows if not row.key.startswith("frozen-")]
    frozen = [row for row in rows if row.key.startswith("frozen-")]
    return HEAD.format(versions=versions(), **totals(plain)) + "\n".join(
        [
            *table(plain, "", KINDS),
            "",
            FROZEN.format(**totals(frozen)),
            *table(frozen, "frozen-", KINDS),
            "",
            "## Compared with the original only",
            "",
            "Neither runner gives the expected outputs of these cases; after the pipeline they give what they gave before.",
            "",
            *lines([row for row in plain if row.runner and not row.right and not row.random]),
            "",
            "The outputs of these are random; their types and shapes stay.",
            "",
            *lines([row for row in plain if row.random]),
            "",
            "## Not covered",
            "",
            "| case | why |",
            "|---|---|",
            *(f"| {row.key} | {row.reason.replace('|', '/')} |" for row in plain if row.reason),
            "",
        ]
    )


HEAD = """# ONNX conformance

Every test case of the ONNX package is lifted, run through the pipeline `canonicalize` with the verifier after every pass, and
emitted. Each is run before and after in onnxruntime without graph optimisation, or, where onnxruntime cannot run the original
(operators that are too new for it, or that it lacks), in ONNX's reference evaluator. What gave the expected outputs before
has to give them after; a model that passes `onnx.checker` before has to pass it after. Lifting and emitting without passes
gives the same model for every case, names, types and metadata included.

This page is written by `pytest --accept tests/frontends/onnx/test_onnx_conformance.py` and checked by the same test. It
is about {versions}.

{cases} cases, {covered} of them covered. The pipeline takes them from {before} nodes to {after}.

"""
FROZEN = """## With constants

{cases} cases have more than one input, all of them tensors. They are run once more with all inputs but the first made
constants, which gives the passes more to fold: from {before} nodes to {after}.
"""


def totals(rows: list[Outcome]) -> dict[str, int]:
    """Numbers for the text."""
    before, after = (sum(row.nodes[side] for row in rows) for side in (0, 1))
    return {"cases": len(rows), "covered": sum(not row.reason for row in rows), "before": before, "after": after}


def table(rows: list[Outcome], prefix: str, kinds: tuple[str, ...]) -> list[str]:
    """Cases by kind and runner."""
    head = (
        "| kind | cases | right in onnxruntime, before and after | right in the reference evaluator, before and after "
    )
    made = [head + "| compared with the original only | not covered |", "|---|---|---|---|---|---|"]
    for kind in kinds:
        group = [row for row in rows if row.key.startswith(f"{prefix}{kind}/")]
        right = Counter(row.runner for row in group if row.right)
        other = sum(1 for row in group if row.runner and not row.right)
        missing = sum(1 for row in group if row.reason)
        if group:
            counts = (right["onnxruntime"], right["reference"], other, missing)
            made.append(f"| {kind} | {len(group)} | " + " | ".join(map(str, counts)) + " |")
    return made


def lines(rows: list[Outcome]) -> list[str]:
    """One line for each case."""
    return [f"- {row.key}" for row in rows]


# ---- the harness itself ----


@dataclass(frozen=True)
class Spoil(Pass):
    """Make sums differences."""

    name = "spoil"

    def run(self, graph, ctx):
        """See `Pass.run`."""
        for node in graph.walk():
            if node.op == "Add":
                graph.set_op(node, "Sub")


@dataclass(frozen=True)
class Lose(Pass):
    """Drop an output."""

    name = "lose"

    def run(self, graph, ctx):
        """See `Pass.run`."""
        graph.set_outputs(graph.outputs[1:])


def case(op="Add", value=3.0):
    """A case of one node, which is right when the result is `value`."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz"]
    graph = helper.make_graph([helper.make_node(op, ["x", "y"], ["z"])], "g", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    one, two, three = (numpy_helper.to_array(helper.make_tensor("", 1, [1], [number])) for number in (1.0, 2.0, value))
    return Case("node", f"test_{op}", model.SerializeToString(), [([one, two], [three])], 1e-3, 1e-7)


def test_a_case_that_stays_right_and_one_that_was_never_right():
    outcome = onnx_cases.examine(case(), "dce")
    assert outcome.right and outcome.runner == "onnxruntime" and not outcome.trouble and outcome.nodes == (1, 1)
    outcome = onnx_cases.examine(case(value=4.0), "dce")
    assert outcome.runner and not outcome.right and not outcome.trouble and not outcome.reason
    outcome = onnx_cases.examine(case("NoSuchOperator"), "dce")
    assert not outcome.runner and "NoSuchOperator" in outcome.reason


def test_wrong_numbers_and_lost_outputs_are_noticed():
    assert onnx_cases.examine(case(), Pipeline((Spoil(),))).trouble == ("result: output 0: other numbers",)
    assert onnx_cases.examine(case(value=4.0), Pipeline((Spoil(),))).trouble == ("result: output 0: other numbers",)
    assert any("output" in text for text in onnx_cases.examine(case(), Pipeline((Lose(),))).trouble)
    assert "P301" in onnx_cases.examine(case(), "no-such-pass").trouble[0]


def test_a_crash_costs_one_case():
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "frontends" / "onnx")!r}]
import test_onnx_conformance as t
from tests.support import onnx_cases
from dataclasses import dataclass
@dataclass(frozen=True)
class Crash(t.Pass):
    "Crash on a product."
    name = "crash"
    def run(self, graph, ctx):
        if next(iter(graph.nodes)).op == "Mul":
            os.abort()
cases = [t.case("Mul", 2.0) if number % 3 == 0 else t.case() for number in range(7)]
for outcome in onnx_cases.run_all(cases, t.Pipeline((Crash(),))):
    print(outcome.key, outcome.trouble)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    lines_ = sorted(done.stdout.splitlines())
    assert lines_[:4] == ["node/test_Add ()"] * 4
    assert len(lines_) == 7 and all("the process ended with -6" in line for line in lines_[4:])


def test_round_trip_differences_are_noticed():
    model = onnx.ModelProto.FromString(case().model)
    for change in (
        lambda m: m.graph.node[0].attribute.add(name="a", type=7),
        lambda m: setattr(m.graph.node[0], "name", "other"),
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2),
        lambda m: setattr(m, "producer_version", "2"),
        lambda m: m.metadata_props.add(key="k", value="v"),
        lambda m: setattr(m.opset_import[0], "version", 21),
        lambda m: m.graph.initializer.add(name="w", data_type=1, dims=[0]),
    ):
        other = onnx.ModelProto.FromString(case().model)
        change(other)
        assert onnx_cases.unequal(model, other), change
