"""The fuzz command: it finds planted faults of every kind, says how to see them again, and the product has none at
hand."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ir.verify.stages import verify
from tests.support.paths import ROOT
from tools.fuzz import targets
from tools.fuzz.command import main
from tools.fuzz.finding import Finding, place_of
from tools.fuzz.inputs import mutate
from tools.fuzz.inputs.mutate_onnx import damage_model
from tools.fuzz.inputs.random_graphs import decorate, layered_graph, random_graph
from tools.fuzz.inputs.random_nodes import random_nodes
from tools.fuzz.search import Search
from tools.fuzz.target import Target, require
from tools.fuzz.worker import run_case

PLANTED = "tests.support.fuzz_planted"


def fuzz(*words: str, code: int = 0):
    """Run the command here; its result."""
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result


def planted(tmp_path: Path, name: str, *words: str, code: int = 1) -> dict:
    """What the command says as JSON of a planted target."""
    out = str(tmp_path / "found")
    result = fuzz("--load", PLANTED, "--only", name, "--seed", "0", "--out", out, "--json", *words, code=code)
    return json.loads(result.stdout)


# ---- faults are found ----


def test_a_planted_fault_is_found_in_process(tmp_path, monkeypatch):
    def check(given, case):
        require(given % 7 != 0, f"{given} is a multiple of 7")

    row = Target("planted", "multiples of seven", lambda case: case.rng.randrange(1000), check)
    monkeypatch.setattr(targets, "TARGETS", (row,))
    result = fuzz("--in-process", "--count", "60", "--seed", "5", "--out", str(tmp_path), code=1)
    assert "is a multiple of 7" in result.stderr and "in " + str(tmp_path) in result.stdout
    written = sorted(tmp_path.glob("planted-*.txt"))
    findings = [path for path in written if ".input" not in path.name]
    assert findings and len(written) == 2 * len(findings)
    text = findings[0].read_text()
    assert "kind      broken law" in text and "Traceback" in text and "input     planted-" in text


def test_the_reproducing_command_shows_the_fault_again(tmp_path):
    data = planted(tmp_path, "raises", "--count", "40")
    (finding,) = data["findings"]
    assert data["targets"]["raises"]["cases"] == 40 and data["targets"]["raises"]["faults"] > 1
    assert finding["summary"].startswith("KeyError") and f"--seed {finding['seed']} " in finding["command"]
    words = finding["command"].split()[3:]
    again = json.loads(fuzz(*words, "--json", "--out", str(tmp_path / "again"), code=1).stdout)
    assert [(item["seed"], item["summary"]) for item in again["findings"]] == [(finding["seed"], finding["summary"])]
    assert again["targets"]["raises"]["cases"] == 1


def test_equal_seeds_find_the_same(tmp_path):
    found = [planted(tmp_path / str(number), "raises", "--count", "20")["findings"] for number in range(2)]
    for items in found:
        for item in items:
            item.pop("file")
            assert "KeyError" in item["trace"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name, kind, seed, cases",
    [
        ("breaks", "broken law", None, 40),
        ("leaks", "exception", 0, 1),
        ("strict", "refused", 0, 1),
        ("dies", "died", 2, 3),
    ],
)
def test_every_kind_of_fault_is_told(tmp_path, name, kind, seed, cases):
    data = planted(tmp_path, name, "--count", str(cases))
    assert data["findings"][0]["kind"] == kind
    assert seed is None or data["findings"][0]["seed"] == seed
    assert data["targets"][name]["cases"] == cases


def test_a_crash_does_not_end_the_search(tmp_path):
    data = planted(tmp_path, "dies", "--count", "8")
    assert data["targets"]["dies"] | {"seconds": 0} == {"cases": 8, "refused": 0, "faults": 2, "seconds": 0}
    assert "SIGSEGV" in data["findings"][0]["summary"] and "fuzz_planted.py" in data["findings"][0]["trace"]


def test_a_hang_is_ended_and_shows_where_it_was(tmp_path):
    data = planted(tmp_path, "hangs", "--count", "2")
    (finding,) = data["findings"]
    assert (finding["kind"], finding["seed"], data["targets"]["hangs"]["cases"]) == ("hung", 1, 2)
    assert "no end after 1 s" in finding["summary"] and "in hangs" in finding["trace"]
    assert finding["place"] == "tests/support/fuzz_planted.py: hangs"


def test_refusals_are_no_faults_and_cases_have_empty_folders(tmp_path):
    data = planted(tmp_path, "refuses,leaves", "--count", "5", code=0)
    assert [data["targets"][name]["refused"] for name in ("refuses", "leaves")] == [5, 0]
    assert data["findings"] == [] and not (tmp_path / "found").exists()


def test_the_innermost_frame_of_the_product_is_the_place():
    trace = f'File "{ROOT}/ir/a.py", line 3, in f\nFile "/usr/lib/json.py", line 1, in loads\n'
    assert place_of(trace) == "ir/a.py: f"
    assert place_of(f'File "{ROOT}/tools/fuzz/worker.py", line 3, in run_case\n') == ""


# ---- the command ----


def test_list_names_every_target():
    names = [line.split()[0] for line in fuzz("--list").stdout.splitlines()]
    assert names == [target.name for target in targets.TARGETS] and len(set(names)) == len(names)
    assert list(json.loads(fuzz("--list", "--json", "--only", "text,plan").stdout)) == ["text", "plan"]


@pytest.mark.parametrize(
    "words", [["--only", "texst"], ["--only", ","], ["--load", "no.such.module"], ["--load", "tests.support.runs"]]
)
def test_unknown_targets_are_refused(words):
    assert "error[U940]" in fuzz(*words, "--count", "1", code=1).stderr


def test_wrong_options_are_usage_errors():
    for words in (["--minutes", "0"], ["--count", "0"], ["--seed", "-1"]):
        fuzz(*words, code=2)


def test_time_ends_a_search_and_quiet_prints_nothing(tmp_path):
    result = fuzz("--load", PLANTED, "--only", "refuses", "--minutes", "0.01", "-q", "--out", str(tmp_path / "none"))
    assert result.output == ""
    text = fuzz("--only", "repeats", "--count", "2", "--seed", "3", "--out", str(tmp_path / "none")).stdout
    assert "seed 3: nothing found" in text


def test_an_interrupted_search_reports(tmp_path, monkeypatch):
    run = Search.run

    def stopped(self, seconds, cases):
        run(self, seconds, cases)
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", stopped)
    data = planted(tmp_path, "raises", "--count", "20")
    assert data["targets"]["raises"]["cases"] == 20 and len(data["findings"]) == 1


def test_findings_of_one_fault_are_told_once():
    one = Finding("a", 1, "broken law", "it differs: 3", "", "")
    assert one.signature == Finding("a", 2, "broken law", "it differs: 4").signature
    assert one.signature != Finding("a", 2, "broken law", "it is lost: 4").signature
    assert one.signature != Finding("b", 2, "broken law", "it differs: 4").signature


def test_exceptions_of_one_class_and_place_are_one_fault():
    one = Finding("a", 1, "exception", "KeyError: 1", "ir/a.py: f")
    assert one.signature == Finding("b", 2, "exception", "KeyError: 2", "ir/a.py: f").signature
    assert one.signature != Finding("a", 1, "exception", "IndexError: 1", "ir/a.py: f").signature
    assert one.signature != Finding("a", 1, "exception", "KeyError: 1", "ir/a.py: g").signature


def test_the_module_is_a_command():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["tools.fuzz"], ["tools.main", "fuzz"]):
        result = subprocess.run(
            [sys.executable, "-m", *words, "--list"], env=environment, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "damaged-onnx" in result.stdout


# ---- what is generated ----


def test_random_graphs_are_right_and_differ():
    texts = set()
    for seed in range(60):
        for make in (random_graph, layered_graph):
            graph = make(random.Random(seed))
            assert [item for item in verify(graph) if item.severity == "error"] == []
            texts.add(repr([(node.op, len(node.inputs)) for node in graph.walk()]))
        decorate(graph, random.Random(seed))
    assert len(texts) > 100


def test_random_nodes_are_of_most_operators():
    ops = {node.op for seed in range(300) for node in random_nodes(random.Random(seed)).nodes}
    assert len(ops) > 150 and any(op.startswith("mnn.") for op in ops)


def test_damage_changes_its_input_and_nothing_else():
    from backends.onnx.write import to_model

    model = to_model(random_graph(random.Random(1)))
    before = model.SerializeToString()
    data = {"a": [1, 2.5, "x", {"b": None}], "c": True}
    kept = json.dumps(data)
    changed = [0, 0, 0, 0]
    for seed in range(50):
        changed[0] += damage_model(random.Random(seed), model).SerializeToString() != before
        changed[1] += mutate.damage_bytes(random.Random(seed), before) != before
        changed[2] += json.dumps(mutate.damage_json(random.Random(seed), data)) != kept
        changed[3] += mutate.damage_text(random.Random(seed), "graph g { %x = Add(%a, 1) }", ["dim"]) != kept
    assert min(changed) > 30
    assert model.SerializeToString() == before and json.dumps(data) == kept
    assert mutate.damage_bytes(random.Random(0), b"") is not None and np.isfinite(
        len(mutate.json_bytes(random.Random(0), data))
    )


# ---- the product ----

CASES = {"compile": 2, "repair": 2, "reader": 4, "doctor": 4}
"""Cases of slow targets; others have twelve."""


@pytest.mark.parametrize("name", [target.name for target in targets.TARGETS])
def test_nothing_is_found_at_hand(name, tmp_path):
    target = next(target for target in targets.TARGETS if target.name == name)
    for seed in range(CASES.get(name, 12)):
        _, finding = run_case(target, seed, tmp_path / "case", tmp_path.parent / "fuzz-samples")
        assert finding is None, f"{finding.summary}\n{finding.trace}"
