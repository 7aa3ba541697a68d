"""Train small checkpoints of several families, so that quality can be measured on weights that mean something.

The text is what every installation of Python has: the sources of its own standard library. Files are dealt to
training, calibration and evaluation by a hash of their name, so that no file is in two of them. A checkpoint is what
``transformers`` saves, in bfloat16, with a byte-level BPE tokenizer and the two held-out texts beside it. One thread
does everything, so that the same options and seed give the same weights on the same machine.

    python -m benchmarks.train_checkpoints OUT --family llama [--steps 1500] [--seed 0]

It needs torch, transformers and tokenizers. OUT then has one folder for each family.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELD_OUT = 24
"""One file in so many is for calibration, and as many for evaluation."""
TEXT_BYTES = 200_000
"""Size to which each held-out text is cut."""
TOKENIZER_BYTES = 6_000_000
"""Training text that the tokenizer is learned from."""


@dataclass(frozen=True)
class Family:
    """What is special in a family: names of transformers' classes, and the settings that differ from the shared ones.

    Without heads among the settings, they are `head_width` wide and fill the hidden size.
    """

    config: str
    model: str
    settings: tuple[tuple[str, Any], ...] = ()
    head_width: int = 64


FAMILIES = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": Family(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        (("num_attention_heads", 4), ("num_key_value_heads", 2), ("head_dim", 64)),
    ),
    "mistral": Family("MistralConfig", "MistralForCausalLM", (("sliding_window", None),), head_width=32),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", (("tie_word_embeddings", True),)),
    "windows": Family("MistralConfig", "MistralForCausalLM", (("sliding_window", 64),), head_width=32),
    "mixture": Family(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        (
            ("num_attention_heads", 4),
            ("num_key_value_heads", 2),
            ("head_dim", 64),
            ("num_experts", 8),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 192),
            ("norm_topk_prob", True),
        ),
    ),
    "latent": Family(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        (
            ("num_attention_heads", 4),
            ("num_key_value_heads", 4),
            ("q_lora_rank", 128),
            ("kv_lora_rank", 64),
            ("qk_nope_head_dim", 32),
            ("qk_rope_head_dim", 32),
            ("v_head_dim", 64),
            ("first_k_dense_replace", 1 << 10),
        ),
    ),
    "delta": Family(
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        (
            ("num_attention_heads", 4),
            ("num_key_value_heads", 2),
            ("head_dim", 64),
            ("linear_num_key_heads", 2),
            ("linear_num_value_heads", 4),
            ("linear_key_head_dim", 32),
            ("linear_value_head_dim", 64),
        ),
    ),
}


def library_files(root: Path) -> list[Path]:
    """Python files of a library that can be read as UTF-8, in the order of their names; not those installed into it."""
    left_out = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}
    return [path for path in sorted(root.rglob("*.py")) if not left_out & set(path.relative_to(root).parts)]


def split_of(name: str) -> str:
    """Which text the file of a name belongs to: ``train``, ``calibration`` or ``evaluation``."""
    return {0: "calibration", 1: "evaluation"}.get(zlib.crc32(name.encode()) % HELD_OUT, "train")


def texts(root: Path) -> dict[str, list[str]]:
    """The sources of a library by what they are used for.

    Raises:
        SystemExit: one of the three would be empty.
    """
    found: dict[str, list[str]] = {"train": [], "calibration": [], "evaluation": []}
    for path in library_files(root):
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if text.strip():
            found[split_of(path.relative_to(root).as_posix())].append(text)
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise SystemExit(f"{root} has too few Python files: nothing for {', '.join(empty)}")
    return found


def held_out(files: Sequence[str], seed: int) -> str:
    """Pieces of 4,000 characters from files in a mixed order, about `TEXT_BYTES` in all."""
    order = np.random.default_rng(seed).permutation(len(files))
    pieces, size = [], 0
    for index in order:
        piece = files[index][:4000]
        pieces.append(piece if piece.endswith("\n") else piece + "\n")
        size += len(piece.encode())
        if size >= TEXT_BYTES:
            break
    return "".join(pieces)


def train_tokenizer(files: Sequence[str], vocab: int) -> Any:
    """A byte-level BPE tokenizer as a transformers object."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_up_to(files, TOKENIZER_BYTES), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[2]
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _up_to(files: Sequence[str], size: int) -> Iterator[str]:
    """Every third file, so that all of the library is seen, until `size` characters were given."""
    for text in [*files[::3], *files[1::3], *files[2::3]]:
        if size <= 0:
            return
        size -= len(text)
        yield text


def encode(tokenizer: Any, files: Sequence[str], separator: int = 0) -> np.ndarray:
    """uint16[n] ids of all files, each followed by `separator`."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(files), add_special_tokens=False):
        ids += encoding.ids
        ids.append(separator)
    return np.array(ids, np.uint16)


def build_model(args: argparse.Namespace) -> Any:
    """A randomly initialised model of the family and sizes asked for."""
    import transformers

    family = FAMILIES[args.family]
    heads = args.hidden // family.head_width
    group = next((size for size in (3, 2) if heads % size == 0), heads)
    settings = {
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": 3 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // group,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **dict(family.settings),
    }
    config = getattr(transformers, family.config)(**settings)
    return getattr(transformers, family.model)(config)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A warm-up of a twentieth of the steps, then half a cosine down to nothing."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(model: Any, ids: np.ndarray, args: argparse.Namespace) -> None:
    """Adam on windows at random places; progress goes to standard error."""
    import torch

    random = np.random.default_rng(args.seed)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95))
    offsets = np.arange(args.context + 1)
    started = time.perf_counter()
    model.train()
    for step in range(args.steps):
        places = random.integers(0, len(ids) - args.context - 1, args.batch)
        batch = torch.from_numpy(ids[places[:, None] + offsets].astype(np.int64))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            line = f"{args.family} step {step}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s"
            print(line, file=sys.stderr, flush=True)


def perplexity(model: Any, ids: np.ndarray, context: int) -> float:
    """Perplexity over windows laid side by side, at most 200 of them."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, min(len(ids) - context - 1, 200 * context), context):
            window = torch.from_numpy(ids[start : start + context + 1].astype(np.int64))[None]
            logits = model(window[:, :-1], use_cache=False).logits.float()
            total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
            count += context
    return math.exp(total / count)


def make(args: argparse.Namespace) -> float:
    """Train one checkpoint and write its folder; gives the perplexity of what was written."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    found = texts(args.library)
    tokenizer = train_tokenizer(found["train"], args.vocab)
    ids = encode(tokenizer, found["train"])
    model = build_model(args)
    print(f"{args.family}: {model.num_parameters():,} weights, {len(ids):,} tokens of text", file=sys.stderr)
    train(model, ids, args)
    model = model.to(torch.bfloat16)
    folder = args.out / args.family
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("calibration", "evaluation"):
        (folder / f"{name}.txt").write_text(held_out(found[name], args.seed), encoding="utf-8")
    evaluation = encode(tokenizer, [(folder / "evaluation.txt").read_text(encoding="utf-8")])
    return perplexity(model.float(), evaluation, args.context)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder that gets one folder for each family")
    parser.add_argument("--family", choices=tuple(FAMILIES), required=True)
    parser.add_argument(
        "--library", type=Path, default=Path(sysconfig.get_path("stdlib")), help="Python files to learn"
    )
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="train in float32 throughout")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.vocab < 256 + len(SPECIAL_TOKENS) or args.vocab > 1 << 16:
        parser.error(f"--vocab is from {256 + len(SPECIAL_TOKENS)} to {1 << 16}")
    if args.hidden % 64:
        parser.error("--hidden must be a multiple of 64, the block of the 4-bit storages")
    return args


def main() -> None:
    """Train, write and print the perplexity."""
    args = parse_arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    value = make(args)
    print(f"{args.out / args.family}: perplexity {value:.2f} on held-out text")


if __name__ == "__main__":
    main()
