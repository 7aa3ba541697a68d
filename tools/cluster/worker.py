"""The worker's side: agree with whoever sends the jobs, then run them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError
from ir.base.executor import spreading_over
from ir.base.store import FolderStore, Store, default_store

ROOMS = ("ir", "passes", "frontends", "backends", "tools")
"""Packages whose source must be the same on all machines."""
PACKAGES = ("numpy", "ml_dtypes", "onnxruntime")
"""Packages that compute: other versions may round otherwise."""
SAMPLE = 1 << 12
"""Bytes of each sample of a file."""
SAMPLES = 64
"""Samples of a file, at even distances, the first and last bytes among them."""


@dataclass(frozen=True)
class Mark:
    """What tells a file from another one of its name.

    Attributes:
        path: where it is, the same on all machines.
        size: in bytes.
        digest: SHA-256 of samples from all over the file; of all of it below 256 KiB.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Terms:
    """What a worker must agree with before it runs a job.

    Attributes:
        versions: of this program, its source, and the packages that it computes with; empty for a worker that was forked
            on the same machine.
        inputs: the files of the model, where they may be others.
        threads: of one task; 0 for the worker's share of its machine.
        alone: threads of a task that spreads its own work, if they are others: where all workers are on one machine, such
            a task may have all of it, since it often is the only one.
        store: where work is kept; None where machines share no files, and each has a store of its own.
    """

    versions: Mapping[str, str]
    inputs: tuple[Mark, ...] = ()
    threads: int = 0
    alone: int = 0
    store: Store | None = None


@dataclass(frozen=True)
class Described:
    """A worker as it sees itself: host, versions and threads of one task."""

    host: str
    versions: Mapping[str, str]
    threads: int


@cache
def own_versions() -> dict[str, str]:
    """Versions of what computes here, by name."""
    from backends.version import compiler_version

    found = {"lading": compiler_version(), "source": _source_digest()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _source_digest() -> str:
    root = Path(__file__).resolve().parents[2]
    state = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            state.update(f"{path.relative_to(root)}\n".encode())
            state.update(path.read_bytes())
    return state.hexdigest()[:12]


def mark_of(path: str) -> Mark:
    """What tells the content of a file from another; OSError when it cannot be read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        state = hashlib.sha256()
        last = max(0, size - SAMPLE)
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            state.update(file.read(SAMPLE))
    return Mark(path, size, state.hexdigest())


def describe(threads: int, dask_worker: Any) -> Described:
    """The worker that this runs on, which Dask gives."""
    return Described(socket.gethostname(), own_versions(), threads or _share(dask_worker))


def sees(path: str, token: str) -> bool:
    """True when a file that was written elsewhere is here, with its content."""
    try:
        return Path(path).read_text(encoding="utf-8") == token
    except OSError:
        return False


def require_versions(wanted: Mapping[str, str], host: str, found: Mapping[str, str]) -> None:
    """Raise LadingError B797 when a host has other versions."""
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        parts = [f"{name} {found.get(name, 'none')} and not {wanted[name]}" for name in different]
        hint = "install the same environment on all machines, best on a file system that they share"
        raise LadingError("B797", f"a worker has {', '.join(parts)}", where=host, hint=hint)


class Packer(pickle.Pickler):
    """Leaves the store out of jobs."""

    def persistent_id(self, obj: Any) -> str | None:
        """A word for the store."""
        return "store" if isinstance(obj, FolderStore) else None


class Unpacker(pickle.Unpickler):
    """Puts in the store of this machine."""

    def __init__(self, payload: bytes, store: Store) -> None:
        super().__init__(io.BytesIO(payload))
        self._store = store

    def persistent_load(self, pid: str) -> Store:
        """The store."""
        return self._store


def packed(run: Callable[..., Any], jobs: Sequence[Any]) -> bytes:
    """A bundle as bytes, without the store."""
    out = io.BytesIO()
    Packer(out, pickle.HIGHEST_PROTOCOL).dump((run, jobs))
    return out.getvalue()


def run_here(payload: bytes, terms: Terms, names: Sequence[str] = (), *contents: bytes) -> list[Any]:
    """Run the jobs of a bundle: several at the same time, or one that spreads its own work.

    Args:
        payload: from `packed`.
        terms: what to agree with.
        names, contents: entries of the store that jobs look for, where this machine has a store of its own.

    Raises:
        LadingError: B797, B798 the worker does not agree, and what the jobs raise.
    """
    _agree(terms)
    store = terms.store or default_store()
    for name, content in zip(names, contents, strict=True):
        if store.find(name) is None:
            with store.put(name, "Q431", "calibration statistics") as scratch:
                scratch.write_bytes(content)
    run, jobs = Unpacker(payload, store).load()
    threads = terms.threads or _share(_this_worker())
    if len(jobs) == 1:
        with spreading_over(_pool(terms.alone or threads)):
            return [run(jobs[0])]
    return list(_pool(threads).map(run, jobs))


_AGREED: dict[tuple[Mark, ...], list[tuple[int, int, int]]] = {}
"""The files that were compared last, and their state then."""


def _agree(terms: Terms) -> None:
    """Compare versions once, and files whenever their state has changed."""
    from ir.base.plugins import loaded

    loaded()
    if terms.versions:
        require_versions(terms.versions, socket.gethostname(), own_versions())
    state = _states(terms.inputs)
    if _AGREED.get(terms.inputs) != state:
        _require_inputs(terms.inputs)
        _AGREED.clear()
        _AGREED[terms.inputs] = state


def _states(marks: Iterable[Mark]) -> list[tuple[int, int, int]]:
    found = []
    for mark in marks:
        try:
            state = os.stat(mark.path)
        except OSError as error:
            raise _not_here(mark, f"cannot be read there: {error.strerror}") from error
        found.append((state.st_ino, state.st_size, state.st_mtime_ns))
    return found


def _require_inputs(marks: Sequence[Mark]) -> None:
    """Raise LadingError B798 when a file of the model is another one here."""
    for mark in marks:
        try:
            found = mark_of(mark.path)
        except OSError as error:
            raise _not_here(mark, f"cannot be read there: {error.strerror}") from error
        if found.size != mark.size:
            raise _not_here(mark, f"has {found.size:,} bytes there and {mark.size:,} here")
        if found != mark:
            raise _not_here(mark, "has the same size there and another content")


def _not_here(mark: Mark, why: str) -> LadingError:
    host = socket.gethostname()
    hint = "put the model at the same path on all machines, or on a file system that they share"
    return LadingError("B798", f"{Path(mark.path).name} {why}", where=f"{host}:{mark.path}", hint=hint)


def _this_worker() -> Any:
    from distributed import get_worker

    return get_worker()


@cache
def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads)


def _share(worker: Any) -> int:
    """Threads of one task: the processors that this process may use, divided by the tasks that it runs at a time."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, worker.state.nthreads))


__all__ = [
    "Described",
    "Mark",
    "Terms",
    "describe",
    "mark_of",
    "own_versions",
    "packed",
    "require_versions",
    "run_here",
    "sees",
]
