"""Files that the owning libraries wrote decode to what those libraries decode them to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frontends.containers.encodings.stored import Declared
from frontends.containers.encodings.table import decode
from frontends.containers.safetensors import read_file
from ir.tensor.base import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "data" / "quantized"
FORMATS = {"older": "gptq", "newer": "gptq_v2"}
"""What a configuration would say of GPTQ's zeros, by the beginning of a matrix's name."""

ROUNDED = {"bytes": 2**-22}
"""Where the library multiplies codes, factors and 1/127 in another order, so that the last bit differs."""


def matrices() -> list[tuple[str, str]]:
    """Each file and the matrices in it."""
    names = {path.stem: read_file(path).tensors for path in sorted(FOLDER.glob("*.safetensors"))}
    return [
        (file, name)
        for file, found in names.items()
        for name in dict.fromkeys(item.partition(".")[0] for item in found)
    ]


def parts_of(file: str, name: str) -> dict[str, Tensor]:
    stored = read_file(FOLDER / f"{file}.safetensors").tensors
    return {key.partition(".")[2]: item for key, item in stored.items() if key.partition(".")[0] == name}


MATRICES = matrices()


def test_every_library_is_there() -> None:
    assert {file for file, _ in MATRICES} == {"awq", "bitsandbytes", "compressed-tensors", "gptq", "transformers"}
    assert len(MATRICES) == 46


@pytest.mark.parametrize(("file", "name"), MATRICES)
def test_decoded_as_the_library_does(file: str, name: str) -> None:
    parts = parts_of(file, name)
    wanted = parts.pop("decoded").load()
    layout = FORMATS.get(name.partition("-")[0])
    declared = Declared({"quant_method": "gptq", "checkpoint_format": layout} if layout else {}, "config.json")
    found = decode({f"x.{ending}": item for ending, item in parts.items()}, declared, "here").tensors
    ((made, tensor),) = found.items()
    assert made in ("x.weight", "x.experts")
    numbers = tensor.load()
    assert numbers.dtype == np.float32 and numbers.shape == wanted.shape
    np.testing.assert_allclose(numbers, wanted, rtol=ROUNDED.get(name, 0), atol=0)
