"""The shape of tokenizer.json: every field that is used later has the type it should have.

The tokenizers library checks the same on loading. Only what is wrong is looked for here, not what is unsupported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ir.base.diag import LadingError

_TEXT = frozenset(("type", "content", "prepend", "replacement", "delimiter", "prefix", "behavior", "prepend_scheme"))
_NEVER_NULL = frozenset(("content", "prepend", "replacement", "delimiter"))
_FLAG = frozenset(
    "add_prefix_space use_regex individual_digits invert strip_left strip_right clean_text handle_chinese_chars "
    "strip_accents lowercase cleanup split byte_fallback ignore_merges".split()
)
_COUNT = frozenset(("start", "stop", "max_input_chars_per_word"))
_CHILDREN = frozenset(("normalizers", "pretokenizers", "decoders", "processors"))
_LIST = _CHILDREN | {"single"}
_OPTIONAL_TEXT = frozenset(("unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
_STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_shape(data: Mapping[str, Any], where: str) -> None:
    """Raise B641 for the first stage or option of a wrong type; absent fields are fine, and most that are null."""
    for key in _STAGES:
        stage = data.get(key)
        if stage is not None:
            _check(stage, key, where)
    model = data.get("model")
    if isinstance(model, dict):
        options = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        _check({"type": "", **options}, "model", where)


def _check(stage: Any, path: str, where: str) -> None:
    if not isinstance(stage, dict) or not isinstance(stage.get("type"), str):
        raise LadingError("B641", f"{path} is {_short(stage)}, not an object with a type", where=where)
    for key, value in stage.items():
        problem = _problem(key, value)
        if problem:
            raise LadingError("B641", f"{path}.{key} is {_short(value)}, not {problem}", where=where)
    for name, child in _children(stage):
        _check(child, f"{path}.{name}", where)


def _children(stage: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _CHILDREN & stage.keys():
        for index, child in enumerate(stage[key]):
            yield f"{key}[{index}]", child


def _problem(key: str, value: Any) -> str:
    """What the value should be, or an empty text if it is that."""
    if key in _LIST:
        return "" if isinstance(value, list) else "a list"
    if value is None and (key == "strip_accents" or key not in _FLAG | _NEVER_NULL):
        return ""
    if key in _TEXT | _OPTIONAL_TEXT:
        return "" if isinstance(value, str) else "text"
    if key in _FLAG:
        return "" if isinstance(value, bool) else "true or false"
    if key in _COUNT:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
        return "" if good else "a count"
    if key == "special_tokens":
        return "" if isinstance(value, dict) else "an object"
    if key == "pattern":
        parts = list(value.items()) if isinstance(value, dict) else []
        good = len(parts) == 1 and parts[0][0] in ("String", "Regex") and isinstance(parts[0][1], str)
        return "" if good else "a String or a Regex"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
