"""What the converter wrote, looked at: it says "Converted Success" whatever it made of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.mnn.modules.build import type_of
from backends.mnn.modules.readback.parameters import differences
from backends.mnn.modules.readback.weights import lost_weights
from backends.mnn.modules.table.row import HELD
from backends.mnn.read.net_file import numbers, read_net
from ir.base.diag import Diagnostic, LadingError
from ir.graph.graph import Graph, Value

MOST_SHOWN = 4
"""Faults that are told one by one."""

REPORT = "please report the model; --to onnx runs it in onnxruntime"

BATCH = 1
"""What the converter writes for a first axis of any size; what is fed may have another."""


def check_net(path: Path, graph: Graph, log: str) -> dict[str, Any]:
    """The net of a converted file, when it has what a graph asks for.

    Args:
        path: the file.
        graph: what was converted.
        log: what the converter printed.

    Raises:
        LadingError: B773 there is no file, or no net in it, B774 an operator reads or gives a tensor that is not there, or
            reads one before it is made, B775 an input or output of the graph is missing or another, B777 an operator says
            something else than its node, or a weight is missing.
    """
    if not path.is_file() or not path.stat().st_size:
        raise LadingError("B773", "MNN's converter wrote no model", _complaint(log), "--to onnx runs it in onnxruntime")
    try:
        net = read_net(path)
    except LadingError as error:
        raise LadingError("B773", f"MNN's converter wrote no readable model: {error.diagnostics[0].message}") from error
    _check_links(net)
    _check_ports(net, graph)
    ops = [*net["oplists"], *(op for sub in net.get("subgraphs", ()) for op in sub.get("nodes", ()))]
    _require("B777", [*differences(ops, graph), *lost_weights(ops, graph)])
    return net


def check_joined(path: Path, graph: Graph) -> None:
    """Require of a net that was put together from parts that it is linked, and has the inputs and outputs of a graph.

    Raises:
        LadingError: B774 and B775, see `check_net`.
    """
    net = read_net(path)
    _check_links(net)
    _check_ports(net, graph)


def _check_links(net: Mapping[str, Any]) -> None:
    loose = [each for sub in net.get("subgraphs", ()) for each in _loose_ends_of(sub)]
    early = [each for sub in net.get("subgraphs", ()) for each in _too_early(sub, "nodes", "tensors")]
    _require("B774", [*_loose_ends(net, ""), *_too_early(net), *loose, *early])


def _require(code: str, faults: Sequence[tuple[str, str]]) -> None:
    if faults:
        raise LadingError.of([Diagnostic(code, text, where, REPORT) for text, where in faults[:MOST_SHOWN]])


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


def _too_early(net: Mapping[str, Any], ops: str = "oplists", names: str = "tensorName") -> list[tuple[str, str]]:
    """Operators of a graph that read what is made behind them or by nothing."""
    made: set[int] = set()
    for op in net.get(ops, ()):
        early = [int(index) for index in op.get("inputIndexes", ()) if int(index) not in made]
        if early:
            tensor = net[names][early[0]]
            text = f"an operator of the converted model reads the tensor {tensor!r} before anything makes it"
            return [(text, f"{op.get('type', 'an operator')} {op.get('name', '')!r}")]
        made.update(int(index) for index in op.get("outputIndexes", ()))
    return []


def _check_ports(net: Mapping[str, Any], graph: Graph) -> None:
    names = net["tensorName"]
    inputs = {names[int(op["outputIndexes"][0])]: op for op in net["oplists"] if op.get("type") == "Input"}
    given = {names[int(index)] for op in net["oplists"] for index in op.get("outputIndexes", ())}
    lost = [
        (f"the converted model has no output {value.name!r}", "") for value in graph.outputs if value.name not in given
    ]
    for value in graph.inputs:
        if value.name in inputs:
            lost += [(text, "") for text in _misfits(value, inputs[value.name].get("main") or {})]
        elif value.use_count:
            lost.append((f"the converted model has no input {value.name!r}", ""))
    _require("B775", lost)


def _misfits(value: Value, main: Mapping[str, Any]) -> Iterable[str]:
    """What an input of a net says otherwise than the graph."""
    wanted = type_of(value)
    if wanted is None:
        return
    said = str(main.get("dtype", "DT_FLOAT"))
    if wanted.dtype in HELD and (said == "DT_FLOAT") != wanted.dtype.is_float:
        yield f"the converted model takes its input {value.name!r} as {said} instead of {wanted.dtype}"
    dims = [int(size) for size in numbers(main.get("dims"))]
    fits = wanted.shape is None or len(dims) == len(wanted.shape)
    for place, (mine, its) in enumerate(zip(wanted.shape or (), dims, strict=False)):
        fits &= its == mine if isinstance(mine, int) else its == -1 or (place == 0 and its == BATCH)
    if not fits:
        yield f"the converted model takes its input {value.name!r} in the shape {dims} instead of {wanted}"


__all__ = ["check_net"]
