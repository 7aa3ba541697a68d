"""What an exported decoder was found to be, told to people: roles of inputs and parts of the graph, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ir.base.diag import Diagnostic, LadingError

if TYPE_CHECKING:
    from ir.facts.raised import Raised
    from ir.graph.graph import Graph
    from tools.shared.formats import Formats

UP_TO = "discover-inputs"
"""The pass of a pipeline that everything which finds roles comes before."""


class Port(Protocol):
    """An input or output, of the fact or of the contract."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def evidence(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str]: ...


class Region(Protocol):
    """A part of the graph, of the fact or of the contract."""

    @property
    def kind(self) -> str: ...
    @property
    def finding(self) -> str: ...
    @property
    def difference(self) -> float: ...
    @property
    def probes(self) -> Sequence[str]: ...


class Found(Protocol):
    """What was found, as the fact or the contract has it."""

    @property
    def inputs(self) -> Sequence[Port]: ...
    @property
    def outputs(self) -> Sequence[Port]: ...
    @property
    def regions(self) -> Sequence[Region]: ...


def rows(found: Found) -> Iterator[tuple[str, str]]:
    """Name and text of every role and every kind of part; those that are alike make one row."""
    for what, ports in (("takes", found.inputs), ("gives", found.outputs)):
        alike: dict[tuple[str, str], list[Port]] = {}
        for port in ports:
            alike.setdefault((port.kind, port.evidence), []).append(port)
        for (kind, evidence), same in alike.items():
            yield what, f"{_names(same)}: {kind.replace('-', ' ')}; {evidence}"
    groups: dict[tuple[str, str], list[Region]] = {}
    for region in found.regions:
        groups.setdefault((region.kind, region.finding), []).append(region)
    for (kind, finding), parts in groups.items():
        probes = list(dict.fromkeys(probe for part in parts for probe in part.probes))
        probed = f"; probed with {', '.join(probes)}" if probes else ""
        worst = max(part.difference for part in parts)
        yield "found", f"{len(parts)} x {kind}: {finding}; difference at most {worst:.1e}{probed}"


def _names(ports: Sequence[Port]) -> str:
    first = ports[0]
    axes = ", ".join(map(str, first.shape))
    more = f" and {len(ports) - 1} more" if len(ports) > 1 else ""
    return f"{first.name} {first.dtype}[{axes}]{more}"


def evidence_of(graph: Graph, formats: Formats) -> Raised | Diagnostic | None:
    """What a graph from a file is found to be by the passes with which it would be compiled, tried on a copy.

    Returns:
        What was found, why it was refused, or None for a graph that looks like no language model.
    """
    from ir.facts.raised import Raised
    from ir.graph.copy import copied
    from passes.framework.load import load
    from passes.framework.manager import PassManager
    from passes.framework.pipeline import Pipeline
    from passes.inputs.language_model import looks_like_one

    if not graph.foreign or not looks_like_one(graph):
        return None
    whole = load(formats.emitter(formats.emitter_of(graph)).passes, formats.registry)
    names = [getattr(item, "name", "") for item in whole.items]
    front = Pipeline(whole.items[: names.index(UP_TO)] if UP_TO in names else ())
    twin = copied(graph)
    try:
        PassManager(front, registry=formats.registry).run(twin)
    except LadingError as error:
        return error.diagnostics[0]
    return twin.fact(Raised)


__all__ = ["evidence_of", "rows"]
