"""Executors are handed in: nothing below the commands starts threads or processes of its own.

Whoever runs a compilation decides where its work is done and gives a `concurrent.futures.Executor`; who gives none gets
the calling thread. Results do not depend on the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")


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
    futures = [executor.submit(run, job) for job in jobs]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


__all__ = ["SERIAL", "SerialExecutor", "run_jobs"]
