"""The quantization file: rules that choose how weights are stored, first match wins.

TOML or JSON, one list of rules::

    [[rule]]
    match = "model.layers.*.mlp.down_proj.weight"   # shell pattern, or "re:..." for a regular expression
    bits = 6                                        # 2 to 8, 16 or 32
    min_bits = 4                                    # least width, and likewise max_bits, where bits is left open
    block = 32                                      # input features that share a scale, or "row"
    symmetric = false
    zero = "int"                                    # or "float"
    scale = "f32"                                   # or "f16"
    method = "rtn"

    [[rule]]
    role = "logits"                                 # layer, router, logits or embedding
    bits = 8

Keys that a rule leaves out come from the pass's options, or are chosen by measurement when the pass has a limit to
keep. A rule that decides nothing is an error. `write_plan` writes a plan as such a file, one rule a weight.
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

from ir.base.diag import LadingError, suggest
from ir.base.whole_files import write_whole
from ir.facts.precision import PrecisionPlan
from ir.facts.sensitivity import Sensitivity
from ir.quant.methods.base import METHODS
from ir.quant.storage import Storage

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ROLES = ("layer", "router", "logits", "embedding")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": WIDTHS,
    "symmetric": (True, False),
    "zero": ("int", "float"),
    "scale": ("f32", "f16"),
}
_BOUNDS = ("min_bits", "max_bits")
LONGEST_PATTERN = 2000
"""Characters of a pattern; the time to compile one can grow with their square."""
_KEYS = ("match", "role", "block", "method", *_CHOICES, *_BOUNDS)


@dataclass(frozen=True)
class Rule:
    """One rule: which weights, and what it says of their storage (only the keys it names).

    `min_bits` and `max_bits` bound a width that the rule leaves open; a bound of 0 is none.
    """

    match: str
    role: str
    storage: Mapping[str, Any]
    where: str
    min_bits: int = 0
    max_bits: int = 0

    def applies(self, name: str, role: str) -> bool:
        """True when the rule speaks of a weight of this name and role."""
        if self.role and self.role != role:
            return False
        if self.match.startswith("re:"):
            return re.search(self.match[3:], name) is not None
        return not self.match or fnmatchcase(name, self.match)

    def bounded(self, bits: int) -> int:
        """A width raised or lowered to the bounds."""
        raised = max(bits, self.min_bits)
        return min(raised, self.max_bits) if self.max_bits else raised

    def allows(self, bits: int) -> bool:
        """True when a width lies within the bounds."""
        return self.bounded(bits) == bits


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
    bounds = {key: _width(key, item[key], where) for key in _BOUNDS if key in item}
    if bounds and "bits" in item:
        raise LadingError("Q411", f"a rule with bits has no use for {next(iter(bounds))}", where=where)
    if bounds.get("max_bits", 32) < bounds.get("min_bits", 0):
        raise LadingError("Q411", "max_bits is less than min_bits", where=where)
    if item.get("role", ROLES[0]) not in ROLES:
        raise LadingError("Q411", f"role = {item['role']!r} is not one of {list(ROLES)}", where=where)
    for key in ("match", "method"):
        if key in item and not isinstance(item[key], str):
            raise LadingError("Q411", f"{key} must be text, not {item[key]!r}", where=where)
    if not item.get("match") and "role" not in item:
        raise LadingError("Q411", "a rule needs 'match' or 'role'", where=where)
    check_pattern(item.get("match", ""), where)
    storage = {key: item[key] for key in (*_CHOICES, "method") if key in item}
    if "block" in item:
        storage["block"] = _block(item["block"], where)
    return Rule(item.get("match", ""), item.get("role", ""), storage, where, **bounds)


def _width(key: str, value: Any, where: str) -> int:
    if isinstance(value, bool) or value not in WIDTHS:
        raise LadingError("Q411", f"{key} = {value!r} is not one of {list(WIDTHS)}", where=where)
    return value


def _block(value: Any, where: str) -> int:
    if value == "row":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LadingError("Q411", f'block = {value!r} is neither a positive number nor "row"', where=where)
    return value


def check_pattern(pattern: str, where: str) -> None:
    """Refuse a pattern that cannot be matched with.

    Raises:
        LadingError: Q411 too long, or not a regular expression.
    """
    if len(pattern) > LONGEST_PATTERN:
        message = f"a pattern of {len(pattern):,} characters is too long; at most {LONGEST_PATTERN:,} are read"
        raise LadingError("Q411", message, where=where)
    if not pattern.startswith("re:"):
        return
    try:
        re.compile(pattern[3:])
    except (re.error, OverflowError, RecursionError) as error:
        raise LadingError("Q411", f"not a regular expression: {pattern[3:]!r}: {error}", where=where) from error


# ---- writing ----


def exact_pattern(name: str) -> str:
    """The pattern that matches one name and no other."""
    escaped = re.sub(r"([*?\[])", r"[\1]", name)
    return f"[{escaped[0]}]{escaped[1:]}" if escaped.startswith("re:") else escaped


def plan_text(plan: PrecisionPlan, sensitivity: Sensitivity | None = None) -> str:
    """A plan as a quantization file: one rule a weight, in the order of the plan, with what is known as comments."""
    lines = [
        "# Precision plan of " + f"{len(plan.storage)} weights. Take it up again with assign-precision" + "{plan=...}."
    ]
    if plan.outcome is not None:
        made = plan.outcome
        lines += [
            f"# {made.limit}: {made.bytes:,} bytes, {made.bits_per_weight:.3f} bits per weight",
            "# KL from the float model: "
            + (f"{made.measured:.6f} on {made.positions:,} held-out positions, " if made.measured is not None else "")
            + f"{made.predicted:.6f} predicted"
            + (f"; most likely token kept at {made.top1:.2%}" if made.top1 is not None else ""),
        ]
    if plan.tied:
        lines.append("# The embedding rows are read from the stored logits matrix.")
    notes = _notes(sensitivity) if sensitivity is not None else {}
    for name, storage in plan.storage.items():
        lines += [
            "",
            *notes.get(name, ()),
            "[[rule]]",
            f"match = {json.dumps(exact_pattern(name), ensure_ascii=False)}",
        ]
        lines += _storage_lines(storage)
    return "\n".join(lines) + "\n"


def write_plan(plan: PrecisionPlan, path: Path, sensitivity: Sensitivity | None = None) -> None:
    """Write a plan as a quantization file that `load_rules` reads back to the same storages.

    Raises:
        LadingError: Q457 the file cannot be written.
    """
    try:
        with write_whole(path) as part:
            part.write_text(plan_text(plan, sensitivity), encoding="utf-8")
    except OSError as error:
        raise LadingError("Q457", f"cannot write the plan: {error.strerror}", where=str(path)) from error


def _storage_lines(storage: Storage) -> list[str]:
    if storage.bits > 8:
        return [f"bits = {storage.bits}"]
    return [
        f"bits = {storage.bits}",
        f"block = {storage.block}" if storage.block else 'block = "row"',
        f"symmetric = {'true' if storage.symmetric else 'false'}",
        f'zero = "{storage.zero}"',
        f'scale = "{storage.scale}"',
        f"method = {json.dumps(METHODS[storage.method].chosen_as or storage.method)}",
    ]


def _notes(sensitivity: Sensitivity) -> dict[str, list[str]]:
    """A comment for each weight whose stored form is a point of its curve."""
    notes = {}
    for item in sensitivity.weights:
        if item.chosen is not None:
            point = item.curve[item.chosen]
            loss = point.loss * item.factor
            notes[item.name] = [f"# {point.bytes:,} bytes; predicted share of the KL {loss:.2e}"]
    return notes
