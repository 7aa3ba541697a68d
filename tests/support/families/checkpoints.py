"""Checkpoints of `cases` as files, and the logits that the reference implementation computes from them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import write_tokenizer, write_weights
from tests.support.families.cases import CASES, Case
from tests.support.families.hot import hot
from tests.support.families.released import EPS_KEYS, make_terse, respell, write_config

EPS = 0.01
"""The number in every norm's root: so large that it matters where it comes from."""

HEADS = ("lm_head.weight", "output.weight", "output_layer.weight")
TOWERS = re.compile(r"(^|\.)(visual|vision_tower|vit|audio_tower|multi_modal_projector)\.")
"""Names of tensors of the parts that see and hear; they play no part for text and keep their first values."""


@dataclass(frozen=True)
class Golden:
    """What the reference says: token ids int64[1, n] and logits float32[n, vocab] for each prompt."""

    ids: tuple[np.ndarray, ...]
    logits: tuple[np.ndarray, ...]

    @property
    def largest(self) -> float:
        """The largest logit, without its sign."""
        return max(float(np.abs(rows).max()) for rows in self.logits)

    @property
    def bar(self) -> float:
        """How far float32 arithmetic in another order may be off."""
        return 1e-4 * max(1.0, self.largest / 10)


def make(folder: Path, name: str, *, tokenizer: bool = False) -> Golden:
    """Write the checkpoint of a case into a folder and compute its goldens.

    Args:
        folder: created if needed.
        name: key of `CASES`.
        tokenizer: write a tokenizer beside it.
    """
    case = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    golden = _plain(folder, case) if case.reader == "plain" else _by_transformers(folder, case)
    if tokenizer:
        write_tokenizer(folder, 320)
    return golden


def kept(folder: Path, name: str, *, tokenizer: bool = True) -> tuple[Path, Golden]:
    """The checkpoint of a case below a folder, made unless it is there, and its goldens."""
    place = folder / name
    file = folder / f"{name}.npz"
    if not file.exists():
        golden = make(place, name, tokenizer=tokenizer)
        arrays = {f"ids{i}": ids for i, ids in enumerate(golden.ids)}
        arrays |= {f"logits{i}": rows for i, rows in enumerate(golden.logits)}
        np.savez(file, **arrays)
        return place, golden
    with np.load(file) as found:
        count = sum(key.startswith("ids") for key in found.files)
        return place, Golden(
            tuple(found[f"ids{i}"] for i in range(count)), tuple(found[f"logits{i}"] for i in range(count))
        )


def prompts(case: Case, vocab: int = 300) -> tuple[np.ndarray, ...]:
    """Token ids int64[1, n] of each length; the last ids of the vocabulary may stand for pictures."""
    return tuple(np.random.default_rng(n).integers(3, vocab, (1, n)) for n in case.lengths)


# ---- models of transformers ----


def _by_transformers(folder: Path, case: Case) -> Golden:
    import torch

    model = build_model(case)
    model.save_pretrained(folder)
    if case.spelling == "hub":
        respell(folder, case)
        if case.reads_as:
            config = json.loads((folder / "config.json").read_text())
            write_config(folder, {**config, "model_type": case.reads_as})
            model = read_model(folder, case)
            write_config(folder, config)
        else:
            model = read_model(folder, case)
    if case.spelling == "terse":
        make_terse(folder)
        model = read_model(folder, case)
    ids = prompts(case)
    with torch.no_grad():
        logits = tuple(model(input_ids=torch.from_numpy(one), use_cache=False).logits[0].numpy() for one in ids)
    return Golden(ids, logits)


def model_class(case: Case) -> Any:
    """The class of `transformers` that chooses the model's class."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return {
        "causal": transformers.AutoModelForCausalLM,
        "picture": transformers.AutoModelForImageTextToText,
        "any": transformers.AutoModelForMultimodalLM,
    }[case.reader]


def build_model(case: Case, folder: Path | None = None) -> Any:
    """A model of the reference with hot weights that bfloat16 can hold.

    Args:
        case: what to build.
        folder: where its configuration stands; None takes that of the case.
    """
    import torch
    from transformers import AutoConfig

    if folder is None:
        settings = AutoConfig.for_model(case.reads_as or case.model_type, **json.loads(json.dumps(case.config)))
    else:
        settings = AutoConfig.from_pretrained(folder)
    text = settings.get_text_config()
    for key in EPS_KEYS:
        if hasattr(text, key):
            setattr(text, key, EPS)
    torch.manual_seed(0)
    model = model_class(case).from_config(settings, attn_implementation="eager").float().eval()
    with torch.no_grad():
        stored = set(model.state_dict())
        buffers = [(key, value) for key, value in model.named_buffers() if key in stored]
        for key, value in (*model.named_parameters(), *buffers):
            if not TOWERS.search(key):
                value.copy_(torch.from_numpy(hot(key, tuple(value.shape), first=value)))
        if case.spelling == "terse" and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            model.get_input_embeddings().weight.mul_(1 / 64)
    model.tie_weights()
    return model


def read_model(folder: Path, case: Case) -> Any:
    """The reference's own reading of a checkpoint, which must use every tensor and make none up."""
    import torch

    model, told = model_class(case).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    beyond = f"model.layers.{model.config.get_text_config().num_hidden_layers}."
    if "next tokens" in case.edits:
        told["unexpected_keys"] = {key for key in told["unexpected_keys"] if not key.startswith(beyond)}
    wrong = {key: found for key, found in told.items() if found and key != "error_msgs"}
    if wrong:
        raise ValueError(f"the reference cannot use {folder.name} as it is: {wrong}")
    return model.eval()


# ---- models that transformers has no code for ----


def _plain(folder: Path, case: Case) -> Golden:
    import ml_dtypes
    import torch

    from tests.support.families.plain import plain_logits, plain_shapes

    kind, config = case.model_type, case.config
    arrays = {key: hot(key, shape) for key, shape in plain_shapes(kind, config).items()}
    if case.spelling == "terse" and any(key.endswith(HEADS) for key in arrays):
        arrays[next(iter(arrays))] /= 64
    write_config(folder, {"model_type": case.model_type, "torch_dtype": "bfloat16", **case.config, **case.hub})
    write_weights(folder, {key: array.astype(ml_dtypes.bfloat16) for key, array in arrays.items()})
    weights = {key: torch.from_numpy(array) for key, array in arrays.items()}
    ids = prompts(case)
    return Golden(ids, tuple(plain_logits(kind, config, weights, torch.from_numpy(one[0])).numpy() for one in ids))
