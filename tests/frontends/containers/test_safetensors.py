"""The checkpoint reader: right numbers for good files, one coded error for every bad one."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.containers import safetensors as module
from frontends.containers.safetensors import open_checkpoint, read_file
from ir.base.diag import LadingError, known_codes
from ir.base.types import DTYPES
from ir.tensor.files import FILES
from ir.tensor.inline import bytes_of

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.arange(4).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 7), np.float16),
    "scalar": np.array(3, np.int64),
}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}


def header_of(arrays: dict[str, np.ndarray]) -> dict:
    header, at = {}, 0
    for name, array in arrays.items():
        end = at + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    return header


def data_of(arrays: dict[str, np.ndarray]) -> bytes:
    return b"".join(array.tobytes() for array in arrays.values())


def file_bytes(header: dict | bytes, data: bytes, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def save(path, arrays: dict[str, np.ndarray], **extra) -> None:
    path.write_bytes(file_bytes({**extra, **header_of(arrays)}, data_of(arrays)))


def sharded(folder, shards: dict[str, dict[str, np.ndarray]], weight_map: dict | None = None) -> None:
    for name, arrays in shards.items():
        save(folder / name, arrays)
    found = {tensor: name for name, arrays in shards.items() for tensor in arrays}
    index = {"metadata": {"total_size": 1}, "weight_map": found if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def error_of(call) -> LadingError:
    with pytest.raises(LadingError) as caught:
        call()
    return caught.value


def assert_holds(checkpoint, arrays: dict[str, np.ndarray]) -> None:
    assert set(checkpoint.tensors) == set(arrays)
    for name, array in arrays.items():
        found = checkpoint.tensors[name].load()
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


# --- good checkpoints -------------------------------------------------------------------------------------------------


def test_a_single_file_is_read_lazily(tmp_path):
    save(tmp_path / "model.safetensors", ARRAYS, __metadata__={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["a.weight"].loc == "model.safetensors:a.weight"
    assert checkpoint.files[0].metadata == {"format": "pt"}
    assert checkpoint.files[0].path not in FILES.paths()
    assert_holds(checkpoint, ARRAYS)
    assert checkpoint.files[0].path in FILES.paths()
    checkpoint.release()
    assert checkpoint.files[0].path not in FILES.paths()
    assert_holds(open_checkpoint(tmp_path / "model.safetensors"), ARRAYS)


@pytest.mark.parametrize("name", sorted(module.TYPES))
def test_every_element_type(tmp_path, name):
    dtype = DTYPES[module.TYPES[name]]
    codes = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 256, dtype.nbytes(8)).astype(np.uint8)
    entry = {"dtype": name, "shape": [2, 4], "data_offsets": [0, codes.size]}
    (tmp_path / "model.safetensors").write_bytes(file_bytes({"x": entry}, codes.tobytes()))
    found = open_checkpoint(tmp_path).tensors["x"]
    assert found.type.dtype == dtype
    assert bytes_of(found.load(), dtype) == codes.tobytes()


def test_files_of_the_reference_library_are_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: array for name, array in ARRAYS.items() if array.dtype != ml_dtypes.bfloat16}
    library.save_file(arrays, tmp_path / "model.safetensors", metadata={"k": "v"})
    assert_holds(open_checkpoint(tmp_path), arrays)


def test_files_of_torch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    values = torch.linspace(-4, 4, 64).reshape(8, 8)
    kinds = {"bf16": torch.bfloat16, "f8e4m3fn": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2, "f64": torch.float64}
    library.save_file({name: values.to(kind) for name, kind in kinds.items()}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).tensors
    for name, kind in kinds.items():
        assert found[name].type.dtype.name == name
        assert np.array_equal(found[name].load().astype(np.float32), values.to(kind).float().numpy())


def test_shards_follow_the_index(tmp_path):
    first, second = {"a.weight": ARRAYS["a.weight"]}, {"b.weight": ARRAYS["b.weight"], "scalar": ARRAYS["scalar"]}
    sharded(tmp_path, {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second})
    save(tmp_path / "consolidated.safetensors", ARRAYS)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, first | second)
    assert [os.path.basename(file.path) for file in checkpoint.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_which_files_count(tmp_path):
    first, second = {"a": ARRAYS["a.weight"]}, {"b": ARRAYS["b.weight"]}
    save(tmp_path / "consolidated.00.safetensors", {"c": ARRAYS["scalar"]})
    assert_holds(open_checkpoint(tmp_path), {"c": ARRAYS["scalar"]})
    save(tmp_path / "one.safetensors", first)
    save(tmp_path / "two.safetensors", second)
    assert_holds(open_checkpoint(tmp_path), first | second)
    index = tmp_path / "one.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert_holds(open_checkpoint(tmp_path), first)
    index.unlink()
    save(tmp_path / "model.safetensors", ARRAYS)
    assert_holds(open_checkpoint(tmp_path), ARRAYS)
    sharded(tmp_path, {"one.safetensors": first, "two.safetensors": second})
    assert_holds(open_checkpoint(tmp_path), ARRAYS)
    sharded(tmp_path, {"model.safetensors": first, "two.safetensors": second})
    assert_holds(open_checkpoint(tmp_path), first | second)


def test_a_cache_of_links_to_blobs_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "blobs" / "0f3a", ARRAYS)
    os.symlink("../blobs/0f3a", tmp_path / "snapshot" / "model.safetensors")
    assert_holds(open_checkpoint(tmp_path / "snapshot"), ARRAYS)


def test_sources_name_size_and_digests(tmp_path):
    save(tmp_path / "model.safetensors", ARRAYS)
    raw = (tmp_path / "model.safetensors").read_bytes()
    checkpoint = open_checkpoint(tmp_path)
    header = raw[: len(raw) - len(data_of(ARRAYS))]
    plain, full = checkpoint.sources()[0], checkpoint.sources(full=True)[0]
    assert (plain.name, plain.nbytes, plain.digest) == ("model.safetensors", len(raw), None)
    assert plain.header_digest == hashlib.sha256(header).hexdigest()
    assert full.digest == hashlib.sha256(raw).hexdigest()
    assert checkpoint.nbytes == len(raw)


def test_entries_may_come_in_any_order_and_zero_size_anywhere(tmp_path):
    header = header_of(ARRAYS)
    turned = {name: header[name] for name in reversed(header)} | {
        "nothing": {"dtype": "F32", "shape": [0], "data_offsets": [24, 24]}
    }
    (tmp_path / "model.safetensors").write_bytes(file_bytes(turned, data_of(ARRAYS)))
    assert_holds(open_checkpoint(tmp_path), ARRAYS | {"nothing": np.zeros(0, np.float32)})


def test_a_file_without_tensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_bytes(b"{}   ", b""))
    assert open_checkpoint(tmp_path).tensors == {}


# --- bad files --------------------------------------------------------------------------------------------------------


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD_FILES = {
    "no bytes": (b"", "F516"),
    "seven bytes": (b"\0" * 7, "F516"),
    "header longer than file": (file_bytes({}, b"", 1000), "F517"),
    "header length all ones": (file_bytes({}, b"", 2**64 - 1), "F517"),
    "header length of a negative number": (file_bytes({}, b"", 2**63), "F517"),
    "empty header": (file_bytes(b"", b""), "F518"),
    "header not JSON": (file_bytes(b"{nonsense", b""), "F518"),
    "header not UTF-8": (file_bytes(b'{"\xff\xfe": 1}', b""), "F518"),
    "header is a list": (file_bytes(b"[]", b""), "F518"),
    "header is a string": (file_bytes(b'"x"', b""), "F518"),
    "text after the header object": (file_bytes(b"{} {}", b""), "F518"),
    "key twice": (file_bytes(b'{"a": {}, "a": {}}', b""), "F518"),
    "field twice": (file_bytes(b'{"a": {"dtype": "F32", "dtype": "F16"}}', b""), "F518"),
    "not a number": (file_bytes(b'{"a": {"shape": [NaN]}}', b""), "F518"),
    "number of many digits": (file_bytes(b'{"a": ' + b"9" * 100_000 + b"}", b""), "F518"),
    "deep nesting": (file_bytes(DEEP, b""), "F518"),
    "metadata a list": (file_bytes({"__metadata__": []}, b""), "F518"),
    "metadata of numbers": (file_bytes({"__metadata__": {"a": 1}}, b""), "F518"),
    "entry a number": (file_bytes({"a": 1}, b""), "F519"),
    "entry empty": (file_bytes({"a": {}}, b""), "F519"),
    "no shape": (file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8), "F519"),
    "shape a number": (file_bytes({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, b"\0" * 8), "F519"),
    "dtype a number": (file_bytes({"a": entry(dtype=1)}, b"\0" * 8), "F519"),
    "negative dimension": (file_bytes({"a": entry(shape=(-2,))}, b"\0" * 8), "F519"),
    "two negative dimensions": (file_bytes({"a": entry(shape=(-1, -2))}, b"\0" * 8), "F519"),
    "fractional dimension": (file_bytes({"a": entry(shape=(2.0,))}, b"\0" * 8), "F519"),
    "true as dimension": (file_bytes({"a": entry(shape=(2, True))}, b"\0" * 8), "F519"),
    "huge dimension": (file_bytes({"a": entry(shape=(2**63,))}, b"\0" * 8), "F519"),
    "product overflows to the right size": (file_bytes({"a": entry(shape=(2**32, 2**32 + 2))}, b"\0" * 8), "F519"),
    "huge dimensions around a zero": (file_bytes({"a": entry(shape=(2**40, 0, 2**40), offsets=(0, 0))}, b""), "F519"),
    "too many dimensions": (file_bytes({"a": entry(shape=[1] * 65, offsets=(0, 4))}, b"\0" * 4), "F519"),
    "three offsets": (file_bytes({"a": entry(offsets=(0, 4, 8))}, b"\0" * 8), "F519"),
    "negative offset": (file_bytes({"a": entry(offsets=(-8, 0))}, b"\0" * 8), "F519"),
    "name with a line break": (file_bytes({"a\nb": entry()}, b"\0" * 8), "F519"),
    "name with half a character": (file_bytes(b'{"\\ud800": 1}', b""), "F519"),
    "unknown dtype": (file_bytes({"a": entry(dtype="F31")}, b"\0" * 8), "F520"),
    "six-bit floats": (file_bytes({"a": entry(dtype="F6_E2M3")}, b"\0" * 8), "F520"),
    "beyond the end": (file_bytes({"a": entry(offsets=(8, 16))}, b"\0" * 8), "F521"),
    "truncated": (file_bytes({"a": entry()}, b"\0" * 7), "F521"),
    "offsets backwards": (file_bytes({"a": entry(offsets=(8, 0))}, b"\0" * 8), "F522"),
    "size does not fit": (file_bytes({"a": entry(shape=(3,))}, b"\0" * 8), "F522"),
    "half a byte": (file_bytes({"a": entry(dtype="F4", shape=(3,), offsets=(0, 2))}, b"\0" * 2), "F522"),
    "overlap": (file_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "F523"),
    "same bytes twice": (file_bytes({"a": entry(), "b": entry()}, b"\0" * 8), "F523"),
    "hole at the start": (file_bytes({"a": entry(offsets=(4, 12))}, b"\0" * 12), "F523"),
    "hole": (file_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "F523"),
    "bytes left over": (file_bytes({"a": entry()}, b"\0" * 9), "F523"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    raw, code = BAD_FILES[case]
    (tmp_path / "model.safetensors").write_bytes(raw)
    error = error_of(lambda: open_checkpoint(tmp_path))
    assert error.code == code
    assert len(error.diagnostics) == 1
    assert error.diagnostics[0].where == str(tmp_path / "model.safetensors")
    assert str(error).encode()


def test_a_sparse_file_with_a_huge_header_is_not_read(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F517"


def test_a_tensor_is_named_in_its_error(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_bytes({"layers.3.up": entry(shape=(3,))}, b"\0" * 8))
    assert "layers.3.up" in str(error_of(lambda: open_checkpoint(tmp_path)))


def test_a_misspelt_dtype_is_suggested(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_bytes({"a": entry(dtype="F8_E4M3FN")}, b"\0" * 8))
    assert "did you mean 'F8_E4M3" in str(error_of(lambda: open_checkpoint(tmp_path)))


def test_places_without_a_checkpoint(tmp_path):
    assert error_of(lambda: open_checkpoint(tmp_path / "none")).code == "F510"
    assert error_of(lambda: open_checkpoint("bad\0name")).code == "F510"
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F512"
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        error = error_of(lambda path=path: open_checkpoint(path))
        assert error.code == "F513"
        assert "never opened" in str(error) and "convert" in str(error)


def test_things_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F511"
    os.unlink(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F511"
    os.rmdir(tmp_path / "model.safetensors")
    os.symlink("gone", tmp_path / "model.safetensors")
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F511"
    os.unlink(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").mkdir()
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F514"


# --- bad indexes ------------------------------------------------------------------------------------------------------


BAD_MAPS = ['{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"a": 1, "a": 2}', DEEP, *BAD_MAPS], ids=range(9))
def test_damaged_indexes(tmp_path, text):
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "model.safetensors.index.json").write_bytes(raw)
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F514"


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "model.safetensors/..",
        "..",
        "",
        "a\0.safetensors",
        "config.json",
    ],
)
def test_file_names_that_leave_the_folder(tmp_path, name):
    folder = tmp_path / "inner"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        save(place / "model.safetensors", ARRAYS)
    sharded(folder, {"one.safetensors": ARRAYS}, {"a.weight": name})
    os.unlink(folder / "model.safetensors")
    assert error_of(lambda: open_checkpoint(folder)).code == "F515"


def test_an_index_of_pickled_files(tmp_path):
    sharded(tmp_path, {}, {"a": "pytorch_model-00001-of-00002.bin"})
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F513"


def test_disagreement_between_index_and_shards(tmp_path):
    first, second = {"a": ARRAYS["a.weight"]}, {"b": ARRAYS["b.weight"]}
    whole = {"a": "1.safetensors", "b": "2.safetensors"}
    files = {"1.safetensors": first, "2.safetensors": second}
    cases = {
        "F524": (files, whole | {"c": "3.safetensors"}),
        "F526": (files, whole | {"c": "2.safetensors"}),
        "F527": ({"1.safetensors": first, "2.safetensors": second | {"c": ARRAYS["scalar"]}}, whole),
        "F525": ({"1.safetensors": first, "2.safetensors": second | first}, whole),
    }
    for code, (shards, weight_map) in cases.items():
        sharded(tmp_path, shards, weight_map)
        assert error_of(lambda: open_checkpoint(tmp_path)).code == code
    sharded(tmp_path, files, {"a": "2.safetensors", "b": "1.safetensors"})
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F526"


def test_the_same_tensor_in_files_without_an_index(tmp_path):
    save(tmp_path / "1.safetensors", ARRAYS)
    save(tmp_path / "2.safetensors", ARRAYS)
    assert error_of(lambda: open_checkpoint(tmp_path)).code == "F525"


def test_every_code_has_a_case_here():
    own = {code for code in known_codes() if code.startswith("F5") and 510 <= int(code[1:]) < 530}
    tested = {code for _, code in BAD_FILES.values()}
    tested |= {"F510", "F511", "F512", "F513", "F514", "F515", "F524", "F525", "F526", "F527"}
    assert own == tested


# --- anything at all --------------------------------------------------------------------------------------------------


def check_whatever(path, raw: bytes) -> None:
    """Reading gives a coded error, or tensors that lie inside the file and can be read."""
    path.write_bytes(raw)
    try:
        found = read_file(path)
    except LadingError as error:
        assert error.code in known_codes()
        return
    length = 8 + int.from_bytes(raw[:8], "little")
    covered = 0
    for tensor in found.tensors.values():
        assert length <= tensor.offset and tensor.offset + tensor.nbytes <= len(raw)
        covered += tensor.nbytes
        assert tensor.load().shape == tensor.type.shape
    assert covered == len(raw) - length
    library = pytest.importorskip("safetensors")
    theirs = dict(library.deserialize(raw))
    assert {name: tuple(item["shape"]) for name, item in theirs.items()} == {
        name: tensor.type.shape for name, tensor in found.tensors.items()
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_to_a_file_is_noticed_or_harmless(tmp_path_factory, data):
    raw = bytearray(file_bytes({"__metadata__": {"format": "pt"}, **header_of(ARRAYS)}, data_of(ARRAYS)))
    for _ in range(data.draw(st.integers(1, 3))):
        if not raw:
            break
        place = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["set", "drop", "add", "cut", "digit"]))
        if action == "set":
            raw[place] = data.draw(st.integers(0, 255))
        elif action == "digit":
            raw[place] = data.draw(st.sampled_from(b'0123456789-,:"[]{}'))
        elif action == "drop":
            del raw[place]
        elif action == "add":
            raw.insert(place, data.draw(st.integers(0, 255)))
        else:
            del raw[max(1, place) :]
    check_whatever(tmp_path_factory.getbasetemp() / "damaged.safetensors", bytes(raw))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SMALL = st.integers(-1, 9) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*module.TYPES, "F6_E3M2", "f32"]),
        "shape": st.lists(SMALL, max_size=3),
        "data_offsets": st.lists(SMALL, min_size=2, max_size=2),
    }
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3), st.integers(0, 16), st.integers(-2, 2))
def test_any_header_gives_an_error_or_readable_tensors(tmp_path_factory, header, size, off):
    raw = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "made.safetensors"
    check_whatever(path, file_bytes(raw, b"\1" * size, max(0, len(raw) + off)))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), JSON)
def test_any_index_gives_an_error_or_the_tensors(tmp_path_factory, raw, content):
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    save(folder / "1.safetensors", ARRAYS)
    for text in (raw, json.dumps(content).encode(), json.dumps({"weight_map": content}).encode()):
        (folder / "model.safetensors.index.json").write_bytes(text)
        assert error_of(lambda: open_checkpoint(folder)).code in known_codes()
