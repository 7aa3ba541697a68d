"""What lies beside an ONNX file of a language model and belongs to it: tokenizer, configuration, weights.

Exporters write these files into the folder of the model; repositories on the hub keep models in a folder ``onnx`` below
them. All are optional.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frontends.tokenizers.files import tokenizer_file
from ir.base.json_numbers import whole
from ir.facts.model_card import ModelCard, SourceFile
from ir.graph.graph import Graph
from ir.onnx.export import all_constants
from ir.tensor.files import FileTensor

GENAI = "genai_config.json"
"""The configuration that onnxruntime-genai writes."""

BELOW = "onnx"
"""Name of the folder below a repository that holds its ONNX files."""

PLAIN = ("model", "decoder_model", "decoder_model_merged", "decoder")
"""Names of files that say nothing of the model: it is called as its folder is."""


def folders_of(path: Path) -> tuple[Path, ...]:
    """The folders in which files that belong to a model are looked for, the nearest first."""
    folder = path.absolute().parent
    return (folder, folder.parent) if folder.name == BELOW else (folder,)


def tokenizer_folder(path: Path) -> Path | None:
    """The folder with the tokenizer of a model file; None when it has none."""
    return next((folder for folder in folders_of(path) if tokenizer_file(folder) is not None), None)


def title_of(path: Path) -> str:
    """What to call the model of a file."""
    if path.stem.removesuffix("_quantized").removesuffix("_fp16") not in PLAIN:
        return path.stem
    return folders_of(path)[-1].name or path.stem


def described(path: Path, graph: Graph) -> ModelCard:
    """The card of a model, as far as the files beside it tell.

    Args:
        path: the ONNX file.
        graph: what was read from it.
    """
    config = _read(path, "config.json")
    model_type = config.get("model_type")
    limit = context_of(path)
    return ModelCard(
        title=title_of(path),
        model_type=model_type if isinstance(model_type, str) else None,
        max_position=limit,
        context=limit,
        sources=_sources(path, graph),
    )


def context_of(path: Path) -> int | None:
    """The longest sequence that the configuration beside a model file names."""
    config = _read(path, "config.json")
    inner = config.get("text_config")
    rows = {**(inner if isinstance(inner, dict) else {}), **config}
    genai = _read(path, GENAI).get("model")
    named = (rows.get("max_position_embeddings"), genai.get("context_length") if isinstance(genai, dict) else None)
    sizes = [size for size in named if isinstance(size, int) and not isinstance(size, bool) and size > 0]
    return min(sizes, default=None)


def _read(path: Path, name: str) -> Mapping[str, Any]:
    """An object beside a model file; empty where there is none that can be read: nothing depends on it."""
    for folder in folders_of(path):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8-sig"), parse_int=whole)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            return data
    return {}


def _sources(path: Path, graph: Graph) -> dict[str, SourceFile]:
    """The file and those that hold its weights."""
    from ir.base.whole_files import sha256_of

    files = {path.name: path}
    for value in all_constants(graph):
        if isinstance(value.const, FileTensor):
            found = Path(value.const.path)
            if found.name != path.name:
                files.setdefault(found.relative_to(path.parent).as_posix(), found)
    return {name: SourceFile(file.stat().st_size, sha256_of(file)) for name, file in sorted(files.items())}


__all__ = ["GENAI", "context_of", "described", "folders_of", "title_of", "tokenizer_folder"]
