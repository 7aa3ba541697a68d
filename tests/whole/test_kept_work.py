"""What is kept between runs changes no result, whatever has happened to it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ir.base.store import CACHE_VARIABLE
from tests.support.checkpoints import make_checkpoint
from tools.compile.job import Request, Result, compile_model

TEXT = "\n".join(f"line {number}: {number * 7919 % 1000} goes to {number % 13}" for number in range(400))
KINDS = ("measurements", "moments", "quantized")


def compiled(source: Path, out: Path) -> Result:
    text = source.parent / "text.txt"
    text.write_text(TEXT)
    return compile_model(Request(str(source), out, verify="none", calibration=text, budget="4.5bpw", force=True))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def codes(result: Result) -> set[str]:
    """Codes of the warnings; Q433 tells that the text is short, Q477 that 4 bits in every weight would decode faster."""
    return {item.code for item in result.warnings}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, Path, dict[str, bytes]]:
    """A checkpoint, the folder of what compiling it kept, and the files that came out."""
    work = tmp_path_factory.mktemp("work")
    source = make_checkpoint(work / "source", "qwen2", num_hidden_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(work / "cache"))
        compiled(source, work / "out")
    return source, work / "cache", files(work / "out")


def test_kept_work_gives_the_same_folder_and_contract(first, tmp_path, monkeypatch):
    source, cache, made = first
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    before = {path: path.read_bytes() for path in cache.rglob("*.kept")}
    assert {path.parent.name for path in before} == set(KINDS)
    result = compiled(source, tmp_path / "out")
    assert codes(result) == {"Q433", "Q477"} and files(tmp_path / "out") == made
    assert {path: path.read_bytes() for path in cache.rglob("*.kept")} == before
    counts = {item.name: item.counts for item in result.report.passes}["calibrate"]
    assert counts["computed"] == 0 < counts["cached"]
    told = {item["name"]: item["counts"] for item in json.loads(made["contract.json"])["pipeline"]["passes"]}
    assert set(told["calibrate"]) == {"weights"}


@pytest.mark.parametrize("how", ["bit", "folder"])
def test_damaged_work_is_told_once_and_made_anew(first, tmp_path, monkeypatch, how):
    source, cache, made = first
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    rng = random.Random(how)
    before = {path: path.read_bytes() for path in sorted(cache.rglob("*.kept"))}
    for path, content in before.items():
        data = bytearray(content)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.unlink()
        path.mkdir() if how == "folder" else path.write_bytes(data)
    result = compiled(source, tmp_path / "out")
    assert files(tmp_path / "out") == made
    told = [Path(str(item.where)) for item in result.warnings if item.code == "Q444"]
    assert codes(result) == {"Q433", "Q444", "Q477"} and told and len(told) == len(set(told))
    assert set(told) <= set(before) and {path.parent.name for path in told} == set(KINDS)
    again = {path: path.read_bytes() for path in cache.rglob("*.kept") if path.is_file()}
    assert again.keys() >= set(told) and again.items() <= before.items()
