"""Rope tables against the reference implementation's functions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frontends.parts.rope import KINDS, read_rope, table
from ir.base.diag import LadingError

MAX = 4096
WIDTH = 64
SHORT = [1.0 + 0.02 * i for i in range(WIDTH // 2)]
LONG = [1.0 + 0.9 * i for i in range(WIDTH // 2)]

RECORDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "linear of an odd factor": {"rope_type": "linear", "factor": 2.7},
    "dynamic": {"factor": 3.0},
    "dynamic of an odd factor": {"rope_type": "dynamic", "factor": 1.7},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "llama3 of 3.2": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn of unknown factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn with one mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0},
    "yarn of one step": {
        "rope_type": "yarn",
        "factor": 64.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "yarn not truncated": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "attention_factor": 1.25},
    "yarn with null betas": {"rope_type": "yarn", "factor": 2.0, "beta_fast": None, "beta_slow": 0},
    "yarn below one": {"rope_type": "yarn", "factor": 0.5},
    "longrope": {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 1024},
    "longrope with factor": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 1024,
        "factor": 32.0,
    },
    "longrope with attention factor": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.1,
    },
    "longrope without extension": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": MAX,
    },
}
THETAS = (10000.0, 500000.0, 1000000.0, 12345.678)


def complete(title: str, theta: float) -> dict[str, Any]:
    record = {"rope_type": title, "rope_theta": theta, **RECORDS[title]}
    if record["rope_type"] in ("yarn", "longrope", "llama3"):
        record.setdefault("original_max_position_embeddings", MAX)
    return record


def reference(record: dict[str, Any], length: int | None, width: int = WIDTH) -> tuple[np.ndarray, float]:
    """Frequencies and multiplier as the reference computes them in its forward pass for a sequence of `length`."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = SimpleNamespace(
        rope_parameters=dict(record),
        max_position_embeddings=MAX,
        head_dim=width,
        hidden_size=4 * width,
        num_attention_heads=4,
        standardize_rope_params=lambda: None,
    )
    kind = record["rope_type"]
    function = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    kwargs: dict[str, Any] = {}
    if length is not None and kind == "dynamic" and length > MAX:
        kwargs["seq_len"] = torch.tensor(length)
    if length is not None and kind == "longrope":
        kwargs["seq_len"] = length
    inv_freq, factor = function(config, device="cpu", **kwargs)
    return inv_freq.numpy(), float(factor)


def test_every_kind_has_a_record() -> None:
    # "alpha" is the reference's "dynamic" with that key; it is compared below.
    assert set(KINDS) - {"alpha"} == {record.get("rope_type", title) for title, record in RECORDS.items()}


@pytest.mark.parametrize("title", RECORDS)
def test_frequencies_are_those_of_the_reference(title: str) -> None:
    exact = total = 0
    for theta in THETAS:
        record = complete(title, theta)
        ours = table(read_rope(record, WIDTH, MAX, "x"))
        theirs, factor = reference(record, None)
        assert ours.inv_freq.dtype == theirs.dtype == np.float32
        assert ours.attention_factor == pytest.approx(factor, rel=1e-15)
        ulps = np.abs(ours.inv_freq.view(np.int32).astype(np.int64) - theirs.view(np.int32))
        assert ulps.max() <= 4, (theta, ulps.max())
        exact += int((ulps == 0).sum())
        total += ulps.size
    assert exact >= 0.8 * total


@pytest.mark.parametrize("title", [t for t in RECORDS if t.startswith(("dynamic", "longrope"))])
@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, MAX - 1, MAX, MAX + 1, MAX + 2, 2 * MAX, 10 * MAX])
def test_frequencies_at_a_length_are_those_of_the_reference(title: str, length: int) -> None:
    for theta in THETAS:
        record = complete(title, theta)
        theirs, _ = reference(record, length)
        np.testing.assert_allclose(table(read_rope(record, WIDTH, MAX, "x")).at_length(length), theirs, rtol=1e-6)


@pytest.mark.parametrize("length", [MAX, MAX + 1, 2 * MAX + 1, 16 * MAX])
def test_stretched_frequencies_are_accurate(length: int) -> None:
    factor, theta = 3.0, 1e6
    rope = read_rope({"rope_type": "dynamic", "rope_theta": theta, "factor": factor}, WIDTH, MAX, "x")
    base = theta * (factor * length / MAX - (factor - 1)) ** (WIDTH / (WIDTH - 2))
    exact = base ** (-np.arange(0, WIDTH, 2) / WIDTH)
    np.testing.assert_allclose(table(rope).at_length(length), exact, rtol=2.5e-7)


def test_equal_factors_need_no_switch() -> None:
    record = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": SHORT}
    assert table(read_rope(record, WIDTH, MAX, "x")).variant is None


@pytest.mark.parametrize("width", [2, 6, 10, 96, 128, 256])
def test_other_widths(width: int) -> None:
    record = {"rope_type": "default", "rope_theta": 10000.0}
    np.testing.assert_allclose(
        table(read_rope(record, width, MAX, "x")).inv_freq, reference(record, None, width)[0], rtol=3e-7
    )


@pytest.mark.parametrize(
    ("code", "record"),
    [
        ("F540", {"rope_type": "llama4"}),
        ("F540", {"rope_type": None}),
        ("F541", {"rope_type": "yarn"}),
        ("F541", {"rope_type": "linear", "factor": None}),
        ("F541", {"rope_type": "linear", "factor": 0.0}),
        ("F541", {"rope_type": "linear", "factor": "2"}),
        ("F541", {"rope_type": "linear", "factor": float("inf")}),
        ("F541", {"rope_type": "default", "rope_theta": -5.0}),
        ("F541", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}),
        ("F541", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10.5}),
        ("F541", {"rope_type": "yarn", "factor": 2.0, "truncate": 1}),
        ("F541", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        ("F541", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": LONG}),
        ("F541", {"rope_type": "longrope", "short_factor": SHORT, "long_factor": "long"}),
        ("F541", {"rope_type": "longrope", "short_factor": SHORT, "long_factor": [0.0] * (WIDTH // 2)}),
        ("F541", {"rope_type": "longrope", "short_factor": SHORT, "long_factor": [None] * (WIDTH // 2)}),
    ],
)
def test_records_that_are_refused(code: str, record: dict[str, Any]) -> None:
    with pytest.raises(LadingError) as caught:
        read_rope({"rope_theta": 10000.0, **record}, WIDTH, MAX, "config.json:rope_scaling")
    assert caught.value.code == code
    assert caught.value.diagnostics[0].where == "config.json:rope_scaling"


@pytest.mark.parametrize("width", [0, 7])
def test_width_must_be_even(width: int) -> None:
    with pytest.raises(LadingError, match="must be even"):
        read_rope({"rope_theta": 10000.0}, width, MAX, "x")


def test_dynamic_needs_more_than_one_pair() -> None:
    with pytest.raises(LadingError, match="width of 2"):
        read_rope({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 2, MAX, "x")
