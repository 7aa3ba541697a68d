"""Quantized checkpoints through the whole compiler: codes kept bit for bit, logits those of the decoded weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from backends.mnn.read.decoded_weights import MnnModel
from frontends.containers.formats import open_weights
from lading import read_contract
from tests.support.families.checkpoints import make
from tests.support.quantized.checkpoints import (
    CASES,
    mxfp4_experts,
    plain_checkpoint,
    quantize,
    quantized_checkpoint,
    rewrite,
)
from tests.support.runs import compiled, logits_of, pieces, run_actions, torch_logits, torch_model
from tools.compile.job import Request, compile_model
from tools.compile.plan import plan_model

BAR = 1e-3
"""Largest allowed difference of a logit from torch with the decoded weights."""
RELEASE = "3.6.1"
FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.mark.mnn
@pytest.mark.parametrize("case", CASES)
def test_logits_and_codes(case: str, tmp_path: Path) -> None:
    family = FAMILIES[list(CASES).index(case) % len(FAMILIES)]
    made = quantized_checkpoint(tmp_path / "quantized", case, family, num_hidden_layers=1)
    out = compiled(made.folder, tmp_path / "out", "fp32")
    contract, read = read_contract(out), MnnModel(out)
    for entry in contract.weights:
        name = entry.name
        if ".layers." not in name:
            continue
        stored = next(item for key, item in read.linears.items() if key.startswith(f"{name.removesuffix('.weight')}."))
        if CASES[case].kept:
            assert (entry.storage.method, entry.storage.bits) == ("stored", CASES[case].bits)
            np.testing.assert_array_equal(read.codes(stored.name), made.codes[name])
        elif entry.storage.method != "stored":
            assert entry.from_bits == (8 if "fp8" in case or case == "ct-mixed" else 4)
        np.testing.assert_allclose(read.decode(stored.name), made.plain[name], rtol=0, atol=2e-6)
    ids = np.random.default_rng(5).integers(3, 320, 24)
    wanted = torch_logits(
        torch_model(plain_checkpoint(tmp_path / "plain", made.plain, family, num_hidden_layers=1)), ids
    )
    found = logits_of(run_actions(out, RELEASE, [pieces(ids)])[0])
    assert np.abs(wanted).max() > 5
    assert np.abs(found - wanted).max() < BAR


@pytest.mark.mnn
@pytest.mark.parametrize(("case", "kept"), [("gptq-4-zeros", True), ("fp8-blocks", False), ("bnb-nf4", False)])
def test_the_contract_says_how_each_weight_came(case: str, kept: bool, tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path / "quantized", case)
    result = compile_model(Request(str(made.folder), tmp_path / "out", "default", verify="quick"))
    told = [item for item in result.warnings if item.code == "Q468"]
    assert len(told) == (not kept)
    for entry in read_contract(tmp_path / "out").weights:
        if ".layers." in entry.name:
            assert entry.error is not None
            assert (entry.storage.method, entry.from_bits) == (
                ("stored", None) if kept else ("rtn", 8 if "fp8" in case else 4)
            )
            assert (entry.error.max_abs == 0) == kept


@pytest.mark.mnn
def test_codes_are_decoded_and_stored_anew_on_request(tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path / "quantized", "gptq-8", num_hidden_layers=1)
    out = compiled(made.folder, tmp_path / "out", "default{requantize=[*.down_proj*] bits=4}")
    found = {
        entry.name: (entry.storage.method, entry.storage.bits, entry.from_bits) for entry in read_contract(out).weights
    }
    assert found["model.layers.0.mlp.down_proj.weight"] == ("rtn", 4, 8)
    assert found["model.layers.0.mlp.up_proj.weight"] == ("stored", 8, None)


@pytest.mark.mnn
@pytest.mark.parametrize(("family", "how"), [("phi3_plain", "gptq-4"), ("qwen3_moe_hub", "awq"), ("gpt_oss", "mxfp4")])
def test_fused_matrices_experts_and_stacks_of_experts(family: str, how: str, tmp_path: Path) -> None:
    source = tmp_path / "quantized"
    make(source, family, tokenizer=True)
    shutil.copytree(source, tmp_path / "plain")
    made = mxfp4_experts(source) if how == "mxfp4" else quantize(source, CASES[how])
    rewrite(tmp_path / "plain", {name: tensor.astype(np.float32) for name, tensor in made.plain.items()})
    ids = np.random.default_rng(5).integers(3, 300, 24)
    wanted = torch_logits(torch_model(tmp_path / "plain"), ids)
    out = compiled(source, tmp_path / "out", "fp32", target=RELEASE)
    came = sum(made.plain[name].size for name in open_weights(source).encodings)
    kept = sum(math.prod(entry.shape) for entry in read_contract(out).weights if entry.storage.method == "stored")
    assert came == kept > 0
    found = logits_of(run_actions(out, RELEASE, [pieces(ids)])[0])
    assert np.abs(wanted).max() > 5
    assert np.abs(found - wanted).max() < BAR


@pytest.mark.mnn
def test_the_reference_is_given_the_decoded_weights(tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path / "quantized", "fp8-blocks", num_hidden_layers=1)
    result = compile_model(Request(str(made.folder), tmp_path / "out", "fp32", verify="full"))
    assert result.verdict is not None and "on the decoded weights" in result.verdict.text


@pytest.mark.mnn
@pytest.mark.parametrize("case", ["gptq-4", "ct-mixed", "ct-nvfp4"])
def test_a_plan_knows_what_is_carried_over(case: str, tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path / "quantized", case, num_hidden_layers=1)
    planned = plan_model(Request(str(made.folder), tmp_path / "none", "default")).planned
    assert planned is not None and planned.files["llm.mnn.weight"].exact
    out = compiled(made.folder, tmp_path / "out", "default")
    assert planned.files["llm.mnn.weight"].bytes == (out / "llm.mnn.weight").stat().st_size
