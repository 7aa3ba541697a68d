"""The record of raised codes: what counts, and when the whole suite is taken to run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backends.mnn.doctor.findings import Finding
from frontends.checkpoint.load import load
from ir.base.diag import Diagnostic, LadingError
from tests.support.paths import ROOT
from tests.support.suite import code_record
from tests.support.suite.code_record import expect_code, is_whole


@pytest.fixture
def raised(monkeypatch) -> set[str]:
    """What is recorded while a test runs; forgotten afterwards."""
    found: set[str] = set()
    monkeypatch.setattr(code_record, "RAISED", found)
    return found


def test_what_the_product_raises_counts(raised, tmp_path):
    with pytest.raises(LadingError) as error:
        load(tmp_path)
    assert raised == {error.value.code}


def test_what_a_test_makes_for_itself_does_not_count(raised):
    Diagnostic("F500", "made here")
    LadingError("F501", "made here")
    LadingError.of([Diagnostic("F502", "made here")])
    Finding("B710", "made here", ())
    assert raised == set()


def test_codes_of_child_processes_count_when_their_output_is_looked_at(raised):
    expect_code("error[F500]: no such folder\n  at /tmp", "F500")
    expect_code(json.dumps({"errors": [{"code": "B630", "message": "exists"}]}), "B630")
    assert raised == {"F500", "B630"}


@pytest.mark.parametrize("output", ["", "F500", "error[F501]: no", '{"errors": [{"text": "F500"}]}'])
def test_a_code_that_is_not_reported_fails(raised, output):
    with pytest.raises(AssertionError, match="F500"):
        expect_code(output, "F500")
    assert raised == set()


def test_what_another_process_recorded_is_added(raised, monkeypatch):
    monkeypatch.setattr(code_record, "SHOWN", {"F501"})
    monkeypatch.setattr(code_record, "SEEN", {"F502": ["here"]})
    raised.add("F501")
    code_record.add(
        json.loads(json.dumps({"raised": ["F500"], "shown": ["F500"], "seen": {"F500": ["no"], "F502": ["there"]}}))
    )
    assert code_record.taken() == {
        "raised": ["F500", "F501"],
        "shown": ["F500", "F501"],
        "seen": {"F502": ["here", "there"]},
    }


def test_the_suite_is_whole_when_every_file_was_collected(tmp_path):
    (tmp_path / "tests" / "cases").mkdir(parents=True)
    files = [tmp_path / "tests" / name for name in ("test_a.py", "test_b.py", "cases/c.lading", "helper.py")]
    for path in files:
        path.touch()
    assert is_whole(tmp_path, files[:3], ["tests"])
    assert not is_whole(tmp_path, files[:2], ["tests"]) and not is_whole(tmp_path, files[1:3], ["tests"])
    assert not is_whole(tmp_path, files[:3], ["tests/test_a.py::test_one", "tests"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests/ir/base/test_codes.py"],
        ["tests/ir/base/test_codes.py", "-k", "raised"],
        ["tests/ir/base/test_codes.py", "-n", "1"],
    ],
)
def test_a_part_of_the_suite_says_nothing_of_codes(arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0 and "failed" not in result.stdout, result.stdout
    assert "deselected" in result.stdout or "-n" in arguments, result.stdout
