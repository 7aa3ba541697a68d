"""Test data as ONNX models are published with: a folder with a tensor in each of ``input_0.pb``, ``input_1.pb`` and so on.

Source: ONNX, docs/OnnxBackendTest.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def number_of(file: Path) -> int:
    """The number of an input's file; -1 where its name has none."""
    number = file.stem.removeprefix("input_")
    return int(number) if number.isdecimal() else -1


def input_of(tensor: str, number: int, names: Sequence[str]) -> str | None:
    """The input that a tensor is for: the one of its own name, else the one of its file's number; None where there is none.

    Args:
        tensor: name of the tensor, which may be empty.
        number: of its file.
        names: of the model's inputs, in order.
    """
    if tensor in names:
        return tensor
    return names[number] if 0 <= number < len(names) else None


__all__ = ["input_of", "number_of"]
