"""ONNX models to `ir.Graph`, with everything that `backends.onnx.write` needs to write the same model again.

What the IR has no field for (format version, producer, documentation, metadata, function attributes) is kept as plain
data under the keys of `ir.onnx.keys`. Initializers are not decoded here: data inside the model is decoded when it is
read, external data and the weights of large files stay in their files, which must stay in place while the graph is
used. A model given as a message must not be changed meanwhile.

Initializers that are also inputs are constants up to format version 3, as in onnxruntime; from version 4 on they are
inputs with a default, kept in the graph's tables. Sparse initializers become dense. Documentation of attributes and
checksums of external data are not kept.
"""

from __future__ import annotations

import mmap
import os
import stat
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from frontends.containers.stand_ins import require_real
from frontends.onnx.free import settle_free
from frontends.onnx.lift import Free, Lift, pairs, text
from frontends.onnx.tensors import Place
from frontends.onnx.without_weights import Malformed, without_weights
from ir.base.diag import LadingError
from ir.base.paused_gc import paused_collection
from ir.graph.graph import Graph
from ir.tensor.base import Tensor

SCAN_BYTES = 64 << 20
"""Size from which the weights of a model file are left in the file."""
WEIGHT_BYTES = 16 << 10
"""Raw size from which a tensor of such a file counts as a weight."""
FIRST_WITH_OPSETS = 3
"""Format version from which a model states the versions of its operators; before, they are of version 1."""
MOST_BYTES = (1 << 31) - 1
"""Bytes that a message of the format can have."""
MOST_CALLED = 1_000_000
"""Nodes that all calls of functions may come to."""
_TEXTS = ("producer_name", "producer_version", "domain", "doc_string")


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    free: Free = "input",
    base: str | os.PathLike[str] | None = None,
) -> Graph:
    """The graph of an ONNX model.

    Args:
        source: path of a model, its bytes, or the decoded message.
        free: what to do about tensors that are read but never made: make each an ``input`` of the type that its readers
            force (or the constant that they determine), recorded as `ir.facts.free_tensors.FreeTensors`, or an
            ``error``.
        base: folder of external data; for a path, the folder of the file unless given.

    Raises:
        LadingError: F600 to F615; every problem of the file is one of them.
    """
    if free not in ("error", "input"):
        raise ValueError(f"free is 'error' or 'input', not {free!r}")
    folder = Path(base) if base is not None else None
    if isinstance(source, Message):
        return lift_message(source, Place(folder), free)
    if isinstance(source, bytes | bytearray | memoryview):
        data = memoryview(source).cast("B")
        return lift_message(_parse(data, "the model"), Place(folder, data=data), free)
    path = Path(source)
    return lift_message(read_message(path), Place(folder if folder is not None else path.parent, path), free)


# ---- files and bytes ----


def read_message(path: Path) -> onnx.ModelProto:
    """The message of a file, of a large one without the contents of its weights.

    Raises:
        LadingError: F600 it cannot be read, F601 it is no ONNX model.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            hint = "give the .onnx file itself" if stat.S_ISDIR(found.st_mode) else ""
            raise LadingError("F600", "not a file", str(path), hint)
        require_real(path)
        with open(path, "rb") as file:
            if found.st_size < SCAN_BYTES:
                return _parse(file.read(), str(path))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                return _parse(data, str(path))
    except OSError as error:
        raise LadingError("F600", f"cannot read: {error.strerror or error}", str(path)) from error


def _parse(data: bytes | memoryview, where: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(_stripped(data))
    # Beyond 2 GiB the library fails with a SystemError.
    except (DecodeError, SystemError, ValueError) as error:
        hint = "the file is cut off or of another format"
        raise LadingError("F601", f"not an ONNX model: {error}", where, hint) from error
    return model


def _stripped(data: bytes | memoryview) -> bytes:
    if len(data) < SCAN_BYTES:
        return bytes(data)
    view = memoryview(data)
    try:
        return without_weights(view, WEIGHT_BYTES)
    except Malformed as error:
        if len(data) > MOST_BYTES:
            raise DecodeError(f"{error}, and {len(data):,} bytes are more than one message can have") from error
        return bytes(data)
    finally:
        view.release()


# ---- the model ----


def lift_message(
    model: onnx.ModelProto, place: Place, free: Free = "input", constants: Mapping[str, Tensor] | None = None
) -> Graph:
    """The graph of a decoded model; see `load`.

    Args:
        model: the model.
        place: where its files may be.
        free: see `load`.
        constants: further constants of the outermost graph, by name.
    """
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"an onnx.ModelProto is needed, not {type(model).__name__}")
    _check(model, place)
    with paused_collection():
        root = Graph(text(model.graph.name, str(place)), _opsets(model.opset_import, place) or {"": 1})
        root.foreign = root.hinted = True
        lift = Lift(root, model.graph, place, model.ir_version, free)
        lift.constants = constants or {}
        lift.fill(lift.scope)
        lift.note(root, {"model": _about(model)})
        for key, value in pairs(model.metadata_props).items():
            root.metadata.setdefault(key, value)
        _functions(root, model, place)
        if lift.unmade:
            settle_free(root, lift.unmade)
    return root


def _check(model: onnx.ModelProto, place: Place) -> None:
    if not model.ir_version or not model.HasField("graph"):
        what = "graph" if model.ir_version else "format version"
        raise LadingError("F601", f"not an ONNX model: it has no {what}", str(place))
    if model.ir_version > onnx.IR_VERSION:
        message = f"format version {model.ir_version} is newer than {onnx.IR_VERSION}, which the onnx package knows"
        raise LadingError("F602", message, str(place), "update the onnx package")
    if model.ir_version >= FIRST_WITH_OPSETS and not model.opset_import:
        raise LadingError("F617", "the model imports no operator set", str(place), "the file may be cut off")
    if model.training_info:
        raise LadingError("F603", "the model has training information", str(place), "export it for inference")


def _opsets(imports: Any, place: Place) -> dict[str, int]:
    """Versions by domain."""
    found: dict[str, int] = {}
    for item in imports:
        domain = "" if item.domain == "ai.onnx" else text(item.domain, str(place))
        if found.setdefault(domain, item.version) != item.version:
            message = f"operator set {item.domain!r} is imported in versions {found[domain]} and {item.version}"
            raise LadingError("F612", message, str(place))
        newest = onnx.defs.onnx_opset_version()
        if item.version < 1 or (not domain and item.version > newest):
            message = f"operator set {item.domain or 'ai.onnx'!r} version {item.version} is not known; ONNX's newest is {newest}"
            raise LadingError("F602", message, str(place), "update the onnx package")
    return found


def _about(model: onnx.ModelProto) -> dict[str, Any]:
    about: dict[str, Any] = {"ir_version": model.ir_version}
    about |= {field: text(found, field) for field in _TEXTS if (found := getattr(model, field))}
    if model.model_version:
        about["model_version"] = model.model_version
    if model.configuration:
        about["configuration"] = [b64encode(item.SerializeToString()).decode() for item in model.configuration]
    if not model.opset_import:
        about["opset_import"] = False
    return about


# ---- functions ----


def _functions(root: Graph, model: onnx.ModelProto, place: Place) -> None:
    for proto in model.functions:
        words = (proto.domain, proto.name, proto.overload, proto.doc_string)
        for item in (*words, *proto.attribute, *proto.input, *proto.output):
            text(item, f"{place}, a function")
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if not proto.name or "." in proto.name:
            raise LadingError("F614", f"a function cannot be called {proto.name!r}", str(place))
        name = (f"{domain}.{proto.name}" if domain else proto.name) + (f":{proto.overload}" if proto.overload else "")
        if name in root.functions:
            raise LadingError("F615", f"the function {name!r} is there twice", str(place))
        if onnx.defs.has(proto.name, domain):
            raise LadingError("F615", f"the function {name!r} hides an operator of ONNX", str(place))
        root.functions[name] = _function(proto, place, model.ir_version, name)
    _refuse_recursion(root, place)
    _refuse_expansion(root, place)


def _function(proto: onnx.FunctionProto, place: Place, ir_version: int, name: str) -> Graph:
    body = Graph(proto.name, _opsets(proto.opset_import, place))
    body.foreign = True
    if not proto.opset_import:
        body.opsets.clear()
    graph = onnx.GraphProto(name=proto.name, node=proto.node, value_info=proto.value_info)
    for item in proto.input:
        graph.input.add(name=item)
    for item in proto.output:
        graph.output.add(name=item)
    lift = Lift(body, graph, place, ir_version, "error", f", function {name!r}")
    lift.fill(lift.scope)
    about: dict[str, Any] = {"attributes": list(proto.attribute)} if proto.attribute else {}
    if proto.attribute_proto:
        about["defaults"] = [b64encode(item.SerializeToString()).decode() for item in proto.attribute_proto]
    if proto.doc_string:
        about["doc"] = proto.doc_string
    if proto.metadata_props:
        about["metadata"] = pairs(proto.metadata_props)
    lift.note(body, {"function": about})
    return body


def _refuse_recursion(root: Graph, place: Place) -> None:
    calls = {
        name: {key for node in body.walk() if (key := _called(node)) in root.functions}
        for name, body in root.functions.items()
    }
    finished: set[str] = set()
    for start in calls:
        open_: list[tuple[str, Iterator[str]]] = [(start, iter(calls[start]))] if start not in finished else []
        path = {start}
        while open_:
            name, rest = open_[-1]
            following = next(rest, None)
            if following is None:
                open_.pop()
                path.discard(name)
                finished.add(name)
            elif following in path:
                raise LadingError("F615", f"the function {following!r} calls itself", str(place))
            elif following not in finished:
                path.add(following)
                open_.append((following, iter(calls[following])))


def _refuse_expansion(root: Graph, place: Place) -> None:
    """Refuse functions that call others so often that writing the calls out, as every runtime does, never ends."""
    written: dict[str, int] = {}

    def size(name: str) -> int:
        if name not in written:
            waiting = [name]
            while waiting:
                body = root.functions[waiting[-1]]
                calls = [key for node in body.walk() if (key := _called(node)) in root.functions]
                missing = [key for key in calls if key not in written]
                if missing:
                    waiting += dict.fromkeys(missing)
                    continue
                written[waiting.pop()] = sum(1 for _ in body.walk()) + sum(written[key] for key in calls)
        return written[name]

    total = 0
    for node in root.walk():
        name = _called(node)
        if name in root.functions:
            total += size(name)
            if total > MOST_CALLED:
                message = (
                    f"the function {name!r}, written out where it is called, makes more than {MOST_CALLED:,} nodes"
                )
                raise LadingError("F651", message, str(place), "the file is damaged, or made to keep compilers busy")


def _called(node: Any) -> str:
    return f"{node.op}:{node.overload}" if node.overload else node.op


__all__ = ["lift_message", "load", "read_message"]
