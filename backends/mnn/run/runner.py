"""Execute a list of actions on one MNN model directory in this process, then leave.

A stand-alone script: ``python -I runner.py FOLDER``. It needs numpy and MNN alone, imports nothing of this project and
keeps to Python 3.8, because it runs under the interpreter of whatever MNN release is being checked. FOLDER holds
``request.json``: ``config`` (path of config.json), ``overrides`` (settings merged before loading) and ``actions``.
After loading and after each action one line goes to ``results.jsonl`` and its arrays to ``<index>.npz`` in FOLDER, so
that a later crash of the native code loses nothing. Every action that runs the model starts from an empty KV cache.

Actions, by ``do``:
    forward        ``pieces``: lists of ids; the first is a prefill, later ones continue on the KV cache. ``keep``:
                   ``all`` rows, ``last`` row or ``none``. Gives ``logits`` (count of arrays ``0``, ``1``, ..., each
                   float32 [rows, vocabulary]), ``argmax`` (of the last row of each piece) and ``piece_s`` (seconds of each).
    greedy         ``prompt``, ``tokens``, optional ``stop`` ids, ``keep``: decode by argmax over forward calls.
                   Gives ``ids`` and ``logits``.
    generate       ``prompt``, ``tokens``: the runtime's own loop, which ends at its stop ids. Gives ``ids`` and its own
                   ``prefill_s``, ``decode_s``, ``sample_s``. Greedy only if ``sampler_type`` was so before loading.
    sample         the same, and the ids once more through forward calls: gives ``logits`` too, those before each id.
    stops          ``ids``: whether the runtime's own loop ends at each of them. Gives ``stops``.
    bench          ``prompt``, ``tokens``, ``repeat``: seconds of each prefill and of each decoded token through forward
                   calls, and ``prefill_tokens_per_s``, ``decode_tokens_per_s`` from their medians; with ``_cpu`` the
                   processor's seconds, which other work on the machine changes less.
    encode         ``texts``: base64 of UTF-8. Gives ``ids``; null for a text with NUL, which the binding would cut.
    decode         ``ids``: lists of ids. Gives ``texts``: base64 of the bytes, token by token.
    chat_template  ``chats``: strings or lists of {role, content}. Gives ``prompts``.
    set_config     ``config``: settings merged now.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LOAD_FAILED = 3


def unbuffer_native_output() -> None:
    """Write native messages line by line: what C still holds in its buffer is lost when the process crashes."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "__stdoutp" if sys.platform == "darwin" else "stdout")
    libc.setvbuf(stdout, None, 1, 0)


def memory() -> tuple[int, int]:
    """Resident bytes now and at their highest; zeros where /proc does not exist."""
    wanted = {"VmRSS:": 0, "VmHWM:": 0}
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as status:
            for line in status:
                name, _, rest = line.partition("\t")
                if name in wanted:
                    wanted[name] = int(rest.split()[0]) * 1024
    return wanted["VmRSS:"], wanted["VmHWM:"]


class Session:
    """One loaded model and the folder its results go to."""

    def __init__(self, folder: str, request: dict[str, Any]) -> None:
        self.folder = folder
        self.request = request
        self.results = open(os.path.join(folder, "results.jsonl"), "a", encoding="ascii")  # noqa: SIM115
        self.arrays: dict[str, Any] = {}
        self.llm: Any = None

    def record(self, index: int, fields: dict[str, Any]) -> None:
        """Flush one result: arrays first, so that a line in the file promises that its arrays are complete."""
        if self.arrays:
            target = os.path.join(self.folder, f"{index}.npz")
            with open(target + ".part", "wb") as file:
                np.savez(file, **self.arrays)
            os.replace(target + ".part", target)
            self.arrays = {}
        rss, peak = memory()
        line = {"index": index, "rss": rss, "peak_rss": peak}
        line.update(fields)
        self.results.write(json.dumps(line) + "\n")
        self.results.flush()

    def load(self) -> bool:
        """Create and load the model; False when the runtime says that it failed (3.4 says nothing)."""
        import MNN
        import MNN.llm

        before, _ = memory()
        started, worked = time.perf_counter(), time.process_time()
        self.llm = MNN.llm.create(self.request["config"])._c_obj
        if self.request["overrides"]:
            self.llm.set_config(json.dumps(self.request["overrides"]))
        returned = self.llm.load()
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        times = {"load_s": seconds, "load_cpu_s": cpu}
        self.record(-1, {"version": MNN.version(), **times, "rss_before": before, "returned": returned})
        return returned is not False

    def run(self, index: int, action: dict[str, Any]) -> None:
        """Execute one action; an exception raised by the binding is its result, a crash leaves no line at all."""
        started = time.perf_counter()
        fields: dict[str, Any] = {"do": action["do"]}
        try:
            fields.update(getattr(self, "do_" + action["do"])(action))
        except Exception as error:
            traceback.print_exc()
            fields["error"] = f"{type(error).__name__}: {error}"
        fields["seconds"] = time.perf_counter() - started
        self.record(index, fields)

    def restart(self) -> None:
        """Empty the KV cache and put the runtime back into its running state."""
        self.llm.reset()
        self.llm.generate_init()

    def forward(self, ids: list[int]) -> np.ndarray:
        """Logits [rows, vocabulary] of one call, as a copy: the binding hands out memory that it does not own."""
        output = self.llm.forward([int(token) for token in ids])
        logits = np.array(output.read(), dtype=np.float32)
        return logits.reshape(-1, logits.shape[-1])

    def next_token(self, ids: list[int]) -> int:
        """Argmax of the last row, without copying the logits."""
        output = self.llm.forward(ids)
        logits = output.read()
        return int(logits.reshape(-1, logits.shape[-1])[-1].argmax())

    @contextlib.contextmanager
    def last_row_only(self) -> Iterator[None]:
        """Settings of an ordinary generation: the runtime's sampler reads the first row, so only one may be there."""
        wanted = self.request["overrides"].get("all_logits", False)
        self.llm.set_config('{"all_logits": false}')
        try:
            yield
        finally:
            self.llm.set_config(json.dumps({"all_logits": wanted}))

    def keep(self, logits: np.ndarray, rows: str) -> None:
        if rows == "none":
            return
        self.arrays[str(len(self.arrays))] = logits if rows == "all" else logits[-1:]

    def do_forward(self, action: dict[str, Any]) -> dict[str, Any]:
        self.restart()
        argmax, seconds = [], []
        for piece in action["pieces"]:
            started = time.perf_counter()
            logits = self.forward(piece)
            seconds.append(time.perf_counter() - started)
            argmax.append(int(logits[-1].argmax()))
            self.keep(logits, action.get("keep", "all"))
        return {"logits": len(self.arrays), "argmax": argmax, "piece_s": seconds}

    def do_greedy(self, action: dict[str, Any]) -> dict[str, Any]:
        self.restart()
        stop = action.get("stop", [])
        ids: list[int] = []
        piece = action["prompt"]
        while len(ids) < action["tokens"] and not (ids and ids[-1] in stop):
            logits = self.forward(piece)
            self.keep(logits, action.get("keep", "none"))
            ids.append(int(logits[-1].argmax()))
            piece = ids[-1:]
        return {"ids": ids, "logits": len(self.arrays)}

    def do_generate(self, action: dict[str, Any]) -> dict[str, Any]:
        self.restart()
        with self.last_row_only():
            ids = self.llm.generate([int(token) for token in action["prompt"]], int(action["tokens"]))
        # get_context makes a str of the generated text and crashes where that is no UTF-8, so the text is dropped
        # first.
        self.llm.set_context({"generate_str": ""})
        context = self.llm.get_context()
        times = {name + "_s": context[name + "_us"] / 1e6 for name in ("prefill", "decode", "sample")}
        return dict(times, ids=[int(token) for token in ids])

    def do_sample(self, action: dict[str, Any]) -> dict[str, Any]:
        found = self.do_generate(action)
        self.restart()
        piece = action["prompt"]
        with self.last_row_only():
            for token in found["ids"]:
                self.keep(self.forward(piece), "last")
                piece = [token]
        return dict(found, logits=len(self.arrays))

    def do_stops(self, action: dict[str, Any]) -> dict[str, Any]:
        stops = []
        for token in action["ids"]:
            # A loop that has ended counts as stopped from 3.5 on, so it is put back into its running state.
            self.llm.set_context({"current_token": int(token), "status": 0})
            stops.append(bool(self.llm.stoped()))
        return {"stops": stops}

    def do_bench(self, action: dict[str, Any]) -> dict[str, Any]:
        prompt = [int(token) for token in action["prompt"]]
        prefill: list[tuple[float, float]] = []
        decode: list[tuple[float, float]] = []
        with self.last_row_only():
            for _ in range(action.get("repeat", 3)):
                self.restart()
                token = self.timed(prompt, prefill)
                for _ in range(action["tokens"]):
                    token = self.timed([token], decode)
        fields: dict[str, Any] = {}
        for name, pairs in (("prefill", prefill), ("decode", decode)):
            fields[f"{name}_s"], fields[f"{name}_cpu_s"] = ([pair[place] for pair in pairs] for place in (0, 1))
        fields["prefill_tokens_per_s"] = len(prompt) / statistics.median(fields["prefill_s"])
        if decode:
            fields["decode_tokens_per_s"] = 1 / statistics.median(fields["decode_s"])
        return fields

    def timed(self, ids: list[int], seconds: list[tuple[float, float]]) -> int:
        started, worked = time.perf_counter(), time.process_time()
        token = self.next_token(ids)
        seconds.append((time.perf_counter() - started, time.process_time() - worked))
        return token

    def do_encode(self, action: dict[str, Any]) -> dict[str, Any]:
        texts = [base64.b64decode(text) for text in action["texts"]]
        return {"ids": [None if b"\0" in text else list(self.llm.tokenizer_encode(text)) for text in texts]}

    def do_decode(self, action: dict[str, Any]) -> dict[str, Any]:
        raw = [b"".join(self.decode_token(token) for token in ids) for ids in action["ids"]]
        return {"texts": [base64.b64encode(text).decode("ascii") for text in raw]}

    def decode_token(self, token: int) -> bytes:
        try:
            return self.llm.tokenizer_decode(int(token)).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:  # the binding makes a str of each token; half a character is none
            return bytes(error.object)

    def do_chat_template(self, action: dict[str, Any]) -> dict[str, Any]:
        return {"prompts": [self.llm.apply_chat_template(chat) for chat in action["chats"]]}

    def do_set_config(self, action: dict[str, Any]) -> dict[str, Any]:
        return {"returned": self.llm.set_config(json.dumps(action["config"]))}


def main(folder: str, kind: type[Session] = Session) -> int:
    """Answer the request of a folder with a session of some kind."""
    unbuffer_native_output()
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    session = kind(folder, request)
    if not session.load():
        return LOAD_FAILED
    for index, action in enumerate(request["actions"]):
        session.run(index, action)
    return 0


def run_script(main: Callable[[str], int]) -> None:
    """Run a main function on the first argument and leave the process."""
    try:
        code = main(sys.argv[1])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code)  # releasing a loaded model at interpreter exit crashes in every release


if __name__ == "__main__":
    run_script(main)
