"""Where the kernels of onnxruntime run: in this process for graphs that the program built, else in a child.

onnxruntime computes what it is told to. An integer division by zero, or of the smallest number by -1, ends its process;
some damaged models make it abort; a loop may go on for ever. So what comes from a file runs in a child with limits of
memory and time, one for the whole process, started when it is first needed (a third of a second).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ir.base.child import Child, ChildFailed, machine_memory
from ir.base.diag import LadingError
from ir.base.types import DTYPES, DType, dtype_of_numpy, dtype_of_onnx
from ir.evaluate.onnxruntime_session import FileSession, Free, Session, holds_tensor, numpy_value, ort_value
from ir.evaluate.onnxruntime_session import run_file as run_file_here

if TYPE_CHECKING:
    import onnx

    from ir.graph.graph import Graph

SECONDS = 300.0
"""Time that a request to the child has in any case."""
SECONDS_PER_BYTE = 2e-6
"""Time that it has for each byte that it reads besides."""
LEAST_MEMORY = 4 << 30
"""Address space of the child on machines that have less memory."""


class ChildDied(LadingError):
    """The child crashed, which one of the nodes that it ran is to blame for."""


class OpenModel(Protocol):
    """A loaded model."""

    def run(self, feeds: dict[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """Outputs for feeds, both as the kernels hold values; LadingError T220, T280."""


class Kernels(Protocol):
    """A place where models run."""

    def value(self, array: np.ndarray, dtype: DType) -> Any:
        """An array as the kernels hold it."""

    def array(self, value: Any, dtype: DType | None = None) -> np.ndarray:
        """The array of what the kernels hold; see `numpy_value`."""

    def open(self, model: onnx.ModelProto, threads: int | None, where: str) -> OpenModel:
        """Load a model; LadingError T220, T280."""


class OwnProcess:
    """The kernels in this process."""

    def value(self, array: np.ndarray, dtype: DType) -> Any:
        """An ``OrtValue``."""
        return ort_value(array, dtype)

    def array(self, value: Any, dtype: DType | None = None) -> np.ndarray:
        """The array of an ``OrtValue``."""
        return numpy_value(value, dtype)

    def open(self, model: onnx.ModelProto, threads: int | None, where: str) -> OpenModel:
        """A session."""
        return Session(model, threads, where)


# ---- in a child ----


class ChildValue:
    """A value that the child holds until this goes."""

    def __init__(self, kernels: ChildKernels, number: int, nbytes: int, kind: str, element: int | None) -> None:
        self._kernels = kernels
        self.number = number
        self.nbytes = nbytes
        self._kind = kind
        self._element = element
        self.generation = kernels.generation

    def __del__(self) -> None:
        self._kernels.forget(self.number)

    def is_tensor(self) -> bool:
        """As ``OrtValue.is_tensor``."""
        return self._element is not None

    def has_value(self) -> bool:
        """As ``OrtValue.has_value``; an empty optional is no tensor here."""
        return True

    def data_type(self) -> str:
        """As ``OrtValue.data_type``."""
        return self._kind

    def element_type(self) -> int:
        """As ``OrtValue.element_type``."""
        assert self._element is not None
        return self._element


class ChildModel:
    """A model that the child has loaded, until this goes."""

    def __init__(self, kernels: ChildKernels, number: int, names: list[str], nbytes: int, where: str) -> None:
        self._kernels = kernels
        self._number = number
        self._nbytes = nbytes
        self._where = where
        self.outputs = names
        self._generation = kernels.generation

    def __del__(self) -> None:
        self._kernels.forget(self._number)

    def run(self, feeds: dict[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """See `OpenModel.run`."""
        kernels = self._kernels
        if (
            any(held.generation != kernels.generation for held in feeds.values())
            or self._generation != kernels.generation
        ):
            raise _dead(ChildFailed("has ended meanwhile"), self._where)
        names = list(outputs or self.outputs)
        numbers = [kernels.fresh() for _ in names]
        request = {
            "do": "run",
            "model": self._number,
            "feeds": {name: held.number for name, held in feeds.items()},
            "outputs": names,
            "numbers": numbers,
        }
        nbytes = self._nbytes + sum(held.nbytes for held in feeds.values())
        answer, _ = kernels.ask(request, where=self._where, nbytes=nbytes)
        return [ChildValue(kernels, number, *found) for number, found in zip(numbers, answer["found"], strict=True)]


class ChildKernels:
    """The kernels in a child process."""

    def __init__(self) -> None:
        memory = machine_memory()
        self._child = Child(f"{__name__}:serve", memory and max(memory, LEAST_MEMORY))
        self._numbers = count(1)
        self._dropped: list[int] = []

    @property
    def generation(self) -> int:
        """How many children there were."""
        return self._child.generation

    @property
    def lives(self) -> bool:
        """The child has been started and has not ended since, as far as is known."""
        return self._child.pid is not None

    def fresh(self) -> int:
        """A number for something that the child is to hold."""
        return next(self._numbers)

    def forget(self, number: int) -> None:
        """Let the child drop what it holds, with the next request."""
        self._dropped.append(number)

    def ask(
        self, request: dict[str, Any], buffers: Sequence[Any] = (), *, where: str = "", nbytes: int = 0
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """The child's answer; LadingError T280 when there is none."""
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        try:
            seconds = SECONDS + SECONDS_PER_BYTE * nbytes
            return self._child.ask({**request, "drop": dropped}, buffers, seconds=seconds)
        except ChildFailed as error:
            raise _dead(error, where) from error

    def value(self, array: np.ndarray, dtype: DType) -> ChildValue:
        """See `Kernels.value`."""
        if dtype.kind == "s":
            raise LadingError(
                "T225", f"{dtype} arrays cannot be passed to onnxruntime", hint="make the array a constant"
            )
        number, packed = self.fresh(), np.ascontiguousarray(array, dtype.numpy)
        request = {"do": "value", "number": number, "dtype": dtype.name, "shape": array.shape}
        answer, _ = self.ask(request, [packed.reshape(-1).view(np.uint8)], nbytes=packed.nbytes)
        return ChildValue(self, number, *answer["found"])

    def array(self, value: Any, dtype: DType | None = None) -> np.ndarray:
        """See `Kernels.array`."""
        if not value.is_tensor():
            raise LadingError("T225", f"{value.data_type()} is not a tensor and cannot be returned")
        if value.generation != self.generation:
            raise _dead(ChildFailed("has ended meanwhile"), "")
        name = dtype.name if dtype is not None else dtype_of_onnx(value.element_type()).name
        answer, buffers = self.ask({"do": "array", "number": value.number, "dtype": name}, nbytes=value.nbytes)
        return _rebuilt(answer, buffers)

    def open(self, model: onnx.ModelProto, threads: int | None, where: str) -> ChildModel:
        """See `Kernels.open`."""
        data, number = model.SerializeToString(), self.fresh()
        request = {"do": "open", "number": number, "threads": threads, "where": where}
        answer, _ = self.ask(request, [data], where=where, nbytes=len(data))
        return ChildModel(self, number, answer["outputs"], len(data), where)

    def run_file(
        self,
        path: Path,
        feeds: Sequence[Mapping[str, np.ndarray]],
        *,
        optimized: bool,
        free: Free | None,
        outputs: Sequence[str] | None,
        fine: bool,
    ) -> list[dict[str, np.ndarray]]:
        """See `run_file`."""
        given, buffers = packed(feeds)
        request = {
            "do": "file", "path": str(path.absolute()), "optimized": optimized, "feeds": given, "free": dict(free or {}),
            "outputs": None if outputs is None else list(outputs), "fine": fine,
        }  # fmt: skip
        nbytes = sum(item.stat().st_size for item in path.parent.iterdir() if item.is_file()) * max(1, len(feeds))
        answer, found = self.ask(request, buffers, where=str(path), nbytes=nbytes)
        return unpacked(answer, found)


class OpenFile:
    """A model file that the child has loaded, until this goes; it is loaded again when the child has died since.

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
        with _STARTING:
            self._kernels = _child_kernels()
        self._path = path.absolute()
        self._about = {"optimized": optimized, "free": dict(free or {}), "exposed": list(exposed), "fine": fine}
        self._nbytes = sum(item.stat().st_size for item in path.parent.iterdir() if item.is_file())
        self._number = self._generation = -1
        self.outputs = self._load()

    def __del__(self) -> None:
        if getattr(self, "_number", -1) >= 0:
            self._kernels.forget(self._number)

    def _load(self) -> list[str]:
        number = self._kernels.fresh()
        request = {"do": "open_file", "number": number, "path": str(self._path), **self._about}
        answer, _ = self._kernels.ask(request, where=str(self._path), nbytes=self._nbytes)
        self._number, self._generation = number, self._kernels.generation
        return answer["outputs"]

    def run(self, feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The wanted outputs for one set of feeds."""
        if self._generation != self._kernels.generation or not self._kernels.lives:
            self._load()
        given, buffers = packed([feed])
        request = {
            "do": "run_open", "model": self._number, "feeds": given, "outputs": None if outputs is None else [*outputs],
        }  # fmt: skip
        answer, found = self._kernels.ask(request, buffers, where=str(self._path), nbytes=self._nbytes)
        return unpacked(answer, found)[0]


def packed(feeds: Sequence[Mapping[str, np.ndarray]]) -> tuple[list[list[Any]], list[Any]]:
    """Feeds as JSON and bytes."""
    given: list[list[Any]] = []
    buffers: list[Any] = []
    for feed in feeds:
        given.append([])
        for name, array in feed.items():
            given[-1].append([name, dtype_of_numpy(array.dtype).name, array.shape])
            buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return given, buffers


def unpacked(answer: Mapping[str, Any], buffers: Sequence[bytearray]) -> list[dict[str, np.ndarray]]:
    """What a file gave for each set of feeds."""
    parts = iter(buffers)
    return [
        {name: _rebuilt(about, [] if "strings" in about else [next(parts)]) for name, about in one}
        for one in answer["found"]
    ]


def _dead(error: ChildFailed, where: str) -> LadingError:
    hint = {
        "late": "the graph may compute without end, or more than this machine can do",
        "memory": "give smaller sizes, or a machine with more memory",
        "died": "integer divisions by zero, and damaged models, do that",
    }.get(error.kind, "")
    place = "\n".join(part for part in (where, *error.detail.splitlines()[-3:]) if part)
    kind = ChildDied if error.kind == "died" else LadingError
    return kind("T280", f"the process that computes the graph with onnxruntime {error.how}", place, hint)


def _described(array: np.ndarray) -> tuple[dict[str, Any], list[Any]]:
    """An array as JSON and bytes."""
    if array.dtype == object or array.dtype.kind in "US":
        items = [
            item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item) for item in array.flat
        ]
        return {"strings": items, "shape": array.shape}, []
    packed = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {"dtype": dtype_of_numpy(array.dtype).name, "shape": array.shape}, [packed]


def _rebuilt(answer: Mapping[str, Any], buffers: Sequence[bytearray]) -> np.ndarray:
    if "strings" in answer:
        found = np.empty(len(answer["strings"]), object)
        found[:] = answer["strings"]
        return found.reshape(answer["shape"])
    try:
        return np.frombuffer(buffers[0], DTYPES[answer["dtype"]].numpy).reshape(answer["shape"])
    except ValueError as error:
        raise LadingError("T225", f"no array can have the shape {answer['shape']}: {error}") from error


# ---- which ----


@cache
def _child_kernels() -> ChildKernels:
    return ChildKernels()


_HERE = OwnProcess()
_STARTING = threading.Lock()


def kernels_for(graph: Graph) -> Kernels:
    """Where a graph is to be computed: a child for one that was read from a file."""
    if not graph.foreign:
        return _HERE
    with _STARTING:
        return _child_kernels()


def run_file(
    path: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    optimized: bool,
    foreign: bool,
    free: Free | None = None,
    outputs: Sequence[str] | None = None,
    fine: bool = False,
) -> list[dict[str, np.ndarray]]:
    """What a model file gives for feeds, with its own data files.

    Args:
        path: the file.
        feeds: inputs by name.
        optimized: run it as an application does by default, which fuses operators and rounds what is multiplied by
            stored integers; else compute what the file says.
        foreign: the file, or the graph that it was written from, came from elsewhere: run it in a child.
        free: tensors that the file reads and never makes; they become inputs.
        outputs: names of the wanted outputs; None for all.
        fine: compute sigmoids to the precision of their own size, where onnxruntime's are up to 1.7e-7 off.

    Raises:
        LadingError: T220 with onnxruntime's message, T280 the child did not survive it.
    """
    if not foreign:
        return run_file_here(path, feeds, optimized=optimized, free=free, outputs=outputs, fine=fine)
    with _STARTING:
        kernels = _child_kernels()
    return kernels.run_file(path, feeds, optimized=optimized, free=free, outputs=outputs, fine=fine)


# ---- the child's side ----


class _Server:
    """Holds values and models by number, and works on them."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def __call__(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        for number in request["drop"]:
            self.held.pop(number, None)
        return getattr(self, f"do_{request['do']}")(request, buffers)

    def do_value(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        dtype = DTYPES[request["dtype"]]
        array = np.frombuffer(buffers[0], dtype.numpy).reshape(request["shape"])
        made = ort_value(array, dtype)
        # A value does not keep the memory of its array alive.
        self.held[request["number"]] = (made, array)
        return {"found": _about(made)}, ()

    def do_array(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        return _described(numpy_value(self.held[request["number"]][0], DTYPES[request["dtype"]]))

    def do_open(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        session = Session(bytes(buffers[0]), request["threads"], request["where"])
        self.held[request["number"]] = session
        return {"outputs": session.outputs}, ()

    def do_run(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        feeds = {name: self.held[number][0] for name, number in request["feeds"].items()}
        results = self.held[request["model"]].run(feeds, request["outputs"])
        self.held.update((number, (value, None)) for number, value in zip(request["numbers"], results, strict=True))
        return {"found": [_about(value) for value in results]}, ()

    def do_file(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        about = {"optimized": request["optimized"], "free": _free(request), "fine": request["fine"]}
        session = FileSession(Path(request["path"]), **about)
        return given_back(session.run(feed, request["outputs"]) for feed in feeds_of(request, buffers))

    def do_open_file(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        about = {name: request[name] for name in ("optimized", "exposed", "fine")} | {"free": _free(request)}
        session = FileSession(Path(request["path"]), **about)
        self.held[request["number"]] = session
        return {"outputs": session.outputs}, ()

    def do_run_open(self, request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        session = self.held[request["model"]]
        return given_back(session.run(feed, request["outputs"]) for feed in feeds_of(request, buffers))


def _free(request: Mapping[str, Any]) -> Free:
    return {name: (dtype, rank) for name, (dtype, rank) in request["free"].items()}


def feeds_of(request: Mapping[str, Any], buffers: Sequence[bytearray]) -> list[dict[str, np.ndarray]]:
    """Inverse of `packed`, for a request that holds its JSON."""
    parts = iter(buffers)
    return [
        {name: np.frombuffer(next(parts), DTYPES[dtype].numpy).reshape(shape) for name, dtype, shape in one}
        for one in request["feeds"]
    ]


def given_back(results: Iterable[Mapping[str, np.ndarray]]) -> tuple[dict[str, Any], Sequence[Any]]:
    """What a file gave for each set of feeds as JSON and bytes."""
    found: list[list[Any]] = []
    sent: list[Any] = []
    for one in results:
        found.append([])
        for name, array in one.items():
            about, data = _described(array)
            found[-1].append([name, about])
            sent += data
    return {"found": found}, sent


def _about(value: Any) -> tuple[int, str, int | None]:
    """Bytes, kind, and element type (None for what is no tensor) of an ``OrtValue``."""
    if not holds_tensor(value):
        return 0, value.data_type() if value.has_value() else "an empty optional", None
    size = value.tensor_size_in_bytes() if value.data_type() != "tensor(string)" else 0
    return size, value.data_type(), value.element_type()


def serve() -> _Server:
    """What answers in the child; see `ir.base.child`."""
    return _Server()


__all__ = [
    "ChildDied", "Kernels", "OpenFile", "OpenModel", "feeds_of", "given_back", "kernels_for", "packed", "run_file",
    "unpacked",
]  # fmt: skip
