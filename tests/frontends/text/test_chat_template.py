"""Chats as transformers renders them, by templates that may do anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frontends.text.chat_child import Chat, ChildStoppedError, LimitedChild, Limits, render_chats
from frontends.text.chat_template import ChatTemplate, chat_template
from ir.base.diag import LadingError
from tests.support.text import vocabulary_files as files
from tests.support.text.chats import CONVERSATIONS, TEMPLATES, TOKENS
from tests.support.text.family_chats import FAMILY_TEMPLATES

ALL = {**TEMPLATES, **FAMILY_TEMPLATES}
TIGHT = Limits(memory=400 << 20, output=1 << 20)
CHAT = Chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("name", ALL)
def test_ours_and_transformers_render_alike(name: str) -> None:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

    chats = [
        Chat(chat.messages, chat.tools, prompt, chat.variables) for chat in CONVERSATIONS for prompt in (False, True)
    ]
    compared = 0
    for chat, ours in zip(chats, render_chats(ALL[name], TOKENS, chats), strict=True):
        try:
            theirs, _ = render_jinja_template(
                [_normalize_chat_messages(chat.messages)],
                tools=chat.tools,
                chat_template=ALL[name],
                add_generation_prompt=chat.add_generation_prompt,
                **TOKENS,
                **chat.variables,
            )
        except (TemplateError, TypeError):
            assert ours.text is None and ours.problem
            continue
        assert ours.text == theirs[0]
        compared += 1
    assert compared >= len(chats) // 2


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "stopped after 1 s"),
        ("{{ 'a' * 10**10 }}", "memory"),
        (
            "{% set x = namespace(s='a' * 1000) %}{% for i in range(99) %}{% set x.s = x.s + x.s %}{% endfor %}",
            "memory",
        ),
        ("{{ 'a' * 2000000 }}", "1 MiB of text"),
        ("{{ 10 ** (10 ** 9) }}", "stopped after 1 s"),
    ],
    ids=["nested loops", "a product of a text", "doubling", "much text", "a power while compiling"],
)
def test_limits(template: str, says: str) -> None:
    limits = replace(TIGHT, seconds=1) if says.startswith("stopped") else TIGHT
    with pytest.raises(LadingError, match=says) as error:
        ChatTemplate(template, {}, "t.jinja").render([(CHAT, "line 1")], limits)
    assert error.value.code == "Q480" and "t.jinja" in str(error.value)


def test_a_range_of_a_thousand_million_is_refused_at_once() -> None:
    found = render_chats("{% for i in range(10**9) %}a{% endfor %}", {}, [CHAT])
    assert found[0].text is None and "OverflowError" in found[0].problem


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.format.__globals__.x }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.x }}",
        "{{ (range.__self__).exec('1') }}",
    ],
)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    assert render_chats(template, {}, [CHAT])[0].text is None


def test_a_template_that_is_none() -> None:
    for source in ("{% for %}", "{{", "{% unknown %}"):
        with pytest.raises(ValueError, match=r"."):
            render_chats(source, {}, [CHAT])


def test_a_child_that_dies_is_an_answer() -> None:
    with (
        LimitedChild("tests.support.text.chats:leave", {}) as child,
        pytest.raises(ChildStoppedError, match="exit code 7"),
    ):
        child.result()


def test_where_templates_stand(tmp_path: Path) -> None:
    def written(name: str, data: object) -> None:
        (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))

    assert chat_template(tmp_path) is None
    written("special_tokens_map.json", {"bos_token": "<map>", "eos_token": {"content": "<end>"}})
    written("tokenizer_config.json", {"bos_token": "<own>", "chat_template": [{"name": "default", "template": "list"}]})
    found = chat_template(tmp_path)
    assert found is not None and found.source == "list"
    assert found.tokens == {"bos_token": "<own>", "eos_token": "<end>"}
    written("chat_template.json", {"chat_template": "apart"})
    found = chat_template(tmp_path)
    assert found is not None and found.source == "apart" and found.where.endswith("chat_template.json")
    written("chat_template.jinja", "file")
    found = chat_template(tmp_path)
    assert found is not None and found.source == "file"


@pytest.mark.parametrize(("settings", "text"), [({}, "<s>x</s>"), ({"bos_token": "[B]"}, "[B]x</s>")])
def test_special_tokens_of_a_vocabulary_stand_in_for_those_that_no_settings_name(
    settings: dict[str, str], text: str, tmp_path: Path
) -> None:
    folder = files.piece_folder(tmp_path, "llama2", **settings)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    found = chat_template(folder)
    assert found is not None and found.render([(CHAT, "")]) == [text]
    (folder / "tokenizer.model").write_bytes(b"damaged")
    found = chat_template(folder)
    assert found is not None and found.tokens == settings
