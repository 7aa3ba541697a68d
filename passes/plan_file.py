"""The quantization file: rules that choose how weights are stored, first match wins.

TOML or JSON, one list of rules::

    [[rule]]
    match = "model.layers.*.mlp.down_proj.weight"   # shell pattern, or "re:..." for a regular expression
    bits = 6                                        # 2 to 8, 16 or 32
    block = 32                                      # input features that share a scale, or "row"
    symmetric = false
    zero = "int"                                    # or "float"
    scale = "f32"                                   # or "f16"
    method = "rtn"

    [[rule]]
    role = "logits"                                 # layer, logits or embedding
    bits = 8

Keys that a rule leaves out come from the pass's options. A rule that decides nothing is an error.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ir.diag import LadingError, suggest

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ROLES = ("layer", "logits", "embedding")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": WIDTHS,
    "symmetric": (True, False),
    "zero": ("int", "float"),
    "scale": ("f32", "f16"),
}
_KEYS = ("match", "role", "block", "method", *_CHOICES)


@dataclass(frozen=True)
class Rule:
    """One rule: which weights, and what it says of their storage (only the keys it names)."""

    match: str
    role: str
    storage: Mapping[str, Any]
    where: str

    def applies(self, name: str, role: str) -> bool:
        """True when the rule speaks of a weight of this name and role."""
        if self.role and self.role != role:
            return False
        if self.match.startswith("re:"):
            return re.search(self.match[3:], name) is not None
        return not self.match or fnmatchcase(name, self.match)


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read a quantization file.

    Raises:
        LadingError: Q410 unreadable or not TOML/JSON, Q411 an unknown key or a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise LadingError("Q410", f"cannot read the quantization file: {error}", where=str(path)) from error
    if not isinstance(data, dict) or set(data) - {"rule"} or not isinstance(data.get("rule"), list):
        raise LadingError(
            "Q411",
            "a quantization file holds one list of rules called 'rule'",
            where=str(path),
            hint='[[rule]] with match = "..." and bits = 4, for example',
        )
    return tuple(_rule(item, f"{path}, rule {number}") for number, item in enumerate(data["rule"], start=1))


def _rule(item: Any, where: str) -> Rule:
    if not isinstance(item, dict):
        raise LadingError("Q411", "a rule is a table of keys and values", where=where)
    for key in item:
        if key not in _KEYS:
            raise LadingError("Q411", f"unknown key {key!r}", where=where, hint=suggest(key, _KEYS))
    for key, choices in _CHOICES.items():
        if key in item and (item[key] not in choices or isinstance(item[key], bool) != isinstance(choices[0], bool)):
            raise LadingError("Q411", f"{key} = {item[key]!r} is not one of {list(choices)}", where=where)
    if item.get("role", ROLES[0]) not in ROLES:
        raise LadingError("Q411", f"role = {item['role']!r} is not one of {list(ROLES)}", where=where)
    for key in ("match", "method"):
        if key in item and not isinstance(item[key], str):
            raise LadingError("Q411", f"{key} must be text, not {item[key]!r}", where=where)
    if not item.get("match") and "role" not in item:
        raise LadingError("Q411", "a rule needs 'match' or 'role'", where=where)
    _check_pattern(item.get("match", ""), where)
    storage = {key: item[key] for key in (*_CHOICES, "method") if key in item}
    if "block" in item:
        storage["block"] = _block(item["block"], where)
    return Rule(item.get("match", ""), item.get("role", ""), storage, where)


def _block(value: Any, where: str) -> int:
    if value == "row":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LadingError("Q411", f'block = {value!r} is neither a positive number nor "row"', where=where)
    return value


def _check_pattern(pattern: str, where: str) -> None:
    if not pattern.startswith("re:"):
        return
    try:
        re.compile(pattern[3:])
    except re.error as error:
        raise LadingError("Q411", f"not a regular expression: {pattern[3:]!r}: {error}", where=where) from error
