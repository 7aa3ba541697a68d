"""Exports by the model builder of onnxruntime-genai."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx

from tests.support.exports.export import ROLES, Export, Options
from tests.support.exports.families import checkpoint


def make(family: str, options: Options, folder: Path, build: Mapping[str, Any]) -> Export:
    """Export for a processor into a folder.

    Args:
        family: one that the builder knows: not glm, cohere, stablelm; nor gemma 3 as transformers 5 writes it.
        options: not looked at; the builder decides what inputs are.
        folder: where to.
        build: ``precision`` (``fp32``, ``fp16``, ``int8``, ``int4``) and the builder's extra options, as text.
    """
    with _quiet():
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

    given = dict(build)
    precision = given.pop("precision", "fp32")
    source, cache = str(checkpoint(family)), str(folder / "cache")
    extra = [f"{name}={value}" for name, value in given.items()]
    with _quiet():
        chosen = parse_extra_options(None, source, str(folder), precision, "cpu", cache, extra)
        create_model(None, source, str(folder), precision, "cpu", cache, **chosen)
    path = folder / "model.onnx"
    names = [item.name for item in onnx.load(path, load_external_data=False).graph.input]
    roles = {name: ROLES.get(name, name.rpartition(".")[2]) for name in names}
    rows = "last" if given.get("prune_lm_head") == "true" else "all"
    shown = Options(
        opset=22,
        embeddings="inputs_embeds" in roles,
        mask="attention_mask" in roles,
        positions="position_ids" in roles,
        history=True,
        rows=rows,
        half=precision == "fp16",
    )
    return Export(path, family, "genai", shown, roles, exact=precision in ("fp32", "fp16"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Show nothing; loggers are afterwards as they were, which the quantizer of onnxruntime sets up anew."""
    handlers, level = logging.root.handlers[:], logging.root.level
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
