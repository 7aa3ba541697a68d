"""What a doctor says: findings, and the verdict for each release that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from backends.mnn.target.releases import Release
from ir.base.diag import Diagnostic

if TYPE_CHECKING:
    from backends.mnn.doctor.onnx.attempt import Attempt


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        code: diagnostic code.
        message: what happens, as one sentence.
        releases: releases on which it happens.
        fix: what to do about it.
        where: file or operator.
        severity: ``error`` when the model does not load or computes wrong numbers there, else ``warning``.
        mended: the command repair writes a copy that does not have it.
    """

    code: str
    message: str
    releases: tuple[str, ...]
    fix: str = ""
    where: str = ""
    severity: Literal["error", "warning"] = "error"
    mended: bool = False

    def diagnostic(self) -> Diagnostic:
        """The finding as a diagnostic."""
        return Diagnostic(self.code, self.message, self.where, self.fix, self.severity)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**self.diagnostic().as_dict(), "releases": list(self.releases), "mended_by_repair": self.mended}


def versions_of(releases: Sequence[Release]) -> tuple[str, ...]:
    """Versions of all releases."""
    return tuple(release.version for release in releases)


@dataclass
class Report:
    """All findings on one model.

    Attributes:
        subject: path that was looked at.
        kind: ``directory``, ``mnn`` or ``onnx``.
        needs: what the model asks of a runtime, for people and programs.
        releases: the releases asked about.
        findings: what was found.
        runs: what happened on each release that the model was run on; empty without ``--run``.
        attempt: what came of compiling an ONNX file in memory; None for other kinds.
    """

    subject: str
    kind: Literal["directory", "mnn", "onnx"]
    needs: dict[str, Any]
    releases: tuple[Release, ...]
    findings: list[Finding] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    attempt: Attempt | None = None

    def problems(self, version: str) -> list[Finding]:
        """Findings that break the model on a release."""
        return [item for item in self.findings if item.severity == "error" and version in item.releases]

    def narrowed(self, releases: Sequence[Release]) -> Report:
        """The report on some of the releases only."""
        versions = versions_of(releases)
        found = [item for item in self.findings if set(item.releases) & set(versions)]
        runs = {version: text for version, text in self.runs.items() if version in versions}
        return Report(self.subject, self.kind, self.needs, tuple(releases), found, runs)

    def healthy_on(self, version: str) -> bool:
        """The verdict for a release."""
        return not self.problems(version)

    @property
    def healthy(self) -> bool:
        """Healthy on every release asked about."""
        return all(self.healthy_on(release.version) for release in self.releases)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "healthy": self.healthy,
            "needs": self.needs,
            "verdicts": {
                release.version: {
                    "healthy": self.healthy_on(release.version),
                    "codes": sorted({item.code for item in self.problems(release.version)}),
                    "run": self.runs.get(release.version),
                }
                for release in self.releases
            },
            "findings": [item.as_dict() for item in self.findings],
        }
