"""What convolutions and pools have in common: kernel, strides, dilations and what is put around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.mnn.modules.build import Build
from backends.mnn.modules.rewrites.vision.sizes import Size, computed, size, vector
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """The attributes of a node with a sliding window, one number for each axis that it slides along.

    Attributes:
        pads: widths before each axis, then behind each; zeros where `auto` decides.
        auto: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto: str

    @property
    def axes(self) -> int:
        """Number of axes that it slides along."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last that a window covers."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def around(self) -> list[tuple[int, int]]:
        """Widths before and behind each axis."""
        return [(self.pads[axis], self.pads[axis + self.axes]) for axis in range(self.axes)]


def window(node: Node, kernel: Sequence[int]) -> Window:
    """The window of a node, with defaults where attributes are left out."""
    axes = len(kernel)

    def given(name: str, default: int, count: int) -> tuple[int, ...]:
        found = attribute(node, name)
        return tuple(int(each) for each in found) if found else (default,) * count

    auto = attribute(node, "auto_pad") or "NOTSET"
    auto = auto.decode() if isinstance(auto, bytes) else str(auto)
    pads = given("pads", 0, 2 * axes) if auto == "NOTSET" else (0,) * (2 * axes)
    return Window(tuple(kernel), given("strides", 1, axes), given("dilations", 1, axes), pads, auto)


def written(node: Node, *names: str) -> bool:
    """Whether attributes stand at a node, and what is put around is given in numbers."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    return all(name in node.attrs for name in names) and auto in ("NOTSET", b"NOTSET")


def same_widths(b: Build, x: Value, found: Window) -> list[tuple[Size, Size]]:
    """What is put before and behind each axis so that a window gives as many results as strides fit into the axis."""
    widths: list[tuple[Size, Size]] = []
    for index in range(found.axes):
        stride, reach = found.strides[index], found.reach[index]
        if found.auto == "VALID" or found.auto == "NOTSET":
            widths.append(found.around[index])
            continue
        if stride == 1:
            all_of: Size = reach - 1
        else:
            length = size(b, x, index + 2)
            count = computed(b, "Div", computed(b, "Add", length, stride - 1), stride)
            covered = computed(b, "Add", computed(b, "Mul", count, stride), reach - stride)
            all_of = computed(b, "Max", computed(b, "Sub", covered, length), 0)
        half = computed(b, "Div", all_of, 2)
        rest = computed(b, "Sub", all_of, half)
        widths.append((half, rest) if found.auto == "SAME_UPPER" else (rest, half))
    return widths


def with_pads(b: Build, x: Value, widths: Sequence[tuple[Size, Size]], number: float = 0.0) -> tuple[Value, list[int]]:
    """A value and the widths that a node reading it is to be given: none where they had to be computed, and are there."""
    flat = [pair[side] for side in (0, 1) for pair in widths]
    known = [each for each in flat if isinstance(each, int)]
    if len(known) == len(flat):
        return x, known
    half = len(widths)
    pads = vector(b, [0, 0, *flat[:half], 0, 0, *flat[half:]])
    return b.add("Pad", x, pads, b.like(number, x), mode="constant"), [0] * len(flat)


__all__ = ["SAME", "Window", "same_widths", "window", "with_pads", "written"]
