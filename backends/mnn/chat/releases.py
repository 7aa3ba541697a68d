"""What MNN releases make of a chat template: the same text as the original, another one, or a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backends.mnn.chat.conversations import Conversation
from backends.mnn.run.native import ChildResult, run_child
from backends.mnn.target.releases import RELEASES
from frontends.text.chat_child import Rendered

SCRIPT = Path(__file__).with_name("release_child.py")
SECONDS = 20.0
"""Time for all chats of one template, of which a release needs some thousandths."""
MEMORY = 4 << 30
"""Bytes that rendering may map; a renderer that loops while it allocates is stopped by it."""
WITHOUT_PROMPT = "{%- set add_generation_prompt = false -%}"
"""In front of a template: the interface begins the assistant's turn always."""

Verdict = Literal["same", "differs", "crashes", "not handed over", "refused"]


@dataclass(frozen=True)
class Outcome:
    """One conversation on one release.

    Attributes:
        name: of the conversation.
        verdict: ``same`` text as the original, another one (``differs``), the process dies or hangs (``crashes``); the
            release's interface cannot be told the conversation (``not handed over``); the original template refuses
            it, so that there is nothing to compare with (``refused``).
        text: what the release gave.
        wanted: what the original gives.
        how: of a crash, how the process ended.
    """

    name: str
    verdict: Verdict
    text: str | None = None
    wanted: str | None = None
    how: str = ""


@dataclass(frozen=True)
class Case:
    """A template for the releases, and what the original gives for each conversation.

    Attributes:
        jinja: the object of llm_config.json.
        references: of the conversations, in their order.
    """

    jinja: Mapping[str, Any]
    references: Sequence[Rendered]


@dataclass(frozen=True)
class _Group:
    """Chats that one engine renders: of one template, with one set of variables."""

    case: int
    jinja: Mapping[str, Any]
    places: tuple[int, ...]


def on_release(
    version: str, interpreter: Path | str, cases: Sequence[Case], conversations: Sequence[Conversation]
) -> list[list[Outcome]]:
    """Render conversations with each of some templates on one release, in child processes.

    Returns the outcomes of each case, in the order of the conversations.

    Raises:
        LadingError: B666 when the interpreter cannot be started.
    """
    release = RELEASES.get(version)
    rich = release is None or release.mtok
    groups = [group for number, case in enumerate(cases) for group in _groups(number, case, conversations, rich)]
    texts: dict[tuple[int, int], str | None] = {}
    ends: dict[int, str] = {}
    left = groups
    while left:
        child = _run(interpreter, left, conversations, rich)
        done = _read(child, left, texts)
        if done < len(left):
            ends[left[done].case] = _ended(child)
            # What the broken template still has to render would break again.
            left = [group for group in left[done + 1 :] if group.case != left[done].case]
        else:
            left = []
    return [
        [
            _outcome(conversation, reference, texts.get((number, place)), ends.get(number), rich)
            for place, (conversation, reference) in enumerate(zip(conversations, case.references, strict=True))
        ]
        for number, case in enumerate(cases)
    ]


def _groups(number: int, case: Case, conversations: Sequence[Conversation], rich: bool) -> list[_Group]:
    """The chats of a template by what the engine must be told besides the messages."""
    found: dict[str, list[int]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for place, (conversation, reference) in enumerate(zip(conversations, case.references, strict=True)):
        if reference.text is None or not (rich or conversation.plain):
            continue
        jinja = dict(case.jinja)
        context = dict(conversation.variables)
        if conversation.tools is not None:
            context["tools"] = list(conversation.tools)
        if context:
            jinja["context"] = {**jinja.get("context", {}), **context}
        if not conversation.prompt:
            jinja["chat_template"] = WITHOUT_PROMPT + jinja["chat_template"]
        key = json.dumps(jinja)
        settings[key] = jinja
        found.setdefault(key, []).append(place)
    return [_Group(number, settings[key], tuple(places)) for key, places in found.items()]


def _run(
    interpreter: Path | str, groups: Sequence[_Group], conversations: Sequence[Conversation], rich: bool
) -> ChildResult:
    request = {
        "seconds": SECONDS,
        "memory": MEMORY,
        "groups": [
            {"jinja": group.jinja, "chats": [_messages(conversations[place], rich) for place in group.places]}
            for group in groups
        ],
    }
    limit = SECONDS * len(groups) + 60
    return run_child(SCRIPT, request, interpreter=interpreter, timeout_s=limit)


def _messages(conversation: Conversation, rich: bool) -> str | list[dict[str, str]]:
    """Messages as the interface takes them; from 3.5 on a whole message may stand in the content of the role json."""
    if conversation.bare:
        return str(conversation.messages[-1]["content"])
    if conversation.plain or not rich:
        return [dict(item) for item in conversation.messages]
    return [{"role": "json", "content": json.dumps(item, ensure_ascii=False)} for item in conversation.messages]


def _read(child: ChildResult, groups: Sequence[_Group], texts: dict[tuple[int, int], str | None]) -> int:
    """Take the texts over; returns how many groups are complete."""
    seen = [0] * len(groups)
    for record in child.records:
        group = groups[record["group"]]
        seen[record["group"]] += 1
        if record["chat"] >= 0:
            texts[group.case, group.places[record["chat"]]] = record.get("text")
    complete = [count == len(group.places) + 1 for count, group in zip(seen, groups, strict=True)]
    return complete.index(False) if False in complete else len(groups)


def _ended(child: ChildResult) -> str:
    if child.timed_out or child.signal == "SIGALRM":
        return f"was stopped after {SECONDS:g} s"
    lines = [line for line in child.log.splitlines() if "what():" in line]
    return f"{child.outcome} ({lines[-1].split('what():')[1].strip()})" if lines else child.outcome


def _outcome(
    conversation: Conversation, reference: Rendered, text: str | None, ended: str | None, rich: bool
) -> Outcome:
    if reference.text is None:
        return Outcome(conversation.name, "refused")
    if not rich and not conversation.plain:
        return Outcome(conversation.name, "not handed over")
    if text is None and ended is not None:
        return Outcome(conversation.name, "crashes", None, reference.text, ended)
    verdict: Verdict = "same" if text == reference.text else "differs"
    return Outcome(conversation.name, verdict, text, reference.text)


__all__ = ["Case", "Outcome", "on_release"]
