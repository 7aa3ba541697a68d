"""Whole checkpoints in each encoding, and the plain checkpoints with the same numbers."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frontends.containers.safetensors import read_file
from tests.support.checkpoints import make_checkpoint, write_weights
from tests.support.quantized.encodings import CASES, Case, mxfp4_stack

LINEAR = re.compile(r"\.layers\..*(?<!\.gate)\.weight$")
"""Matrices that are quantized: those of layers, but no router of a mixture."""
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Sizes with ragged blocks of 128 and a matrix that is not square in every role."""


@dataclass(frozen=True)
class Quantized:
    """A checkpoint that was written.

    Attributes:
        folder: where it lies.
        plain: the tensors that it stands for, by the names of the plain checkpoint.
        codes: the codes of matrices that have any.
    """

    folder: Path
    plain: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]


def quantized_checkpoint(folder: Path, case: str, family: str = "llama", **config: Any) -> Quantized:
    """Write a checkpoint whose linear layers are stored as `CASES` says."""
    make_checkpoint(folder, family, dtype="f16", **{**SHAPE, **config})
    return quantize(folder, CASES[case])


def quantize(folder: Path, how: Case) -> Quantized:
    """Store the linear layers of a plain checkpoint in another way, in its own folder.

    Routers stay as they are, and so do matrices whose rows are not made of groups of 32.
    """
    plain = read_tensors(folder)
    stored: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    for turn, (name, tensor) in enumerate(list(plain.items())):
        if not LINEAR.search(name) or tensor.ndim != 2 or tensor.shape[1] % 32:
            stored[name] = tensor
            continue
        encode = how.encode[turn % len(how.encode)]
        made = encode(tensor.astype(np.float32), np.random.default_rng(zlib.crc32(name.encode())))
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{ending}": np.ascontiguousarray(item) for ending, item in made.tensors.items()}
        plain[name] = made.numbers
        if made.codes is not None:
            codes[name] = made.codes
    rewrite(folder, stored)
    if how.config is not None:
        edit_config(folder, quantization_config=how.config)
    return Quantized(folder, plain, codes)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in one file or several, in memory."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: item.load() for file in files for name, item in read_file(file).tensors.items()}


def rewrite(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Put tensors in the place of those of a checkpoint."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()
    write_weights(folder, tensors)


def plain_checkpoint(folder: Path, plain: Mapping[str, np.ndarray], family: str = "llama", **config: Any) -> Path:
    """Write the plain checkpoint of the tensors in single precision."""
    make_checkpoint(folder, family, dtype="f32", **{**SHAPE, **config})
    write_weights(folder, {name: tensor.astype(np.float32) for name, tensor in plain.items()})
    return folder


def edit_config(folder: Path, **entries: Any) -> None:
    """Set keys of ``config.json``; a key set to `...` is removed."""
    path = folder / "config.json"
    record = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}, indent=2))


def mxfp4_experts(folder: Path) -> Quantized:
    """Store the stacks ``[experts, in, out]`` of a plain checkpoint in MXFP4, in its own folder."""
    plain = read_tensors(folder)
    stored: dict[str, np.ndarray] = {}
    for name, tensor in list(plain.items()):
        if ".experts." not in name or tensor.ndim != 3:
            stored[name] = tensor
            continue
        blocks, scales, numbers = mxfp4_stack(np.ascontiguousarray(tensor.astype(np.float32).swapaxes(1, 2)))
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = np.ascontiguousarray(numbers.swapaxes(1, 2))
    rewrite(folder, stored)
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    return Quantized(folder, plain, {})


__all__ = [
    "CASES",
    "SHAPE",
    "Quantized",
    "edit_config",
    "mxfp4_experts",
    "plain_checkpoint",
    "quantize",
    "quantized_checkpoint",
    "read_tensors",
    "rewrite",
]
