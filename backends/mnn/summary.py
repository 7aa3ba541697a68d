"""What a compilation for MNN tells people: the tokenizer files, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from backends.backend import Figures
from backends.mnn.sampling.translate import Sampler, lost_on, spelled
from frontends.checkpoint.generation import effective
from ir.base.diag import Diagnostic

if TYPE_CHECKING:
    from backends.mnn.target.releases import MnnTarget
    from backends.mnn.tokenizer.write_files import TokenizerFiles
    from backends.mnn.verify.logits import Measurement
    from backends.mnn.write.llm_folder import Emission

AGAINST = {
    "float": "float model",
    "decoded weights": "its weights",
    "runtime model": "prediction",
    "transformers": "transformers",
    "onnxruntime": "onnxruntime",
}
"""What a measurement compares with, in two words."""


def tokenizer_text(written: TokenizerFiles | None, target: MnnTarget, measured: tuple[int, int] | None = None) -> str:
    """The files, the releases that read each, and how exact it is.

    Args:
        written: what was written.
        target: the releases.
        measured: how many test strings got other ids on the release that ran, of how many; None where none did.
    """
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
        note = _exact(reasons, written.raw, measured) if exact else _approximate(reasons, written)
        lines.append(f"{name} for {span(releases)}: {note}")
    counts = f" ({_counts(measured)})" if measured is not None else ""
    return "\n".join([*lines, *(f"{reason}{counts}" for reason in written.raw)])


def _exact(reasons: Sequence[str], raw: Sequence[str], measured: tuple[int, int] | None) -> str:
    if raw:
        return "exact but for raw text"
    if measured is not None and measured[0]:
        return f"other ids for {_counts(measured)}"
    return "exact but for rare characters" if reasons else "exact"


def _approximate(reasons: Sequence[str], written: TokenizerFiles) -> str:
    if written.compared and (reasons or written.differing):
        return f"other ids for {_counts((written.differing, written.compared))}"
    return "approximate" if reasons else "exact"


def _counts(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]} test strings"


def other_ids(version: str, written: TokenizerFiles, encoded: Sequence[Sequence[int] | None]) -> list[Diagnostic]:
    """A warning with the shortest test string that a release encodes otherwise than the original.

    Args:
        version: the release that ran.
        written: the tokenizer, with the test strings and their ids.
        encoded: what the release made of them; None for a string that it cannot be handed.
    """
    rows = [
        (text, list(ids), got) for (text, ids), got in zip(written.samples, encoded, strict=False) if got is not None
    ]
    wrong = [(text, ids, list(got)) for text, ids, got in rows if ids != list(got)]
    if not wrong:
        return []
    text, wanted, found = min(wrong, key=lambda row: len(row[0]))
    at = next((at for at, (one, two) in enumerate(zip(wanted, found, strict=False)) if one != two), 0)
    ids = " and not ".join(", ".join(map(str, row[at : at + 4])) or "nothing" for row in (found, wanted))
    where = f" from id {at} on" if at else ""
    message = (
        f"MNN {version} gives other ids for {len(wrong)} of {len(rows)} test strings, such as {text!r}{where}: {ids}"
    )
    return [Diagnostic("B790", message, hint="; ".join(written.exact_reasons[:3]), severity="warning")]


def sampler_text(emission: Emission) -> str:
    """How tokens are chosen, told for each group of releases where they differ."""
    found: dict[str, list[str]] = {}
    for releases, sampler in emission.samplers.values():
        found.setdefault(_choice(sampler), []).extend(release.version for release in releases)
    if len(found) == 1:
        return next(iter(found))
    return "\n".join(f"{span(versions)}: {text}" for text, versions in sorted(found.items(), key=itemgetter(1)))


def _choice(sampler: Sampler) -> str:
    settings = effective(sampler.kept)
    parts = ["the most likely token"]
    if sampler.mode == "sample":
        parts = [f"temperature {settings['temperature']:g}"]
        parts.append(f"top_k {settings['top_k']}" if settings["top_k"] else "no top_k")
        parts += [f"{name} {settings[name]:g}" for name in ("top_p", "typical_p") if settings[name] < 1]
    if settings["repetition_penalty"] > 1:
        parts.append(f"repetition_penalty {settings['repetition_penalty']:g}")
    for key, what in (("banned_tokens", "forbidden"), ("logit_bias", "biased")):
        if count := len(sampler.config.get(key, ())):
            parts.append(f"{count} tokens {what}" if count > 1 else f"1 token {what}")
    if "max_new_tokens" in sampler.config:
        parts.append(f"at most {sampler.config['max_new_tokens']:,} new tokens")
    text = ", ".join(parts)
    if sampler.unused:
        return f"{text} ({', '.join(sampler.unused)} without effect, as do_sample is not true)"
    return text


def ends_text(written: TokenizerFiles, most: int = 4) -> str:
    """The tokens that end generation."""
    if not written.ends:
        return "nothing; an answer ends at its limit only"
    shown = [f"{end.text} ({end.id})" if end.text is not None else str(end.id) for end in written.ends[:most]]
    more = len(written.ends) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def sampling_warnings(emission: Emission) -> list[Diagnostic]:
    """What people should know of the tokenizer's tokens, and of settings that releases have no equal of."""
    found = [] if emission.tokenizer is None else list(emission.tokenizer.warnings)
    for item in lost_on(list(emission.samplers.values())):
        lost = item.lost
        hint = "it does not count there" if lost.instead is None else f"{spelled(lost.instead)} counts there"
        message = f"MNN {span(item.releases)} has no equal of {lost.setting} {spelled(lost.value)}: {lost.reason}"
        found.append(Diagnostic("B761", message, hint=hint, severity="warning"))
    return found


def span(releases: Sequence[str]) -> str:
    """The first and the last of some releases."""
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def close_text(measurements: Sequence[Measurement]) -> str:
    """Decoded tokens that were not counted; empty where all were."""
    found = [item for item in measurements if item.decode_close]
    if not found:
        return ""
    first = found[0]
    total = first.decode_tokens + first.decode_close
    return f"{first.decode_close} of {total} decoded tokens: rounding decides between the two best of {AGAINST[first.reference]}"


def others_text(measurements: Sequence[Measurement]) -> str:
    """How far the releases besides the installed one are from the original; empty where none ran."""
    originals = ("onnxruntime", "transformers")
    found = [item for item in measurements if item.release != measurements[0].release and item.reference in originals]
    if not found:
        return ""
    worst = max(item.distance.max_abs for item in found)
    return f"{', '.join(item.release for item in found)}: off from {AGAINST[found[0].reference]} by {worst:.1e} at most"


def figures(measurements: Sequence[Measurement]) -> Figures:
    """The measurements on the installed release as a table; runs that give the same figures are told once, and no two rows
    are called alike."""
    measurements = [item for item in measurements if item.release == measurements[0].release]
    columns = ("memory", "against", "rows", "max error", "KL", "top-1", "greedy", "perplexity")
    rows: list[tuple[str, ...]] = []
    shown: list[Measurement] = []
    for item in measurements:
        distance = item.distance
        row = (
            _memory(item),
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
            shown.append(item)
    names = [row[:2] for row in rows]
    rows = [
        (f"{row[0]}, {item.settings['precision']}", *row[1:]) if names.count(row[:2]) > 1 else row
        for row, item in zip(rows, shown, strict=True)
    ]
    title = f"run on MNN {measurements[0].release}"
    if any(item.settings.get("dynamic_option") for item in shown):
        title += ' ("low 2" is memory low with dynamic_option 2)'
    return Figures(title, columns, rows, ("memory", "against"))


def _memory(item: Measurement) -> str:
    """The memory setting, and the way that activations are rounded where it is not the usual one."""
    option = item.settings.get("dynamic_option", 0)
    return f"{item.settings['memory']} {option}" if option else item.settings["memory"]


def _greedy(item: Measurement) -> str:
    """Decoded tokens that the reference would have chosen too; left out where quantization made texts part ways."""
    if item.reference != "decoded weights" and item.decode_equal < item.decode_tokens:
        return ""
    return f"{item.decode_equal}/{item.decode_tokens}"


__all__ = [
    "close_text",
    "ends_text",
    "figures",
    "other_ids",
    "others_text",
    "sampler_text",
    "sampling_warnings",
    "span",
    "tokenizer_text",
]
