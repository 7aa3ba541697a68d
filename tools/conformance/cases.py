"""The ONNX backend test cases of the installed onnx package: models with inputs and the outputs that are expected."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "light", "real")
"""Kinds of cases, as onnx names them; `real` ones come without their models."""
RANDOM = frozenset(
    "Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
"""Operators whose results no two runtimes share."""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        kind: one of `KINDS`, or ``frozen-`` and one of them.
        name: its name in the onnx package.
        model: the ONNX file.
        data: inputs and expected outputs by position, each a pair of lists: arrays, lists of arrays, or None.
        rtol: relative tolerance that the case states.
        atol: absolute tolerance that the case states.
    """

    kind: str
    name: str
    model: bytes
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Missing:
    """A case whose model or data is not in the onnx package."""

    kind: str
    name: str
    reason: str

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.kind}/{self.name}"


def collect() -> list[Case | Missing]:
    """Every case of the installed onnx package, by kind and name."""
    from onnx.backend.test import loader

    found: list[Case | Missing] = []
    for kind in KINDS[:4]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            tests = loader.load_model_tests(kind=kind)
        for test in sorted(tests, key=lambda test: test.name):
            found.append(_memory_case(test) if test.model is not None else _folder_case(test))
    return found + list(_light_cases(Path(loader.DATA_DIR)))


def _memory_case(test: Any) -> Case:
    data = [([_plain(x) for x in inputs], [_plain(x) for x in outputs]) for inputs, outputs in test.data_sets]
    return Case(test.kind, test.name, test.model.SerializeToString(), data, test.rtol, test.atol)


def _plain(item: Any) -> Any:
    """Arrays, lists of arrays or None, from whatever the generators give."""
    if isinstance(item, onnx.TensorProto):
        return numpy_helper.to_array(item)
    if isinstance(item, list | tuple):
        return [_plain(x) for x in item]
    return item if item is None else np.asarray(item)


def _folder_case(test: Any) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load_model(folder / "model.onnx")
    types = {item.name: item.type for item in (*model.graph.input, *model.graph.output)}
    given = {item.name for item in model.graph.initializer} if model.ir_version < 4 else set()
    inputs = [item.name for item in model.graph.input if item.name not in given]
    outputs = [item.name for item in model.graph.output]
    data = []
    for place in sorted(folder.glob("test_data_set_*")):
        # Inputs with a default come last and have no file.
        read = [_read_all(place, "input", inputs, types), _read_all(place, "output", outputs, types)]
        data.append((read[0], read[1]))
    return Case(test.kind, test.name, (folder / "model.onnx").read_bytes(), data, test.rtol, test.atol)


def _read_all(place: Path, what: str, names: list[str], types: dict[str, onnx.TypeProto]) -> list[Any]:
    paths = [(place / f"{what}_{index}.pb", types[name]) for index, name in enumerate(names)]
    return [_read(path, type_) for path, type_ in paths if path.exists()]


def _read(path: Path, type_: onnx.TypeProto) -> Any:
    kind = type_.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(path.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def _light_cases(folder: Path) -> Iterator[Case | Missing]:
    """Whole networks without their weights: the package has the models and the outputs for an input of ones."""
    for path in sorted((folder / "real").iterdir()):
        data = json.loads((path / "data.json").read_text())
        light = folder / "light" / Path(data["url"]).name
        if not light.is_file():
            yield Missing("real", path.name, "the model is not in the onnx package")
            continue
        model = onnx.load_model(light)
        given = {item.name for item in model.graph.initializer}
        inputs = [_ones(item) for item in model.graph.input if item.name not in given]
        outputs = [
            numpy_helper.to_array(onnx.load_tensor(light.with_name(f"{light.stem}_output_{index}.pb")))
            for index in range(len(model.graph.output))
        ]
        yield Case("light", light.stem, light.read_bytes(), [(inputs, outputs)], data["rtol"], data["atol"])


def _ones(info: onnx.ValueInfoProto) -> np.ndarray:
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    return np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


def freeze(case: Case) -> Case | None:
    """The case with all inputs but the first made constants; None when that is no other case or cannot be done."""
    model = onnx.ModelProto.FromString(case.model)
    given = {item.name for item in model.graph.initializer}
    free = [item for item in model.graph.input if model.ir_version >= 4 or item.name not in given]
    if len(case.data) != 1 or len(free) < 2 or len(case.data[0][0]) != len(free):
        return None
    inputs, outputs = case.data[0]
    for info, value in list(zip(free, inputs, strict=True))[1:]:
        if not isinstance(value, np.ndarray):
            return None
        value = value.astype(object) if value.dtype.kind in "US" else value
        proto = numpy_helper.from_array(value, info.name)
        if proto.data_type != info.type.tensor_type.elem_type:
            return None
        model.graph.initializer.append(proto)
        if model.ir_version >= 4:
            model.graph.input.remove(info)
    return replace(case, kind=f"frozen-{case.kind}", model=model.SerializeToString(), data=[(inputs[:1], outputs)])
