"""Whole checkpoints in each encoding, and the plain checkpoints with the same numbers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import make_checkpoint, write_weights
from tests.support.quantized.encodings import CASES
from tools.matrix.random_checkpoints import BASE, FAMILIES, hot_tensors

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
    sizes = {**SHAPE, **config}
    make_checkpoint(folder, family, dtype="f16", **sizes)
    how = CASES[case]
    plain = {name: tensor for name, tensor in hot_tensors(_full(family, sizes), dtype="f16").items()}
    stored: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    for turn, (name, tensor) in enumerate(list(plain.items())):
        if ".layers." not in name or tensor.ndim != 2:
            stored[name] = tensor
            continue
        encode = how.encode[turn % len(how.encode)]
        made = encode(tensor.astype(np.float32), np.random.default_rng(zlib.crc32(name.encode())))
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{ending}": np.ascontiguousarray(item) for ending, item in made.tensors.items()}
        plain[name] = made.numbers
        if made.codes is not None:
            codes[name] = made.codes
    write_weights(folder, stored)
    if how.config is not None:
        edit_config(folder, quantization_config=how.config)
    return Quantized(folder, plain, codes)


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


def _full(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": family, **BASE, **FAMILIES[family], **config}


__all__ = ["CASES", "SHAPE", "Quantized", "edit_config", "plain_checkpoint", "quantized_checkpoint"]
