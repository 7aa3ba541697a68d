"""Compile a rung in a child process that ends when this process does: progress as it comes, its answer, or how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ir.base.diag import Diagnostic, LadingError
from ir.base.scratch import scratch_folder

PATIENCE_S = 15.0
"""Seconds that a child that was interrupted has to tidy up."""

_ROOT = Path(__file__).resolve().parents[2]
_SIGNALS = {item.value: item.name for item in signal.Signals}

Say = Callable[[str, int, int], None]
"""Told a phase, and how much of how much is done (0 of 0 where that is not known)."""


def compile_rung(request: Mapping[str, Any], say: Say, timeout_s: float) -> dict[str, Any]:
    """What `tools.ladder.child_main` makes of a request.

    Raises:
        LadingError: what is wrong with the rung; U937 when the process ended without an answer or took too long.
    """
    with scratch_folder() as folder:
        answer = folder / "answer.json"
        asked = folder / "request.json"
        asked.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
        with (folder / "log.txt").open("wb") as log:
            status, late = _run(
                [sys.executable, "-P", "-m", "tools.ladder.child_main", str(asked)], log, say, timeout_s
            )
        if answer.is_file():
            found = json.loads(answer.read_text(encoding="utf-8"))
            if "error" in found:
                raise LadingError.of([Diagnostic(**found["error"])])
            return found["built"]
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        ended = f"was stopped after {timeout_s:g} s" if late else _outcome(status)
        hint = "give it more time with --timeout" if late else "there may be too little memory; compile it alone to see"
        raise LadingError("U937", f"the process that compiles this rung {ended}", "\n".join(lines[-8:]), hint)


def _outcome(status: int) -> str:
    return (
        f"was ended by {_SIGNALS.get(-status, f'signal {-status}')}" if status < 0 else f"left with exit code {status}"
    )


def _run(argv: list[str], log: Any, say: Say, timeout_s: float) -> tuple[int, bool]:
    """Exit status of a child that reports its progress, and whether the time limit ended it."""
    paths = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # an interrupt from the keyboard reaches it through us alone
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            say(event["phase"], event.get("done", 0), event.get("total", 0))
        return process.wait(), late.is_set()
    finally:
        timer.cancel()
        _end(process)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a child that still runs, so that it ends its own children and removes what is half written."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
