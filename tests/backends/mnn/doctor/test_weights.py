"""Weight files of other models, numbers that no model has, embedding rows in the wrong place, files never fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from backends.mnn.doctor.examine import examine
from backends.mnn.read.net_file import numbers, read_net
from backends.mnn.target.releases import RELEASES
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import compiled

PORTABLE = tuple(RELEASES.values())

EXPORTS = {
    "4 bits": "exports/llama-int4",
    "8 bits, tied": "exports/gemma-int8",
    "half floats, tied": "exports/qwen2-tied-fp16",
    "4 and 8 bits, tied": "official-unfused-int4",
    "single-precision scales": "official-unfused-int8-fp32scales",
}


def faults(folder: Path) -> dict[str, str]:
    """Message by code of what breaks a model on the newest release."""
    return {item.code: item.message for item in examine(folder, PORTABLE).problems("3.6.1")}


def copied(name: str, folder: Path) -> Path:
    return shutil.copytree(DATA / name, folder)


def fitted(data: bytes, size: int) -> bytes:
    """The bytes again and again, up to a size."""
    return (data * (size // len(data) + 1))[:size]


@pytest.fixture(scope="module", params=["int8", "fp16", "fp32", "int4{symmetric}", "int4{block=0}"])
def own(request, tmp_path_factory):
    """A compiled model of each storage, without its contract."""
    source = make_checkpoint(tmp_path_factory.mktemp("source") / "model", "qwen2", tie_word_embeddings=True)
    folder = compiled(source, tmp_path_factory.mktemp("own") / "out", request.param)
    (folder / "contract.json").unlink()
    return folder


# ---- another export's weights ----


@pytest.mark.parametrize("other", EXPORTS)
@pytest.mark.parametrize("name", EXPORTS)
def test_the_weights_of_another_export_of_equal_length(name, other, tmp_path):
    folder = copied(EXPORTS[name], tmp_path / "model")
    path = folder / "llm.mnn.weight"
    assert faults(folder) == {}
    if other != name:
        path.write_bytes(fitted((DATA / EXPORTS[other] / path.name).read_bytes(), path.stat().st_size))
        assert faults(folder).keys() & {"B781", "B782"}, faults(folder)


def test_the_weights_of_an_export_in_another_storage(own, tmp_path):
    folder = shutil.copytree(own, tmp_path / "model")
    assert faults(folder) == {}
    path = folder / "llm.mnn.weight"
    path.write_bytes(fitted((DATA / "exports" / "phi-int4" / path.name).read_bytes(), path.stat().st_size))
    assert faults(folder).keys() & {"B781", "B782"}
    path.write_bytes(bytes(path.stat().st_size))
    assert faults(folder).keys() & {"B781", "B782"}


def test_the_message_names_both_shapes(tmp_path):
    folder = copied("official-unfused-int4", tmp_path / "model")
    path = folder / "llm.mnn.weight"
    data = bytearray(path.read_bytes())
    offset = _matrix(folder)["external"][0]
    data[offset + 1 : offset + 5] = np.array([7, 9], "<u2").tobytes()
    path.write_bytes(data)
    assert "1 of 15 matrices begin with another header" in faults(folder)["B781"]
    assert "7 x 9 in place of 128 x 128" in faults(folder)["B781"]


# ---- numbers that no model has ----


def _matrix(folder: Path) -> dict:
    """The first matrix of a model."""
    main = next(op["main"] for op in read_net(folder / "llm.mnn")["oplists"] if op.get("type") == "Convolution")
    return {**main, "external": numbers(main["external"])}


def _norm(folder: Path) -> list[int]:
    main = next(op["main"] for op in read_net(folder / "llm.mnn")["oplists"] if op.get("type") == "LayerNorm")
    return numbers(main["external"])


def overwrite(folder: Path, offset: int, data: bytes) -> None:
    with (folder / "llm.mnn.weight").open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "hold NaN or infinity"), (np.inf, "hold NaN or infinity"), (0.0, "are zero in 128 of 128 rows")],
)
@pytest.mark.parametrize("name", ["official-unfused-int4", "official-unfused-int8-fp32scales", "exports/gemma-int4"])
def test_scales_that_no_model_has(name, value, words, tmp_path):
    folder = copied(name, tmp_path / "model")
    main = _matrix(folder)
    offset, header, alpha = main["external"][:3]
    dtype = "<f2" if main["quanParameter"].get("scaleStorage") == "FP16" else "<f4"
    count = alpha // np.dtype(dtype).itemsize if value == 0.0 else 1
    overwrite(folder, offset + header, np.full(count, value, dtype).tobytes())
    wanted = words if name != "exports/gemma-int4" else words.replace("128 of 128", "96 of 96")
    assert wanted in faults(folder)["B782"] and "scales of a matrix" in faults(folder)["B782"]


@pytest.mark.parametrize("part", ["scales", "codes"])
def test_a_download_that_stopped_in_a_matrix(part, tmp_path):
    folder = copied("official-unfused-int8-fp32scales", tmp_path / "model")
    offset, header, alpha = _matrix(folder)["external"][:3]
    table = 1 + 4 + 1 + 256
    if part == "scales":
        overwrite(folder, offset + header + alpha // 2, bytes(alpha - alpha // 2))
        assert "are zero in 64 of 128 rows, whose codes are not" in faults(folder)["B782"]
    else:
        overwrite(folder, offset + table, bytes(header - table))
        assert "have values where the codes are all zero" in faults(folder)["B782"]


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e20])
def test_gains_that_no_model_has(value, tmp_path):
    folder = copied("official-unfused-int4", tmp_path / "model")
    offset, nbytes = _norm(folder)[:2]
    overwrite(folder, offset, np.full(nbytes // 4, value, "<f4").tobytes())
    assert "the gain of a norm" in faults(folder)["B782"]


def test_a_matrix_of_zeros_is_a_matrix(tmp_path):
    """Codes are all the same where a weight was zero before it was quantized."""
    folder = copied("official-unfused-int8-fp32scales", tmp_path / "model")
    offset, header, alpha = _matrix(folder)["external"][:3]
    table = 1 + 4 + 1 + 256
    overwrite(folder, offset + table, b"\x80" * (header - table) + bytes(alpha))
    assert faults(folder) == {}


# ---- embedding rows ----


def moved(folder: Path, change) -> dict[str, str]:
    """Faults after a change of ``tie_embeddings`` as five numbers."""
    path = folder / "llm_config.json"
    config = json.loads(path.read_text())
    tie = config["tie_embeddings"]
    keys = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")
    config["tie_embeddings"] = [*change([tie[key] for key in keys]), int(tie.get("alpha_dtype") == "fp16")]
    path.write_text(json.dumps(config))
    return faults(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tie: tie, ""),
        (lambda tie: [10**12, *tie[1:]], "behind the end"),
        (lambda tie: [tie[0], 10**12, *tie[2:]], "behind the end"),
        (lambda tie: [tie[0] - 1, tie[1] - 1, *tie[2:]], "middle of"),
        (lambda tie: [tie[0], tie[1] - 1, *tie[2:]], "bytes behind the first code"),
        (lambda tie: [*tie[:2], tie[2] // 2 - 4, *tie[3:]], "bytes of scales"),
        (lambda tie: [*tie[:3], 5, tie[4]], "codes of 5 bits"),
    ],
)
def test_where_tied_rows_are_said_to_be(change, words, tmp_path):
    found = moved(copied("official-unfused-int4", tmp_path / "model"), change)
    assert words in found.get("B728", "") and bool(words) is ("B728" in found)


@pytest.fixture
def untied(tmp_path):
    """A model with rows in a file of their own."""
    folder = compiled(make_checkpoint(tmp_path / "source", "qwen2"), tmp_path / "out", "fp32")
    (folder / "contract.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (lambda whole: whole[:23], "B729"),
        (lambda whole: whole + b"\0\0", "B729"),
        (lambda whole: whole + whole, ""),
        (lambda whole: np.frombuffer(whole, "<u2").byteswap().tobytes(), "B782"),
        (lambda whole: bytes(range(256)) * (len(whole) // 256), "B782"),
    ],
)
def test_embedding_files(data, code, untied):
    path = untied / "embeddings_bf16.bin"
    path.write_bytes(data(path.read_bytes()))
    assert set(faults(untied)) == ({code} if code else set())


def test_quantized_rows_in_a_file_of_their_own(untied):
    llm = untied / "llm_config.json"
    config = json.loads(llm.read_text())
    rows = (untied / "embeddings_bf16.bin").stat().st_size // (2 * config["hidden_size"])
    codes, alpha = rows * config["hidden_size"], rows * 8
    llm.write_text(json.dumps({**config, "tie_embeddings": [0, codes, alpha, 8, 0]}))
    path = untied / "embeddings_bf16.bin"
    path.write_bytes(bytes(codes + alpha))
    assert faults(untied) == {}
    path.write_bytes(bytes(codes + alpha - 1))
    assert "B729" in faults(untied)
    path.unlink()
    assert "is missing" in faults(untied)["B729"]
    path.write_bytes(bytes(codes + alpha))
    llm.write_text(json.dumps({**config, "tie_embeddings": [0, codes, alpha + 4, 8, 0]}))
    path.write_bytes(bytes(codes + alpha + 4))
    assert "bytes of scales" in faults(untied)["B728"]


# ---- files that were never fetched ----

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


@pytest.mark.parametrize("name", ["llm.mnn", "llm.mnn.weight", "tokenizer.mtok"])
def test_pointers_of_git_lfs(name, tmp_path):
    folder = copied("official-unfused-int4", tmp_path / "model")
    (folder / name).write_text(POINTER)
    found = faults(folder)
    assert "was never fetched" in found["B783"] and not found.keys() & {"B710", "B730"}


def test_a_tokenizer_that_lacks_the_end_of_answers(tmp_path):
    folder = copied("official-unfused-int4", tmp_path / "model")
    path = folder / "llm_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "jinja": {**config["jinja"], "eos": "<|eot_id|>"}}))
    found = [item for item in examine(folder, PORTABLE).findings if item.code == "B738"]
    assert [item.severity for item in found] == ["warning"] and "'<|eot_id|>', which is no token" in found[0].message
