"""Answer conversations with one MNN model directory, in the runtime's own words, until standard input closes.

A stand-alone script like `runner.py`, beside which it lies: ``python -I chat_child.py FOLDER``, under the interpreter of
any MNN release. FOLDER holds ``request.json``: ``config``, ``overrides`` and ``mark``. Each line of standard input is a
turn: ``messages`` (a list of {role, content}, which go through the model's template) or ``text`` (taken as it is),
``tokens`` (the most to generate) and ``limit`` (the most that prompt and answer may have together, or null).

The runtime streams an answer to the C standard output, among whatever else it prints. So that goes where our own
events go, in one order: an event is a NUL, the mark, a JSON object and a line feed. Events, by ``event``:

    loaded   ``version``, ``load_s`` and ``returned``, as in `runner.py`.
    begins   ``tokens`` of the prompt, and ``head``: base64 of what the runtime prints before the answer.
    ends     ``ids``, ``text`` (base64 of the bytes of all ids but one that ended the answer), ``ended`` (such an id
             came), ``prefill_s``, ``decode_s``, ``sample_s``.
    refused  ``tokens`` of a prompt that does not leave room for an answer.
    failed   ``error``: the exception that the binding raised.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import os
import sys
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = importlib.util.spec_from_file_location("runner", os.path.join(HERE, "runner.py"))
assert SPEC is not None and SPEC.loader is not None
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)

ENDED_BY_ITSELF = 1
"""The runtime's status after an id that ends generation."""
KILL = 9
WHEN_PARENT_DIES = 1


class Chat(runner.Session):  # type: ignore[name-defined]
    """A loaded model that tells events instead of writing records."""

    def record(self, index: int, fields: dict[str, Any]) -> None:
        """The record of the start is the first event; there are no others."""
        self.tell("loaded", fields)

    def tell(self, event: str, fields: dict[str, Any]) -> None:
        """Write an event behind everything that native code has printed."""
        ctypes.CDLL(None).fflush(None)
        line = json.dumps(dict(fields, event=event)).encode("ascii")
        os.write(1, b"\0" + self.request["mark"].encode("ascii") + line + b"\n")

    def answer(self, turn: dict[str, Any]) -> None:
        """Generate the answer to one turn."""
        text = self.llm.apply_chat_template(turn["messages"]) if turn.get("messages") else turn["text"]
        count = len(self.llm.tokenizer_encode(text))
        tokens = turn["tokens"] if turn["limit"] is None else min(turn["tokens"], turn["limit"] - count)
        if not count or tokens < 1:
            self.tell("refused", {"tokens": count})
            return
        head = f"[MNNLLM] response: text={text}, stream=1, max_new_tokens={tokens}\n"
        self.llm.reset()
        self.tell("begins", {"tokens": count, "head": base64.b64encode(head.encode("utf-8")).decode("ascii")})
        self.llm.response(text, 1, tokens)
        # get_context makes a str of the generated text and crashes where that is no UTF-8
        self.llm.set_context({"generate_str": ""})
        context = self.llm.get_context()
        ids = [int(token) for token in context["output_tokens"]]
        ended = context["status"] == ENDED_BY_ITSELF
        raw = b"".join(self.decode_token(token) for token in (ids[:-1] if ended else ids))
        times = {name + "_s": context[name + "_us"] / 1e6 for name in ("prefill", "decode", "sample")}
        self.tell("ends", dict(times, ids=ids, ended=ended, text=base64.b64encode(raw).decode("ascii")))


def main(folder: str) -> int:
    """Load, then answer turns as they come."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(WHEN_PARENT_DIES, KILL, 0, 0, 0)
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        chat = Chat(folder, json.load(file))
    if not chat.load():
        return int(runner.LOAD_FAILED)
    for line in sys.stdin:
        try:
            chat.answer(json.loads(line))
        except Exception as error:
            chat.tell("failed", {"error": f"{type(error).__name__}: {error}"})
    return 0


if __name__ == "__main__":
    runner.run_script(main)
