"""The tokenizer of an MNN model directory: read from a checkpoint, written in the forms that the releases read.

    spec = load_tokenizer(folder)
    (out / "tokenizer.mtok").write_bytes(encode_mtok(spec))      # MNN 3.5.0 and later
    kind, data = encode_text(spec)                               # MNN 3.4.0 and 3.4.1

`inexact` lists how either form may give other ids than the original; an empty list means never, as far as the
runtime's source tells. What would differ in ordinary text is an error instead. The parts live in modules of their
own: `tokenizer_spec` (reading), `tokenizer_parts`, `tokenizer_regex`, `tokenizer_unicode` and `tokenizer_charsmap`
(stages in MNN's terms), `tokenizer_mtok` and `tokenizer_text` (the files), `tokenizer_runtime` (MNN 3.4 in Python)
and `tokenizer_reader` (an independent reader).
"""

from __future__ import annotations

import json
import re
from typing import Literal
from weakref import WeakKeyDictionary

from backends.mnn.tokenizer.checks import added_reasons, affix_reasons, check_added, check_model, model_reasons
from backends.mnn.tokenizer.files.mtok import write_mtok
from backends.mnn.tokenizer.files.read import read_text
from backends.mnn.tokenizer.files.text import text_reasons, write_text
from backends.mnn.tokenizer.files.text_runtime import TextTokenizer
from backends.mnn.tokenizer.spec import SPECIAL_NAMES, AddedToken, TokenizerSpec, load_tokenizer
from backends.mnn.tokenizer.stages import FIRST_SPACE, Plan, make_plan

__all__ = [
    "AddedToken",
    "TokenizerSpec",
    "encode_mtok",
    "encode_text",
    "inexact",
    "jinja_template",
    "load_tokenizer",
    "raw_reasons",
    "text_tokenizer",
]

Form = Literal["mtok", "text"]
_STRIP_SINCE = (3, 6, 0)


def encode_mtok(spec: TokenizerSpec, oldest: str = "3.5.0") -> bytes:
    """The bytes of `tokenizer.mtok` for MNN `oldest` and later.

    Only one part depends on the release: stripping whitespace off the ends of a text, known from 3.6.0 on.

    Raises:
        LadingError: B642 to B647 for what MNN cannot express, B649 for a text too long.
    """
    return write_mtok(spec, _checked_plan(spec, oldest))


def encode_text(spec: TokenizerSpec) -> tuple[int, bytes]:
    """Type number and bytes of the text file for MNN 3.4.0 and 3.4.1: the type that comes nearest.

    Raises:
        LadingError: as `encode_mtok`, and B651 if the old reader would stop for want of a token.
    """
    return write_text(spec, _checked_plan(spec, "3.5.0"))


def inexact(spec: TokenizerSpec, form: Form, oldest: str = "3.5.0") -> list[str]:
    """Reasons why ids or decoded text may differ from the original tokenizer's, most general first."""
    plan = _checked_plan(spec, oldest)
    if form == "text":
        return [*spec.reasons, *text_reasons(spec, plan), *affix_reasons(spec)]
    return [*spec.reasons, *plan.reasons, *model_reasons(spec, plan), *affix_reasons(spec), *added_reasons(spec, plan)]


def raw_reasons(spec: TokenizerSpec, oldest: str = "3.5.0") -> list[str]:
    """How ordinary text that is not a chat is encoded otherwise, in whatever form."""
    plan = _checked_plan(spec, oldest or "3.5.0")
    return [*affix_reasons(spec), *(reason for reason in plan.reasons if reason in FIRST_SPACE)]


_PLANS: WeakKeyDictionary[TokenizerSpec, dict[bool, Plan]] = WeakKeyDictionary()


def _checked_plan(spec: TokenizerSpec, oldest: str) -> Plan:
    """The plan for a spec, made once for each of the two generations of readers."""
    plans = _PLANS.setdefault(spec, {})
    strip_allowed = tuple(int(part) for part in oldest.split(".")) >= _STRIP_SINCE
    if strip_allowed not in plans:
        check_model(spec)
        check_added(spec)
        plans[strip_allowed] = make_plan(spec, strip_allowed)
    return plans[strip_allowed]


_TEXT_TOKENIZERS: WeakKeyDictionary[TokenizerSpec, TextTokenizer] = WeakKeyDictionary()


def text_tokenizer(spec: TokenizerSpec) -> TextTokenizer:
    """MNN 3.4's tokenizer over the text form of `spec`, emulated; kept as long as `spec` lives."""
    if spec not in _TEXT_TOKENIZERS:
        _TEXT_TOKENIZERS[spec] = TextTokenizer(read_text(encode_text(spec)[1]))
    return _TEXT_TOKENIZERS[spec]


def jinja_template(spec: TokenizerSpec) -> str | None:
    """The chat template for the `jinja` object of llm_config.json, the same on every release.

    MNN passes only `eos_token` (3.4 `bos_token` too) to a template. So the template is led by statements that set
    the other special tokens it names.
    """
    template = spec.chat_template
    if template is None:
        return None
    named = [
        (name + "_token", spec.special_texts[name])
        for name in SPECIAL_NAMES
        if name != "eos" and name in spec.special_texts and re.search(rf"\b{name}_token\b", template)
    ]
    lead = "".join(f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}" for name, text in named)
    if lead and template[:1].isspace():
        # A dash would eat the template's first blanks, a bare end its first line break; an empty value protects both.
        lead = lead[: -len("-%}")] + '%}{{ "" }}'
    return lead + template
