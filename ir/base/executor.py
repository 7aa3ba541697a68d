"""Executors are handed in: nothing below the commands starts threads or processes of its own.

Whoever runs a compilation decides where its work is done and gives a `concurrent.futures.Executor`; who gives none gets
the calling thread. Results do not depend on the choice. An executor of other machines is a `JobExecutor`.
"""

from __future__ import annotations

import concurrent.futures
import pickle
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")

AHEAD = 3
"""Bundles that are sent for each one that can run."""
BUNDLE_ELEMENTS = 1 << 25
"""Elements of a bundle for each thread: some 50 ms of rounding and writing, of which sending is a fortieth."""


class SerialExecutor(Executor):
    """Runs every call in the thread that submits it, at once; the future is done when it is returned."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call now; what an ordinary error raises waits in the future, an interrupt does not."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


SERIAL = SerialExecutor()
"""The calling thread; it holds no state and can be shared."""


class JobExecutor(Executor):
    """An executor with a way of its own to run many jobs, such as on other machines; single calls run on this one.

    It may look at a job's ``elements``, which weigh it, at ``alone``, true of one that spreads its own work over
    `here`, and at ``reads``, names of entries of the store that it looks for.

    Attributes:
        shares_files: what a job writes to a path can be read there by whoever handed it in, and by other jobs.
        elsewhere: jobs may run on other machines, so that what they write comes over a network.
        width: how many jobs that are alone run at the same time.
        threads: how many others each of these makes room for.
    """

    shares_files = True
    elsewhere = True
    width = 1
    threads = 1

    @abstractmethod
    def run_jobs(self, run: Callable[[A], T], jobs: Iterable[A]) -> Iterator[T]:
        """The results of jobs, in their order, as `run_jobs` promises; both pickle."""


def shares_files(executor: Executor) -> bool:
    """False when jobs cannot write to paths of this process, and have to give back what they would write."""
    return not isinstance(executor, JobExecutor) or executor.shares_files


def shares_memory(executor: Executor) -> bool:
    """True for threads of this process, which can work on one array together."""
    return isinstance(executor, concurrent.futures.ThreadPoolExecutor)


_HERE: ContextVar[Executor] = ContextVar("here", default=SERIAL)


def here() -> Executor:
    """What a job that is alone may spread its work over, on the machine on which it runs."""
    return _HERE.get()


@contextmanager
def spreading_over(executor: Executor) -> Iterator[None]:
    """While the block runs, `here` gives an executor in this thread."""
    token = _HERE.set(executor)
    try:
        yield
    finally:
        _HERE.reset(token)


def run_jobs(executor: Executor, run: Callable[[A], T], jobs: Iterable[A]) -> Iterator[T]:
    """The results of jobs, in their order.

    When a job has raised, which is met when its turn comes, or nobody asks for more, jobs that have not begun are
    dropped and those that have are waited for, so that none still works when this ends.

    Args:
        executor: runs them.
        run: a function of a module, and jobs that pickle, if executors of processes are to be of use.
        jobs: each is let go of when it is done.
    """
    if isinstance(executor, SerialExecutor):
        yield from map(run, jobs)
        return
    if isinstance(executor, JobExecutor):
        yield from executor.run_jobs(run, jobs)
        return
    futures = [executor.submit(run, job) for job in jobs]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


class Spread(JobExecutor):
    """Jobs spread over processes or machines, by any executor that has them; single calls stay here.

    Jobs are sent in bundles, only some ahead of those whose results are taken, so that a million of them never wait in
    memory, here or elsewhere.

    Attributes:
        width: bundles that run at the same time.
        threads: jobs of a bundle that run at the same time.
    """

    def __init__(self, executor: Executor, width: int, *, shares_files: bool = True) -> None:
        self._executor = executor
        self.width = width
        self.threads = 1
        self.shares_files = shares_files

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call now, in this thread; see `SerialExecutor`."""
        return SERIAL.submit(fn, *args, **kwargs)

    def run_jobs(self, run: Callable[[A], T], jobs: Iterable[A]) -> Iterator[T]:
        """See `JobExecutor.run_jobs`."""
        sent: deque[Future[list[T]]] = deque()
        try:
            for bundle in self._bundles(jobs):
                while len(sent) >= AHEAD * self.width:
                    yield from self.result(sent.popleft())
                sent.append(self.send(run, bundle))
            while sent:
                yield from self.result(sent.popleft())
        finally:
            self.drop(sent)

    def send(self, run: Callable[[A], T], bundle: list[A]) -> Future[list[T]]:
        """Send jobs that are to be run together."""
        return self._executor.submit(run_bundle, pickle.dumps((run, bundle)))

    def result(self, future: Future[list[T]]) -> list[T]:
        """Wait for the results of a bundle."""
        return future.result()

    def drop(self, futures: Iterable[Future[Any]]) -> None:
        """Take back what has not begun, and wait for the rest."""
        waiting = list(futures)
        for future in waiting:
            future.cancel()
        wait(waiting)

    def _bundles(self, jobs: Iterable[A]) -> Iterator[list[A]]:
        bundle: list[A] = []
        elements = 0
        for job in jobs:
            if getattr(job, "alone", False):
                yield [job]
                continue
            weight = getattr(job, "elements", BUNDLE_ELEMENTS)
            if bundle and (elements + weight > BUNDLE_ELEMENTS * self.threads):
                yield bundle
                bundle, elements = [], 0
            bundle.append(job)
            elements += weight
        if bundle:
            yield bundle


def run_bundle(payload: bytes) -> list[Any]:
    """Run the jobs of a bundle one after the other; the worker's side."""
    run, jobs = pickle.loads(payload)
    return [run(job) for job in jobs]


__all__ = [
    "SERIAL",
    "JobExecutor",
    "SerialExecutor",
    "Spread",
    "here",
    "run_bundle",
    "run_jobs",
    "shares_files",
    "shares_memory",
    "spreading_over",
]
