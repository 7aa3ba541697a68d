"""Work on a cluster gives the bytes that one process gives, whoever dies meanwhile.

One cluster of this machine serves all tests of this file that need none of their own.
"""

from __future__ import annotations

import filecmp
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from ir.base.diag import LadingError
from tests.support.paths import EXAMPLE, ROOT
from tools.cluster.connect import working_on
from tools.cluster.worker import Terms, mark_of, own_versions, require_versions, run_here
from tools.compile.job import Listener, Request, compile_model

PIPELINES = ("default", "calibrated")
CALIBRATED = (
    "absorb-latent,infer-types,discover-inputs,calibrate{memory=2},assign-precision{block-trade=4.0 method=gptaq},"
    "recalibrate{memory=2},insert-qdq,legalize-mnn,sink-layouts,fuse-mnn,cse,dce"
)
"""The pipeline of that name for checkpoints, with less memory."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler in this process with two workers of one thread; those that die are replaced."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
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
    # The example is small; all of it would be one bundle.
    monkeypatch.setattr("ir.base.executor.BUNDLE_ELEMENTS", 1 << 17)
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
    if pipeline == "default":
        return Request(str(EXAMPLE), folder / pipeline, pipeline, verify="none", **more)
    # A part of the text, and little memory, so that there are several segments.
    text = folder / "calibration.txt"
    text.write_bytes((EXAMPLE / "calibration.txt").read_bytes()[:16_000])
    return Request(str(EXAMPLE), folder / pipeline, CALIBRATED, verify="none", calibration=text, **more)


def assert_same(made: Path, wanted: Path) -> None:
    """All files of two folders have the same bytes."""
    names = sorted(path.name for path in wanted.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    assert filecmp.cmpfiles(made, wanted, names, shallow=False) == (names, [], [])


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("pipeline", "workers"), [("default", 1), ("default", 2), ("default", 4), ("calibrated", 4), ("calibrated", 1)]
)
def test_bytes_do_not_depend_on_the_workers(pipeline, workers, cluster, alone, fresh):
    scaled(cluster, workers)
    compile_model(request_for(pipeline, fresh, cluster=cluster.scheduler_address))
    assert_same(fresh / pipeline, alone / pipeline)
    if pipeline == "calibrated":
        assert_same(fresh / "cache" / "moments", alone / "cache" / "moments")
        assert not list((fresh / "cache" / "running").iterdir())


class _Killer(Listener):
    """Ends processes, as the system does that has no memory left, when work is under way.

    Attributes:
        steps: how far each pass said to be, by the first word of what it does.
    """

    def __init__(self, *steps: tuple[str, int, int], at_weights: int = -1) -> None:
        """`steps` are words, how far that pass has come, and the process to end; `at_weights` goes at the first bundle."""
        self._at = {(word, step): number for word, step, number in steps}
        self._at_weights = at_weights
        self.steps: dict[str, list[int]] = {}

    def step(self, done: int, total: int, what: str) -> None:
        """When a pass has come so far."""
        word = what.partition(" ")[0]
        self.steps.setdefault(word, []).append(done)
        for key in [key for key in self._at if key[0] == word and done >= key[1]]:
            os.kill(self._at.pop(key), signal.SIGKILL)

    def weights(self, done: int, total: int) -> None:
        """After the first bundle."""
        if 0 < done < total and self._at_weights > 0:
            os.kill(self._at_weights, signal.SIGKILL)
            self._at_weights = -1

    @property
    def is_done(self) -> bool:
        """Everybody was killed who was to be."""
        return not self._at and self._at_weights < 0


@pytest.mark.mnn
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_worker_that_is_killed_costs_its_own_work(pipeline, cluster, alone, fresh):
    first, second, third = scaled(cluster, 3)
    steps = [("calibrating", 1, first), ("following", 3, third)] if pipeline == "calibrated" else []
    killer = _Killer(*steps, at_weights=second)
    compile_model(request_for(pipeline, fresh, cluster=cluster.scheduler_address), killer)
    assert killer.is_done
    assert_same(fresh / pipeline, alone / pipeline)


@pytest.fixture
def remote(tmp_path):
    """The file of a scheduler with one worker whose cache is its own, and the scheduler's process."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    scheduler = subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *common], **quiet)
    worker = subprocess.Popen(
        [*dask, "worker", "--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--death-timeout", "30", *common],
        **quiet,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LADING_CACHE": str(tmp_path / "other")},
    )
    while not file.exists():
        assert scheduler.poll() is None
        time.sleep(0.05)
    yield file, scheduler.pid
    for process in (worker, scheduler):
        process.kill()
        process.wait()


@pytest.mark.mnn
@pytest.mark.parametrize("during", ["calibrating", "following"])
def test_a_run_goes_on_after_the_scheduler_was_killed(during, remote, cluster, alone, fresh, monkeypatch):
    monkeypatch.setattr("tools.cluster.connect.REACH_S", 5.0)
    file, scheduler = remote
    killer = _Killer((during, 2, scheduler))
    with pytest.raises(LadingError) as caught:
        compile_model(request_for("calibrated", fresh, cluster=str(file)), killer)
    assert caught.value.code == "B799" and killer.is_done
    assert not (fresh / "calibrated").exists()
    assert not (fresh / "other" / "moments").exists(), "files are shared, and so is the cache"
    again = _Killer()
    compile_model(request_for("calibrated", fresh, cluster=cluster.scheduler_address), again)
    assert again.steps[during][0] >= 1
    assert during == "calibrating" or "calibrating" not in again.steps
    assert_same(fresh / "calibrated", alone / "calibrated")


@pytest.mark.mnn
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_parts_come_back_where_files_are_not_shared(pipeline, remote, alone, fresh, monkeypatch):
    monkeypatch.setattr("tools.cluster.executor.sees", _sees_nothing)
    result = compile_model(request_for(pipeline, fresh, cluster=str(remote[0])))
    assert dict(result.lines)["cluster"] == "1 worker of 2 threads, parts are sent"
    assert_same(fresh / pipeline, alone / pipeline)
    if pipeline == "calibrated":
        sent = {path.name for path in (fresh / "other" / "moments").iterdir()}
        assert sent == {path.name for path in (fresh / "cache" / "moments").iterdir()}
        assert not (fresh / "other" / "quantized").exists()


def _sees_nothing(path: str, token: str) -> bool:
    return False


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
