"""The guards find what the contract's own check finds, in Python and in compiled C++."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import backends.guard.check_inputs as runtime
from backends.contract import Contract, Dimension, check_feed, check_files, read, write
from backends.guard.write import HEADER, PYTHON, add_guard, cpp_guard, cpp_literal, guard_signature, python_guard
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled

NUMPY = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "f64": np.float64}

MAIN = r"""
#include <fstream>
#include <iostream>
#include "lading_guard.h"

// Feeds as words: count; then for each: previous, tensors, and for each tensor: name type rank sizes... values...
int main(int, char** argv) {
    std::ifstream in(argv[1]);
    int feeds;
    in >> feeds;
    for (int f = 0; f < feeds; ++f) {
        long previous;
        int tensors;
        in >> previous >> tensors;
        std::vector<lading::Tensor> feed;
        std::vector<std::vector<char>> held(tensors);
        for (int t = 0; t < tensors; ++t) {
            lading::Tensor item;
            std::size_t rank, count = 1;
            in >> item.name >> item.dtype >> rank;
            for (std::size_t r = 0; r < rank; ++r) {
                long size;
                in >> size;
                item.shape.push_back(size);
                count *= size;
            }
            held[t].resize(8 * count + 8);
            for (std::size_t i = 0; i < count; ++i) {
                std::string word;
                in >> word;
                if (item.dtype == "f32") reinterpret_cast<float*>(held[t].data())[i] = std::stof(word);
                else if (item.dtype == "f64") reinterpret_cast<double*>(held[t].data())[i] = std::stod(word);
                else if (item.dtype == "i32") reinterpret_cast<std::int32_t*>(held[t].data())[i] = std::stoi(word);
                else reinterpret_cast<std::int64_t*>(held[t].data())[i] = std::stoll(word);
            }
            item.data = held[t].data();
            feed.push_back(item);
        }
        std::cout << "feed";
        for (const lading::Problem& problem : lading::check(feed, previous)) std::cout << " " << problem.code;
        std::cout << "\n";
    }
}
"""


@pytest.fixture(scope="module")
def contracts(tmp_path_factory) -> dict[str, Contract]:
    """Contracts of a causal model, of one with windows (whose mask is a sum of dimensions), and of a strict one."""
    root = tmp_path_factory.mktemp("contracts")
    plain = read(compiled(make_checkpoint(root / "a", "qwen2"), root / "plain", "int8"))
    windows = read(compiled(make_checkpoint(root / "b", "mistral", sliding_window=11), root / "windows", "int8"))
    signature = plain.signature
    dims = {**signature.dims, "seq": Dimension(low=2, high=64, multiple_of=2, meaning="tokens")}
    return {"plain": plain, "windows": windows, "strict": replace(plain, signature=replace(signature, dims=dims))}


def right_feed(contract: Contract, seq: int, past: int) -> dict[str, np.ndarray]:
    """A feed that is right."""
    sizes = {"seq": seq, "kv": seq + past, "rows": 1, "past": past}
    feed = {}
    for item in contract.signature.inputs:
        shape = [sizes.get(axis, axis) for axis in item.shapes[0].shape]
        feed[item.name] = np.zeros(shape, NUMPY[item.dtype])
    return feed


def damage(feed: dict[str, np.ndarray], chance: random.Random) -> None:
    """One random mistake."""
    name = chance.choice(list(feed))
    array = feed[name]
    match chance.randrange(8):
        case 0:
            del feed[name]
        case 1:
            feed["extra"] = array
        case 2:
            feed[name] = array.astype(chance.choice(list(NUMPY.values())))
        case 3:
            feed[name] = array[None]
        case 4 if array.ndim:
            feed[name] = np.repeat(array, 2, axis=chance.randrange(array.ndim))
        case 5 if array.ndim:
            feed[name] = array[(slice(None),) * chance.randrange(array.ndim) + (slice(0, 0),)]
        case 6 if array.dtype.kind == "f" and array.size:
            feed[name] = np.full_like(array, chance.choice((np.nan, np.inf)))
        case _ if array.dtype.kind == "i" and array.size:
            feed[name] = np.full_like(array, chance.choice((-2, -1, 10**6)))


def cases(contract: Contract, count: int) -> list[tuple[dict[str, np.ndarray], int | None]]:
    """Right and wrong feeds."""
    chance = random.Random(11)
    found = []
    for _ in range(count):
        seq, past = chance.choice((1, 2, 3, 7, 8)), chance.choice((0, 5))
        feed = right_feed(contract, seq, past)
        for _ in range(chance.choice((0, 1, 1, 2))):
            if feed:
                damage(feed, chance)
        found.append((feed, chance.choice((None, past))))
    return found


def wanted(contract: Contract, feed, previous) -> set[str]:
    """Codes that the contract's own check finds."""
    try:
        check_feed(contract, feed, previous=previous)
    except LadingError as error:
        return {item.code for item in error.diagnostics}
    return set()


def load(contract: Contract) -> dict:
    """The generated module."""
    space: dict = {"__name__": "check_inputs"}
    exec(compile(python_guard(contract), PYTHON, "exec"), space)
    return space


@pytest.mark.parametrize("name", ["plain", "windows", "strict"])
def test_the_python_guard_finds_what_the_contract_finds(name, contracts):
    contract = contracts[name]
    guard = load(contract)
    seen = set()
    for feed, previous in cases(contract, 400):
        codes = wanted(contract, feed, previous)
        assert {code for code, _ in guard["problems"](feed, previous)} == codes, (feed, previous)
        seen |= codes
    assert {"C820", "C821", "C822", "C823", "C824", "C826", "C827", "C828", "C829"} <= seen
    assert ("C832" in seen) is (name == "windows") and ("C825" in seen) is (name == "strict")


def test_require_and_other_forms_of_feeds(contracts):
    guard = load(contracts["plain"])
    feed = right_feed(contracts["plain"], 4, 0)
    guard["require"](feed)
    guard["require"](
        {name: (array.shape, "int32" if array.dtype.kind == "i" else "float32") for name, array in feed.items()}
    )
    with pytest.raises(ValueError, match=r"C820: input 'logits_index' is missing"):
        guard["require"]({name: array for name, array in feed.items() if name != "logits_index"})
    assert [code for code, _ in guard["problems"]({**feed, "position_ids": 7})] == ["C831"]


def test_a_model_without_a_cache_refuses_a_history(monkeypatch):
    monkeypatch.setattr(runtime, "SIGNATURE", {"inputs": [], "dims": {}, "past": None})
    assert runtime.problems({}) == []
    with pytest.raises(ValueError, match="no cache"):
        runtime.problems({}, previous=3)


def test_the_module_needs_python_alone(contracts, tmp_path):
    (tmp_path / PYTHON).write_text(python_guard(contracts["plain"]))
    script = "import sys; sys.path.insert(0, '.'); import check_inputs as c; print(len(c.problems({})), 'numpy' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["4", "False"]


# ---- C++ ----


def written(feeds) -> str:
    """Feeds in the form that the test program reads."""
    names = {np.dtype(kind): name for name, kind in NUMPY.items()}
    words = [str(len(feeds))]
    for feed, previous in feeds:
        words += [str(-1 if previous is None else previous), str(len(feed))]
        for name, array in feed.items():
            words += [
                name,
                names[array.dtype],
                str(array.ndim),
                *map(str, array.shape),
                *map(str, array.reshape(-1).tolist()),
            ]
    return "\n".join(words)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["plain", "windows", "strict"])
def test_the_header_compiles_and_finds_what_the_contract_finds(name, contracts, tmp_path):
    contract = contracts[name]
    (tmp_path / HEADER).write_text(cpp_guard(contract))
    (tmp_path / "main.cpp").write_text(MAIN)
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-O0", "main.cpp", "-o", "main"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    feeds = cases(contract, 200)
    (tmp_path / "feeds.txt").write_text(written(feeds))
    ended = subprocess.run(
        ["./main", "feeds.txt"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    found = [set(line.split()[1:]) for line in ended.stdout.splitlines()]
    assert found == [wanted(contract, feed, previous) for feed, previous in feeds]


def test_texts_cannot_leave_their_literals():
    assert cpp_literal('a"b\\c??/\n\u00e9') == r'"a\042b\134c\077\077/\012\303\251"'


# ---- beside the model ----


def test_guards_are_files_of_the_model(tmp_path):
    folder = compiled(make_checkpoint(tmp_path / "model", "qwen2"), tmp_path / "out", "int8")
    contract = add_guard(read(folder), folder)
    write(contract, folder)
    assert check_files(read(folder), folder) == []
    assert {PYTHON, HEADER} <= {entry.path for entry in contract.files}
    assert add_guard(contract, folder) == contract
    assert guard_signature(contract)["past"] == "past"
    assert Path(folder, HEADER).read_text().startswith("// Checks")
