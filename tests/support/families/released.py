"""Files of ``save_pretrained`` turned into what released checkpoints look like: older keys, bfloat16, and what else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.support.checkpoints import write_weights
from tests.support.families.cases import Case

EPS_KEYS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
Tensors = dict[str, np.ndarray]
Config = dict[str, Any]


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``."""
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def respell(folder: Path, case: Case) -> None:
    """Turn the files of a folder into what released checkpoints of the case look like."""
    from safetensors.numpy import load_file

    config = older_keys(json.loads((folder / "config.json").read_text()), case)
    config["model_type"] = case.model_type
    tensors = load_file(folder / "model.safetensors")
    for name in case.edits:
        config, tensors = EDITS[name](config, tensors)
    write_config(folder, config)
    write_weights(folder, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()})


def make_terse(folder: Path) -> None:
    """Take every key out of ``config.json`` that the reference's class fills in alike, and the epsilon of norms."""
    config = json.loads((folder / "config.json").read_text())
    at = "text_config" if isinstance(config.get("text_config"), dict) else ""
    parts = (config[at], config) if at else (config,)
    for part in parts:
        for key in EPS_KEYS:
            part.pop(key, None)
    write_config(folder, config)
    full = _read(folder)
    for part in parts:
        for key in [key for key in part if key not in ("model_type", at)]:
            kept = part.pop(key)
            write_config(folder, config)
            if _read(folder) != full:
                part[key] = kept
    write_config(folder, config)


def _read(folder: Path) -> str:
    """What the reference reads in a configuration, but for what only names things; its complaint where it refuses."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(folder).to_dict()
    except Exception as error:
        return str(error)
    return json.dumps(
        {key: value for key, value in found.items() if key != "architectures"}, sort_keys=True, default=str
    )


# ---- the configuration ----


def older_keys(config: Mapping[str, Any], case: Case) -> Config:
    """A configuration with ``rope_theta``, ``rope_scaling`` and ``torch_dtype`` where files had them for years."""
    older = {key: value for key, value in config.items() if key not in case.drop}
    if isinstance(text := older.get("text_config"), dict):
        older["text_config"] = older_keys(text, Case(case.model_type, {}, drop=case.drop))
    older.pop("dtype", None)
    older["torch_dtype"] = "bfloat16"
    rope = older.pop("rope_parameters", None)
    if rope is not None:
        older |= _older_rope(rope)
    return {**older, **case.hub}


def _older_rope(rope: Mapping[str, Any]) -> Config:
    """Keys for one record of a rope, or for one for each kind of layer."""
    if "full_attention" in rope:
        whole, near = dict(rope["full_attention"]), dict(rope["sliding_attention"])
        keys = {"rope_theta": whole.pop("rope_theta"), "rope_scaling": whole}
        if near["rope_theta"] != keys["rope_theta"]:
            keys["rope_local_base_freq"] = near["rope_theta"]
    else:
        record = dict(rope)
        keys = {"rope_theta": record.pop("rope_theta"), "rope_scaling": record}
        if "partial_rotary_factor" in record:
            keys["partial_rotary_factor"] = record.pop("partial_rotary_factor")
    if keys["rope_scaling"].get("rope_type", "default") == "default" and "mrope_section" not in keys["rope_scaling"]:
        keys["rope_scaling"] = None
    else:
        keys["rope_scaling"]["type"] = keys["rope_scaling"].get("rope_type", "default")
    return keys


# ---- what else is otherwise ----


def _no_prefix(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Names without the name of the inner model."""
    return config, {name.removeprefix("transformer."): array for name, array in tensors.items()}


def _masks(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The triangle that old releases of GPT-2 keep in each layer."""
    length = config["n_positions"]
    triangle = np.tril(np.ones((1, 1, length, length), np.float32))
    return config, {**tensors, **{f"h.{index}.attn.bias": triangle for index in range(config["n_layer"])}}


def _frequencies(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Frequencies of the rope, which old releases keep in each layer and nobody reads."""
    names = [f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in range(config["num_hidden_layers"])]
    return config, {**tensors, **{name: np.ones(8, np.float32) for name in names}}


def _flat(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The keys of the language model beside the others."""
    text = config.pop("text_config")
    return {**text, **config}, tensors


def _xdrope(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The rope of HunyuanOCR as its release calls it."""
    record = dict(config["rope_scaling"])
    record["type"] = "xdrope"
    record["xdrope_section"] = record.pop("mrope_section")
    del record["rope_type"]
    return {**config, "rope_scaling": record}, tensors


def _rotary_pct(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The rope of GPT-NeoX as its releases call it."""
    share, base = config.pop("partial_rotary_factor"), config.pop("rope_theta")
    del config["rope_scaling"]
    return {**config, "rotary_pct": share, "rotary_emb_base": int(base)}, tensors


def _su(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The first name of the rope of Phi-3 for long texts."""
    record = {key: value for key, value in config["rope_scaling"].items() if key != "rope_type"}
    return {**config, "rope_scaling": {**record, "type": "su"}}, tensors


def _rotary_dim(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The turned part of a head as a number of its elements."""
    share = config.pop("partial_rotary_factor")
    del config["rope_scaling"]
    return {**config, "rotary_dim": int(share * config["head_dim"])}, tensors


def _stacked_experts(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The matrices of all experts of a layer as one tensor, gate and up together."""
    stacked: Tensors = {}
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")]):
        if found := re.fullmatch(r"(.*mlp\.experts)\.\d+\.(\w+)\.weight", name):
            parts.setdefault(found[1], {}).setdefault(found[2], []).append(tensors[name])
        else:
            stacked[name] = tensors[name]
    for place, matrices in parts.items():
        both = [np.concatenate(pair) for pair in zip(matrices["gate_proj"], matrices["up_proj"], strict=True)]
        stacked[f"{place}.gate_up_proj"] = np.stack(both)
        stacked[f"{place}.down_proj"] = np.stack(matrices["down_proj"])
    return config, stacked


def _next_tokens(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The last layer once more, one number up, as layers that predict more tokens are stored."""
    count = config["num_hidden_layers"]
    last = f"model.layers.{count - 1}."
    more = {name.replace(last, f"model.layers.{count}."): array for name, array in tensors.items() if last in name}
    more[f"model.layers.{count}.eh_proj.weight"] = np.ones((64, 128), np.float32)
    more[f"model.layers.{count}.enorm.weight"] = more[f"model.layers.{count}.hnorm.weight"] = np.ones(64, np.float32)
    return {**config, "num_nextn_predict_layers": 1}, {**tensors, **more}


EDITS: dict[str, Callable[[Config, Tensors], tuple[Config, Tensors]]] = {
    "no prefix": _no_prefix,
    "masks": _masks,
    "frequencies": _frequencies,
    "flat": _flat,
    "xdrope": _xdrope,
    "rotary_pct": _rotary_pct,
    "rotary_dim": _rotary_dim,
    "su": _su,
    "stacked experts": _stacked_experts,
    "next tokens": _next_tokens,
}
"""Changes of configuration and tensors by name."""
