"""The jobs that fill the weight file: plain data, the same bytes on every executor, progress and errors."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Executor, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.mnn.write import weight_file
from backends.mnn.write.weight_file import embedding_jobs, fill, run, weight_jobs
from backends.mnn.write.weight_layout import Layout, plan_layout
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.executor import SERIAL, Spread
from ir.base.store import default_store, folder_store, using_store
from passes.framework.manager import PassManager
from tests.support.checkpoints import hot_tensors, make_checkpoint, write_weights
from tools.compile.job import EXAMPLE

SLOW = "discover-inputs,assign-precision{method=hqq bits=3},insert-qdq,legalize-mnn"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def layout_of(source: Path, pipeline: str) -> Layout:
    graph = load(source)
    PassManager(pipeline).run(graph)
    return plan_layout(graph)


def written(layout: Layout, folder: Path, executor: Executor) -> tuple[bytes, bytes, list[int]]:
    """Bytes of the weight file and of the embedding file, which must be those digested, and what progress was told."""
    folder.mkdir()
    told: list[int] = []
    weights, rows = folder / "weights", folder / "rows"
    digest = fill(weights, layout.nbytes, weight_jobs(layout, weights), executor, told.append)
    assert digest == sha256(weights.read_bytes()).hexdigest()
    if layout.embedding_file is not None:
        table = layout.embedding_file
        digest = fill(rows, 2 * table.rows * table.columns, embedding_jobs(table, rows), executor, told.append)
        assert digest == sha256(rows.read_bytes()).hexdigest()
    return weights.read_bytes(), rows.read_bytes() if rows.exists() else b"", told


@pytest.mark.parametrize("pipeline", ["default", "fp16", "fp32", SLOW])
def test_the_bytes_are_the_same_on_every_executor(
    pipeline: str, processes: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_file, "JOB_ELEMENTS", 1 << 16)
    found = []
    with ThreadPoolExecutor(3) as threads:
        executors = {
            "serial": SERIAL,
            "threads": threads,
            "processes": processes,
            "elsewhere": Spread(processes, 2),
            "apart": Spread(processes, 2, shares_files=False),
        }
        for name, executor in executors.items():
            monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache" / name))
            found.append(written(layout_of(EXAMPLE, pipeline), tmp_path / name, executor))
    assert len(found[0][0]) > 2_000_000 and bool(found[0][1]) == (pipeline == "fp32")
    assert found[1] == found[0] and found[2] == found[0]
    # Of these, progress is told in another order.
    assert [item[:2] for item in found[3:]] == [found[0][:2]] * 2
    assert [sum(item[2]) for item in found[3:]] == [sum(found[0][2])] * 2
    caches = [
        {entry.name for entry in folder_store(tmp_path / "cache" / name).entries()} for name in ("serial", "processes")
    ]
    assert caches[0] == caches[1] and bool(caches[0]) == (pipeline == SLOW)


def test_what_is_finished_goes_to_the_disk_while_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(weight_file, "JOB_ELEMENTS", 1 << 16)
    monkeypatch.setattr(weight_file, "SENT", 1 << 16)
    monkeypatch.setattr(weight_file, "begin_sync", lambda fd, start, stop: sent.append((start, stop)))
    layout = layout_of(EXAMPLE, "default")
    written(layout, tmp_path / "out", SERIAL)
    assert len(sent) > 5
    assert [start for start, _ in sent] == [0, *(stop for _, stop in sent[:-1])]
    assert layout.nbytes - (1 << 16) < sent[-1][1] <= layout.nbytes


def test_jobs_are_plain_data(tmp_path: Path) -> None:
    layout = layout_of(EXAMPLE, "default")
    jobs = weight_jobs(layout, tmp_path / "weights")
    data = pickle.dumps(jobs)
    assert len(data) < 2_000_000
    again = pickle.loads(data)
    assert [(job.what, job.elements, job.path) for job in again] == [(job.what, job.elements, job.path) for job in jobs]
    (tmp_path / "weights").write_bytes(bytes(layout.nbytes))
    for job in reversed(again):
        assert run(job) == []
    assert (tmp_path / "weights").read_bytes() == written(layout, tmp_path / "other", SERIAL)[0]


def test_progress_is_told_in_the_calling_thread_up_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(weight_file, "JOB_ELEMENTS", 1 << 16)
    layout = layout_of(EXAMPLE, "default")
    jobs = weight_jobs(layout, tmp_path / "weights")
    told: list[tuple[int, threading.Thread]] = []
    with ThreadPoolExecutor(2) as executor:
        fill(
            tmp_path / "weights", layout.nbytes, jobs, executor, lambda n: told.append((n, threading.current_thread()))
        )
    assert sorted(n for n, _ in told) == sorted(job.elements for job in jobs)
    assert {thread for _, thread in told} == {threading.current_thread()}


class _Losing(Spread):
    """Other machines, behind a file system that loses the last bytes of what one job has written."""

    def result(self, future: Any) -> list[Any]:
        found = super().result(future)
        place, length, _ = found[0][-1]
        with self.path.open("r+b") as file:
            file.seek(place + length - 1)
            last = file.read(1)[0]
            file.seek(place + length - 1)
            file.write(bytes([last ^ 255]))
        return found


def test_what_a_file_system_loses_is_noticed(processes: Executor, tmp_path: Path) -> None:
    layout = layout_of(EXAMPLE, "default")
    losing = _Losing(processes, 1)
    losing.path = tmp_path / "weights"
    with pytest.raises(LadingError, match="are not what a worker has written there") as error:
        fill(losing.path, layout.nbytes, weight_jobs(layout, losing.path), losing)
    assert error.value.code == "B620" and str(losing.path) in str(error.value)


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_errors_keep_their_codes(kind: str, processes: Executor, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "qwen2")
    tensors = hot_tensors(json.loads((source / "config.json").read_text()))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].reshape(-1)[3] = np.nan
    write_weights(source, tensors)
    layout = layout_of(source, "fp32")
    executor = {"serial": SERIAL, "threads": ThreadPoolExecutor(2), "processes": processes}[kind]
    with pytest.raises(LadingError) as error:
        written(layout, tmp_path / "out", executor)
    assert error.value.code == "B621" and name in str(error.value)
    job = weight_jobs(layout, tmp_path / "missing" / "weights")[0]
    with pytest.raises(LadingError) as error:
        executor.submit(run, job).result()
    assert error.value.code == "B620" and str(tmp_path / "missing" / "weights") in str(error.value)


def test_jobs_carry_the_store_of_whoever_made_them(processes: Executor, cache: Path, tmp_path: Path) -> None:
    layout = layout_of(EXAMPLE, SLOW)
    store = folder_store(tmp_path / "mine")
    with using_store(store):
        written(layout, tmp_path / "out", processes)
    assert store.entries() and not default_store().entries() and not cache.exists()
