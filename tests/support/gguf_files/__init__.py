"""GGUF files of tiny checkpoints, written by the gguf package in the way of llama.cpp's conversion script.

What that script does to a checkpoint is done here to the tensors of a ``transformers`` model: rows of queries and keys are
put in the order of neighbours, experts are stacked, one is added to gains. Names come from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import quants

Arrays = dict[str, np.ndarray]
SIMPLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
"""Types that the package quantizes to."""
LARGE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that it only reads; blocks of them are made up."""
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block has half-precision numbers."""
LARGEST = {"Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096}
"""Largest product of a scale and a code."""


def stored(array: np.ndarray, kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An array as it is stored in a type, and the numbers that the package reads from that."""
    code = getattr(Kind, kind)
    if kind in LARGE:
        raw = random_blocks(array.shape, kind, seed)
    else:
        raw = quants.quantize(np.ascontiguousarray(array, np.float32), code)
    return raw, quants.dequantize(raw, code).reshape(array.shape)


def random_blocks(shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray:
    """Random bytes of a type, with numbers of a usual size in their half-precision fields."""
    block, size = gguf.GGML_QUANT_SIZES[getattr(Kind, kind)]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
    for at in HALVES[kind]:
        # A minimum is subtracted that is half of the largest product on average.
        size = (
            0.4 / LARGEST[kind] * (1 if at == HALVES[kind][0] else LARGEST[kind] / 2 / (15 if kind == "Q2_K" else 63))
        )
        numbers = rng.uniform(0.5, 1, raw.shape[:-1]) * size
        raw[..., at : at + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], kind: str = "F32"
) -> Arrays:
    """Write a file; returns the numbers that the package reads from each tensor.

    Vectors, and matrices whose rows are no whole blocks, stay float32.
    """
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        add(writer, key, value)
    block = gguf.GGML_QUANT_SIZES[getattr(Kind, kind)][0]
    read = {}
    for number, (name, array) in enumerate(tensors.items()):
        own = kind if array.ndim > 1 and array.shape[-1] % block == 0 else "F32"
        raw, read[name] = stored(array, own, number)
        writer.add_tensor(name, raw, raw_dtype=getattr(Kind, own))
    finish(writer)
    return read


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what a writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value of metadata in the type that llama.cpp gives it."""
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


# ---- models ----


@dataclass(frozen=True)
class Model:
    """How llama.cpp's script writes one architecture.

    Attributes:
        name: ``general.architecture``.
        keys: keys below the architecture by key of the configuration.
        more: what else is written, of the configuration.
        neighbours: rows of queries and keys are put in the order of neighbours.
        one_more: one is added to gains.
        change: what else becomes of the tensors; names that begin with ``blk.`` are those of the file already.
    """

    name: str
    keys: Mapping[str, str]
    more: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    neighbours: bool = False
    one_more: bool = False
    change: Callable[[dict[str, Any], Arrays], Arrays] = field(default=lambda config, tensors: tensors)


_COMMON = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
}
_EXPERTS = {
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}


def _heads(config: dict[str, Any]) -> dict[str, Any]:
    width = config.get("head_dim")
    return {} if width is None else {"attention.key_length": width, "attention.value_length": width}


def _turned(config: dict[str, Any]) -> dict[str, Any]:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    share = config["rope_parameters"].get("partial_rotary_factor") or 1.0
    return {**_heads(config), "rope.dimension_count": int(width * share)}


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    record = config.get("rope_parameters") or {}
    if "full_attention" in record:
        local = record["sliding_attention"]["rope_theta"]
        return {"rope.freq_base": record["full_attention"]["rope_theta"], "rope.freq_base_swa": local}
    found: dict[str, Any] = {"rope.freq_base": float(record["rope_theta"])} if "rope_theta" in record else {}
    if record.get("rope_type") in ("linear", "yarn"):
        found["rope.scaling.type"] = record["rope_type"]
        found["rope.scaling.factor"] = float(record["factor"])
    if record.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = record["original_max_position_embeddings"]
    return found


def _llama3_factors(config: dict[str, Any], tensors: Arrays) -> Arrays:
    """The divisors of the frequencies as a tensor, where the rope is llama3's."""
    record = config["rope_parameters"]
    if record.get("rope_type") != "llama3":
        return tensors
    count = (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) // 2
    factors = []
    for index in range(count):
        wave = 2 * np.pi * record["rope_theta"] ** (index / count)
        turns = record["original_max_position_embeddings"] / wave
        low, high = record["low_freq_factor"], record["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / record["factor"] + smooth))
    return {**tensors, "rope_freqs.weight": np.array(factors, np.float32)}


def _granite(config: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {"rope.dimension_count": config["hidden_size"] // config["num_attention_heads"]} | {
        key: float(config[name]) for name, key in keys.items()
    }


def _latent(config: dict[str, Any]) -> dict[str, Any]:
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_gating_func": 2,
        "rope.dimension_count": rope,
    }


def _split_latent(config: dict[str, Any], tensors: Arrays) -> Arrays:
    found = {}
    for name, array in tensors.items():
        if name.endswith("kv_b_proj.weight"):
            both = array.reshape(config["num_attention_heads"], -1, array.shape[1])
            keys, values = np.split(both, [config["qk_nope_head_dim"]], axis=1)
            found[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(0, 2, 1)
            found[name.replace("kv_b_proj", "v_b_proj")] = values
        else:
            found[name.replace("e_score_correction_bias", "e_score_correction.bias")] = array
    return found


def _by_kind(config: dict[str, Any], tensors: Arrays) -> Arrays:
    """Rows of fused queries, keys and values: all queries first, then all keys, then all values."""
    kv = config.get("num_kv_heads") or config["num_attention_heads"]
    share = config["num_attention_heads"] // kv
    found = {}
    for name, array in tensors.items():
        if "query_key_value" in name:
            groups = array.reshape(kv, share + 2, -1, *array.shape[1:])
            parts = np.split(groups, [share, share + 1], axis=1)
            array = np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])
        found[name] = array
    return found


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """Routers of GLM; a layer behind the last one predicts further tokens."""
    return {
        **_turned(config),
        "block_count": config["num_hidden_layers"] + 1,
        "nextn_predict_layers": 1,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_gating_func": 2,
    }


def _corrections(config: dict[str, Any], tensors: Arrays) -> Arrays:
    found = {
        name.replace("e_score_correction_bias", "e_score_correction.bias"): array for name, array in tensors.items()
    }
    further = f"blk.{config['num_hidden_layers']}.nextn.enorm.weight"
    return {**found, further: np.ones(config["hidden_size"], np.float32)}


def _transposed(config: dict[str, Any], tensors: Arrays) -> Arrays:
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {name: array.T if name.endswith(turned) else array for name, array in tensors.items()}


def _split_experts(config: dict[str, Any], tensors: Arrays) -> Arrays:
    """Granite's experts: gate and up apart."""
    found = {}
    for name, array in tensors.items():
        for module, ending in (("block_sparse_moe", "exps"), ("shared_mlp", "shexp")):
            if name.endswith(f"{module}.input_linear.weight"):
                layer = name.split(".")[2]
                for part, word in zip(np.split(array, 2, axis=-2), ("gate", "up"), strict=True):
                    found[f"blk.{layer}.ffn_{word}_{ending}.weight"] = part
                break
        else:
            found[name] = array
    return found


def _gpt_oss(config: dict[str, Any], tensors: Arrays) -> Arrays:
    """Experts of gpt-oss: gates from even and ups from odd columns, matrices as ``[out, in]``."""
    found = {}
    for name, array in tensors.items():
        layer = name.split(".")[2] if ".layers." in name else ""
        words = {"gate_up_proj": "weight", "down_proj": "weight", "gate_up_proj_bias": "bias", "down_proj_bias": "bias"}
        last = name.rpartition(".")[2]
        if ".experts." not in name:
            found[name if "sinks" not in name else f"blk.{layer}.attn_sinks.weight"] = array
        elif last.startswith("down"):
            turned = array.transpose(0, 2, 1) if array.ndim == 3 else array
            found[f"blk.{layer}.ffn_down_exps.{words[last]}"] = turned
        else:
            for start, word in ((0, "gate"), (1, "up")):
                part = array[..., start::2]
                turned = part.transpose(0, 2, 1) if part.ndim == 3 else part
                found[f"blk.{layer}.ffn_{word}_exps.{words[last]}"] = turned
    return found


def _sparse(config: dict[str, Any]) -> dict[str, Any]:
    return {**_heads(config), "expert_feed_forward_length": config["intermediate_size"]}


_WINDOW = {"sliding_window": "attention.sliding_window"}

MODELS: dict[str, Model] = {
    "llama": Model("llama", _COMMON, _turned, neighbours=True, change=_llama3_factors),
    "mistral": Model("llama", _COMMON, _turned, neighbours=True),
    "mixtral": Model("llama", {**_COMMON, **_EXPERTS}, _turned, neighbours=True),
    "qwen2": Model("qwen2", _COMMON),
    "qwen2_moe": Model("qwen2moe", {**_COMMON, **_EXPERTS}),
    "qwen3": Model("qwen3", _COMMON, _heads),
    "qwen3_moe": Model("qwen3moe", {**_COMMON, **_EXPERTS}, _heads),
    "phi3": Model(
        "phi3",
        {**_COMMON, **_WINDOW, "original_max_position_embeddings": "rope.scaling.original_context_length"},
        _turned,
    ),
    "gemma": Model("gemma", _COMMON, _heads, one_more=True),
    "gemma2": Model(
        "gemma2",
        {**_COMMON, **_WINDOW, **{f"{key}_logit_softcapping": f"{key}_logit_softcapping" for key in ("attn", "final")}},
        _heads,
        one_more=True,
    ),
    "gemma3_text": Model("gemma3", {**_COMMON, **_WINDOW}, _heads, one_more=True),
    "granite": Model("granite", _COMMON, _granite, neighbours=True),
    "granitemoe": Model("granitemoe", {**_COMMON, **_EXPERTS}, _granite, neighbours=True, change=_split_experts),
    "granitemoeshared": Model(
        "granitemoe",
        {**_COMMON, **_EXPERTS, "shared_intermediate_size": "expert_shared_feed_forward_length"},
        _granite,
        neighbours=True,
        change=_split_experts,
    ),
    "gpt_oss": Model("gpt-oss", {**_COMMON, **_EXPERTS, **_WINDOW}, _sparse, change=_gpt_oss),
    "starcoder2": Model("starcoder2", _COMMON),
    "stablelm": Model("stablelm", {**_COMMON, "use_parallel_residual": "use_parallel_residual"}, _turned),
    "olmo2": Model("olmo2", _COMMON),
    "glm4": Model("glm4", _COMMON, _turned),
    "cohere": Model("command-r", {**_COMMON, "logit_scale": "logit_scale"}),
    "cohere2": Model("cohere2", {**_COMMON, **_WINDOW, "logit_scale": "logit_scale"}, _turned),
    "smollm3": Model("smollm3", _COMMON, _turned, neighbours=True),
    "hunyuan_v1_dense": Model("hunyuan-dense", _COMMON, _heads),
    "ernie4_5": Model("ernie4_5", _COMMON, _heads),
    "deepseek_v3": Model("deepseek2", {**_COMMON, **_EXPERTS}, _latent, change=_split_latent),
    "internlm2": Model("internlm2", _COMMON, neighbours=True),
    "baichuan": Model("baichuan", _COMMON, _turned, neighbours=True),
    "arcee": Model("arcee", _COMMON, _turned, neighbours=True),
    "minicpm": Model(
        "minicpm",
        _COMMON,
        lambda config: {
            key: value for key, value in _granite(config).items() if "dimension" not in key and "attention" not in key
        },
        neighbours=True,
    ),
    "seed_oss": Model("seed_oss", _COMMON, _heads),
    "exaone4": Model("exaone4", {**_COMMON, **_WINDOW}, _turned, change=_llama3_factors),
    "nemotron": Model("nemotron", {**_COMMON, "norm_eps": "attention.layer_norm_epsilon"}, _turned, one_more=True),
    "phi": Model("phi2", _COMMON, _turned),
    "olmoe": Model("olmoe", {**_COMMON, **_EXPERTS}),
    "glm4_moe": Model("glm4moe", {**_COMMON, **_EXPERTS}, _shared, change=_corrections),
    "gpt2": Model(
        "gpt2",
        {
            "n_layer": "block_count",
            "n_positions": "context_length",
            "n_embd": "embedding_length",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        lambda config: {"feed_forward_length": 4 * config["n_embd"]},
        change=_transposed,
    ),
    "gpt_neox": Model(
        "gptneox",
        {**_COMMON, "use_parallel_residual": "use_parallel_residual"},
        _turned,
        change=_by_kind,
    ),
    "falcon": Model(
        "falcon",
        {
            **_COMMON,
            "num_kv_heads": "attention.head_count_kv",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        lambda config: {"feed_forward_length": 4 * config["hidden_size"], "tensor_data_layout": "jploski"},
        change=_by_kind,
    ),
}
"""By model type of the checkpoint."""


def gguf_of(
    folder: Path, path: Path, kind: str = "F32", extra: Mapping[str, Any] | None = None, written_as: str = ""
) -> Arrays:
    """Write the file of a checkpoint folder; returns the numbers that the package reads from it.

    `written_as` is a key of `MODELS`, for models that llama.cpp writes like those of another family.
    """
    from safetensors.numpy import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    model = MODELS[written_as or config["model_type"]]
    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    metadata = {f"{model.name}.{key}": value for key, value in _metadata(config, model).items()}
    return write_gguf(path, model.name, {**metadata, **(extra or {})}, _renamed(config, model, tensors), kind)


def in_checkpoint(folder: Path, read: Arrays) -> Arrays:
    """Arrays of a file by the names and in the order of rows of the checkpoint that it was written from."""
    from safetensors.numpy import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    model = MODELS[config["model_type"]]
    places = {
        name: np.arange(array.shape[0], dtype=np.int64)
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }
    names = gguf.get_tensor_name_map(_architecture(model.name), config["num_hidden_layers"])
    found = {}
    for name, rows in places.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target not in read:
            continue
        stored_rows = _renamed(config, model, {name: rows})[target]
        found[name] = np.empty_like(read[target])
        found[name][stored_rows] = read[target]
    return found


def _metadata(config: dict[str, Any], model: Model) -> dict[str, Any]:
    found = {key: config[name] for name, key in model.keys.items() if config.get(name) is not None}
    return {**found, **_rope(config), **model.more(config)}


def _renamed(config: dict[str, Any], model: Model, tensors: Arrays) -> Arrays:
    """Tensors as the file has them."""
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(_architecture(model.name), layers)
    tensors = _stacked(model.change(config, tensors))
    found = {}
    for name, array in tensors.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if model.neighbours and name.endswith(("q_proj.weight", "q_proj.bias")):
            array = _neighbours(array, config["num_attention_heads"])
        if model.neighbours and name.endswith(("k_proj.weight", "k_proj.bias")):
            array = _neighbours(array, config["num_key_value_heads"])
        found[target] = array + 1 if model.one_more and name.endswith("norm.weight") else array
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _architecture(name: str) -> Any:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _stacked(tensors: Arrays) -> Arrays:
    """Experts, and norms of single heads, as one tensor each."""
    found: dict[str, Any] = {}
    for name, array in tensors.items():
        parts = name.split(".")
        group = next((word for word in ("experts", "norms") if word in parts[:-1]), None)
        at = parts.index(group) + 1 if group else len(parts)
        if at < len(parts) and parts[at].isdecimal():
            whole = ".".join([*parts[: at - (group == "norms")], *parts[at + 1 :]])
            found.setdefault(whole, {})[int(parts[at])] = array
        else:
            found[name] = array
    return {
        _expert_name(name): np.stack([value[key] for key in sorted(value)]) if isinstance(value, dict) else value
        for name, value in found.items()
    }


def _expert_name(name: str) -> str:
    """The name under which the package knows stacked experts of mixtral."""
    return (
        name.removeprefix("model.").replace("block_sparse_moe.experts", "feed_forward.experts")
        if ("block_sparse_moe.experts" in name)
        else name
    )


# ---- tokenizers ----

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def tokenizer_metadata(data: Mapping[str, Any], pre: str | None, **more: Any) -> dict[str, Any]:
    """The metadata of a ``tokenizer.json``: byte-level BPE with a name for its pattern, or SentencePiece's without."""
    vocab: dict[int, str] = {number: text for text, number in data["model"]["vocab"].items()}
    added = {item["id"]: item for item in data["added_tokens"]}
    count = 1 + max((*vocab, *added))
    tokens = [
        added[index]["content"] if index in added else vocab.get(index, f"[PAD{index}]") for index in range(count)
    ]
    kinds = [_kind(index, tokens[index], vocab, added, pre is None) for index in range(count)]
    found: dict[str, Any] = {"model": "llama" if pre is None else "gpt2", "tokens": tokens, "token_type": kinds}
    if pre is None:
        found["scores"] = _scores(data["model"], tokens)
    else:
        merges = data["model"]["merges"]
        found["pre"] = pre
        found["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return {f"tokenizer.ggml.{key}": value for key, value in {**found, **more}.items()}


def _kind(index: int, text: str, vocab: Mapping[int, str], added: Mapping[int, Any], pieces: bool) -> int:
    if pieces and text == "<unk>":
        return UNKNOWN
    if index in added:
        return CONTROL if added[index]["special"] else USER
    if pieces and len(text) == 6 and text.startswith("<0x"):
        return BYTE
    return NORMAL if index in vocab else UNUSED


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Scores that order pieces as the merges do: minus the place of the first merge that makes a piece."""
    first: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        first.setdefault("".join(merge if not isinstance(merge, str) else merge.split(" ")), place)
    return [-float(first.get(text, 0)) for text in tokens]
