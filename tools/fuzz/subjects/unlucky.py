"""Commands with paths that lead nowhere, and on machines that have no room, no descriptors or no time left."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.samples import checkpoint, copy_of, model_directory
from tools.fuzz.target import Case, Target, require

_NAMES = (
    "~nobody-of-this-name", "~nobody-of-this-name/x", "~", "", ".", "..", "/", "a" * 300, "a/" * 2100, "\udcff",
    "-", "--", "a b", "[x]*?", "{}", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/fd/0",
    "loop", "closed", "closed/x", "file/x", "model.onnx", "graph.lading", "owner/name", "owner/\udcff", "漢字",
    "http://x", "C:\\x", "file", "empty", "big.onnx", "folder.onnx", "folder.mnn", "zero.safetensors",
)  # fmt: skip
_COMMANDS = (
    ["compile", "@", "--verify", "none"],
    ["compile", "sound", "--verify", "none", "-o", "@"],
    ["compile", "sound", "--verify", "none", "--passes", "@"],
    ["compile", "sound", "--verify", "none", "--budget", "5bpw", "--calibration", "@"],
    ["compile", "sound", "--verify", "none", "--tokenizer", "@"],
    ["compile", "sound", "--verify", "none", "--text", "@"],
    ["compile", "sound", "--verify", "none", "--passes", 'default{plan="@"}'],
    ["compile", "sound", "--verify", "none", "--dump-ir", "@"],
    ["opt", "@", "--passes", "canonicalize"],
    ["opt", "graph.lading", "--passes", "dce", "-o", "@"],
    ["opt", "graph.lading", "--passes", "@"],
    ["opt", "graph.lading", "--passes", "dce", "--dump-ir", "@"],
    ["opt", "graph.lading", "--passes", "dce", "--report", "@"],
    ["inspect", "@"],
    ["inspect", "graph.lading", "-o", "@"],
    ["diff", "@", "graph.lading"],
    ["diff", "graph.lading", "@"],
    ["doctor", "@"],
    ["repair", "@", "-o", "out"],
    ["repair", "written", "-o", "@"],
    ["explain", "@"],
)


def _words(case: Case) -> list[str]:
    words = case.rng.choice(_COMMANDS)
    # A file may say what no command line can.
    name = case.rng.choice([*_NAMES, "x\x00y", "\ud800"] if "plan=" in words[-1] else _NAMES)
    return [word.replace("@", name) for word in words]


def _place(case: Case) -> None:
    """Files of the names that the words use, in the folder of the case."""
    folder = case.folder
    os.symlink("loop", folder / "loop")
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "folder.onnx").mkdir()
    (folder / "folder.mnn").mkdir()
    (folder / "zero.safetensors").touch()
    with open(folder / "big.onnx", "wb") as file:
        file.truncate(3 << 30)
    (folder / "graph.lading").write_text(
        'lading 1\ngraph g {\n  opset "" 24\n  input %x: f32[2]\n  %y: f32[2] = Neg(%x)\n  output %y\n}\n'
    )
    os.symlink(checkpoint(case.samples, case.rng), folder / "sound")
    os.symlink(model_directory(case.samples, case.rng), folder / "written")


def _run(words: list[str], case: Case) -> None:
    from click.testing import CliRunner

    from tools.main import main

    _place(case)
    before = os.getcwd()
    os.chdir(case.folder)
    try:
        result = CliRunner().invoke(main, words)
    finally:
        os.chdir(before)
    _judge(result)


def _judge(result: Any) -> None:
    require(result.exit_code in (0, 1, 2, 4), f"exit code {result.exit_code}: {result.output[-800:]}")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception


# ---- limits ----

_LIMITED = (
    ["compile", "sound", "--verify", "none", "-o", "out/model"],
    ["compile", "sound", "--verify", "none", "-o", "out/model", "--force"],
    ["compile", "graph.lading", "-o", "out/model", "--verify", "none"],
    ["opt", "graph.lading", "--passes", "canonicalize", "-o", "out/g.onnx"],
    ["opt", "graph.lading", "--passes", "canonicalize", "--report", "out/r.json", "--dump-ir", "out/ir"],
    ["inspect", "graph.lading", "-o", "out/p.html"],
    ["repair", "written", "-o", "out/model"],
)


def _limit(case: Case) -> tuple[list[str], str, int]:
    what = case.rng.choice(["room", "room", "descriptors"])
    limit = case.rng.choice([0, 1, 200, 4096, 20000, 100_000]) if what == "room" else case.rng.randint(0, 24)
    return case.rng.choice(_LIMITED), what, limit


@contextmanager
def _limited(what: str, limit: int) -> Iterator[None]:
    """So many bytes in a file, or so many more descriptors than are open."""
    kind = resource.RLIMIT_FSIZE if what == "room" else resource.RLIMIT_NOFILE
    soft, hard = resource.getrlimit(kind)
    size = limit if what == "room" else limit + 1 + max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(kind, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def _run_limited(given: tuple[list[str], str, int], case: Case) -> None:
    from click.testing import CliRunner

    from tools.main import main

    words, what, limit = given
    _place(case)
    out = case.folder / "out"
    out.mkdir()
    if "--force" in words:
        copy_of(model_directory(case.samples, case.rng), out).rename(out / "model")
    before = os.getcwd()
    os.chdir(case.folder)
    try:
        with _limited(what, limit):
            result = CliRunner().invoke(main, words)
    finally:
        os.chdir(before)
    _judge(result)
    left = sorted(path.name for path in out.iterdir())
    if result.exit_code and "model" in words[-2]:
        require(left in ([], ["model"]), f"a failed run left {left} behind")
    if result.exit_code == 0 and "model" in left and (out / "model").is_dir():
        _whole(out / "model")


def _whole(folder: Path) -> None:
    from backends.contract import check_files, read

    problems = check_files(read(folder), folder)
    require(not problems, f"a folder is not what its contract says: {problems[:1]}")


UNLUCKY = (
    Target("paths", "commands with paths that lead nowhere", _words, _run, seconds=120),
    Target("limits", "commands that run out of room or of descriptors", _limit, _run_limited, seconds=120),
)
