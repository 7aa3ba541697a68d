"""What keys of config.json weigh that nobody reads, and what is done about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from frontends.checkpoint.config_file import resolve
from frontends.checkpoint.config_keys import ELSEWHERE, weigh
from frontends.configuration.class_defaults import class_defaults
from frontends.families.table import FAMILIES
from ir.base.diag import LadingError
from tests.support.checkpoints import BASE, make_checkpoint, reference_logits
from tests.support.checkpoints import FAMILIES as MADE


def small(family: str = "qwen2", **keys: Any) -> dict[str, Any]:
    """A small configuration with further keys."""
    return {"model_type": family, **BASE, **keys}


def refused(**keys: Any) -> LadingError:
    """The error of a configuration that is refused for keys that change the numbers."""
    with pytest.raises(LadingError) as caught:
        resolve(small(**keys))
    assert {item.code for item in caught.value.diagnostics} == {"F561"}
    return caught.value


@pytest.mark.parametrize("family", [name for name in FAMILIES if class_defaults(name).defaults])
def test_no_key_of_the_reference_implementation_is_unknown(family: str) -> None:
    from transformers import AutoConfig

    known = class_defaults(family)
    base = {key: value for key, value in BASE.items() if {key, known.aliases.get(key)} & set(known.defaults)}
    raw = AutoConfig.for_model(family, **base, architectures=["SomeForCausalLM"]).to_dict()
    if "rotary_dim" in raw:
        raw["rotary_dim"] = 8
    if raw.get("num_experts_per_tok", 1) is None:
        raw["num_experts_per_tok"] = 2
    found = resolve(raw)
    assert "unknown" not in found.unread and found.warnings == ()
    assert {"initializer_range", "init_std"} & set(found.unread["training"]) and "use_cache" in found.unread[
        "bookkeeping"
    ]


@pytest.mark.parametrize("family", MADE)
def test_a_bidirectional_model_is_refused(family: str, tmp_path: Any) -> None:
    """The reference implementation computes another model then, by as much as the logits are large."""
    ids = np.arange(3, 20)[None]
    causal = reference_logits(make_checkpoint(tmp_path / "causal", family, is_causal=True), ids)
    other = reference_logits(make_checkpoint(tmp_path / "other", family, is_causal=False), ids)
    assert np.abs(causal - other)[0, :-1].max() > 1
    with pytest.raises(LadingError, match="is_causal is False") as caught:
        resolve(small(family, is_causal=False))
    assert caught.value.code == "F561"
    found = resolve(small(family, is_causal=True))
    assert found.warnings == () and found.unread == {"bookkeeping": ("bos_token_id", "eos_token_id", "is_causal")}


def test_all_keys_that_change_the_numbers_are_named_at_once() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}
    error = refused(is_causal=False, use_bidirectional_attention=True, rope_scaling=rope)
    assert [item.where.partition(":")[2] for item in error.diagnostics] == [
        "is_causal",
        "use_bidirectional_attention",
        "rope_scaling.alpha",
    ]
    assert "remove rope_scaling.alpha" in error.diagnostics[2].hint


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_stretch_that_no_rope_here_has_is_refused(key: str) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert f"{key}.alpha is 1000" in str(refused(**{key: {**rope, "alpha": 1000.0}}))
    found = resolve(small(**{key: {**rope, "alpha": 1.0, "mrope_section": [4, 2, 2]}}))
    assert found.warnings == ()
    assert set(found.unread["bookkeeping"]) >= {f"{key}.alpha", f"{key}.mrope_section"}


def test_a_rope_record_that_is_passed_over_is_named() -> None:
    rope = {"rope_type": "linear", "factor": 2.0}
    found = resolve(small(rope_scaling=rope, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    assert [item.code for item in found.warnings] == ["F560"] and "rope_parameters" in found.warnings[0].message


def test_two_rope_records_of_which_one_is_by_layer_type_are_refused() -> None:
    nested = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    raw = small("olmo3", rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_parameters=nested)
    with pytest.raises(LadingError, match="only one of both can count") as caught:
        resolve(raw)
    assert caught.value.code == "F561"


def test_what_released_ropes_say_besides_is_no_warning() -> None:
    beside = {"factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    found = resolve(small("hunyuan_v1_dense", rope_scaling={"type": "dynamic", "alpha": 1000.0, **beside}))
    assert found.warnings == () and found.rope is not None and found.rope.kind == "alpha"
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    longrope["partial_rotary_factor"] = 0.75
    both = small("phi3", head_dim=16, partial_rotary_factor=0.75, rope_parameters=longrope)
    assert resolve(both).warnings == ()


def test_a_cap_that_the_whole_model_would_ignore_is_refused() -> None:
    """The reference applies it to the language model alone, and leaves it out in the model that sees."""
    text = {**small("gemma3_text", final_logit_softcapping=3.0), "head_dim": 16}
    assert resolve(text).family.logit_cap == 3.0
    with pytest.raises(LadingError, match=r"final_logit_softcapping is 3\.0") as caught:
        resolve({"model_type": "gemma3", "text_config": text})
    assert caught.value.code == "F561"
    assert resolve({"model_type": "gemma3", "text_config": {**text, "final_logit_softcapping": None}}).warnings == ()


def test_an_inner_configuration_that_disagrees_is_refused() -> None:
    assert resolve(small(text_config={"hidden_size": BASE["hidden_size"]})).warnings == ()
    error = refused(text_config={"hidden_size": 128, "hidden_dropout": 0.1, "rms_norm_eps": 1e-6})
    assert [item.where for item in error.diagnostics] == [
        "config.json:text_config.hidden_size",
        "config.json:text_config.rms_norm_eps",
    ]


def test_unknown_keys_are_named_in_one_warning() -> None:
    found = resolve(small(frobnicate=3, text_config={"twist": 1}, attention_dropout=0.1))
    assert [item.code for item in found.warnings] == ["F562"]
    assert "frobnicate, text_config.twist" in found.warnings[0].message
    assert found.unread["unknown"] == ("frobnicate", "text_config.twist")
    assert found.unread["training"] == ("attention_dropout",)
    many = resolve(small(**{f"key_{number}": 1 for number in range(30)}))
    assert "and 22 more" in many.warnings[0].message and len(many.unread["unknown"]) == 30


def test_code_and_classes_of_another_model_are_unknown() -> None:
    own = resolve(small(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}))
    assert own.unread["unknown"] == ("auto_map",)
    # Types that transformers has no class for all come with code, and their rows say what it computes.
    assert resolve(small("minicpm", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})).warnings == ()
    for names in (["Qwen2ForSequenceClassification"], ["Qwen2Model", "Qwen2ForCausalLM"], [3], "Own"):
        assert resolve(small(architectures=names)).unread["unknown"] == ("architectures",)
    for names in (["Qwen2ForCausalLM"], "Qwen2ForCausalLM", [], None):
        assert "unknown" not in resolve(small(architectures=names)).unread


def test_keys_of_other_families_weigh_by_their_values() -> None:
    assert {weigh(key, None) for key in ELSEWHERE} == {"bookkeeping"}
    assert weigh("sliding_window", 4096) == "numbers" and weigh("logit_scale", 1) == "bookkeeping"
    assert weigh("_private", 1) == "bookkeeping" and weigh("no_such_key", 1) == "unknown"
