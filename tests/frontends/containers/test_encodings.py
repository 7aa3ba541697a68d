"""Quantized checkpoints: every encoding decodes to the numbers it stands for, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frontends.checkpoint.load import load
from frontends.containers.encodings.table import ENCODINGS
from frontends.containers.formats import open_weights
from ir.base.diag import LadingError
from ir.facts.model_card import ModelCard
from ir.tensor.rearranged import reshaped, row_slice
from tests.support.checkpoints import make_checkpoint, write_safetensors
from tests.support.quantized.checkpoints import CASES, edit_config, quantized_checkpoint, read_tensors, rewrite
from tests.support.quantized.encodings import mxfp4_stack

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("case", CASES)
def test_decoded_tensors_are_those_of_the_plain_checkpoint(case: str, tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path, case)
    found = open_weights(tmp_path).tensors
    assert set(found) == set(made.plain)
    for name, wanted in made.plain.items():
        tensor = found[name]
        assert tensor.shape == wanted.shape, name
        numbers = tensor.load().astype(np.float32)
        np.testing.assert_array_equal(numbers, wanted.astype(np.float32))
        for start, stop in ((0, 1), (3, 17), (31, 33), (60, 64)):
            np.testing.assert_array_equal(tensor.rows(start, stop), tensor.load()[start:stop])


def test_rows_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ir.tensor import files

    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    for case in ("gptq-4", "awq", "ct-int4-groups", "fp8-blocks", "bnb-nf4-nested"):
        quantized_checkpoint(tmp_path / case, case, num_hidden_layers=1, **sizes)
        tensor = open_weights(tmp_path / case).tensors[f"{UP}.weight"]
        read, whole = [], files.FILES.read
        monkeypatch.setattr(
            files.FILES,
            "read",
            lambda path, at, count, whole=whole, read=read: read.append(count) or whole(path, at, count),
        )
        tensor.rows(128, 256)
        monkeypatch.undo()
        assert max(read) <= 512 * 512, case
        assert case in ("gptq-4", "awq") or sum(read) <= 128 * 512 * 1.2, case


def test_a_stack_of_experts_in_four_bit_floats(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).normal(0, 1, (3, 24, 64)).astype(np.float32)
    blocks, scales, numbers = mxfp4_stack(stack)
    make_checkpoint(tmp_path, "llama")
    write_safetensors(
        tmp_path / "model.safetensors", {"x.gate_up_proj_blocks": blocks, "x.gate_up_proj_scales": scales}
    )
    tensor = open_weights(tmp_path).tensors["x.gate_up_proj"]
    np.testing.assert_array_equal(tensor.load(), numbers.swapaxes(1, 2))
    for index in range(3):
        expert = reshaped(row_slice(tensor, index, index + 1), (64, 24))
        np.testing.assert_array_equal(expert.load(), numbers[index].T)
        flat = row_slice(reshaped(tensor, (192, 24)), 64 * index, 64 * index + 64)
        np.testing.assert_array_equal(flat.load(), numbers[index].T)


# ---- recognised by configuration or by tensors ----


def notes(folder: Path) -> list[str]:
    return [item.code for item in ModelCard.of(load(folder)).warnings]


def refused(folder: Path, code: str, *says: str) -> LadingError:
    with pytest.raises(LadingError) as caught:
        load(folder)
    assert [item.code for item in caught.value.diagnostics] == [code]
    for part in says:
        assert part in str(caught.value)
    return caught.value


@pytest.mark.parametrize("case", CASES)
def test_the_tensors_are_enough(case: str, tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path, case)
    edit_config(tmp_path, quantization_config=...)
    if CASES[case].config is not None and case == "gptq-4-newer":
        # Without a word, asymmetric zeros are taken for those of the usual form.
        found = open_weights(tmp_path).tensors[f"{UP}.weight"].load()
        assert np.abs(found - made.plain[f"{UP}.weight"]).max() > 0
        return
    weights = open_weights(tmp_path)
    assert [item.code for item in weights.notes] == ["F580"]
    found = weights.tensors[f"{UP}.weight"].load()
    np.testing.assert_array_equal(found, made.plain[f"{UP}.weight"])


def test_a_gptq_checkpoint_without_a_word_is_told_in_one_note(tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, "gptq-without-configuration")
    (note,) = [item for item in ModelCard.of(load(tmp_path)).warnings if item.code == "F580"]
    assert "14 weights are quantized (GPTQ, 4 bits in groups of 32)" in note.message


def test_a_configuration_in_a_file_of_its_own(tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, "gptq-without-configuration")
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "desc_act": false}')
    assert "F580" not in notes(tmp_path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 8, "group_size": 32}')
    refused(tmp_path, "F577", "8 bits", "packed in 4 bits", "quantize_config.json")


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes", "hqq"])
def test_an_entry_left_over_above_plain_weights_is_told(method: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen2", quantization_config={"quant_method": method, "bits": 4})
    assert notes(tmp_path) == ["F579"]


GPTQ = {"quant_method": "gptq", "checkpoint_format": "gptq"}
CONTRADICTIONS = {
    "another method": ("awq", {"quant_method": "gptq"}, "quant_method 'gptq'"),
    "another width": ("gptq-4", {"bits": 8}, "8 bits"),
    "another group": ("gptq-4", {"group_size": 64}, "groups of 64"),
    "another group of AWQ": ("awq", {"group_size": 64}, "groups of 64"),
    "zeros less 1": ("gptq-4", {"checkpoint_format": "gptq_v2"}, "stored less 1"),
    "zeros as they are": ("gptq-newer-without-configuration", {**GPTQ, "sym": True}, "as they are"),
    "width as text": ("gptq-4", {"bits": "four"}, "not a whole number"),
    "another width of words": ("ct-int4-groups", {"config_groups": {"g": {"weights": {"num_bits": 8}}}}, "8 bits"),
    "a block of one size": ("fp8-blocks", {"weight_block_size": [128]}, "two sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_tensors(name: str, tmp_path: Path) -> None:
    case, entries, says = CONTRADICTIONS[name]
    quantized_checkpoint(tmp_path, case)
    edit_config(tmp_path, quantization_config={**(CASES[case].config or {}), **entries})
    refused(tmp_path, "F577", says)


@pytest.mark.parametrize(
    ("case", "entries", "code"),
    [
        ("gptq-4", {"checkpoint_format": "marlin"}, "F535"),
        ("awq", {"version": "gemv"}, "F535"),
        ("ct-int8-rows", {"quant_method": "hqq"}, "F535"),
        ("ct-int4-groups", {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "F581"),
    ],
)
def test_what_is_not_read_is_refused_by_name(case: str, entries: dict, code: str, tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, case)
    edit_config(tmp_path, quantization_config={**(CASES[case].config or {}), **entries})
    refused(tmp_path, code, next(iter(entries)) if code == "F581" else str(next(iter(entries.values()))))


def _without(folder: Path, ending: str) -> None:
    from frontends.containers.safetensors import read_file

    stored = read_file(folder / "model.safetensors").tensors
    write_safetensors(
        folder / "model.safetensors", {name: item.load() for name, item in stored.items() if not name.endswith(ending)}
    )


@pytest.mark.parametrize(
    ("case", "ending"),
    [
        ("gptq-4", "q_proj.qzeros"),
        ("awq", "q_proj.qzeros"),
        ("ct-int4-groups", "q_proj.weight_scale"),
        ("fp8-blocks", "q_proj.weight_scale_inv"),
        ("bnb-nf4", "q_proj.weight.absmax"),
        ("bnb-int8", "q_proj.weight"),
        ("ct-nvfp4", "q_proj.weight_global_scale"),
    ],
)
def test_a_weight_without_one_of_its_tensors(case: str, ending: str, tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, case)
    _without(tmp_path, ending)
    refused(tmp_path, "F578", "q_proj")


def test_tensors_that_the_model_does_not_use_are_noticed(tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, "gptq-4", num_hidden_layers=3)
    edit_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(LadingError) as caught:
        load(tmp_path)
    assert {item.code for item in caught.value.diagnostics} == {"F551"}
    assert "model.layers.2.mlp.up_proj.weight" in str(caught.value)


def test_an_index_of_zeros_stands_for_groups_in_order(tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path, "gptq-4")
    tensors = read_tensors(tmp_path)
    rewrite(tmp_path, {**tensors, f"{UP}.g_idx": np.zeros(128, np.int32)})
    np.testing.assert_array_equal(open_weights(tmp_path).tensors[f"{UP}.weight"].load(), made.plain[f"{UP}.weight"])
    rewrite(tmp_path, {**tensors, f"{UP}.g_idx": np.full(128, 9, np.int32)})
    with pytest.raises(LadingError, match="groups 9 to 9 are not among 4"):
        open_weights(tmp_path).tensors[f"{UP}.weight"].load()


def test_zero_biases_that_a_tool_adds_are_left_out(tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, "gptq-4")
    tensors = read_tensors(tmp_path)
    rewrite(tmp_path, {**tensors, f"{UP}.bias": np.zeros(192, np.float16)})
    assert not any("bias" in name for name in load(tmp_path).consts)
    rewrite(tmp_path, {**tensors, f"{UP}.bias": np.full(192, 0.5, np.float16)})
    refused(tmp_path, "F551", f"{UP}.bias")


def test_scales_of_a_cache_and_of_activations_are_left_out(tmp_path: Path) -> None:
    quantized_checkpoint(tmp_path, "ct-int4-groups")
    more = {f"model.layers.0.self_attn.{name}": np.ones(1, np.float32) for name in ("k_scale", "q_proj.input_scale")}
    rewrite(tmp_path, {**read_tensors(tmp_path), **more})
    load(tmp_path)
    more = {"model.layers.0.self_attn.q_proj.unknown_scale": np.ones(1, np.float32)}
    rewrite(tmp_path, {**read_tensors(tmp_path), **more})
    refused(tmp_path, "F551", "unknown_scale")


def test_every_encoding_is_tried_here() -> None:
    assert {encoding.name for encoding in ENCODINGS} == {
        "FP8", "GPTQ", "AWQ", "NVFP4", "MXFP4", "compressed-tensors", "bitsandbytes, 4 bits", "bitsandbytes, 8 bits"
    }  # fmt: skip
