"""Adapters merged into their base compute what peft computes beside it; what does not fit is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends.adapters.adapter import open_adapter
from frontends.adapters.merge import Tied, merge
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.facts.model_card import ModelCard
from ir.tensor.inline import InlineTensor
from tests.support.checkpoints import make_checkpoint, write_safetensors
from tests.support.quantized.checkpoints import plain_checkpoint, quantized_checkpoint

IDS = np.array([[1, 5, 300, 9, 9, 44, 2, 130]], np.int64)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {
        "plain": make_checkpoint(place / "plain", "llama", dtype="bf16"),
        "tied": make_checkpoint(place / "tied", "qwen2", dtype="f32", tie_word_embeddings=True),
    }


def trained(base: Path, folder: Path, targets: Any, seed: int = 0, **settings: Any) -> np.ndarray:
    """Write an adapter of peft with random numbers wherever training changes some; returns the logits that it gives."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        torch_model(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **settings)
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.copy_(
                    0.3 * noise if ".lora_" in name and "magnitude" not in name else parameter + 0.2 * noise
                )
    model.save_pretrained(folder)
    return logits_of(model)


def torch_model(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")


def logits_of(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(IDS)).logits.numpy()


def compiled_logits(base: Path, *lora: tuple[str, float]) -> np.ndarray:
    return next(iter(evaluate(load(base, lora=lora), {"input_ids": IDS}).values()))


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "two kinds of modules": ("plain", ["q_proj", "down_proj"], {}),
    "rank scaled, patterns": (
        "plain",
        "all-linear",
        {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
            "alpha_pattern": {"^model.layers.0.mlp.down_proj": 3, "mlp.up_proj": 24},
        },
    ),
    "lengths of rows": ("plain", ["q_proj", "up_proj"], {"use_dora": True}),
    "biases": ("tied", ["q_proj"], {"bias": "all"}),
    "biases of changed modules": ("tied", ["q_proj"], {"bias": "lora_only"}),
    "additions to biases": ("tied", ["q_proj"], {"lora_bias": True}),
    "embedding and head": ("plain", ["embed_tokens", "lm_head"], {}),
    "tied, embedding alone": ("tied", ["q_proj", "embed_tokens"], {}),
    "tied, head alone": ("tied", ["q_proj", "lm_head"], {}),
    "tied, both": ("tied", ["lm_head", "embed_tokens"], {}),
    "tied together": ("tied", ["embed_tokens"], {"ensure_weight_tying": True}),
    "saved whole": ("tied", ["q_proj"], {"modules_to_save": ["lm_head", "norm"]}),
    "saved whole, tied together": (
        "tied", ["q_proj"], {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "rows of tokens": ("tied", ["q_proj"], {"trainable_token_indices": [99, 2]}),
    "rows of tokens by module": ("plain", ["q_proj"], {"trainable_token_indices": {"embed_tokens": [5, 9]}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_peft(case: str, bases: dict[str, Path], tmp_path: Path) -> None:
    name, targets, settings = CASES[case]
    wanted = trained(bases[name], tmp_path, targets, **settings)
    found = compiled_logits(bases[name], (str(tmp_path), 1.0))
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-5 * scale
    assert np.abs(compiled_logits(bases[name]) - wanted).max() > 0.05 * scale


@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_the_merged_model(bases: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    trained(bases["plain"], tmp_path, "all-linear")
    merged = PeftModel.from_pretrained(torch_model(bases["plain"]), tmp_path).merge_and_unload()
    wanted = logits_of(merged)
    assert np.abs(compiled_logits(bases["plain"], (str(tmp_path), 1.0)) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_are_added_each_times_its_weight(bases: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    weights = {"first": 0.5, "second": -1.25}
    for seed, name in enumerate(weights):
        trained(bases["plain"], tmp_path / name, ["q_proj", "gate_proj"], seed)
    model = PeftModel.from_pretrained(torch_model(bases["plain"]), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type="cat")
    model.set_adapter("sum")
    wanted = logits_of(model)
    lora = [(str(tmp_path / name), weight) for name, weight in weights.items()]
    assert np.abs(compiled_logits(bases["plain"], *lora) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("case", ["ct-int4-groups", "fp8-blocks"])
def test_a_quantized_base_is_decoded_first(case: str, tmp_path: Path) -> None:
    """The same logits as over the checkpoint of its decoded weights."""
    made = quantized_checkpoint(tmp_path / "base", case)
    plain = plain_checkpoint(tmp_path / "plain", made.plain)
    write_adapter(tmp_path / "own", {"model.layers.1.self_attn.q_proj": (128, 128)})
    lora = (str(tmp_path / "own"), 0.5)
    wanted, without = compiled_logits(plain, lora), compiled_logits(plain)
    assert np.abs(compiled_logits(made.folder, lora) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(wanted - without).max() > 0.01 * np.abs(wanted).max()


def test_the_card_tells_of_adapters_and_of_another_base(bases: dict[str, Path], tmp_path: Path) -> None:
    write_adapter(tmp_path / "mine", {"model.layers.0.self_attn.q_proj": (64, 64)}, base="Org/Other-7B")
    card = ModelCard.of(load(bases["plain"], lora=[(str(tmp_path / "mine"), 0.5)]))
    (adapter,) = card.adapters
    assert (adapter.name, adapter.weight, adapter.tensors) == (str(tmp_path / "mine"), 0.5, 1)
    assert set(adapter.digests) == {"adapter_config.json", "adapter_model.safetensors"}
    assert [item.code for item in card.warnings] == ["F593"]
    assert ModelCard.from_data(card.to_data()) == card
    write_adapter(tmp_path / "own", {"model.layers.0.self_attn.q_proj": (64, 64)}, base="Org/Plain")
    assert not ModelCard.of(load(bases["plain"], lora=[(str(tmp_path / "own"), 1.0)])).warnings


def test_a_tie_that_is_cut_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    write_adapter(tmp_path, {"lm_head": (320, 64)}, base="tied")
    card = ModelCard.of(load(bases["tied"], lora=[(str(tmp_path), 1.0)]))
    assert [(item.code, item.severity) for item in card.warnings] == [("F595", "note")]
    assert not card.tied


# ---- names and layouts ----


def write_adapter(
    folder: Path, modules: dict[str, tuple[int, int]], *, base: str | None = None, **settings: Any
) -> dict[str, np.ndarray]:
    """Write an adapter of rank 2 for modules with weights of these shapes ``[out, in]``; returns its tensors."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {}
    for module, (outputs, inputs) in modules.items():
        path = f"base_model.model.{module}"
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((2, inputs), np.float32)
        tensors[f"{path}.lora_B.weight"] = rng.standard_normal((outputs, 2), np.float32)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    record = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(record))
    return tensors


def matrices(**shapes: tuple[int, ...]) -> dict[str, InlineTensor]:
    rng = np.random.default_rng(1)
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: InlineTensor(rng.standard_normal(shape, np.float32)) for name, shape in named.items()}


def test_a_weight_stored_as_inputs_by_outputs(tmp_path: Path) -> None:
    base = matrices(h__0__attn__c_attn__weight=(4, 12))
    parts = write_adapter(tmp_path, {"transformer.h.0.attn.c_attn": (12, 4)}, fan_in_fan_out=True)
    found = merge(base, [open_adapter(str(tmp_path))], None, "base").tensors["h.0.attn.c_attn.weight"].load()
    a, b = parts.values()
    wanted = base["h.0.attn.c_attn.weight"].load() + 3 * (b @ a).T
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_names_with_another_prefix_are_found_and_towers_left_alone(tmp_path: Path) -> None:
    base = matrices(
        language_model__model__layers__0__self_attn__q_proj__weight=(4, 4),
        vision_tower__layers__0__self_attn__q_proj__weight=(4, 4),
    )
    write_adapter(tmp_path, {"model.language_model.layers.0.self_attn.q_proj": (4, 4)})
    found = merge(base, [open_adapter(str(tmp_path))], None, "base")
    changed = [name for name in base if found.tensors[name] is not base[name]]
    assert changed == ["language_model.model.layers.0.self_attn.q_proj.weight"]


def test_nothing_is_read_but_what_is_asked_for(tmp_path: Path) -> None:
    base = matrices(layers__0__q_proj__weight=(300, 4))
    write_adapter(tmp_path, {"layers.0.q_proj": (300, 4)})
    merged = merge(base, [open_adapter(str(tmp_path), 0.25)], None, "base").tensors["layers.0.q_proj.weight"]
    whole = merged.load()
    for start, stop in ((0, 1), (63, 65), (100, 300), (299, 300), (7, 7)):
        assert np.array_equal(merged.rows(start, stop), whole[start:stop])


# ---- refused ----


def refused(
    folder: Path, code: str, text: str, base: dict[str, InlineTensor] | None = None, weight: float = 1.0
) -> str:
    with pytest.raises(LadingError) as caught:
        merge(base or {}, [open_adapter(str(folder), weight)], Tied("embed.weight", "lm_head.weight"), "base")
    assert caught.value.code == code, str(caught.value)
    assert re.search(text, str(caught.value)), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"peft_type": "IA3"}, "of kind 'IA3', not LORA"),
        ({"init_lora_weights": "pissa_niter_16"}, "changing the base"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layers of the base are repeated"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "no linear module"),
        ({"alora_invocation_tokens": [1, 2]}, "only after certain tokens"),
        ({"use_new_thing": True}, "nobody knows what 'use_new_thing'"),
    ],
)
def test_other_kinds_of_adapters(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, {"layers.0.q_proj": (4, 4)}, **settings)
    refused(tmp_path, "F591", text)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"r": 0}, "a rank from 1"),
        ({"lora_alpha": "8"}, "a number up to"),
        ({"use_rslora": 1}, "true or false"),
        ({"rank_pattern": {"(q+)+": 4}}, "without repeated groups"),
        ({"alpha_pattern": {"(q": 4}}, "without repeated groups"),
        ({"rank_pattern": [2]}, "an object"),
        ({"trainable_token_indices": ["a"]}, "a list of token ids"),
        ({"base_model_name_or_path": 3}, "a string"),
    ],
)
def test_malformed_configurations(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, {"layers.0.q_proj": (4, 4)})
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**record, **settings}))
    refused(tmp_path, "F590", text)


def test_adapters_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none", "F590", "no such adapter folder")
    refused(tmp_path, "F590", "no adapter can be read here")
    (tmp_path / "adapter_config.json").write_text("[")
    refused(tmp_path, "F590", "not valid JSON")
    refused(tmp_path / "adapter_config.json", "F590", "an adapter is a folder")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path, "F590", "has no adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    assert "pickled adapters are never opened" in refused(tmp_path, "F590", "only adapter_model.bin")


def test_tensors_that_fit_nothing(tmp_path: Path) -> None:
    base = matrices(layers__0__q_proj__weight=(4, 4))
    write_adapter(tmp_path, {"layers.0.q_prj": (4, 4), "layers.1.q_proj": (4, 4)}, base="Org/Base")
    text = refused(tmp_path, "F592", "no tensor for module layers.0.q_prj", base)
    assert "layers.1.q_proj" in text and "trained on Org/Base; the base given is base" in text
    write_adapter(tmp_path, {"layers.0.q_proj": (4, 6)})
    refused(tmp_path, "F592", r"has shape \[4, 6\], that of the base \[4, 4\]", base)
    write_adapter(tmp_path, {f"layers.{number}.x": (4, 4) for number in range(11)})
    refused(tmp_path, "F592", "3 more changes", base)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"x.lora_A.weight": (2, 4)}, "one of its two factors is missing"),
        ({"x.lora_A.weight": (3, 4), "x.lora_B.weight": (4, 3)}, "are not of rank 2"),
        ({"x.lora_A.weight": (2, 4), "x.lora_B.weight": (4, 2), "x.lora_magnitude_vector": (4,)}, "without use_dora"),
        ({"x.lora_magnitude_vector": (4,)}, "but no factors"),
        ({"x.lora_E": (4,)}, "no part of a low-rank adapter"),
        ({"x.weight": (5, 4)}, "has shape"),
        ({"x.bias": (4,)}, "has no bias for module x"),
        ({}, "holds no tensor"),
    ],
)
def test_tensors_that_do_not_belong_together(names: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, {})
    write_safetensors(
        tmp_path / "adapter_model.safetensors", {name: np.ones(shape, np.float32) for name, shape in names.items()}
    )
    refused(tmp_path, "F592", text, matrices(x__weight=(4, 4)))


def test_a_weight_of_what_is_no_sum(tmp_path: Path) -> None:
    write_adapter(tmp_path, {})
    write_safetensors(tmp_path / "adapter_model.safetensors", {"x.weight": np.ones((4, 4), np.float32)})
    refused(
        tmp_path,
        "F591",
        "a weight of 0.5 means nothing for module x: it is stored whole",
        matrices(x__weight=(4, 4)),
        0.5,
    )
