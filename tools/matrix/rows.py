"""The rows of the matrix: which models there are, how they are made, and what their contracts get."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError, suggest
from ir.base.whole_files import write_whole
from tools.matrix.model import Row

if TYPE_CHECKING:
    from backends.contract import Contract, Verification
    from tools.matrix.cell import Artefact, Source
    from tools.matrix.model import Job, Matrix

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)],
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"dtype": "f32"}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"dtype": "f32"}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": YARN}),
    "llama": ("llama", {"dtype": "f32", "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-dynamic": ("llama", {"rope_scaling": DYNAMIC, "max_position_embeddings": 40}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-longrope": ("llama", {"rope_scaling": LONGROPE, "max_position_embeddings": 160}),
    "mistral": ("mistral", {"dtype": "f32", "head_dim": 24}),
    "mistral-window": ("mistral", {"sliding_window": 11, "num_key_value_heads": 1}),
}
"""Random models by name: their family and what they add to its configuration."""

PRECISIONS = ("fp32", "fp16", "int8", "int4", "default")
"""Pipelines that every model is compiled with."""

_COMPILER = ("ir", "passes", "frontends", "backends", "tools/matrix/random_checkpoints.py", "tools/compile/job.py")
_SOURCES = (".py", ".json", ".jsonl", ".jinja")


# ---- results that are kept ----


def read_kept(place: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run kept in a file, when it is undamaged and has all the fields of `made_of`; else None."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(kept, dict) or kept.pop("digest", None) != _digest(kept):
        return None
    return kept if all(kept.get(key) == value for key, value in made_of.items()) else None


def write_kept(place: Path, data: Mapping[str, Any]) -> None:
    """Write JSON that is there as a whole or not at all, with a digest, since numbers show no damage."""
    text = json.dumps({**data, "digest": _digest(data)}, indent=1, ensure_ascii=False, allow_nan=False)
    with write_whole(place, durable=False) as part:
        part.write_text(text, encoding="utf-8")


def _digest(data: Mapping[str, Any]) -> str:
    from hashlib import sha256

    # What is read back may be spelt otherwise than what was given: numbers as keys are texts then.
    plain = json.loads(json.dumps(data))
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# ---- models made for the matrix ----


def find_models(patterns: str) -> list[str]:
    """Names of `MODELS` by comma-separated names or patterns such as ``qwen2*``; empty text for all.

    In a source tree the example checkpoint, which is trained, is one more.

    Raises:
        LadingError: U972 a pattern that no name fits.
    """
    from tools.compile.job import EXAMPLE

    known = [*MODELS, *([EXAMPLE.name] if EXAMPLE.is_dir() else [])]
    found: list[str] = []
    for pattern in [part.strip() for part in patterns.split(",")] if patterns else ["*"]:
        names = fnmatch.filter(known, pattern)
        if not names:
            hint = suggest(pattern, known) or f"known: {', '.join(known)}"
            raise LadingError("U972", f"no model of the matrix is named {pattern!r}", hint=hint)
        found += [name for name in names if name not in found]
    return found


def made_rows(names: Sequence[str], precisions: Sequence[str], target: str, matrix: Matrix, job: Job) -> Iterator[Row]:
    """Make each model, compile it in each precision, and give its row; what has not changed is made once."""
    from backends.mnn.target.releases import target as find_target

    promised = find_target(target).versions
    releases = tuple(version for version in matrix.releases if version in promised)
    sources = digest_of_sources()
    for name in names:
        source = None
        for precision in precisions:
            row = Row(name, precision, releases, target)
            job.say(f"compiling {name} with {precision}")
            try:
                source = source or _make_source(name, job)
                row.artefact = _compile(row, source, target, sources, job)
            except LadingError as error:
                row.failure = str(error)
            yield row


def digest_of_sources() -> str:
    """SHA-256 (hex) of everything that decides what the compiler writes."""
    from hashlib import sha256

    root = Path(__file__).resolve().parents[2]
    found = sha256()
    for name in _COMPILER:
        part = root / name
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if path.suffix not in _SOURCES:
                continue
            found.update(f"{path.relative_to(root)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _make_source(name: str, job: Job) -> Source:
    import zlib

    from tools.compile.job import EXAMPLE
    from tools.matrix.cell import Source
    from tools.matrix.random_checkpoints import make_checkpoint

    if name == EXAMPLE.name:
        return Source(EXAMPLE)
    family, config = MODELS[name]
    folder = job.out / "checkpoints" / name
    make_checkpoint(folder, family, seed=zlib.crc32(name.encode()), **config)
    return Source(folder)


def _compile(row: Row, source: Source, target: str, sources: str, job: Job) -> Artefact:
    from backends.contract import check_files, read
    from tools.compile.job import Request, compile_model
    from tools.matrix.cell import Artefact

    folder = job.out / "models" / row.key
    stamp = folder.with_name(f"{folder.name}.json")
    wanted = {"sources": sources, "model": source.digest, "precision": row.precision, "target": target}
    known = None if job.fresh else read_kept(stamp, wanted)
    if known is None or not folder.is_dir() or check_files(read(folder), folder):
        stamp.unlink(missing_ok=True)
        compile_model(Request(str(source.folder), folder, row.precision, target, verify="none", force=True))
        write_kept(stamp, wanted)
    return Artefact(row.family, row.precision, folder, source, read(folder))


# ---- models that exist ----


def given_rows(models: Sequence[Path], sources: Sequence[Path], matrix: Matrix, chosen: bool) -> list[Row]:
    """Rows of compiled or repaired model directories; without `sources` they are compared with what they store.

    `chosen` releases are run even where the model does not promise them.

    Raises:
        LadingError: U973 not one checkpoint for each model, U974 one of another model, U976 a model whose weights
            were fitted to a text, Q435 one without a readable
            tokenizer, C800 no contract; of models without a checkpoint B710 to B741 and F640 to F646.
    """
    from backends.contract import read
    from tools.matrix.cell import Artefact
    from tools.matrix.without_checkpoint import FolderArtefact, FolderSource

    if sources and len(sources) != len(models):
        raise LadingError(
            "U973",
            f"{len(models)} models and {len(sources)} checkpoints are named",
            hint="give --source CHECKPOINT for each --model, or for none: then they are compared with what they store",
        )
    rows = []
    for number, model in enumerate(models):
        contract, folder = read(model), model.resolve()
        releases = tuple(item for item in matrix.releases if chosen or item in contract.target.releases)
        known = bool(sources)
        checkpoint = _checkpoint(model, sources[number], contract) if known else FolderSource(folder)
        checkpoint.check()
        row = Row(folder.name, _widths(contract) + ("" if known else ", no checkpoint"), releases, str(folder))
        kind = Artefact if known else FolderArtefact
        row.artefact = kind(row.family, row.precision, folder, checkpoint, contract)
        rows.append(row)
    return rows


def _checkpoint(model: Path, source: Path, contract: Contract) -> Source:
    from tools.matrix.cell import Source, rewriting_of

    checkpoint = Source(source)
    if checkpoint.card.config_digest != contract.config_digest:
        raise LadingError("U974", f"{model} was not compiled from {source}", where=str(source / "config.json"))
    fitted = [one.name for one in rewriting_of(contract.pipeline.text).passes() if "calibration" in one.requires]
    if fitted:
        raise LadingError(
            "U976",
            f"{model} was made with {', '.join(fitted)}, which fits weights to a calibration text",
            where=str(model / "contract.json"),
            hint="run it without --source: then it is compared with what its own files say",
        )
    return checkpoint


def _widths(contract: Contract) -> str:
    bits = sorted({item.storage.bits for item in contract.weights if item.storage.layout != "rows-bf16"})
    return "/".join(f"fp{width}" if width > 8 else f"int{width}" for width in bits)


def record(matrix: Matrix, row: Row) -> bool:
    """Write what was really verified into the model's contract; False when nothing changed.

    Records of releases that were run now on this platform are replaced where they are of the same kind, and dropped
    where the cell is not right.

    Raises:
        LadingError: C810 to C814 when the files are not those of the contract.
    """
    from dataclasses import replace

    from backends.contract import Verification, check_files, write
    from tools.matrix.cell import PASSED, this_platform

    artefact = row.artefact
    assert artefact is not None
    problems = [item for item in check_files(artefact.contract, artefact.folder) if item.severity == "error"]
    if problems:
        raise LadingError.of(problems)
    ran = {release: cell for release in matrix.releases if (cell := matrix.cell(row, release)) is not None}
    fresh = [Verification.from_json(item) for cell in ran.values() for item in cell["verified"]]
    kinds = {_kind(item) for item in fresh}
    wrong = {release for release, cell in ran.items() if cell["status"] not in PASSED}
    kept = [
        item
        for item in artefact.contract.verified
        if _kind(item) not in kinds and not (item.release in wrong and item.platform == this_platform())
    ]
    contract = replace(artefact.contract, verified=(*kept, *fresh))
    if contract == artefact.contract:
        return False
    write(contract, artefact.folder)
    return True


def _kind(item: Verification) -> tuple[Any, ...]:
    return item.release, item.platform, item.settings, item.reference, item.prompt_tokens
