"""Executors that are handed in: the calling thread as one, and jobs whose results come in order."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ir.base import executor
from ir.base.diag import LadingError
from ir.base.executor import SERIAL, SerialExecutor, run_jobs


def test_the_calling_thread_as_an_executor() -> None:
    here = threading.current_thread()
    with SerialExecutor() as executor:
        future = executor.submit(lambda a, b: (a + b, threading.current_thread()), 1, b=2)
        assert future.done() and future.result() == (3, here)
        assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]
        failed = executor.submit(int, "x")
    with pytest.raises(ValueError):
        failed.result()
    with pytest.raises(KeyboardInterrupt):
        SERIAL.submit(_interrupted)


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    with ThreadPoolExecutor(workers) if workers else SERIAL as executor:
        assert list(run_jobs(executor, lambda n: n * n, range(50))) == [n * n for n in range(50)]
        assert list(run_jobs(executor, abs, ())) == []


def test_jobs_in_the_calling_thread_run_as_results_are_asked_for() -> None:
    ran: list[int] = []
    results = run_jobs(SERIAL, ran.append, range(3))
    next(results)
    assert ran == [0]
    results.close()
    assert ran == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_failure_nothing_begins_and_nothing_is_left_running(workers: int) -> None:
    running, ran = set(), []
    gate = threading.Event()

    def work(number: int) -> int:
        running.add(number)
        ran.append(number)
        if number == 1:
            gate.set()
            raise ValueError("the second")
        if number > 1:
            gate.wait(10)
        running.discard(number)
        return number

    with ThreadPoolExecutor(workers) if workers else SERIAL as executor:
        found = []
        with pytest.raises(ValueError, match="the second"):
            for item in run_jobs(executor, work, range(1000)):
                found.append(item)
        assert found == [0] and running == {1}
        assert len(ran) < 1000


# ---- other processes ----


class _Weighed(int):
    """A job that is half of a bundle."""

    elements = executor.BUNDLE_ELEMENTS // 2


def test_jobs_of_processes_keep_their_order_and_go_in_bundles(processes, monkeypatch) -> None:
    sent = []
    spread = executor.Spread(processes, 2)
    send = spread.send
    monkeypatch.setattr(spread, "send", lambda run, jobs: sent.append(len(jobs)) or send(run, jobs))
    assert list(executor.run_jobs(spread, abs, map(_Weighed, range(-5, 0)))) == [5, 4, 3, 2, 1]
    assert sent == [2, 2, 1]
    assert spread.submit(os.getpid).result() == os.getpid()


def test_jobs_are_taken_as_they_are_needed(processes):
    taken = []

    def jobs():
        for number in range(1000):
            taken.append(number)
            yield number

    results = executor.run_jobs(executor.Spread(processes, 1), abs, jobs())
    assert next(results) == 0 and len(taken) <= executor.AHEAD + 2
    results.close()


def test_an_error_in_a_process_ends_the_others(processes):
    with pytest.raises(LadingError) as caught:
        list(executor.run_jobs(executor.Spread(processes, 2), _refused, range(100)))
    assert caught.value.code == "U900" and caught.value.diagnostics[0].hint == "look again"


def _refused(job):
    raise LadingError("U900", f"unknown code {job!r}", hint="look again")
