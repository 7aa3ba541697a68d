"""The ways from an ONNX file to numbers of MNN: this compiler, and the converter of the wheel alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx

from backends.mnn.modules.child import Converter
from backends.mnn.modules.way import MODEL
from ir.base.diag import LadingError
from tools.conformance.held import as_held

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)
SECONDS = 60.0
"""Time that the converter, and a run, may take."""


@dataclass(frozen=True)
class Compiled:
    """A model that MNN loads.

    Attributes:
        path: the file.
        inputs: names of its inputs in the order of the original's, with the type in which MNN holds each.
        outputs: names of its outputs.
    """

    path: Path
    inputs: Mapping[str, np.dtype]
    outputs: Sequence[str]


class Refused(Exception):
    """No model was made, for a stated reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class Route(Protocol):
    """A way to a model. `ChildFailed` of its methods is a crash."""

    def compile(self, model: bytes, folder: Path) -> Compiled:
        """Make a model in an empty folder; `Refused` when there is none."""

    def run(self, compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What MNN computes."""

    def close(self) -> None:
        """End the processes."""


class _OnRelease:
    """What both ways share: the child in which the wheel of a release converts and runs."""

    def __init__(self, release: str) -> None:
        from backends.mnn.target.environments import ReleaseEnvironments, installed_version, module_packages

        if release != installed_version():
            ReleaseEnvironments().ensure(release)
        self.release = release
        self.converter = Converter(module_packages((release,))[release])

    def run(self, compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Route.run`."""
        found = self.converter.run(compiled.path, feeds, compiled.outputs, seconds=SECONDS)
        return [found[name] for name in compiled.outputs]

    def close(self) -> None:
        """See `Route.close`."""
        self.converter.close()


class RawRoute(_OnRelease):
    """The converter of a release's wheel with nothing before or after it."""

    def compile(self, model: bytes, folder: Path) -> Compiled:
        """See `Route.compile`."""
        source, out = folder / "model.onnx", folder / "model.mnn"
        source.write_bytes(model)
        log = self.converter.convert(source, out, seconds=SECONDS)
        if not out.is_file() or not out.stat().st_size:
            raise Refused("", _complaint(log))
        parsed = onnx.ModelProto.FromString(model)
        given = {item.name for item in parsed.graph.initializer}
        inputs = {item.name: _held(item.type) for item in parsed.graph.input if item.name not in given}
        return Compiled(out, inputs, [item.name for item in parsed.graph.output])


def _held(type_: onnx.TypeProto) -> np.dtype:
    """The type in which MNN's tensors hold those of an ONNX type."""
    if not type_.HasField("tensor_type"):
        raise Refused("", "an input is no tensor")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_.tensor_type.elem_type)
    if dtype.kind in "OUS":
        raise Refused("", "an input is text")
    return I32 if dtype.kind in "biu" else F32


def _complaint(log: str) -> str:
    """The line in which the converter says what it does not like."""
    found = re.search(r"These Op Not Support:\s*(.*)", log)
    if found:
        return f"not supported: {' '.join(found[1].split())}"
    lines = [line for line in log.splitlines() if re.search(r"[Ee]rror|[Ff]ail|[Cc]an't|[Nn]ot ", line)]
    return lines[-1].strip()[:200] if lines else "no file was written"


class ProductRoute(_OnRelease):
    """This compiler, as ``compile model.onnx --to mnn`` does it."""

    def __init__(self, release: str, verify: bool) -> None:
        super().__init__(release)
        self.verify: Literal["quick", "none"] = "quick" if verify else "none"

    def compile(self, model: bytes, folder: Path) -> Compiled:
        """See `Route.compile`."""
        source = folder / "model.onnx"
        source.write_bytes(model)
        return self.compile_file(source, folder)

    def compile_file(self, source: Path, folder: Path) -> Compiled:
        """See `Route.compile`; of a file, which may have others beside it."""
        from tools.compile.job import Request, compile_model

        out = folder / "compiled"
        request = Request(str(source), out, to="mnn", target=self.release, verify=self.verify, workers=1)
        try:
            signature = compile_model(request).contract.signature
        except LadingError as error:
            first = error.diagnostics[0]
            raise Refused(first.code, " ".join(first.message.split())) from error
        inputs = {port.name: F32 if port.dtype.startswith("f") else I32 for port in signature.inputs}
        return Compiled(out / MODEL, inputs, [port.name for port in signature.outputs])

    def run_named(self, compiled: Compiled, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What MNN computes of the inputs of the original, in whatever types those are."""
        return self.run(compiled, {name: as_held(feeds[name], dtype) for name, dtype in compiled.inputs.items()})


__all__ = ["Compiled", "ProductRoute", "RawRoute", "Refused", "Route"]
