"""The ONNX backend test cases, and what becomes of each when it goes through the compiler.

``python -m tests.support.onnx_cases OUT.jsonl [--only TEXT] [--pipeline TEXT] [--frozen]`` runs them all in a few
worker processes, so that a crash of native code costs one case, and writes one JSON object per case. With ``--frozen``
the cases with several inputs are run once more with all inputs but the first made constants.
`tests/frontends/onnx/test_onnx_conformance.py` reads the file.

A case counts as *right* when its outputs are the expected ones within the tolerance that the case states. Each case is
run as it is and as the compiler leaves it, in onnxruntime without graph optimisation; where onnxruntime cannot run the
original, in ONNX's own reference evaluator.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tools.conformance.cases import RANDOM, Case, Missing, collect, freeze
from tools.conformance.farm import Lost, spread

LIMIT = 60.0
"""Seconds after which a case counts as hanging."""


# ---- running ----

PLAIN = frozenset("float32 float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool object".split())


def run_onnxruntime(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a model in onnxruntime, its graph as it is; inputs by position, None for one left out."""
    from ir.base.types import dtype_of_onnx
    from ir.evaluate.onnxruntime_session import Session, numpy_value, ort_value

    feeds = _feeds(model, inputs)
    types = {item.name: item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}
    arrays = [item for value in feeds.values() for item in (value if isinstance(value, list) else [value])]
    if all(array is None or array.dtype.name in PLAIN or array.dtype.kind in "US" for array in arrays) and all(
        onnx.helper.tensor_dtype_to_np_dtype(types[item.name]).name in PLAIN
        for item in model.graph.output
        if types[item.name]
    ):
        return _session(model).run(None, feeds)
    values = {name: ort_value(array, dtype_of_onnx(types[name])) for name, array in feeds.items()}
    return [numpy_value(value) for value in Session(model, 1).run(values)]


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_reference(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a model in ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, _feeds(model, inputs))


def _feeds(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, Any]:
    given = {item.name for item in model.graph.initializer} if model.ir_version < 4 else set()
    names = [item.name for item in model.graph.input if item.name not in given]
    return {name: item for name, item in zip(names, inputs, strict=False) if item is not None or len(names) == 1}


def differs(found: Sequence[Any], wanted: Sequence[Any], rtol: float, atol: float) -> str:
    """Why outputs are not the wanted ones; empty when they are."""
    if len(found) != len(wanted):
        return f"{len(found)} outputs for {len(wanted)}"
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        reason = _differ(a, b, rtol, atol)
        if reason:
            return f"output {index}: {reason}"
    return ""


def _differ(a: Any, b: Any, rtol: float, atol: float) -> str:
    if isinstance(b, list):
        return differs(a, b, rtol, atol) if isinstance(a, list) else "not a sequence"
    if a is None or b is None:
        return "" if a is b else "one is absent"
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return f"shape {list(a.shape)} for {list(b.shape)}"
    if a.dtype.kind in "OUS" or b.dtype.kind in "OUS":
        return "" if a.astype(str).tolist() == b.astype(str).tolist() else "other strings"
    if a.dtype != b.dtype:
        return f"{a.dtype} for {b.dtype}"
    if rtol == np.inf:
        return ""
    if a.dtype.name in PLAIN or a.dtype.kind == "c":
        close = np.isclose(a, b, rtol, atol, equal_nan=True)
    else:
        rtol = max(rtol, 2.0**-6) if a.dtype.name == "bfloat16" else rtol
        close = np.isclose(a.astype(np.float64), b.astype(np.float64), rtol, atol, equal_nan=True)
    return "" if bool(np.all(close)) else "other numbers"


# ---- one case ----


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        key: see `Case.key`.
        runner: ``onnxruntime`` or ``reference`` when one of them runs the original, else empty.
        right: the original gives the expected outputs.
        random: its outputs are random, so that only their types and shapes are compared.
        reason: why the case is not covered, when it is not.
        trouble: what the compiler did wrong, each with its stage; empty when nothing.
        nodes: nodes before and after the pipeline, those in subgraphs included.
    """

    key: str
    runner: str = ""
    right: bool = False
    random: bool = False
    reason: str = ""
    trouble: tuple[str, ...] = ()
    nodes: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def examine(case: Case, pipeline: str) -> Outcome:
    """Run a case before and after the compiler, and check the round trip without passes."""
    from backends.onnx.write import to_model
    from frontends.onnx.load import load
    from passes.framework.instruments import VerifyEach
    from passes.framework.manager import PassManager

    start = time.perf_counter()
    outcome = Outcome(case.key)
    trouble: list[str] = []
    model = onnx.ModelProto.FromString(case.model)
    graph = _stage("lift", trouble, lambda: load(case.model))
    if graph is not None:
        again = _stage("emit", trouble, lambda: to_model(graph))
        if again is not None:
            trouble += [f"round trip: {text}" for text in unequal(model, again)[:2]]
    before = _originals(case, model, outcome)
    if graph is not None and not any(text.startswith("emit") for text in trouble):
        count = sum(1 for _ in graph.walk())
        done = _stage("passes", trouble, lambda: PassManager(pipeline, [VerifyEach()]).run(graph))
        after = _stage("emit after", trouble, lambda: to_model(graph)) if done is not None else None
        if after is not None:
            outcome.nodes = (count, sum(1 for _ in graph.walk()))
            trouble += _checked(model, after)
            trouble += _compared(case, after, outcome, before)
    outcome.trouble = tuple(trouble)
    outcome.seconds = round(time.perf_counter() - start, 4)
    return outcome


def _stage(name: str, trouble: list[str], work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        trouble.append(f"{name}: {type(error).__name__}: {str(error)[:600]}")
        return None


def _originals(case: Case, model: onnx.ModelProto, outcome: Outcome) -> list[list[Any]]:
    """Outputs of the original for each set of inputs, by the first runner that can."""
    if not case.data:
        outcome.reason = "the case has no data"
        return []
    reasons = []
    for name, run in (("onnxruntime", run_onnxruntime), ("reference", run_reference)):
        try:
            with np.errstate(all="ignore"):
                found = [run(model, inputs) for inputs, _ in case.data]
        except Exception as error:
            reasons.append(f"{name}: {_short(error)}")
            continue
        wrong = [differs(a, b, case.rtol, case.atol) for a, (_, b) in zip(found, case.data, strict=True)]
        right = not any(wrong)
        if right or not outcome.runner:
            outcome.runner, outcome.right, kept = name, right, found
        if right:
            break
        reasons.append(f"{name}: {next(filter(None, wrong))}")
    if not outcome.runner:
        outcome.reason = "; ".join(reasons)
        return []
    if not outcome.right and RANDOM & {node.op_type for node in model.graph.node}:
        outcome.random = True
    return kept


def _short(error: Exception) -> str:
    """The first line of an error without paths, addresses and other things that vary."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^.*? : (?=[A-Z])", "", text.removeprefix("error[T220]: onnxruntime: "))
    text = re.sub(r"/[\w./-]+/(?=[\w.-]+)", "", re.sub(r"0x[0-9a-f]+", "0x", text))
    return re.sub(r"\.cc:\d+", ".cc", text)[:160]


def _checked(original: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    try:
        onnx.checker.check_model(original, full_check=True)
    except Exception:
        return []
    try:
        onnx.checker.check_model(after, full_check=True)
    except Exception as error:
        return [f"checker: {str(error)[:300]}"]
    return []


def _compared(case: Case, after: onnx.ModelProto, outcome: Outcome, before: list[list[Any]]) -> list[str]:
    if not before:
        return []
    run = {"onnxruntime": run_onnxruntime, "reference": run_reference}[outcome.runner]
    trouble = []
    for (inputs, expected), first in zip(case.data, before, strict=True):
        try:
            with np.errstate(all="ignore"):
                found = run(after, inputs)
        except Exception as error:
            return [f"{outcome.runner} after: {str(error)[:400]}"]
        wanted = expected if outcome.right else first
        reason = differs(found, wanted, np.inf if outcome.random else case.rtol, case.atol)
        if reason:
            trouble.append(f"result: {reason}")
    return trouble


# ---- round trip ----


def unequal(a: onnx.ModelProto, b: onnx.ModelProto) -> list[str]:
    """Differences between two models but for spelling: order of named things, typed and raw data, standard domain."""
    one, two = normalised(a), normalised(b)
    found: list[str] = []
    _unequal(one, two, "model", found)
    return found


def _unequal(a: Any, b: Any, place: str, found: list[str]) -> None:
    if len(found) >= 5 or a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if key not in a or key not in b:
                found.append(f"{place}.{key} is only in {'the first' if key in a else 'the second'}")
            else:
                _unequal(a[key], b[key], f"{place}.{key}", found)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _unequal(x, y, f"{place}[{index}]", found)
    else:
        found.append(f"{place}: {str(a)[:120]!r}, {str(b)[:120]!r}")


def normalised(model: onnx.ModelProto) -> dict[str, Any]:
    """A model as plain data, spelt in one way."""
    data = _message(model, ("graph", "opset_import", "functions"))
    data["opset_import"] = {_domain(item.domain): item.version for item in model.opset_import}
    data["graph"] = _graph(model.graph)
    data["functions"] = [_function(item) for item in model.functions]
    return data


def _function(proto: onnx.FunctionProto) -> dict[str, Any]:
    data = _message(proto, ("node", "value_info", "opset_import", "domain", "attribute_proto"))
    data["domain"] = _domain(proto.domain)
    data["opset_import"] = {_domain(item.domain): item.version for item in proto.opset_import}
    data["node"] = [_node(item) for item in proto.node]
    data["value_info"] = {item.name: _message(item) for item in proto.value_info}
    data["attribute_proto"] = {item.name: _attribute(item) for item in proto.attribute_proto}
    return data


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _graph(proto: onnx.GraphProto) -> dict[str, Any]:
    data = _message(proto, ("node", "initializer", "sparse_initializer", "value_info", "input", "output", "name"))
    data["name"] = proto.name or "main"
    data["node"] = [_node(item) for item in proto.node]
    data["initializer"] = {item.name: _tensor(item) for item in proto.initializer}
    for item in proto.sparse_initializer:
        data["initializer"][item.values.name] = _dense(item)
    data["input"] = [_message(item) for item in proto.input]
    data["output"] = [_message(item) for item in proto.output]
    made = {name for node in proto.node for name in node.output}
    known = {item.name for item in proto.output}
    infos = {item.name: _message(item) for item in proto.value_info if item.name in made and item.name not in known}
    data["value_info"] = {name: info for name, info in infos.items() if info.get("type")}
    return data


def _node(proto: onnx.NodeProto) -> dict[str, Any]:
    data = _message(proto, ("attribute", "domain"))
    data["domain"] = _domain(proto.domain)
    data["attribute"] = {item.name: _attribute(item) for item in proto.attribute}
    if proto.op_type == "Constant" and "sparse_value" in data["attribute"]:
        made = {"type": repr(4), "t": _dense(proto.attribute[0].sparse_tensor), "tensors": [], "graphs": []}
        data["attribute"] = {"value": made}
    return data


def _attribute(proto: onnx.AttributeProto) -> dict[str, Any]:
    data = _message(proto, ("t", "g", "tensors", "graphs", "name", "doc_string"))
    if proto.HasField("t"):
        data["t"] = _tensor(proto.t)
    if proto.HasField("g"):
        data["g"] = _graph(proto.g)
    data["tensors"] = [_tensor(item) for item in proto.tensors]
    data["graphs"] = [_graph(item) for item in proto.graphs]
    return data


def _tensor(proto: onnx.TensorProto) -> dict[str, Any]:
    if proto.data_type == onnx.TensorProto.STRING:
        contents: Any = list(proto.string_data)
    else:
        contents = numpy_helper.to_array(proto).tobytes()
    about = {"doc": proto.doc_string, "metadata": sorted((item.key, item.value) for item in proto.metadata_props)}
    return {"dims": list(proto.dims), "type": proto.data_type, "contents": contents, **about}


def _dense(proto: onnx.SparseTensorProto) -> dict[str, Any]:
    values, indices = numpy_helper.to_array(proto.values), numpy_helper.to_array(proto.indices)
    out = np.zeros(tuple(proto.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return {
        "dims": list(proto.dims),
        "type": proto.values.data_type,
        "contents": out.tobytes(),
        "doc": "",
        "metadata": [],
    }


def _message(proto: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of a message that hold something, as text; key/value pairs sorted."""
    data: dict[str, Any] = {}
    for field, value in proto.ListFields():
        if field.name in leave_out:
            continue
        if field.name in ("metadata_props", "quant_parameter_tensor_names"):
            data[field.name] = {item.key: item.value for item in value}
        elif hasattr(value, "ListFields"):
            text = _message(value)
            if text:
                data[field.name] = text
        elif isinstance(value, str | bytes | int | float):
            if value or field.name in ("i", "f", "s", "dim_value"):
                data[field.name] = repr(value)
        elif len(value):
            data[field.name] = [_message(item) if hasattr(item, "ListFields") else repr(item) for item in value]
    if proto.DESCRIPTOR.name == "Shape" or "shape" in {field.name for field, _ in proto.ListFields()}:
        data.setdefault("shape", {})
    return data


# ---- many cases ----


def run_all(cases: Sequence[Case], pipeline: str, workers: int = 2) -> Iterator[Outcome]:
    """Outcomes of all cases; a case that ends its process, or hangs, is one with that trouble."""
    for index, found in spread(len(cases), lambda: lambda number: examine(cases[number], pipeline), workers, LIMIT):
        yield Outcome(cases[index].key, trouble=(f"crash: {found.how}",)) if isinstance(found, Lost) else found


def main() -> None:
    """Run from the command line; see the module docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--pipeline", default="canonicalize")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frozen", action="store_true")
    args = parser.parse_args()
    # What the reference evaluator can do must not depend on what else is installed.
    sys.modules["PIL"] = None  # type: ignore[assignment]
    found = collect()
    cases = [case for case in found if isinstance(case, Case) and args.only in case.key]
    if args.frozen:
        cases += [made for case in cases if (made := freeze(case)) is not None]
    with open(args.out, "w") as file:
        for case in found:
            if isinstance(case, Missing) and args.only in case.key:
                file.write(json.dumps(vars(Outcome(case.key, reason=case.reason))) + "\n")
        for outcome in run_all(cases, args.pipeline, args.workers):
            file.write(json.dumps(vars(outcome)) + "\n")


if __name__ == "__main__":
    main()
