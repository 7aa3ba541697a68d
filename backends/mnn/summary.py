"""What a compilation for MNN tells people: the tokenizer files, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.backend import Figures

if TYPE_CHECKING:
    from backends.mnn.target.releases import MnnTarget
    from backends.mnn.tokenizer.write_files import TokenizerFiles
    from backends.mnn.verify.logits import Measurement

AGAINST = {"float": "float model", "decoded weights": "its weights", "runtime model": "prediction"}
"""What a measurement compares with, in two words."""


def tokenizer_text(written: TokenizerFiles | None, target: MnnTarget) -> str:
    """The files, the releases that read each, and how exact it is."""
    if written is None or not written.kind:
        return "none; the model runs on token ids"
    lines = []
    for name, reasons, exact in (
        (written.exact, written.exact_reasons, True),
        (written.text, written.text_reasons, False),
    ):
        if not name:
            continue
        releases = [item.version for item in target.releases if not written.exact or item.mtok is exact]
        differing = not exact and written.compared > 0 and written.differing > 0
        note = "exact" if not reasons and not differing else "exact but for rare characters"
        if not exact and (reasons or differing):
            note = "approximate"
            if written.compared:
                note = f"other ids for {written.differing} of {written.compared} test strings"
        lines.append(f"{name} for {span(releases)}: {note}")
    return "\n".join(lines)


def span(releases: Sequence[str]) -> str:
    """The first and the last of some releases."""
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def figures(measurements: Sequence[Measurement]) -> Figures:
    """The measurements as a table; runs that give the same figures are told once."""
    columns = ("memory", "against", "rows", "max error", "KL", "top-1", "greedy", "perplexity")
    rows: list[tuple[str, ...]] = []
    for item in measurements:
        distance = item.distance
        row = (
            item.settings["memory"],
            AGAINST[item.reference],
            str(distance.positions),
            f"{distance.max_abs:.1e}",
            f"{distance.kl:.1e}",
            f"{distance.top1:.1%}",
            _greedy(item),
            "" if item.perplexity is None else f"{item.perplexity:.2f} ({item.perplexity_reference:.2f})",
        )
        # Without stored integers the shipped settings are those of exact arithmetic.
        if row not in rows:
            rows.append(row)
    return Figures(f"run on MNN {measurements[0].release}", columns, rows, ("memory", "against"))


def _greedy(item: Measurement) -> str:
    """Decoded tokens that the reference would have chosen too; left out where quantization made texts part ways."""
    if item.reference != "decoded weights" and item.decode_equal < item.decode_tokens:
        return ""
    return f"{item.decode_equal}/{item.decode_tokens}"


__all__ = ["figures", "span", "tokenizer_text"]
