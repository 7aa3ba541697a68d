"""Attention regions of a decoder: evaluated at several lengths, fitted, and looked at far out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Node, Value
from passes.raising.content import Content, Linear
from passes.raising.cuts import Cut, numbers_of, upstream
from passes.raising.feeds import Probe, Roles, names_head_size, possible_roles
from passes.raising.fit import TOLERANCE, Form, HeadNorm, Sample, difference, fit
from passes.raising.reference import seen
from passes.raising.regions import AttentionRegion, attention_regions, masks_of_known, rows_of_known
from passes.raising.tables import FAR, Source, Table, rows_of_source, source_of, tables_among

FIRST = Probe(13)
LARGE = (Probe(13, large="values"), Probe(13, large="scores"))
FACTORS = {"values": (100.0, 0.01, 100.0), "scores": (30.0, 1.0, 1.0)}
"""What queries, keys and values are multiplied by in large probes."""
LOUD = 1e-3
"""Largest relative difference where scores are large: the rounding of a score is as large in its weight."""
LONGEST_MASK = 8200
"""Tokens up to which whole masks are evaluated; a mask of more would fill gigabytes."""


@dataclass(frozen=True)
class Attention:
    """What an attention region computes.

    Attributes:
        region: the region.
        form: what it computes.
        table: the pair of tables that it turns by, or None.
        source: what the table is built again from.
        norms: the norms of queries and keys.
        difference: largest relative difference of all probes.
        probes: what it was evaluated on.
    """

    region: AttentionRegion
    form: Form
    table: Table | None
    source: Source | None
    norms: Sequence[HeadNorm]
    difference: float
    probes: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """All attention of a decoder and the roles of the inputs under which it fits."""

    attention: tuple[Attention, ...]
    roles: Roles


def find_attention(graph: Graph, content: Content) -> Findings | None:
    """Fit every attention of a decoder; None when it has none.

    Raises:
        LadingError: P382 a region is no attention that is known, P383 its mask is neither causal nor a window, P386 what is
            masked depends on token ids.
    """
    regions = attention_regions(graph, content)
    for region in regions:
        if content.ids in region.values:
            raise LadingError(
                "P386",
                f"attention depends on the numbers of the token ids {content.ids.name!r}, as where a padding id is masked",
                where=region.where,
                hint="export the model with a mask as an input in place of that",
            )
    return _Search(graph, content, regions).run() if regions else None


_Arrays = Mapping[Value, np.ndarray]
_Tried = tuple[Roles, _Arrays, _Arrays, list[list[Table]]]
"""Roles, what was fed for them, what came out, and the tables of each region."""


class _Search:
    """The search in one graph."""

    def __init__(self, graph: Graph, content: Content, regions: Sequence[AttentionRegion]) -> None:
        self.graph = graph
        self.content = content
        self.regions = regions
        order = {node: place for place, node in enumerate(graph.nodes)}
        self.norms = [_head_norms(region, content, order) for region in regions]
        self.numbers = [numbers_of(region.values, region.nodes) for region in regions]
        self.rows = list(dict.fromkeys(value for region in regions for value in rows_of_known(region, content)))
        linears = dict.fromkeys(linear.value for region in regions for linear in region.linears)
        self.linears = {value: content.linears[value] for value in linears}
        self.cut = Cut(graph, linears, [*(region.result for region in regions), *self.rows])
        self.rng = np.random.default_rng(1)

    def run(self) -> Findings:
        roles, forms, tables = self._first()
        # A window wider than the first probe shows in the second.
        forms, masked = self._windows(roles, forms)
        offs = [0.0] * len(self.regions)
        probes = [str(FIRST)]
        orders: list[tuple[int, int]] = [(0, 1)] * len(self.regions)
        for probe in (FIRST, *self._more()):
            try:
                feeds, found = self._evaluated(roles, probe, forms)
            except LadingError:
                # Some exports compute one sequence alone, or after a history one token alone.
                if probe.batch == 1 and probe.tokens == 1:
                    raise
                continue
            for index, form in enumerate(forms):
                off, orders[index] = self._off(index, form, tables[index], feeds, found, probe, orders[index])
                if off > (LOUD if probe.large == "scores" else TOLERANCE):
                    raise self._misfit(index, off, form, probe)
                if probe.large != "scores":
                    offs[index] = max(offs[index], off)
            if probe is not FIRST:
                probes.append(str(probe))
        probes += masked
        sources = self._sources(roles, forms, tables)
        made = tuple(
            Attention(region, form, _table(form, items), source, norms, off, tuple(probes))
            for region, form, items, source, norms, off in zip(
                self.regions, forms, tables, sources, self.norms, offs, strict=True
            )
        )
        return Findings(made, roles)

    # ---- the first probe decides roles and forms ----

    def _first(self) -> tuple[Roles, list[Form], list[list[Table]]]:
        read = {value for region in self.regions for value in region.values if value.is_input}
        best: tuple[float, Form | None] = (float("inf"), None)
        tried, trouble = self._tried(read)
        for roles, feeds, found, tables in tried:
            form, off = fit(self._sample(0, tables[0], feeds, found, FIRST))
            if off < best[0]:
                best = (off, form)
            if form is not None and off <= TOLERANCE:
                # An empty history of another width may pass.
                return replace(roles, head_size=form.k.size), self._all_forms(form, tables, feeds, found), tables
        if not tried:
            raise LadingError(
                "P382",
                "no role of the model's inputs lets its first attention be evaluated",
                where=self.regions[0].where,
                hint=trouble.diagnostics[0].message if trouble is not None else "",
            )
        raise self._misfit(0, *best, FIRST)

    def _tried(self, read: set[Value]) -> tuple[list[_Tried], LadingError | None]:
        """The roles under which the model can be evaluated; where tables of rotation are seen under some, only these.

        Positions that are all the same turn nothing, and packed sequences that they mark have one token each, so that
        anything fits which gives a token its own value.
        """
        found: list[_Tried] = []
        trouble: LadingError | None = None
        for roles in self._possible(read):
            try:
                feeds, values = self._evaluated(roles, FIRST)
            except LadingError as error:
                trouble = trouble or error
                continue
            tables = [
                tables_among(rows_of_known(region, self.content), values, FIRST.tokens) for region in self.regions
            ]
            found.append((roles, feeds, values, tables))
        return [item for item in found if any(item[3])] or found, trouble

    def _possible(self, read: set[Value]) -> Iterator[Roles]:
        if all(names_head_size(value) for value in self.content.history):
            yield from possible_roles(self.graph, self.content, read)
            return
        for roles in possible_roles(self.graph, self.content, read):
            for size in self._head_sizes():
                yield replace(roles, head_size=size)

    def _head_sizes(self) -> list[int]:
        """Sizes that heads may have where histories do not say it, by the products of the first attention."""
        groups = {dim for value in self.content.history for dim in value.dims[1:] if isinstance(dim, int)}
        widths = [linear.width for linear in self.regions[0].linears]
        counts = [int(number) for number in self.numbers[0] if number == int(number) and 1 <= number <= 256]
        sizes = [width // group for width in widths for group in groups if width % group == 0]
        sizes += [
            width // (heads + 2 * group) for width in widths for group in groups for heads in counts
            if width % (heads + 2 * group) == 0
        ]  # fmt: skip
        return sorted(dict.fromkeys(size for size in sizes if size > 1))

    def _all_forms(
        self,
        first: Form,
        tables: list[list[Table]],
        feeds: Mapping[Value, np.ndarray],
        found: Mapping[Value, np.ndarray],
    ) -> list[Form]:
        forms, known = [first], {first: None}
        for index in range(1, len(self.regions)):
            sample = self._sample(index, tables[index], feeds, found, FIRST)
            form, off = fit(sample, list(known))
            if form is None or off > TOLERANCE:
                raise self._misfit(index, off, form, FIRST)
            forms.append(form)
            known[form] = None
        return forms

    def _misfit(self, index: int, off: float, form: Form | None, probe: Probe) -> LadingError:
        region = self.regions[index]
        names = ", ".join(linear.node.loc or linear.node.name for linear in region.linears)
        if form is None:
            message = "this attention does not mix values that one of its products gives"
        else:
            message = f"this attention is none that is known: the nearest, {described(form)}, is {off:.1e} off"
        return LadingError("P382", f"{message}, on {probe}", where=f"{region.where}, which reads {names}")

    # ---- evaluation ----

    def _more(self) -> list[Probe]:
        more = [Probe(1), Probe(29), *LARGE]
        if self.content.history:
            more += [Probe(5, 7), Probe(1, 20)]
        if _has_batch(self.content.ids):
            more.append(Probe(6, 3 if self.content.history else 0, 2))
        return more

    def _evaluated(
        self, roles: Roles, probe: Probe, forms: Sequence[Form] = ()
    ) -> tuple[dict[Value, np.ndarray], dict[Value, np.ndarray]]:
        feeds = roles.feeds(self.content, probe, self.rng, self.cut.needed)
        for value, linear in self.linears.items():
            feeds[value] = self._random(value, linear, probe)
        if probe.large:
            for region, form in zip(self.regions, forms, strict=True):
                _enlarge(feeds, region, form, FACTORS[probe.large])
        return feeds, self.cut.run(feeds)

    def _random(self, value: Value, linear: Linear, probe: Probe) -> np.ndarray:
        flat = value.rank == 2
        shape = (probe.batch * probe.tokens,) if flat else (probe.batch, probe.tokens)
        return self.rng.normal(0, 1.3, (*shape, linear.width)).astype(value.dtype.numpy)

    def _sample(
        self,
        index: int,
        tables: Sequence[Table],
        feeds: Mapping[Value, np.ndarray],
        found: Mapping[Value, np.ndarray],
        probe: Probe,
        batch: int = 0,
    ) -> Sample:
        region = self.regions[index]

        def rows(array: np.ndarray) -> np.ndarray:
            return array.reshape(probe.batch, probe.tokens, -1)[batch].astype(np.float64)

        history = [feeds[value][batch].astype(np.float64) for value in region.history] if probe.past else []
        return Sample(
            [rows(feeds[linear.value]) for linear in region.linears],
            rows(found[region.result]),
            [
                table.rows(
                    {
                        value: found[value][:1] if found[value].shape[0] == probe.batch else found[value]
                        for value in (table.cos, table.sin)
                    },
                    probe.tokens,
                )
                for table in tables
            ],
            self.norms[index],
            history,
            self.numbers[index],
        )

    def _off(
        self,
        index: int,
        form: Form,
        tables: Sequence[Table],
        feeds: Mapping[Value, np.ndarray],
        found: Mapping[Value, np.ndarray],
        probe: Probe,
        order: tuple[int, int],
    ) -> tuple[float, tuple[int, int]]:
        """How far a form is off on a probe, and the order of histories for which it is least."""
        samples = [self._sample(index, tables, feeds, found, probe, batch) for batch in range(probe.batch)]
        if not samples[0].history:
            return max(difference(form, sample) for sample in samples), order
        if len(samples[0].history) != 2:
            return float("inf"), order
        tried = {item: max(_difference(form, sample, item) for sample in samples) for item in (order, order[::-1])}
        best = min(tried, key=tried.__getitem__)
        return tried[best], (best[0], best[1])

    # ---- far out ----

    def _windows(self, roles: Roles, forms: list[Form]) -> tuple[list[Form], list[str]]:
        """The forms with the windows that show only in longer sequences."""
        masks = [list(masks_of_known(region, self.content)) for region in self.regions]
        wanted = list(dict.fromkeys(mask for items in masks for mask in items))
        if not wanted:
            return forms, []
        nodes, values = upstream(wanted)
        numbers = {int(number) for number in numbers_of(values, nodes) if number == int(number)}
        limit = FAR[-1] if self.content.history else LONGEST_MASK
        lengths = sorted({64, *(number + 3 for number in numbers if 64 < number <= limit)}, reverse=True)
        found, probe = self._evaluated_masks(roles, wanted, lengths)
        made = [
            replace(form, window=self._window(index, form, [found[mask] for mask in masks[index]], probe))
            for index, form in enumerate(forms)
        ]
        return made, [f"masks of {probe.past + probe.tokens} tokens"]

    def _evaluated_masks(
        self, roles: Roles, wanted: Sequence[Value], lengths: Sequence[int]
    ) -> tuple[dict[Value, np.ndarray], Probe]:
        """The masks at the greatest length at which the model computes them: after a history the last rows alone."""
        cut = Cut(self.graph, (), wanted)
        trouble: LadingError | None = None
        for length in lengths:
            for probe in (Probe(3, length), Probe(1, length)) if self.content.history else (Probe(length),):
                try:
                    return cut.run(roles.feeds(self.content, probe, self.rng, cut.needed)), probe
                except LadingError as error:
                    trouble = error
        assert trouble is not None
        raise trouble

    def _window(self, index: int, form: Form, masks: Sequence[np.ndarray], probe: Probe) -> int:
        if not masks:
            return form.window
        total = probe.past + probe.tokens
        causal = seen(probe.tokens, probe.past, 0)
        for flip in (False, True):
            allowed = causal
            for mask in masks:
                plane = mask.reshape(-1, *mask.shape[-2:])[0]
                open_ = plane if plane.dtype == bool else plane > -1e4
                allowed = allowed & (~open_ if flip else open_)
            last = int(allowed[-1].sum())
            window = 0 if last == total else last
            if last > 1 and np.array_equal(allowed, seen(probe.tokens, probe.past, window)):
                if form.window and form.window != window:
                    continue
                return window
        raise LadingError(
            "P383",
            f"the mask of this attention is neither causal nor a window at {total} tokens",
            where=self.regions[index].where,
            hint="no runtime that keeps keys and values itself takes another",
        )

    def _sources(self, roles: Roles, forms: Sequence[Form], tables: Sequence[Sequence[Table]]) -> list[Source | None]:
        used: dict[tuple[Value, Value], Table] = {}
        for form, items in zip(forms, tables, strict=True):
            table = _table(form, items)
            if table is not None:
                used.setdefault((table.cos, table.sin), table)
        found = {key: self._source(roles, table) for key, table in used.items()}
        chosen = (_table(form, items) for form, items in zip(forms, tables, strict=True))
        return [found[table.cos, table.sin] if table is not None else None for table in chosen]

    def _source(self, roles: Roles, table: Table) -> Source:
        """What a table is built again from: constants that give the same rows far out too, else its own nodes."""
        _, values = upstream([table.cos, table.sin])
        constants = [value for value in values if value.is_const]
        cut = Cut(self.graph, (), [table.cos, table.sin])
        near = self._rows_at(roles, cut, table, Probe(FIRST.tokens))
        source = source_of(table, constants, np.arange(FIRST.tokens), near)
        if source is not None and self._holds_far_out(roles, cut, table, source):
            return source
        counted = self._counted(roles, table)
        if not counted:
            raise LadingError(
                "P384",
                "the angles of this rotary embedding do not follow from positions alone",
                where=table.cos.loc or table.cos.name,
            )
        return Source(None, 1.0, counted=counted)

    def _holds_far_out(self, roles: Roles, cut: Cut, table: Table, source: Source) -> bool:
        """Whether a source gives a table's rows at lengths that the graph computes."""
        sizes = [value.dims[-2] for value in source.baked or ()]
        limit = min((size for size in sizes if isinstance(size, int)), default=FAR[-1])
        for length in FAR:
            if length > limit or (length > LONGEST_MASK and roles.takes_matrix(cut.needed)):
                break
            past = length - 1 if self.content.history else 0
            try:
                rows = self._rows_at(roles, cut, table, Probe(length - past, past))
            except LadingError:
                break
            if not _agrees(source, table, rows, past):
                return False
        return True

    def _counted(self, roles: Roles, table: Table) -> tuple[Value, ...]:
        """The values that count positions, from which alone a table is computed; none where it is not."""
        _, values = upstream([table.cos, table.sin])
        given = {value for value, role in roles.of.items() if role == "positions"} & values
        open_ = [
            value
            for value in values
            if value.producer is not None and self.content.is_known(value) and isinstance(value.type, TensorType)
            and value.rank and not isinstance(value.dims[-1], int)
        ]  # fmt: skip
        for probe in (FIRST, Probe(5, 7) if self.content.history else Probe(29)):
            if open_:
                cut = Cut(self.graph, (), open_)
                found = cut.run(roles.feeds(self.content, probe, self.rng, cut.needed))
                line = np.arange(probe.past, probe.past + probe.tokens)
                open_ = [value for value in open_ if np.array_equal(found[value].reshape(-1), line)]
        counting = given | set(open_)
        first = [value for value in counting if not upstream(_operands(value), ())[1] & counting]
        _, read = upstream([table.cos, table.sin], first)
        others = {value for value in read if value.is_input or value in self.content.values} - set(first)
        return () if others - {self.content.ids} else tuple(sorted(first, key=lambda value: value.name))

    def _rows_at(self, roles: Roles, cut: Cut, table: Table, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
        return table.rows(cut.run(roles.feeds(self.content, probe, self.rng, cut.needed)), probe.tokens)


def _enlarge(
    feeds: dict[Value, np.ndarray], region: AttentionRegion, form: Form, factors: tuple[float, float, float]
) -> None:
    """Multiply what is fed for queries, keys and values."""
    for part, factor in zip((form.q, form.k, form.v), factors, strict=True):
        array = feeds[region.linears[part.linear].value]
        for first in part.first:
            array[..., first : first + part.size] *= array.dtype.type(factor)


def _operands(value: Value) -> list[Value]:
    made = value.producer
    return [item for item in made.inputs if item is not None] if made is not None else []


def _agrees(source: Source, table: Table, rows: tuple[np.ndarray, np.ndarray], past: int) -> bool:
    wanted = rows_of_source(source, table, np.arange(past, past + len(rows[0])))
    room = 2e-7 * max(1, past + len(rows[0]))
    return all(bool(np.abs(a - b).max() <= room) for a, b in zip(rows, wanted, strict=True))


def _table(form: Form, tables: Sequence[Table]) -> Table | None:
    return tables[form.table] if form.table is not None else None


def _difference(form: Form, sample: Sample, order: tuple[int, ...]) -> float:
    try:
        return difference(form, sample, (order[0], order[1]))
    except ValueError:
        return float("inf")


def _has_batch(ids: Value) -> bool:
    return ids.rank == 2 and isinstance(ids.dims[0], Dim)


def _head_norms(region: AttentionRegion, content: Content, order: Mapping[Node, int]) -> list[HeadNorm]:
    """The norms of one product's elements in a region, in program order."""
    found: list[HeadNorm] = []
    places = {linear.value: place for place, linear in enumerate(region.linears)}
    for node in sorted(region.nodes, key=order.__getitem__):
        if node.op not in ("RMSNormalization", "LayerNormalization"):
            continue
        gain, bias = node.operand(1).const, node.input(2)
        _, values = upstream([node.operand(0)], places)
        read = [places[value] for value in values if value in places]
        if gain is None or len(read) != 1 or (bias is not None and bias.const is None):
            continue
        shift = (
            bias.const.load().astype(np.float64).reshape(-1) if bias is not None and bias.const is not None else None
        )
        found.append(
            HeadNorm(
                read[0],
                gain.load().astype(np.float64).reshape(-1),
                shift,
                float(node.attrs.get("epsilon", 1e-5)),
                node.op == "RMSNormalization",
                len(found),
                node,
            )
        )
    return found


def described(form: Form) -> str:
    """A form in words."""
    heads = f"{form.q.heads} heads of {form.q.size}"
    words = [heads + (f" on {form.k.heads}" if form.k.heads != form.q.heads else "")]
    if form.v.size != form.q.size:
        words.append(f"values of {form.v.size}")
    if form.norms is not None:
        words.append(f"queries and keys normalized {form.norm_place} the rotation")
    words.append(f"scale {form.scale:.6g}")
    if form.window:
        words.append(f"window {form.window}")
    if form.cap:
        words.append(f"cap {form.cap:g}")
    return ", ".join(words)


__all__ = ["Attention", "Findings", "described", "find_attention"]
