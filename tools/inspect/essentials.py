"""What there is to say about a compiled model at a glance: from its contract, else from its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.contract import check_files
from tools.shared import evidence
from tools.shared.cli import megabytes
from tools.shared.stored import bits_per_weight, grouped, storage_text

if TYPE_CHECKING:
    from backends.contract import Chat, Contract, Generation, SamplerFile, Signature, Verification
    from ir.base.diag import Diagnostic
    from tools.shared.compiled import Compiled

Rows = list[tuple[str, str]]

AGAINST = {
    "float": "the float model",
    "decoded weights": "its own weights",
    "runtime model": "what was predicted of it",
    "transformers": "the original implementation",
    "onnxruntime": "the ONNX file",
}
"""What a run was compared with, in a few words."""


def rows(compiled: Compiled) -> Rows:
    """Name and text of everything worth knowing."""
    if compiled.contract is None:
        assert compiled.folder is not None
        return [("contract", "none: this directory was not written by this compiler"), *_files_of(compiled.folder)]
    return [*_of_contract(compiled.contract), *_state(compiled)]


def _of_contract(contract: Contract) -> Iterator[tuple[str, str]]:
    model = contract.model
    facts = [model.family or "", f"{model.layers} layers" if model.layers else ""]
    facts += [f"{model.parameters:,} weights" if model.parameters else ""]
    facts += [f"{model.max_position:,} positions" if model.max_position else ""]
    yield "model", ", ".join([model.name, *filter(None, facts)])
    if contract.verdict is not None:
        yield "verdict", contract.verdict.text
    yield "target", f"{contract.target.profile}: {', '.join(contract.target.releases)}"
    yield "passes", contract.pipeline.text.replace(",", ", ")
    yield "made by", f"{contract.compiler.name} {contract.compiler.version}"
    if contract.raised is not None:
        yield from evidence.rows(contract.raised)
    yield from signature_rows(contract.signature)
    for group in grouped(contract.weights, most=12):
        yield "weights", str(group)
    bits = bits_per_weight(contract.weights)
    if bits is not None:
        yield "weights", f"{bits:.2f} bits per weight"
    for item in sorted(contract.files, key=lambda item: (-item.bytes, item.path)):
        yield "files", f"{item.path}: {megabytes(item.bytes)}, {item.role.replace('_', ' ')}"
    yield "files", f"folder {megabytes(sum(item.bytes for item in contract.files))}"
    settings = ", ".join(f"{name} {value}" for name, value in contract.runtime.settings.items())
    if settings:
        yield "settings", settings
    if contract.tokenizer is not None:
        for entry in contract.tokenizer.files:
            where = f" for {', '.join(entry.releases)}" if entry.releases else ""
            yield "tokenizer", f"{contract.tokenizer.form}: {entry.file}{where}"
        for one in contract.tokenizer.inexact:
            counted = f"other ids for {one.differing} of {one.of} test strings: " if one.differing else ""
            yield "tokenizer", f"inexact on {', '.join(one.releases) or 'all'}: {counted}{'; '.join(one.reasons)}"
    if contract.generation is not None:
        yield from _of_generation(contract.generation)
    if contract.chat is not None:
        yield from _of_chat(contract.chat)
    if contract.calibration is not None:
        limit = f", limit {contract.calibration.limit}" if contract.calibration.limit else ""
        yield "calibration", f"{contract.calibration.tokens:,} tokens{limit}"
    for run in contract.verified:
        yield "verified", f"{run_name(run)}: {_numbers(run)}"
    if not contract.verified:
        yield "verified", "never run"
    for note in contract.warnings:
        yield "warnings", f"{note.code}: {note.message}"


def _of_generation(generation: Generation) -> Iterator[tuple[str, str]]:
    for sampler in generation.samplers:
        where = f" for {', '.join(sampler.releases)}" if sampler.releases else ""
        yield "sampler", f"{sampler.file}{where}: {sampler_text(sampler)}"
    yield "ends at", ends_text(generation)
    for lost in generation.lost:
        where = f" on {', '.join(lost.releases)}" if lost.releases else ""
        yield "lost", f"{lost.setting} = {lost.value}{where}: {lost.reason}"


def _of_chat(chat: Chat) -> Iterator[tuple[str, str]]:
    if chat.rewritten:
        yield "chat", f"template rewritten: {'; '.join(chat.rewritten)}"
    for run in chat.runs:
        differing = f", other text for {', '.join(run.differing)}" if run.differing else ""
        yield "chat", f"{run.release}: {run.same} of {chat.conversations} conversations as the original{differing}"
    if chat.problem:
        yield "chat", chat.problem


def sampler_text(sampler: SamplerFile) -> str:
    """How tokens are chosen, with the keys as they are written."""
    if sampler.mode == "greedy":
        return "the likeliest token"
    keys = [f"{name} {_value(value)}" for name, value in sampler.keys.items() if name != "sampler_type"]
    bias = [f"a bias on {len(sampler.logit_bias)} tokens"] if sampler.logit_bias else []
    return ", ".join(["drawn", *keys, *bias])


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def ends_text(generation: Generation) -> str:
    """The tokens that end an answer."""
    ends = [str(item.id) if item.text is None else f"{item.text} ({item.id})" for item in generation.ends]
    return ", ".join(ends) or "nothing but the limit of tokens"


def signature_rows(signature: Signature) -> Iterator[tuple[str, str]]:
    """Inputs, outputs and cache of a model."""
    for one in signature.inputs:
        shapes = " or ".join(str(form) for form in one.shapes)
        yield "input", f"{one.name}: {one.dtype}{shapes}, {one.meaning}"
    for result in signature.outputs:
        shapes = " or ".join(str(form) for form in result.shapes)
        yield "output", f"{result.name}: {result.dtype}{shapes}, {result.meaning}"
    if signature.state is not None:
        yield "cache", f"{signature.state.bytes_per_token:,} bytes a token in {signature.state.layers} layers"


def run_name(run: Verification) -> str:
    """Release, settings and reference of a real run; no two runs of one contract are called alike."""
    settings = ""
    if run.settings is not None:
        option = f", dynamic_option {run.settings.dynamic_option}" if run.settings.dynamic_option else ""
        settings = f", memory {run.settings.memory}, precision {run.settings.precision}{option}"
    return f"{run.release}{settings}, against {AGAINST[run.reference]}"


def _numbers(run: Verification) -> str:
    parts = [f"KL {run.kl:.1e}" if run.kl is not None else "", f"top-1 {run.top1:.1%}" if run.top1 is not None else ""]
    if run.perplexity is not None:
        reference = f" ({run.perplexity_reference:.3f})" if run.perplexity_reference is not None else ""
        parts.append(f"perplexity {run.perplexity:.3f}{reference}")
    if run.decode_tokens:
        parts.append(f"{run.decode_equal_tokens} of {run.decode_tokens} greedy tokens up to the first other one")
    return ", ".join([*filter(None, parts), f"max error {run.max_abs_error:.1e}"])


def _state(compiled: Compiled) -> Iterator[tuple[str, str]]:
    """Whether the files are those that were written."""
    if compiled.folder is None:
        yield "state", "the files of this contract are not beside it"
        return
    found = problems(compiled)
    for item in found:
        yield "state", f"{item.severity}[{item.code}]: {item.message}, {item.where}"
    if not found:
        yield "state", "all files are as they were written"


def problems(compiled: Compiled) -> list[Diagnostic]:
    """What is wrong with the files of a directory that has a contract."""
    if compiled.folder is None or compiled.contract is None:
        return []
    return check_files(compiled.contract, compiled.folder)


def _files_of(folder: Path) -> Iterator[tuple[str, str]]:
    found = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    for path in found:
        yield "files", f"{path.relative_to(folder).as_posix()}: {megabytes(path.stat().st_size)}"
    yield "files", f"folder {megabytes(sum(path.stat().st_size for path in found))}"


def stored_notes(contract: Contract) -> dict[str, str]:
    """How each weight is stored and what it lost, by its name without the last part."""
    notes = {}
    for item in contract.weights:
        storage = item.storage
        parts = [storage_text(storage), storage.method]
        if storage.bits <= 8:
            parts.append("symmetric" if storage.symmetric else f"{storage.zero} zeros")
            parts.append(f"{storage.scale_dtype} scales")
        if item.error is not None:
            parts.append(f"error {item.error.rms_relative:.2%}")
        where = f"the bytes of {item.shared_with}" if item.shared_with else f"{megabytes(item.bytes)} in {item.file}"
        notes[item.name.removesuffix(".weight")] = ", ".join([*parts, where])
    return notes


def data(compiled: Compiled) -> dict[str, Any]:
    """The same as JSON-able data."""
    contract = compiled.contract
    folder = compiled.folder
    found: dict[str, Any] = {
        "source": compiled.source,
        "folder": None if folder is None else str(folder),
        "essentials": [list(row) for row in rows(compiled)],
        "problems": [item.as_dict() for item in problems(compiled)],
        "contract": None,
    }
    if contract is not None:
        groups = [
            {"text": item.text, "weights": item.count, "shared": item.shared, "bytes": item.bytes}
            for item in grouped(contract.weights, most=12)
        ]
        whole = contract.to_json()
        kept = (
            "target", "model", "raised", "signature", "files", "runtime", "tokenizer", "generation", "chat", "calibration",
            "verified", "verdict", "warnings",
        )  # fmt: skip
        found["contract"] = {key: whole[key] for key in kept} | {"storage": groups}
    return found
