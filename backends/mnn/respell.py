"""Write an existing model again in forms that a target reads: graph and weights from the IR, configuration and tokenizer
respelled, everything else copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from backends.mnn import configs
from backends.mnn.doctor_files import tie_numbers
from backends.mnn.fill import embedding_jobs, fill, weight_jobs
from backends.mnn.fit import check_storage, fit
from backends.mnn.layout import Layout, plan_layout
from backends.mnn.native import json_to_mnn
from backends.mnn.net import build_net
from backends.mnn.profiles import Target
from backends.mnn.subject import Subject
from backends.mnn.tokenizer import encode_text
from backends.mnn.tokenizer_lift import spec_of
from backends.mnn.tokenizer_reader import MtokFile, read_tokenizer
from ir.diag import LadingError
from ir.graph import Graph

_CAMEL = {
    "temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP", "tfs_z": "tfsZ",
    "repetition_penalty": "penalty",
}  # fmt: skip
_OWN = ("llm_model", "llm_weight", "llm_config", "tokenizer_file", "embedding_file")
_SKIPPED = ("contract.json", configs.CONFIG_TEXT)


def require_readable(subject: Subject) -> None:
    """Raise what makes a directory unfit for being lifted.

    Raises:
        LadingError: B741 no directory, or a configuration that cannot be read; B710 or B711 the model file.
    """
    if not subject.is_folder:
        raise LadingError("B741", "a model directory is needed, not a file", where=str(subject.path))
    for settings in (subject.config, subject.llm_config):
        if settings.missing or settings.problem:
            problem = settings.problem or "it is missing"
            raise LadingError("B741", f"{settings.name} cannot be read: {problem}", where=str(subject.folder))
    if not subject.net["oplists"] and subject.net_problem is not None:
        raise subject.net_problem


def rewrite(graph: Graph, subject: Subject, folder: Path, target: Target, executor: Executor) -> Layout:
    """Write the directory of a lifted graph.

    Args:
        graph: an MNN-legal graph; its table ``embedding``, if any, holds the embedding rows.
        subject: the model it was lifted from.
        folder: an existing empty directory.
        target: releases that must read the result.
        executor: runs the jobs that fill the weight file.

    Raises:
        LadingError: what `backends.mnn.emit` raises, B742, and what `backends.mnn.tokenizer` raises.
    """
    fit(graph, target)
    layout = plan_layout(graph)
    check_storage(layout, target)
    net = build_net(graph, layout)
    fill(folder / configs.WEIGHTS, layout.nbytes, weight_jobs(layout), executor)
    if layout.embedding_file is not None:
        table = layout.embedding_file
        fill(folder / configs.EMBEDDING, 2 * table.rows * table.columns, embedding_jobs(table), executor)
    json_to_mnn(net, folder / configs.MODEL)
    _copy_others(subject, folder, layout)
    tokenizers = _tokenizers(subject, folder, target)
    _write_configs(graph, subject, folder, layout, tokenizers)
    return layout


def _copy_others(subject: Subject, folder: Path, layout: Layout) -> None:
    """Files that nothing here writes: an embedding of its own, parts for pictures and sound, context."""
    skip = {subject.model_path.name, subject.weight_path.name, configs.CONFIG, subject.llm_config.name, *_SKIPPED}
    named = {value for key, value in subject.config.values.items() if isinstance(value, str) and key not in _OWN}
    for path in sorted(subject.folder.iterdir()):
        if path.is_file() and path.name in named - skip:
            shutil.copy(path, folder / path.name)
    if layout.embedding is None and layout.embedding_file is None:
        if not subject.embedding_path.is_file():
            raise LadingError("B742", f"there are no embedding rows: {subject.embedding_path.name} is missing",
                              where=str(subject.folder))  # fmt: skip
        shutil.copy(subject.embedding_path, folder / configs.EMBEDDING)


def _tokenizers(subject: Subject, folder: Path, target: Target) -> dict[str, str]:
    """Configuration file -> tokenizer file; a text form is written where a release cannot read the one that exists."""
    source = subject.folder / subject.file_key("tokenizer_file", "tokenizer.txt")
    if not source.is_file():
        raise LadingError("B742", f"the tokenizer file {source.name} is missing", where=str(subject.folder))
    data = source.read_bytes()
    file = read_tokenizer(data, str(source))
    if not isinstance(file, MtokFile):
        (folder / configs.TOKENIZER_TEXT).write_bytes(data)
        return {configs.CONFIG: configs.TOKENIZER_TEXT}
    names: dict[str, str] = {}
    if any(release.mtok for release in target.releases):
        (folder / configs.TOKENIZER).write_bytes(data)
        names[configs.CONFIG] = configs.TOKENIZER
    if target.needs_text_tokenizer:
        (folder / configs.TOKENIZER_TEXT).write_bytes(_text_form(subject, file, source))
        names[configs.CONFIG_TEXT if names else configs.CONFIG] = configs.TOKENIZER_TEXT
    return names


def _text_form(subject: Subject, file: MtokFile, source: Path) -> bytes:
    """The text form that lies beside the binary one, else one made from it."""
    beside = subject.text_config.values.get("tokenizer_file") if subject.text_config is not None else None
    if isinstance(beside, str) and (subject.folder / beside).is_file():
        return (subject.folder / beside).read_bytes()
    return encode_text(spec_of(file, str(source)))[1]


def _write_configs(graph: Graph, subject: Subject, folder: Path, layout: Layout, tokenizers: Mapping[str, str]) -> None:
    llm = dict(subject.llm_config.values)
    first = dict(subject.config.values)
    # A key that stands in both keeps the value that most releases read, in one file.
    for key in [key for key in first if key in llm and key not in _OWN]:
        first.pop(key)
    llm |= _model_keys(graph, layout, llm)
    llm = {key: value for key, value in llm.items() if value is not None}
    for name, tokenizer in tokenizers.items():
        config = {key: value for key, value in first.items() if key not in _OWN and key not in llm}
        config |= {"llm_model": configs.MODEL, "llm_weight": configs.WEIGHTS, "llm_config": configs.LLM_CONFIG}
        if layout.embedding is None:
            config["embedding_file"] = configs.EMBEDDING
        config["tokenizer_file"] = tokenizer
        _write(folder / name, config | _sampling(config))
    _write(folder / configs.LLM_CONFIG, llm)


def _model_keys(graph: Graph, layout: Layout, llm: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``llm_config.json`` that follow from what was written; None removes a key."""
    rows = graph.value("input_ids")
    found: dict[str, Any] = {
        "hidden_size": rows.shape[-1],
        "attention_mask": "float",
        "layer_nums": sum(node.op == "mnn.Attention" for node in graph.nodes),
        "attn_scale": None,
        "hidden_states": None,
    }
    matrix = layout.embedding
    if matrix is not None:
        block = 0 if matrix.weight.block == matrix.weight.columns else matrix.weight.block
        offsets = [matrix.code_offset, matrix.alpha_offset, matrix.alpha_bytes]
        half = [matrix.code_offset, 0, 0, 16, 0]
        found["tie_embeddings"] = half if matrix.weight.quantized is None else [*offsets, matrix.weight.bits, block]
    elif layout.embedding_file is not None or not _own_file(llm):
        found["tie_embeddings"] = None
    return found


def _own_file(llm: Mapping[str, Any]) -> bool:
    """The rows are quantized in a file of their own, which is copied with its description."""
    tie = tie_numbers(llm.get("tie_embeddings"))
    return tie is not None and tie[0] == 0


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler settings under both spellings, floats as floats."""
    found: dict[str, Any] = {}
    for snake, camel in _CAMEL.items():
        value = config.get(snake, config.get(camel))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = value if snake == "top_k" else float(value)
            found |= {snake: value, camel: value}
    return found


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
