"""Exports by torch, with its TorchScript-based and with its newer exporter."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from tests.support.exports.export import ROLES, Arrays, Export, Options
from tests.support.exports.families import config_of, torch_model


class Decoder(torch.nn.Module):
    """A causal language model whose inputs are a fixed list of tensors, as exporters want them."""

    def __init__(self, model: torch.nn.Module, names: list[str], options: Options, script: bool):
        super().__init__()
        self.model, self.names, self.options, self.script = model, names, options, script

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Logits, or logits followed by keys and values of each layer."""
        given = dict(zip(self.names, tensors, strict=True))
        past = [given[name] for name in sorted(self.names, key=_layer) if name.startswith("past_")]
        caches = self.options.history or self.options.present
        passed = {name: given[name] for name in given if name in ROLES and name != "logits_index"}
        if past:
            passed["past_key_values"] = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        elif caches or (self.script and "attention_mask" not in given):
            # Without a cache and a mask, transformers looks for packed sequences, which TorchScript cannot export.
            passed["past_key_values"] = DynamicCache()
        out = self.model(**passed, use_cache=caches, logits_to_keep=self._rows(given))
        if not caches:
            return out.logits
        layers = out.past_key_values.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    def _rows(self, given: dict[str, torch.Tensor]) -> Any:
        rows = self.options.rows
        if rows == "gather":
            return given["logits_index"]
        return slice(given["logits_index"][0], None) if rows == "slice" else {"all": 0, "last": 1}[rows]


def _layer(name: str) -> tuple[int, str]:
    """Sorts tensors of a history by layer, keys before values: the builder of onnxruntime-genai lists all keys first."""
    parts = name.split(".")
    return (int(parts[1]), parts[2]) if len(parts) == 3 else (0, "")


def _input_names(family: str, options: Options) -> list[str]:
    names = ["inputs_embeds" if options.embeddings else "input_ids"]
    names += ["attention_mask"] * options.mask + ["position_ids"] * options.positions
    if options.history:
        names += [f"past_key_values.{name}" for name in _cached(family)]
    return names + ["logits_index"] * (options.rows in ("gather", "slice"))


def _cached(family: str) -> list[str]:
    return [f"{layer}.{kind}" for layer in range(config_of(family).num_hidden_layers) for kind in ("key", "value")]


def _output_names(family: str, options: Options) -> list[str]:
    caches = options.history or options.present
    return ["logits", *(f"present.{name}" for name in _cached(family) if caches)]


def _free_dims(name: str, options: Options) -> dict[int, str]:
    batch = {0: "batch"} if options.batch else {}
    if name in ("input_ids", "inputs_embeds", "position_ids"):
        return {**batch, 1: "seq"}
    if name == "attention_mask":
        return {**batch, 1: "total"}
    if name == "logits":
        return {**batch, 1: "seq" if options.rows == "all" else "rows"}
    if name == "logits_index":
        return {}
    return {**batch, 2: "past" if name.startswith("past_") else "total"}


def make(exporter: str, family: str, options: Options, folder: Path) -> Export:
    """Export into a folder."""
    path = folder / "model.onnx"
    names = _input_names(family, options)
    roles = {name: ROLES.get(name, name.rpartition(".")[2]) for name in names}
    made = Export(path, family, exporter, options, roles)
    values = made.feeds(batch=2 if options.batch else 1, past=5 if options.history else 0, seq=7)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in values.values())
    model = Decoder(torch_model(family, options.attention, options.half), names, options, exporter == "script")
    outputs = _output_names(family, options)
    settings: dict[str, Any] = {"input_names": names, "output_names": outputs, "opset_version": options.opset}
    if exporter == "script":
        free = {name: _free_dims(name, options) for name in (*names, *outputs)}
        settings |= {"dynamo": False, "dynamic_axes": {name: dims for name, dims in free.items() if dims}}
    else:
        free_dims = tuple(dict.fromkeys(_free_dims(name, options), torch.export.Dim.DYNAMIC) or None for name in names)
        settings |= {"dynamo": True, "dynamic_shapes": (free_dims,), "external_data": False, "verbose": False}
    with _quiet(), torch.no_grad():
        torch.onnx.export(model, tensors, str(path), **settings)
    return made


def reference(made: Export, feeds: Arrays) -> Arrays:
    """What torch makes of the feeds of an export: arrays by the names of the export's outputs."""
    options = made.options
    model = Decoder(torch_model(made.family, options.attention, options.half), list(feeds), options, script=False)
    with _quiet(), torch.no_grad():
        out = model(*(torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values()))
    tensors = out if isinstance(out, tuple) else (out,)
    return {name: item.numpy() for name, item in zip(_output_names(made.family, options), tensors, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
