"""Two compilations compared by their contracts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from backends.contract import read
from tests.support.paths import EXAMPLE
from tests.support.runs import compiled
from tests.support.suite.code_record import expect_code
from tools.compile.job import Request, compile_model
from tools.diff.command import main
from tools.diff.contracts import compare, patterns


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The default pipeline, verified, and one with other widths in some layers, not verified."""
    root = tmp_path_factory.mktemp("two")
    compile_model(Request(str(EXAMPLE), root / "one", "default"))
    compiled(
        EXAMPLE,
        root / "two",
        "default{bits=8 keep=[re:layers.0.*o_proj,re:layers.1.*o_proj]}",
        target="3.6.1",
        threads=2,
    )
    return root


def diff(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_weights_that_are_stored_otherwise_are_grouped(folders):
    result = diff(folders / "one", folders / "two")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    at = lines.index("  4 bits in blocks of 64 -> 8 bits in blocks of 64  (26 weights, 1.64 MB -> 2.79 MB)")
    assert "    model.layers.*.mlp.up_proj.weight" in lines[at:]
    assert "    model.layers.{2-3}.self_attn.o_proj.weight" in lines[at:]
    assert any("int zeros, f32 scales -> 8 bits in blocks of 64, float zeros, f16 scales" in line for line in lines)
    assert any(line.startswith("  4 bits in blocks of 64 -> float32  (2 weights, ") for line in lines)
    assert "    model.layers.{0-1}.self_attn.o_proj.weight" in lines


def test_the_rest_that_differs_is_told(folders):
    data = json.loads(diff(folders / "one", folders / "two", "--json").output)
    assert not data["same"]
    told = {name: {item["what"]: (item["before"], item["after"]) for item in data[name]}
            for name in ("numbers", "sizes", "inputs", "settings", "tokenizer", "made")}  # fmt: skip
    assert told["settings"]["setting thread_num"] == ("4", "2")
    assert told["tokenizer"]["file tokenizer.txt"] == ("3.4.0, 3.4.1", "none")
    assert told["sizes"]["config.3.4.json"][1] == "none" and "bits per weight" in told["sizes"]
    assert told["made"]["target"][1] == "3.6.1: 3.6.1" and "verdict" in told["made"]
    assert any(pair == ("run", "not run") for pair in told["numbers"].values())
    names = [name for change in data["weights"] for name in change["names"]]
    assert len(names) == len(set(names)) == 30


def test_numbers_that_moved_are_those_of_runs_that_stand_for_the_same(folders):
    one = read(folders / "one")
    moved = replace(one, verified=tuple(replace(run, kl=2 * run.kl) for run in one.verified))
    found = compare(one, moved)
    assert len(found.numbers) == len(one.verified)
    assert all(change.what.startswith("KL on 3.6.1") for change in found.numbers)
    other = replace(one.runtime, settings={**one.runtime.settings, "dynamic_option": 2})
    runs = tuple(replace(run, settings=replace(run.settings, dynamic_option=2)) for run in one.verified)
    assert compare(one, replace(one, runtime=other, verified=runs)).numbers == ()


def test_what_is_the_same_is_so_as_directory_and_as_contract(folders, tmp_path):
    copied = shutil.copytree(folders / "one", tmp_path / "copy")
    for second in (copied, copied / "contract.json"):
        result = diff(folders / "one", second)
        assert (result.output, result.exit_code) == ("the same\n", 0)
    alone = shutil.copy(folders / "two" / "contract.json", tmp_path / "alone.json")
    assert diff(alone, folders / "two").exit_code == 0


def test_a_method_alone_is_a_difference(folders):
    one = read(folders / "one")
    weights = tuple(
        replace(item, storage=replace(item.storage, method="gptq")) if ".0.mlp.up" in item.name else item
        for item in one.weights
    )
    (change,) = compare(one, replace(one, weights=weights)).weights
    assert (change.before, change.after) == ("4 bits in blocks of 64, rtn", "4 bits in blocks of 64, gptq")
    assert change.patterns == ("model.layers.0.mlp.up_proj.weight",)


def test_another_sampler_and_other_ends_are_differences(folders):
    one = read(folders / "one")
    drawn = replace(one.generation.samplers[0], mode="sample", keys={"sampler_type": "mixed", "top_k": 40})
    generation = replace(one.generation, samplers=(drawn, *one.generation.samplers[1:]), ends=())
    found = {
        change.what: (change.before, change.after)
        for change in compare(one, replace(one, generation=generation)).generation
    }
    assert found == {
        "sampler in config.json": ("the likeliest token", "drawn, top_k 40"),
        "ends at": ("<|im_end|> (2)", "nothing but the limit of tokens"),
    }


def test_names_of_layers_are_put_together():
    names = [f"m.{number}.q.w" for number in range(12)]
    assert patterns(names, [*names, "head"]) == ["m.*.q.w"]
    assert patterns([names[n] for n in (0, 1, 2, 5, 11)], names) == ["m.{0-2,5,11}.q.w"]
    assert patterns([names[10]], names) == ["m.10.q.w"]
    assert patterns(["head"], [*names, "head"]) == ["head"]
    experts = [f"m.{a}.e.{b}.w" for a in range(2) for b in range(2)]
    assert patterns(experts, experts) == ["m.*.e.*.w"]
    assert patterns(experts[:2], experts) == experts[:2]


def test_graphs_of_compilations_are_compared_when_asked(folders):
    result = diff(folders / "one", folders / "two", "--graph", "--limit", 5)
    assert result.exit_code == 1 and "constant" in result.output


def test_what_cannot_be_compared_has_a_code(folders, tmp_path):
    alone = shutil.copy(folders / "one" / "contract.json", tmp_path / "alone.json")
    expect_code(diff(alone, EXAMPLE).output, "U993")
    alone.write_text(alone.read_text()[:100])
    expect_code(diff(alone, folders / "one").output, "C800")
    expect_code(diff(tmp_path / "none", folders / "one").output, "U910")
