"""Make a random checkpoint of Qwen2.5's shape, so that benchmarks need no download and all measure the same bytes.

The defaults are those of Qwen2.5-0.5B: tied bfloat16 weights, biases on q, k and v, a byte-level BPE tokenizer that
leaves 271 rows of the embedding unused. Weights are written in pieces of a few megabytes, so the memory needed does
not grow with the model. The same options give the same bytes.

    python -m benchmarks.make_checkpoint OUT [--layers 24] [--hidden 896] [--vocab 151936] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PIECE = 1 << 22
"""Elements made and written at a time."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
UNUSED_ROWS = 271

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenisation."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2 decoder; names as in ``config.json``."""

    num_hidden_layers: int = 24
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    vocab_size: int = 151_936

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("hidden must be a multiple of heads, and heads of kv-heads")
        if self.vocab_size < 256 + len(SPECIAL_TOKENS) + UNUSED_ROWS:
            raise ValueError(f"vocab must be at least {256 + len(SPECIAL_TOKENS) + UNUSED_ROWS}")

    @property
    def special_id(self) -> int:
        """Id of the first special token: the BPE vocabulary ends below it."""
        return self.vocab_size - UNUSED_ROWS - len(SPECIAL_TOKENS)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
        """Name, shape, mean and standard deviation of every tensor, in the order of the file."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        kv = hidden // self.num_attention_heads * self.num_key_value_heads
        out_std = 0.02 / (2 * self.num_hidden_layers) ** 0.5
        yield "model.embed_tokens.weight", (self.vocab_size, hidden), 0.0, 0.02
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,), 1.0, 0.05
            yield prefix + "mlp.down_proj.weight", (hidden, mlp), 0.0, out_std
            yield prefix + "mlp.gate_proj.weight", (mlp, hidden), 0.0, 0.02
            yield prefix + "mlp.up_proj.weight", (mlp, hidden), 0.0, 0.02
            yield prefix + "post_attention_layernorm.weight", (hidden,), 1.0, 0.05
            yield prefix + "self_attn.k_proj.bias", (kv,), 0.0, 0.1
            yield prefix + "self_attn.k_proj.weight", (kv, hidden), 0.0, 0.02
            yield prefix + "self_attn.o_proj.weight", (hidden, hidden), 0.0, out_std
            yield prefix + "self_attn.q_proj.bias", (hidden,), 0.0, 0.1
            yield prefix + "self_attn.q_proj.weight", (hidden, hidden), 0.0, 0.02
            yield prefix + "self_attn.v_proj.bias", (kv,), 0.0, 0.1
            yield prefix + "self_attn.v_proj.weight", (kv, hidden), 0.0, 0.02
        yield "model.norm.weight", (hidden,), 1.0, 0.05


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of float32 values rounded to the nearest bfloat16, ties to even, as little-endian uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def write_weights(path: Path, shape: Shape, seed: int) -> None:
    """Write one safetensors file; each tensor has a random stream of its own, seeded by its name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims, _, _ in shape.tensors():
        end = offset + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims, mean, std in shape.tensors():
            _write_normal(file, int(np.prod(dims)), mean, std, np.random.default_rng([seed, zlib.crc32(name.encode())]))


def _write_normal(file: BinaryIO, count: int, mean: float, std: float, rng: np.random.Generator) -> None:
    for start in range(0, count, PIECE):
        values = rng.standard_normal(min(PIECE, count - start), dtype=np.float32)
        values *= np.float32(std)
        values += np.float32(mean)
        file.write(bfloat16(values).tobytes())


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE, by byte value."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def merges(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` BPE merges whose results are all different: word-like runs of letters and three-byte characters."""
    rng = np.random.default_rng([seed, 1])
    alphabet = byte_alphabet()
    letters = list("etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ")
    tails = [alphabet[byte] for byte in range(0x80, 0xC0)]
    words = [*letters, alphabet[0x20]]
    wide = [alphabet[byte] for byte in range(0xE4, 0xEA)]
    known: set[str] = set()
    found: list[tuple[str, str]] = []
    while len(found) < count:
        # low indices are old, short tokens; the square prefers them, as real merges do
        draws = rng.random((4096, 3))
        for pick, left, right in draws:
            group, ends = (words, letters) if pick < 0.75 else (wide, tails)
            pair = group[int(left * left * len(group))], ends[int(right * right * len(ends))]
            merged = pair[0] + pair[1]
            if merged in known or len(merged) > (12 if group is words else 3) or len(found) == count:
                continue
            known.add(merged)
            found.append(pair)
            group.append(merged)
    return found


def write_tokenizer(folder: Path, shape: Shape, seed: int) -> None:
    """``tokenizer.json`` in the form of Qwen2's, and the files beside it that transformers reads."""
    alphabet = byte_alphabet()
    rules = merges(shape.special_id - 256, seed)
    tokens = sorted(alphabet) + [left + right for left, right in rules]
    added = [
        {
            "id": shape.special_id + number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content.startswith("<|"),
        }
        for number, content in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [" ".join(pair) for pair in rules],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(row["id"]): {key: row[key] for key in fields} for row in added},
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)


def write_configs(folder: Path, shape: Shape) -> None:
    """``config.json`` and ``generation_config.json``."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": shape.special_id,
        "eos_token_id": shape.special_id + 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        **asdict(shape),
    }
    generation = {
        "bos_token_id": shape.special_id,
        "do_sample": True,
        "eos_token_id": [shape.special_id + 2, shape.special_id],
        "pad_token_id": shape.special_id,
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    _write_json(folder / "config.json", dict(sorted(config.items())))
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def make_checkpoint(folder: Path, shape: Shape | None = None, seed: int = 0) -> None:
    """Write every file of the checkpoint into `folder`, which is made if it does not exist."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, shape)
    write_tokenizer(folder, shape, seed)
    write_weights(folder / "model.safetensors", shape, seed)


def main() -> None:
    """Command line of this script."""
    usual = Shape()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=usual.num_hidden_layers)
    parser.add_argument("--hidden", type=int, default=usual.hidden_size)
    parser.add_argument("--mlp", type=int, default=usual.intermediate_size)
    parser.add_argument("--heads", type=int, default=usual.num_attention_heads)
    parser.add_argument("--kv-heads", type=int, default=usual.num_key_value_heads)
    parser.add_argument("--vocab", type=int, default=usual.vocab_size)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        shape = Shape(args.layers, args.hidden, args.mlp, args.heads, args.kv_heads, args.vocab)
    except ValueError as error:
        parser.error(str(error))
    make_checkpoint(args.out, shape, args.seed)


if __name__ == "__main__":
    main()
