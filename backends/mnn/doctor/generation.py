"""What a directory says about generation: samplers that crash, and tokenizers in which nothing ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from backends.mnn.doctor.findings import Finding
from backends.mnn.read.model_folder import Subject
from backends.mnn.sampling.hazards import hazard
from backends.mnn.target.releases import Release
from backends.mnn.tokenizer.files.read import read_header
from ir.base.diag import LadingError


def generation_findings(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    """Everything that can be told of generation."""
    yield from _samplers(subject, releases)
    yield from _ends(subject, releases)


def _samplers(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    seen: dict[tuple[str, str], list[str]] = {}
    for release in releases:
        settings = subject.config_of(release)
        if settings.missing or settings.problem:
            continue
        first, second = settings.values, subject.llm_config.values
        values = {**second, **first} if release.first_config == "config.json" else {**first, **second}
        if message := hazard(values, release):
            seen.setdefault((message, str(subject.folder / settings.name)), []).append(release.version)
    for (message, where), versions in seen.items():
        fix = "leave the sampler out of mixed_samplers, or give it a value that MNN can use"
        yield Finding("B767", message, tuple(versions), fix, where, mended=True)


def _ends(subject: Subject, releases: Sequence[Release]) -> Iterator[Finding]:
    paths: dict[Path, list[str]] = {}
    for release in releases:
        paths.setdefault(subject.tokenizer_path(release), []).append(release.version)
    for path, versions in paths.items():
        if not subject.has(path):
            continue
        try:
            header = read_header(path.read_bytes(), str(path))[0]
        except LadingError:
            continue
        if not header.stop_ids:
            message = f"no token of {path.name} ends generation, so it goes on until the limit on its length"
            fix = "export again from a checkpoint whose generation_config.json has eos_token_id"
            yield Finding("B762", message, tuple(versions), fix, str(path), "warning")


__all__ = ["generation_findings"]
