"""GGUF files through the whole compiler: codes kept bit for bit where MNN has a form for them, logits those of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from backends.mnn.read.decoded_weights import MnnModel
from lading import read_contract
from tests.support.checkpoints import make_checkpoint
from tests.support.gguf_files import gguf_of, in_checkpoint, random_blocks
from tests.support.runs import compiled, logits_of, pieces, run_actions, torch_logits, torch_model
from tools.compile.job import Request
from tools.compile.plan import plan_model

BAR = 1e-3
"""Largest allowed difference of a logit from torch with the decoded weights."""
RELEASE = "3.6.1"
KINDS = {
    "F16": None, "BF16": None, "Q4_0": (4, 32), "Q4_1": (4, 32), "Q5_0": (5, 32), "Q5_1": (5, 32), "Q8_0": (8, 32),
    "Q2_K": (2, 16), "Q3_K": (3, 16), "Q4_K": (4, 32), "Q5_K": (5, 32), "Q6_K": (6, 16),
}  # fmt: skip
"""Bits and block that each type is stored in; None for floats."""
FAMILIES = ("llama", "qwen2", "qwen3")
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def codes_of(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Signed codes of numbers that the package decoded from blocks of 32 of a type, which it makes of them once more."""
    raw = quants.quantize(np.ascontiguousarray(numbers), getattr(Kind, kind)).reshape(len(numbers), -1)
    blocks = raw.reshape(len(numbers), numbers.shape[1] // 32, -1)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float64)
    shifted = numbers.reshape(*blocks.shape[:2], 32).astype(np.float64)
    if kind.endswith("_1"):
        shifted = shifted - blocks[..., 2:4].copy().view(np.float16).astype(np.float64)
    codes = np.rint(np.divide(shifted, scale, out=np.zeros_like(shifted), where=scale != 0))
    return codes.reshape(numbers.shape) - (1 << (int(kind[1]) - 1) if kind.endswith("_1") else 0)


@pytest.mark.mnn
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_codes(kind: str, tmp_path: Path) -> None:
    family = FAMILIES[list(KINDS).index(kind) % len(FAMILIES)]
    folder = make_checkpoint(tmp_path / "model", family, dtype="f32", num_hidden_layers=1, **SHAPE)
    plain = in_checkpoint(folder, gguf_of(folder, tmp_path / "model.gguf", kind))
    out = compiled(tmp_path / "model.gguf", tmp_path / "out", "fp32", tokenizer="none")
    read, seen = MnnModel(out), 0
    for entry in read_contract(out).weights:
        if ".layers." not in entry.name:
            continue
        module = entry.name.removesuffix(".weight")
        name = next(item.name for key, item in read.linears.items() if key.startswith(f"{module}."))
        if KINDS[kind] is not None:
            assert (entry.storage.method, entry.storage.bits, entry.storage.block) == ("stored", *KINDS[kind])
            assert entry.error is None or entry.error.max_abs < 1e-6
            if kind in ("Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1"):
                np.testing.assert_array_equal(read.codes(name), codes_of(plain[entry.name], kind))
        np.testing.assert_allclose(read.decode(name), plain[entry.name], rtol=0, atol=2e-6)
        seen += 1
    assert seen == 7
    reference = torch_model(folder)
    missing = reference.load_state_dict({name: torch.from_numpy(array) for name, array in plain.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    ids = np.random.default_rng(5).integers(3, 320, 24)
    wanted = torch_logits(reference, ids)
    found = logits_of(run_actions(out, RELEASE, [pieces(ids)])[0])
    assert np.abs(wanted).max() > 5
    assert np.abs(found - wanted).max() < BAR


@pytest.mark.mnn
def test_the_default_pipeline_keeps_what_came_quantized(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", dtype="f32", num_hidden_layers=1, **SHAPE)
    gguf_of(folder, tmp_path / "model.gguf", "Q4_0")
    found = {
        entry.name: entry
        for entry in read_contract(
            compiled(tmp_path / "model.gguf", tmp_path / "out", "default", tokenizer="none")
        ).weights
    }
    for entry in found.values():
        if ".layers." in entry.name:
            assert (entry.storage.method, entry.storage.bits, entry.storage.symmetric) == ("stored", 4, True)
    out = compiled(
        tmp_path / "model.gguf", tmp_path / "anew", "default{requantize=[*.down_proj*] bits=8}", tokenizer="none"
    )
    anew = {
        entry.name: (entry.storage.method, entry.storage.bits, entry.from_bits) for entry in read_contract(out).weights
    }
    assert anew["model.layers.0.mlp.down_proj.weight"] == ("rtn", 8, 4)
    assert anew["model.layers.0.mlp.up_proj.weight"] == ("stored", 4, None)


def test_made_up_blocks_have_numbers_of_a_usual_size() -> None:
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        numbers = quants.dequantize(random_blocks((8, 512), kind), getattr(Kind, kind))
        assert 0.02 < numbers.std() < 0.5, kind


@pytest.mark.mnn
def test_files_have_the_planned_sizes(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", dtype="f32", num_hidden_layers=1, **SHAPE)
    gguf_of(folder, tmp_path / "model.gguf", "Q5_1")
    plan = plan_model(Request(str(tmp_path / "model.gguf"), Path(), "default", tokenizer="none"))
    assert plan.planned is not None
    out = compiled(tmp_path / "model.gguf", tmp_path / "out", "default", tokenizer="none")
    written = {name: (out / name).stat().st_size for name in plan.planned.files}
    assert {name: item.bytes for name, item in plan.planned.files.items()} == written
