"""Whether a broken model can be mended, and by which command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.mnn.doctor.findings import Finding, Report
from backends.mnn.target.releases import RELEASES, VERSIONS, MnnTarget, Release, target
from frontends.onnx.beside import title_of
from ir.base.diag import LadingError

CONVERTED = ("B685", "B686", "B688", "B689", "B691", "B695")
"""Codes of what a converter lost, or took over from the convention of another runtime."""

MENDED = "repaired"
"""What is added to the name of a folder."""


@dataclass(frozen=True)
class Remedy:
    """What can be done about a broken model.

    Attributes:
        command: a line for a shell that writes a copy which is whole; empty when nothing mends it.
        releases: releases that the copy would be for.
        reason: why no copy can be written; empty when one can.
    """

    command: str
    releases: tuple[str, ...]
    reason: str = ""


def remedy(report: Report) -> Remedy | None:
    """What to do about a model; None when it is healthy, or is one ``.mnn`` file.

    Whether its graph can be read back, or compiled, is tried in memory.
    """
    if report.kind == "onnx":
        return _compiling(report)
    if report.kind != "directory" or report.healthy:
        return None
    hopeless = [item for item in report.findings if item.severity == "error" and not item.mended]
    possible = [
        release for release in report.releases if not any(release.version in item.releases for item in hopeless)
    ]
    chosen = _target(
        possible, {release.version for release in report.releases if not report.healthy_on(release.version)}
    )
    if chosen is None:
        advice = hopeless[0].fix if hopeless else "export the model again"
        return Remedy("", (), f"{advice}{_original(report, hopeless)}")
    if reason := _refused(Path(report.subject), chosen):
        return Remedy("", (), reason)
    words = ["lading", "repair", _argument(report.subject), "-o", _argument(free_name(Path(report.subject)))]
    return Remedy(shlex.join([*words, "--target", chosen.name]), chosen.versions)


def _original(report: Report, hopeless: Sequence[Finding]) -> str:
    """The ONNX file beside a directory that was converted from one, as exporters leave it, where that is at fault."""
    if not any(item.code in CONVERTED for item in hopeless):
        return ""
    folder = Path(report.subject)
    found = [
        path for place in (folder, folder / "onnx", folder.parent / "onnx") for path in sorted(place.glob("*.onnx"))
    ]
    return f", which may be {found[0]}: {shlex.join(['lading', 'doctor', _argument(str(found[0]))])}" if found else ""


def _compiling(report: Report) -> Remedy:
    """The line that makes an MNN model of an ONNX file."""
    tried = report.attempt
    if tried is None:
        return Remedy("", (), "it was not tried")
    path = Path(report.subject)
    words = ["lading", "compile", _argument(report.subject), "-o", _argument(free_name(path, title_of(path)))]
    if tried.refusal is not None:
        why = f"lading compile refuses it ({tried.refusal.code}): {tried.refusal.message}"
        why += f"; {tried.refusal.hint}" if tried.refusal.code == "B673" else ""
        declared = "" if tried.unread or tried.language or tried.free is None else (
            f"; {shlex.join([*words, '--to', 'onnx'])} writes it for onnxruntime, with every tensor declared"
        )  # fmt: skip
        return Remedy("", (), why + declared)
    chosen = widest(report.releases) or target("portable")
    words += [] if tried.language else ["--to", "mnn"]
    words += ["--tokenizer", "none"] if tried.language and not tried.tokenizer else []
    words += [] if chosen.name == "portable" else ["--target", chosen.name]
    return Remedy(shlex.join(words), chosen.versions)


def widest(releases: Sequence[Release]) -> MnnTarget | None:
    """The most of some releases, in a row, that one model can be for; None where there are none."""
    return _target(releases, {release.version for release in releases})


def _target(possible: Sequence[Release], broken: set[str]) -> MnnTarget | None:
    """The most releases in a row that one copy can be for, with a broken one among them."""
    runs: list[list[Release]] = []
    for release in possible:
        before = runs[-1][-1] if runs else None
        row = before is not None and VERSIONS.index(before.version) + 1 == VERSIONS.index(release.version)
        if before is not None and row and before.signature == release.signature:
            runs[-1].append(release)
        else:
            runs.append([release])
    useful = [run for run in runs if broken & {release.version for release in run}]
    if not useful:
        return None
    found = [release.version for release in max(reversed(useful), key=len)]
    if found == list(RELEASES):
        return target("portable")
    return target(found[0] if len(found) == 1 else f">={found[0]},<={found[-1]}")


def _refused(folder: Path, chosen: MnnTarget) -> str:
    """Why the command repair would not write the model; empty when it reads it."""
    from backends.mnn.lift.folder import lifted
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.write.rewritten_folder import require_readable

    try:
        subject = Subject(folder)
        require_readable(subject)
        lifted(subject, chosen)
    except LadingError as error:
        item = error.diagnostics[0]
        return f"repair refuses it ({item.code}): {item.message}"
    return ""


def free_name(folder: Path, base: str = "") -> str:
    """A name for the copy in the working folder at which there is nothing yet: `base`, or that of a mended folder."""
    base = base or f"{folder.resolve().name or 'model'}-{MENDED}"
    number, name = 1, base
    while os.path.lexists(name):
        number += 1
        name = f"{base}-{number}"
    return name


def _argument(path: str) -> str:
    """A path that is not taken for an option."""
    return f"./{path}" if path.startswith("-") else path


__all__ = ["Remedy", "free_name", "remedy"]
