"""The report of a ladder as one HTML page that needs nothing else: made from the report's JSON data alone.

Equal data give equal bytes. What a machine measures differs from run to run, and nothing else does: no date is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tools.ladder.charts import bars, bits_map, curve, esc, legend, sensitivity_map, stored_as
from tools.ladder.report import deviation, measured_on, speed
from tools.ladder.rungs import change, divergence, measured, small
from tools.ladder.style import SCRIPT, STYLE
from tools.shared.cli import megabytes

Rung = Mapping[str, Any]

WORST = 12
"""Weights that the table of the worst ones shows."""

HEADS = (
    ("Size", "size", lambda rung: megabytes(rung["bytes"])),
    ("Bits per weight", "bits_per_weight", lambda rung: f"{rung['bits_per_weight']:.2f}"),
    ("KL", "kl", lambda rung: divergence(rung["kl"])),
    ("± error", "kl_error", deviation),
    ("Top-1", "top1", lambda rung: f"{rung['top1']:.1%}"),
    ("Perplexity", "perplexity", lambda rung: f"{rung['perplexity']:.3f}"),
    ("Change", "perplexity_rise", lambda rung: change(rung["perplexity_rise"])),
    ("Load", "load_s", lambda rung: f"{rung['load_s']:.2f} s"),
    ("Prefill", "prefill_tokens_per_s", lambda rung: speed(rung["prefill_tokens_per_s"])),
    ("Decode", "decode_tokens_per_s", lambda rung: speed(rung["decode_tokens_per_s"])),
    ("Memory", "peak_rss", lambda rung: _memory(rung)),
)
"""Columns of the table of numbers: head, field, and text of a cell."""


def html_page(data: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        data: what `tools.ladder.report.ladder_data` gives, or the JSON that was written from it.
    """
    ready = measured(data["rungs"])
    name = data["model"]["name"]
    body = [
        _header(data),
        _take(data, ready),
        _curve(data, ready),
        _numbers(data),
        _bars(data, ready),
        _sensitivity(ready),
        _stores(data, ready),
        _samples(data, ready),
        _how(data, ready),
        '<div id="tip" role="tooltip" hidden></div>',
        f"<script>{SCRIPT}</script>",
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>Precision ladder of {esc(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"


def _memory(rung: Rung) -> str:
    return megabytes(rung["peak_rss"]) if rung["peak_rss"] else "?"


def _prose(text: str) -> str:
    """Text for HTML in which no number is parted from its unit."""
    return re.sub(r"(\d) (?=%|[kMG]B\b|bytes\b)", "\\1\u00a0", esc(text))


def _header(data: Mapping[str, Any]) -> str:
    model = data["model"]
    facts = [model["family"]] if model.get("family") else []
    if model.get("layers") is not None:
        facts.append(f"{model['layers']} layer{'s' if model['layers'] != 1 else ''}")
    if model.get("parameters"):
        facts.append(f"{model['parameters']:,} weights")
    releases = data["releases"]
    span = f" (MNN {releases[0]}{f' to {releases[-1]}' if len(releases) > 1 else ''})" if releases else ""
    told = ", ".join([*facts, f"target {data['target']}{span}", f"Lading {data['compiler']}"])
    lines = [
        f"<h1>Precision ladder of {esc(model['name'])}</h1>",
        f'<p class="soft">{esc(told)}.<br>Compiled from {esc(model["source"])}.</p>',
    ]
    return f"<header>{''.join(lines)}</header><main>"


def _take(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    found = data["recommendation"]
    rung = next((item for item in ready if item["name"] == found["rung"]), None)
    if rung is None:
        return f'<section class="take none"><h2>No rung is recommended</h2><p>{esc(found["why"])}</p></section>'
    largest = max(ready, key=lambda item: item["bytes"])
    times = largest["bytes"] / rung["bytes"]
    against = f"{times:.1f} times smaller than {largest['name']}" if largest is not rung else "the largest rung"
    error = deviation(rung)
    figures = [
        ("Size", megabytes(rung["bytes"]), against),
        ("KL from the float model", divergence(rung["kl"]), f"{f'± {error} ' if error else ''}nats a token"),
        ("Perplexity", change(rung["perplexity_rise"]), f"{rung['perplexity']:.3f} on the text"),
        ("Decode", speed(rung["decode_tokens_per_s"]), "tokens a second, this machine"),
        ("Memory", _memory(rung), "of the process, at its highest"),
    ]
    rows = "".join(f"<div><dt>{esc(a)}</dt><dd>{esc(b)}<small>{esc(c)}</small></dd></div>" for a, b, c in figures)
    return (
        f'<section class="take"><h2>Take {esc(rung["name"])}</h2><dl class="figures">{rows}</dl>'
        f"<p>{_prose(found['why'])}</p></section>"
    )


def _curve(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    if not ready:
        return ""
    return (
        "<section><h2>Size against quality</h2>"
        '<p class="soft">Lower left is better. Both axes are logarithmic. Point at a rung, or step through them with the '
        "tab key, for its numbers.</p><div>"
        '<input class="hidden" type="radio" name="across" id="by-size" checked>'
        '<input class="hidden" type="radio" name="across" id="by-bits">'
        '<div class="switch"><label for="by-size">Size</label><label for="by-bits">Bits per weight</label></div>'
        f"{curve(ready, data, by='size')}{curve(ready, data, by='bits')}</div>{legend(ready)}</section>"
    )


def _numbers(data: Mapping[str, Any]) -> str:
    chosen = data["recommendation"]["rung"]
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name, _, _ in HEADS)
    rows = []
    for rung in data["rungs"]:
        name = esc(rung["name"])
        if rung["status"] != "ok":
            error = rung["error"]
            rows.append(
                f'<tr class="failed" data-rung="{name}"><th scope="row">{name}</th>'
                f'<td colspan="{len(HEADS)}">failed: {esc(error["code"])}</td></tr>'
            )
            continue
        marks = "recommended" if rung["name"] == chosen else "best for its size" if rung["on_front"] else ""
        badge = f'<span class="badge">{marks}</span>' if marks else ""
        cells = "".join(
            f'<td data-name="{esc(head_)}" data-field="{key}">{esc(text(rung))}</td>' for head_, key, text in HEADS
        )
        taken = ' class="taken"' if rung["name"] == chosen else ""
        rows.append(f'<tr{taken} data-rung="{name}"><th scope="row">{name}{badge}</th>{cells}</tr>')
    return (
        f'<section><h2>All numbers</h2><p class="soft">{esc(measured_on(data))}</p><table class="numbers">'
        f'<thead><tr><th scope="col">Rung</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"{_failures(data)}</section>"
    )


def _failures(data: Mapping[str, Any]) -> str:
    items = []
    for rung in data["rungs"]:
        if rung["status"] == "ok":
            continue
        error = rung["error"]
        hint = f" <span class=soft>{esc(error['hint'])}</span>" if error["hint"] else ""
        items.append(f"<li><b>{esc(rung['name'])} [{esc(error['code'])}]</b> {esc(error['message'])}.{hint}</li>")
    return f'<ul class="failures">{"".join(items)}</ul>' if items else ""


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
    return f'<section><h2>Speed and memory</h2><div class="bars">{"".join(parts)}</div></section>'


def _sensitivity(ready: Sequence[Rung]) -> str:
    rung = next((item for item in ready if item["sensitivity"]), None)
    if rung is None:
        return ""
    found = rung["sensitivity"]
    probes = sorted({item["probe"] for item in found["weights"] if item["probe"]})
    how = f"as {probes[0]}" if len(probes) == 1 else "coarsely"
    return (
        "<section><h2>Which weights matter</h2>"
        f'<p class="soft">How far the float model moves when one weight alone is stored {how}, in thousandths of a nat of KL '
        f"divergence a token, measured on {found['tokens'][0]:,} tokens before any rung was assigned. Arrow keys walk "
        f"through the cells.</p>{sensitivity_map(found['weights'])}</section>"
    )


# ---- what the rungs store ----


def shown_stores(ready: Sequence[Rung], chosen: str | None) -> list[Rung]:
    """Rungs whose widths are worth a map: those that are not one width everywhere, else the recommended or last one."""
    several = [
        rung for rung in ready if len({item["bits"] for item in rung["weights"] if item["layer"] is not None}) > 1
    ]
    mixed = [rung for rung in ready if rung in several or rung["kind"] in ("mixed", "pipeline")]
    taken = [rung for rung in ready if rung["name"] == chosen and rung not in mixed]
    return mixed + taken or list(ready[-1:])


def _stores(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    chosen = data["recommendation"]["rung"]
    shown = shown_stores(ready, chosen)
    if not shown:
        return ""
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{number}"{" data-first=yes" if rung["name"] == chosen else ""}>'
        f"{esc(rung['name'])}</button>"
        for number, rung in enumerate(shown)
    )
    panes = "".join(
        f'<div class="pane"><h3>{esc(rung["name"])}</h3><div>{bits_map(rung)}{_predicted(rung)}</div>'
        f"<div>{_worst(rung)}</div></div>"
        for rung in shown
    )
    return (
        '<section class="stores"><h2>What is stored how</h2><p class="soft">Bits of each weight, and the weights that lose '
        "most. More bits are shaded more strongly.</p>"
        f'<div class="tabs" role="tablist" aria-label="Rungs" hidden>{tabs}</div>{panes}</section>'
    )


def _predicted(rung: Rung) -> str:
    """What was foretold of the plan that was taken, where precision was assigned by measurement."""
    plans = rung["sensitivity"]["plans"] if rung["sensitivity"] else []
    plan = next((item for item in plans if item["taken"]), None)
    if plan is None:
        return ""
    text = (
        f"Of {len(plans)} plans that were tried this one was taken: KL {divergence(plan['predicted'])} was predicted, "
        f"{divergence(plan['measured'])} ± {small(plan['measured_error'])} measured in float arithmetic, "
        f"{divergence(rung['kl'])} on the runtime and the text of this report."
    )
    return f'<p class="note soft">{esc(text)}</p>'


def _worst(rung: Rung) -> str:
    items = [item for item in rung["weights"] if item["shared_with"] is None]
    if all(item["error"] is None and item.get("loss") is None for item in items):
        return '<p class="soft">The errors of the weights were not measured (--verify none).</p>'
    key = "loss" if any(item.get("loss") is not None for item in items) else "error"
    ordered = sorted(items, key=lambda item: (-(item.get(key) or 0.0), item["name"]))[:WORST]
    columns = [
        column
        for column in WORST_COLUMNS
        if column[3] is None or any(item.get(column[3]) is not None for item in items)
    ]
    head = "".join(f'<th scope="col"{_extra(extra)}>{name}</th>' for name, extra, _, _ in columns)
    rows = "".join(
        f'<tr><th scope="row" tabindex="0" data-tip="{esc(item["name"])}&#10;{esc(stored_as(item))}">{esc(_place(item))}</th>'
        + "".join(f"<td{_extra(extra)}>{esc(text(item))}</td>" for _, extra, text, _ in columns)
        + "</tr>"
        for item in ordered
    )
    return f'<table class="worst"><thead><tr><th scope="col">Worst weights</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _extra(extra: bool) -> str:
    return ' class="extra"' if extra else ""


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


def _samples(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    if not ready:
        return ""
    best = min(ready, key=lambda rung: rung["kl"])
    cards = "".join(_sample(rung, best, rung["name"] == data["recommendation"]["rung"]) for rung in ready)
    return (
        "<section><h2>The same prompt, continued by every rung</h2>"
        '<p class="soft">Greedy decoding on the runtime. What is as in '
        f"{esc(best['name'])}, the rung nearest to the float model, is faint.</p>"
        f'<pre class="prompt" aria-label="Prompt">{esc(data["prompt"])}</pre><div class="samples">{cards}</div></section>'
    )


def _sample(rung: Rung, best: Rung, taken: bool) -> str:
    text, other = rung["sample"], best["sample"]
    same = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    if rung is best:
        body, note = esc(text), ""
    else:
        body = f'<span class="same">{esc(text[:same])}</span>{esc(text[same:])}'
        whole = same == len(text) == len(other)
        note = f"<p>{'the same text' if whole else f'differs after {same} characters'}</p>"
    mark = ' class="taken"' if taken else ""
    return f"<article{mark}><h3>{esc(rung['name'])}</h3><pre>{body}</pre>{note}</article>"


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


def _how(data: Mapping[str, Any], ready: Sequence[Rung]) -> str:
    text, reference = data["text"], data["reference"]
    known = f"; perplexity {reference['perplexity']:.3f}" if reference["perplexity"] else ""
    release = f"MNN {data['release']}" if data["release"] else "no release"
    rows = [
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
            "medians of three runs in a process of its own; memory is that process at its highest before scoring",
        ),
        ("Calibration", data["calibration"] or "the packaged sample, for rungs that assign precision by measurement"),
        ("Checked", CHECKS[data["verify"]]),
        ("Rule", _rule(data["rule"])),
    ]
    body = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in rows)
    return f'<section><h2>How it was measured</h2><dl class="how">{body}</dl></section></main>'


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
