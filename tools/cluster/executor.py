"""An executor over Dask: jobs go to its workers, single calls to threads of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ir.base.diag import LadingError
from ir.base.executor import Spread
from ir.base.store import default_store
from tools.cluster.worker import Terms, describe, mark_of, own_versions, packed, require_versions, run_here, sees

if TYPE_CHECKING:
    from distributed import Client

A = TypeVar("A")
T = TypeVar("T")

LOOK_S = 5.0
"""Seconds after which a wait looks whether anybody is still working."""
SENT = 8
"""Entries of the store that workers hold for each other, where they share no files."""
ALONE_S = 300.0
"""Seconds without any worker after which work is given up."""


class ClusterExecutor(Spread):
    """Jobs on the workers of a Dask cluster.

    A worker that dies costs the bundles that it had: Dask gives them to others. What a worker raises is raised here.

    Args:
        client: connected, with at least one worker, or with some that are `starting`.
        local: runs single calls.
        threads: of one task; 0 for each worker's share of its machine.
        shares_files: workers see the paths of this machine; `look_for_files` finds out.
        alone_s: seconds without any worker after which work is given up.
        starting: workers of this machine that are there soon, and need not be asked what they are.

    Raises:
        LadingError: B797 workers have other versions.
    """

    def __init__(
        self,
        client: Client,
        local: Executor,
        threads: int = 0,
        *,
        shares_files: bool = True,
        alone_s: float = ALONE_S,
        starting: int = 0,
    ) -> None:
        super().__init__(local, 1, shares_files=shares_files)
        self._client = client
        self._alone_s = alone_s
        self._entries: dict[str, Any] = {}
        self._starting = starting
        if starting:
            self.threads, self.workers, self.width = threads, starting, starting
            self.elsewhere = False
            self._terms = Terms({}, threads=threads, alone=len(os.sched_getaffinity(0)))
            return
        self._terms = Terms(own_versions(), threads=threads)
        workers = self._ask(describe, threads)
        for worker in workers:
            require_versions(self._terms.versions, worker.host, worker.versions)
        self.threads = max((worker.threads for worker in workers), default=1)
        self.workers = len(workers)
        self._count()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call in a thread of this process."""
        return self._executor.submit(fn, *args, **kwargs)

    def trust(self, paths: Iterable[str]) -> None:
        """Have workers of other machines compare files with those of this one before they run anything.

        Raises:
            OSError: one cannot be read here.
        """
        if self._starting:
            return
        self._terms = replace(self._terms, inputs=tuple(mark_of(path) for path in sorted(set(paths))))

    def look_for_files(self, folders: Iterable[Path]) -> None:
        """Find out whether all workers see what is written to some folders; those of this machine do."""
        if self._starting:
            return
        token = f"{time.time_ns()}"
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".seen-{token}"
            probe.write_text(token, encoding="utf-8")
            try:
                found = self._ask(sees, str(probe), token)
            finally:
                probe.unlink()
            self.shares_files = self.shares_files and all(found)

    def _ask(self, question: Callable[..., T], *args: Any) -> list[T]:
        """The answers of all workers that live.

        Raises:
            LadingError: B797 one cannot load this program.
        """
        found = self._client.run(question, *args, on_error="return")
        for address, answer in found.items():
            if isinstance(answer, ImportError | AttributeError):
                hint = "install the same environment on all machines, best on a file system that they share"
                raise LadingError("B797", f"a worker cannot load this program: {answer}", address, hint) from answer
            # A worker that has ended meanwhile does not answer.
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise answer
        return [answer for answer in found.values() if not isinstance(answer, BaseException)]

    def send(self, run: Callable[[A], T], bundle: list[A]) -> Any:
        """Give a bundle to the scheduler, as bytes, so that only the worker opens it."""
        payload = packed(run, bundle)
        if self.shares_files:
            return self._client.submit(run_here, payload, replace(self._terms, store=default_store()), pure=False)
        names = list(dict.fromkeys(name for job in bundle for name in getattr(job, "reads", ())))
        contents = [self._sent(name) for name in names]
        return self._client.submit(run_here, payload, self._terms, names, *contents, pure=False)

    def _sent(self, name: str) -> Any:
        """What an entry of the store holds, given to the workers, which hand it on among themselves."""
        found = self._entries.pop(name, None)
        if found is None:
            kept = default_store().find(name)
            found = self._client.scatter(kept.read() if kept is not None else b"", hash=False)
        self._entries[name] = found
        while len(self._entries) > SENT:
            del self._entries[next(iter(self._entries))]
        return found

    def result(self, future: Any) -> list[T]:
        """The results of a bundle.

        Raises:
            LadingError: B796 bundle after bundle ends with its worker, or there are no more workers; B799 the scheduler
                is gone; what the jobs raise.
        """
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        alone_since: float | None = None
        while True:
            try:
                return future.result(timeout=LOOK_S)
            except KilledWorker as error:
                hint = "see the workers' logs; most often they have too little memory: docs/cluster.md"
                message = f"a part of the work was given to {error.allowed_failures + 1} workers, and each died of it"
                raise LadingError("B796", message, where=str(error.last_worker.address), hint=hint) from error
            except FutureCancelledError as error:
                raise self._lost() from error
            except TimeoutError:
                if future.done():
                    continue
                now = time.monotonic()
                alone_since = (alone_since or now) if not self._count() else None
                if alone_since is not None and now - alone_since > self._alone_s:
                    hint = "start workers again, and then the same command: what is done is kept"
                    raise LadingError("B796", "the cluster has no more workers", hint=hint) from None

    def drop(self, futures: Iterable[Any]) -> None:
        """Take back what is not done. What runs at this moment ends by itself, and writes to files that nobody reads."""
        waiting = list(futures)
        if waiting and self._client.status == "running":
            self._client.cancel(waiting, force=True)

    def _count(self) -> int:
        """Tasks that the workers run at the same time; 0 when there is no worker."""
        try:
            found = sum(self._client.nthreads().values())
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        self.width = max(1, found, self._starting)
        return found

    def _lost(self) -> LadingError:
        hint = "start the cluster again, and then the same command: what is done is kept"
        return LadingError("B799", "the connection to the scheduler is lost", where=self._client_name(), hint=hint)

    def _client_name(self) -> str:
        scheduler = self._client.scheduler
        return str(scheduler.address) if scheduler is not None else ""


__all__ = ["ClusterExecutor"]
