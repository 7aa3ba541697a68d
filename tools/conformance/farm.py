"""Work that may end its process, spread over a few of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

R = TypeVar("R")

MEMORY = 12 << 30
"""Bytes of address space of a worker."""


@dataclass(frozen=True)
class Lost:
    """What there is instead of a result: how the worker ended."""

    how: str


def spread(
    count: int, start: Callable[[], Callable[[int], R]], workers: int, limit: float
) -> Iterator[tuple[int, R | Lost]]:
    """Results of the items 0 to `count` - 1, in the order in which they are done, each with its number.

    Args:
        count: how many items there are.
        start: called once in every worker, which is forked from this process; what it gives does one item.
        workers: processes at a time. One that ends, or takes too long, is replaced, and costs the item it was at.
        limit: seconds that an item may take.
    """
    waiting = list(reversed(range(count)))
    running: list[_Worker] = []
    try:
        running += [_Worker(start) for _ in range(min(workers, count))]
        while running:
            for worker in [worker for worker in running if worker.item is None]:
                if waiting:
                    worker.give(waiting.pop())
                else:
                    worker.stop()
                    running.remove(worker)
            ready = multiprocessing.connection.wait([worker.pipe for worker in running], timeout=1.0)
            for place, worker in enumerate(running):
                assert worker.item is not None
                item, how = worker.item, ""
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                    except (EOFError, ConnectionError):
                        worker.process.join()
                        how = f"the process ended with {worker.process.exitcode}"
                    else:
                        worker.item = None
                        yield item, result
                elif time.monotonic() - worker.since > limit:
                    how = f"more than {limit:.0f} s"
                if how:
                    worker.stop()
                    running[place] = _Worker(start)
                    yield item, Lost(how)
    finally:
        for worker in running:
            worker.stop()


class _Worker(Generic[R]):
    """A child process that does one item after the other."""

    def __init__(self, start: Callable[[], Callable[[int], R]]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(start, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.item: int | None = None
        self.since = 0.0

    def give(self, item: int) -> None:
        """Begin an item."""
        self.item, self.since = item, time.monotonic()
        self.pipe.send(item)

    def stop(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(start: Callable[[], Callable[[int], R]], pipe: Any) -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    work = start()
    while True:
        pipe.send(work(pipe.recv()))


__all__ = ["MEMORY", "Lost", "spread"]
