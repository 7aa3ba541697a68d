"""A quantized checkpoint as a plain one on disk, for programs that read no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from frontends.containers.encodings.table import KEYS, NESTED
from frontends.containers.formats import Weights
from frontends.containers.safetensors import SINGLE, TYPES
from ir.tensor.inline import bytes_of


def write_plain(weights: Weights, source: Path, folder: Path) -> None:
    """Write the decoded weights of a checkpoint, as float32, and its configuration without a word of quantization.

    Tensors are written in row ranges, so that none is in memory as a whole.
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    header, offset = {}, 0
    for name, tensor in weights.tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.type.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in weights.tensors.values():
            for _, _, rows in tensor.pieces():
                file.write(bytes_of(np.ascontiguousarray(rows), tensor.type.dtype))
            tensor.release()
    record = json.loads((source / "config.json").read_text(encoding="utf-8-sig"))
    for part in (record, *(record.get(name) for name in NESTED)):
        for key in KEYS:
            if isinstance(part, dict):
                part.pop(key, None)
    (folder / "config.json").write_text(json.dumps(record), encoding="utf-8")
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", folder)


__all__ = ["write_plain"]
