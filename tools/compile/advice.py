"""What to try where a compiled model is not good enough."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ir.base.diag import Diagnostic

if TYPE_CHECKING:
    from tools.compile.job import Request

LOSS = frozenset({"V701", "V711", "V702"})
"""Codes of what more bits help against."""

BETTER = {
    None: "calibrated",
    "default": "calibrated",
    "int4": "default",
    "fast": "default",
    "calibrated": "int8",
    "mixed": "int8",
    "int8": "fp16",
    "onnx-int4": "onnx",
    "onnx": "onnx-fp16",
    "onnx-fp16": "onnx-fp32",
}
"""The named pipeline that loses less than another; beside it any other gives way to `SAFE`."""

SAFE = {None: "int8", "mnn-llm": "int8", "onnx": "onnx-fp16"}
"""The pipeline that loses next to nothing, by backend."""

CALIBRATING = ("calibrated", "mixed")
"""Those of them that read text."""

KEPT = (
    *("to", "target", "device", "text", "revision", "tokenizer"),
    *("memory", "precision", "threads", "mmap", "settings", "verify"),
)
"""Options of a request that a further one has too."""


def command_to_try(request: Request, problems: Sequence[Diagnostic]) -> str:
    """The command line of a compilation that loses less; empty where losing less does not help."""
    if not {item.code for item in problems} & LOSS:
        return ""
    pipeline = _better(request)
    if pipeline is None:
        return ""
    words = ["lading", "compile", request.model, "-o", str(request.out), "--passes", pipeline]
    for name in ("calibration", *KEPT) if pipeline in CALIBRATING else KEPT:
        value = getattr(request, name)
        if value is not None and not (name == "verify" and value == "quick"):
            words += [f"--{name.replace('_', '-')}", *(() if value is True else (str(value),))]
    for adapter in request.lora:
        words += ["--lora", adapter]
    return shlex.join(words)


def _better(request: Request) -> str | None:
    from tools.compile.job import LIMITS

    named = request.pipeline
    limited = any(getattr(request, name) is not None for name in LIMITS)
    if not limited and named is None and request.to == "onnx":
        named = "onnx"
    if not limited and named in BETTER and not (BETTER[named] in CALIBRATING and request.tokenizer == "none"):
        return BETTER[named]
    safe = SAFE.get(request.to)
    return safe if named not in (safe, "fp16", "fp32") else None


__all__ = ["command_to_try"]
