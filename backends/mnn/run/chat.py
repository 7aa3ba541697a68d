"""A model that answers conversations in a child process, token by token; see `chat_child.py` for what is said between.

The child may crash, hang or be stopped in the middle of an answer: its group is killed then, and the next answer starts
another one. Nothing is lost with it, since every answer begins with the whole conversation.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.mnn.run.native import LOG_TAIL_BYTES
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder

CHILD = Path(__file__).with_name("chat_child.py")
TAILS = (b"[MNNLLM] response: \n", b"\n[MNNLLM] response: \n")
"""What the runtime prints behind an answer: the second where an id ended it."""
LOG_LINES = 8
SETTINGS: Mapping[str, Any] = {"use_template": False, "reuse_kv": False, "use_mmap": False}
"""Prompts come rendered, the cache begins empty with each, and no weights are mapped into a folder that will vanish."""

Show = Callable[[bytes], None]
"""Told the next bytes of an answer; a character may come in two pieces."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        raw: the bytes of the answer, as its ids are decoded.
        ids: generated ids, one that ended the answer included.
        ended: the model ended it; else the limit of tokens did.
        prompt_tokens: tokens of the conversation.
        prefill_s, decode_s: seconds that the runtime took to read them and to generate.
        clean: what was shown while it came is the answer; else the runtime printed messages among it.
    """

    raw: bytes
    ids: tuple[int, ...]
    ended: bool
    prompt_tokens: int
    prefill_s: float
    decode_s: float
    clean: bool

    @property
    def text(self) -> str:
        """The answer; bytes that are no UTF-8 are shown as replacement characters."""
        return self.raw.decode("utf-8", "replace")

    @property
    def prefill_rate(self) -> float | None:
        """Tokens of the conversation that were read in a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens that were generated in a second; None without any that was computed from another."""
        steps = len(self.ids) - self.ended
        return steps / self.decode_s if steps and self.decode_s > 0 else None


class Frames:
    """Tells the events of a child from what its native code prints."""

    def __init__(self, mark: str) -> None:
        self._start = b"\0" + mark.encode("ascii")
        self._held = b""

    def feed(self, data: bytes) -> list[bytes | dict[str, Any]]:
        """Printed bytes and events in their order, as far as they are complete."""
        found: list[bytes | dict[str, Any]] = []
        rest = self._held + data
        while True:
            before, start, after = rest.partition(self._start)
            if not start:
                kept = _held_back(rest, (self._start,))
                found.append(rest[: len(rest) - kept])
                self._held = rest[len(rest) - kept :]
                break
            found.append(before)
            line, end, after = after.partition(b"\n")
            if not end:
                self._held = start + line
                break
            found.append(json.loads(line))
            rest = after
        return [item for item in found if item != b""]


class Streamed:
    """One answer while it comes: what is printed, without what the runtime prints before and behind it."""

    def __init__(self, head: bytes, show: Show) -> None:
        self._head = head
        self._show = show
        self._waiting = b""
        self.shown = b""

    def feed(self, data: bytes) -> None:
        """Show what is surely part of the answer."""
        self._waiting += data
        if self._head:
            if len(self._waiting) < len(self._head) and self._head.startswith(self._waiting):
                return
            self._waiting = self._waiting.removeprefix(self._head)
            self._head = b""
        kept = _held_back(self._waiting, TAILS)
        self._tell(self._waiting[: len(self._waiting) - kept])
        self._waiting = self._waiting[len(self._waiting) - kept :]

    def close(self, raw: bytes) -> bool:
        """Show what is left of the answer; False when something else was shown."""
        clean = raw.startswith(self.shown)
        self._tell(raw[len(self.shown) :] if clean else b"")
        return clean

    def _tell(self, data: bytes) -> None:
        if data:
            self.shown += data
            self._show(data)


def _held_back(data: bytes, wholes: Sequence[bytes]) -> int:
    """Bytes at the end of `data` that one of `wholes` may begin with."""
    longest = max(map(len, wholes))
    for length in range(min(len(data), longest), 0, -1):
        if any(whole.startswith(data[-length:]) for whole in wholes):
            return length
    return 0


class ChatModel:
    """A model directory that answers, on the MNN of an interpreter."""

    def __init__(
        self,
        config: Path,
        interpreter: Path | str,
        *,
        overrides: Mapping[str, Any] | None = None,
        timeout_s: float = 600,
    ) -> None:
        """Nothing is started yet.

        Args:
            config: path of the configuration file that the release loads.
            overrides: settings merged over the files before loading.
            timeout_s: seconds without any sign of life after which the child is stopped.
        """
        self._config = config
        self._interpreter = str(interpreter)
        self._overrides = {**SETTINGS, **(overrides or {})}
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = contextlib.ExitStack()
        self._folder = Path()
        self._frames = Frames("")
        self._events: list[bytes | dict[str, Any]] = []
        self._log = b""
        self.load: Mapping[str, Any] = {}
        self.shown = b""

    def begin(self) -> None:
        """Start the child, which loads the model while its parent does something else.

        Raises:
            LadingError: B666 there is no such interpreter.
        """
        if self._child is None:
            self.load = {}
            self._spawn()

    def start(self) -> Mapping[str, Any]:
        """Load the model unless it is loaded; gives ``version`` and ``load_s``.

        Raises:
            LadingError: B666 no interpreter, B755 it crashed or refused to load, B756 it took too long.
        """
        self.begin()
        if not self.load:
            try:
                self.load = self._event("while it loaded the model", self._note)
            except BaseException:
                self.close()
                raise
            if self.load.get("returned") is False:
                self._crashed("refused to load the model")
        return self.load

    def answer(
        self,
        messages: Sequence[Mapping[str, str]] | str,
        *,
        tokens: int,
        limit: int | None = None,
        show: Show = lambda data: None,
    ) -> Answer:
        """The answer to a conversation, or the continuation of a text.

        What came of it stays in `shown` when it is interrupted.

        Args:
            messages: role and content of each message, the last one to be answered; or a text without a template.
            tokens: the most to generate.
            limit: the most that prompt and answer may have together.
            show: told the answer as it comes.

        Raises:
            LadingError: B755 the child crashed, B756 it gave no sign of life, B757 the prompt or the answer has no tokens, or
                the binding raised an error, U994 the prompt has as many tokens as the model can hold.
        """
        self.shown = b""
        self.start()
        turn = {"text": messages} if isinstance(messages, str) else {"messages": [dict(item) for item in messages]}
        try:
            self._say({**turn, "tokens": tokens, "limit": limit})
            begins = self._event("while it read the prompt", self._note)

            def shown(data: bytes) -> None:
                self.shown += data
                show(data)

            def came(data: bytes) -> None:
                self._note(data)
                streamed.feed(data)

            streamed = Streamed(base64.b64decode(begins.get("head", "")), shown)

            ends = self._event("while it answered", came) if begins["event"] == "begins" else begins
        except BaseException:
            self.close()
            raise
        if ends["event"] != "ends":
            raise self._unanswered(ends, limit)
        raw = base64.b64decode(ends["text"])
        clean = streamed.close(raw)
        if not ends["ids"] and not ends["ended"]:
            hint = "what the runtime printed may tell why; lading doctor looks at the files"
            raise LadingError("B757", f"{self._name} generates no token", hint=hint)
        seconds = ends["decode_s"] + ends["sample_s"]
        return Answer(raw, tuple(ends["ids"]), ends["ended"], begins["tokens"], ends["prefill_s"], seconds, clean)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
            self._child = None
        self._kept.close()

    def __enter__(self) -> ChatModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the child ----

    def _spawn(self) -> None:
        folder = self._folder = self._kept.enter_context(scratch_folder())
        mark = secrets.token_hex(16)
        request = {"config": str(self._config.resolve()), "overrides": self._overrides, "mark": mark}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        self._frames, self._events, self._log = Frames(mark), [], b""
        try:
            with (folder / "log.txt").open("wb") as log:
                self._child = subprocess.Popen(
                    [self._interpreter, "-I", "-X", "faulthandler", str(CHILD.resolve()), str(folder)],
                    cwd=folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # an interrupt from the keyboard is for us
                )
        except OSError as error:
            self.close()
            hint = "give the interpreter of an environment that has MNN and numpy"
            raise LadingError("B666", f"cannot start {self._interpreter}: {error.strerror}", hint=hint) from error

    def _say(self, turn: Mapping[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(turn).encode("ascii") + b"\n")
            self._child.stdin.flush()
        except OSError:
            self._crashed("crashed before it read the prompt")

    def _event(self, when: str, printed: Callable[[bytes], None]) -> dict[str, Any]:
        """The next event; what is printed before it goes to `printed`."""
        while True:
            while self._events:
                item = self._events.pop(0)
                if isinstance(item, dict):
                    return item
                printed(item)
            self._events += self._frames.feed(self._read(when))

    def _read(self, when: str) -> bytes:
        assert self._child is not None and self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], self._timeout_s)
        if not ready:
            self.close()
            message = f"{self._name} gave no sign of life for {self._timeout_s:g} s {when}"
            raise LadingError("B756", message, hint="give it more time with --timeout")
        data = os.read(self._child.stdout.fileno(), 1 << 16)
        if not data:
            self._crashed(f"{self._outcome()} {when}")
        return data

    def _note(self, data: bytes) -> None:
        self._log = (self._log + data)[-LOG_TAIL_BYTES:]

    @property
    def _name(self) -> str:
        version = self.load.get("version", "")
        return f"MNN {version}" if version else "MNN"

    def _outcome(self) -> str:
        assert self._child is not None
        try:
            status = self._child.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status >= 0:
            return f"left with exit code {status}"
        with contextlib.suppress(ValueError):
            return f"crashed with {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"

    def _crashed(self, outcome: str) -> None:
        """Raise what became of the child, with the end of its log."""
        path = self._folder / "log.txt"
        errors = path.read_bytes()[-LOG_TAIL_BYTES:] if path.is_file() else b""
        lines = (self._log + b"\n" + errors).decode("utf-8", "replace").strip().splitlines()
        self.close()
        raise LadingError("B755", f"{self._name} {outcome}", "\n".join(filter(None, lines[-LOG_LINES:])))

    def _unanswered(self, event: Mapping[str, Any], limit: int | None) -> LadingError:
        if event["event"] == "failed":
            return LadingError("B757", f"{self._name} cannot answer: {event['error']}")
        if not event["tokens"]:
            hint = "the chat template may be one that this release cannot run; --raw goes without it"
            return LadingError("B757", f"{self._name} makes no tokens of the prompt", hint=hint)
        message = f"the prompt has {event['tokens']:,} tokens, and the model holds {limit:,}"
        return LadingError("U994", message, hint="give a shorter one; in a conversation, /clear begins anew")


__all__ = ["Answer", "ChatModel", "Frames", "Show", "Streamed"]
