"""Reading config.json: equality with the reference configuration objects, and coded errors for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontends.checkpoint.config_file import MAX_CONFIG_BYTES, parse_config, read_config, resolve
from frontends.families.model_config import ModelConfig
from frontends.parts.rope import table
from ir.base.diag import LadingError
from tests.support.checkpoints import BASE

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}

FILES: dict[str, dict[str, Any]] = {
    "defaults of the class": {"model_type": "..."},
    "small": {**BASE},
    "null heads": {**BASE, "num_key_value_heads": None},
    "head_dim": {**BASE, "head_dim": 48},
    "theta at top level": {**BASE, "rope_theta": 500000.0},
    "integer theta": {**BASE, "rope_theta": 1000000},
    "old linear": {**BASE, "rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "old null scaling": {**BASE, "rope_theta": 5000.0, "rope_scaling": None, "torch_dtype": "bfloat16"},
    "old llama3": {**BASE, "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "old yarn": {**BASE, "max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", **YARN}},
    "yarn without original": {**BASE, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "yarn, original at top level": {
        **BASE,
        "original_max_position_embeddings": 128,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    },
    "new default": {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 2e6}},
    "new theta only": {**BASE, "rope_parameters": {"rope_theta": 2e6}},
    "new yarn": {**BASE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "truncate": False}},
    "new llama3": {**BASE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    "new dynamic": {**BASE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}},
    "both spellings": {
        **BASE,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0},
        "rope_scaling": {"rope_type": "linear", "factor": 5.0},
    },
    "longrope": {
        **BASE,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        "head_dim": 16,
    },
    "window": {**BASE, "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    "window off": {**BASE, "use_sliding_window": False, "sliding_window": 100, "max_window_layers": 1},
    "no window": {**BASE, "use_sliding_window": True, "sliding_window": None},
    "layer types": {
        **BASE,
        "use_sliding_window": True,
        "sliding_window": 100,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "tied": {**BASE, "tie_word_embeddings": True},
    "biases": {**BASE, "attention_bias": True, "mlp_bias": True},
    "released qwen2.5": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


STRICTER_REFERENCE = {("null heads", "mistral")}
"""Files that the reference class refuses; here null stands for the number of attention heads in every family."""


def small(**keys: Any) -> dict[str, Any]:
    """A complete small configuration, keys set to `...` left out."""
    full = {"model_type": "llama", **BASE, **keys}
    return {key: value for key, value in full.items() if value is not ...}


def refused(code: str, **keys: Any) -> LadingError:
    with pytest.raises(LadingError) as caught:
        resolve(small(**keys))
    assert caught.value.code == code
    return caught.value


def reference(raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    kwargs = json.loads(json.dumps(raw))
    config = AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    config.standardize_rope_params()
    return config


def expected_windows(config: Any) -> list[int | None]:
    window = getattr(config, "sliding_window", None)
    if config.model_type in ("mistral", "llama"):  # one mask for all layers; none of the llama layers reads a window
        return [window if config.model_type == "mistral" else None] * config.num_hidden_layers
    types = config.layer_types
    return [window if types and types[i] == "sliding_attention" else None for i in range(config.num_hidden_layers)]


def assert_same(ours: ModelConfig, theirs: Any) -> None:
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    mixer, feed = ours.layers[0].mixer, ours.layers[0].feed
    assert feed.inner == theirs.intermediate_size
    assert mixer.heads == theirs.num_attention_heads
    assert mixer.kv_heads == theirs.num_key_value_heads
    assert mixer.head_dim == head_dim
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.family.norm.epsilon == theirs.rms_norm_eps
    assert feed.activation == theirs.hidden_act
    assert ours.tied == theirs.tie_word_embeddings
    assert [layer.window for layer in ours.layers] == expected_windows(theirs)
    rope = theirs.rope_parameters
    assert ours.rope.kind == rope["rope_type"]
    assert ours.rope.theta == rope["rope_theta"]
    assert ours.rope.factor == rope.get("factor")
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        assert ours.rope.original == rope["original_max_position_embeddings"]
    if theirs.model_type != "qwen2":
        assert mixer.bias == getattr(theirs, "attention_bias", False) * (theirs.model_type != "mistral")
    assert feed.bias == (getattr(theirs, "mlp_bias", False) and theirs.model_type == "llama")


LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose configurations have the same keys."""


@pytest.mark.parametrize("family", LIKE_LLAMA)
@pytest.mark.parametrize("title", FILES)
def test_resolves_as_the_reference_configuration_does(family: str, title: str) -> None:
    raw = {**FILES[title], "model_type": family}
    if (title, family) in STRICTER_REFERENCE:
        with pytest.raises(Exception, match="Validation error"):
            reference(raw)
        return
    assert_same(resolve(raw), reference(raw))


def test_file_of_another_style_is_the_same_model() -> None:
    old = resolve(small(rope_theta=7e4, rope_scaling={"type": "linear", "factor": 2}))
    new = resolve(small(rope_parameters={"rope_theta": 7e4, "rope_type": "linear", "factor": 2.0}))
    assert old == new


# ---- files ----


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b'{"model_type": NaN}',
        b'{"rms_norm_eps": 1e999}',
        b'{"rms_norm_eps": -Infinity}',
        b"\xff\xfe\x00",
        b'{"a": ' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"hidden_size": ' + b"9" * 10_000 + b"}",
        b'{"hidden_size": ' + b"[" * 700 + b"]" * 700 + b"}",
        b'{"a": {"b": ' * 40 + b"1" + b"}}" * 40,
    ],
)
def test_text_that_is_not_a_finite_json_object(data: bytes) -> None:
    with pytest.raises(LadingError) as caught:
        parse_config(data, "config.json")
    assert caught.value.code == "F530"


def test_byte_order_mark_is_accepted() -> None:
    assert parse_config(b'\xef\xbb\xbf{"model_type": "llama"}', "config.json") == {"model_type": "llama"}


def test_unreadable_and_oversized_files(tmp_path) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    for path in (tmp_path / "absent.json", tmp_path, big):
        with pytest.raises(LadingError) as caught:
            read_config(path)
        assert caught.value.code == "F530"
        assert str(path) in caught.value.diagnostics[0].where


def test_digest_is_that_of_the_file(tmp_path) -> None:
    import hashlib

    path = tmp_path / "config.json"
    path.write_text(json.dumps(small()))
    assert read_config(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


# ---- values ----


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"])
@pytest.mark.parametrize("value", ["64", 64.0, True, None, -1, 0, [64], {}, 10**30])
def test_sizes_of_the_wrong_type_or_magnitude(key: str, value: Any) -> None:
    error = refused("F531", **{key: value})
    assert error.diagnostics[0].where == f"config.json:{key}"
    assert key in error.diagnostics[0].message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 7),
        ("tie_word_embeddings", "true"),
        ("tie_word_embeddings", None),
        ("hidden_act", None),
        ("attention_bias", 1),
        ("rope_scaling", [1]),
        ("rope_parameters", "default"),
        ("num_key_value_heads", 0),
        ("head_dim", "64"),
    ],
)
def test_other_values_of_the_wrong_type(key: str, value: Any) -> None:
    assert key in str(refused("F531", **{key: value}))


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("F532", {"model_type": ...}),
        ("F531", {"model_type": 7}),
        ("F533", {"model_type": "lama"}),
        ("F534", {"per_layer_config": {"0": {"hidden_size": 32}}}),
        ("F534", {"is_encoder_decoder": True}),
        ("F534", {"partial_rotary_factor": 0.5}),
        ("F534", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        ("F536", {"num_key_value_heads": 3}),
        ("F536", {"hidden_size": 3, "num_key_value_heads": 4}),
        ("F537", {"hidden_act": "sillu"}),
        ("F540", {"rope_scaling": {"type": "su", "factor": 2.0}}),
        ("F540", {"rope_scaling": {"type": 3}}),
        ("F541", {"rope_scaling": {"type": "linear"}}),
        ("F531", {"rope_theta": "10000"}),
        ("F541", {"rope_theta": 1}),
        ("F541", {"head_dim": 15}),
        ("F541", {"partial_rotary_factor": "half"}),
    ],
)
def test_models_that_are_refused(code: str, keys: dict[str, Any]) -> None:
    refused(code, **keys)


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("F538", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("F538", {"use_sliding_window": True, "layer_types": ["chunked_attention", "full_attention"]}),
        ("F538", {"layer_types": ["full_attention", 3]}),
        ("F531", {"layer_types": ["full_attention"]}),
        ("F531", {"layer_types": "full_attention"}),
        ("F531", {"use_sliding_window": True, "max_window_layers": None}),
        ("F531", {"use_sliding_window": "yes"}),
        ("F531", {"sliding_window": 0}),
        ("F531", {"sliding_window": 10.5}),
    ],
)
def test_windows_that_are_refused(code: str, keys: dict[str, Any]) -> None:
    refused(code, model_type="qwen2", **keys)


def test_messages_stay_short() -> None:
    for code, keys in (
        ("F533", {"model_type": "x" * 10**6}),
        ("F537", {"hidden_act": "x" * 10**6}),
        ("F531", {"hidden_size": list(range(10**5))}),
        ("F541", {"rope_scaling": {"type": "linear", "factor": "9" * 10**6}}),
        ("F540", {"rope_scaling": {"type": "y" * 10**6}}),
    ):
        assert len(str(refused(code, **keys))) < 600


def test_original_length_beside_an_absent_rope_record() -> None:
    assert resolve(small(rope_parameters=None, original_max_position_embeddings=64)).rope.kind == "default"


def test_near_names_are_suggested() -> None:
    # A model type that is spelled almost like another one is not compiled as that one.
    assert "did you mean" not in refused("F533", model_type="lama").diagnostics[0].hint
    assert "did you mean 'silu'?" in refused("F537", hidden_act="sillu").diagnostics[0].hint


def test_keys_left_out_of_account_are_reported() -> None:
    raw = small(sliding_window=64, final_logit_softcapping=30.0, scale_emb=1, use_mrope=False)
    raw["layer_types"] = ["full_attention"] * 2
    raw["rope_scaling"] = {"rope_type": "linear", "factor": 2.0, "attention_factor": 0.8}
    warnings = resolve(raw).warnings
    assert [item.where for item in warnings] == [
        "config.json:sliding_window",
        "config.json:final_logit_softcapping",
        "config.json:rope_scaling",
    ]
    assert {(item.code, item.severity) for item in warnings} == {("F560", "warning")}
    assert [item.code for item in resolve(small(layer_types=["sliding_attention"] * 2)).warnings] == ["F560"]
    assert resolve(FILES["released qwen2.5"] | {"model_type": "qwen2"}).warnings == ()


def test_context_reaches_as_far_as_the_rope() -> None:
    assert resolve(small()).context == 512
    assert resolve(small(rope_scaling={"type": "dynamic", "factor": 2.5})).context == 1280
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
    assert resolve(small(rope_scaling=yarn)).context == 512
    assert resolve(small(rope_scaling={**yarn, "original_max_position_embeddings": 512})).context == 2048


WEIRD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-3, 3), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "x"]), st.integers(-2, 2), max_size=3),
)
KEYS = sorted({*BASE, "head_dim", "hidden_act", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"})
ROPE_KEYS = [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "rope_theta",
    "partial_rotary_factor",
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LIKE_LLAMA), st.dictionaries(st.sampled_from(KEYS), WEIRD, max_size=3))
def test_any_value_is_accepted_or_refused_with_a_code(family: str, changes: dict[str, Any]) -> None:
    try:
        resolve({"model_type": family, **BASE, **changes})
    except LadingError as error:
        assert error.code.startswith("F5")


@settings(max_examples=300, deadline=None)
@example("linear", {"factor": 9e-111})
@given(
    st.sampled_from(["linear", "dynamic", "yarn", "longrope", "llama3"]),
    st.dictionaries(st.sampled_from(ROPE_KEYS), WEIRD, max_size=6),
)
def test_any_rope_record_gives_frequencies_or_a_code(kind: str, record: dict[str, Any]) -> None:
    import numpy as np

    try:
        config = resolve({**small(), "rope_scaling": {"rope_type": kind, "factor": 2.0, **record}})
    except LadingError as error:
        assert error.code.startswith("F5")
        return
    ropes = table(config.rope)
    assert ropes.inv_freq.dtype == np.float32 and ropes.inv_freq.shape == (config.rope.width // 2,)
    assert np.isfinite(ropes.inv_freq).all() and np.isfinite(ropes.attention_factor)
