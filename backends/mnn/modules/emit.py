"""Write a legal graph as an MNN model, by way of ONNX and the converter of MNN's wheel.

The converter runs in a child process and a folder of its own, since it crashes on some graphs and writes files under fixed names
into the folder in which it stands. Bodies of choices and loops are converted as parts of one flat graph
(`backends.mnn.modules.parts`).
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from pathlib import Path

from backends.mnn.modules.child import Converter
from backends.mnn.modules.edit.edit_net import Edited, edit_net, holds_codes
from backends.mnn.modules.parts.apart import apart
from backends.mnn.modules.parts.together import together
from backends.mnn.modules.readback.check_net import check_joined, check_net
from ir.base.child import ChildFailed
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.graph.graph import Graph
from ir.onnx.export import write_model

LEAST_SECONDS = 120.0
"""Time that a conversion is given at least."""

PER_PAIR = 2e-5
"""Seconds that the converter takes for each pair of an operator and a matrix product with a stored weight, of which it makes
convolutions one by one: 2 s for 1,000 operators of which 250 are such products, 88 s for 5,000, 500 s for 10,000."""

PER_SQUARE = 2e-7
"""Seconds that it takes for each pair of operators: 11 s for 10,000 without such products."""

ROOM = 6.0
"""How many times what is expected a conversion may take."""


EXACT = ("--useGeluApproximation", "0")
"""GELU by its error function stays that; the converter would take a hyperbolic tangent, which is off by 5e-4."""
BESIDE = ("--saveExternalData",)
"""Weights go to a file of their own, where they can be exchanged."""


def expected_seconds(graph: Graph) -> float:
    """How long the converter will work on a graph, which grows with the square of its operators; measured on one core of a
    server of 2020."""
    nodes = products = 0
    for node in graph.walk():
        nodes += 1
        weight = node.input(1) if node.op in ("Gemm", "MatMul") else None
        products += weight is not None and weight.const is not None
    return PER_PAIR * nodes * products + PER_SQUARE * nodes * nodes


def emit(graph: Graph, out: Path, converter: Converter, *, inside: bool = True) -> Edited | None:
    """Convert a graph; the same graph gives the same bytes.

    What the converter writes is a net of floats. Where the graph has weights in codes, tensors of integers, or weights
    that are to lie beside the model, that net is edited.

    Args:
        graph: what `legalize-module` left.
        out: the file to write.
        converter: of the oldest release that the file is for, or of the installed one.
        inside: weights lie in the file; else in one of their own, named ``OUT.weight``.

    Returns:
        What was edited; None when nothing was.

    Raises:
        LadingError: B776 the converter died or took too long, and what `check_net` raises. Nothing is written then.
    """
    seconds = LEAST_SECONDS + ROOM * expected_seconds(graph)
    flat, joints = apart(graph)
    with scratch_folder() as folder:
        source, made = folder / "model.onnx", folder / "model.mnn"
        write_model(flat, source)
        try:
            editing = not inside or holds_codes(flat)
            log = converter.convert(source, made, [*EXACT, *(BESIDE if editing else ())], seconds=seconds)
        except ChildFailed as error:
            message = f"the process of MNN's converter {error.how}"
            raise LadingError("B776", message, error.detail[-600:], "--to onnx runs it in onnxruntime") from None
        net = check_net(made, flat, log)
        edited = None
        if editing:
            (folder / "edited").mkdir()
            edited = edit_net(made, flat, folder / "edited" / out.name, inside=inside)
            made = folder / "edited" / out.name
            weights = made.with_name(made.name + ".weight")
            if weights.is_file():
                shutil.move(weights, out.with_name(weights.name))
        if joints:
            together(made, joints, [value.name for value in graph.outputs], folder / "joined.mnn")
            made = folder / "joined.mnn"
            check_joined(made, graph)
        data = made.read_bytes()
        out.write_bytes(_identified(data, str(net.get("mnn_uuid", ""))))
    return edited


def _identified(data: bytes, stamp: str) -> bytes:
    """The file with an identifier that follows from what it holds; the converter draws one at random."""
    mark = stamp.encode()
    if not mark or data.count(mark) != 1:
        return data
    plain = data.replace(mark, bytes(len(mark)))
    name = str(uuid.UUID(hashlib.sha256(plain).hexdigest()[:32])).encode()
    return data.replace(mark, name[: len(mark)].ljust(len(mark), b"0"))


__all__ = ["emit", "expected_seconds"]
