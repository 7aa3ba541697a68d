"""What the converter wrote, looked at: it says "Converted Success" whatever it made of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backends.mnn.read.net_file import read_net
from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Graph

MOST_SHOWN = 4
"""Faults that are told one by one."""


def check_net(path: Path, graph: Graph, log: str) -> dict[str, Any]:
    """The net of a converted file, when it has what a graph asks for.

    Args:
        path: the file.
        graph: what was converted.
        log: what the converter printed.

    Raises:
        LadingError: B773 there is no file, or no net in it, B774 an operator reads or gives a tensor that is not there, B775
            an input or output of the graph is missing.
    """
    if not path.is_file() or not path.stat().st_size:
        raise LadingError("B773", "MNN's converter wrote no model", _complaint(log), "--to onnx runs it in onnxruntime")
    try:
        net = read_net(path)
    except LadingError as error:
        raise LadingError("B773", f"MNN's converter wrote no readable model: {error.diagnostics[0].message}") from error
    faults = [*_loose_ends(net, ""), *(each for sub in net.get("subgraphs", ()) for each in _loose_ends_of(sub))]
    if faults:
        found = [Diagnostic("B774", text, where, "please report the model") for text, where in faults[:MOST_SHOWN]]
        raise LadingError.of(found)
    _check_ports(net, graph)
    return net


def _complaint(log: str) -> str:
    """The lines in which the converter may have said why."""
    noise = ("Start to", "ONNX Model", "inputTensors", "outputTensors", "The device supports")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not any(word in line for word in noise)]
    return "\n".join(lines[-MOST_SHOWN:])


def _loose_ends(net: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    return _dangling(net["oplists"], len(net["tensorName"]), name)


def _loose_ends_of(sub: Mapping[str, Any]) -> list[tuple[str, str]]:
    return _dangling(sub.get("nodes", ()), len(sub.get("tensors", ())), str(sub.get("name", "")))


def _dangling(ops: Iterable[Mapping[str, Any]], tensors: int, name: str) -> list[tuple[str, str]]:
    """Operators that read or give tensors that the net does not have."""
    found = []
    for op in ops:
        where = f"{op.get('type', 'an operator')} {op.get('name', '')!r}" + (f" in {name}" if name else "")
        for key, what in (("inputIndexes", "reads"), ("outputIndexes", "gives")):
            wrong = [int(index) for index in op.get(key, ()) if not 0 <= int(index) < tensors]
            if wrong:
                found.append((f"an operator of the converted model {what} a tensor of number {wrong[0]}", where))
    return found


def _check_ports(net: Mapping[str, Any], graph: Graph) -> None:
    names = net["tensorName"]
    inputs = {names[int(op["outputIndexes"][0])] for op in net["oplists"] if op.get("type") == "Input"}
    given = {names[int(index)] for op in net["oplists"] for index in op.get("outputIndexes", ())}
    for what, wanted, there in (("input", graph.inputs, inputs), ("output", graph.outputs, given)):
        lost = [value.name for value in wanted if value.name not in there and (what == "output" or value.use_count)]
        if lost:
            raise LadingError("B775", f"the converted model has no {what} {lost[0]!r}", hint="please report the model")


__all__ = ["check_net"]
