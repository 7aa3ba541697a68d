"""Layered drawing of directed graphs: where boxes and edges go, without any drawing.

The classic four steps (Sugiyama, Tagawa, Toda 1981): layers by longest path, crossings reduced by barycentres, x
coordinates by least squares under the order of each layer, and edges routed through places kept free for them. Edges
that leave one box share a place in each layer they pass.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import mul

Key = Hashable
Edge = tuple[Key, Key]
Point = tuple[float, float]

GAP_X, GAP_Y = 26.0, 38.0
LANE = 12.0
"""Width kept free for an edge that passes a layer."""
SWEEPS = 12
"""How often the layers are put in order."""
ROUGH, PULLS = 4, 160
"""How often their boxes are then drawn to those above and below."""
SPREAD = 0.7
"""Part of a box's width over which the edges that enter it are spread."""


@dataclass(frozen=True)
class Box:
    """A rectangle: top left corner and size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """x of the centre."""
        return self.x + self.width / 2

    def overlaps(self, other: Box) -> bool:
        """True when the rectangles share more than a border."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def moved(self, x: float, y: float) -> Box:
        """The rectangle elsewhere."""
        return Box(self.x + x, self.y + y, self.width, self.height)


@dataclass
class Placement:
    """A finished drawing: boxes by key, points of each edge from top to bottom, and the size of it all."""

    boxes: dict[Key, Box] = field(default_factory=dict)
    routes: dict[Edge, list[Point]] = field(default_factory=dict)
    width: float = 0.0
    height: float = 0.0


@dataclass(eq=False)
class _Spot:
    """A box or a lane in one layer; `ports` says how far from the middle the edge to a neighbour is attached."""

    key: Key
    width: float
    height: float
    is_lane: bool = False
    x: float = 0.0
    place: int = 0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)
    ports: dict[int, float] = field(default_factory=dict)

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    def port(self, other: _Spot) -> float:
        """How far from the middle the edge to a neighbour is attached."""
        return self.ports.get(id(other), 0.0)

    def rank(self, other: _Spot) -> float:
        """Place in the layer of the end of the edge to a neighbour, between the places of the spots beside."""
        return self.place + self.port(other) / (self.width + 1.0)


def layered(
    sizes: Mapping[Key, tuple[float, float]],
    edges: Sequence[Edge],
    *,
    top: Sequence[Key] = (),
    bottom: Sequence[Key] = (),
    enter: Mapping[Edge, float] | None = None,
    leave: Mapping[Edge, float] | None = None,
) -> Placement:
    """Place boxes in layers so that edges lead down.

    Args:
        sizes: width and height by key, in the order to prefer from left to right.
        edges: pairs of keys; repeats and loops are left out, edges that close a circle are drawn upwards.
        top, bottom: keys that belong in the first and in the last layer.
        enter, leave: x, from the left border of the box, where an edge ends or begins; otherwise chosen here.
    """
    wanted = list(dict.fromkeys((a, b) for a, b in edges if a != b))
    layer_of = _layers(list(sizes), wanted, set(top), set(bottom))
    down = {edge: edge if layer_of[edge[0]] < layer_of[edge[1]] else (edge[1], edge[0]) for edge in wanted}
    spots, lanes, layers = _spots(sizes, layer_of, list(dict.fromkeys(down.values())), enter or {}, leave or {})
    _order(layers)
    _coordinates(layers)
    return _placed(spots, lanes, layers, layer_of, down, enter or {}, leave or {})


# ---- layers ----


def _layers(keys: list[Key], edges: list[Edge], top: set[Key], bottom: set[Key]) -> dict[Key, int]:
    after: dict[Key, list[Key]] = {key: [] for key in keys}
    before: dict[Key, list[Key]] = {key: [] for key in keys}
    for a, b in edges:
        after[a].append(b)
        before[b].append(a)
    order = _topological(keys, after, before)
    place = {key: index for index, key in enumerate(order)}
    level: dict[Key, int] = {}
    first = 1 if top else 0
    for key in order:
        found = [level[other] for other in before[key] if place[other] < place[key]]
        level[key] = 0 if key in top else max([first - 1, *found]) + 1 if found or top else 0
    for key in reversed(order):
        below = [level[other] for other in after[key] if place[other] > place[key]]
        # What leads to more than it comes from is drawn near to where it leads.
        if below and key not in top and len(below) > len(before[key]):
            level[key] = max(level[key], min(below) - 1)
    if bottom:
        last = max((level[key] for key in keys if key not in bottom), default=0) + 1
        level.update(dict.fromkeys(bottom, last))
    return level


def _topological(keys: list[Key], after: Mapping[Key, list[Key]], before: Mapping[Key, list[Key]]) -> list[Key]:
    """Keys so that edges lead forwards, but for those that close circles."""
    missing = {key: len(before[key]) for key in keys}
    ready = [key for key in keys if not missing[key]][::-1]
    done: dict[Key, None] = {}
    rest = iter(keys)
    while len(done) < len(keys):
        if not ready:
            ready.append(next(key for key in rest if key not in done))
        key = ready.pop()
        if key in done:
            continue
        done[key] = None
        for other in after[key]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return list(done)


def _spots(
    sizes: Mapping[Key, tuple[float, float]],
    layer_of: Mapping[Key, int],
    edges: list[Edge],
    enter: Mapping[Edge, float],
    leave: Mapping[Edge, float],
):
    spots = {key: _Spot(key, *size) for key, size in sizes.items()}
    layers: list[list[_Spot]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for key, spot in spots.items():
        layers[layer_of[key]].append(spot)
    lanes: dict[tuple[Key, int], _Spot] = {}
    for a, b in edges:
        first = last = spots[a]
        for level in range(layer_of[a] + 1, layer_of[b]):
            lane = lanes.get((a, level))
            if lane is None:
                lane = lanes[a, level] = _Spot((a, level), LANE, 0.0, True)
                layers[level].append(lane)
                last.below.append(lane)
                lane.above.append(last)
            last = lane
        last.below.append(spots[b])
        spots[b].above.append(last)
        if (a, b) in enter:
            spots[b].ports[id(last)] = enter[a, b] - spots[b].width / 2
        if (a, b) in leave:
            following = lanes.get((a, layer_of[a] + 1), spots[b])
            first.ports[id(following)] = leave[a, b] - first.width / 2
    return spots, lanes, [layer for layer in layers if layer] if not all(layers) else layers


# ---- order within layers ----


def _order(layers: list[list[_Spot]]) -> None:
    _number(layers)
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for layer in layers[1:] if down else layers[-2::-1]:
            layer.sort(key=lambda spot: _barycentre(spot, down))
            for place, spot in enumerate(layer):
                spot.place = place
        found = _crossings(layers)
        if found < fewest:
            best, fewest = [list(layer) for layer in layers], found
    layers[:] = best
    _number(layers)


def _number(layers: list[list[_Spot]]) -> None:
    for layer in layers:
        for place, spot in enumerate(layer):
            spot.place = place


def _barycentre(spot: _Spot, down: bool) -> float:
    near = spot.above if down else spot.below
    return sum(other.rank(spot) for other in near) / len(near) if near else spot.place


def _crossings(layers: list[list[_Spot]]) -> int:
    total = 0
    for layer in layers:
        seen: list[float] = []
        for spot in layer:
            ends = sorted(other.rank(spot) for other in spot.below)
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


# ---- coordinates ----


def _coordinates(layers: list[list[_Spot]]) -> None:
    for layer in layers:
        x = 0.0
        for spot in layer:
            spot.x = x
            x += spot.width + GAP_X
    # Towards one side only is fast but does not settle; towards both sides every step brings all of it nearer.
    for sweep in range(ROUGH + PULLS):
        down = sweep % 2 == 0
        for layer in layers if down else layers[::-1]:
            _align(layer, down if sweep < ROUGH else None)
    _straighten(layers)
    left = min((spot.x for layer in layers for spot in layer), default=0.0)
    for layer in layers:
        for spot in layer:
            spot.x -= left


def _align(layer: list[_Spot], down: bool | None) -> None:
    """Move the spots of a layer below or above their neighbours: least squares under order and distance."""
    offset, wishes = 0.0, []
    for spot in layer:
        near = [*spot.above, *spot.below] if down is None else spot.above if down else spot.below
        pulls = [4.0 if spot.is_lane and other.is_lane else 1.0 for other in near]
        weight = sum(pulls)
        wanted = (other.middle + other.port(spot) - spot.port(other) for other in near)
        middle = sum(map(mul, pulls, wanted)) / weight if near else spot.middle
        wishes.append((middle - spot.width / 2 - offset, weight or 0.01))
        offset += spot.width + GAP_X
    offset = 0.0
    for spot, x in zip(layer, _increasing(wishes), strict=True):
        spot.x = x + offset
        offset += spot.width + GAP_X


def _straighten(layers: list[list[_Spot]]) -> None:
    """Put boxes and lanes that follow each other one by one right below each other, where there is room."""
    done: set[int] = set()
    level: dict[int, list[_Spot]] = {id(spot): layer for layer in layers for spot in layer}

    def interval(spot: _Spot) -> tuple[float, float]:
        layer, half = level[id(spot)], spot.width / 2
        low = layer[spot.place - 1].x + layer[spot.place - 1].width + GAP_X + half if spot.place else -inf
        high = layer[spot.place + 1].x - GAP_X - half if spot.place + 1 < len(layer) else inf
        return low, high

    for layer in layers:
        for spot in layer:
            if id(spot) in done:
                continue
            run, (low, high) = [spot], interval(spot)
            while len(run[-1].below) == 1 and len(run[-1].below[0].above) == 1:
                following = run[-1].below[0]
                if following.ports or run[-1].ports:
                    break
                least, most = interval(following)
                if max(low, least) > min(high, most):
                    break
                low, high = max(low, least), min(high, most)
                run.append(following)
            middle = min(max(sum(item.middle for item in run) / len(run), low), high)
            for item in run:
                item.x = middle - item.width / 2
                done.add(id(item))


def _increasing(wishes: Sequence[tuple[float, float]]) -> list[float]:
    """The non-decreasing numbers nearest to the wishes by weighted squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for wish, weight in wishes:
        pools.append((wish, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (x, v, m), (y, w, n) = pools[-2:]
            pools[-2:] = [((x * v + y * w) / (v + w), v + w, m + n)]
    return [value for value, _, count in pools for _ in range(count)]


def _placed(spots, lanes, layers, layer_of, down, enter, leave) -> Placement:
    tops, y = [], 0.0
    heights = [max(spot.height for spot in layer) for layer in layers]
    for height in heights:
        tops.append(y)
        y += height + GAP_Y
    level_of = {id(spot): level for level, layer in enumerate(layers) for spot in layer}
    found = Placement(height=y - GAP_Y if layers else 0.0)
    for key, spot in spots.items():
        level = level_of[id(spot)]
        # What begins or ends beside something tall does so at its foot or head, where its edges have a free way.
        part = 1.0 if not spot.above else 0.0 if not spot.below else 0.5
        found.boxes[key] = Box(spot.x, tops[level] + (heights[level] - spot.height) * part, spot.width, spot.height)
    found.width = max((box.x + box.width for box in found.boxes.values()), default=0.0)
    found.width = max([found.width, *(lane.x + lane.width for lane in lanes.values())])
    for edge, (a, b) in down.items():
        middle: list[Point] = []
        for level in range(layer_of[a] + 1, layer_of[b]):
            lane = lanes[a, level]
            middle += [(lane.middle, tops[level]), (lane.middle, tops[level] + heights[level])]
        found.routes[edge] = middle
    _attach(found, down, enter, leave)
    _keep_clear(found, down, {key: (tops[at], tops[at] + heights[at]) for key, at in layer_of.items()})
    return found


def _attach(
    found: Placement, down: Mapping[Edge, Edge], enter: Mapping[Edge, float], leave: Mapping[Edge, float]
) -> None:
    """Give the routes their ends; those that enter a box are spread over its top in the order they come in."""
    arriving: dict[Key, list[Edge]] = {}
    for edge, (_, b) in down.items():
        arriving.setdefault(b, []).append(edge)
    for key, edges in arriving.items():
        box = found.boxes[key]
        free = [edge for edge in edges if edge not in enter]
        free.sort(
            key=lambda edge: found.routes[edge][-1][0] if found.routes[edge] else found.boxes[down[edge][0]].middle
        )
        for place, edge in enumerate(free):
            part = (place + 1) / (len(free) + 1) - 0.5
            found.routes[edge].append((box.middle + part * box.width * SPREAD, box.y))
        for edge in edges:
            if edge in enter:
                found.routes[edge].append((box.x + enter[edge], box.y))
    for edge, (a, _) in down.items():
        box = found.boxes[a]
        found.routes[edge].insert(0, (box.x + leave.get(edge, box.width / 2), box.y + box.height))


def _keep_clear(found: Placement, down: Mapping[Edge, Edge], rows: Mapping[Key, tuple[float, float]]) -> None:
    """Lead routes straight out of and into their layers, past taller boxes; turn those that lead upwards."""
    for edge, (a, b) in down.items():
        points = found.routes[edge]
        (x, low), (u, high) = points[0], points[-1]
        if low < rows[a][1]:
            points.insert(1, (x, rows[a][1]))
        if rows[b][0] < high:
            points.insert(-1, (u, rows[b][0]))
        if (a, b) != edge:
            points.reverse()


__all__ = ["Box", "Placement", "layered"]
