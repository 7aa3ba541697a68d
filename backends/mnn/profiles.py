"""What each MNN release accepts, as data.

One row for each release with a language-model runtime on PyPI; a target is a set of releases that one artefact must run
on. Evidence for every column was gathered by running probe models on the release's wheel.
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.diag import LadingError, suggest


@dataclass(frozen=True)
class Release:
    """One MNN release.

    Attributes:
        version: as on PyPI.
        signature: calling convention, a key of `ir.signature.SIGNATURES`.
        f16_scales: loads quantization scales stored as half floats; others read them as garbage without a message.
        mtok: reads the exact binary tokenizer form; others only text forms.
    """

    version: str
    signature: str = "mnn-llm"
    f16_scales: bool = False
    mtok: bool = True


RELEASES: dict[str, Release] = {
    row.version: row
    for row in (
        Release("3.4.0", mtok=False),
        Release("3.4.1", mtok=False),
        Release("3.5.0"),
        Release("3.6.0", f16_scales=True),
        Release("3.6.1", f16_scales=True),
    )
}


@dataclass(frozen=True)
class Target:
    """The releases that one artefact must run on."""

    name: str
    releases: tuple[Release, ...]

    @property
    def versions(self) -> tuple[str, ...]:
        """Version numbers, oldest first."""
        return tuple(release.version for release in self.releases)

    @property
    def signature(self) -> str:
        """The calling convention that all releases of the target share."""
        return self.releases[0].signature

    @property
    def f16_scales(self) -> bool:
        """True when every release loads half-float scales."""
        return all(release.f16_scales for release in self.releases)

    @property
    def needs_text_tokenizer(self) -> bool:
        """True when a release cannot read the exact tokenizer form."""
        return not all(release.mtok for release in self.releases)


def target(name: str) -> Target:
    """``portable`` for every release, or one version.

    Raises:
        LadingError: B600 an unknown target.
    """
    if name == "portable":
        return Target(name, tuple(RELEASES.values()))
    if name in RELEASES:
        return Target(name, (RELEASES[name],))
    known = ["portable", *RELEASES]
    raise LadingError("B600", f"unknown target {name!r}", hint=suggest(name, known) or f"known: {', '.join(known)}")
