"""The reader of GGUF files: right numbers and metadata of good files, one coded error for every bad one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.containers.gguf import BLOCKS, FLOATS, OTHERS, open_gguf
from ir.base.diag import LadingError, known_codes
from ir.tensor.files import FILES
from tests.support.gguf_files import LARGE, SIMPLE, finish, stored, write_gguf

METADATA: dict[str, Any] = {
    "test.flag": True,
    "test.count": 7,
    "test.number": 0.5,
    "test.text": "grüße",
    "test.numbers": [1, -2, 3],
    "test.texts": ["", "a b", "漢字"],
}


def write(path: Path, **tensors: np.ndarray) -> bytes:
    arrays = tensors or {"a.weight": np.arange(64, dtype=np.float32).reshape(2, 32), "b": np.ones(3, np.float32)}
    write_gguf(path, "test", METADATA, arrays)
    return path.read_bytes()


def error_of(path: Path) -> LadingError:
    with pytest.raises(LadingError) as caught:
        open_gguf(path)
    return caught.value


# ---- good files ----


def test_metadata_of_every_type(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "test")
    numbers = {"uint8": 200, "int8": -5, "uint16": 60000, "int16": -300, "uint32": 1 << 31, "int32": -70000,
               "uint64": 1 << 63, "int64": -(1 << 40), "float32": 0.5, "float64": 0.1, "bool": False}  # fmt: skip
    for name, number in numbers.items():
        getattr(writer, f"add_{name}")(f"test.{name}", number)
    writer.add_array("test.nested", [[1, 2], [3]])
    for key, value in METADATA.items():
        if isinstance(value, list):
            writer.add_array(key, value)
    finish(writer)
    found = open_gguf(tmp_path / "x.gguf").metadata
    assert {name: found[f"test.{name}"] for name in numbers} == numbers
    assert found["test.texts"] == METADATA["test.texts"] and found["test.numbers"].tolist() == [1, -2, 3]
    assert [part.tolist() for part in found["test.nested"]] == [[1, 2], [3]]
    assert found["general.architecture"] == "test"


@pytest.mark.parametrize("kind", [*SIMPLE, *LARGE])
def test_tensors_of_every_type(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((3, 4, 256)).astype(np.float32)
    wanted = write_gguf(tmp_path / "x.gguf", "test", {}, {"w": array, "v": array[0, 0]}, kind)
    model = open_gguf(tmp_path / "x.gguf")
    assert model.kinds == {"w": kind.lower(), "v": "f32"}
    for name, numbers in wanted.items():
        found = model.tensors[name]
        assert found.shape == numbers.shape and np.array_equal(found.load().astype(np.float32), numbers)
        assert np.array_equal(found.rows(1, 3).astype(np.float32), numbers[1:3])


def test_double_precision(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "test")
    writer.add_tensor("w", np.array([[0.1, 1e300]]))
    finish(writer)
    assert open_gguf(tmp_path / "x.gguf").tensors["w"].load().tolist() == [[0.1, 1e300]]


def test_types_are_those_of_the_package() -> None:
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    ours = {code: name.upper() for code, name in {**FLOATS, **BLOCKS, **OTHERS}.items()}
    assert ours == {code: known[code] for code in ours}


def test_only_the_header_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    tensor = open_gguf(tmp_path / "x.gguf").tensors["a.weight"]
    assert str(tmp_path / "x.gguf") not in FILES.paths() and tensor.loc == "x.gguf:a.weight"
    tensor.rows(0, 1)
    assert str(tmp_path / "x.gguf") in FILES.paths()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "test")
    writer.add_custom_alignment(alignment)
    for name in ("a", "b"):
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    finish(writer)
    found = open_gguf(tmp_path / "x.gguf").tensors
    assert {name: tensor.load().tolist() for name, tensor in found.items()} == {"a": [97.0] * 3, "b": [98.0] * 3}


def split(folder: Path, count: int = 3) -> list[Path]:
    """A model in parts, as the package writes it."""
    writer = gguf.GGUFWriter(str(folder / "m.gguf"), "test", split_max_tensors=1)
    writer.add_uint32("test.count", 7)
    for number in range(count):
        writer.add_tensor(f"t{number}", np.full((2, 32), number, np.float32))
    finish(writer)
    return sorted(folder.glob("m-*.gguf"))


def test_a_model_in_parts_is_opened_by_any_of_them(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert len(parts) == 3
    for part in parts:
        model = open_gguf(part)
        assert model.metadata["test.count"] == 7 and list(model.tensors) == ["t0", "t1", "t2"]
        assert [tensor.load()[0, 0] for tensor in model.tensors.values()] == [0, 1, 2]


def test_parts_that_are_missing_or_mixed_up(tmp_path: Path) -> None:
    parts = split(tmp_path)
    third = parts[2].read_bytes()
    parts[2].unlink()
    assert error_of(parts[0]).code == "F524"
    parts[2].write_bytes(parts[1].read_bytes())
    assert error_of(parts[0]).code == "F583"
    parts[2].write_bytes(third.replace(b"t2", b"t1"))
    assert error_of(parts[0]).code == "F525"
    parts[2].write_bytes(third)
    alone = parts[0].rename(tmp_path / "renamed.gguf")
    assert "its name does not say which" in str(error_of(alone))


# ---- bad files ----


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    assert error_of(tmp_path / "absent.gguf").code == "F510"
    assert error_of(tmp_path).code == "F511"
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert error_of(tmp_path / "pointer.gguf").code == "F563"


@pytest.mark.parametrize(("code", "name"), [(20, "IQ4_NL"), (16, "IQ2_XXS"), (34, "TQ1_0"), (26, "I32")])
def test_types_that_are_not_read_are_named(tmp_path: Path, code: int, name: str) -> None:
    raw = write(tmp_path / "x.gguf")
    at = raw.index(b"a.weight") + 8 + 4 + 16
    assert raw[at : at + 4] == struct.pack("<I", 0)
    (tmp_path / "x.gguf").write_bytes(raw[:at] + struct.pack("<I", code) + raw[at + 4 :])
    error = error_of(tmp_path / "x.gguf")
    assert error.code == "F584" and f"1 of 2 tensors is stored as {name}" in str(error)
    assert "Q4_K" in error.diagnostics[0].hint


def altered(raw: bytes, after: bytes, skip: int, form: str, value: int) -> bytes:
    """A file with a number changed that stands so many bytes behind a text."""
    at = raw.index(after) + len(after) + skip
    return raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form) :]


CASES: dict[str, tuple[Any, str]] = {
    "magic": (lambda raw: b"GGML" + raw[4:], "does not begin as GGUF files do"),
    "version 1": (lambda raw: altered(raw, b"GGUF", 0, "<I", 1), "version 1"),
    "version 9": (lambda raw: altered(raw, b"GGUF", 0, "<I", 9), "version 9"),
    "big-endian": (lambda raw: altered(raw, b"GGUF", 0, ">I", 3), "big-endian"),
    "too many tensors": (lambda raw: altered(raw, b"GGUF", 4, "<Q", 1 << 60), "tensors, more than"),
    "too many keys": (lambda raw: altered(raw, b"GGUF", 12, "<Q", 1 << 40), "keys, more than"),
    "long text": (lambda raw: altered(raw, b"test.text", 4, "<Q", 1 << 50), "is said to have"),
    "text beyond the end": (lambda raw: altered(raw, b"test.text", 4, "<Q", 1 << 20), "the file ends at"),
    "no text": (lambda raw: raw.replace("grüße".encode(), b"gr\xff\xff\xff\xffe"), "is not UTF-8"),
    "long list": (lambda raw: altered(raw, b"test.numbers", 8, "<Q", 1 << 24), "elements of test.numbers"),
    "list of no type": (lambda raw: altered(raw, b"test.numbers", 4, "<I", 99), "is of type 99"),
    "value of no type": (lambda raw: altered(raw, b"test.count", 0, "<I", 77), "is of type 77"),
    "neither true nor false": (lambda raw: altered(raw, b"test.flag", 4, "<B", 3), "neither true nor false"),
    "many axes": (lambda raw: altered(raw, b"a.weight", 0, "<I", 9), "9 axes"),
    "no elements": (lambda raw: altered(raw, b"a.weight", 4, "<Q", 0), "has the shape [2, 0]"),
    "huge": (lambda raw: altered(raw, b"a.weight", 4, "<Q", 1 << 62), "has the shape"),
    "beyond the end": (lambda raw: altered(raw, b"a.weight", 12, "<Q", 1 << 20), "and the file at"),
    "no known type": (lambda raw: altered(raw, b"a.weight", 20, "<I", 99), "is of type 99"),
    "no whole blocks": (lambda raw: altered(raw, b"a.weight", 20, "<I", 12), "no blocks of 256"),
    "misplaced": (lambda raw: altered(raw, b"a.weight", 24, "<Q", 4), "no multiple of 32"),
    "overlap": (lambda raw: altered(raw, b"\x00b", 16, "<Q", 0), "overlaps"),
    "hole": (lambda raw: altered(raw, b"\x00b", 16, "<Q", 512) + bytes(512), "leaves 256 bytes after a.weight"),
    "rest": (lambda raw: raw + bytes(99), "belong to none"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_damaged_files(tmp_path: Path, case: str) -> None:
    change, says = CASES[case]
    raw = write(tmp_path / "x.gguf")
    damaged = change(raw)
    assert damaged != raw
    (tmp_path / "x.gguf").write_bytes(damaged)
    error = error_of(tmp_path / "x.gguf")
    assert error.code == "F583" and says in str(error)


def test_the_same_key_or_tensor_twice(tmp_path: Path) -> None:
    raw = write(tmp_path / "x.gguf", aa=np.ones(8, np.float32), bb=np.ones(8, np.float32))
    (tmp_path / "x.gguf").write_bytes(raw.replace(b"bb", b"aa"))
    assert "tensor aa is there twice" in str(error_of(tmp_path / "x.gguf"))
    (tmp_path / "x.gguf").write_bytes(raw.replace(b"test.count", b"test.texts"))
    assert "'test.texts' is there twice" in str(error_of(tmp_path / "x.gguf"))


@pytest.mark.parametrize("alignment", [0, 4, 24, 1 << 30])
def test_alignments_that_make_no_sense(tmp_path: Path, alignment: int) -> None:
    write_gguf(tmp_path / "x.gguf", "test", {"general.alignment": 32}, {"a": np.ones(8, np.float32)})
    raw = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(altered(raw, b"general.alignment", 4, "<I", alignment))
    assert f"general.alignment is {alignment}" in str(error_of(tmp_path / "x.gguf"))


def test_nested_lists_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    deep = struct.pack("<IQ", 9, 1) * 50 + struct.pack("<IQB", 0, 1, 5)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + deep)
    assert "levels deep" in str(error_of(path))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    array = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    write_gguf(path, "test", METADATA, {"q": array, "v": array[0]}, "Q4_0")
    return path, path.read_bytes()


def read_all(path: Path) -> None:
    for tensor in open_gguf(path).tensors.values():
        assert tensor.load().shape == tensor.shape
    FILES.clear()


def test_every_truncation_is_an_error(sample: tuple[Path, bytes], tmp_path: Path) -> None:
    _, raw = sample
    path = tmp_path / "x.gguf"
    for size in range(0, len(raw) - 31, 7):
        path.write_bytes(raw[:size])
        assert error_of(path).code == "F583"


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300)
def test_changed_bytes_are_read_or_refused_by_code(sample: tuple[Path, bytes], changes: list[tuple[int, int]]) -> None:
    path, raw = sample
    damaged = bytearray(raw)
    for at, value in changes:
        damaged[at % len(raw)] = value
    path.write_bytes(bytes(damaged))
    try:
        with np.errstate(all="ignore"):
            read_all(path)
    except LadingError as error:
        assert error.code in known_codes()


def test_quantized_rows_must_be_whole_blocks(tmp_path: Path) -> None:
    raw, _ = stored(np.ones((2, 32), np.float32), "Q8_0")
    assert raw.shape == (2, 34)
    write_gguf(tmp_path / "x.gguf", "test", {}, {"w": np.ones((2, 64), np.float32)}, "Q8_0")
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(altered(altered(data, b"w", 4, "<Q", 32), b"w", 12, "<Q", 4))
    assert open_gguf(tmp_path / "x.gguf").tensors["w"].shape == (4, 32)
    (tmp_path / "x.gguf").write_bytes(altered(altered(data, b"w", 4, "<Q", 16), b"w", 12, "<Q", 8))
    assert error_of(tmp_path / "x.gguf").code == "F583"
