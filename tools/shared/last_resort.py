"""What a command does about an error that nobody foresaw: says so, and keeps what its makers need to find it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ir.base.diag import LadingError

PACKAGES = (
    "lading", "MNN", "click", "huggingface_hub", "jinja2", "ml_dtypes", "networkx", "numpy", "onnx",
    "onnx-graphsurgeon", "onnxruntime", "protobuf", "rich", "tokenizers", "torch", "transformers",
)  # fmt: skip
"""Packages whose versions may matter."""

LONGEST_LINE = 500
"""Characters of a line of a traceback that are kept: a message may hold a whole file."""

MOST_LINES = 400


def fault(error: BaseException) -> LadingError:
    """The coded error that an unforeseen one is shown as; a report of it is written."""
    shown = _shortened(" ".join(str(error).split()), 200)
    message = f"a fault of this program: {type(error).__name__}{': ' if shown else ''}{shown}"
    path = _written(report(error))
    kept = f"the report {path} has versions, command line and traceback, and no model data; " if path else ""
    hint = f"{kept}please send it to the authors, with the input if you can"
    return LadingError("U980", message, _place(error), hint)


def report(error: BaseException) -> str:
    """Versions, command line and traceback, without anything of the model but what names and messages say."""
    lines = [f"lading fault report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}", ""]
    lines += [f"command     {shlex.join(sys.argv)}", f"folder      {_folder()}"]
    lines += [f"python      {platform.python_version()} ({sys.executable})", f"platform    {platform.platform()}"]
    lines += [f"{name:<18} {_version(name)}" for name in PACKAGES]
    trace = "".join(traceback.format_exception(error)).splitlines()
    if len(trace) > MOST_LINES:
        half = MOST_LINES // 2
        trace = [*trace[:half], f"... {len(trace) - 2 * half} lines ...", *trace[-half:]]
    return "\n".join([*lines, "", *(_shortened(line, LONGEST_LINE) for line in trace), ""])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "is gone"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _place(error: BaseException) -> str:
    """File and line of the program's own code that is nearest to the error."""
    root = Path(__file__).resolve().parents[2]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root) and "site-packages" not in path.relative_to(root).parts:
            return f"{path.relative_to(root).as_posix()}, line {frame.lineno}"
    return ""


def _written(text: str) -> Path | None:
    """Path of the report: in the working folder, else in the folder for temporary files; None where neither can be
    written to."""
    name = f"lading-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (_folder(), *_temporary()):
        path = Path(folder, name)
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
        except OSError:
            _removed(path)
    return None


def _temporary() -> list[str]:
    try:
        return [tempfile.gettempdir()]
    except OSError:
        return []


def _removed(path: Path) -> None:
    """Leave no half of a report."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


__all__ = ["fault", "report"]
