"""Statistics of weight inputs: how they are summed, kept on disk and recorded on a graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.store import FolderStore
from ir.base.whole_files import write_whole
from ir.facts.calibration import Calibration
from ir.graph.facts import build, data_of
from ir.graph.graph import Graph
from ir.quant.statistics import sums as gram
from ir.quant.statistics.moments import CalibrationText, Moments, MomentStore, windows_digest
from ir.quant.statistics.sums import MomentSums
from ir.tensor.inline import InlineTensor


def moments(features: int = 5, key: str = "k") -> Moments:
    x = np.random.default_rng(features).standard_normal((40, features)).astype(np.float32)
    return Moments(key, 40, x.T @ x / 40, x.mean(0), x.min(0), x.max(0))


@pytest.mark.parametrize("features", [1, 5, 255, 256, 600])
def test_statistics_come_back_as_they_were_kept(tmp_path: Path, features: int) -> None:
    given = moments(features)
    store = MomentStore(FolderStore(tmp_path / "below" / "here"))
    assert not store.has("k")
    store.save(given)
    assert store.has("k")
    found = store.load("k")
    for name in ("second", "mean", "low", "high"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert (found.key, found.tokens, found.features) == ("k", 40, features)
    np.testing.assert_array_equal(found.diagonal, np.diagonal(given.second))
    assert [entry.name for entry in store.store.entries()] == ["moments/k"]


def test_missing_and_damaged_statistics(tmp_path: Path) -> None:
    store = MomentStore(FolderStore(tmp_path))
    with pytest.raises(LadingError) as error:
        store.load("k")
    assert error.value.code == "Q430"
    path = tmp_path / "moments" / "k.kept"
    store.save(moments())
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:40], b"", b"no array", whole[:200] + b"\1" + whole[201:]):
        path.write_bytes(damaged)
        assert not store.has("k") and not path.exists()
        path.write_bytes(damaged)
        with pytest.raises(LadingError) as error:
            store.load("k")
        assert error.value.code == "Q430"
        assert [item.code for item in store.store.take_warnings()] == ["Q444", "Q444"]
    with store.store.put("moments/k", "Q431", "nothing") as scratch:
        scratch.write_bytes(b"sound, and no array")
    with pytest.raises(LadingError) as error:
        store.load("k")
    assert error.value.code == "Q430" and str(path) in str(error.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LadingError) as error:
        MomentStore(FolderStore(tmp_path / "file")).save(moments())
    assert error.value.code == "Q431"
    assert "LADING_CACHE" in str(error.value)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError), write_whole(path) as scratch:
        scratch.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with write_whole(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("features", [1, 3, 40, 65])
def test_sums_equal_those_in_double_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, features: int) -> None:
    monkeypatch.setattr(gram, "CHUNK", 32)
    monkeypatch.setattr(gram, "SLAB", 16)
    rng = np.random.default_rng(features)
    parts = [rng.standard_normal((1, count, features)).astype(np.float32) * 50 for count in (7, 32, 1, 100)]
    sums = MomentSums(features)
    for part in parts:
        sums.add(part)
    x = np.concatenate([part[0] for part in parts]).astype(np.float64)
    store = MomentStore(FolderStore(tmp_path))
    store.save_sums("k", sums)
    found = store.load("k")
    assert found.tokens == 140 and sums.is_finite
    scale = np.sqrt(np.outer((x**2).mean(0), (x**2).mean(0)))
    assert (np.abs(found.second - x.T @ x / 140) / scale).max() < 3e-7
    np.testing.assert_array_equal(found.second, found.second.T)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-5)
    np.testing.assert_array_equal(found.low, x.min(0))
    np.testing.assert_array_equal(found.high, x.max(0))
    assert store.rounding("k") == pytest.approx(sums.rounding(), rel=1e-6)
    store.save(replace(found, key="without"))
    assert store.rounding("without") == {}


def test_sums_do_not_depend_on_how_positions_come(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((100, 12)).astype(np.float32)
    whole, pieces = MomentSums(12), MomentSums(12)
    whole.add(x)
    for start in range(0, 100, 9):
        pieces.add(x[start : start + 9])
    for a, b in zip(whole.second(), pieces.second(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_long_sum_keeps_its_precision() -> None:
    """Many chunks of a feature with a large mean: single precision alone would be off by parts in a hundred
    thousand."""
    sums = MomentSums(1)
    x = np.full((gram.CHUNK, 1), 1000.1, np.float32)
    for _ in range(300):
        sums.add(x)
    (second,) = sums.second()
    assert abs(second[0] / np.float64(x[0, 0]) ** 2 - 1) < 3e-7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_is_noticed(bad: float) -> None:
    sums = MomentSums(3)
    x = np.zeros((4, 3), np.float32)
    x[2, 1] = bad
    sums.add(x)
    assert not sums.is_finite


def test_needed_memory_is_told_beforehand() -> None:
    assert MomentSums.nbytes(100) == 8 * 100 * 100 + 4 * gram.CHUNK * 100
    assert MomentSums.nbytes(4096) < 0.7 * 8 * 4096**2 + 4 * gram.CHUNK * 4096


def test_digests_of_windows() -> None:
    a, b = np.array([1, 2, 3]), np.array([4])
    assert windows_digest([a, b]) == windows_digest([a.astype(np.int64), b.astype(np.int32)])
    digests = [windows_digest(item) for item in ([a, b], [b, a], [a], [np.array([1, 2]), np.array([3, 4])])]
    assert len(set(digests)) == 4
    assert CalibrationText((a,), (b,)).digest() != CalibrationText((b,), (a,)).digest()
    assert CalibrationText((a, b), ()).digest() != CalibrationText((a,), (b,)).digest()


def test_the_fact_survives_printing_and_renaming() -> None:
    graph = Graph()
    graph.add_const("w", InlineTensor(np.zeros((2, 2), np.float32)))
    fact = Calibration("d", 64, {"w": "key"})
    assert build("calibration", data_of(fact)) == fact
    assert fact.check(graph) == []
    assert fact.renamed("w", "v") == Calibration("d", 64, {"v": "key"})
    assert fact.renamed("other", "v") is fact
    (problem,) = Calibration("d", 64, {"gone": "key"}).check(graph)
    assert problem.code == "I192" and "gone" in problem.message
