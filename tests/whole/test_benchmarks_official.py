"""The benchmark against the official exporter: further results, what is mapped, and the table of speeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import official
from tests.support.paths import EXAMPLE


@pytest.fixture
def parsed(monkeypatch):
    """The arguments of a command line."""

    def parse(*words: str):
        given = ["official", str(EXAMPLE), "--mnn-checkout", "MNN", "--torch-python", "python", *words]
        monkeypatch.setattr(sys, "argv", given)
        return official.parse_arguments()

    return parse


def test_further_results_have_commands_of_their_side(parsed, tmp_path):
    args = parsed(
        "--more-lading", "row=int4{block=0} --target 3.6.1", "--more-official", "plain=--disable_transformer_c4"
    )
    found = {entry.name: entry for entry in official.contenders(args, tmp_path)}
    assert list(found) == ["official", "plain", "lading", "row"]
    assert found["row"].argv[-4:] == ("--passes", "int4{block=0}", "--target", "3.6.1")
    assert found["plain"].argv[-1] == "--disable_transformer_c4" and "llmexport.py" in found["plain"].argv[1]
    assert found["row"].out == tmp_path / "row" and str(found["row"].out) in found["row"].argv
    for wrong in ("row", "=int4", "a/b=int4"):
        with pytest.raises(SystemExit, match="is not NAME="):
            official.contenders(parsed("--more-lading", wrong), tmp_path)
    with pytest.raises(SystemExit, match="two results have one name"):
        official.contenders(parsed("--more-lading", "official=int4"), tmp_path)


def test_only_results_that_say_so_are_mapped(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert official.mapping(tmp_path) == {"use_mmap": False}
    (tmp_path / "config.json").write_text(json.dumps({"use_mmap": True, "tmp_path": "x"}))
    assert Path(official.mapping(tmp_path)["tmp_path"]).parent == tmp_path.parent


def test_more_is_better_for_rates_and_less_for_times():
    base = {key: [2.0, 4.0, 3.0] for _, key, _, _ in official.SPEEDS}
    mine = {key: [6.0] if more else [1.0] for _, key, _, more in official.SPEEDS}
    lines = official.speeds({"2": {"official": base, "row": mine}}, {"official": 5e6, "row": 4e6}).splitlines()
    assert lines[0].startswith("2 threads") and lines[1].count("(1.00x)") == len(official.SPEEDS)
    assert lines[2].split()[:2] == ["row", "4"]
    assert lines[2].count("(3.00x)") == 4 and lines[2].count("(2.00x)") == 2


@pytest.mark.mnn
def test_a_result_is_run_on_the_installed_runtime(parsed, tmp_path):
    from tests.support.runs import compiled

    folder = compiled(EXAMPLE, tmp_path / "out", "int4", target="3.6.1", mmap=True)
    args = parsed("--decode-tokens", "2", "--prompt-tokens", "4")
    found = [official.run_result(folder, 1, args) for _ in range(2)]
    assert all(item["decode_cpu_s"] > 0 and item["load_cpu_s"] > 0 for item in found)
    assert (tmp_path / "out.mapped").is_dir()
