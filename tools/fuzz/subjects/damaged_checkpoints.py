"""Damaged checkpoints: configuration, weights, tokenizer, and texts to calibrate with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.damage import damage_file, damage_json_file, damage_some
from tools.fuzz.inputs.mutate import damage_bytes, damage_json, json_bytes
from tools.fuzz.inputs.sample_tokenizers import tokenizer
from tools.fuzz.inputs.samples import checkpoint, copy_of
from tools.fuzz.target import Case, Target, require

_CONFIG_EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 32}},
    {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"]},
    {"quantization_config": {"quant_method": "fp8"}, "rope_theta": 1e6, "head_dim": 8, "attention_bias": True},
    {"hidden_act": "gelu", "mlp_bias": True, "partial_rotary_factor": 0.5, "eos_token_id": [1, 2], "pad_token_id": 0},
)  # fmt: skip


def _config(case: Case) -> Path:
    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    damage_json_file(case, folder / "config.json", case.rng.choice(_CONFIG_EXTRAS))
    return folder


def _load(folder: Path, case: Case) -> None:
    from frontends.checkpoint.load import load
    from ir.verify.stages import verify

    graph = load(folder)
    problems = [item for item in verify(graph) if item.severity == "error"]
    require(not problems, f"the decoder is malformed: {problems[:1]}")


def _weights(case: Case) -> Path:
    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    path = case.rng.choice(sorted(folder.glob("model*")))
    if path.suffix == ".json":
        damage_json_file(case, path)
        return folder
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]
    if case.rng.random() < 0.7:
        text = json_bytes(case.rng, damage_json(case.rng, json.loads(header)))
        raw = max(0, len(text) + case.rng.choice([0, 0, 0, 1, -1])).to_bytes(8, "little") + text + data
    else:
        raw = damage_bytes(case.rng, raw)
    path.write_bytes(raw)
    return folder


def _read_weights(folder: Path, case: Case) -> None:
    from frontends.containers.safetensors import open_checkpoint

    found = open_checkpoint(folder)
    for tensor in found.tensors.values():
        require(tensor.load().shape == tensor.type.shape, "a tensor has another shape than its type says")
    found.sources(full=True)


def _checkpoint(case: Case) -> Path:
    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    damage_some(case, folder, case.rng.choice([0, 1, 1, 2]))
    return folder


def _compile(folder: Path, case: Case) -> None:
    from backends.contract import check_files, read
    from ir.base.diag import LadingError
    from tools.compile.job import Request, compile_model

    out = case.folder / "out" / "model"
    pipeline = case.rng.choice(["default", "int8", "fp16", "fp32"])
    try:
        compile_model(Request(str(folder), out, pipeline=pipeline, verify="none", workers=1))
    except LadingError:
        left = sorted(path.name for path in out.parent.iterdir()) if out.parent.is_dir() else []
        require(not left, f"a failed run left {left} behind")
        raise
    require([path.name for path in out.parent.iterdir()] == [out.name], "a run left something beside its folder")
    problems = check_files(read(out), out)
    require(not problems, f"the folder is not what its contract says: {problems[:1]}")


# ---- tokenizers ----


def _tokenizer(case: Case) -> Path:
    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    path = folder / "tokenizer.json"
    data = tokenizer(case.rng, folder)
    if case.rng.random() < 0.8:
        data = damage_json(case.rng, data)
    path.write_bytes(json_bytes(case.rng, data))
    if case.rng.random() < 0.3:
        damage_file(case, folder / case.rng.choice(["tokenizer_config.json", "config.json", "chat_template.jinja"]))
    return folder


def _write_tokenizer(folder: Path, case: Case) -> None:
    from backends.mnn.tokenizer.files.read import read_mtok, read_text
    from backends.mnn.tokenizer.forms import encode_mtok, encode_text, inexact, jinja_template, text_tokenizer
    from backends.mnn.tokenizer.spec import load_tokenizer
    from ir.base.diag import LadingError

    spec = load_tokenizer(folder)
    jinja_template(spec)
    data = encode_mtok(spec, case.rng.choice(["3.5.0", "3.6.0"]))
    try:
        read_mtok(data)
    except LadingError as error:
        require(False, f"the written tokenizer cannot be read: {error}")
    inexact(spec, "mtok")
    _, text = encode_text(spec)
    try:
        read_text(text)
    except LadingError as error:
        require(False, f"the written text form cannot be read: {error}")
    inexact(spec, "text")
    text_tokenizer(spec).encode("Hello, wörld! 漢字 123\n")


def _calibration(case: Case) -> str:
    chats = [{"messages": [{"role": "user", "content": "ka lo mi ser " * 9}]}, {"text": "tan ru vel o dim " * 9}]
    lines = [json_bytes(case.rng, damage_json(case.rng, case.rng.choice(chats), 1)) for _ in range(4)]
    lines += [json.dumps(chats[0]).encode()] * 4
    return damage_bytes(case.rng, b"\n".join(lines)).decode("utf-8", "surrogateescape")


def _read_calibration(text: str, case: Case) -> None:
    from frontends.text.calibration_text import load_calibration

    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    if case.rng.random() < 0.5:
        damage_file(case, folder / case.rng.choice(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]))
    path = case.folder / f"text{case.rng.choice(['.jsonl', '.txt'])}"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    load_calibration(path, folder, tokens=256, held_out=64, window=32)


DAMAGED_CHECKPOINTS = (
    Target("config", "damaged config.json of a checkpoint", _config, _load),
    Target("safetensors", "damaged weight files and their index", _weights, _read_weights),
    Target("compile", "damaged checkpoints, compiled: a whole folder or none", _checkpoint, _compile, seconds=60),
    Target("tokenizer", "damaged tokenizers of checkpoints", _tokenizer, _write_tokenizer),
    Target("calibration", "damaged calibration text and tokenizers", _calibration, _read_calibration),
)
