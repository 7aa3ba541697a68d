"""Conversations that templates are tried on: one for each thing that templates treat specially."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontends.text.chat_child import Chat, Message

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a place; say "here" for the user\'s own.',
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string", "enum": ["celsius", "kelvin"], "description": "Unit of temperature"},
                "city": {"type": "string", "description": "Name of a city, such as Köln"},
            },
            "required": ["city"],
        },
    },
}
"""A function as models are offered it; its parameters are not in the order of the alphabet."""


@dataclass(frozen=True)
class Conversation:
    """Something to render.

    Attributes:
        name: for people, in a few words.
        messages: its turns.
        tools: functions that are offered.
        variables: what an application may tell the template besides.
        prompt: the assistant's turn is begun; False as while training, and for keys of cached prompts.
        bare: the question is handed over as a text, as applications do that know one turn at a time.
    """

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    prompt: bool = True
    bare: bool = False

    @property
    def plain(self) -> bool:
        """Messages of a role and a content alone: all that MNN's interface hands to every release."""
        return all(set(item) == {"role", "content"} for item in self.messages)

    def chat(self) -> Chat:
        """The conversation for the reference."""
        return Chat(self.messages, self.tools, self.prompt, self.variables)


def _say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_SYSTEM = _say("system", "You are a careful assistant.\nAnswer briefly.")
_ASK = _say("user", "What is 2 + 2?")
_THOUGHT = "<think>\nTwo and two.\n\nThat is four.\n</think>\n\nIt is 4."
_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
_LONG = [_say("user" if number % 2 == 0 else "assistant", f"Turn {number}.") for number in range(13)]

CONVERSATIONS = (
    Conversation("one question", [_ASK]),
    Conversation("one question as a text", [_ASK], bare=True),
    Conversation("system prompt", [_SYSTEM, _ASK]),
    Conversation("three turns", [_ASK, _say("assistant", "It is 4."), _say("user", "And 3 + 3?")]),
    Conversation("system prompt, many turns", [_SYSTEM, *_LONG]),
    Conversation("ends with an answer", [_ASK, _say("assistant", "It is 4.")], prompt=False),
    Conversation("no prompt for an answer", [_SYSTEM, _ASK], prompt=False),
    Conversation("reasoning in the history", [_ASK, _say("assistant", _THOUGHT), _say("user", "Are you sure?")]),
    Conversation(
        "reasoning of its own field",
        [_ASK, _say("assistant", "It is 4.", reasoning_content="Two and two."), _say("user", "Are you sure?")],
    ),
    Conversation("reasoning in the last answer", [_ASK, _say("assistant", _THOUGHT)], prompt=False),
    Conversation("without thinking", [_ASK], variables={"enable_thinking": False}),
    Conversation("empty contents", [_say("user", ""), _say("assistant", ""), _ASK]),
    Conversation(
        "letters of the world",
        [
            _say("user", "你好,世界! Größe, naïve; Привет 👩‍👩‍👧"),
            _say("assistant", "こんにちは。"),
            _say("user", "مرحبا؟"),
        ],
    ),
    Conversation(
        "spaces and lines",
        [_say("user", "  two before,\n\n\tand two after  \n"), _say("assistant", "\n\nlate\n"), _say("user", " \n ")],
    ),
    Conversation(
        "what looks like markup",
        [
            _say("user", "{{ x }} {% if %} <|im_end|> \"q\" 'a' \\n \\ </think> & <b>"),
            _say("assistant", "{# c #}"),
            _ASK,
        ],
    ),
    Conversation("tools", [_SYSTEM, _ASK], [WEATHER]),
    Conversation(
        "tool call and result",
        [
            _ASK,
            _say("assistant", "", tool_calls=[_CALL]),
            _say("tool", '{"degrees": 21}', name="weather"),
            _say("tool", "sunny", name="weather"),
        ],
        [WEATHER],
    ),
    Conversation(
        "tool results as text",
        [_ASK, _say("assistant", "I look it up."), _say("tool", '{"degrees": 21}'), _say("tool", "sunny"), _ASK],
    ),
)
"""What is tried; names are what the contract calls them."""
