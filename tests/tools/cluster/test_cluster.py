"""Work on a cluster gives the bytes that one process gives, whoever dies meanwhile.

One cluster of this machine serves all tests of this file that need none of their own.
"""

from __future__ import annotations

import filecmp
import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from ir.base.diag import LadingError
from tests.support.paths import EXAMPLE
from tools.cluster.connect import working_on
from tools.cluster.worker import Terms, mark_of, own_versions, require_versions, run_here
from tools.compile.job import Listener, Request, compile_model

PIPELINES = ("default", "calibrated")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler in this process with two workers of one thread; those that die are replaced."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        memory_limit=0,
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the example, by pipeline."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_CACHE", str(folder / "cache"))
        for pipeline in PIPELINES:
            compile_model(request_for(pipeline, folder))
    return folder


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder to write to, beside an empty cache."""
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    return tmp_path


def scaled(cluster: LocalCluster, workers: int) -> list[int]:
    """Process numbers of the workers, once there are just so many."""
    cluster.scale(workers)
    with Client(cluster, set_as_default=False) as client:
        while len(client.nthreads()) != workers:
            time.sleep(0.05)
        return list(client.run(os.getpid).values())


def request_for(pipeline: str, folder: Path, **more) -> Request:
    """The example, not run."""
    text = EXAMPLE / "calibration.txt" if pipeline == "calibrated" else None
    return Request(str(EXAMPLE), folder / pipeline, pipeline, verify="none", calibration=text, **more)


def assert_same(made: Path, wanted: Path) -> None:
    """All files of two folders have the same bytes."""
    names = sorted(path.name for path in wanted.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    assert filecmp.cmpfiles(made, wanted, names, shallow=False) == (names, [], [])


@pytest.mark.mnn
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_bytes_do_not_depend_on_the_workers(pipeline, workers, cluster, alone, fresh):
    scaled(cluster, workers)
    compile_model(request_for(pipeline, fresh, cluster=cluster.scheduler_address))
    assert_same(fresh / pipeline, alone / pipeline)


class _Killer(Listener):
    """Kills a worker, as the system does that has no memory left, when work is under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.killed = 0

    def _kill(self) -> None:
        if not self.killed:
            self.killed += 1
            os.kill(self.number, signal.SIGKILL)

    def weights(self, done: int, total: int) -> None:
        """After the first bundle."""
        if 0 < done < total:
            self._kill()


@pytest.mark.mnn
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_worker_that_is_killed_costs_its_own_work(pipeline, cluster, alone, fresh):
    killer = _Killer(scaled(cluster, 2)[0])
    compile_model(request_for(pipeline, fresh, cluster=cluster.scheduler_address), killer)
    assert killer.killed == 1
    assert_same(fresh / pipeline, alone / pipeline)


def _own_end(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_work_that_kills_every_worker_is_given_up(cluster):
    with (
        ThreadPoolExecutor(1) as pool,
        working_on(cluster.scheduler_address, pool) as executor,
        pytest.raises(LadingError) as caught,
    ):
        list(executor.run_jobs(_own_end, [1]))
    assert caught.value.code == "B796"


def _refuse(job: str) -> None:
    raise LadingError("T253", f"{job} is cut short", where=job, hint="fetch it again")


def test_errors_of_workers_keep_their_code_and_their_words(cluster):
    with (
        ThreadPoolExecutor(1) as pool,
        working_on(cluster.scheduler_address, pool) as executor,
        pytest.raises(LadingError) as caught,
    ):
        list(executor.run_jobs(_refuse, ["a.bin", "b.bin"]))
    assert [(item.code, item.message, item.where, item.hint) for item in caught.value.diagnostics] == [
        ("T253", "a.bin is cut short", "a.bin", "fetch it again")
    ]


def test_workers_that_are_another_version_are_refused():
    with pytest.raises(LadingError) as caught:
        require_versions(own_versions(), "node7", {**own_versions(), "numpy": "1.0"})
    assert caught.value.code == "B797" and "numpy 1.0" in str(caught.value) and "node7" in str(caught.value)
    with pytest.raises(LadingError) as caught:
        run_here(b"", Terms({**own_versions(), "source": "0123456789ab"}, threads=1))
    assert caught.value.code == "B797"


def test_workers_with_another_file_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(300_000))
    terms = Terms(own_versions(), (mark_of(str(path)),), threads=1)
    for data, words in (
        (bytes(200_000) + b"\1" * 4096 + bytes(95_904), "another content"),
        (bytes(300_001), "has 300,001 bytes there and 300,000 here"),
        (None, "cannot be read there"),
    ):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(LadingError, match=words) as caught:
            run_here(b"", terms)
        assert caught.value.code == "B798"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("local:0", "how many workers"),
        ("local:many", "how many workers"),
        ("nowhere", "neither an address nor a file"),
        ("tcp://127.0.0.1:1", "no scheduler answers"),
    ],
)
def test_what_names_no_cluster_is_refused(address, words, monkeypatch):
    monkeypatch.setattr("tools.cluster.connect.REACH_S", 0.5)
    with pytest.raises(LadingError, match=words) as caught, ThreadPoolExecutor(1) as pool, working_on(address, pool):
        pass
    assert caught.value.code == "U969"
