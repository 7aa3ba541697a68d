"""A process of this interpreter that answers requests: what may die of its input dies there.

Native libraries crash, abort, never end, or take all memory on some inputs. What such inputs reach runs in a `Child`: it
has a limit of memory, each request has a limit of time, and it ends with the process that started it, whatever either
of them is doing. Requests and answers are JSON with raw bytes beside it, so that nothing a damaged child sends can do
more than be wrong.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.paused_gc import paused_collection

Buffers = Sequence[Any]
"""Bytes-like objects that travel beside a request or answer."""

Handler = Callable[[dict[str, Any], list[bytearray]], tuple[dict[str, Any], Buffers]]
"""The child's side: an answer for a request."""

GRACE_S = 10.0
"""Seconds after its limit at which a child ends itself, should nobody be left to end it."""
LATE_S = 5.0
"""Time to receive an answer that is asked for after the limit."""
HEADER_BYTES = 64 << 20
"""Longest JSON part of a message that is believed."""
_LOG_TAIL = 4000
_NO_MEMORY = re.compile(r"memory allocation of \d+ bytes failed|bad_alloc|MemoryError|[Cc]annot allocate memory")


@dataclass
class ChildFailed(Exception):
    """The child gave no usable answer.

    Attributes:
        how: what happened, to follow the words "the process that ...": ``died of SIGFPE``, ``was stopped after 60 s``.
        detail: what it last wrote, or the exception that it met.
        kind: ``died``, ``late``, ``memory``, or ``raised`` when it lives on.
    """

    how: str
    detail: str = ""
    kind: str = "died"

    def __str__(self) -> str:
        return f"{self.how}\n{self.detail}" if self.detail else self.how


def machine_memory() -> int | None:
    """Bytes of memory of the machine; None where that cannot be told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


class Child:
    """One process; started with its first request, and anew with the next one after it has ended.

    One request is under way at a time: threads that ask wait for each other. Use it as a context manager, or `close` it.
    """

    def __init__(
        self, factory: str, memory: int | None = None, paths: Sequence[str] = (), *, bare: bool = False
    ) -> None:
        """Say what the child runs.

        Args:
            factory: ``module:function`` of what makes the child's `Handler`.
            memory: bytes of address space that it may have; None for all there is.
            paths: folders in which it looks for modules before ours.
            bare: it starts without what other packages do at the start of every interpreter, and multiplies matrices in
                one thread; for work that needs our packages and few others, which begins twice as fast.
        """
        self._factory = factory
        self._bare = bare
        self._paths = list(paths)
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._log: Any = None
        self._owner = os.getpid()
        self._limit = 0.0
        self._deadline = 0.0
        self._waiting = False
        self.generation = 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    @property
    def pid(self) -> int | None:
        """Number of the process while it runs."""
        return self._process.pid if self._process is not None else None

    def prepare(self, *modules: str) -> None:
        """Start the process, if it does not run, and have it import modules while nobody waits for it.

        Whatever goes wrong is met again by the request that follows.
        """
        with suppress(LadingError, OSError, TimeoutError):
            if self._process is None or self._owner != os.getpid():
                self._start()
            _send(self._connection(), {"modules": modules}, (), monotonic() + LATE_S)

    @property
    def alive(self) -> bool:
        """True for a process that runs."""
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    def ask(
        self, request: Mapping[str, Any], buffers: Buffers = (), *, seconds: float
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """The answer to a request.

        Args:
            request: JSON-able data.
            buffers: bytes beside it.
            seconds: time that it may take.

        Raises:
            LadingError: what the handler raised; U981 the process cannot be started.
            ChildFailed: there is no answer.
        """
        with self._lock:
            self.begin(request, buffers, seconds=seconds)
            return self.finish()

    def begin(self, request: Mapping[str, Any], buffers: Buffers = (), *, seconds: float) -> None:
        """Send a request and do not wait; `finish` has to follow in the same thread. Errors as for `ask`."""
        if self._process is None or self._owner != os.getpid():
            self._start()
        self._limit, self._deadline, self._waiting = seconds, monotonic() + seconds, True
        try:
            _send(self._connection(), {"seconds": seconds, "request": dict(request)}, buffers, self._deadline)
        except (OSError, TimeoutError) as error:
            raise self._lost(error) from None

    def finish(self) -> tuple[dict[str, Any], list[bytearray]]:
        """Wait for the answer to what was begun. Errors as for `ask`."""
        # Whoever comes late finds an answer that was there in time.
        deadline = max(self._deadline, monotonic() + LATE_S)
        try:
            message, found = _receive(self._connection(), deadline)
        except (OSError, TimeoutError, EOFError, ValueError) as error:
            raise self._lost(error) from None
        except BaseException:  # An interrupt: what the child is about can no longer be told apart from a later answer.
            self.close()
            raise
        self._waiting = False
        if "errors" in message:
            raise LadingError.of([Diagnostic(**item) for item in message["errors"]])
        if "raised" in message:
            kind = "memory" if _NO_MEMORY.search(message["raised"]) else "raised"
            how = self._short_of_memory() if kind == "memory" else "failed"
            raise ChildFailed(how, message["raised"], kind)
        return message["answer"], found

    def close(self) -> None:
        """End the process, whatever it is doing; inside of `kept_children`, one that does nothing stays for the next."""
        if _kept is not None and not self._waiting and self.alive:
            _kept.setdefault(self._kind(), []).append((self._process, self._socket, self._log))
            self._process = self._socket = self._log = None
        self._end()

    def _kind(self) -> tuple[str, ...]:
        """What children have in common of which one does as well as another."""
        return (self._factory, str(self._memory), str(self._bare), *self._paths)

    def _end(self) -> None:
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None and self._owner == os.getpid():
            if process.poll() is None:
                process.kill()
            process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> None:
        import tempfile

        if self._owner != os.getpid():  # After a fork the process belongs to the parent.
            self._process = self._socket = self._log = None
            self._owner = os.getpid()
        self._waiting = False
        if _kept is not None and (found := _usable(_kept.get(self._kind(), []))):
            self._process, self._socket, self._log = found
            self.generation += 1
            return
        # Editable packages, ours among them, may be found by what is done at the start alone.
        places = [*self._paths, *sys.path, *([str(Path(__file__).parents[2])] if self._bare else [])]
        code = f"import sys; sys.path[:] = {places!r}\nfrom ir.base.child import main; main(sys.argv[1:])"
        options = ["-S"] if self._bare else []
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"} if self._bare else None
        ours = theirs = None
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
            ours, theirs = socket.socketpair()
            words = [str(theirs.fileno()), self._factory, str(self._memory or 0)]
            self._process = subprocess.Popen(
                [sys.executable, *options, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=self._log,
                stderr=self._log, pass_fds=[theirs.fileno()], env=environment,
            )  # fmt: skip
        except (OSError, MemoryError) as error:
            if ours is not None:
                ours.close()
            self.close()
            reason = getattr(error, "strerror", None) or "no memory"
            hint = "close other programs, or raise the limits of open files and processes (ulimit)"
            raise LadingError("U981", f"a helper process cannot be started: {reason}", hint=hint) from error
        finally:
            if theirs is not None:
                theirs.close()
        self._socket = ours
        self.generation += 1

    def _connection(self) -> socket.socket:
        assert self._socket is not None, "nothing was begun"
        return self._socket

    def _lost(self, error: Exception) -> ChildFailed:
        """End the child and say what became of it."""
        process = self._process
        assert process is not None
        late = isinstance(error, TimeoutError)
        if not late:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        code = process.poll()
        tail = self._tail()
        self.close()
        if late:
            return ChildFailed(f"was stopped after {self._limit:.3g} s", tail, "late")
        if _NO_MEMORY.search(tail):
            return ChildFailed(self._short_of_memory(), tail, "memory")
        return ChildFailed(_how(code), tail)

    def _short_of_memory(self) -> str:
        return f"needs more than {self._memory / 1e6:,.0f} MB of memory" if self._memory else "runs out of memory"

    def _tail(self) -> str:
        """The end of what the child wrote."""
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL))
        return self._log.read().decode("utf-8", "replace").strip()


_kept: dict[tuple[str, ...], list[tuple[Any, Any, Any]]] | None = None
"""Children that were closed and wait for the next of their kind: process, connection, log."""


def _usable(waiting: list[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any] | None:
    """One of the children that wait. The connection of one that was found by the collector of garbage may be closed."""
    while waiting:
        process, connection, log = waiting.pop()
        if process.poll() is None and connection.fileno() >= 0 and not log.closed:
            return process, connection, log
        process.kill()
        process.wait()
    return None


@contextmanager
def kept_children() -> Iterator[None]:
    """Let children outlive their users: who needs one takes one of the same kind that another has closed.

    For programs that do the same thing many times, as starting a process takes longer than what is asked of it. What the
    handlers keep from one request to the next, the next user finds.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        waiting, _kept = _kept, before
        for process, connection, log in (item for items in waiting.values() for item in items):
            connection.close()
            process.kill()
            process.wait()
            log.close()


def _how(code: int | None) -> str:
    if code is None:
        return "stopped answering"
    if code >= 0:
        return f"left with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"


# ---- messages: length of the JSON part, the JSON with the sizes of what follows, the buffers ----


def _send(to: socket.socket, message: Mapping[str, Any], buffers: Buffers, deadline: float | None) -> None:
    views = [memoryview(item).cast("B") for item in buffers]
    text = json.dumps({**message, "sizes": [len(view) for view in views]}).encode()
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text, *views]
    for part in parts:
        to.settimeout(_left(deadline))
        to.sendall(part)


def _receive(source: socket.socket, deadline: float | None) -> tuple[dict[str, Any], list[bytearray]]:
    """A message; EOFError when the other side is gone, ValueError when it makes no sense."""
    size = int.from_bytes(_exactly(source, 8, deadline), "little")
    if size > HEADER_BYTES:
        raise ValueError("a message is too long")
    message = json.loads(_exactly(source, size, deadline))
    return message, [_exactly(source, each, deadline) for each in message.pop("sizes")]


def _exactly(source: socket.socket, size: int, deadline: float | None) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        source.settimeout(_left(deadline))
        count = source.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return found


def _left(deadline: float | None) -> float | None:
    """Seconds until a moment; TimeoutError when it is over."""
    if deadline is None:
        return None
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# ---- the child's side ----


def main(words: list[str]) -> None:
    """The child process: file descriptor of the connection, factory, limit of memory (0 for none)."""
    import faulthandler

    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever started us is interrupted too and ends us.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    number, factory, memory = int(words[0]), words[1], int(words[2])
    _limit(memory)
    with socket.socket(fileno=number) as connection:
        threading.Thread(target=_leave_with, args=[connection.fileno()], daemon=True).start()
        handler: Handler | None = None
        while True:
            try:
                message, buffers = _receive(connection, None)
            except (EOFError, OSError):
                break
            if "modules" in message:
                with suppress(Exception), paused_collection():
                    for name in message["modules"]:
                        import_module(name)
                continue
            # The system ends us even where native code holds the interpreter.
            signal.setitimer(signal.ITIMER_REAL, message["seconds"] + GRACE_S)
            try:
                if handler is None:
                    module, _, name = factory.partition(":")
                    handler = getattr(import_module(module), name)()
                answer, found = handler(message["request"], buffers)
                reply: dict[str, Any] = {"answer": answer}
            except LadingError as error:
                reply, found = {"errors": [item.as_dict() for item in error.diagnostics]}, ()
            except BaseException as error:  # Panics of foreign libraries are no Exception.
                reply, found = {"raised": _brief(error)}, ()
            del message, buffers
            signal.setitimer(signal.ITIMER_REAL, 0)
            with suppress(OSError):
                _send(connection, reply, found, None)
            del reply, found
    # Foreign code may crash while it is torn down.
    os._exit(0)


def _brief(error: BaseException) -> str:
    """An exception in a few lines: its text, and the place in our files where it came up."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f"\nin {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}{place}"


def _limit(memory: int) -> None:
    import resource

    for what, size in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        if what == resource.RLIMIT_AS and not size:
            continue
        hard = resource.getrlimit(what)[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _leave_with(number: int) -> None:
    """Wait until the other side of a connection is closed, then leave, whatever the main thread is doing."""
    import select

    watch = select.poll()
    watch.register(number, getattr(select, "POLLRDHUP", select.POLLHUP))
    while True:
        with suppress(InterruptedError):
            if watch.poll():
                os._exit(1)


__all__ = ["Buffers", "Child", "ChildFailed", "Handler", "kept_children", "machine_memory"]
