"""A graph as a picture: SVG by itself, or an HTML page to move about in, to search, and to ask for details.

Both are self-contained and follow the reader's light or dark setting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from html import escape
from pathlib import Path

from backends.templates import render
from ir.base.diag import LadingError
from ir.base.whole_files import write_whole
from tools.inspect.layered import Box, Point
from tools.inspect.scene import Scene

MARGIN = 24.0
_UNFIT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BEND = 0.45
"""How far a curve goes straight on before it bends, as a part of its height."""


def svg(scene: Scene) -> str:
    """The picture as one SVG file."""
    width, height = scene.width + 2 * MARGIN, scene.height + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-label="{_text(scene.title or "graph")}">'
    )
    paper = f'<rect class="paper" width="{_n(width)}" height="{_n(height)}"/>'
    colours = render(__file__, "picture.css.jinja")
    return f"{head}\n<style>{colours}</style>\n{paper}\n{_drawing(scene)}\n</svg>\n"


def html(scene: Scene, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The picture as a page.

    Args:
        scene: what to draw.
        facts: lines of the overview, name and text.
    """
    from markupsafe import Markup

    number = {key: index for index, key in enumerate(scene.items)}
    data = {
        "title": scene.title or "graph",
        "width": scene.width + 2 * MARGIN,
        "height": scene.height + 2 * MARGIN,
        "facts": [list(pair) for pair in facts],
        "items": [
            {"label": item.label, "note": item.note, "kind": item.kind, "details": item.details,
             "box": [round(v, 1) for v in _shifted(scene.boxes[key])]}
            for key, item in scene.items.items()
        ],
        "groups": [{"title": group.title, "count": group.count, "details": group.details} for group in scene.groups],
        "edges": [[number[a], number[b]] for a, b in scene.edges],
    }  # fmt: skip
    # No name may end the script element or open another.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        __file__,
        "page.html.jinja",
        title=Markup(_text(scene.title or "graph")),
        drawing=Markup(_drawing(scene)),
        data=Markup(text),
    )


def write(text: str, path: Path) -> None:
    """Write a picture; LadingError U931 when that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LadingError("U931", f"cannot write the picture: {error.strerror}", str(path)) from None


# ---- parts ----


def _drawing(scene: Scene) -> str:
    number = {key: index for index, key in enumerate(scene.items)}
    parts = [f'<g class="drawing" transform="translate({_n(MARGIN)} {_n(MARGIN)})">']
    parts += [_frame(box) for box in scene.frames]
    parts.append('<g class="edges">')
    for (a, b), points in scene.routes.items():
        ends = f'data-from="{number[a]}" data-to="{number[b]}"'
        title = f"<title>{_text(scene.edges[a, b])}</title>"
        parts.append(f'<path class="edge" {ends} d="{_curve(points)}">{title}</path>')
    parts.append("</g>")
    parts += [_badge(index, box, scene) for index, box in enumerate(scene.frames)]
    parts += [_item(scene, key, index) for key, index in number.items()]
    parts.append("</g>")
    return "\n".join(parts)


def _frame(box: Box) -> str:
    return (
        f'<rect class="under" x="{_n(box.x + 7)}" y="{_n(box.y + 7)}" width="{_n(box.width)}" height="{_n(box.height)}" rx="14"/>'
        f'<rect class="frame" x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}" rx="14"/>'
    )


def _badge(index: int, box: Box, scene: Scene) -> str:
    group = scene.groups[index]
    text = f"×{group.count}"
    width = 16 + 11 * len(text)
    x, y = box.x + 12, box.y - 14
    return (
        f'<g class="badge" data-group="{index}" tabindex="0" role="button" aria-label="block repeated {group.count} times">'
        f"<title>this block of {_text(group.title)} occurs {group.count} times in a row</title>"
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="28" rx="14"/>'
        f'<text x="{_n(x + width / 2)}" y="{_n(y + 19)}">{text}</text></g>'
    )


def _item(scene: Scene, key: Hashable, index: int) -> str:
    item, box = scene.items[key], scene.boxes[key]
    round_ = box.height / 2 if item.kind in ("input", "output") else 8
    title = _text(item.details.get("name") or item.label)
    parts = [
        f'<g class="node {item.kind}" data-item="{index}" tabindex="0" role="button" aria-label="{_text(item.label)}">',
        f"<title>{title}</title>",
        f'<rect x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}" rx="{_n(round_)}"/>',
    ]
    first = box.y + (20 if item.note else box.height / 2 + 4.5)
    parts.append(f'<text class="label" x="{_n(box.middle)}" y="{_n(first)}">{_text(item.label)}</text>')
    if item.note:
        parts.append(f'<text class="note" x="{_n(box.middle)}" y="{_n(box.y + 36)}">{_text(item.note)}</text>')
    return "".join(parts) + "</g>"


def _curve(points: Sequence[Point]) -> str:
    """A smooth line that leaves and reaches every point vertically."""
    (x, y), *rest = points
    parts = [f"M{_n(x)} {_n(y)}"]
    for u, v in rest:
        if abs(u - x) < 0.05:
            parts.append(f"V{_n(v)}")
        else:
            bend = (v - y) * BEND
            parts.append(f"C{_n(x)} {_n(y + bend)} {_n(u)} {_n(v - bend)} {_n(u)} {_n(v)}")
        x, y = u, v
    return "".join(parts)


def _shifted(box: Box) -> tuple[float, float, float, float]:
    return box.x + MARGIN, box.y + MARGIN, box.width, box.height


def _text(text: str) -> str:
    """A text for markup; what XML cannot hold, such as control characters, becomes a replacement character."""
    return escape(_UNFIT.sub("\ufffd", text))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


__all__ = ["html", "svg", "write"]
