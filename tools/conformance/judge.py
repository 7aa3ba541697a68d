"""What becomes of a case on the way through the compiler to MNN."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from ir.base.child import ChildFailed
from ir.base.scratch import scratch_folder
from tools.conformance.cases import RANDOM, Case
from tools.conformance.compare import differs, same_shapes
from tools.conformance.held import Unfit, as_held
from tools.conformance.operators import is_plain, walk
from tools.conformance.routes import Compiled, Refused, Route

RIGHT, REFUSED, UNJUDGED, WRONG, FAILS, CRASH = "right", "refused", "unjudged", "wrong", "fails", "crash"
STATUSES = {
    RIGHT: "computes what the case expects",
    REFUSED: "no model was made, or the input does not fit its types, for a stated reason",
    UNJUDGED: "there is nothing to compare: sequences, text, random numbers",
    WRONG: "other numbers or another shape",
    FAILS: "a model was made that does not load or run",
    CRASH: "a process died or did not end",
}
"""What may become of a case."""


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        key: see `Case.key`.
        operator: what it tests.
        plain: its inputs and outputs are of float32, int32, int64 or bool.
        status: one of `STATUSES`.
        code: of the refusal; empty for the converter of a wheel, which has none.
        reason: why it is not right.
        seconds: time that it took.
    """

    key: str
    operator: str
    plain: bool
    status: str
    code: str = ""
    reason: str = ""
    seconds: float = 0.0


def judge(case: Case, operator: str, route: Route) -> Verdict:
    """Compile a case, run it with its inputs, compare with its outputs."""
    start = time.perf_counter()
    model = onnx.ModelProto.FromString(case.model)
    verdict = Verdict(case.key, operator, is_plain(model), RIGHT)
    status, code, reason = _judged(case, model, route)
    seconds = round(time.perf_counter() - start, 3)
    return replace(verdict, status=status, code=code, reason=reason, seconds=seconds)


def _judged(case: Case, model: onnx.ModelProto, route: Route) -> tuple[str, str, str]:
    """Status, code, reason."""
    with scratch_folder() as folder:
        try:
            compiled = route.compile(case.model, folder)
        except Refused as error:
            return REFUSED, error.code, error.reason
        except ChildFailed as error:
            return CRASH, "", f"in the conversion: {_brief(error)}"
        except Exception as error:
            return CRASH, "", f"in the compiler: {type(error).__name__}: {str(error)[:300]}"
        if not case.data:
            return UNJUDGED, "", "the case has no data"
        for inputs, wanted in case.data:
            found = _one(compiled, inputs, wanted, route, model)
            if found[0] != RIGHT:
                return found
    return RIGHT, "", ""


def _one(
    compiled: Compiled, inputs: Sequence[Any], wanted: Sequence[Any], route: Route, model: onnx.ModelProto
) -> tuple[str, str, str]:
    if any(item is None or isinstance(item, list) or np.asarray(item).dtype.kind in "OUS" for item in wanted):
        return UNJUDGED, "", "an output is no tensor of numbers"
    try:
        feeds = _feeds(compiled.inputs, inputs)
    except Unfit as error:
        return REFUSED, "feed", str(error)
    try:
        with np.errstate(all="ignore"):
            found = route.run(compiled, feeds)
            reason = differs(found, wanted)
    except ChildFailed as error:
        return (FAILS if error.kind == "raised" else CRASH), "", f"in the run: {_brief(error)}"
    if not reason:
        return RIGHT, "", ""
    if same_shapes(found, wanted) and RANDOM & {node.op_type for node in walk(model.graph)}:
        return UNJUDGED, "", "random numbers"
    return WRONG, "", reason


def _feeds(types: Mapping[str, np.dtype], inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """Inputs by name as MNN holds them; those that a case leaves out are left out."""
    feeds = {}
    for (name, dtype), value in zip(types.items(), inputs, strict=False):
        if isinstance(value, list):
            raise Unfit("a sequence is no tensor")
        if value is not None:
            feeds[name] = as_held(np.asarray(value), dtype)
    return feeds


def _brief(error: ChildFailed) -> str:
    last = error.detail.strip().splitlines()[-1:] if error.kind == "raised" else []
    return ": ".join([error.how, *last])[:300]


__all__ = ["STATUSES", "Verdict", "judge"]
