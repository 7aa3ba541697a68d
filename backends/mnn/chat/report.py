"""What became of the chat template: tried on releases, told to people, written into the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import Diagnostic

if TYPE_CHECKING:
    import backends.contract as c
    from backends.mnn.chat.plan import ChatPlan
    from backends.mnn.chat.releases import Outcome

DETAILS = "contract.json lists them under 'chat'; docs/chat.md says what each release cannot do"


@dataclass(frozen=True)
class ChatReport:
    """A template and what was seen of it.

    Attributes:
        plan: the template, its rewritten form, what the original gives.
        written: the ``jinja`` object that was written.
        rewritten: the rewritten form is the one that was written.
        runs: outcomes of all conversations by release.
        untried: releases of the target that were not run.
    """

    plan: ChatPlan
    written: Mapping[str, Any]
    rewritten: bool
    runs: Mapping[str, Sequence[Outcome]]
    untried: tuple[str, ...]

    def problems(self) -> list[Diagnostic]:
        """Crashes and hangs: no directory is written."""
        found = []
        for release, outcomes in self.runs.items():
            crashed = [item for item in outcomes if item.verdict == "crashes"]
            if crashed:
                message = f"MNN {release} {crashed[0].how} while it rendered the chat template ({crashed[0].name})"
                hint = "give the checkpoint a simpler chat_template.jinja, or leave the release out of --target"
                found.append(Diagnostic("B771", message, hint=hint))
        return found

    def warnings(self) -> list[Diagnostic]:
        """What renders otherwise, by the conversations concerned."""
        if self.plan.problem:
            message = f"the chat template {self.plan.problem}, so nobody knows how chats render"
            hint = "the releases get it as it is; mend chat_template.jinja of the checkpoint"
            return [Diagnostic("B772", message, hint=hint, severity="warning")]
        found = []
        for names, releases in self._differing().items():
            count = len(self.plan.references)
            does = "renders" if len(releases) == 1 else "render"
            message = f"MNN {' and '.join(releases)} {does} {len(names)} of {count} chats otherwise: {', '.join(names)}"
            found.append(Diagnostic("B770", message, hint=DETAILS, severity="warning"))
        return found

    def _differing(self) -> dict[tuple[str, ...], list[str]]:
        found: dict[tuple[str, ...], list[str]] = {}
        for release, outcomes in self.runs.items():
            names = _names(outcomes, "differs")
            if names:
                found.setdefault(names, []).append(release)
        return found

    def text(self) -> str:
        """The line of the summary."""
        if self.plan.problem:
            return f"the template {self.plan.problem}"
        lead = "template rewritten" if self.rewritten else "template as it is"
        if not self.runs:
            return f"{lead}, not tried"
        alike = [release for release, outcomes in self.runs.items() if not _names(outcomes, "differs")]
        lines = []
        if alike:
            compared = sum(item.verdict == "same" for item in self.runs[alike[-1]])
            lines.append(f"{lead}; {compared} chats as the original on {span(alike)}")
            lead = ""
        for names, releases in self._differing().items():
            named = ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"
            lines.append(f"{f'{lead}; ' if lead else ''}other text on {span(releases)}: {named}")
            lead = ""
        return "\n".join(lines)

    def contract(self) -> c.Chat:
        """The record of the contract."""
        import backends.contract as c
        from backends.mnn.chat.plan import digest

        refused = [] if self.plan.problem else [item for item in self.plan.references if item.text is None]
        return c.Chat(
            template=self.plan.digest,
            written=digest(self.written["chat_template"]),
            rewritten=self.plan.rules if self.rewritten else (),
            problem=f"the template {self.plan.problem}" if self.plan.problem else None,
            conversations=len(self.plan.references),
            refused=len(refused),
            runs=tuple(
                c.ChatRun(
                    release=release,
                    same=sum(item.verdict == "same" for item in outcomes),
                    differing=_names(outcomes, "differs"),
                    not_handed_over=_names(outcomes, "not handed over"),
                )
                for release, outcomes in self.runs.items()
            ),
            untried=self.untried,
        )


def span(releases: Sequence[str]) -> str:
    """Releases in a few words."""
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def _names(outcomes: Sequence[Outcome], verdict: str) -> tuple[str, ...]:
    return tuple(item.name for item in outcomes if item.verdict == verdict)


def tried(
    plan: ChatPlan, jinja: Mapping[str, Any], interpreters: Mapping[str, Path | str], releases: Sequence[str]
) -> ChatReport:
    """Render the conversations on releases, with the written template and, where it was rewritten, with the original.

    The better of the two is chosen: the one that fails for fewer chats, and of two alike the rewritten one.

    Args:
        plan: of the template.
        jinja: the object that was written.
        interpreters: of the releases to run.
        releases: those of the target.
    """
    from backends.mnn.chat.conversations import CONVERSATIONS
    from backends.mnn.chat.releases import Case, on_release

    untried = tuple(release for release in releases if release not in interpreters)
    if plan.problem:
        return ChatReport(plan, jinja, False, {}, tuple(releases))
    candidates = [jinja]
    original = plan.original(jinja)
    if original["chat_template"] != jinja["chat_template"]:
        candidates.append(original)
    cases = [Case(candidate, plan.references) for candidate in candidates]
    found = {release: on_release(release, python, cases, CONVERSATIONS) for release, python in interpreters.items()}
    best = min(range(len(candidates)), key=lambda number: (_failures(found, number), number))
    runs = {release: outcomes[best] for release, outcomes in found.items()}
    rewritten = plan.rewritten is not None and best == 0 and len(candidates) > 1
    return ChatReport(plan, candidates[best], rewritten, runs, untried)


def _failures(found: Mapping[str, Sequence[Sequence[Outcome]]], number: int) -> tuple[int, int]:
    outcomes = [item.verdict for cases in found.values() for item in cases[number]]
    return outcomes.count("crashes"), outcomes.count("differs")


__all__ = ["ChatReport", "tried"]
