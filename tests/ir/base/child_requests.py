"""What a child process of the tests does when it is asked to."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from ir.base.diag import LadingError


def serve():
    return handle


def handle(request, buffers):
    return globals()["_" + request["do"]](request, buffers)


def _echo(request, buffers):
    return {"text": request["text"], "sizes": [len(item) for item in buffers]}, buffers


def _refuse(request, buffers):
    raise LadingError("U902", "no such thing", "here")


def _raise(request, buffers):
    raise KeyError("x")


def _panic(request, buffers):
    raise BaseException("a panic of a foreign library is no Exception")


def _crash(request, buffers):
    ctypes.string_at(0)


def _abort(request, buffers):
    os.abort()


def _leave(request, buffers):
    os._exit(7)


def _allocate(request, buffers):
    return {}, [bytearray(3 << 30)]


def _complain(request, buffers):
    print("something is wrong", file=sys.stderr, flush=True)
    os.abort()


def _close(request, buffers):
    os.closerange(3, 64)
    os._exit(0)


def _nonsense(request, buffers):
    for number in map(int, os.listdir("/dev/fd")):
        if number < 3:
            continue
        try:
            os.write(number, b"\xff" * 4096)
        except OSError:
            continue
    os.kill(os.getpid(), signal.SIGSTOP)


def _spin(request, buffers):
    while True:
        pass


def _sleep(request, buffers):
    time.sleep(600)


def _stop(request, buffers):
    os.kill(os.getpid(), signal.SIGSTOP)


def _modules(request, buffers):
    return {"found": [name for name in request["names"] if name in sys.modules]}, []
