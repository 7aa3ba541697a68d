"""Work on tokenizers in child processes: the library that does it panics, aborts and takes all memory on some files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ir.base.child import Child, ChildFailed
from ir.base.diag import LadingError

SECONDS = 120.0
"""Time that work on a tokenizer has in any case."""
SECONDS_PER_BYTE = 20e-6
"""Time that it has for each byte of the tokenizer's files and of the texts besides."""
MEMORY = 3 << 30
"""Address space of a child. Vocabularies of 260,000 tokens take half of it."""

Work = Callable[[dict[str, Any]], dict[str, Any]]
"""A function of a module that does the work in the child: JSON-able data to JSON-able data."""


class TokenizerWork:
    """One piece of work that is under way in a child; use it as a context manager, so that it does not outlive a
    failure."""

    def __init__(
        self, function: str, request: Mapping[str, Any], folder: Path, texts: int = 0, *, last: bool = False
    ) -> None:
        """Begin.

        Args:
            function: ``module:function`` of a `Work`.
            request: what it is given.
            folder: where the tokenizer's files are.
            texts: bytes of the texts that are worked on.
            last: no other work follows, so that the child ends with this one.

        Raises:
            LadingError: U981 no child can be started, F650 it died at once.
        """
        self._folder, self._last = folder, last
        self._child: Child | None = _idle()
        seconds = SECONDS + SECONDS_PER_BYTE * (_bytes_of(folder) + texts)
        try:
            self._child.begin({"function": function, "request": dict(request)}, seconds=seconds)
        except ChildFailed as error:
            raise self._failed(error) from error

    def __enter__(self) -> TokenizerWork:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def result(self) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            LadingError: whatever the work found wrong; F650 the child crashed, took too long or too much memory.
            RuntimeError: the work failed in a way that nobody foresaw.
        """
        assert self._child is not None, "there is one result"
        try:
            answer, _ = self._child.finish()
        except ChildFailed as error:
            raise self._failed(error) from error
        finally:
            child, self._child = self._child, None
            if self._last:
                child.close()
            else:
                _keep(child)
        return answer

    def _failed(self, error: ChildFailed) -> Exception:
        if error.kind == "raised":
            return RuntimeError(f"work on a tokenizer failed: {error.detail}")
        place = "\n".join([str(self._folder), *error.detail.splitlines()[-3:]])
        hint = "a file of the tokenizer is damaged, or a token of it is far too long"
        return LadingError("F650", f"the process that works on the tokenizer {error.how}", place, hint)


_waiting: list[Child] = []
_lock = threading.Lock()


def prepare(*modules: str) -> None:
    """Start a child now, beside whatever is done before there is work for it, and have it import modules."""
    child = _idle()
    child.prepare(*modules)
    _keep(child)


def _idle() -> Child:
    """A child that has nothing to do."""
    with _lock:
        while _waiting:
            child = _waiting.pop()
            if child.alive:
                return child
            child.close()
    return Child(f"{__name__}:serve", MEMORY, bare=True)


def _keep(child: Child) -> None:
    """Keep a child for later; one at a time."""
    with _lock:
        if not _waiting:
            _waiting.append(child)
            return
    child.close()


def _bytes_of(folder: Path) -> int:
    """Bytes of the files that are read of a tokenizer."""
    from frontends.tokenizers.files import tokenizer_files

    names = ("tokenizer_config.json", "added_tokens.json", "chat_template.jinja")
    found = 0
    for path in (*tokenizer_files(folder), *(folder / name for name in names)):
        try:
            found += path.stat().st_size
        except (OSError, ValueError):
            continue
    return found


def serve() -> Callable[[dict[str, Any], list[bytearray]], tuple[dict[str, Any], Sequence[Any]]]:
    """What answers in the child; see `ir.base.child`."""

    def handle(message: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        module, _, name = message["function"].partition(":")
        return getattr(import_module(module), name)(message["request"]), ()

    return handle


__all__ = ["TokenizerWork", "Work", "prepare"]
