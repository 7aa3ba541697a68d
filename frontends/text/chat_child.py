"""Chat templates are programs of strangers: they run in a process of their own, with limits of time, memory and output.

The sandbox of jinja2 keeps a template from reaching Python objects, and from nothing else: a loop may run for ever and a
product of a text may take all memory, even while the template is compiled. So a child (`ir.base.child`) looks at them.
What a template is given and may use (filters, functions, block tags, how white space is trimmed) is what `transformers`
gives it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any

from ir.base.child import Buffers, Child, ChildFailed, Handler

Message = Mapping[str, Any]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning is handed over under; templates read the first."""


@dataclass(frozen=True)
class Limits:
    """What a child may take: seconds of wall time, bytes of address space (where the system limits them), bytes of all
    rendered text."""

    seconds: float = 30.0
    memory: int = 1 << 30
    output: int = 256 << 20


@dataclass(frozen=True)
class Chat:
    """What a template renders.

    Attributes:
        messages: with ``role``, ``content`` and whatever else a template may look at.
        tools: definitions of functions; None for none.
        add_generation_prompt: begin the assistant's turn at the end.
        variables: further names that the template sees, such as ``enable_thinking``.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """The text of a chat; where there is none, why."""

    text: str | None
    problem: str = ""


class ChildStoppedError(Exception):
    """The child was stopped at one of its limits, or died; the message is the predicate of a sentence."""


class LimitedChild:
    """A function of this project at work in a process of its own; use it as a context manager."""

    def __init__(self, entry: str, request: Mapping[str, Any], limits: Limits | None = None) -> None:
        """Begin.

        Args:
            entry: ``module:function``; takes the request and returns JSON-able data.
            request: JSON-able data.
            limits: what the process may take.

        Raises:
            LadingError: U981 no process can be started.
            ChildStoppedError: it died at once.
        """
        self.limits = limits or Limits()
        self._child = Child(f"{__name__}:serve", self.limits.memory, bare=True)
        try:
            self._child.begin({"entry": entry}, [json.dumps(request).encode()], seconds=self.limits.seconds)
        except ChildFailed as error:
            raise ChildStoppedError(error.how) from error

    def __enter__(self) -> LimitedChild:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.close()

    def result(self) -> Any:
        """Wait for the answer, for as long as the limits say.

        Raises:
            ChildStoppedError: there is none.
            RuntimeError: the function failed in a way that nobody foresaw.
        """
        try:
            _, (answer,) = self._child.finish()
        except ChildFailed as error:
            if error.kind == "raised":
                raise RuntimeError(f"work on a chat template failed: {error.detail}") from error
            raise ChildStoppedError(error.how) from error
        return json.loads(answer)


def serve() -> Handler:
    """What answers in the child; see `ir.base.child`."""

    def handle(message: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Buffers]:
        module, _, name = message["entry"].partition(":")
        return {}, [json.dumps(getattr(import_module(module), name)(json.loads(buffers[0]))).encode()]

    return handle


def render_chats(
    source: str,
    tokens: Mapping[str, str],
    chats: Sequence[Chat],
    *,
    now: datetime | None = None,
    limits: Limits | None = None,
) -> list[Rendered]:
    """Chats as text.

    Args:
        source: the template.
        tokens: special tokens by name, such as ``bos_token``.
        now: the time that the template is told; None for the present.
        limits: of all chats together.

    Raises:
        ChildStoppedError: a limit was reached.
        ValueError: the template is not valid; the message says why.
    """
    request = {
        "source": source,
        "tokens": dict(tokens),
        "chats": [asdict(chat) for chat in chats],
        "now": now.isoformat() if now is not None else None,
        "output": (limits or Limits()).output,
    }
    with LimitedChild("frontends.text.chat_child:rendered", request, limits) as child:
        answer = child.result()
    if "invalid" in answer:
        raise ValueError(answer["invalid"])
    if "overflow" in answer:
        raise ChildStoppedError(f"wrote more than {(limits or Limits()).output >> 20} MiB of text")
    return [Rendered(**item) for item in answer["rendered"]]


def rendered(request: Mapping[str, Any]) -> dict[str, Any]:
    """The child's side of `render_chats`."""
    now = datetime.fromisoformat(request["now"]) if request["now"] else None
    try:
        template = Template(request["source"], request["tokens"], now)
    except ValueError as error:
        return {"invalid": str(error)}
    found, size = [], 0
    for chat in request["chats"]:
        item = template.render(Chat(**chat))
        size += len(item.text or "")
        if size > request["output"]:
            return {"overflow": True}
        found.append(asdict(item))
    return {"rendered": found}


class Template:
    """A template as `transformers` runs it; for children alone, since nothing here limits it."""

    def __init__(self, source: str, tokens: Mapping[str, str], now: datetime | None = None) -> None:
        """Compile.

        Raises:
            ValueError: the template is not valid.
        """
        try:
            self._template = environment(now).from_string(source)
        except MemoryError:
            raise
        # Whatever the template makes of jinja2 and of Python's compiler: too deep, too many blocks, no syntax.
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error
        self._tokens = dict(tokens)

    def render(self, chat: Chat) -> Rendered:
        """The text of a chat, or the error with which the template refuses it or fails."""
        try:
            text = self._template.render(
                messages=[_message(item) for item in chat.messages],
                tools=chat.tools,
                documents=None,
                add_generation_prompt=chat.add_generation_prompt,
                **{**self._tokens, **chat.variables},
            )
        except MemoryError:
            raise
        # A template is a program of the checkpoint and can fail in any way.
        except Exception as error:
            return Rendered(None, f"{type(error).__name__}: {error}"[:1000])
        return Rendered(text)


def _message(item: Message) -> dict[str, Any]:
    """A message as templates see it: nothing that is null, the reasoning under the name that they read."""
    found = {key: value for key, value in item.items() if value is not None}
    reasoning = next((found[key] for key in REASONING if key in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def environment(now: datetime | None = None) -> Any:
    """The jinja2 environment of chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant wrote, which changes nothing of the text."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            """The statements between the tags."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(item: Any, ensure_ascii: bool = False, indent: Any = None, **more: Any) -> str:
        kept = {key: more[key] for key in ("separators", "sort_keys") if key in more}
        return json.dumps(item, ensure_ascii=ensure_ascii, indent=indent, **kept)

    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    found.filters["tojson"] = tojson
    found.globals["raise_exception"] = refuse
    found.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    return found


__all__ = [
    "Chat",
    "ChildStoppedError",
    "LimitedChild",
    "Limits",
    "Message",
    "Rendered",
    "Template",
    "environment",
    "render_chats",
    "rendered",
    "serve",
]
