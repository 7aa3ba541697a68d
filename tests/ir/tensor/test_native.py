"""Compiled loops give the bytes that numpy gives: they are built here from their source, whether or not they were before."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from backends.mnn.write.packing import pack_codes, packed_bytes
from ir.quant.methods.base import METHODS, Scratch
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage
from ir.tensor import native

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module as its row in pyproject.toml says to build it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    row = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"][0]
    out = tmp_path_factory.mktemp("native") / "_native.abi3.so"
    include = sysconfig.get_path("include")
    sources = [str(ROOT / name) for name in row["sources"]]
    command = [compiler, "-shared", "-fPIC", *row["extra-compile-args"], "-Wall", "-Werror", f"-I{include}", *sources]
    subprocess.run([*command, "-o", str(out)], check=True)
    spec = importlib.util.spec_from_file_location(row["name"], out)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def both_ways(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list]], tuple[list, list]]:
    """Calls something with the compiled loops and without."""

    def run(what: Callable[[], list]) -> tuple[list, list]:
        monkeypatch.setitem(sys.modules, "ir.tensor._native", built)
        native._loaded.cache_clear()
        monkeypatch.delenv(native.VARIABLE, raising=False)
        assert native.native() is built
        compiled = what()
        monkeypatch.setenv(native.VARIABLE, "0")
        assert native.native() is None
        return compiled, what()

    yield run
    native._loaded.cache_clear()


def _bytes(parts: object) -> list[bytes]:
    return [part.tobytes() for part in parts if part is not None]


def _moments(features: int) -> Moments:
    rng = np.random.default_rng(features)
    x = rng.standard_normal((600, features), np.float32) @ rng.standard_normal((features, features), np.float32)
    x *= rng.lognormal(size=features).astype(np.float32)
    mean, low, high = x.mean(axis=0), x.min(axis=0), x.max(axis=0)
    return Moments(f"test {features}", 600, (x.T @ x / 600).astype(np.float32), mean, low, high)


ROWS = {
    "plain": lambda rng: rng.standard_normal((97, 192)) * 0.02,
    "positive": lambda rng: rng.uniform(0.5, 2, (97, 192)),
    "negative": lambda rng: -rng.uniform(0.5, 2, (97, 192)),
    "few values": lambda rng: rng.integers(-1, 2, (97, 192)) * 0.25,
    "zeros": lambda rng: np.where(rng.random((97, 192)) < 0.1, rng.standard_normal((97, 192)), 0.0),
    "subnormal": lambda rng: rng.standard_normal((97, 192)) * 1e-7,
}
STORAGES = [
    {"bits": 4, "block": 64},
    {"bits": 3, "block": 32, "zero": "float"},
    {"bits": 2, "block": 16, "symmetric": True},
    {"bits": 8},
    {"bits": 5, "block": 4},
    {"bits": 6, "block": 64, "scale": "f16"},
]


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def test_rounding_gives_the_same_bytes(kind, both_ways):
    rng = np.random.default_rng(0)
    made = [make(rng).astype(kind) for make in ROWS.values()]

    def every() -> list[bytes]:
        methods = [(Storage(**how), rows) for how in STORAGES for rows in made]
        return [part for how, rows in methods for part in _bytes(METHODS["rtn"].quantize(rows, how, Scratch(), None))]

    compiled, plain = both_ways(every)
    assert compiled == plain


def test_packing_gives_the_same_bytes(both_ways):
    rng = np.random.default_rng(1)

    def every() -> list[bytes]:
        found = []
        for bits in range(2, 9):
            for count in (1, 7, 8, 63, 4096, 4097):
                codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), count, dtype=np.int8)
                out = np.full(packed_bytes(count, bits), 0xAA, np.uint8)
                found.append(pack_codes(codes, bits, out).tobytes() + codes.tobytes())
        rng.bit_generator.state = np.random.default_rng(1).bit_generator.state
        return found

    compiled, plain = both_ways(every)
    assert compiled == plain


@pytest.mark.parametrize("method", ["clip", "gptq"])
@pytest.mark.parametrize("how", STORAGES, ids=lambda how: Storage(**how).words)
def test_searching_methods_give_the_same_bytes(method, how, both_ways):
    rng = np.random.default_rng(2)
    rows = np.concatenate([make(rng).astype(np.float32)[:40] for make in ROWS.values()])
    moments, storage = _moments(192), Storage(**how, method=method)

    compiled, plain = both_ways(lambda: _bytes(METHODS[method].quantize(rows, storage, Scratch(), moments)))
    assert compiled == plain


def test_long_rows_give_the_same_bytes(both_ways):
    """More features than are taken in turn at a time, and blocks of another width than those batches."""
    rows = np.random.default_rng(3).standard_normal((33, 640)).astype(np.float32)
    moments, storage = _moments(640), Storage(bits=3, block=80, method="gptq")

    compiled, plain = both_ways(lambda: _bytes(METHODS["gptq"].quantize(rows, storage, Scratch(), moments)))
    assert compiled == plain


def test_a_module_of_another_version_is_left_alone(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir.tensor._native", built)
    monkeypatch.setattr(native, "VERSION", built.VERSION + 1)
    native._loaded.cache_clear()
    try:
        assert native.native() is None
    finally:
        native._loaded.cache_clear()


def test_arrays_that_do_not_fit_are_refused(built):
    codes, out = np.zeros(9, np.int8), np.zeros(4, np.uint8)
    with pytest.raises(ValueError, match="do not fit each other"):
        built.pack(codes, out, 4)
    with pytest.raises(ValueError, match="contiguous elements"):
        built.pack(codes[::2], out[:3], 4)
    with pytest.raises((BufferError, ValueError), match=r"read-only|not writable"):
        built.pack(codes[:8], np.frombuffer(bytes(4), np.uint8), 4)
    words = np.zeros((3, 8), np.uint16)
    with pytest.raises(ValueError, match="do not fit each other"):
        built.block_extremes(words, np.zeros(2, np.uint16), np.zeros(3, np.uint16), True)
    big = np.zeros((65, 65), np.float32)
    with pytest.raises(ValueError, match="do not fit each other"):
        built.feed_back(big, big[0], big, big, big, big, big.copy(), big.copy(), big.copy(), -8.0, 7.0)
