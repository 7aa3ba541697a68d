"""One thread for linear algebra: libraries split sums by threads, and then round otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOCK = threading.Lock()
_INSIDE = 0
_BEFORE: list[tuple[Any, int]] = []


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold the linear algebra of this process to one thread; the last of several threads to leave lifts the limit.

    Work is spread over processors by giving each thread of the caller its own part.
    """
    global _INSIDE
    with _LOCK:
        if not _INSIDE:
            from threadpoolctl import ThreadpoolController

            libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            _BEFORE[:] = [(library, library.get_num_threads()) for library in libraries]
        # Some builds keep a limit for each thread, so every thread sets it for itself.
        _limit([(library, 1) for library, _ in _BEFORE])
        _INSIDE += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if not _INSIDE:
                _limit(_BEFORE)


def _limit(limits: list[tuple[Any, int]]) -> None:
    for library, count in limits:
        # threadpoolctl 3.8 lets only the first thread that ever set a limit set one, and ignores all others silently.
        let_go = getattr(library, "clear_controlling_thread", None)
        if let_go is not None:
            let_go(force=True)
        library.set_num_threads(count)
