"""Judge a model made by anybody: what it needs, and on which releases it loads and computes what it should.

Nothing native is run. Every rule is one of the profiles' fields or a fact about all releases; `run_and_compare` holds
the verdicts against real runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends.contract import CONTRACT_FILE, check_files
from backends.contract import read as read_contract
from backends.mnn.doctor.conventions import convention_findings
from backends.mnn.doctor.files import file_findings
from backends.mnn.doctor.findings import Finding, Report, versions_of
from backends.mnn.doctor.graph import graph_findings, lacking
from backends.mnn.doctor.lost import lost_findings
from backends.mnn.doctor.ranks import rank_findings
from backends.mnn.doctor.rows import row_findings
from backends.mnn.doctor.weights import weight_findings
from backends.mnn.read.model_folder import Subject, alpha_form, is_lfs_pointer
from backends.mnn.read.net_file import numbers
from backends.mnn.run.native import EXACT_CONFIG, run_model
from backends.mnn.target.releases import Release
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError

CLOSE = 1e-2
"""Largest difference of logits between two releases, relative to the largest logit, that still counts as the same."""

REFERENCE = "ran; it is what other releases are compared with"
"""What is said of the release whose logits are the reference."""

_IDS = (1, 5, 9, 2, 7, 3)
"""Token ids of a trial run: every vocabulary has them."""


def examine(path: Path, releases: Sequence[Release]) -> Report:
    """Judge a model directory or one ``.mnn`` file.

    Raises:
        LadingError: B711 there is nothing of this name.
    """
    subject = Subject(path)
    kind: Literal["directory", "mnn"] = "directory" if subject.is_folder else "mnn"
    findings: list[Finding] = []
    net = subject.net
    unread = subject.net_problem if subject.has(subject.model_path) else None
    if unread is not None and not is_lfs_pointer(subject.model_path):
        item = unread.diagnostics[0]
        findings.append(Finding(item.code, item.message, versions_of(releases), "copy or export it again", item.where))
    findings += graph_findings(subject, releases)
    findings += lost_findings(subject, releases)
    findings += row_findings(subject, releases)
    findings += convention_findings(subject, releases)
    findings += rank_findings(subject, releases)
    findings += weight_findings(subject, releases)
    if subject.is_folder:
        findings += file_findings(subject, releases)
        told = _contract_findings(subject, releases)
        findings = [*_as_in_the_original(findings, told, subject), *told]
    findings += _runtime_findings(releases)
    order = {"error": 0, "warning": 1}
    findings.sort(key=lambda item: (order[item.severity], -len(item.releases), item.code))
    return Report(str(path), kind, _needs(subject) if net["oplists"] else {}, tuple(releases), findings)


def _needs(subject: Subject) -> dict[str, Any]:
    """What the model asks of a runtime."""
    forms = [form for op in subject.convolutions if (form := alpha_form(op)) is not None]
    kinds: dict[str, int] = {}
    for op in subject.ops:
        kinds[str(op.get("type"))] = kinds.get(str(op.get("type")), 0) + 1
    return {
        "inputs": {name: numbers(main.get("dims")) for name, main in subject.inputs.items()},
        "outputs": list(subject.net.get("outputName", ())) or [name for name in ("logits",) if name in subject.names],
        "layers": kinds.get("Attention", 0) + kinds.get("LinearAttention", 0),
        "operators": dict(sorted(kinds.items())),
        "bits": sorted({form[0] for form in forms}),
        "blocks": sorted({form[1] for form in forms}),
        "made_by": subject.net.get("extraInfo", {}).get("version", ""),
    }


def _contract_findings(subject: Subject, releases: Sequence[Release]) -> list[Finding]:
    """What the contract tells of the folder. No release reads it, so only changes of what a release reads break that."""
    path = subject.folder / CONTRACT_FILE
    if not subject.has(path):
        return []
    every = versions_of(releases)
    try:
        contract = read_contract(path)
    except LadingError as error:
        item = error.diagnostics[0]
        message = f"{item.message}, so nothing vouches for the other files"
        return [Finding(item.code, message, every, item.hint or "copy the folder again", str(path), "warning")]
    settings = {subject.folder / entry.path for entry in contract.files if entry.role == "config"}
    found = []
    for item in check_files(contract, subject.folder):
        if item.code in ("C811", "C812") and Path(item.where) in settings:
            # People change threads or sampler by hand; what a release makes of the new settings is found elsewhere.
            message = "the config file was edited after it was written; what was measured holds for the old one"
            found.append(Finding(item.code, message, every, "", item.where, "warning"))
            continue
        readers = tuple(
            release.version
            for release in releases
            if item.severity == "error" and Path(item.where) in subject.read_files(release).values()
        )
        severity: Literal["error", "warning"] = "error" if readers else "warning"
        found.append(Finding(item.code, item.message, readers or every, item.hint, item.where, severity))
    other = lacking(releases, lambda release: release.version in contract.target.releases)
    if other:
        message = f"the contract promises {', '.join(contract.target.releases)} only"
        found.append(Finding("B733", message, other, "compile for these releases too", str(path), "warning"))
    return found


def _as_in_the_original(findings: list[Finding], told: Sequence[Finding], subject: Subject) -> list[Finding]:
    """The same with odd numbers as warnings, where the contract says that the checkpoint has them and the file is whole."""
    path = subject.folder / CONTRACT_FILE
    if not subject.has(path) or any(item.severity == "error" for item in told):
        return findings
    try:
        known = any(item.code == "F575" for item in read_contract(path).warnings)
    except LadingError:
        return findings
    if not known:
        return findings
    fix = "the checkpoint has them too (F575); fetch it again if that is not meant"
    return [replace(item, severity="warning", fix=fix) if item.code == "B782" else item for item in findings]


def _runtime_findings(releases: Sequence[Release]) -> list[Finding]:
    none = lacking(releases, lambda release: release.llm_on_pypi)
    if not none:
        return []
    message = "the wheel has no language-model runtime and no Attention operator; MNN must be built from source"
    return [Finding("B734", message, none, "", "", "warning")]


# ---- holding verdicts against reality -----------------------------------------------------------------------------


def run_and_compare(report: Report, interpreters: Mapping[str, Path | str], *, timeout_s: float = 120) -> None:
    """Run a model directory on each release that has an interpreter and note what happens in the report.

    The logits of the newest release with a healthy verdict that ran are the reference: other logits are wrong. The
    reference itself is not called right, and agreement says that releases agree, not that the model is what it was made
    from. Where what happens is not what the verdict says, that is a finding of its own (B735).
    """
    logits: dict[str, np.ndarray] = {}
    for release in report.releases:
        if release.version not in interpreters:
            report.runs[release.version] = "not run: no environment of this release"
            continue
        if any(item.code == "B780" for item in report.problems(release.version)):
            report.runs[release.version] = "not run: it would open files outside of its folder"
            continue
        folder = Path(report.subject)
        config = config_for(folder, release.version)
        run = run_model(
            config if config.is_file() else folder / "config.json",
            [{"do": "forward", "pieces": [list(_IDS), [4]]}],
            overrides=_overrides(report),
            interpreter=interpreters[release.version],
            timeout_s=timeout_s,
        )
        if run.failure is not None or run.results[0] is None:
            report.runs[release.version] = f"failed: {run.failure}"
        else:
            logits[release.version] = np.concatenate(run.results[0]["logits"])
    _judge(report, logits)


def _overrides(report: Report) -> dict[str, Any]:
    """Exact arithmetic, but for a model whose fault shows in the shipped settings only; one row as in generation."""
    own = {"memory"} if any(item.code == "B722" for item in report.findings) else set()
    return {key: value for key, value in EXACT_CONFIG.items() if key not in own} | {"all_logits": False}


def _judge(report: Report, logits: Mapping[str, np.ndarray]) -> None:
    trusted = [version for version in logits if report.healthy_on(version)]
    newest = trusted[-1] if trusted else ""
    for version, found in logits.items():
        alone = version == newest and np.isfinite(found).all()
        report.runs[version] = REFERENCE if alone else _outcome(found, logits.get(newest), newest)
    for release in report.releases:
        happened = report.runs[release.version]
        if happened.startswith(("not run", "ran")):
            continue
        right = happened.startswith("agrees")
        if right != report.healthy_on(release.version):
            report.findings.append(
                Finding(
                    "B735",
                    f"the verdict was {'healthy' if not right else 'broken'}, and the run was {happened}",
                    (release.version,),
                    "please report the model: the profiles miss something",
                    report.subject,
                    "warning" if right else "error",
                )
            )


def _outcome(found: np.ndarray, reference: np.ndarray | None, newest: str) -> str:
    if not np.isfinite(found).all():
        return "wrong: logits are not finite"
    if reference is None:
        return "ran; there is no healthy release to compare with"
    if found.shape != reference.shape:
        return f"wrong: logits of {found.shape[0]} positions where {reference.shape[0]} were expected"
    gap, scale = float(np.abs(found - reference).max()), float(np.abs(reference).max())
    if gap <= CLOSE * max(scale, 1e-6):
        return f"agrees with {newest}: logits differ by {gap:.2g}"
    return f"wrong: logits differ by {gap:.2g} where the largest is {scale:.3g}"
