"""Run MNN's native code where it cannot hurt: in child processes with a time limit and a kept log.

MNN reports failures by printing and then crashing, the converter answers success whatever happened, and both
leave files in the current directory. So nothing native is ever imported here. A child gets a folder of its own as
working directory, its output goes to a log file, and how it ended (exit code, signal, time limit) is in the result.

`run_child` is the general mechanism, `run_model` runs `runner.py` on a model directory under any interpreter,
`json_to_mnn` and `mnn_to_json` call the converter inside the MNN wheel. Needs `os.waitid`: Linux, or macOS with 3.13.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.base.whole_files import write_whole

RUNNER = Path(__file__).with_name("runner.py")
LOG_TAIL_BYTES = 8192
ACTIONS = (
    *("forward", "greedy", "generate", "sample", "stops", "bench"),
    *("encode", "decode", "chat_template", "set_config"),
)

NO_CONVERTER = 90
"""Exit code of the conversion child when the interpreter has no MNN wheel."""

EXACT_CONFIG: Mapping[str, Any] = {
    "memory": "normal",
    "precision": "high",
    "thread_num": 1,
    "all_logits": True,
    "use_mmap": False,
    "sampler_type": "greedy",
}
"""Runtime settings for comparing numbers: weights expanded to fp32, no activation quantization, logits of every row."""

_END_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv.pop(1)):
    os._exit(1)
"""
"""What a child does first, given the number of its parent: nobody would watch its time once the parent is gone."""

_SCRIPT = f"""{_END_WITH_PARENT}
import runpy
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_CONVERT = f"""{_END_WITH_PARENT}
libc = ctypes.CDLL(None)
try:
    stdout = ctypes.c_void_p.in_dll(libc, "__stdoutp" if sys.platform == "darwin" else "stdout")
    libc.setvbuf(stdout, None, 1, 0)
    import _tools
except ImportError as error:
    print(error, file=sys.stderr, flush=True)
    os._exit({NO_CONVERTER})
_tools.mnnconvert(["mnnconvert", *sys.argv[1:]])
libc.fflush(None)
os._exit(0)
"""


@dataclass(frozen=True)
class ChildResult:
    """How one child process ended and what it left behind.

    Attributes:
        exit_code: exit status, or None when a signal ended the process.
        signal: name of that signal such as ``SIGSEGV``, or None.
        timed_out: the time limit was reached and the process group was killed.
        wall_s: seconds from start to end.
        peak_rss: highest resident memory in bytes, or None when it is not known: on Linux the kernel's figure for a
            child starts from its parent's, so a child that stayed below us is known only by its own report.
        log: the last `LOG_TAIL_BYTES` of standard output and error.
        records: the JSON objects the child wrote to ``results.jsonl``, in order; all complete lines before a crash.
        arrays: the arrays of every ``.npz`` the child wrote, by ``<file stem>/<name>``.
    """

    exit_code: int | None
    signal: str | None
    timed_out: bool
    wall_s: float
    peak_rss: int | None
    log: str
    records: tuple[dict[str, Any], ...] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """The child left by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def outcome(self) -> str:
        """How it ended, as the predicate of a sentence."""
        if self.timed_out:
            return f"was stopped after {self.wall_s:.1f} s"
        if self.signal is not None:
            return f"crashed with {self.signal}"
        return f"left with exit code {self.exit_code}"


def run_child(
    script: Path,
    request: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    interpreter: Path | str = sys.executable,
    timeout_s: float,
    memory_limit: int | None = None,
) -> ChildResult:
    """Run ``interpreter -I script FOLDER`` and collect what it wrote; a crash is a result, not an exception.

    The script finds ``request.json`` and, when arrays are given, ``inputs.npz`` in FOLDER, which is also its working
    directory and is deleted afterwards. It may append JSON lines to ``results.jsonl`` (a number ``peak_rss`` in one is
    its own report of its memory) and write ``.npz`` files; one that a failed child left half written is left out.

    Args:
        memory_limit: bytes of address space the child may map (Linux only).

    Raises:
        LadingError: B666 when the interpreter cannot be started.
    """
    with scratch_folder() as folder:
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        if arrays:
            np.savez(folder / "inputs.npz", **dict[str, Any](arrays))
        argv = [_command(interpreter), "-I", "-X", "faulthandler", "-c", _SCRIPT, str(os.getpid())]
        argv += [str(script.resolve()), str(folder)]
        ended = _spawn(argv, folder, timeout_s, memory_limit)
        records = _read_records(folder / "results.jsonl")
        outputs = sorted(path for path in folder.glob("*.npz") if path.name != "inputs.npz")
        found = {f"{path.stem}/{key}": value for path in outputs for key, value in _read_npz(path, ended.ok).items()}
    reported = max((record.get("peak_rss", 0) for record in records), default=0)
    return replace(ended, peak_rss=ended.peak_rss or reported or None, records=records, arrays=found)


def _command(interpreter: Path | str) -> str:
    """A path stays valid when the child starts in another directory; a bare name is looked up in PATH."""
    return str(interpreter) if Path(interpreter).name == str(interpreter) else str(Path(interpreter).absolute())


def _read_npz(path: Path, complete: bool) -> dict[str, np.ndarray]:
    """Arrays of an archive; none of one that a failed child may have left half written."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (BadZipFile, EOFError, ValueError):
        if complete:
            raise
        return {}


def _read_records(path: Path) -> tuple[dict[str, Any], ...]:
    """Complete lines only: a child that dies while writing leaves a last line without its newline."""
    if not path.exists():
        return ()
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    return tuple(json.loads(line) for line in complete.split(b"\n") if line)


def _spawn(argv: Sequence[str], cwd: Path, timeout_s: float, memory_limit: int | None = None) -> ChildResult:
    """Start a process group, wait for it or kill it, and read its log; records and arrays stay empty."""
    log_path = cwd / "log.txt"
    started = time.perf_counter()
    with log_path.open("wb") as log:
        try:
            process = subprocess.Popen(
                argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            hint = "give the interpreter of an environment that has MNN and numpy"
            raise LadingError("B666", f"cannot start {argv[0]}: {error.strerror}", hint=hint) from error
    try:
        if memory_limit is not None:
            _limit_memory(process.pid, memory_limit)
        status, usage, timed_out = _wait(process.pid, timeout_s)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    wall = time.perf_counter() - started
    code = process.returncode = os.waitstatus_to_exitcode(status)
    return ChildResult(
        exit_code=code if code >= 0 else None,
        signal=_signal_name(-code) if code < 0 else None,
        timed_out=timed_out,
        wall_s=wall,
        peak_rss=_peak_rss(usage.ru_maxrss),
        log=_tail(log_path),
    )


def _wait(pid: int, timeout_s: float) -> tuple[int, Any, bool]:
    """Reap the child; its group is killed when the time limit comes first. Returns status, rusage, timed out."""
    lock, reaped, fired = threading.Lock(), threading.Event(), threading.Event()

    def kill() -> None:
        with lock:
            if reaped.is_set():
                return
            fired.set()
            os.killpg(pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, kill)
    timer.daemon = True
    timer.start()
    try:
        # waitid leaves the zombie in place, so the pid cannot be reused while the timer may still fire
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        with lock:
            reaped.set()
        timer.cancel()
    _, status, usage = os.wait4(pid, 0)
    return status, usage, fired.is_set()


def _limit_memory(pid: int, limit: int) -> None:
    import resource

    if not hasattr(resource, "prlimit"):
        raise ValueError("memory_limit needs Linux")
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _peak_rss(maxrss: int) -> int | None:
    """Bytes from a child's ru_maxrss; None where Linux may only have copied our own high-water mark at exec."""
    if sys.platform == "darwin":
        return maxrss
    own = Path("/proc/self/status")
    if not own.exists():
        return maxrss * 1024
    line = next(line for line in own.read_text().splitlines() if line.startswith("VmHWM:"))
    return maxrss * 1024 if maxrss > int(line.split()[1]) else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()


def _last_lines(log: str, count: int = 12) -> str:
    return "\n".join(log.splitlines()[-count:])


def json_to_mnn(
    net: Mapping[str, Any] | bytes, out: Path, *, timeout_s: float = 120, interpreter: Path | str = sys.executable
) -> None:
    """Write the MNN file of a net given in MNN's JSON form; equal nets give equal bytes.

    The JSON direction adds no random identifier (a ``mnn_uuid`` in the net is kept as it is). Floats are written
    with all their digits. `out` appears complete or not at all.

    Raises:
        LadingError: B660 no wheel, B661 refused, B662 crash, B663 time limit, B664 fields this converter does not know.
    """
    if isinstance(net, bytes):
        text = net
    else:
        try:
            text = json.dumps(net, allow_nan=False, separators=(",", ":")).encode("ascii")
        except ValueError as error:
            raise LadingError("B661", f"the net cannot be written as JSON: {error}") from error
    with scratch_folder() as folder:
        (folder / "in.json").write_bytes(text)
        arguments = ["-f", "JSON", "--modelFile", "in.json", "--MNNModel", "out.mnn"]
        log = _convert(arguments, folder, timeout_s, interpreter)
        skipped = sorted({line.split()[1].rstrip(",") for line in log.splitlines() if line.startswith("Invalid: ")})
        if skipped:
            hint = "use the MNN release the net was written for, or leave the fields out"
            raise LadingError("B664", f"the converter does not know the fields {', '.join(skipped)}", hint=hint)
        _move(folder / "out.mnn", out)


def mnn_to_json(mnn: Path, *, timeout_s: float = 120, interpreter: Path | str = sys.executable) -> bytes:
    """MNN's JSON form of a ``.mnn`` file. Floats come with six decimals only, so it is for looking, not for rewriting.

    Raises:
        LadingError: B660 no wheel, B661 refused, B662 crash, B663 time limit, B665 no such file.
    """
    if not mnn.is_file():
        raise LadingError("B665", f"there is no MNN file {mnn}")
    with scratch_folder() as folder:
        (folder / "in.mnn").symlink_to(mnn.resolve())
        arguments = ["-f", "MNN", "--modelFile", "in.mnn", "--JsonFile", "out.json"]
        _convert(arguments, folder, timeout_s, interpreter)
        return (folder / "out.json").read_bytes()


def onnx_to_mnn(
    model: Path,
    out: Path,
    *,
    timeout_s: float = 300,
    memory_limit: int | None = None,
    interpreter: Path | str = sys.executable,
) -> ChildResult:
    """Give an ONNX file to the converter as it is. However that ends is a result; `out` is there if it wrote a file.

    Raises:
        LadingError: B660 no wheel.
    """
    with scratch_folder() as folder:
        arguments = ["-f", "ONNX", "--modelFile", str(model.resolve()), "--MNNModel", "out.mnn"]
        argv = [_command(interpreter), "-I", "-c", _CONVERT, str(os.getpid()), *arguments]
        ended = _spawn(argv, folder, timeout_s, memory_limit)
        if ended.exit_code == NO_CONVERTER:
            hint = f"{interpreter} -m pip install MNN"
            raise LadingError("B660", "the MNN converter is not installed", where=_last_lines(ended.log), hint=hint)
        if (folder / "out.mnn").is_file():
            _move(folder / "out.mnn", out)
    return ended


def _convert(arguments: list[str], folder: Path, timeout_s: float, interpreter: Path | str) -> str:
    """Run the converter in `folder` and return its log; the last argument names the file that must be there then."""
    ended = _spawn([_command(interpreter), "-I", "-c", _CONVERT, str(os.getpid()), *arguments], folder, timeout_s)
    if ended.timed_out:
        raise LadingError("B663", f"the MNN converter {ended.outcome}", where=_last_lines(ended.log))
    if ended.exit_code == NO_CONVERTER:
        hint = f"{interpreter} -m pip install MNN"
        raise LadingError("B660", "the MNN converter is not installed", where=_last_lines(ended.log), hint=hint)
    if not ended.ok:
        hint = "an operator, a union type or a value kind that this converter does not know crashes it"
        raise LadingError("B662", f"the MNN converter {ended.outcome}", where=_last_lines(ended.log), hint=hint)
    written = folder / arguments[-1]
    if "[ERROR]" in ended.log or not written.is_file() or written.stat().st_size == 0:
        raise LadingError("B661", "the MNN converter refused its input", where=_last_lines(ended.log))
    return ended.log


def _move(source: Path, target: Path) -> None:
    """Copy beside the target, then rename: the temporary folder may be on another file system."""
    with write_whole(target, durable=False) as staged:
        staged.write_bytes(source.read_bytes())


@dataclass(frozen=True)
class ModelRun:
    """What `runner.py` did with a list of actions.

    Attributes:
        child: how the process ended.
        load: record of the start: ``version``, ``load_s``, ``rss_before``, ``rss``, ``returned`` (MNN 3.4 returns
            nothing from a load); empty when the process died before it.
        results: one entry per action, None from the one that crashed on. An entry has ``seconds``, ``rss``,
            ``peak_rss`` and the keys of its action, or ``error`` with the Python exception the binding raised.
    """

    actions: tuple[Mapping[str, Any], ...]
    child: ChildResult
    load: Mapping[str, Any]
    results: tuple[Mapping[str, Any] | None, ...]

    @property
    def loaded(self) -> bool:
        """The model was loaded, as far as the runtime tells: 3.4 only prints that it failed, and crashes on use."""
        returned = self.load.get("returned", False)
        return "Load module failed" not in self.child.log if returned is None else bool(returned)

    @property
    def failure(self) -> str | None:
        """What went wrong first, or None when everything ran."""
        if not self.loaded:
            return f"loading failed: the process {self.child.outcome}"
        for number, result in enumerate(self.results):
            name = f"action {number} ({self.actions[number]['do']})"
            if result is None:
                return f"the process {self.child.outcome} in {name}"
            if "error" in result:
                return f"{name} failed: {result['error']}"
        return None if self.child.ok else f"the process {self.child.outcome}"

    def require(self, where: str = "") -> ModelRun:
        """This run, or LadingError when any part of it failed: B667 crash, B668 time limit, B669 error of an action."""
        if self.failure is None:
            return self
        code = "B668" if self.child.timed_out else "B669" if self.child.ok else "B667"
        version = self.load.get("version", "")
        place = "\n".join(part for part in (where, _last_lines(self.child.log)) if part)
        raise LadingError(code, f"{f'MNN {version}' if version else 'MNN'}: {self.failure}", where=place)


def run_model(
    config: Path,
    actions: Sequence[Mapping[str, Any]],
    *,
    overrides: Mapping[str, Any] = EXACT_CONFIG,
    interpreter: Path | str = sys.executable,
    timeout_s: float = 300,
    memory_limit: int | None = None,
) -> ModelRun:
    """Load a model directory in a fresh process and execute actions on it (see `runner.py` for their fields).

    Texts to ``encode`` may be str or bytes, ``decode`` gives bytes; ``forward``, ``greedy`` and ``sample`` give ``logits`` as a
    list of float32 arrays ``[rows, vocabulary]``, one per call of the runtime.

    Args:
        config: path of ``config.json``.
        overrides: settings merged over the files before loading. Weights are not mapped unless they say so: what is
            mapped lies in the working directory, which vanishes with the process.
    """
    unknown = [action["do"] for action in actions if action["do"] not in ACTIONS]
    if unknown:
        raise ValueError(f"the runner has no action {unknown[0]!r}")
    request = {
        "config": str(config.resolve()),
        "overrides": {"use_mmap": False, **overrides},
        "actions": [_encode_action(action) for action in actions],
    }
    child = run_child(RUNNER, request, interpreter=interpreter, timeout_s=timeout_s, memory_limit=memory_limit)
    load: Mapping[str, Any] = next((record for record in child.records if record["index"] < 0), {})
    done = {record["index"]: record for record in child.records}
    results = tuple(_decode_result(done.get(number), child.arrays) for number in range(len(actions)))
    return ModelRun(tuple(actions), child, load, results)


def _encode_action(action: Mapping[str, Any]) -> dict[str, Any]:
    """Texts travel as base64 of their bytes: not every text is valid in JSON, and no text may be changed on the way."""
    if action["do"] != "encode":
        return dict(action)
    raw = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in action["texts"]]
    return {**action, "texts": [base64.b64encode(text).decode("ascii") for text in raw]}


def _decode_result(record: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> Mapping[str, Any] | None:
    if record is None:
        return None
    result = dict(record)
    if "texts" in result:
        result["texts"] = [base64.b64decode(text) for text in result["texts"]]
    if "logits" in result:
        result["logits"] = [arrays[f"{record['index']}/{number}"] for number in range(result["logits"])]
    return result
