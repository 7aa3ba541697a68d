"""What inspect says of compiled models: directories, contracts, directories of others, and the page with storages."""

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
from tools.inspect.command import main
from tools.shared.stored import grouped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("inspected") / "model"
    compile_model(Request(str(EXAMPLE), out, "default"))
    return out


def inspect(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def rows(output: str) -> dict[str, list[str]]:
    """Texts by name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in output.splitlines():
        name = line[: line.index("  ")] if not line.startswith(" ") else name
        found.setdefault(name, []).append(line[line.index("  ") :].strip())
    return found


def test_the_essentials_of_a_directory_are_told(folder):
    result = inspect(folder)
    assert result.exit_code == 0
    told = rows(result.output)
    assert told["model"] == ["tiny-qwen2.5, qwen2, 4 layers, 3,281,152 weights, 2,048 positions"]
    assert told["target"] == ["portable: 3.4.0, 3.4.1, 3.5.0, 3.6.0, 3.6.1"]
    assert told["weights"] == [
        "4 bits in blocks of 64: 28 weights, 1.72 MB",
        "8 bits in blocks of 64: 2 weights (1 shared), 590.09 kB",
        "5.64 bits per weight",
    ]
    assert told["files"][0].startswith("llm.mnn.weight: 2.37 MB, weights") and told["files"][-1] == "folder 2.48 MB"
    assert [line.split(":")[0] for line in told["input"]] == [
        "input_ids", "attention_mask", "position_ids", "logits_index",
    ]  # fmt: skip
    assert len(told["verified"]) == len({line.split(":")[0] for line in told["verified"]}) == 4
    assert told["verdict"][0].startswith("passed") and any(
        "conversations as the original" in row for row in told["chat"]
    )
    assert told["ends at"] == ["<|im_end|> (2)"]
    assert told["sampler"][0] == "config.json for 3.5.0, 3.6.0, 3.6.1: the likeliest token"
    assert told["state"] == ["all files are as they were written"]
    assert "graph" not in told and "graph" in rows(inspect(folder, "--graph").output)


def test_a_contract_alone_is_described_and_has_no_graph(folder, tmp_path):
    alone = shutil.copy(folder / "contract.json", tmp_path / "alone.json")
    told = rows(inspect(alone).output)
    assert told["model"] == rows(inspect(folder).output)["model"]
    assert told["state"] == ["the files of this contract are not beside it"]
    expect_code(inspect(alone, "--html", tmp_path / "x.html").output, "U910")
    assert inspect(folder / "contract.json").output == inspect(folder).output


def test_files_that_were_changed_are_named(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    with (copied / "llm.mnn").open("r+b") as file:
        file.seek(5000)
        file.write(b"xxxx")
    result = inspect(copied)
    assert result.exit_code == 1 and "error[C812]" in result.output
    data = json.loads(inspect(copied, "--json").output)
    assert [item["code"] for item in data["problems"]] == ["C812"]
    assert data["contract"]["storage"][0]["weights"] == 28 and data["graph"] is None


def test_the_page_of_a_directory_shows_how_each_weight_is_stored(folder, tmp_path):
    page = tmp_path / "page.html"
    assert inspect(folder, "--html", page).exit_code == 0
    data = json.loads(page.read_text().split('type="application/json">')[1].split("</script>")[0])
    convolutions = [item for item in data["items"] if item["details"].get("operator") == "mnn.Convolution"]
    assert len(convolutions) == 8
    assert all("4 bits in blocks of 64, rtn" in item["details"]["stored as"][0] for item in convolutions[:7])
    assert convolutions[0]["note"] == "i4[256, 256], blocks of 64"
    assert ["target", "portable: 3.4.0, 3.4.1, 3.5.0, 3.6.0, 3.6.1"] in data["facts"]


def test_a_directory_of_others_is_described_as_far_as_it_can_be(folder, tmp_path):
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / "contract.json").unlink()
    told = rows(inspect(foreign).output)
    assert told["contract"][0].startswith("none") and told["files"][-1] == "folder 2.48 MB"
    assert "block" in told
    (foreign / "llm.mnn").write_bytes(b"x" * 100)
    result = inspect(foreign)
    assert result.exit_code == 0 and rows(result.output)["graph"][0].startswith("cannot be read: B710, ")
    expect_code(inspect(foreign, "--graph").output, "B710")


def test_a_damaged_contract_has_a_code(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "contract.json").write_text("{}")
    expect_code(inspect(copied).output, "C801")
    (copied / "contract.json").write_text("{")
    expect_code(inspect(copied).output, "C800")


def test_an_onnx_compilation_is_described_with_its_graph(tmp_path):
    out = compiled(EXAMPLE, tmp_path / "onnx", "onnx-int4", to="onnx")
    told = rows(inspect(out, "--graph").output)
    assert told["state"] == ["all files are as they were written"] and "operators" in told


def test_many_storages_become_few_lines(folder):
    contract = read(folder)
    weights = [
        replace(item, storage=replace(item.storage, bits=2 + number % 5, block=16 << number % 4))
        for number, item in enumerate(contract.weights)
    ]
    assert len(grouped(weights, most=100)) == 20
    groups = grouped(weights, most=5)
    assert len(groups) == 5 and all("in blocks of 16, 32, 64, 128" in item.text for item in groups)
    few = grouped(weights, most=3)
    assert len(few) == 3 and few[-1].text == "3 other kinds"
    for found in (groups, few):
        assert sum(item.count for item in found) == len(weights)
        assert sum(item.bytes for item in found) == sum(item.bytes for item in weights if item.shared_with is None)
