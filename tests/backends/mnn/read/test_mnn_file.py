"""The reader of ``.mnn`` files: the same as MNN's own JSON, and safe on files that lie."""

from __future__ import annotations

import json
import random
import struct
import time

import numpy as np
import pytest

from backends.mnn.read.flatbuffer import MAX_DEPTH, Buffer, Table
from backends.mnn.read.net_file import OPS, PARAMETERS, parse_net, read_net
from backends.mnn.run.native import json_to_mnn, mnn_to_json
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA
from tests.support.runs import compiled

FOLDERS = sorted(str(path.relative_to(DATA)) for kind in ("official-*", "exports/*") for path in DATA.glob(kind))


def close(left, right) -> bool:
    """Equal but for the last of the six decimals."""
    if isinstance(right, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in right)
    if isinstance(right, list):
        return len(left) == len(right) and all(map(close, left, right))
    return abs(left - right) <= 1e-6 if isinstance(right, float) else left == right


@pytest.mark.parametrize("name", FOLDERS)
def test_official_files_read_like_the_converter_spells_them(name):
    path = DATA / name / "llm.mnn"
    assert close(read_net(path), json.loads(mnn_to_json(path)))


@pytest.mark.parametrize(("family", "options"), [("qwen2", {}), ("mistral", {"sliding_window": 11}), ("qwen3", {})])
def test_own_files_read_like_the_converter_spells_them(family, options, tmp_path):
    folder = compiled(make_checkpoint(tmp_path / "model", family, **options), tmp_path / "out", "int4")
    assert close(read_net(folder / "llm.mnn"), json.loads(mnn_to_json(folder / "llm.mnn")))


def test_floats_have_all_their_digits(tmp_path):
    main = {"axis": [-1], "epsilon": 2.37e-06, "gamma": [1.5], "beta": [0.1], "useRMSNorm": True}
    op = {
        "type": "LayerNorm",
        "name": "n",
        "main_type": "LayerNorm",
        "main": main,
        "inputIndexes": [0],
        "outputIndexes": [1],
    }
    json_to_mnn({"oplists": [op], "tensorName": ["x", "y"]}, tmp_path / "a.mnn")
    found = read_net(tmp_path / "a.mnn")["oplists"][0]["main"]
    assert found["epsilon"] == float(np.float32(2.37e-06)) and found["beta"][0] == np.float32(0.1)


def test_numbers_that_have_no_name_stay_numbers():
    assert OPS[306] == "RoPE" and PARAMETERS.index("RoPEParam") == 102
    data = bytearray((DATA / "official-default-int8" / "llm.mnn").read_bytes())
    rope = struct.pack("<i", 306)
    at = data.index(rope)
    while data.count(rope, at + 1):
        at = data.index(rope, at + 1)
    data[at : at + 4] = struct.pack("<i", 999)
    kinds = [op.get("type") for op in parse_net(bytes(data))["oplists"]]
    assert 999 in kinds


def test_what_is_no_model_is_refused(tmp_path):
    for data in (b"", b"abc", b"\0" * 64, b"\xff" * 64, bytes(range(64)), json.dumps({"a": 1}).encode() * 9):
        with pytest.raises(LadingError) as caught:
            parse_net(data)
        assert caught.value.code == "B710"
    with pytest.raises(LadingError) as caught:
        read_net(tmp_path / "absent.mnn")
    assert caught.value.code == "B711"
    (tmp_path / "empty.mnn").write_bytes(b"")
    with pytest.raises(LadingError) as caught:
        read_net(tmp_path / "empty.mnn")
    assert caught.value.code == "B711"


def test_damaged_files_raise_coded_errors_only():
    whole = (DATA / "official-default-int8" / "llm.mnn").read_bytes()
    chance = random.Random(7)
    codes = set()
    for _ in range(150):
        data = bytearray(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(chance.choice((len(data), min(4096, len(data)))))
            data[place] = chance.choice((0, 1, 4, 127, 128, 255))
        try:
            parse_net(bytes(data))
        except LadingError as error:
            codes.add(error.code)
    assert codes == {"B710"}


def nested(depth: int) -> bytes:
    """Tables that each hold the next one in slot 0."""
    data = bytearray(struct.pack("<II", 8 + 8, 0) + struct.pack("<HHHH", 6, 8, 4, 0))
    for _ in range(depth):
        here = len(data)
        data += struct.pack("<iI", here - 8, 4)
    data += struct.pack("<iI", len(data) - 8, 0)
    return bytes(data)


def test_deep_nesting_stops():
    table = Buffer(nested(MAX_DEPTH + 10)).root()
    with pytest.raises(LadingError, match="nested deeper"):
        for _ in range(MAX_DEPTH + 5):
            table = table.table(0)


def test_a_vector_that_is_read_again_and_again_stops():
    # one table and a vector of references that all point at the vector itself's owner
    count = 50_000
    head = struct.pack("<IHHH", 12, 6, 8, 4) + b"\0\0"
    body = struct.pack("<iI", 8, 4) + struct.pack("<I", count)
    start = len(head) + len(body)
    references = b"".join(struct.pack("<I", start) for _ in range(count))
    began = time.perf_counter()
    table = Buffer(head + body + references).root()
    assert isinstance(table, Table)
    with pytest.raises(LadingError):
        for item in table.tables(0) or ():
            item.tables(0)
    assert time.perf_counter() - began < 5
