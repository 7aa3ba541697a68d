"""All cases on one release, in a few processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import onnx

from ir.base.child import kept_children
from tools.conformance.cases import Case
from tools.conformance.farm import Lost, spread
from tools.conformance.judge import CRASH, Verdict, judge
from tools.conformance.operators import is_plain, operators
from tools.conformance.routes import ProductRoute, RawRoute, Route

LIMIT = 180.0
"""Seconds after which a case counts as hanging."""


class _Worker:
    """What a process keeps from case to case.

    Attributes:
        route: the way from a case to numbers.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self._children = ExitStack()
        self._children.enter_context(kept_children())


def judge_all(
    cases: Sequence[Case], known: Sequence[Case], release: str, *, raw: bool, verify: bool, workers: int
) -> Iterator[Verdict]:
    """Verdicts of cases, in the order in which they are done.

    Args:
        cases: what to judge.
        known: all cases that there are, which tell whose function body a case is.
        release: of MNN, to convert with and to run on.
        raw: use the converter of the wheel alone.
        verify: let the compiler refuse what its verification finds wrong.
        workers: processes at a time.
    """
    about = operators(known)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def start() -> Callable[[int], Verdict]:
        work = _Worker(RawRoute(release) if raw else ProductRoute(release, verify))
        return lambda number: judge(cases[number], about[cases[number].key], work.route)

    for number, found in spread(len(cases), start, workers, LIMIT):
        if isinstance(found, Lost):
            case = cases[number]
            plain = is_plain(onnx.ModelProto.FromString(case.model))
            yield Verdict(case.key, about[case.key], plain, CRASH, "", f"in the compiler: {found.how}")
        else:
            yield found


__all__ = ["LIMIT", "judge_all"]
