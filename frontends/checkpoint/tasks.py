"""What a checkpoint is for, where that is not to predict the next token: told by its configuration, tensors and files.

A decoder without its output matrix, or with another one, computes the same hidden states as a language model, and where the
configuration says that embedding and output matrix are one, nothing is missing for compiling it as one. What comes out would
be logits that nobody trained. So what a checkpoint is for is asked first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.configuration.keys import shown
from ir.base.diag import LadingError

MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Task:
    """A use of models: architectures that are made for it, what such a model is, and what it gives instead of logits."""

    architectures: str
    what: str
    gives: str


TASKS: tuple[Task, ...] = (
    Task(r".*For(Sequence|Text|Multi\w*)Classification", "a classifier of texts", "a score for each class"),
    Task(r".*ForTokenClassification", "a classifier of tokens", "a score for each class and token"),
    Task(r".*RewardModel", "a reward model", "a score for each text"),
    Task(r".*ForQuestionAnswering", "a model that marks answers in texts", "the ends of an answer"),
    Task(r".*ForMultipleChoice", "a model that chooses among answers", "a score for each answer"),
    Task(r".*ForMaskedLM", "an encoder that fills gaps in texts", "the tokens of gaps"),
    Task(r".*For(NextSentencePrediction|PreTraining)", "an encoder at its first training", "no next token"),
    Task(r".*For(Image|Audio|Video)\w+|.*ForCTC", "a model of pictures or sounds", "no tokens of a text"),
    Task(r".*EncoderModel", "the encoder of an encoder-decoder model", "a vector for each token"),
)
"""By the end of the name of the architecture."""

BARE = re.compile(r"(?!.*(LMHead|DoubleHeads)Model$)[A-Z]\w*Model")
"""Architectures without anything behind the last norm."""

HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer)\.(weight|qweight|weight_packed)$")
"""Tensors that are output matrices."""

OTHER_HEADS = re.compile(r"(^|\.)(score|classifier|v_head|value_head|reward_head|regression_head)\.")
"""Tensors that stand in the place of an output matrix, in models that give scores."""

ENCODERS = frozenset(
    """
    albert bert big_bird camembert convbert deberta deberta-v2 distilbert electra ernie esm eurobert flaubert funnel
    ibert layoutlm longformer luke megatron-bert mobilebert modernbert mpnet mra nezha nomic_bert nystromformer rembert
    roberta roberta-prelayernorm roc_bert roformer squeezebert xlm xlm-roberta xlm-roberta-xl xmod yoso
    """.split()
)
"""Values of ``model_type`` whose models see the text on both sides."""

SEQUENCE_TO_SEQUENCE = frozenset(
    """
    bart bigbird_pegasus blenderbot blenderbot-small led longt5 m2m_100 marian mbart moonshine mt5 mvp nllb-moe pegasus
    pegasus_x plbart prophetnet seamless_m4t speech_to_text switch_transformers t5 t5gemma umt5 whisper
    """.split()
)
"""Values of ``model_type`` whose models read with an encoder and write with a decoder."""

POOLINGS = {
    "pooling_mode_cls_token": "the first token's",
    "pooling_mode_mean_tokens": "the mean over the tokens",
    "pooling_mode_max_tokens": "the largest over the tokens",
    "pooling_mode_mean_sqrt_len_tokens": "the sum over the tokens by the root of their number",
    "pooling_mode_weightedmean_tokens": "the mean over the tokens, later ones weighing more",
    "pooling_mode_lasttoken": "the last token's",
}
"""Keys of the configuration of pooling in sentence-transformers, and the vector that is taken."""


def refuse_other_tasks(folder: Path, tensors: Collection[str] = ()) -> None:
    """Refuse a checkpoint that is no language model.

    Args:
        folder: the checkpoint.
        tensors: names of its tensors.

    Raises:
        LadingError: F594.
    """
    raw = _json(folder / "config.json")
    if not isinstance(raw, dict):
        return
    why, hint = _other_task(raw, folder, tensors)
    if why:
        raise LadingError("F594", why, str(folder / "config.json"), hint)


def _other_task(raw: Mapping[str, Any], folder: Path, tensors: Collection[str]) -> tuple[str, str]:
    """What a checkpoint is instead of a language model, and what to do; empty for language models."""
    kind = raw.get("model_type")
    names = [name for name in _listed(raw.get("architectures")) if isinstance(name, str)]
    named = f" ({', '.join(names[:2])})" if names else ""
    if kind in SEQUENCE_TO_SEQUENCE or raw.get("is_encoder_decoder") is True:
        return (
            f"this is an encoder-decoder model{named} of the type {shown(kind)}, which reads with one part and writes with "
            "another",
            "decoders are compiled: models whose architecture ends in ForCausalLM",
        )
    if kind in ENCODERS and raw.get("is_decoder") is not True:
        return (
            f"this is an encoder{named} of the type {shown(kind)}: {_embeds(folder)}no next token is predicted",
            _ONNX,
        )
    for task in TASKS:
        if names and all(re.fullmatch(task.architectures, name) for name in names):
            return f"this is {task.what}{named}, not a language model: it gives {task.gives}", _ONNX
    pooling = _embeds(folder)
    if pooling:
        return f"this is an embedding model{named}, not a language model: {pooling}no next token is predicted", _ONNX
    if any(HEADS.search(name) for name in tensors):
        return "", ""
    other = next((name for name in tensors if OTHER_HEADS.search(name)), None)
    if other is not None:
        return (
            f"this is a model that gives scores{named}, not a language model: in place of an output matrix it has {other}",
            (_ONNX),
        )
    if names and all(BARE.fullmatch(name) for name in names):
        return f"this is a model without output matrix{named}, as for embeddings: it predicts no next token", _ONNX
    return "", ""


_ONNX = (
    "other models than language models are compiled from ONNX: export it with optimum or torch, and then compile the .onnx "
    "file with --to onnx or --to mnn"
)


def _embeds(folder: Path) -> str:
    """How sentence-transformers makes one vector of a text here, with a semicolon; empty where it is not used."""
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list):
        return ""
    steps, pooled = [], False
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            record = _json(folder / str(module.get("path") or "1_Pooling") / "config.json")
            keys = record if isinstance(record, dict) else {}
            chosen = [text for key, text in POOLINGS.items() if keys.get(key) is True]
            pooled = True
            steps.append(f"its vector is {' and '.join(chosen)}" if chosen else "its vectors are pooled")
        elif kind == "Normalize":
            steps.append("of length 1")
        elif kind == "Dense":
            steps.append("put through a matrix")
    return f"{', '.join(steps)}; " if pooled else ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(path: Path) -> Any:
    """The content of a JSON file; None where it is no such file, which others tell of."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


__all__ = ["refuse_other_tasks"]
