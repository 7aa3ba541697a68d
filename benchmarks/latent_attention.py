"""What latent attention costs on MNN with a history of latent vectors, and with one of keys and values.

``python -m benchmarks.latent_attention OUT [--shape SHAPE ...] [--context N ...]``; see README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from backends.mnn.run.native import run_model
from backends.mnn.write.configs import CONFIG
from tools.compile.job import Request, compile_model
from tools.matrix.random_checkpoints import write_safetensors

VOCABULARY, LAYERS, PIECE, TOKENS = 512, 2, 128, 24

SHAPES: dict[str, dict[str, Any]] = {
    "minicpm3": {
        "model_type": "minicpm3",
        "hidden_size": 2560,
        "intermediate_size": 6400,
        "num_attention_heads": 40,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
    },
    "kimi": {
        "model_type": "kimi_k2",
        "hidden_size": 7168,
        "intermediate_size": 2048,
        "num_attention_heads": 64,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": LAYERS,
    },
}
"""Layers of published models; those of Kimi K2 with an MLP as wide as one expert in the place of its experts."""

FORMS = ("absorbed", "expanded")


def tensors(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a checkpoint."""
    hidden, heads, inner = shape["hidden_size"], shape["num_attention_heads"], shape["intermediate_size"]
    own, turned, value = (shape[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    rank, low = shape["kv_lora_rank"], shape["q_lora_rank"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for index in range(LAYERS):
        parts = {
            "self_attn.q_a_proj": (low, hidden),
            "self_attn.q_a_layernorm": (low,),
            "self_attn.q_b_proj": (heads * (own + turned), low),
            "self_attn.kv_a_proj_with_mqa": (rank + turned, hidden),
            "self_attn.kv_a_layernorm": (rank,),
            "self_attn.kv_b_proj": (heads * (own + value), rank),
            "self_attn.o_proj": (hidden, heads * value),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        found |= {f"model.layers.{index}.{name}.weight": size for name, size in parts.items()}
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def make(folder: Path, shape: dict[str, Any]) -> None:
    """Write a random checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        name: (
            np.ones(size, np.float32)
            if len(size) == 1
            else rng.standard_normal(size, np.float32) / np.float32(size[1] ** 0.5)
        ).astype(ml_dtypes.bfloat16)
        for name, size in tensors(shape).items()
    }
    write_safetensors(folder / "model.safetensors", arrays)
    config = {
        **shape,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": shape["num_attention_heads"],
        "max_position_embeddings": 1 << 15,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def measure(folder: Path, context: int) -> dict[str, float]:
    """Milliseconds of the fastest token decoded, tokens of a prompt per second, and MB that a history takes."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, context).tolist()
    overrides = {"thread_num": 1}
    bench = {"do": "bench", "prompt": ids, "tokens": TOKENS, "repeat": 1}
    found = dict(run_model(folder / CONFIG, [bench], overrides=overrides, timeout_s=900).require("bench").results[0])
    resident = []
    for count in (PIECE, context):
        pieces = [ids[start : start + PIECE] for start in range(0, count, PIECE)]
        action = {"do": "forward", "pieces": pieces, "keep": "none"}
        run = run_model(folder / CONFIG, [action], overrides=overrides, timeout_s=900).require("forward")
        resident.append(dict(run.results[0])["rss"])
    return {
        "decode": 1e3 * min(found["decode_s"]),
        "prefill": found["prefill_tokens_per_s"],
        "history": (resident[1] - resident[0]) / 1e6,
    }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what is made")
    parser.add_argument("--shape", dest="shapes", action="append", choices=list(SHAPES), help="default: all of them")
    parser.add_argument(
        "--context", dest="contexts", action="append", type=int, help="tokens of history; default: 128, 1024, 4096"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each cell is measured, the forms taking turns")
    return parser.parse_args(argv)


def main() -> None:
    """Compile random layers of each shape in both forms, 4 bits, and run them on the installed MNN, one thread."""
    args = parse_arguments()
    out, rounds = args.out, args.rounds
    shapes, contexts = args.shapes or list(SHAPES), args.contexts or [128, 1024, 4096]
    print("| shape | history of | weights | tokens | decode | prefill | history takes |")
    print("|---|---|---|---|---|---|---|")
    for name in shapes:
        source = out / name
        if not (source / "config.json").exists():
            make(source, SHAPES[name])
        folders = {form: out / f"{name}-{form}" for form in FORMS}
        for form, folder in folders.items():
            pipeline = f"int4{{latent={form}}}"
            compile_model(Request(str(source), folder, pipeline, verify="none", tokenizer="none", force=True))
        for context in contexts:
            runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
            for _ in range(rounds):
                for form in FORMS:
                    runs[form].append(measure(folders[form], context))
            for form in FORMS:
                size = (folders[form] / "llm.mnn.weight").stat().st_size / 1e6
                best = {"decode": min, "prefill": max, "history": statistics.median}
                cells = {key: choose([run[key] for run in runs[form]]) for key, choose in best.items()}
                print(
                    f"| {name} | {'latent vectors' if form == 'absorbed' else 'keys, values'} | {size:.1f} MB | {context} | "
                    f"{cells['decode'] / LAYERS:.2f} ms/layer | {cells['prefill']:.0f} tok/s | "
                    f"{cells['history'] / LAYERS:.1f} MB/layer |"
                )


if __name__ == "__main__":
    main()
