"""Stop a function of its own process at a chosen line, as a signal from outside would, and see what it left.

Every line of the watched modules is a point: what a function asks of the system lies between two of them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType
from typing import Any

from ir.base import whole_files
from ir.base.interrupts import raising_signals


def run_stopped(
    action: Callable[[], object], modules: Sequence[ModuleType], point: int, number: int
) -> tuple[int, str]:
    """Run a function in a forked process that gets a signal at a line.

    Args:
        action: what to run.
        modules: whose lines count.
        point: how many lines run before; more than there are for none.
        number: of the signal.

    Returns:
        How the process ended: 0 it was done, 1 the signal stopped it, 2 another exception did, the negative number of a
        signal that ended it; and, but for the last, the number of lines that ran and the paths that it says are
        written, a line each.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(action, {module.__file__ or "" for module in modules}, point, number, write)
    os.close(write)
    with os.fdopen(read) as file:
        told = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _child(action: Callable[[], object], files: set[str], point: int, number: int, write: int) -> None:
    gc.disable()
    for item in (signal.SIGINT, signal.SIGTERM):
        signal.signal(item, signal.SIG_DFL)
    whole_files.forget_written()
    lines = 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            lines += 1
            if lines == point:
                os.kill(os.getpid(), number)
        return watch

    code = 0
    try:
        with raising_signals():
            sys.settrace(watch)
            try:
                action()
            finally:
                sys.settrace(None)
    except KeyboardInterrupt:
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 2
    with os.fdopen(write, "w") as file:
        file.write("\n".join([str(lines), *map(str, whole_files.written())]))
    os._exit(code)
