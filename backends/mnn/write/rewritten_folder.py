"""Write an existing model again in forms that a target reads: graph and weights from the IR, configuration and
tokenizer respelled, everything else copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from backends.mnn.card import ATTENTION, last_size, sizes
from backends.mnn.doctor.tied import tie_numbers
from backends.mnn.lower.fit import check_storage, fit
from backends.mnn.read.model_folder import TOKENIZER, Subject, is_lfs_pointer
from backends.mnn.run.native import json_to_mnn
from backends.mnn.sampling.hazards import harmless
from backends.mnn.target.releases import RELEASES, MnnTarget
from backends.mnn.tokenizer.files.lift import spec_of
from backends.mnn.tokenizer.files.read import MtokFile, read_tokenizer
from backends.mnn.tokenizer.forms import encode_text, inexact
from backends.mnn.tokenizer.write_files import TokenizerFiles
from backends.mnn.write import configs
from backends.mnn.write.llm_folder import Emission, Settings, write_json
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_file import embedding_jobs, fill, weight_jobs
from backends.mnn.write.weight_layout import Layout, plan_layout
from ir.base.diag import LadingError
from ir.base.whole_files import sha256_of
from ir.facts.model_card import ModelCard, SourceFile
from ir.graph.graph import Graph

_CAMEL = {
    "temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP", "tfs_z": "tfsZ",
    "repetition_penalty": "penalty",
}  # fmt: skip
_OWN = ("llm_model", "llm_weight", "llm_config", "tokenizer_file", "embedding_file")
_SKIPPED = ("contract.json", configs.CONFIG_TEXT)
_DEFAULTS = {"memory": "low", "precision": "low", "thread_num": 4, "backend_type": "cpu", "dynamic_option": 0}
"""Runtime settings and what the runtime takes where neither configuration file has them (``llmconfig.hpp``)."""

_LEVELS = ("low", "normal", "high")
_TEXT_KINDS = {0: "sentencepiece", 1: "tiktoken", 2: "bert", 3: "bpe"}
"""What the types of a text tokenizer are."""


def require_readable(subject: Subject) -> None:
    """Raise what makes a directory unfit for being lifted.

    Raises:
        LadingError: B741 no directory, or a configuration that cannot be read; B710 or B711 the model file; B780 a file
            outside of the folder; B783 one that was never fetched.
    """
    if not subject.is_folder:
        raise LadingError("B741", "a model directory is needed, not a file", where=str(subject.path))
    for settings in (subject.config, subject.llm_config):
        if settings.missing or settings.problem:
            if not settings.problem:
                _require_own_files(subject)
            problem = settings.problem or "it is missing"
            raise LadingError("B741", f"{settings.name} cannot be read: {problem}", where=str(subject.folder))
    _require_own_files(subject)
    if not subject.net["oplists"] and subject.net_problem is not None:
        raise subject.net_problem


def _require_own_files(subject: Subject) -> None:
    for release in RELEASES.values():
        for what, path in subject.read_files(release).items():
            if message := subject.misplaced(what, path, release):
                raise LadingError(
                    "B780", message, where=str(path), hint="copy the file into the folder and name it there"
                )
            if subject.has(path) and is_lfs_pointer(path):
                message = f"{path.name} is a Git LFS pointer: the file itself was never fetched"
                raise LadingError("B783", message, where=str(path), hint="run git lfs pull in the repository")
    if "base_dir" in subject.config.values:
        message = f"base_dir {subject.config.values['base_dir']!r} moves every other file away from config.json"
        raise LadingError("B780", message, where=str(subject.folder / configs.CONFIG), hint="remove base_dir")


def describe(graph: Graph, subject: Subject, executor: Executor) -> None:
    """Record on a lifted graph what its directory tells of the model; what nobody knows is left out."""
    llm = subject.llm_config.values
    context, family = llm.get("max_position_embeddings"), llm.get("model_type")
    common = (subject.logits_layer or {}).get("main", {}).get("common", {})
    card = ModelCard(
        title=subject.folder.resolve().name,
        family=family if isinstance(family, str) and family else None,
        hidden_size=common.get("inputCount") or last_size(graph.value("input_ids")),
        **sizes(graph),
        vocab_size=common.get("outputCount") or last_size(graph.outputs[0]),
        context=context if type(context) is int and context > 0 else None,
        sources=dict(executor.map(lambda path: _source(path, subject.folder), _read_files(subject))),
    )
    graph.set_fact(card.name, card)


def _read_files(subject: Subject) -> list[Path]:
    """The files of the original that are read or copied."""
    names = {subject.file_key("tokenizer_file", TOKENIZER), configs.CONFIG, subject.llm_config.name}
    if subject.text_config is not None:
        beside = subject.text_config.values.get("tokenizer_file")
        names |= {configs.CONFIG_TEXT, *([beside] if isinstance(beside, str) else [])}
    paths = {subject.file(name) for name in names} | {
        subject.model_path,
        subject.weight_path,
        subject.embedding_path,
    }
    return sorted(path for path in paths | set(_others(subject)) if subject.has(path))


def _source(path: Path, folder: Path) -> tuple[str, SourceFile]:
    whole, root = path.resolve(), folder.resolve()
    name = whole.relative_to(root).as_posix() if whole.is_relative_to(root) else whole.name
    return name, SourceFile(path.stat().st_size, sha256_of(path))


def rewrite(graph: Graph, subject: Subject, folder: Path, target: MnnTarget, executor: Executor) -> Emission:
    """Write the directory of a lifted graph.

    Args:
        graph: an MNN-legal graph with the card of `describe`; its table ``embedding``, if any, holds the embedding
            rows.
        subject: the model it was lifted from.
        folder: an existing empty directory.
        target: releases that must read the result.
        executor: runs the jobs that fill the weight file.

    Raises:
        LadingError: what `backends.mnn.write.llm_folder` raises, B742, and what `backends.mnn.tokenizer.forms` raises.
    """
    fit(graph, target)
    layout = plan_layout(graph)
    check_storage(layout, target)
    net = build_net(graph, layout)
    emission = Emission(folder, layout, {configs.MODEL: "model", configs.WEIGHTS: "weights"}, Settings())
    emission.declared, emission.declared_by = tuple(subject.inputs), "repair"
    path = folder / configs.WEIGHTS
    fill(path, layout.nbytes, weight_jobs(layout, path), executor)
    if layout.embedding_file is not None:
        table = layout.embedding_file
        path = folder / configs.EMBEDDING
        fill(path, 2 * table.rows * table.columns, embedding_jobs(table, path), executor)
        emission.roles[configs.EMBEDDING] = "embedding"
    json_to_mnn(net, folder / configs.MODEL)
    _copy_others(subject, emission)
    emission.tokenizer = _tokenizers(subject, folder, target)
    names = (emission.tokenizer.exact, emission.tokenizer.text)
    emission.roles |= dict.fromkeys(filter(None, names), "tokenizer")
    _write_configs(graph, subject, emission, target)
    return emission


def _others(subject: Subject) -> list[Path]:
    """Files that the configuration names and nothing here writes: parts for pictures and sound, context."""
    skip = {subject.model_path.name, subject.weight_path.name, configs.CONFIG, subject.llm_config.name, *_SKIPPED}
    named = {value for key, value in subject.config.values.items() if isinstance(value, str) and key not in _OWN}
    return [path for path in sorted(subject.folder.iterdir()) if path.name in named - skip and subject.has(path)]


def _copy_others(subject: Subject, emission: Emission) -> None:
    """Copy quantized embedding rows of their own, and what else the configuration names."""
    for path in _others(subject):
        shutil.copy(path, emission.folder / path.name)
        emission.roles[path.name] = "other"
    if emission.layout.embedding is not None or emission.layout.embedding_file is not None:
        return
    source = subject.embedding_path
    if not subject.has(source):
        raise LadingError("B742", f"there are no embedding rows: {source.name} is missing", where=str(subject.folder))
    shutil.copy(source, emission.folder / configs.EMBEDDING)
    emission.roles[configs.EMBEDDING] = "embedding"
    emission.copied_table = True


def _tokenizers(subject: Subject, folder: Path, target: MnnTarget) -> TokenizerFiles:
    """Write the tokenizer; a text form too where a release cannot read the one that exists."""
    source = subject.file(subject.file_key("tokenizer_file", TOKENIZER))
    if not subject.has(source):
        raise LadingError("B742", f"the tokenizer file {source.name} is missing", where=str(subject.folder))
    data = source.read_bytes()
    file = read_tokenizer(data, str(source))
    exact = text = ""
    reasons: list[str] = []
    if not isinstance(file, MtokFile):
        text = configs.TOKENIZER_TEXT
        (folder / text).write_bytes(data)
        return TokenizerFiles(_TEXT_KINDS[file.header.type], exact, (), text, reasons, 0, 0, {}, ())
    if any(release.mtok for release in target.releases):
        exact = configs.TOKENIZER
        (folder / exact).write_bytes(data)
    if target.needs_text_tokenizer:
        text = configs.TOKENIZER_TEXT
        form, reasons = _text_form(subject, file, source)
        (folder / text).write_bytes(form)
    return TokenizerFiles(file.model, exact, (), text, reasons, 0, 0, _template(file), ())


def _template(file: MtokFile) -> dict[str, str]:
    """The ``jinja`` object of a chat template that stands in the tokenizer file, where MNN 3.4 does not look."""
    if not file.chat_template:
        return {}
    named = {"chat_template": file.chat_template, "eos": file.eos, "bos": file.bos}
    return {key: value for key, value in named.items() if value}


def _text_form(subject: Subject, file: MtokFile, source: Path) -> tuple[bytes, list[str]]:
    """The text form that lies beside the binary one, else one made from it; and why its ids may differ."""
    beside = subject.text_config.values.get("tokenizer_file") if subject.text_config is not None else None
    if isinstance(beside, str) and subject.has(subject.file(beside)):
        return subject.file(beside).read_bytes(), [
            "copied from the original folder and not compared with the exact form"
        ]
    spec = spec_of(file, str(source))
    return encode_text(spec)[1], inexact(spec, "text")


def _write_configs(graph: Graph, subject: Subject, emission: Emission, target: MnnTarget) -> None:
    layout, tokenizer = emission.layout, emission.tokenizer
    assert tokenizer is not None
    # Names of files stand in config.json, where the others may not contradict them.
    llm = {key: value for key, value in subject.llm_config.values.items() if key not in _OWN}
    first = dict(subject.config.values)
    settings = _settings({**first, **llm})
    # A key that stands in both keeps the value that most releases read, in one file.
    for key in [key for key in first if key in llm and key not in _OWN]:
        first.pop(key)
    everything = {**llm, **first}
    sampler = harmless({**everything, **_sampling(everything)}, target.releases)
    llm = {key: value for key, value in llm.items() if key not in sampler}
    llm |= _model_keys(graph, layout, llm)
    if tokenizer.text and tokenizer.template and "jinja" not in llm:
        llm["jinja"] = dict(tokenizer.template)
    llm = {key: value for key, value in llm.items() if value is not None and key not in _DEFAULTS}
    names = {configs.CONFIG: tokenizer.exact or tokenizer.text}
    if tokenizer.exact and tokenizer.text:
        names[configs.CONFIG_TEXT] = tokenizer.text
    for name, tokenizer_file in names.items():
        config = {key: value for key, value in first.items() if key not in _OWN and key not in llm}
        config |= settings
        config |= {"llm_model": configs.MODEL, "llm_weight": configs.WEIGHTS, "llm_config": configs.LLM_CONFIG}
        if layout.embedding is None:
            config["embedding_file"] = configs.EMBEDDING
        config["tokenizer_file"] = tokenizer_file
        write_json(emission, name, config | _sampling(config) | sampler, "config")
    write_json(emission, configs.LLM_CONFIG, llm, "llm_config")
    emission.backend_type = settings["backend_type"]
    emission.settings = Settings(
        settings["precision"], settings["memory"], settings["thread_num"], settings.get("dynamic_option", 0)
    )


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Runtime settings of both files as the runtime takes them, spelled out; ``dynamic_option`` only where it is
    set."""
    found: dict[str, Any] = {}
    for key, default in _DEFAULTS.items():
        value = values.get(key, default)
        if key in ("memory", "precision") and value not in _LEVELS:
            value = "normal"
        found[key] = value if type(value) is type(default) else default
    found["thread_num"] = max(found["thread_num"], 1)
    if found["dynamic_option"] <= 0:
        del found["dynamic_option"]
    return found


def _model_keys(graph: Graph, layout: Layout, llm: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``llm_config.json`` that follow from what was written; None removes a key."""
    rows = graph.value("input_ids")
    found: dict[str, Any] = {
        "hidden_size": rows.dims[-1],
        "attention_mask": "float",
        "layer_nums": sum(node.op in ATTENTION for node in graph.nodes),
        "attn_scale": None,
        "hidden_states": None,
    }
    if layout.embedding is not None:
        found["tie_embeddings"] = configs.row_table(layout.embedding)
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
