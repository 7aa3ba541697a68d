"""onnxruntime as a library of kernels: sessions without graph optimisation, and values of every element type.

Optimisation is off because it folds constants (which doubles the memory of weights) and fuses operators, and the point
of an evaluation is what the graph says. Functions are still inlined.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import DTYPES, DType, dtype_of_numpy, dtype_of_onnx
from ir.onnx.export import onnx_bytes, onnx_dtype
from ir.quant.weight import quantized_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import transposed

if TYPE_CHECKING:
    import onnx

PLAIN = frozenset({"f32", "f64", "f16", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool", "c64", "c128"})
"""Element types that onnxruntime passes as numpy arrays; the others go by their bytes."""

Free = Mapping[str, tuple[str, int]]
"""Name of the element type, and number of axes, of tensors by name."""


@cache
def _library() -> Any:
    import onnxruntime

    return onnxruntime


@cache
def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ["EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoadCanceled"]
    names += ["NoModel", "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException"]
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError, ValueError)


def run_file(
    path: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    optimized: bool,
    free: Free | None = None,
    outputs: Sequence[str] | None = None,
    fine: bool = False,
) -> list[dict[str, np.ndarray]]:
    """What a model file gives for feeds, with its own data files.

    Args:
        path: the file.
        feeds: inputs by name.
        optimized: run it as an application does by default, which fuses operators and rounds what is multiplied by
            stored integers; else compute what the file says, in single precision where it allows less.
        free: tensors that the file reads and never makes; they become inputs.
        outputs: names of the wanted outputs; None for all.
        fine: compute sigmoids to the precision of their own size; see `_fine_sigmoid`.

    Raises:
        LadingError: T220 with onnxruntime's message.
    """
    session = FileSession(path, optimized=optimized, free=free, fine=fine)
    return [session.run(feed, outputs) for feed in feeds]


class FileSession:
    """A loaded model file, to be run more than once.

    Further values of its own may be named that it shall give; other arguments and errors are those of `run_file`.
    """

    def __init__(
        self,
        path: Path,
        *,
        optimized: bool,
        free: Free | None = None,
        exposed: Sequence[str] = (),
        fine: bool = False,
    ) -> None:
        runtime = _library()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        if not optimized:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._where = str(path)
        try:
            model: str | bytes = str(path)
            exact, fine = not optimized and _holds(path, ACCURACY.encode()), fine and _holds(path, SIGMOID.encode())
            if free or exposed or exact or fine:
                model = _altered(path, free or {}, exposed, exact=exact, fine=fine)
                key = "session.model_external_initializers_file_folder_path"
                options.add_session_config_entry(key, str(path.parent))
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._inputs = {item.name for item in self._session.get_inputs()}
            self.outputs = [item.name for item in self._session.get_outputs()]
        except _failures() as error:
            raise _refused(error, str(path)) from error

    def run(self, feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The wanted outputs for one set of feeds; what the file has no input for is left out."""
        names = [name for name in self.outputs if outputs is None or name in outputs]
        try:
            given = {
                name: ort_value(array, dtype_of_numpy(array.dtype))
                for name, array in feed.items()
                if name in self._inputs
            }
            values = self._session.run_with_ort_values(names, given)
            results = {name: numpy_value(value) for name, value in zip(names, values, strict=True)}
            # An input that is an output as well is the memory that was fed.
            return {name: array.copy() if name in given else array for name, array in results.items()}
        except _failures() as error:
            raise _refused(error, self._where) from error


ACCURACY, SINGLE = "accuracy_level", 1
"""The attribute by which products with stored integers may round what is multiplied, and its value for floats."""
SIGMOID = "Sigmoid"


def _holds(path: Path, text: bytes) -> bool:
    """True when a file holds a piece of text."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text) >= 0
    except (OSError, ValueError):
        return False


def _altered(path: Path, free: Free, exposed: Sequence[str], *, exact: bool, fine: bool) -> bytes:
    """The model of a file with further inputs and outputs, weights in files of their own left there.

    With `exact` no product may round its operands; with `fine` sigmoids are written as `_fine_sigmoid` does.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # The library lets through whatever its parser raises.
        raise _refused(error, str(path)) from error
    for name, (dtype, rank) in free.items():
        shape = [f"{name}.{axis}" for axis in range(rank)]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx_dtype(DTYPES[dtype]), shape))
    known = {item.name for item in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed if name not in known)
    waiting = [model.graph] if exact or fine else []
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            for item in node.attribute:
                waiting += [*item.graphs, *([item.g] if item.HasField("g") else [])]
                if exact and item.name == ACCURACY and item.i > SINGLE:
                    item.i = SINGLE
        if fine and any(_is_sigmoid(node) for node in graph.node):
            nodes = [part for node in graph.node for part in (_fine_sigmoid(node) if _is_sigmoid(node) else [node])]
            del graph.node[:]
            graph.node.extend(nodes)
    return model.SerializeToString()


def _is_sigmoid(node: onnx.NodeProto) -> bool:
    return node.op_type == SIGMOID and node.domain in ("", "ai.onnx")


def _fine_sigmoid(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A sigmoid as ``exp(-softplus(-x))``, which is the same number in any element type.

    onnxruntime's kernel for ``Sigmoid`` adds 0.5 to an odd function: for single precision its results are multiples of 2^-25
    and up to 1.7e-7 off, whatever their size, so that of those below 1e-7 nothing is right. Of networks that
    find something in few places of an image, nearly all outputs are as small. This form is off by at most 6e-7 of each
    result down to 1e-36, and by 1e-7 in all.
    """
    import onnx

    (source,), (result,) = node.input, node.output
    chain = [("Neg", "negative"), ("Softplus", "softplus"), ("Neg", "logarithm"), ("Exp", "")]
    found, last = [], source
    for op, name in chain:
        out = f"{result}/fine/{name}" if name else result
        found.append(onnx.helper.make_node(op, [last], [out], name=node.name if not name else ""))
        last = out
    return found


class Session:
    """One loaded model."""

    def __init__(self, model: onnx.ModelProto | bytes, threads: int | None = None, where: str = "") -> None:
        """Load a model, or what one is as bytes; `where` says in errors which part of a graph it is.

        Raises:
            LadingError: T220 with onnxruntime's message.
        """
        runtime = _library()
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        # Without arenas freed memory goes back to the system, so a segment's peak does not outlive it.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # Model order. The default order computes every weight before the first one is used.
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
        # Idle threads of one segment must not keep the processor from the next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads:
            options.intra_op_num_threads = threads
        self._where = where
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.outputs = [item.name for item in self._session.get_outputs()]
        except _failures() as error:
            raise _refused(error, where) from error

    def run(self, feeds: dict[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """Outputs as ``OrtValue`` for feeds given as ``OrtValue``.

        Raises:
            LadingError: T220 with onnxruntime's message.
        """
        try:
            return self._session.run_with_ort_values(list(outputs or self.outputs), feeds)
        except _failures() as error:
            raise _refused(error, self._where) from error


def _refused(error: Exception, where: str) -> LadingError:
    return LadingError("T220", f"onnxruntime: {str(error).strip()}", where=where)


@cache
def _trim() -> Any:
    import ctypes

    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def give_memory_back() -> None:
    """Return freed heap pages to the system, which the C library otherwise keeps between large arrays."""
    trim = _trim()
    if trim is not None:
        trim(0)


def ort_value(array: np.ndarray, dtype: DType) -> Any:
    """An ``OrtValue`` over the memory of an array, which is copied only if it is not contiguous or packed.

    Raises:
        LadingError: T225 the element type cannot be passed.
    """
    library = _library().OrtValue
    if dtype.name in PLAIN:
        return library.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    code = onnx_dtype(dtype)
    stored = dtype_of_onnx(code)
    if stored.kind == "s" or stored.name in ("c64", "c128"):
        raise LadingError("T225", f"{dtype} arrays cannot be passed to onnxruntime", hint="make the array a constant")
    if stored.name in PLAIN:
        return library.ortvalue_from_numpy(np.ascontiguousarray(array.astype(stored.numpy)))
    if stored.bits >= 8:
        raw = np.ascontiguousarray(array).view(np.uint16 if stored.bits == 16 else np.uint8)
        return library.ortvalue_from_numpy_with_onnx_type(raw.reshape(array.shape), code)
    # Two elements to a byte in an array of the logical shape; what lies behind the packed bytes is never touched.
    packed = np.frombuffer(onnx_bytes(array, dtype), np.uint8)
    # Pages of a mapping come one by one, those of a large numpy array by 2 MiB.
    room = np.frombuffer(mmap.mmap(-1, max(array.size, 1)), np.uint8)[: array.size].reshape(array.shape)
    room.reshape(-1)[: packed.size] = packed
    return library.ortvalue_from_numpy_with_onnx_type(room, code)


def constant_values(
    tensors: Iterable[Tensor], wrap: Callable[[np.ndarray, DType], Any] = ort_value
) -> dict[Tensor, Any]:
    """``OrtValue``, or what else `wrap` makes, with the contents of each tensor.

    Codes, scales and zeros of one weight are quantized together.
    """
    given = list(tensors)
    groups: dict[int, list[Tensor]] = {}
    for tensor in given:
        recipe = quantized_of(stored_form(tensor))
        if recipe is not None:
            groups.setdefault(id(recipe), []).append(tensor)
    found: dict[Tensor, Any] = {}
    for tensor in given:
        if tensor in found:
            continue
        recipe = quantized_of(stored_form(tensor))
        group = groups.get(id(recipe), [])
        if recipe is None or len(group) < 2:
            found[tensor] = wrap(load_constant(tensor), tensor.type.dtype)
            continue
        blocks = recipe.rows(0, recipe.shape[0])
        for part in group:
            array = getattr(blocks, _PARTS[stored_form(part).recipe()[0]]).astype(part.type.dtype.numpy, copy=False)
            found[part] = wrap(array if stored_form(part) is part else array.T, part.type.dtype)
    return found


_PARTS = {"quantized_codes": "codes", "quantized_scale": "scale", "quantized_zero_point": "zero"}


def stored_form(tensor: Tensor) -> Tensor:
    """The matrix that is stored: of a transpose what is transposed, else the tensor itself."""
    return transposed(tensor) if tensor.recipe()[0] == "transposed" else tensor


def load_constant(tensor: Tensor) -> np.ndarray:
    """The whole array; the transpose of a stored matrix is read in one pass over that matrix."""
    stored = stored_form(tensor)
    if stored is tensor:
        return tensor.load()
    out = np.empty(tensor.shape, tensor.type.dtype.numpy)
    for start, stop, rows in stored.pieces():
        out[:, start:stop] = rows.T
    return out


def holds_tensor(value: Any) -> bool:
    """Whether an ``OrtValue`` may be asked for the element type of its tensor.

    An empty optional calls itself a tensor, and onnxruntime follows a null pointer when it is asked for its type.
    """
    return value.has_value() and value.is_tensor()


def numpy_value(value: Any, dtype: DType | None = None) -> np.ndarray:
    """The array of an ``OrtValue``; `dtype` is the IR's element type where it says more than onnxruntime's.

    Raises:
        LadingError: T225 the value is not a tensor.
    """
    if not holds_tensor(value):
        raise LadingError("T225", "a sequence, a map or an optional is no tensor and cannot be returned")
    if value.data_type() == "tensor(string)":
        return np.asarray(value.numpy())
    stored = dtype_of_onnx(value.element_type())
    array = value.numpy() if stored.name in PLAIN else _converted(value, stored)
    wanted = dtype.numpy if dtype is not None else stored.numpy
    return array if array.dtype == wanted else array.astype(wanted)


def _converted(value: Any, stored: DType) -> np.ndarray:
    (result,) = _cast_session(stored.onnx).run({"x": value})
    return result.numpy().astype(stored.numpy)


@cache
def _cast_session(code: int) -> Session:
    """A session that turns an element type numpy lacks into the next one that holds every value."""
    from onnx import TensorProto, helper

    stored = dtype_of_onnx(code)
    wide = TensorProto.FLOAT if stored.is_float else TensorProto.INT8 if stored.kind == "i" else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=wide)],
        "cast",
        [helper.make_tensor_value_info("x", code, None)],
        [helper.make_tensor_value_info("y", wide, None)],
    )
    return Session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), 1)


__all__ = [
    "FileSession", "Free", "Session", "constant_values", "give_memory_back", "load_constant", "numpy_value", "ort_value",
    "run_file", "stored_form",
]  # fmt: skip
