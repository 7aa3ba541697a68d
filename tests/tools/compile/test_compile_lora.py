"""``compile --lora``: the command, what it prints, and what the contract keeps of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.contract import Contract, read
from ir.base.whole_files import sha256_of
from tests.support.checkpoints import make_checkpoint, write_safetensors
from tools.compile.advice import command_to_try
from tools.compile.command import main
from tools.compile.job import Request


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "poet"
    folder.mkdir()
    rng = np.random.default_rng(0)
    path = "base_model.model.model.layers.1.mlp.up_proj"
    tensors = {f"{path}.lora_A.weight": (2, 64), f"{path}.lora_B.weight": (96, 2)}
    write_safetensors(
        folder / "adapter_model.safetensors",
        {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in tensors.items()},
    )
    record = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base", "llama")


@pytest.mark.mnn
def test_adapters_stand_in_the_contract(base: Path, adapter: Path, tmp_path: Path) -> None:
    arguments = [
        str(base),
        "--lora",
        f"{adapter}:0.5",
        "-o",
        str(tmp_path / "out"),
        "--passes",
        "fp32",
        "--verify",
        "none",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "poet times 0.5, rank 2, in 1 tensors" in " ".join(done.stdout.split())
    contract = read(tmp_path / "out")
    (found,) = contract.model.adapters
    assert (found.name, found.weight, found.base, found.rank, found.tensors) == ("poet", 0.5, "org/base", 2, 1)
    assert {item.file: item.digest for item in found.files} == {
        name: sha256_of(adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert "adapters" in contract.model.to_json()
    without = read(_compiled(base, tmp_path / "without"))
    assert without.model.adapters == ()
    assert _differing(tmp_path / "out", tmp_path / "without", contract) == {"model.layers.1.mlp.up_proj.weight"}


def _differing(one: Path, other: Path, contract: Contract) -> set[str]:
    """Names of the weights whose bytes differ in two folders of one layout."""
    files = [(folder / "llm.mnn.weight").read_bytes() for folder in (one, other)]
    starts = sorted((item.offset, item.name) for item in contract.weights if item.file == "llm.mnn.weight")
    ends = [start for start, _ in starts[1:]] + [len(files[0])]
    pairs = ((name, start, end) for (start, name), end in zip(starts, ends, strict=True))
    return {name for name, start, end in pairs if files[0][start:end] != files[1][start:end]}


def _compiled(base: Path, out: Path) -> Path:
    assert CliRunner().invoke(main, [str(base), "-o", str(out), "--passes", "fp32", "--verify", "none"]).exit_code == 0
    return out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lora", "x:half"], "the weight of the adapter x is 'half', which is no number"),
        (["--lora", "x:inf"], "is 'inf'"),
        (["--lora", "x", "--via", "torch"], "--via torch has none by name"),
    ],
)
def test_weights_and_models_that_do_not_go(base: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, [str(base), "-o", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1 and "error[U956]" in done.stderr
    assert says in " ".join(done.stderr.split())


def test_a_model_without_named_tensors(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "g.lading").write_text("")
    done = CliRunner().invoke(main, [str(tmp_path / "g.lading"), "--lora", str(adapter)])
    assert "error[U956]" in done.stderr and "of the format 'lading' has none" in " ".join(done.stderr.split())


def test_advice_keeps_adapters() -> None:
    from ir.base.diag import Diagnostic

    request = Request("base", Path("out"), "default", lora=("a", "b:2"))
    assert command_to_try(request, [Diagnostic("V701", "x")]).endswith("--lora a --lora b:2")
