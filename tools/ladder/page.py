"""The report of a ladder as one HTML page that needs nothing else: made from the report's JSON data alone.

Equal data give equal bytes. What a machine measures differs from run to run, and nothing else does: no date is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.templates import render
from tools.ladder.charts import bars, bits_map, curve, esc, legend, plane, sensitivity_map, stored_as
from tools.ladder.report import (
    deviation,
    measured_on,
    setting_cells,
    settings_line,
    speed,
    speed_with_spread,
    use_line,
    verdict,
)
from tools.ladder.rungs import change, divergence, measured, small
from tools.shared.cli import megabytes

Rung = Mapping[str, Any]

WORST = 12
"""Weights that the table of the worst ones shows."""

HEADS = (
    ("Folder", "size", lambda rung: megabytes(rung["bytes"])),
    ("Bits per weight", "bits_per_weight", lambda rung: f"{rung['bits_per_weight']:.2f}"),
    ("KL", "kl", lambda rung: divergence(rung["kl"])),
    ("± error", "kl_error", deviation),
    ("Top-1", "top1", lambda rung: f"{rung['top1']:.1%}"),
    ("Perplexity", "perplexity", lambda rung: f"{rung['perplexity']:.3f}"),
    ("Change", "perplexity_rise", lambda rung: change(rung["perplexity_rise"])),
    ("Load", "load_s", lambda rung: f"{rung['load_s']:.2f} s"),
    ("Prefill, tokens/s", "prefill_tokens_per_s", lambda rung: _rates(rung, "prefill")),
    ("Decode, tokens/s", "decode_tokens_per_s", lambda rung: _rates(rung, "decode")),
    ("Memory", "peak_rss", lambda rung: _memory(rung)),
)
"""Columns of the table of numbers: head, field, and text of a cell."""


def html_page(data: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        data: what `tools.ladder.report.ladder_data` gives, or the JSON that was written from it.
    """
    from markupsafe import Markup

    ready = measured(data["rungs"])
    chosen = data["recommendation"]["rung"]
    best = min(ready, key=lambda rung: rung["kl"], default=None)
    return render(
        __file__,
        "page.html.jinja",
        data=data,
        ready=ready,
        chosen=chosen,
        taken=lambda rung: Markup(' class="taken"') if rung["name"] == chosen else "",
        facts=_facts(data),
        take=_take(data, ready),
        why=Markup(_prose(data["recommendation"]["why"])),
        curves=Markup("".join(curve(ready, data, by=by) for by in ("size", "bits")) if ready else ""),
        legend=Markup(legend(ready)),
        plane=Markup(plane(ready, data)),
        measured_on=measured_on(data),
        heads=HEADS,
        bars=Markup(_bars(data, ready)),
        settings=[_tried(found) for found in data["settings"]],
        sensitivity=_sensitivity(ready),
        stores=[_pane(rung) for rung in shown_stores(ready, chosen)],
        narrow=lambda extra: Markup(' class="extra"') if extra else "",
        place=_place,
        stored_as=stored_as,
        nearest=best["name"] if best is not None else "",
        samples=[_sample(rung, best) for rung in ready],
        how=_how(data, ready),
    )


def _rates(rung: Rung, what: str) -> str:
    """Speed and spread of a rung, with hyphens at which no line ends."""
    return speed_with_spread(rung, what).replace("-", "\u2011")


def _memory(rung: Rung) -> str:
    return megabytes(rung["peak_rss"]) if rung["peak_rss"] else "?"


def _prose(text: str) -> str:
    """Text for HTML in which no number is parted from its unit."""
    return re.sub(r"(\d) (?=%|[kMG]B\b|bytes\b)", "\\1\u00a0", esc(text))


def _facts(data: Mapping[str, Any]) -> str:
    model = data["model"]
    facts = [model["family"]] if model.get("family") else []
    if model.get("layers") is not None:
        facts.append(f"{model['layers']} layer{'s' if model['layers'] != 1 else ''}")
    if model.get("parameters"):
        facts.append(f"{model['parameters']:,} weights")
    releases = data["releases"]
    span = f" (MNN {releases[0]}{f' to {releases[-1]}' if len(releases) > 1 else ''})" if releases else ""
    return ", ".join([*facts, f"target {data['target']}{span}", f"Lading {data['compiler']}"])


def _take(data: Mapping[str, Any], ready: Sequence[Rung]) -> list[tuple[str, str, str]]:
    """Figures of the recommended rung, name, value and note; none where no rung is recommended."""
    rung = next((item for item in ready if item["name"] == data["recommendation"]["rung"]), None)
    if rung is None:
        return []
    largest = max(ready, key=lambda item: item["bytes"])
    times = largest["bytes"] / rung["bytes"]
    against = f"{times:.1f} times smaller than {largest['name']}" if largest is not rung else "the largest rung"
    error = deviation(rung)
    return [
        ("Size", megabytes(rung["bytes"]), against),
        ("KL from the float model", divergence(rung["kl"]), f"{f'± {error} ' if error else ''}nats a token"),
        ("Perplexity", change(rung["perplexity_rise"]), f"{rung['perplexity']:.3f} on the text"),
        ("Decode", speed(rung["decode_tokens_per_s"]), _spread_note(rung)),
        ("Memory", _memory(rung), "of the process, at its highest"),
    ]


def _spread_note(rung: Rung) -> str:
    low, high = rung["decode_spread"] or (0.0, 0.0)
    between = f", {speed(low)} to {speed(high)} in three runs" if high else ""
    return f"tokens a second, this machine{between}"


def _bars(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    if not ready:
        return ""
    chosen = data["recommendation"]["rung"]
    parts = [
        bars("Size", "less is better", ready, lambda r: r["bytes"], lambda r: megabytes(r["bytes"]), chosen),
        bars("Memory", "less is better", ready, lambda r: r["peak_rss"], _memory, chosen),
        bars("Decode", "more is better", ready, lambda r: r["decode_tokens_per_s"],
             lambda r: speed(r["decode_tokens_per_s"]), chosen),
        bars("Prefill", "more is better", ready, lambda r: r["prefill_tokens_per_s"],
             lambda r: speed(r["prefill_tokens_per_s"]), chosen),
        bars("Load time", "less is better", ready, lambda r: r["load_s"], lambda r: f"{r['load_s']:.2f} s", chosen),
    ]  # fmt: skip
    return "".join(parts)


def _tried(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of runtime settings that were tried on a rung."""
    heads = ("KL, reading", "KL, decoding", "Decode", "Prefill", "Load", "Memory")
    rows = []
    for trial in found["trials"]:
        cells = [*setting_cells(trial), verdict(trial)]
        rows.append((trial["name"], trial["meaning"], list(zip((*heads, "Verdict"), cells, strict=True))))
    return {
        "rung": found["rung"],
        "error": found["error"],
        "heads": heads,
        "rows": rows,
        "uses": [use_line(use) for use in found["uses"]],
        "line": settings_line(found),
    }


def _sensitivity(ready: Sequence[Rung]) -> dict[str, Any] | None:
    from markupsafe import Markup

    rung = next((item for item in ready if item["sensitivity"]), None)
    if rung is None:
        return None
    found = rung["sensitivity"]
    probes = sorted({item["probe"] for item in found["weights"] if item["probe"]})
    how = f"as {probes[0]}" if len(probes) == 1 else "coarsely"
    return {"how": how, "tokens": f"{found['tokens'][0]:,}", "map": Markup(sensitivity_map(found["weights"]))}


# ---- what the rungs store ----


def shown_stores(ready: Sequence[Rung], chosen: str | None) -> list[Rung]:
    """Rungs whose widths are worth a map: those that are not one width everywhere, else the recommended or last one."""
    several = [
        rung for rung in ready if len({item["bits"] for item in rung["weights"] if item["layer"] is not None}) > 1
    ]
    mixed = [rung for rung in ready if rung in several or rung["kind"] in ("mixed", "pipeline")]
    taken = [rung for rung in ready if rung["name"] == chosen and rung not in mixed]
    return mixed + taken or list(ready[-1:])


def _pane(rung: Rung) -> dict[str, Any]:
    """What the page shows of the weights of one rung."""
    from markupsafe import Markup

    worst = _worst(rung)
    columns = [
        column
        for column in WORST_COLUMNS
        if column[3] is None or any(item.get(column[3]) is not None for item in worst)
    ]
    known = {"name": rung["name"], "map": Markup(bits_map(rung)), "predicted": _predicted(rung)}
    return {**known, "worst": worst, "columns": columns}


def _predicted(rung: Rung) -> str:
    """What was foretold of the plan that was taken, where precision was assigned by measurement."""
    plans = rung["sensitivity"]["plans"] if rung["sensitivity"] else []
    plan = next((item for item in plans if item["taken"]), None)
    if plan is None:
        return ""
    return (
        f"Of {len(plans)} plans that were tried this one was taken: KL {divergence(plan['predicted'])} was predicted, "
        f"{divergence(plan['measured'])} ± {small(plan['measured_error'])} measured in float arithmetic, "
        f"{divergence(rung['kl'])} on the runtime and the text of this report."
    )


def _worst(rung: Rung) -> list[Mapping[str, Any]]:
    """The weights that lose most, worst first; none where errors were not measured."""
    items = [item for item in rung["weights"] if item["shared_with"] is None]
    if all(item["error"] is None and item.get("loss") is None for item in items):
        return []
    key = "loss" if any(item.get("loss") is not None for item in items) else "error"
    return sorted(items, key=lambda item: (-(item.get(key) or 0.0), item["name"]))[:WORST]


def _block(item: Mapping[str, Any]) -> str:
    if item["bits"] > 8:
        return ""
    return str(item["block"]) if item["block"] else "row"


def _place(item: Mapping[str, Any]) -> str:
    return item["kind"] if item["layer"] is None else f"layer {item['layer']} {item['kind']}"


def _percent(error: float | None) -> str:
    return "?" if error is None else f"{error:.2%}" if error >= 1e-4 else "0 %" if error == 0 else "<0.01%"


def _loss(item: Mapping[str, Any]) -> str:
    return "?" if item.get("loss") is None else divergence(item["loss"])


WORST_COLUMNS = (
    ("Bits", False, lambda item: str(item["bits"]), None),
    ("Block", True, _block, None),
    ("Method", True, lambda item: item["method"], None),
    ("Error", False, lambda item: _percent(item["error"]), "error"),
    ("Predicted loss", False, _loss, "loss"),
)
"""Columns of the table of the worst weights: head, whether narrow screens go without, text of a cell, and the field
without which a column is left out."""


# ---- samples and method ----


def _sample(rung: Rung, best: Rung) -> tuple[Rung, int, str]:
    """A rung, how many characters of its text are as in `best`, and a note on that; 0 and no note for `best` itself."""
    text, other = rung["sample"], best["sample"]
    if rung is best:
        return rung, 0, ""
    same = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    whole = same == len(text) == len(other)
    return rung, same, "the same text" if whole else f"differs after {same} characters"


ORIGINS = {
    "file": "the file that was named",
    "example": "text that the example was not trained on",
    "sample": "plans of mixed rungs are chosen on it too, unless a calibration text was named",
}
"""What to know of each kind of text."""

CHECKS = {
    "none": "rungs were measured without a check of what was written",
    "quick": "each rung was read back in part and run against its own decoded weights",
    "full": "each rung was read back whole and run against its own decoded weights",
}
"""What each level of ``--verify`` did."""


def _how(data: Mapping[str, Any], ready: Sequence[Rung]) -> list[tuple[str, str]]:
    text, reference = data["text"], data["reference"]
    known = f"; perplexity {reference['perplexity']:.3f}" if reference["perplexity"] else ""
    release = f"MNN {data['release']}" if data["release"] else "no release"
    return [
        (
            "Text",
            f"{text['name']} ({ORIGINS[text['origin']]}): {text['tokens']:,} tokens in {text['windows']} windows of at most "
            f"{text['longest_window']}, each read from an empty cache; SHA-256 {text['sha256'][:16]}…",
        ),
        ("Reference", f"the checkpoint's own weights in float arithmetic, evaluated in onnxruntime{known}"),
        ("Runtime", f"{release} on {data['platform']} with the settings that each rung ships: {_settings(ready)}"),
        (
            "KL",
            "mean KL(float || rung) of the next-token distributions in nats; ± is the standard error of that mean over "
            f"{reference['positions'] or 0:,} positions, and differences smaller than it mean nothing",
        ),
        ("Top-1", "share of positions at which both put the same token first"),
        (
            "Size",
            "all files of the model directory; bits per weight counts matrices with scales and zero points, tied ones once",
        ),
        (
            "Speed",
            "medians of three runs in a process of its own, the slowest and fastest in brackets; memory is that process "
            "at its highest before scoring",
        ),
        ("Calibration", data["calibration"] or "the packaged sample, for rungs that assign precision by measurement"),
        ("Checked", CHECKS[data["verify"]]),
        ("Rule", _rule(data["rule"])),
    ]


def _settings(ready: Sequence[Rung]) -> str:
    found: dict[str, list[str]] = {}
    for rung in ready:
        settings = rung["settings"]
        text = f"memory {settings['memory']}, precision {settings['precision']}, {settings['threads']} threads"
        found.setdefault(text, []).append(rung["name"])
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items()) or "none"


def _rule(rule: Mapping[str, Any]) -> str:
    size = f"at most {megabytes(rule['max_bytes'])}" if rule["max_bytes"] else ""
    kl = f"KL at most {rule['max_kl']:g}" if rule["max_kl"] is not None else ""
    if not rule["given"]:
        return (
            f"the smallest rung with {kl} and perplexity at most {100 * rule['max_perplexity_rise']:g} % up; where none is, the "
            "knee of the curve of the rungs that no other one beats"
        )
    if not kl:
        return f"the rung of least KL of {size}"
    return f"the smallest rung with {kl}{f' and {size}' if size else ''}"
