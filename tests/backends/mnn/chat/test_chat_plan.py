"""Planning never fails for a template, whatever it is, and never changes what it gives."""

from __future__ import annotations

import random

import pytest

from backends.mnn.chat.plan import planned
from backends.mnn.chat.rewrite import rewrite
from frontends.text.chat_child import environment
from tests.support.text.chats import CONSTRUCTS, TEMPLATES, TOKENS

PIECES = [
    *(
        "{% endif %}",
        "{% endfor %}",
        "{% else %}",
        "{{ x }}",
        "{% set messages = [] %}",
        "{# c #}",
        "{{ loop.previtem }}",
    ),
    *(
        "|join",
        "|default",
        ".get('a')",
        "[0]",
        "[1:2]",
        "(1)",
        " in ",
        " is ",
        "not ",
        "%",
        "**",
        "~",
        "'",
        "-",
        "none",
        "1.5",
    ),
]


BEHIND = [
    "|join('-')",
    "|default('x')",
    "|first",
    "|string",
    " or 'x'",
    " ~ 1",
    "[0]",
    ".strip()",
    "|length > 1",
    " if loop",
]


def extended(source: str, rng: random.Random) -> str:
    """A template with something behind some of its expressions."""
    parts = source.split("}}")
    return (
        "}}".join(part + (rng.choice(BEHIND) if rng.random() < 0.2 else "") for part in parts[:-1]) + "}}" + parts[-1]
    )


def damaged(source: str, rng: random.Random) -> str:
    """A template with pieces cut out, doubled and put in."""
    if rng.random() < 0.7:
        return extended(source, rng)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(source))
        stop = min(len(source), start + rng.randint(0, 60))
        source = source[:start] + rng.choice(["", source[start:stop] * 2, rng.choice(PIECES)]) + source[stop:]
    return source


@pytest.mark.parametrize("seed", range(4))
def test_damaged_templates(seed: int) -> None:
    rng = random.Random(seed)
    sources = [*TEMPLATES.values(), *(case.source for case in CONSTRUCTS.values())]
    valid = 0
    for _ in range(60):
        answer = planned({"source": damaged(rng.choice(sources), rng), "tokens": TOKENS, "older": rng.random() < 0.5})
        valid += "references" in answer
    assert valid > 5


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for x in m.content if x|join('a') %}{{ x }}{% endfor %}{% endfor %}",
        "{% for m in messages recursive %}{{ m.content }}{% endfor %}",
        "{% set a, b = messages %}{{ a }}",
        "{{ messages|map('upper')|sum(start=0) }}{{ messages[0].content|default('x', messages) }}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
        "{% call f() %}x{% endcall %}",
        "{{ f(*messages) }}",
        "{{ messages[0].content is divisibleby(2) }}",
    ],
)
def test_what_is_not_written_stays(source: str) -> None:
    answer = planned({"source": source, "tokens": TOKENS, "older": True})
    assert answer["rewritten"] is None and len(answer["references"]) > 10


def test_a_template_that_all_releases_read_stays() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    assert rewrite(source, environment(), older=False) is None
    assert rewrite(source, environment(), older=True) is not None


def test_deep_templates() -> None:
    for source in ("(" * 5000 + "1" + ")" * 5000, "[" * 300 + "]" * 300, " + ".join(["'a'"] * 3000)):
        answer = planned({"source": "{{ " + source + " }}", "tokens": {}, "older": True})
        assert "invalid" in answer or "references" in answer
    deep = "{% if 1 %}" * 150 + "{% endif %}" * 150
    assert "invalid" in planned({"source": deep, "tokens": {}, "older": True})
