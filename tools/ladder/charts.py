"""The drawings of the ladder's report: the size/quality curve, maps of layers by kinds of weights, and bars.

Everything is placed in shares of the width it gets, so that one drawing fits every screen: lines are SVG that
stretches, points are buttons and texts are text, which do not.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.ladder.report import deviation, speed_with_spread
from tools.ladder.rungs import FLOOR, change, divergence
from tools.shared.cli import megabytes

Rung = Mapping[str, Any]

LOWEST = 1e-5
"""KL divergences below this are drawn on one line at the bottom."""

KIND_NAMES = {
    "mixed": "mixed precision",
    "fixed": "named policies",
    "uniform": "one width everywhere",
    "pipeline": "other pipelines",
}

KIND_ORDER = ("q", "k", "v", "qkv", "o", "gate", "up", "down")
"""Kinds of weights in the order of a decoder layer; others follow by name."""

SHADES = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6, 16: 7, 32: 8}
"""Shade of each width."""


def esc(text: Any) -> str:
    """Text for HTML."""
    return html.escape(str(text))


# ---- the curve ----


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis: `low` and `high` are its ends, `ticks` values and their texts."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        span = math.log(self.high / self.low)
        return (math.log(max(value, self.low)) - math.log(self.low)) / span if span else 0.5


def size_axis(values: Sequence[float], unit: float, name: str) -> Axis:
    """An axis around positive values, with ticks at 1, 2, 3, 5, 7 times powers of ten of a unit."""
    low, high = min(values) / 1.12, max(values) * 1.12
    found = [
        (digit * 10.0**power, f"{digit * 10.0**power:g}{name}")
        for power in range(math.floor(math.log10(low / unit)), math.ceil(math.log10(high / unit)) + 1)
        for digit in (1, 1.5, 2, 3, 4, 5, 7)
        if low <= digit * 10.0**power * unit <= high
    ]
    span = math.log(high / low)
    ticks: list[tuple[float, str]] = []
    for value, text in found:
        if not ticks or math.log(value * unit / ticks[-1][0]) / span > 0.07:
            ticks.append((value * unit, text))
    return Axis(low, high, tuple(ticks))


def bits_axis(values: Sequence[float]) -> Axis:
    """An axis of bits per weight."""
    low, high = min(values) / 1.12, max(values) * 1.12
    ticks = [(float(bits), str(bits)) for bits in (2, 3, 4, 5, 6, 8, 12, 16, 24, 32) if low <= bits <= high]
    return Axis(low, high, tuple(ticks))


def loss_axis(values: Iterable[float]) -> Axis:
    """An axis of divergences: whole decades, and one more at the bottom for those below `LOWEST`."""
    known = [value for value in values if value >= LOWEST]
    least, most = min(known, default=1e-3), max(known, default=1e-1)
    bottom, top = math.floor(math.log10(least)), math.ceil(math.log10(most * 1.1))
    texts = [(10.0**power, _decade(power)) for power in range(bottom, top + 1)]
    return Axis(10.0 ** (bottom - 0.8), 10.0**top, tuple(texts))


def _decade(power: int) -> str:
    return f"{10.0**power:g}" if power >= -4 else f"1e{power}"


def curve(rungs: Sequence[Rung], data: Mapping[str, Any], *, by: str) -> str:
    """The curve of all measured rungs; `by` is ``size`` or ``bits``."""
    key = "bytes" if by == "size" else "bits_per_weight"
    values = [float(rung[key]) for rung in rungs]
    unit, name = _unit(max(values))
    across = size_axis(values, unit, "") if by == "size" else bits_axis(values)
    up = loss_axis(rung["kl"] for rung in rungs)
    places = {rung["name"]: (across.share(rung[key]), 1 - up.share(rung["kl"])) for rung in rungs}
    chosen = data["recommendation"]["rung"]
    ordered = sorted(rungs, key=lambda rung: rung[key])
    parts = [
        f'<div class="frame">{_lines(ordered, places, across, up, data)}',
        *(_tick("y", 1 - up.share(value), text) for value, text in up.ticks),
        _tick("y", 1.0, "<1e-5") if any(rung["kl"] < LOWEST for rung in rungs) else "",
        *(_tick("x", across.share(value), text, number) for number, (value, text) in enumerate(across.ticks)),
        _limit_text(data, up),
        *(_labels(ordered, places, chosen)),
        *(_point(rung, places[rung["name"]], rung["name"] == chosen) for rung in ordered),
        "</div>",
    ]
    what = f"size of the model directory, {name}" if by == "size" else "bits per weight, scales included"
    axis = '<p class="axis y">KL divergence from the float model, nats a token</p>'
    label = f"KL divergence against {what}; the table below has the same numbers"
    return (
        f'<div class="curve {by}" role="group" aria-label="{esc(label)}">{axis}{"".join(parts)}'
        f'<p class="axis x">{esc(what)}</p></div>'
    )


def plane(rungs: Sequence[Rung], data: Mapping[str, Any]) -> str:
    """Size, speed of decoding and divergence of all rungs that were timed: places in a plane, divergences beside them."""
    timed = [rung for rung in rungs if rung["decode_tokens_per_s"]]
    if len(timed) < 2:
        return ""
    unit, name = _unit(max(float(rung["bytes"]) for rung in timed))
    across = size_axis([float(rung["bytes"]) for rung in timed], unit, "")
    up = size_axis([float(rung["decode_tokens_per_s"]) for rung in timed], 1.0, "")
    places = {rung["name"]: (across.share(rung["bytes"]), 1 - up.share(rung["decode_tokens_per_s"])) for rung in timed}
    chosen = data["recommendation"]["rung"]
    ordered = sorted(timed, key=lambda rung: rung["bytes"])
    grid = [f'<path class="grid" d="M0 {1000 * (1 - up.share(v)):.1f}H1000"/>' for v, _ in up.ticks]
    grid += [f'<path class="grid" d="M{1000 * across.share(v):.1f} 0V1000"/>' for v, _ in across.ticks]
    parts = [
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{"".join(grid)}</svg>',
        *(_tick("y", 1 - up.share(value), text) for value, text in up.ticks),
        *(_tick("x", across.share(value), text, number) for number, (value, text) in enumerate(across.ticks)),
        *_labels(ordered, places, chosen, lambda rung: f"{short_name(rung)}, KL {divergence(rung['kl'])}"),
        *(_point(rung, places[rung["name"]], rung["name"] == chosen) for rung in ordered),
    ]
    label = esc("decoding speed against size; the table below has the same numbers")
    return (
        f'<div class="curve" role="group" aria-label="{label}"><p class="axis y">decode, tokens a second</p>'
        f'<div class="frame">{"".join(parts)}</div><p class="axis x">size of the model directory, {name}</p></div>'
    )


def _unit(most: float) -> tuple[float, str]:
    return (1e9, "GB") if most >= 3e9 else (1e6, "MB") if most >= 3e6 else (1e3, "kB")


def _lines(
    rungs: Sequence[Rung], places: Mapping[str, tuple[float, float]], across: Axis, up: Axis, data: Mapping[str, Any]
) -> str:
    grid = [f'<path class="grid" d="M0 {1000 * (1 - up.share(v)):.1f}H1000"/>' for v, _ in up.ticks]
    grid += [f'<path class="grid" d="M{1000 * across.share(v):.1f} 0V1000"/>' for v, _ in across.ticks]
    grid.append('<path class="grid" d="M0 1000H1000"/>')
    limit = data["rule"]["max_kl"]
    if limit is not None and up.low < limit < up.high:
        grid.append(f'<path class="limit" d="M0 {1000 * (1 - up.share(limit)):.1f}H1000"/>')
    series = [("front", [rung for rung in rungs if rung["on_front"]])]
    series += [(kind, [rung for rung in rungs if rung["kind"] == kind]) for kind in ("uniform", "mixed")]
    for kind, members in series:
        if len(members) > 1:
            spots = (places[rung["name"]] for rung in members)
            points = " ".join(f"{1000 * x:.1f},{1000 * y:.1f}" for x, y in spots)
            grid.append(f'<polyline class="line {kind}" points="{points}"/>')
    return f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{"".join(grid)}</svg>'


def _tick(axis: str, share: float, text: str, number: int = 0) -> str:
    side = "left" if axis == "x" else "top"
    odd = " odd" if number % 2 else ""
    return f'<span class="tick {axis}{odd}" style="{side}:{100 * share:.2f}%" aria-hidden="true">{esc(text)}</span>'


def _limit_text(data: Mapping[str, Any], up: Axis) -> str:
    limit = data["rule"]["max_kl"]
    if limit is None or not up.low < limit < up.high:
        return ""
    top = 100 * (1 - up.share(limit))
    return f'<span class="tick limited" style="top:{top:.2f}%" aria-hidden="true">limit {limit:g}</span>'


def _point(rung: Rung, place: tuple[float, float], taken: bool) -> str:
    x, y = place
    tip = details(rung, taken)
    label = esc(tip.replace("\n", ", "))
    return (
        f'<button type="button" class="point {rung["kind"]}{" taken" if taken else ""}" style="left:{100 * x:.2f}%;'
        f'top:{100 * y:.2f}%" aria-label="{label}" data-tip="{esc(tip)}" data-rung="{esc(rung["name"])}"><i></i></button>'
    )


def details(rung: Rung, taken: bool) -> str:
    """All that matters of a rung, a line each."""
    lines = [
        rung["name"] + (" (recommended)" if taken else ""),
        f"{megabytes(rung['bytes'])}, {rung['bits_per_weight']:.2f} bits per weight",
        f"KL {divergence(rung['kl'])}{_error(rung)}, top-1 {rung['top1']:.1%}",
        f"perplexity {rung['perplexity']:.3f} ({change(rung['perplexity_rise'])})",
        f"tokens a second: decode {speed_with_spread(rung, 'decode')}, prefill {speed_with_spread(rung, 'prefill')}",
    ]
    if rung["streamed"]:
        lines.append("reads for a token: " + ", ".join(f"{n} {megabytes(b)}" for n, b in rung["streamed"].items()))
    if rung["on_front"]:
        lines.append("best for its size")
    return "\n".join(lines)


def _error(rung: Rung) -> str:
    return f" ± {deviation(rung)}" if deviation(rung) else ""


# ---- labels of points, where they find room ----

_SIZES = (("wide", 720.0, 440.0), ("narrow", 270.0, 340.0))
"""Smallest plots, in pixels, that each set of labels is placed for; a larger plot has only more room."""


def short_name(rung: Rung) -> str:
    """The name that stands beside a point, whose shape tells the kind."""
    name = rung["name"]
    if rung["kind"] == "mixed":
        return name.partition(":")[2]
    if rung["kind"] == "uniform":
        return f"{name.partition(':')[2]} bits"
    return name if len(name) <= 18 else f"{name[:17]}…"


def _labels(
    rungs: Sequence[Rung],
    places: Mapping[str, tuple[float, float]],
    chosen: str | None,
    text: Callable[[Rung], str] = short_name,
) -> list[str]:
    found = []
    for screen, width, height in _SIZES:
        spots = [(width * x, height * y) for x, y in places.values()]
        taken = [(x - 11, y - 11, x + 11, y + 11) for x, y in spots]
        first = sorted(rungs, key=lambda rung: (rung["name"] != chosen, not rung["on_front"], rung["bytes"]))
        for rung in first:
            x, y = places[rung["name"]]
            side = free_side(text(rung), (width * x, height * y), (width, height), taken, bold=rung["name"] == chosen)
            if side is not None:
                mark = " taken" if rung["name"] == chosen else ""
                found.append(
                    f'<span class="label {screen} {side}{mark}" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%" '
                    f'aria-hidden="true">{esc(text(rung))}</span>'
                )
    return found


def free_side(
    text: str, at: tuple[float, float], plot: tuple[float, float], taken: list[tuple[float, ...]], *, bold: bool
) -> str | None:
    """The side of a point on which a label covers nothing; its box is added to `taken`. None where there is no room."""
    (x, y), wide, half, gap = at, len(text) * (7.6 if bold else 7.0), 8.0, 17 if bold else 13
    boxes = {
        "r": (x + gap, y - half, x + gap + 1 + wide, y + half),
        "l": (x - gap - 1 - wide, y - half, x - gap, y + half),
        "t": (x - wide / 2, y - gap - 16, x + wide / 2, y - gap + 1),
        "b": (x - wide / 2, y + gap - 1, x + wide / 2, y + gap + 16),
    }
    for side, box in boxes.items():
        inside = box[0] >= 0 and box[2] <= plot[0] + 8 and box[1] >= -4 and box[3] <= plot[1] - 2
        own = (x - 11, y - 11, x + 11, y + 11)
        if inside and not any(_overlap(box, other) for other in taken if other != own):
            taken.append(box)
            return side
    return None


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def legend(rungs: Sequence[Rung]) -> str:
    """What shapes and lines mean, for those that are there."""
    items = [
        f'<li><span class="point {kind}"><i></i></span>{name}</li>'
        for kind, name in KIND_NAMES.items()
        if any(rung["kind"] == kind for rung in rungs)
    ]
    line = '<svg viewBox="0 0 30 10" aria-hidden="true"><path class="line front" d="M5 5H25"/></svg>'
    items.append(f"<li>{line}best for their size</li>")
    items.append('<li><span class="point fixed taken"><i></i></span>recommended (ringed)</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


# ---- maps of layers by kinds ----


@dataclass(frozen=True)
class Cell:
    """One weight in a map: its place, text, shade from 0 to 8, and the text shown for it under the pointer."""

    layer: int | None
    kind: str
    text: str
    shade: int
    tip: str


def grid_map(cells: Sequence[Cell], caption: str) -> str:
    """A table of layers by kinds; what lies outside the layers has rows of its own above and below."""
    inside = [cell for cell in cells if cell.layer is not None]
    kinds = sorted({cell.kind for cell in inside}, key=_kind_key)
    by_place = {(cell.layer, cell.kind): cell for cell in inside}
    outside = [cell for cell in cells if cell.layer is None]
    span = max(len(kinds), 1)
    rows = [_outer_row(cell, span) for cell in outside if cell.kind == "embedding"]
    for layer in sorted({cell.layer for cell in inside if cell.layer is not None}):
        texts = "".join(_cell(by_place.get((layer, kind))) for kind in kinds)
        rows.append(f'<tr><th scope="row">{layer}</th>{texts}</tr>')
    rows += [_outer_row(cell, span) for cell in outside if cell.kind != "embedding"]
    head = "".join(f'<th scope="col">{esc(kind)}</th>' for kind in kinds)
    return (
        f'<table class="map" aria-label="{esc(caption)}"><colgroup><col class="names">{"<col>" * len(kinds)}</colgroup>'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _kind_key(kind: str) -> tuple[int, str]:
    return (KIND_ORDER.index(kind) if kind in KIND_ORDER else len(KIND_ORDER), kind)


def _cell(cell: Cell | None, span: int = 1) -> str:
    if cell is None:
        return "<td></td>"
    wide = f' colspan="{span}"' if span > 1 else ""
    return f'<td{wide} class="s{cell.shade}" data-tip="{esc(cell.tip)}">{esc(cell.text)}</td>'


def _outer_row(cell: Cell, span: int) -> str:
    name = {"embedding": "emb."}.get(cell.kind, cell.kind)
    return f'<tr><th scope="row" title="{esc(cell.kind)}">{esc(name)}</th>{_cell(cell, span)}</tr>'


def bits_map(rung: Rung) -> str:
    """How many bits each weight of a rung has."""
    cells = []
    for item in rung["weights"]:
        lines = [item["name"], stored_as(item)]
        if item["shared_with"]:
            lines.append(f"the bytes of {item['shared_with']}")
        if item["error"] is not None:
            lines.append(f"error {item['error']:.2%} of the weight's own size (root mean square)")
        if item.get("loss") is not None:
            lines.append(f"predicted loss {divergence(item['loss'])} nats a token")
        shade = SHADES.get(item["bits"], 8)
        cells.append(Cell(item["layer"], item["kind"], str(item["bits"]), shade, "\n".join(lines)))
    return grid_map(cells, f"Bits of each weight in {rung['name']}")


def stored_as(item: Mapping[str, Any]) -> str:
    """Width, block and method of a weight."""
    if item["bits"] > 8:
        return f"{item['bits']}-bit floats, {megabytes(item['bytes'])}"
    block = f"blocks of {item['block']}" if item["block"] else "one scale a row"
    zero = "symmetric" if item["symmetric"] else "with zero points"
    return f"{item['bits']} bits, {block}, {zero}, {item['method']}, {megabytes(item['bytes'])}"


def sensitivity_map(weights: Sequence[Mapping[str, Any]]) -> str:
    """How much each weight's probe moves the model; shades are logarithmic between the extremes."""
    known = [max(float(item["kl"]), FLOOR) for item in weights if item["kl"] is not None]
    low, high = min(known, default=1e-3), max(known, default=1e-3)
    cells = []
    for item in weights:
        if item["kl"] is None:
            tip = f"{item['name']}\nnot measured"
            cells.append(Cell(item["layer"], item["kind"], "–", 0, tip))
            continue
        share = math.log(max(float(item["kl"]), FLOOR) / low) / math.log(high / low) if high > low else 0.5
        tip = f"{item['name']}\nKL {divergence(item['kl'])} nats a token at {item['probe']}"
        cells.append(Cell(item["layer"], item["kind"], milli(item["kl"]), min(8, int(9 * share)), tip))
    return grid_map(cells, "Sensitivity of each weight in thousandths of a nat a token") + _scale(low, high)


def milli(kl: float) -> str:
    """Thousandths in at most four characters."""
    value = 1000 * kl
    if value < 0.01:
        return "<.01"
    if value < 1:
        return f"{value:.2f}".lstrip("0") if round(value, 2) < 1 else "1.0"
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:.0f}" if value < 9999.5 else f"{value / 1000:.0f}k"


def _scale(low: float, high: float) -> str:
    steps = "".join(f'<i class="s{shade}"></i>' for shade in range(9))
    return f'<p class="scale" aria-hidden="true">{milli(low)}<span>{steps}</span>{milli(high)} thousandths of a nat</p>'


# ---- bars ----


def bars(title: str, note: str, rungs: Sequence[Rung], value: Callable[[Rung], float | None],
         text: Callable[[Rung], str], chosen: str | None) -> str:  # fmt: skip
    """One quantity of all rungs as horizontal bars from zero."""
    most = max((value(rung) or 0 for rung in rungs), default=0) or 1
    items = []
    for rung in rungs:
        share = 100 * (value(rung) or 0) / most
        taken = ' class="taken"' if rung["name"] == chosen else ""
        items.append(
            f'<li{taken}><span title="{esc(rung["name"])}">{esc(rung["name"])}</span>'
            f'<span class="track {rung["kind"]}"><i style="width:{share:.1f}%"></i></span><span>{esc(text(rung))}</span></li>'
        )
    return f'<section><h3>{esc(title)} <span class="badge">{esc(note)}</span></h3><ul>{"".join(items)}</ul></section>'
