"""What there is to say about a graph at a glance: interface, blocks, weights, operators, memory, shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from ir.analysis.dataflow import (
    depths,
    dominance_frontiers,
    entries,
    exits,
    frontier,
    minimum_cut,
    reachable,
    regions,
    single_value_cuts,
)
from ir.analysis.liveness import peak_memory, size_of
from ir.analysis.repeats import repeats
from ir.base.diag import LadingError, suggest
from ir.base.types import Dim
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import DEQUANTIZE
from ir.tensor.base import Tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from ir.text.printer import type_text

USUAL_SIZE = 128
"""Size of a dimension that is not given, where its range allows it."""
MOST_DIMENSIONS = 6
"""Dimensions with the same range that are named one by one."""
SLOW_NODES = 5000
"""Number of nodes up to which the analyses that may take more than linear time are made."""

PACKED = {"com.microsoft.MatMulNBits": 1, "com.microsoft.GatherBlockQuantized": 0}
"""Operators with several codes to a byte, and which operand these are."""
SCALES = (2, 3)
"""Their operands that are scales and zeros."""


@dataclass
class Summary:
    """A described graph; every part is JSON-able.

    Attributes:
        name, opsets, dims, facts: of the graph.
        inputs, outputs, tables: name, type, and for inputs where their data meets that of others.
        nodes, depth, parts: number of nodes with those of subgraphs, nodes on the longest path, unconnected parts.
        operators: number of nodes by operator.
        blocks: repeated blocks: count, nodes, operators, parameters in each, first and last value.
        parameters: elements of weights, scales and zero points not counted.
        storage: constants by element type and way of storing: count, elements, bytes.
        unused: inputs that lead to no output, number of nodes that do not, constants that nothing reads.
        shape_nodes: nodes that compute from shapes and constants alone.
        memory: sizes put in, peak bytes of values, the node at the peak, the largest values then, unknown sizes.
        bottlenecks: values inside the graph through which everything goes on its way to the first output.
        split: the values of fewest bytes that separate inputs from outputs; None when none do.
    """

    name: str
    opsets: dict[str, int]
    dims: dict[str, str]
    facts: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    nodes: int
    depth: int
    parts: int
    operators: dict[str, int]
    blocks: list[dict[str, Any]]
    parameters: int
    storage: list[dict[str, Any]]
    unused: dict[str, Any]
    shape_nodes: int
    memory: dict[str, Any]
    bottlenecks: list[str]
    split: dict[str, Any] | None


def summarize(graph: Graph, sizes: Mapping[str, int] | None = None) -> Summary:
    """Describe a graph.

    Args:
        graph: a root graph in topological order.
        sizes: sizes of symbolic dimensions; others are `USUAL_SIZE` or the nearest legal size.

    Raises:
        LadingError: U932 a size for an unknown dimension or out of its range.
    """
    chosen = _sizes(graph, sizes or {})
    meets = _meets(graph)
    return Summary(
        name=graph.name,
        opsets=dict(graph.opsets),
        dims={name: _range(dim) for name, dim in graph.dims.items()},
        facts=list(graph.facts),
        inputs=[{"name": v.name, "type": _type(v), "meets": meets.get(v, "")} for v in graph.inputs],
        outputs=[{"name": v.name, "type": _type(v)} for v in graph.outputs],
        tables=[{"name": name, "value": v.name, "type": _type(v)} for name, v in graph.tables.items()],
        nodes=sum(1 for _ in graph.walk()),
        depth=max(depths(graph).values(), default=-1) + 1,
        parts=len(regions(graph, lambda node: True)),
        operators=dict(sorted(Counter(node.op for node in graph.walk()).items(), key=lambda item: (-item[1], item[0]))),
        blocks=_blocks(graph),
        parameters=sum(_numbers(value) for value in graph.consts.values() if _is_parameter(value)),
        storage=_storage(graph),
        unused=_unused(graph),
        shape_nodes=len(frontier(graph, (), exits(graph)).computed),
        memory=_memory(graph, chosen),
        bottlenecks=_bottlenecks(graph),
        split=_split(graph, chosen),
    )


def _sizes(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    for name, size in given.items():
        if name not in graph.dims:
            raise LadingError(
                "U932", f"the graph has no dimension {name!r}", graph.name, suggest(name, list(graph.dims))
            )
        if not graph.dims[name].accepts(size):
            raise LadingError("U932", f"{name} cannot be {size}: it is {_range(graph.dims[name])}", graph.name)
    return {name: given.get(name, _usual(dim)) for name, dim in graph.dims.items()}


def _usual(dim: Dim) -> int:
    wanted = max(dim.low, USUAL_SIZE if dim.high is None else min(USUAL_SIZE, dim.high))
    step = dim.multiple_of
    down, up = wanted // step * step, -(-wanted // step) * step
    return down if dim.accepts(down) else up


def _meets(graph: Graph) -> dict[Value, str]:
    """For each of several inputs, the first value where it comes together with what does not depend on it.

    A node without outputs is named by its operator.
    """
    if len(graph.inputs) < 2 or len(graph.nodes) > SLOW_NODES:
        return {}
    found: dict[Value, str] = {}
    position = {node: index for index, node in enumerate(graph.nodes)}
    for value, beyond in dominance_frontiers(graph).items():
        if isinstance(value, Value) and value.is_input:
            nodes = [item for item in beyond if isinstance(item, Node)]
            if nodes:
                first = min(nodes, key=position.__getitem__)
                found[value] = first.output.name if first.outputs else first.op
    return found


def _blocks(graph: Graph) -> list[dict[str, Any]]:
    found = []
    for repeat in repeats(graph):
        first = repeat.blocks[0]
        found.append(
            {
                "count": len(repeat.blocks),
                "nodes": len(first.nodes),
                "operators": dict(Counter(node.op for node in first.nodes).most_common()),
                "parameters": sum(_numbers(value) for value in first.constants if _is_parameter(value)),
                "from": first.entry.name,
                "to": repeat.blocks[-1].exit.name,
            }
        )
    return found


def _is_parameter(value: Value) -> bool:
    """True for a weight; not for a scale, a zero point, or a shape or axis."""
    quantized = [index for node, index in value.uses if node.op in DEQUANTIZE]
    if quantized:
        return 0 in quantized
    if _packed_bits(value):
        return True
    if any(node.op in PACKED and index in SCALES for node, index in value.uses):
        return False
    return value.type is not None and value.dtype.is_float and _elements(value) > 1


def _packed_bits(value: Value) -> int:
    """Bits of the codes that a constant holds several of to a byte; 0 for one that holds numbers."""
    if value.type is None or value.dtype.name != "u8":
        return 0
    found = (node.attrs.get("bits", 4) for node, index in value.uses if PACKED.get(node.op) == index)
    return next(found, 0)


def _numbers(value: Value) -> int:
    """How many numbers a constant stands for."""
    bits = _packed_bits(value)
    return _elements(value) * 8 // bits if bits else _elements(value)


def _elements(value: Value) -> int:
    return value.type.size or 0  # type: ignore[union-attr]


def _storage(graph: Graph) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], list[int]] = {}
    for value in graph.consts.values():
        row = rows.setdefault((str(value.dtype), _way(value.const)), [0, 0, 0])  # type: ignore[arg-type]
        row[0] += 1
        row[1] += _elements(value)
        row[2] += size_of(value.type, {}) or 0
    ordered = sorted(rows.items(), key=lambda item: (-item[1][2], item[0]))
    return [
        {"type": kind, "stored": way, "count": row[0], "elements": row[1], "bytes": row[2]}
        for (kind, way), row in ordered
    ]


def _way(tensor: Tensor) -> str:
    """How a tensor comes about: inline, file, or the chain of its recipes."""
    names: list[str] = []
    while not isinstance(tensor, InlineTensor | FileTensor):
        names.append(tensor.recipe()[0])
        if not tensor.inputs:
            return " of ".join(names)
        tensor = tensor.inputs[0]
    return " of ".join([*names, "inline" if isinstance(tensor, InlineTensor) else "file"])


def _unused(graph: Graph) -> dict[str, Any]:
    live = reachable(graph, exits(graph), backward=True)
    return {
        "inputs": [value.name for value in graph.inputs if value not in live],
        "nodes": sum(node not in live for node in graph.nodes),
        "constants": sum(not value.use_count for value in graph.consts.values()),
    }


def _memory(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any]:
    found = peak_memory(graph, sizes)
    largest = sorted(found.alive, key=lambda value: -(size_of(value.type, sizes) or 0))[:5]
    return {
        "sizes": dict(sizes),
        "peak": found.peak,
        "at": found.node.output.name if found.node is not None and found.node.outputs else "",
        "largest": [{"name": value.name, "bytes": size_of(value.type, sizes) or 0} for value in largest],
        "constants": found.constants,
        "unknown": len(found.unknown),
    }


def _bottlenecks(graph: Graph) -> list[str]:
    if not graph.outputs:
        return []
    found = single_value_cuts(graph, entries(graph), graph.outputs[0])
    return [value.name for value in found if value.producer is not None and value is not graph.outputs[0]]


def _split(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    if not graph.outputs or len(graph.nodes) > SLOW_NODES:
        return None
    ends = {*entries(graph), *exits(graph)}

    def cost(value: Value) -> float:
        found = size_of(value.type, sizes)
        return inf if value in ends or found is None else float(max(found, 1))

    total, cut = minimum_cut(graph, entries(graph), exits(graph), cost)
    return None if total == inf or not cut else {"bytes": int(total), "values": [value.name for value in cut]}


def _type(value: Value) -> str:
    return "unknown" if value.type is None else type_text(value.type)


def _range(dim: Dim) -> str:
    step = f" step {dim.multiple_of}" if dim.multiple_of != 1 else ""
    return f"{dim.low}..{'' if dim.high is None else dim.high}{step}"


# ---- text ----


def lines(found: Summary) -> list[tuple[str, str]]:
    """The summary as name and text, for people."""
    rows = [("graph", f"{found.name or 'unnamed'}: {_count(found.nodes, 'node')}, {found.depth} deep{_parts(found)}")]
    rows += [
        ("input", _named(item) + (f", meets others at %{item['meets']}" if item["meets"] else ""))
        for item in found.inputs
    ]
    rows += [("output", _named(item)) for item in found.outputs]
    rows += [("table", f"{item['name']} = {item['value']}: {item['type']}") for item in found.tables]
    rows += _dimensions(found.dims)
    for item in found.blocks:
        operators = ", ".join(f"{count} {op}" if count > 1 else op for op, count in item["operators"].items())
        size = f"{item['nodes']} nodes, {item['parameters']:,} parameters in each"
        rows.append(("block", f"{item['count']} times {size}: {operators}"))
    rows.append(("parameters", f"{found.parameters:,}"))
    for row in found.storage:
        text = f"{row['type']}, {row['stored']}: {_count(row['count'], 'constant')}, {row['elements']:,} elements"
        rows.append(("storage", f"{text}, {amount(row['bytes'])}"))
    rows.append(("operators", ", ".join(f"{count} {op}" for op, count in found.operators.items()) or "none"))
    rows += _about_memory(found)
    rows += _about_waste(found)
    rows.append(("opset", ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in found.opsets.items())))
    if found.facts:
        rows.append(("facts", ", ".join(found.facts)))
    return rows


def _dimensions(dims: Mapping[str, str]) -> list[tuple[str, str]]:
    """Ranges of dimensions; of many with the same range only the first are named."""
    alike: dict[str, list[str]] = {}
    for name, range_ in dims.items():
        alike.setdefault(range_, []).append(name)
    rows = []
    for name, range_ in dims.items():
        same = alike[range_]
        if len(same) <= MOST_DIMENSIONS:
            rows.append(("dimension", f"{name} = {range_}"))
        elif name == same[0]:
            shown = ", ".join(same[:MOST_DIMENSIONS])
            rows.append(("dimension", f"{shown} and {len(same) - MOST_DIMENSIONS} more = {range_}"))
    return rows


def _about_memory(found: Summary) -> list[tuple[str, str]]:
    memory = found.memory
    sizes = ", ".join(f"{name} = {size}" for name, size in list(memory["sizes"].items())[:MOST_DIMENSIONS])
    sizes += f" and {len(memory['sizes']) - MOST_DIMENSIONS} more" if len(memory["sizes"]) > MOST_DIMENSIONS else ""
    where = f" at %{memory['at']}" if memory["at"] else ""
    unknown = f"; {_count(memory['unknown'], 'value')} of unknown size not counted" if memory["unknown"] else ""
    rows = [("memory", f"{amount(memory['peak'])} of values{where}{f' with {sizes}' if sizes else ''}{unknown}")]
    if found.split is not None:
        names = ", ".join(f"%{name}" for name in found.split["values"][:4])
        rows.append(("narrowest", f"{amount(found.split['bytes'])} through {names}"))
    if found.bottlenecks:
        first, last = found.bottlenecks[0], found.bottlenecks[-1]
        places = f"%{first}" if first == last else f"%{first} to %{last}"
        rows.append(
            ("bottlenecks", f"{_count(len(found.bottlenecks), 'value')} that everything goes through: {places}")
        )
    return rows


def _about_waste(found: Summary) -> list[tuple[str, str]]:
    rows = []
    if found.shape_nodes:
        rows.append(("shapes", f"{_count(found.shape_nodes, 'node')} compute from shapes alone"))
    parts = [f"input %{name}" for name in found.unused["inputs"]]
    parts += [_count(found.unused[what], what[:-1]) for what in ("nodes", "constants") if found.unused[what]]
    return [*rows, ("unused", ", ".join(parts))] if parts else rows


def _parts(found: Summary) -> str:
    return f", in {found.parts} unconnected parts" if found.parts > 1 else ""


def _named(item: Mapping[str, Any]) -> str:
    return f"{item['name']}: {item['type']}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def amount(count: int) -> str:
    """A number of bytes for people, in powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


__all__ = ["Summary", "amount", "lines", "summarize"]
