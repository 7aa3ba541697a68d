"""Render chats with one MNN release, without a model, in this process; then leave.

A stand-alone script: ``python -I release_child.py FOLDER``. It needs MNN alone, imports nothing of this project and keeps
to Python 3.8, because it runs under the interpreter of whatever release is asked. FOLDER holds ``request.json``:
``groups``, each with ``jinja`` (the object of llm_config.json) and ``chats`` (questions, or lists of {role, content}),
``seconds`` that a group may take and ``memory`` that all may. The engine makes its renderer before it opens the model, so
a file of one byte is enough in the model's place, whose loading fails.

After each chat one line goes to ``results.jsonl``: ``group``, ``chat``, and ``text`` or ``error``; a line with the group
and the chat -1 says that the group's template was taken in.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from typing import Any

TOKENIZER = "430 1\n0 0 0\n\n1\nYQ==\n"
"""The smallest tokenizer that every release reads: one token."""


def engine(folder: str, number: int, jinja: dict[str, Any]) -> Any:
    """An engine whose templates are those of a group."""
    import MNN.llm

    place = os.path.join(folder, str(number))
    os.mkdir(place)
    config = {"llm_model": "m.mnn", "llm_weight": "m.weight", "tokenizer_file": "t.txt", "backend_type": "cpu"}
    model = {"hidden_size": 64, "layer_nums": 1, "jinja": jinja}
    files = {
        "m.mnn": "-",
        "m.weight": "-",
        "t.txt": TOKENIZER,
        "config.json": json.dumps(config),
        "llm_config.json": json.dumps(model),
    }
    for name, text in files.items():
        with open(os.path.join(place, name), "w", encoding="utf-8") as file:
            file.write(text)
    made = MNN.llm.create(os.path.join(place, "config.json"))._c_obj
    made.load()
    return made


def limit_memory(more: int) -> None:
    """Let this process map so many bytes more than it has by now; what libraries map for threads depends on the machine."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))
    except (ImportError, OSError, ValueError):
        pass  # no Linux, or a limit that is lower already: the time is limited anyway


def main(folder: str) -> None:
    """Answer the request of a folder."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    with open(os.path.join(folder, "results.jsonl"), "a", encoding="ascii") as results:

        def record(**line: Any) -> None:
            results.write(json.dumps(line) + "\n")
            results.flush()

        import MNN.llm  # noqa: F401

        limit_memory(request["memory"])
        for number, group in enumerate(request["groups"]):
            # Native code does not return to Python while it loops, so the signal ends the process.
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
            made = engine(folder, number, group["jinja"])
            record(group=number, chat=-1)
            for place, chat in enumerate(group["chats"]):
                try:
                    record(group=number, chat=place, text=made.apply_chat_template(chat))
                except Exception as error:
                    record(group=number, chat=place, error=f"{type(error).__name__}: {error}")
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code)  # releasing engines at interpreter exit crashes
