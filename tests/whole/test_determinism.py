"""The suite's property tests have the same outcome in every run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.paths import ROOT

TESTS = ROOT / "tests"

PROPERTY = """
from hypothesis import given, settings, strategies as st

@settings(max_examples=25)
@given(st.integers(), st.text())
def test_prints(number, text):
    with open("drawn.txt", "a") as file:
        print(number, ascii(text), file=file)
"""


def test_the_profile_leaves_nothing_to_chance():
    profile = settings.get_profile("lading")
    assert profile.derandomize and profile.deadline is None and profile.database is None and profile.print_blob
    assert HealthCheck.too_slow in profile.suppress_health_check


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_leaves_the_profile(path):
    if path.name in ("conftest.py", Path(__file__).name):
        return
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"derandomize|database=|load_profile|deadline=(?!None)|@seed\b", text)
    for given in re.findall(r"suppress_health_check=(\S[^)\]]*)", text):
        assert "too_slow" in given or given.startswith("list(HealthCheck"), given


def test_two_runs_draw_the_same(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_drawing.py").write_text(PROPERTY)
    drawn = []
    for _ in range(2):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_drawing.py"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
        drawn.append((tmp_path / "drawn.txt").read_text())
        (tmp_path / "drawn.txt").unlink()
    assert drawn[0] == drawn[1] and drawn[0].count("\n") >= 10
