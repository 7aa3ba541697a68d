"""What compiled ONNX models run on: the onnxruntime that is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from ir.base.diag import LadingError
from ir.target.target import Target


@dataclass(frozen=True)
class OnnxTarget(Target):
    """One release of onnxruntime, which computes every storage that the IR has."""

    name: str = "onnxruntime"
    release: str = ""


def target(text: str | None = None) -> OnnxTarget:
    """The installed release, which may also be named.

    Raises:
        LadingError: B750 another one is named.
    """
    here = version("onnxruntime")
    if text is not None and text != here:
        message = f"the installed onnxruntime is {here}, and other releases cannot be promised"
        raise LadingError("B750", message, where=text, hint="leave --target out")
    return OnnxTarget(release=here)
