"""Which template to write: the checkpoint's own, or one that all releases of the target render like it.

The work is done in a limited child beside everything else, because the template is a stranger's program: what the
original gives for every conversation, the rewritten form, and the proof that it gives the same, in jinja2 as
`transformers` sets it up. What the releases then make of it is seen on the releases, see `backends.mnn.chat.releases`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backends.mnn.chat.conversations import CONVERSATIONS
from frontends.text.chat_child import Chat, ChildStoppedError, LimitedChild, Limits, Rendered, Template, environment
from frontends.text.chat_template import ChatTemplate, chat_template
from ir.base.diag import LadingError

LIMITS = Limits(seconds=20)
"""For a template's 18 conversations, which take some hundredths of a second."""
BOTH = (False, True)
"""With and without the begin of the assistant's turn."""


@dataclass(frozen=True)
class ChatPlan:
    """What is known of a template before it is written.

    Attributes:
        source: the checkpoint's template.
        references: what it gives for each of the `CONVERSATIONS`.
        rewritten: the same template in the spelling that all releases share; None where it stays as it is.
        rules: what was rewritten, in a word or two each.
        problem: why nothing is known, as the predicate of a sentence about the template; empty when something is.
    """

    source: str
    references: tuple[Rendered, ...] = ()
    rewritten: str | None = None
    rules: tuple[str, ...] = ()
    problem: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's template."""
        return digest(self.source)

    def written(self, template: Mapping[str, str]) -> dict[str, str]:
        """The ``jinja`` object with the rewritten template in place of the original, behind what leads it."""
        text = template.get("chat_template", "")
        if self.rewritten is None or not text.endswith(self.source):
            return dict(template)
        return {**template, "chat_template": text[: len(text) - len(self.source)] + self.rewritten}

    def original(self, template: Mapping[str, str]) -> dict[str, str]:
        """The ``jinja`` object with the checkpoint's own template."""
        text = template.get("chat_template", "")
        if self.rewritten is None or not text.endswith(self.rewritten):
            return dict(template)
        return {**template, "chat_template": text[: len(text) - len(self.rewritten)] + self.source}


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ChatJob:
    """A plan in the making, in a process of its own; use it as a context manager."""

    def __init__(self, folder: Path, *, older: bool) -> None:
        """Look for a template; `begin` starts the work.

        Args:
            folder: the checkpoint, or whatever holds its tokenizer.
            older: MNN 3.4 is among the releases of the target.
        """
        self._template = _found(folder)
        self._older = older
        self._child: LimitedChild | None = None

    def __enter__(self) -> ChatJob:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._child.__exit__(*error)

    def begin(self) -> None:
        """Start the child, if there is a template; LadingError U981 when none can be started."""
        if self._template is not None and self._child is None:
            request = {"source": self._template.source, "tokens": dict(self._template.tokens), "older": self._older}
            self._child = LimitedChild("backends.mnn.chat.plan:planned", request, LIMITS)

    def result(self) -> ChatPlan | None:
        """Wait for the plan; None without a template."""
        self.begin()
        if self._template is None or self._child is None:
            return None
        plan = ChatPlan(self._template.source)
        try:
            answer = self._child.result()
        except ChildStoppedError as error:
            return replace(plan, problem=str(error))
        if "invalid" in answer:
            return replace(plan, problem=f"is not valid: {answer['invalid']}")
        references = tuple(Rendered(**item) for item in answer["references"])
        return replace(plan, references=references, rewritten=answer["rewritten"], rules=tuple(answer["rules"]))


def _found(folder: Path) -> ChatTemplate | None:
    try:
        return chat_template(folder)
    except LadingError:
        # Whoever writes the tokenizer reads the same files, and reports them.
        return None


def planned(request: Mapping[str, Any]) -> dict[str, Any]:
    """The child's side."""
    try:
        template = Template(request["source"], request["tokens"])
    except ValueError as error:
        return {"invalid": str(error)}
    references = [template.render(conversation.chat()) for conversation in CONVERSATIONS]
    rewritten, rules = _rewritten(template, request)
    return {"references": [asdict(item) for item in references], "rewritten": rewritten, "rules": rules}


def _rewritten(template: Template, request: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The template in the shared spelling, if it gives what the original gives for every conversation."""
    from backends.mnn.chat.rewrite import rewrite

    try:
        found = rewrite(request["source"], environment(), older=request["older"])
        if found is None:
            return None, ()
        other = Template(found.source, request["tokens"])
    except MemoryError:
        raise
    except Exception:
        # A construct that no rule foresees: the original stays, and the releases show what they make of it.
        return None, ()
    return (found.source, found.rules) if equivalent(template, other) else (None, ())


def equivalent(one: Template, other: Template) -> bool:
    """Whether two templates give the same text for every conversation, and refuse the same ones."""
    for conversation in CONVERSATIONS:
        for prompt in BOTH:
            chat = Chat(conversation.messages, conversation.tools, prompt, conversation.variables)
            if one.render(chat).text != other.render(chat).text:
                return False
    return True


def use_template(folder: Path, jinja: Mapping[str, Any], config: str) -> None:
    """Put another ``jinja`` object into a written configuration."""
    path = folder / config
    data = json.loads(path.read_text(encoding="utf-8"))
    data["jinja"] = dict(jinja)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["ChatJob", "ChatPlan", "digest", "planned", "use_template"]
