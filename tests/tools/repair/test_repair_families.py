"""Models of many families by the official exporter: repaired, they give the original's logits on every release."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from backends.mnn.lift.lift import lift
from backends.mnn.read.net_file import read_net
from ir.base.diag import LadingError
from ir.evaluate.evaluator import Evaluator
from tests.support.paths import DATA
from tests.support.runs import each_release, exact_logits, interpreters
from tools.repair.command import repair

REFUSED = {"qwen3-5-graph-only": "linear attention of packed channels"}
NAMES = sorted(
    [f"exports/{path.name}" for path in (DATA / "exports").iterdir() if path.name not in REFUSED]
    + ["official-qwen3-int8"]
)

ROUNDING = 1e-5
"""Allowed difference from the original, relative to the largest logit; the largest seen was 2.1e-6."""

needs_newest = pytest.mark.skipif("3.6.1" not in interpreters(), reason="the originals run on MNN 3.6.1 only")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Repaired folders and the logits of originals, made when first asked for."""
    folders: dict[tuple[str, str], Path] = {}
    wanted: dict[str, np.ndarray] = {}

    def get(name: str, target: str = "portable") -> tuple[Path, np.ndarray]:
        if (name, target) not in folders:
            folders[name, target] = tmp_path_factory.mktemp("repaired") / "out"
            repair(DATA / name, folders[name, target], target)
        if name not in wanted:
            wanted[name] = exact_logits(DATA / name, "3.6.1")
        return folders[name, target], wanted[name]

    return get


@needs_newest
@pytest.mark.parametrize("version", each_release())
@pytest.mark.parametrize("name", NAMES)
def test_a_repaired_family_gives_the_logits_of_its_original(name, version, made):
    folder, wanted = made(name)
    found = exact_logits(folder, version)
    assert found.shape == wanted.shape and np.abs(wanted).max() > 10
    assert np.abs(found - wanted).max() <= ROUNDING * np.abs(wanted).max()


@needs_newest
@pytest.mark.parametrize("name", NAMES)
def test_a_family_repaired_for_the_newest_release_gives_the_logits_of_its_original(name, made):
    folder, wanted = made(name, "3.6.1")
    assert np.abs(exact_logits(folder, "3.6.1") - wanted).max() <= ROUNDING * np.abs(wanted).max()


def with_weights(folder: Path, source: Path) -> Path:
    """A copy of an export; where it is a graph alone, with a weight file of zeros whose matrices have their headers."""
    shutil.copytree(source, folder)
    weights = folder / "llm.mnn.weight"
    if weights.is_file():
        return folder
    layers = [op["main"] for op in read_net(folder / "llm.mnn")["oplists"] if op.get("type") == "Convolution"]
    found = np.zeros(max(sum(map(int, main["external"])) for main in layers), np.uint8)
    for main in layers:
        start, size = map(int, main["external"][:2])
        rows, columns = main["common"]["outputCount"], main["common"]["inputCount"]
        bits = next(bits for bits in (4, 8) if 6 + 2**bits + rows * columns * bits // 8 == size)
        table = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)
        header = bytes([2]) + np.array([rows, columns], "<u2").tobytes() + bytes([2**bits % 256]) + table.tobytes()
        found[start : start + len(header)] = np.frombuffer(header, np.uint8)
    found.tofile(weights)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_not_read_is_refused_by_what_it_is(name, tmp_path):
    folder = with_weights(tmp_path / name, DATA / "exports" / name)
    with pytest.raises(LadingError, match=REFUSED[name]) as caught:
        repair(folder, tmp_path / "out")
    assert caught.value.code == "F644" and list(tmp_path.iterdir()) == [folder]


# ---- operators ----


def rotations(net) -> list[dict]:
    """The RoPE operators of a model."""
    return [op["main"] for op in net["oplists"] if op.get("type") == "RoPE"]


def test_a_gain_inside_a_rotation_must_fit_the_heads():
    folder = DATA / "exports" / "qwen3-int4"
    net = read_net(folder / "llm.mnn")
    rotations(net)[0]["q_norm"]["gamma"] = np.ones(7, np.float32)
    with pytest.raises(LadingError, match="a norm of 24 elements has 7 and 24 of gain and shift") as caught:
        lift(net, folder / "llm.mnn.weight")
    assert caught.value.code == "F643"


def test_a_norm_inside_a_rotation_without_a_gain_is_none():
    folder = DATA / "exports" / "qwen3-int4"
    net = read_net(folder / "llm.mnn")
    norms = [node.op for node in lift(net, folder / "llm.mnn.weight").nodes].count("mnn.LayerNorm")
    for main in rotations(net):
        del main["q_norm"]["gamma"]
    graph = lift(net, folder / "llm.mnn.weight")
    assert [node.op for node in graph.nodes].count("mnn.LayerNorm") == norms - 2


def behind(logits_op: dict) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model with an operator behind its logits, and those without it."""
    folder = DATA / "exports" / "gemma-int4"
    rows = np.random.default_rng(1).normal(size=(5, 1, 64)).astype(np.float32)
    feeds = {"input_ids": rows, "attention_mask": np.zeros((), np.float32), "logits_index": np.zeros(1, np.int32)}
    feeds["position_ids"] = np.arange(5, dtype=np.int32)[None]
    found = []
    for more in ([], [logits_op]):
        net = read_net(folder / "llm.mnn")
        index = net["tensorName"].index("logits")
        if more:
            net["tensorName"][index] = "before"
            net["tensorName"].append("logits")
            last = {"name": "last", "inputIndexes": [index], "outputIndexes": [len(net["tensorName"]) - 1], **logits_op}
            net["oplists"].append(last)
        graph = lift(net, folder / "llm.mnn.weight")
        found.append(Evaluator(graph).run(feeds)["logits"].astype(np.float64))
    return found[0], found[1]


def test_softmax_is_read():
    before, found = behind({"type": "Softmax", "main": {"axis": -1}})
    powers = np.exp(before - before.max(axis=-1, keepdims=True))
    assert np.allclose(found, powers / powers.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-9)


def test_relu_is_read():
    before, found = behind({"type": "ReLU", "main": {"slope": 0.0}})
    assert np.array_equal(found, np.maximum(before, 0)) and (before < 0).any()
    with pytest.raises(LadingError, match="a ReLU of slope"):
        behind({"type": "ReLU", "main": {"slope": 0.1}})


def test_reductions_are_read():
    before, found = behind({"type": "Reduction", "main": {"operation": "MAXIMUM", "dim": [-1], "keepDims": True}})
    assert np.array_equal(found, before.max(axis=-1, keepdims=True))
    with pytest.raises(LadingError, match="reductions of all axes") as caught:
        behind({"type": "Reduction", "main": {"operation": "SUM"}})
    assert caught.value.code == "F644"
