"""The table of divergences by rounding method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rounding

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny-qwen2.5"


def test_every_method_is_measured_on_text_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    sizes = ["--tokens", "1024", "--held-out", "512", "--evaluated", "512"]
    argv = [str(EXAMPLE), "--bits", "3", "--methods", "rtn", "gptq", "both", *sizes, "--json", str(tmp_path / "found")]
    rounding.main(argv)
    rows = json.loads((tmp_path / "found").read_text())
    assert [(row["method"], row["bits"]) for row in rows] == [("rtn", 3), ("gptq", 3), ("both", 3)]
    plain, one, both = (row["kl"] for row in rows)
    assert both < one < plain
    assert all(row["held"] != row["kl"] for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_checkpoint_without_texts_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no text .*calibration\.txt"):
        rounding.main([str(tmp_path)])
