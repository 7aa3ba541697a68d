"""The contract: records, schema, files on disk, and what a feed is refused for."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import hashlib
import importlib.resources
import json
import re
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import contract as c
from backends.contract import codec as contract_codec
from backends.contract import file_checks as contract_files
from ir.base import types
from ir.base.diag import LadingError
from ir.facts import inputs as decisions
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "contract.md").read_text()
RELEASES = ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")
RECORDS = contract_codec.Record.__subclasses__()
SCHEMA = json.loads(importlib.resources.files("backends.contract").joinpath("contract.schema.json").read_text())
JUDGE = jsonschema.Draft202012Validator(SCHEMA)


def page_block(language: str) -> str:
    """The one fenced block of a language in docs/contract.md."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return block


EXAMPLE = json.loads(page_block("json"))


def example() -> Any:
    """JSON data of the documented example, free to be changed."""
    return copy.deepcopy(EXAMPLE)


def made(**signature: Any) -> c.Contract:
    """The documented example with parts of its signature replaced."""
    base = c.Contract.from_json(example())
    return dataclasses.replace(base, signature=dataclasses.replace(base.signature, **signature))


def errors(call: Any, *args: Any, **options: Any) -> dict[str, str]:
    """Code -> message of everything that a call refuses."""
    with pytest.raises(LadingError) as caught:
        call(*args, **options)
    return {item.code: item.message for item in caught.value.diagnostics}


# ---- generated contracts: records and schema agree ----------------------------------------------------------------

TEXT = st.text(max_size=6)
NAME = st.text(min_size=1, max_size=6)
COUNT = st.integers(0, 2**40)
SIZE = st.floats(0, 1e30)
PATHS = st.text("abcé_.-", min_size=3, max_size=5).filter(lambda text: set(text) != {"."})
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


def some(strategy: st.SearchStrategy, **options: Any) -> st.SearchStrategy:
    return st.lists(strategy, max_size=2, **options).map(tuple)


@st.composite
def signatures(draw: Any, promised: tuple[str, ...]) -> c.Signature:
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    rows = st.builds(
        c.Dimension,
        low=st.integers(0, 4),
        high=maybe(st.integers(4, 9)),
        meaning=TEXT,
        multiple_of=st.integers(1, 4),
        sum_of=st.just(()),
    )
    dims = {name: draw(rows) for name in names}
    if len(names) == 3:
        dims[names[0]] = dataclasses.replace(dims[names[0]], sum_of=tuple(names[1:]))
    shape = some(st.integers(0, 9) | st.sampled_from(names))
    forms = st.builds(c.ShapeForm, shape=shape, releases=some(st.sampled_from(promised), unique=True))
    everywhere = st.builds(c.ShapeForm, shape=shape)
    found = maybe(
        st.builds(c.Discovery, by=NAME, kind=st.sampled_from(get_args(decisions.Why)), reason=TEXT, node=maybe(TEXT))
    )
    ports = {"name": NAME, "shapes": st.tuples(everywhere, forms), "meaning": TEXT, "discovered": found}
    integers = st.builds(
        c.Input,
        dtype=st.sampled_from(["i32", "u8", "i64"]),
        default=maybe(st.integers(-1, 1)),
        values=maybe(
            st.builds(c.ValueRange, min=maybe(st.integers(-9, -1)), max=maybe(COUNT)).filter(
                lambda row: row.max is None or row.max > 0
            )
        ),
        **ports,
    )
    reals = st.builds(c.Input, dtype=st.sampled_from(["f32", "bf16"]), default=maybe(st.floats(-1, 1)), **ports)
    inputs = draw(some(integers | reals, unique_by=lambda item: item.name))
    returned = st.builds(c.Output, dtype=st.sampled_from(list(c.DTYPES)), **ports)
    outputs = draw(some(returned, unique_by=lambda item: item.name))
    cache = st.builds(c.KVCache, layers=COUNT, dtype=st.just("f16"), bytes_per_token=COUNT, past=st.sampled_from(names))
    return c.Signature(inputs=inputs, outputs=outputs, dims=dims, state=draw(maybe(cache)))


@st.composite
def weights(draw: Any, files: tuple[c.FileEntry, ...]) -> tuple[c.WeightEntry, ...]:
    if not files:
        return ()
    stored = st.builds(
        c.Storage,
        bits=st.integers(1, 32),
        block=COUNT,
        symmetric=st.booleans(),
        method=NAME,
        layout=NAME,
        zero=st.sampled_from(["int", "float", "none"]),
        scale_dtype=maybe(st.sampled_from(["f16", "f32"])),
    )
    rows = []
    for name in draw(st.lists(NAME, max_size=3)):
        file = draw(st.sampled_from(files))
        offset = draw(st.integers(0, file.bytes))
        size = draw(st.integers(0, file.bytes - offset))
        error = draw(maybe(st.builds(c.WeightError, rms_relative=SIZE, max_abs=SIZE)))
        shared = draw(st.sampled_from([None, *[row.name for row in rows]]))
        rows.append(
            c.WeightEntry(
                name=name,
                file=file.path,
                offset=offset,
                bytes=size,
                shape=draw(some(COUNT)),
                storage=draw(stored),
                shared_with=shared,
                error=error,
                from_bits=draw(maybe(st.integers(1, 8))),
            )
        )
    return tuple(rows)


@st.composite
def contracts(draw: Any) -> c.Contract:
    promised = draw(st.lists(st.sampled_from(RELEASES), min_size=1, unique=True).map(tuple))
    releases = some(st.sampled_from(promised), unique=True)
    files = draw(
        some(
            st.builds(c.FileEntry, path=PATHS, bytes=COUNT, sha256=DIGEST, role=st.just("weights")),
            unique_by=lambda item: item.path,
        )
    )
    paths = [file.path for file in files]
    reads = some(st.builds(c.TokenizerFile, file=st.sampled_from(paths), releases=releases)) if files else st.just(())
    inexact = st.builds(
        c.Inexact, releases=releases, differing=st.integers(0, 5), of=st.integers(5, 9), reasons=some(TEXT)
    )
    run = st.builds(
        c.Verification,
        release=st.sampled_from(RELEASES),
        platform=NAME,
        prompt_tokens=st.integers(1, 99),
        reference=st.sampled_from(["float", "decoded weights"]),
        max_abs_error=SIZE,
        kl=SIZE,
        settings=st.builds(c.RunSettings, memory=st.just("low"), precision=st.just("high"), threads=st.integers(1, 9)),
        top1=st.floats(0, 1),
        perplexity=maybe(SIZE),
        decode_tokens=maybe(COUNT),
    )
    setting = TEXT | st.integers() | st.booleans() | st.floats(-1, 1) | st.none()
    figure = maybe(COUNT)
    return draw(
        st.builds(
            c.Contract,
            compiler=st.builds(c.Compiler, name=NAME, version=NAME),
            created=maybe(st.just("2026-01-31T12:00:00Z")),
            target=st.builds(c.Target, profile=NAME, releases=st.just(promised)),
            model=st.builds(
                c.Model,
                name=NAME,
                family=maybe(NAME),
                layers=figure,
                max_position=figure,
                parameters=figure,
                adapters=some(
                    st.builds(
                        c.Adapter,
                        name=NAME,
                        weight=st.floats(-2, 2),
                        base=maybe(NAME),
                        rank=st.integers(1, 64),
                        tensors=COUNT,
                        files=some(
                            st.builds(c.AdapterFile, file=PATHS, digest=DIGEST), unique_by=lambda item: item.file
                        ),
                    )
                ),
            ),
            sources=some(
                st.builds(
                    c.Source, file=PATHS, bytes=COUNT, digest=DIGEST, digest_of=st.sampled_from(["content", "header"])
                ),
                unique_by=lambda item: item.file,
            ),
            config_digest=maybe(DIGEST),
            signature=signatures(promised),
            files=st.just(files),
            weights=weights(files),
            pipeline=st.builds(
                c.Pipeline,
                text=TEXT,
                passes=some(
                    st.builds(c.PassCounts, name=NAME, counts=st.dictionaries(TEXT, st.integers(), max_size=2))
                ),
            ),
            runtime=st.builds(
                c.Runtime,
                settings=st.dictionaries(TEXT, setting | some(setting), max_size=2),
                requires=st.builds(
                    c.Requirements,
                    min_release=st.sampled_from(RELEASES),
                    memory=maybe(st.just("normal")),
                    keys=st.dictionaries(TEXT, TEXT, max_size=1),
                ),
            ),
            tokenizer=maybe(st.builds(c.Tokenizer, form=NAME, files=reads, inexact=some(inexact))),
            verified=some(run),
            warnings=some(st.builds(c.Notice, code=st.just("Q412"), message=TEXT, where=TEXT, hint=TEXT)),
        )
    )


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(contracts())
def test_generated_contracts_satisfy_records_and_schema_and_come_back_equal(contract: c.Contract) -> None:
    text = c.dumps(contract)
    data = json.loads(text)
    JUDGE.validate(data)
    assert c.validate(data) == []
    again = c.Contract.from_json(data)
    assert again == contract
    assert c.dumps(again) == text


def places(data: Any, at: tuple = ()) -> list[tuple]:
    """Paths of every value below the root of JSON data."""
    rows = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [path for key, value in rows for path in ((*at, key), *places(value, (*at, key)))]


def parent_of(data: Any, path: tuple) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def structure_is_right(data: Any) -> bool:
    """Whether the records find no fault other than references between the parts."""
    return all(problem.code == "C806" for problem in c.validate(data))


WRONG = [
    None,
    True,
    0,
    -1,
    1,
    2.0,
    0.5,
    -0.5,
    "",
    "x",
    "x\n",
    "../x",
    "3.6.1",
    "3.6",
    "low",
    [],
    {},
    [[]],
    ["x", "x"],
    [None],
    {"x": 1},
    [{}],
]


@SLOW
@given(contracts(), st.data())
def test_records_and_schema_agree_on_any_replaced_value(contract: c.Contract, data: st.DataObject) -> None:
    mutant = contract.to_json()
    path = data.draw(st.sampled_from(places(mutant)))
    parent_of(mutant, path)[path[-1]] = data.draw(st.sampled_from(WRONG))
    assert structure_is_right(mutant) is JUDGE.is_valid(mutant)


def kind_of_place(path: tuple) -> tuple:
    return tuple("*" if isinstance(key, int) else key for key in path)


PLACES = list({kind_of_place(path): path for path in reversed(places(EXAMPLE))}.values())
"""One path for each kind of place in the example: the first item stands for a list."""


@pytest.mark.parametrize("path", PLACES, ids=lambda path: "/".join(map(str, path)))
def test_records_and_schema_agree_on_every_place_of_the_example(path: tuple) -> None:
    mutants = []
    for value in WRONG:
        mutants.append(example())
        parent_of(mutants[-1], path)[path[-1]] = value
    verdicts = [JUDGE.is_valid(mutant) for mutant in mutants]
    assert [structure_is_right(mutant) for mutant in mutants] == verdicts
    assert False in verdicts


def is_record(path: tuple) -> bool:
    """Whether the example has an object with fixed fields at a path, and not a table with keys of its own."""
    value = parent_of(EXAMPLE, (*path, ""))
    tables = ("dims", "counts", "keys", "logit_bias", "others", "streamed", "unread")
    return isinstance(value, dict) and path != ("runtime", "settings") and path[-1] not in tables


@pytest.mark.parametrize("path", [(), *filter(is_record, PLACES)], ids=lambda path: "/".join(map(str, path)))
def test_a_missing_and_an_unknown_field_are_refused_by_both_at_their_pointer(path: tuple) -> None:
    pointer = "#" + "".join(f"/{key}" for key in path)
    for name in parent_of(example(), (*path, "")):
        mutant = example()
        del parent_of(mutant, (*path, ""))[name]
        assert ("C801", f"{pointer}/{name}") in [(item.code, item.where) for item in c.validate(mutant)]
        assert not JUDGE.is_valid(mutant)
    mutant = example()
    parent_of(mutant, (*path, ""))["a/b~c"] = 1
    assert [(item.code, item.where) for item in c.validate(mutant)] == [("C802", f"{pointer}/a~1b~0c")]
    assert not JUDGE.is_valid(mutant)


def test_the_published_schema_is_the_one_of_the_records() -> None:
    assert c.schema() == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == c.SCHEMA_ID == "urn:lading:contract:1.0"
    assert SCHEMA["$schema"].endswith("draft/2020-12/schema")


def test_element_types_and_reasons_are_those_of_the_ir() -> None:
    for name, numpy in c.DTYPES.items():
        assert types.DTYPES[name].numpy.name == numpy
    kinds = get_args(get_type_hints(c.Discovery)["kind"])
    assert set(get_args(decisions.Why)) <= set(kinds)


# ---- problems of a contract ---------------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once_with_its_pointer() -> None:
    data = example()
    data["model"]["layers"] = "four"
    data["weights"][0]["storage"]["bitz"] = data["weights"][0]["storage"].pop("bits")
    data["runtime"]["requires"]["memory"] = "norml"
    with pytest.raises(LadingError) as caught:
        c.Contract.from_json(data)
    found = {item.where: item for item in caught.value.diagnostics}
    assert {where: item.code for where, item in found.items()} == {
        "#/model/layers": "C804",
        "#/weights/0/storage/bits": "C801",
        "#/weights/0/storage/bitz": "C802",
        "#/runtime/requires/memory": "C805",
    }
    assert found["#/weights/0/storage/bitz"].hint == "did you mean 'bits'?"
    assert found["#/runtime/requires/memory"].hint == "did you mean 'normal'?"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "name"), "", "'' is not at least 1 long"),
        (("target", "releases"), [], "needs at least 1 item"),
        (("runtime", "requires", "min_release"), "3.6", "'3.6' is not of the form ^[0-9]+"),
        (("model", "layers"), -1, "-1 is not at least 0"),
        (("verified", 0, "top1"), 1.5, "1.5 is not at least 0 and at most 1"),
        (("runtime", "requires", "memory"), "huge", "'huge' is not one of low, normal, high"),
        (("model",), [], "[] is not of type object"),
        (("runtime", "settings", "thread_num"), {}, "{} is not of type string or number or boolean or null or array"),
    ],
)
def test_a_problem_says_what_was_expected(path: tuple, value: Any, message: str) -> None:
    data = example()
    parent_of(data, path)[path[-1]] = value
    assert [item.message[: len(message)] for item in c.validate(data)] == [message]


@pytest.mark.parametrize("data", [[], None, "1.0", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    assert [(item.code, item.where) for item in c.validate(data)] == [("C804", "#")]


def test_what_is_left_out_when_a_record_is_made_means_nothing_special() -> None:
    assert c.Dimension(meaning="").to_json() == {"low": 0, "high": None, "multiple_of": 1, "sum_of": [], "meaning": ""}
    stored = c.Storage(bits=16, method="cast", layout="mnn-f16")
    assert stored.to_json() == {
        "bits": 16,
        "block": 0,
        "symmetric": True,
        "zero": "none",
        "scale_dtype": None,
        "method": "cast",
        "layout": "mnn-f16",
    }


def test_a_range_of_one_value_is_a_range() -> None:
    data = example()
    data["signature"]["inputs"][3].update(values={"min": -1, "max": -1})
    data["signature"]["dims"]["rows"].update(low=1, high=1)
    assert c.validate(data) == []


def test_a_single_record_can_be_read_too() -> None:
    entry = c.FileEntry.from_json(EXAMPLE["files"][0])
    assert entry.to_json() == EXAMPLE["files"][0]
    assert errors(c.FileEntry.from_json, {**EXAMPLE["files"][0], "bytes": -1}).keys() == {"C805"}
    assert errors(c.FileEntry.from_json, [1]).keys() == {"C804"}


@pytest.mark.parametrize("version", ["1.1", "2.0", "0.9"])
def test_another_version_is_one_problem_whatever_else_it_holds(version: str) -> None:
    problems = c.validate({"contract_version": version, "something": "new"})
    assert [item.code for item in problems] == ["C803"]
    assert version in problems[0].message


@pytest.mark.parametrize("path", ["/abs", "a//b", "../up", "a/../b", ".", "a\\b", "C:x", "a\n", "", "a/"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    data = example()
    data["files"][0]["path"] = path
    assert "C805" in [item.code for item in c.validate(data)]


DISAGREEMENTS = {
    "/signature/inputs/1/name": lambda d: d["signature"]["inputs"][1].update(name="input_ids"),
    "/signature/outputs/0/shapes/0/shape/1": lambda d: d["signature"]["dims"].pop("rows"),
    "/signature/inputs/0/values": lambda d: d["signature"]["inputs"][0].update(values={"min": 0, "max": 1}),
    "/signature/inputs/2/values": lambda d: d["signature"]["inputs"][2].update(values={"min": 5, "max": 1}),
    "/signature/inputs/3/default": lambda d: d["signature"]["inputs"][3].update(default=7),
    "/signature/inputs/2/default": lambda d: d["signature"]["inputs"][2].update(default=0.5),
    "/signature/inputs/1/default": lambda d: d["signature"]["inputs"][1].update(default=True),
    "/signature/dims/seq": lambda d: d["signature"]["dims"]["seq"].update(high=0),
    "/signature/dims/kv/sum_of": lambda d: d["signature"]["dims"]["kv"].update(sum_of=["kv"]),
    "/signature/state/past": lambda d: d["signature"]["state"].update(past="nothing"),
    "/signature/inputs/2/shapes": lambda d: d["signature"]["inputs"][2]["shapes"].pop(),
    "/signature/inputs/2/shapes/0/releases": lambda d: d["signature"]["inputs"][2]["shapes"][0].update(
        releases=["9.9.9"]
    ),
    "/files/1/path": lambda d: d["files"][1].update(path=d["files"][0]["path"]),
    "/files/0/path": lambda d: d["files"][0].update(path="contract.json"),
    "/sources/1/file": lambda d: d["sources"][1].update(file=d["sources"][0]["file"]),
    "/weights/0/file": lambda d: d["weights"][0].update(file="other"),
    "/weights/0/bytes": lambda d: d["weights"][0].update(bytes=10**12),
    "/weights/0/shared_with": lambda d: d["weights"][0].update(shared_with="other"),
    "/tokenizer/files/0/file": lambda d: d["tokenizer"]["files"][0].update(file="other"),
    "/tokenizer/files/0/releases": lambda d: d["tokenizer"]["files"][0].update(releases=["9.9.9"]),
    "/tokenizer/inexact/0/differing": lambda d: d["tokenizer"]["inexact"][0].update(differing=10**6),
}


@pytest.mark.parametrize("pointer", DISAGREEMENTS)
def test_parts_that_disagree_are_found_although_the_schema_is_satisfied(pointer: str) -> None:
    data = example()
    DISAGREEMENTS[pointer](data)
    JUDGE.validate(data)
    assert ("C806", f"#{pointer}") in [(item.code, item.where) for item in c.validate(data)]


# ---- the file -----------------------------------------------------------------------------------------------------


def test_writing_is_canonical_and_reading_gives_it_back(tmp_path: Path) -> None:
    contract = c.Contract.from_json(example())
    c.write(contract, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["contract.json"]
    text = (tmp_path / "contract.json").read_text()
    assert text == page_block("json")
    assert c.read(tmp_path) == c.read(str(tmp_path / "contract.json")) == contract
    mixed = example()
    for part in ("files", "weights", "sources", "verified"):
        mixed[part].reverse()
    mixed["target"]["releases"].reverse()
    mixed["signature"]["dims"] = dict(reversed(mixed["signature"]["dims"].items()))
    c.write(c.Contract.from_json(dict(reversed(mixed.items()))), tmp_path / "mixed.json")
    assert (tmp_path / "mixed.json").read_text() == text


def test_numbers_are_written_one_way() -> None:
    run = c.Verification.from_json(EXAMPLE["verified"][0])
    whole = dataclasses.replace(run, max_abs_error=0, top1=1)
    contract = dataclasses.replace(c.Contract.from_json(example()), verified=(whole,))
    text = c.dumps(contract)
    assert '"max_abs_error": 0.0' in text
    assert '"top1": 1.0' in text
    assert c.dumps(c.Contract.from_json(json.loads(text))) == text


def test_there_is_no_time_stamp_unless_asked_for() -> None:
    contract = c.Contract.from_json(example())
    assert contract.created is None
    stamped = dataclasses.replace(contract, created="2026-02-03T04:05:06Z")
    assert c.validate(json.loads(c.dumps(stamped))) == []


def test_a_contract_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    contract = c.Contract.from_json(example())
    wrong = dataclasses.replace(contract, config_digest=np.int64(3))
    with pytest.raises(ValueError, match="C804"):
        c.write(wrong, tmp_path)
    lost = dataclasses.replace(contract, files=())
    with pytest.raises(ValueError, match="C806"):
        c.write(lost, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_unicode_text_survives(tmp_path: Path) -> None:
    data = example()
    data["model"]["name"] = "caf\udce9 模型"
    c.write(c.Contract.from_json(data), tmp_path)
    assert c.read(tmp_path).model.name == data["model"]["name"]
    data["model"]["name"] = "café 模型"
    assert '"café 模型"' in c.dumps(c.Contract.from_json(data))


def test_an_existing_contract_is_kept_when_writing_fails(tmp_path: Path) -> None:
    contract = c.Contract.from_json(example())
    (tmp_path / "contract.json").mkdir()
    (tmp_path / "contract.json" / "keep").touch()
    assert errors(c.write, contract, tmp_path).keys() == {"C807"}
    assert errors(c.write, contract, tmp_path / "none" / "contract.json").keys() == {"C807"}
    assert [path.name for path in tmp_path.iterdir()] == ["contract.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "contract.json").write_bytes(content)
    assert errors(c.read, tmp_path).keys() == {"C800"}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert errors(c.read, tmp_path).keys() == {"C800"}
    assert errors(c.read, tmp_path / "x.json").keys() == {"C800"}


def test_a_number_that_no_float_holds_is_refused() -> None:
    data = example()
    data["verified"][0]["kl"] = 10**400
    assert [(item.code, item.where) for item in c.validate(data)] == [("C805", "#/verified/0/kl")]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_with_file_and_pointer(tmp_path: Path, number: str) -> None:
    data = example()
    data["verified"][0]["kl"] = "HERE"
    data["runtime"]["settings"]["thread_num"] = "HERE"
    (tmp_path / "contract.json").write_text(json.dumps(data).replace('"HERE"', number))
    with pytest.raises(LadingError) as caught:
        c.read(tmp_path)
    assert [(item.code, item.where) for item in caught.value.diagnostics] == [
        ("C805", f"{tmp_path / 'contract.json'}#/runtime/settings/thread_num"),
        ("C805", f"{tmp_path / 'contract.json'}#/verified/0/kl"),
    ]


# ---- the folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> tuple[c.Contract, Path]:
    """A model folder with its contract: llm.mnn, llm.mnn.weight and sub/tokenizer.txt."""
    (tmp_path / "sub").mkdir()
    parts = {
        "llm.mnn": ("model", b"graph"),
        "llm.mnn.weight": ("weights", b"\x01" * 9000),
        "sub/tokenizer.txt": ("tokenizer", b""),
    }
    for path, (_, content) in parts.items():
        (tmp_path / path).write_bytes(content)
    files = tuple(c.FileEntry.of(tmp_path, path, role) for path, (role, _) in parts.items())
    contract = dataclasses.replace(c.Contract.from_json(example()), files=files, weights=(), tokenizer=None)
    c.write(contract, tmp_path)
    return contract, tmp_path


def test_an_intact_folder_has_no_problems(folder: tuple[c.Contract, Path]) -> None:
    contract, root = folder
    assert contract.files[0].sha256 == hashlib.sha256(b"graph").hexdigest()
    assert c.check_files(contract, root) == []
    assert c.check_files(c.read(root), str(root)) == []


def test_damage_to_a_folder_is_named(folder: tuple[c.Contract, Path]) -> None:
    contract, root = folder
    (root / "llm.mnn").rename(root / "LLM.mnn")
    (root / "llm.mnn.weight").write_bytes(b"\x01" * 8999)
    (root / "sub" / "tokenizer.txt").unlink()
    (root / "sub" / "tokenizer.txt").mkdir()
    found = {(item.code, Path(item.where).name): item for item in c.check_files(contract, root)}
    assert found.keys() == {
        ("C810", "llm.mnn"),
        ("C811", "llm.mnn.weight"),
        ("C810", "tokenizer.txt"),
        ("C813", "LLM.mnn"),
    }
    assert found["C810", "llm.mnn"].hint == "did you mean 'LLM.mnn'?"
    assert "8999 bytes instead of 9000" in found["C811", "llm.mnn.weight"].message
    assert {item.severity for item in found.values() if item.code == "C813"} == {"warning"}


def test_changed_content_is_found_by_its_digest_alone(folder: tuple[c.Contract, Path]) -> None:
    contract, root = folder
    (root / "llm.mnn.weight").write_bytes(b"\x01" * 8999 + b"\x02")
    assert [item.code for item in c.check_files(contract, root)] == ["C812"]
    assert c.check_files(contract, root, digests=False) == []


def test_a_folder_that_is_not_there_is_one_problem(folder: tuple[c.Contract, Path]) -> None:
    contract, root = folder
    assert [item.code for item in c.check_files(contract, root / "none")] == ["C814"]


def test_a_file_that_cannot_be_read_is_named(folder: tuple[c.Contract, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    contract, root = folder

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(contract_files, "sha256_of", fail)
    assert {item.code for item in c.check_files(contract, root)} == {"C814"}


# ---- the feed -----------------------------------------------------------------------------------------------------

CONTRACT = c.Contract.from_json(example())


def prefill(tokens: int = 5, **changes: Any) -> dict[str, Any]:
    """What MNN 3.6.1 feeds the documented example for a prompt; a change of None leaves an input out."""
    feed = {
        "input_ids": np.ones((tokens, 1, 256), np.float32),
        "attention_mask": np.float32(0),
        "position_ids": np.arange(tokens, dtype=np.int32)[None],
        "logits_index": np.array([-1], np.int32),
    }
    return {name: value for name, value in (feed | changes).items() if value is not None}


def square(size: int) -> np.ndarray:
    return np.zeros((1, 1, size, size), np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_mask": square(5)},
        {"attention_mask": np.zeros((), np.float32)},
        {"position_ids": np.arange(5, dtype=np.int32)},
        {"logits_index": np.zeros(1, np.int32)},
        {"input_ids": ((5, 1, 256), "f32"), "position_ids": ((1, 5), np.int32), "logits_index": ([1], np.dtype("i4"))},
        {"input_ids": torch.ones(5, 1, 256), "logits_index": torch.zeros(1, dtype=torch.int32)},
    ],
    ids=["scalar", "square", "0-d", "flat", "all", "described", "torch"],
)
def test_what_the_runtime_feeds_is_accepted(changes: dict[str, Any]) -> None:
    feed = prefill(**changes)
    c.check_feed(CONTRACT, feed)
    assert c.bind(CONTRACT, feed) == {"seq": 5}


REFUSED = {
    "missing": ({"logits_index": None}, "C820", "'logits_index' is missing"),
    "extra": ({"logit_index": np.zeros(1)}, "C821", "no input 'logit_index'"),
    "dtype": ({"position_ids": np.arange(5)[None]}, "C822", "dtype int64, not int32"),
    "byte order": ({"logits_index": np.array([-1], ">i4")}, "C822", "dtype >i4, not int32"),
    "torch dtype": ({"logits_index": torch.zeros(1)}, "C822", "dtype torch.float32, not int32"),
    "numpy code for i64": ({"logits_index": ((1,), "i8")}, "C822", "dtype i8, not int32"),
    "rank": ({"input_ids": np.ones((5, 256), np.float32)}, "C823", "rank 2, shape [5, 256]; it takes [seq, 1, 256]"),
    "fixed": ({"input_ids": np.ones((5, 1, 128), np.float32)}, "C829", "size 128 on axis 2, not 256"),
    "shared": (
        {"position_ids": np.arange(4, dtype=np.int32)[None]},
        "C826",
        "dimension seq is 4 on axis 1 of input 'position_ids', but 5 on axis 0 of input 'input_ids'",
    ),
    "one input": (
        {"attention_mask": np.zeros((1, 1, 5, 6), np.float32)},
        "C826",
        "dimension seq is 6 on axis 3 of input 'attention_mask', but 5 on axis 0 of input 'input_ids'",
    ),
    "value": ({"logits_index": np.array([3], np.int32)}, "C827", "holds 3 at [0]; allowed is -1..0"),
    "position": (
        {"position_ids": np.array([[0, 2047, 2048, 1, 9999]], np.int32)},
        "C827",
        "holds 2048 at [0, 2] (and 1 more); allowed is 0..2047",
    ),
    "nan": ({"attention_mask": np.float32("nan")}, "C828", "holds nan; it must be finite"),
    "infinity": (
        {"attention_mask": np.where(np.tri(5), 0, -np.inf).astype(np.float32)[None, None]},
        "C828",
        "holds -inf at [0, 0, 0, 1] (and 9 more); it must be finite",
    ),
    "no array": ({"attention_mask": 0.0}, "C831", "is 0.0, which has no shape and dtype"),
    "list": ({"logits_index": [-1]}, "C831", "is [-1], which has no shape and dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_mistake_has_its_own_code_and_says_what_is_wrong(case: str) -> None:
    changes, code, message = REFUSED[case]
    found = errors(c.check_feed, CONTRACT, prefill(**changes))
    assert list(found) == [code]
    assert message in found[code]


@pytest.mark.parametrize("tokens", [0, 2049])
def test_a_size_out_of_range_is_refused(tokens: int) -> None:
    feed = prefill(5, input_ids=((tokens, 1, 256), "f32"), position_ids=((1, tokens), "i32"))
    assert errors(c.check_feed, CONTRACT, feed) == {
        "C824": f"dimension seq is {tokens} on axis 0 of input 'input_ids'; allowed is 1..2048"
    }


def test_a_size_that_is_no_multiple_is_refused() -> None:
    dims = CONTRACT.signature.dims
    contract = made(dims={**dims, "seq": dataclasses.replace(dims["seq"], multiple_of=4, high=None)})
    c.check_feed(contract, prefill(8))
    assert list(errors(c.check_feed, contract, prefill(6))) == ["C825"]
    assert "allowed is at least 1" in errors(c.check_feed, contract, prefill(0))["C824"]


def test_all_mistakes_come_in_one_error_with_hints() -> None:
    feed = prefill(
        input_ids=np.full((4, 1, 256), np.nan, np.float32),
        logits_index=None,
        logits_idx=np.zeros(1),
        attention_mask=np.zeros((), np.float64),
    )
    with pytest.raises(LadingError) as caught:
        c.check_feed(CONTRACT, feed)
    found = {item.code: item for item in caught.value.diagnostics}
    assert found.keys() == {"C820", "C821", "C822", "C826", "C828"}
    assert found["C820"].hint == "feed int32 [1]; -1 is the default"
    with pytest.raises(LadingError) as caught:
        c.check_feed(CONTRACT, prefill(position_ids=None))
    assert caught.value.diagnostics[0].hint == "feed int32 [seq] or [1, seq]"
    assert found["C821"].hint == "did you mean 'logits_index'?"
    assert errors(c.check_feed, CONTRACT, feed, values=False).keys() == {"C820", "C821", "C822", "C826"}


def test_a_release_narrows_the_forms() -> None:
    flat, two = prefill(position_ids=np.arange(5, dtype=np.int32)), prefill()
    c.check_feed(CONTRACT, flat, release="3.4.0")
    c.check_feed(CONTRACT, two, release="3.6.1")
    assert errors(c.check_feed, CONTRACT, flat, release="3.6.1")["C823"].endswith("it takes [1, seq]")
    assert errors(c.check_feed, CONTRACT, two, release="3.4.0")["C823"].endswith("it takes [seq]")
    c.check_feed(CONTRACT, flat, release="3.4.1")
    c.check_feed(CONTRACT, two, release="3.4.1")
    assert list(errors(c.check_feed, CONTRACT, two, release="9.9.9")) == ["C830"]


def test_tokens_in_the_cache_count() -> None:
    feed = prefill(5)
    assert c.bind(CONTRACT, feed, previous=7) == {"past": 7, "seq": 5, "kv": 12}
    c.check_feed(CONTRACT, feed, previous=2043)
    found = errors(c.check_feed, CONTRACT, feed, previous=2044)
    assert found == {"C824": "dimension kv is 2049 by kv = past + seq; allowed is 1..2048"}
    assert "past is -1 in the cache" in errors(c.check_feed, CONTRACT, feed, previous=-1)["C824"]
    with pytest.raises(ValueError, match="no cache"):
        c.check_feed(made(state=None), feed, previous=1)


def wide() -> c.Contract:
    """A variant whose mask is as wide as cache and new tokens together."""
    mask = dataclasses.replace(CONTRACT.signature.inputs[1], shapes=(c.ShapeForm(shape=(1, 1, "seq", "kv")),))
    inputs = list(CONTRACT.signature.inputs)
    return made(inputs=(inputs[0], mask, *inputs[2:]))


def test_a_dimension_that_is_a_sum_has_to_come_out() -> None:
    feed = prefill(2, attention_mask=np.zeros((1, 1, 2, 9), np.float32))
    assert c.bind(wide(), feed) == {"seq": 2, "kv": 9, "past": 7}
    assert c.bind(wide(), feed, previous=7) == {"past": 7, "seq": 2, "kv": 9}
    assert errors(c.bind, wide(), feed, previous=6) == {
        "C832": "dimension kv is 9 on axis 3 of input 'attention_mask', but past + seq is 8"
    }
    narrow = prefill(5, attention_mask=np.zeros((1, 1, 5, 3), np.float32))
    assert errors(c.bind, wide(), narrow)["C832"].endswith("but past + seq is at least 5")


def test_the_form_that_fits_is_chosen_among_those_of_one_rank() -> None:
    rows = dataclasses.replace(
        CONTRACT.signature.inputs[2], shapes=(c.ShapeForm(shape=(1, "seq")), c.ShapeForm(shape=(3, "seq")))
    )
    contract = made(inputs=(CONTRACT.signature.inputs[0], rows))
    feed = {"input_ids": ((5, 1, 256), "f32"), "position_ids": ((3, 5), "i32")}
    assert c.bind(contract, feed) == {"seq": 5}
    assert list(errors(c.bind, contract, feed | {"position_ids": ((2, 5), "i32")})) == ["C829"]


@pytest.mark.parametrize("name", c.DTYPES)
def test_every_element_type_is_told_from_the_others(name: str) -> None:
    port = c.Input(name="x", dtype=name, shapes=(c.ShapeForm(shape=(2,)),), meaning="")
    contract = made(inputs=(port,))
    for other in c.DTYPES:
        array = np.zeros(2, types.DTYPES[other].numpy)
        for item in (array, ((2,), other), ((2,), array.dtype.type)):
            if other == name:
                c.check_feed(contract, {"x": item})
            else:
                assert list(errors(c.check_feed, contract, {"x": item})) == ["C822"]


def test_values_of_half_precision_and_empty_arrays_are_looked_at_as_well() -> None:
    port = c.Input(name="x", dtype="bf16", shapes=(c.ShapeForm(shape=("past",)),), meaning="")
    contract = made(inputs=(port,))
    c.check_feed(contract, {"x": np.zeros(0, ml_dtypes.bfloat16)})
    assert list(errors(c.check_feed, contract, {"x": np.array([1, np.inf], ml_dtypes.bfloat16)})) == ["C828"]


def test_a_range_may_be_open_on_one_side() -> None:
    index = CONTRACT.signature.inputs[3]
    low = made(inputs=(dataclasses.replace(index, values=c.ValueRange(min=0)),))
    high = made(inputs=(dataclasses.replace(index, values=c.ValueRange(max=0)),))
    c.check_feed(low, {"logits_index": np.array([5], np.int32)})
    c.check_feed(high, {"logits_index": np.array([-5], np.int32)})
    assert errors(c.check_feed, low, {"logits_index": np.array([-5], np.int32)})["C827"].endswith("allowed is 0..")
    assert errors(c.check_feed, high, {"logits_index": np.array([5], np.int32)})["C827"].endswith("allowed is ..0")


def test_checking_is_fast() -> None:
    feed = prefill()
    c.check_feed(CONTRACT, feed)
    per_call = min(timeit.repeat(lambda: c.check_feed(CONTRACT, feed, values=False), number=100, repeat=30)) / 100
    assert per_call < 50e-6


def test_nothing_heavy_is_imported() -> None:
    heavy = ["MNN", "ml_dtypes", "networkx", "onnx", "onnxruntime", "torch", "transformers", "jsonschema", "jinja2"]
    script = (
        "import sys; from backends.contract import read, check_feed\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# ---- the page -----------------------------------------------------------------------------------------------------


def test_the_page_describes_every_field_as_the_records_do() -> None:
    for record in RECORDS:
        section = PAGE.split(f"### {record.__name__}\n")[1].split("\n#")[0]
        rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", section, flags=re.MULTILINE)
        hints = get_type_hints(record, include_extras=True)
        assert rows == [(name, hint.__metadata__[-1]) for name, hint in hints.items()]


def test_the_example_of_the_page_is_canonical() -> None:
    assert c.dumps(CONTRACT) == page_block("json")
    JUDGE.validate(EXAMPLE)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "contract.json").write_text(page_block("json"))
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(page_block("python"), {}, "docs/contract.md", "docs/contract.md", 0)
    assert len(test.examples) > 5
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0
