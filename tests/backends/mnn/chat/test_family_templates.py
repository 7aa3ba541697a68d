"""Chat templates of families on the releases: the text that jinja2 gives, or what differs is known."""

from __future__ import annotations

import functools

import pytest

from backends.mnn.chat.conversations import CONVERSATIONS, Conversation
from backends.mnn.chat.plan import planned
from backends.mnn.chat.releases import Case, Outcome, on_release
from backends.mnn.target.releases import RELEASES
from frontends.text.chat_child import Rendered, Template
from tests.support.runs import each_release, interpreters
from tests.support.text.chats import TOKENS
from tests.support.text.family_chats import FAMILY_TEMPLATES

LEAD = '{%- set bos_token = "<s>" -%}'
_ASK = {"role": "user", "content": "What is 2 + 2?"}
_TOLD = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}
SWITCHES = {
    "thinking": {"enable_thinking": True, "thinking": True},
    "no thinking": {"enable_thinking": False, "thinking": False},
    "effort": {"reasoning_effort": "high", "skip_think": False},
}
CHATS = (
    *CONVERSATIONS,
    *(Conversation(name, [_ASK, _TOLD, _ASK], variables=variables) for name, variables in SWITCHES.items()),
    Conversation("switches of system prompts", [{"role": "system", "content": "Be brief. /no_think"}, _ASK]),
    Conversation("ends with reasoning", [_ASK, _TOLD], prompt=False, variables=SWITCHES["effort"]),
)
RENDERERS = ("3.4.1", "3.5.0", "3.6.1")
"""Releases whose renderers differ; constructs are tried on all."""
# Tool calls are asked for by template; what the original refuses is not compared.
REFUSED = {"mistral v1": 7, "llama2": 2, "command-r": 2, "mistral tekken": 2, "gpt-oss": 1, "hunyuan dense": 1}


@functools.cache
def references(name: str) -> tuple[Rendered, ...]:
    template = Template(FAMILY_TEMPLATES[name], TOKENS)
    return tuple(template.render(chat.chat()) for chat in CHATS)


@functools.cache
def outcomes(version: str) -> dict[str, list[Outcome]]:
    cases = []
    for name, source in FAMILY_TEMPLATES.items():
        found = planned({"source": source, "tokens": TOKENS, "older": True})
        cases.append(Case({"chat_template": LEAD + (found["rewritten"] or source), "eos": "</s>"}, references(name)))
    return dict(zip(FAMILY_TEMPLATES, on_release(version, interpreters()[version], cases, CHATS), strict=True))


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_templates_are_spelled_anew(name: str) -> None:
    found = planned({"source": FAMILY_TEMPLATES[name], "tokens": TOKENS, "older": True})
    assert found["rewritten"] is not None
    assert sum(item.text is None for item in references(name)) <= REFUSED.get(name, 0)


@pytest.mark.mnn
@pytest.mark.parametrize("version", [item for item in each_release() if item.values[0] in RENDERERS])
def test_releases_give_the_text_of_jinja2(version: str) -> None:
    # 3.4 knows no order of keys but the alphabet's.
    allowed = set() if RELEASES[version].mtok else {"tools"}
    for name, found in outcomes(version).items():
        wrong = [item for item in found if item.verdict in ("differs", "crashes") and item.name not in allowed]
        assert not wrong, (name, wrong[0])
        handed = len(CHATS) if RELEASES[version].mtok else len(CHATS) - 2
        assert sum(item.verdict == "same" for item in found) >= handed - REFUSED.get(name, 0) - len(allowed)
