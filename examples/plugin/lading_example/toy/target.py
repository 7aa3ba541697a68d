"""What the toy runtime is like: passes ask a `Target`, and the contract takes the words of its calling convention."""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.diag import LadingError
from ir.base.types import F32
from ir.target.signature import FedInput, ReadOutput, Signature
from ir.target.target import Target

RELEASE = "1.0.0"

SIGNATURE = Signature(
    "toy",
    (FedInput("x", "features", F32, (("batch", "features"),), "a row of features for each example"),),
    (ReadOutput("y", "features", F32, ("batch", "features"), "a row of results for each example"),),
    keeps_cache=False,
)


@dataclass(frozen=True)
class ToyTarget(Target):
    """A machine with so many cells, each of which holds one number of a weight in 8 bits."""

    widths = (8,)
    name: str = "toy"
    cells: int = 4096


def target(text: str | None = None) -> ToyTarget:
    """``4096cells`` or another number of cells; LadingError B951 for anything else."""
    if text is None:
        return ToyTarget()
    number = text.removesuffix("cells")
    if number == text or not number.isdigit():
        raise LadingError("B951", f"{text!r} is no target of the toy runtime", hint="for example 4096cells")
    return ToyTarget(cells=int(number))
