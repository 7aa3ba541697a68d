"""An export: its file, what its inputs are, values to feed it with, and what torch says to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.support.exports.families import WORK, checkpoint, config_of, torch_model

Arrays = dict[str, np.ndarray]

ROLES = {
    "input_ids": "ids",
    "inputs_embeds": "embeddings",
    "attention_mask": "mask",
    "position_ids": "positions",
    "logits_index": "rows",
}


@dataclass(frozen=True)
class Options:
    """What is exported, in the terms of the torch exporters; others take those that they have.

    Attributes:
        opset: of the default domain.
        attention: ``eager`` or ``sdpa``.
        embeddings: rows of the embedding are the input, not token ids.
        mask: a padding mask i64[batch, past + seq] is an input.
        positions: positions i64[batch, seq] are an input.
        history: earlier keys and values are inputs, all keys and values outputs.
        present: keys and values are outputs; there is no history.
        rows: which rows have logits: ``all``, ``last`` (chosen in the graph), ``gather`` or ``slice`` (by an input
            ``logits_index`` i64[1]: these rows, or all from there on).
        half: weights and activations in float16.
        batch: the number of sequences is free; otherwise 1.
    """

    opset: int = 17
    attention: str = "eager"
    embeddings: bool = False
    mask: bool = False
    positions: bool = False
    history: bool = False
    present: bool = False
    rows: str = "all"
    half: bool = False
    batch: bool = True


@dataclass(frozen=True)
class Export:
    """A model file that an exporter made of a checkpoint.

    Attributes:
        path: the ONNX file; files it refers to lie beside it.
        family: key of `FAMILIES`.
        exporter: key of `EXPORTERS`.
        options: what was asked for.
        roles: for each input ``ids``, ``embeddings``, ``mask``, ``positions``, ``key``, ``value`` or ``rows``.
        exact: the weights in the file are those of the checkpoint, so that torch is a reference.
    """

    path: Path
    family: str
    exporter: str
    options: Options
    roles: Mapping[str, str]
    exact: bool = True

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint."""
        return checkpoint(self.family)

    def model(self) -> onnx.ModelProto:
        """A fresh copy of the model, weights included."""
        return onnx.load(self.path)

    def feeds(self, *, batch: int = 1, past: int = 0, seq: int = 6, seed: int = 0) -> Arrays:
        """Values for every input: random ids (or their embeddings), a mask of ones, a random history."""
        rng = np.random.default_rng([seed, batch, past, seq])
        config = config_of(self.family)
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        real = np.float16 if self.options.half else np.float32
        ids = rng.integers(0, config.vocab_size, (batch, seq))
        made: dict[str, Callable[[], np.ndarray]] = {
            "ids": lambda: ids,
            "embeddings": lambda: self._embedded(ids),
            "mask": lambda: np.ones((batch, past + seq), np.int64),
            "positions": lambda: np.tile(np.arange(past, past + seq), (batch, 1)),
            "key": lambda: rng.standard_normal((batch, heads, past, size)).astype(real),
            "value": lambda: rng.standard_normal((batch, heads, past, size)).astype(real),
            "rows": lambda: np.array([seq - 1]),
        }
        return {name: made[role]() for name, role in self.roles.items()}

    def _embedded(self, ids: np.ndarray) -> np.ndarray:
        table = torch_model(self.family, half=self.options.half).get_input_embeddings().weight
        return table.detach().numpy()[ids]

    def reference(self, feeds: Arrays) -> Arrays:
        """What the family's model says in torch: ``logits`` and, where the export has them, ``present`` tensors.

        Raises:
            ValueError: the file's weights are not the checkpoint's, so torch is no reference.
        """
        from tests.support.exports.torch_export import reference

        if not self.exact:
            raise ValueError(f"{self.path.parent.name}: the weights were changed by the exporter")
        return reference(self, feeds)


def run(model: Path | onnx.ModelProto, feeds: Arrays) -> Arrays:
    """All outputs of a model in onnxruntime; feeds that it has no input for are left out."""
    session = _session(model)
    names = [item.name for item in session.get_outputs()]
    wanted = {item.name for item in session.get_inputs()}
    values = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
    return dict(zip(names, values, strict=True))


def _session(model: Path | onnx.ModelProto) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    # Else products with 4-bit weights, when it puts them together from DequantizeLinear, round activations to 8 bits.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def _torch(exporter: str, family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    from tests.support.exports.torch_export import make

    return make(exporter, family, options, folder)


def _genai(exporter: str, family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    from tests.support.exports.genai_export import make

    return make(family, options, folder, build)


def _contrib(exporter: str, family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    from tests.support.exports.contrib import make

    return make(family, options, folder, build)


def _llm_exporter(exporter: str, family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    from tests.support.exports.llm_exporter import make

    return make(family, options, folder, build)


EXPORTERS: dict[str, Callable[..., Export]] = {
    "script": _torch,
    "dynamo": _torch,
    "genai": _genai,
    "contrib": _contrib,
    "llm-exporter": _llm_exporter,
}


def export(family: str, exporter: str, **options: Any) -> Export:
    """The export of a family by an exporter, made on the first call with these options.

    Args:
        family: key of `FAMILIES`.
        exporter: key of `EXPORTERS`.
        options: fields of `Options`, and what the exporter alone knows (``precision`` and options of its builder).
    """
    return _made(family, exporter, tuple(sorted(options.items())))


@cache
def _made(family: str, exporter: str, given: tuple[tuple[str, Any], ...]) -> Export:
    known = {name: value for name, value in given if name in Options.__dataclass_fields__}
    build = {name: value for name, value in given if name not in known}
    folder = WORK / "-".join([exporter, family, *(f"{name}={value}" for name, value in given)])
    folder.mkdir()
    try:
        return EXPORTERS[exporter](exporter, family, Options(**known), folder, build)
    except BaseException:
        shutil.rmtree(folder)
        raise
