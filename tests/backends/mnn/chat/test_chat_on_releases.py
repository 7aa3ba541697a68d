"""Chats on the real releases: rewritten templates give what jinja2 gives of the originals, and the originals do not."""

from __future__ import annotations

import functools

import pytest

from backends.mnn.chat import releases
from backends.mnn.chat.conversations import CONVERSATIONS
from backends.mnn.chat.releases import Case, Outcome, on_release
from backends.mnn.chat.rewrite import Rewritten, rewrite
from backends.mnn.target.releases import RELEASES
from frontends.text.chat_child import Rendered, Template, environment
from tests.support.runs import each_release, interpreters
from tests.support.text.chats import CONSTRUCTS, TEMPLATES, TOKENS

LEAD = '{%- set bos_token = "<s>" -%}'
ALL = {**TEMPLATES, **{name: case.source for name, case in CONSTRUCTS.items()}}


@functools.cache
def rewritten(name: str) -> Rewritten:
    found = rewrite(ALL[name], environment())
    assert found is not None
    return found


@functools.cache
def references(name: str, original: bool = True) -> tuple[Rendered, ...]:
    template = Template(ALL[name] if original else rewritten(name).source, TOKENS)
    return tuple(template.render(conversation.chat()) for conversation in CONVERSATIONS)


@functools.cache
def outcomes(version: str) -> dict[tuple[str, str], list[Outcome]]:
    """Verdicts of rewritten templates, and of the originals that are broken there, of all cases in one go."""
    names = [(name, "rewritten") for name in ALL]
    names += [(name, "original") for name, case in CONSTRUCTS.items() if generation(version) in case.broken]
    cases = [
        Case(
            {"chat_template": LEAD + (ALL[name] if form == "original" else rewritten(name).source), "eos": "</s>"},
            references(name),
        )
        for name, form in names
    ]
    return dict(zip(names, on_release(version, interpreters()[version], cases, CONVERSATIONS), strict=True))


def generation(version: str) -> str:
    return "3.5" if RELEASES[version].mtok else "3.4"


def wrong(found: list[Outcome]) -> set[str]:
    return {item.name for item in found if item.verdict in ("differs", "crashes")}


@pytest.mark.parametrize("name", ALL)
def test_the_rewritten_template_is_equivalent(name: str) -> None:
    assert references(name, original=False) == references(name)
    assert sum(item.text is not None for item in references(name)) >= 10


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("version", each_release())
def test_templates_of_models(version: str, name: str) -> None:
    found = outcomes(version)[name, "rewritten"]
    # 3.4 knows no order of keys but the alphabet's.
    allowed = set() if RELEASES[version].mtok else {"tools"}
    assert wrong(found) <= allowed, [item for item in found if item.name in wrong(found) - allowed]
    assert sum(item.verdict == "same" for item in found) >= 13


@pytest.mark.parametrize("name", CONSTRUCTS)
@pytest.mark.parametrize("version", each_release())
def test_constructs(version: str, name: str) -> None:
    case = CONSTRUCTS[name]
    found = outcomes(version)[name, "rewritten"]
    assert not wrong(found), [item for item in found if item.name in wrong(found)][:2]
    assert case.rule in rewritten(name).rules
    if generation(version) in case.broken:
        assert wrong(outcomes(version)[name, "original"]), "the original renders right, so the rule has no use"


@pytest.mark.parametrize("version", each_release())
def test_what_only_some_releases_can_be_told(version: str) -> None:
    found = {item.name: item.verdict for item in outcomes(version)["qwen2.5", "rewritten"]}
    handed = "same" if RELEASES[version].mtok else "not handed over"
    assert found["tool call and result"] == found["reasoning of its own field"] == handed


def test_chats_that_the_original_refuses_are_not_compared() -> None:
    version = next(iter(interpreters()))
    found = {item.name: item.verdict for item in outcomes(version)["gemma", "rewritten"]}
    assert found["tool results as text"] == "refused"


@pytest.mark.parametrize("version", each_release())
def test_hangs_and_crashes_are_outcomes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.5 and later read a list for ever that holds an operator they do not know, and take memory; 3.4 throws on an
    index that is out of range. The templates before and after are not concerned."""
    monkeypatch.setattr(releases, "SECONDS", 3.0)
    broken = "{{ [2 ** 3] }}" if RELEASES[version].mtok else "{{ messages[40].content }}"
    good = Case({"chat_template": rewritten("first content").source}, references("first content"))
    bad = Case({"chat_template": broken}, [Rendered("[8]") for _ in CONVERSATIONS])
    before, middle, after = on_release(version, interpreters()[version], [good, bad, good], CONVERSATIONS)
    assert {item.verdict for item in middle} <= {"crashes", "not handed over"}
    assert any(item.how for item in middle)
    assert not wrong(before) and not wrong(after)
