"""The pass protocol: what a pass declares, what it is given, and what it gives back.

A pass is a small frozen dataclass whose fields are its options; see `passes.framework.options`. It edits the graph
through `ir.graph.graph.Graph` and returns counts. It never prints, times, verifies or opens a file: the manager and its
instruments do the first three (`passes.framework.manager`, `passes.framework.instruments`), `Pass.prepare` the last,
before any work starts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from passes.framework.context import PassContext
from passes.framework.options import check_fields, options_of

if TYPE_CHECKING:
    import numpy as np

    from ir.graph.graph import Graph

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

Result = Mapping[str, int] | None
"""What a pass returns: how much of what it did, for people and reports; None for nothing to say."""


class Adapter(Protocol):
    """Relates the values around a pass that changes the graph's signature, so that numbers can still be compared.

    A recorded fact is the best place for it, since a fact survives printing and parsing.
    """

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """Feeds for the graph after the pass that mean the same as `feeds` meant before it."""

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """The outputs that the graph after the pass must give, made from those of the graph before it."""


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. Subclasses are frozen dataclasses too.

    Attributes:
        name: how pipelines spell it: lower case words joined by dashes, verb first.
        requires: invariants that must hold before it runs (keys of ``ir.verify.stages.INVARIANTS``, or names of
            facts).
        establishes: invariants that hold after it.
        breaks: invariants that may no longer hold after it.
        lossy: True when it changes numbers by more than rounding.
        passing: names of counts that depend on what earlier runs left in the store, so that contracts leave them out.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    establishes: ClassVar[tuple[str, ...]] = ()
    breaks: ClassVar[tuple[str, ...]] = ()
    lossy: ClassVar[bool] = False
    passing: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for field in ("requires", "establishes", "breaks"):
            names = getattr(cls, field)
            if isinstance(names, str):
                raise TypeError(f"{cls.__name__}.{field} must be a tuple of names, not a string")

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """Edit the graph; return how much was done."""

    def prepare(self) -> Any:
        """Read what the options point to, before any pass of the pipeline runs.

        The result is ``ctx.prepared`` while this pass runs. Raise LadingError for a bad file; `read_text` helps.
        """
        return None

    def adapter(self, graph: Graph) -> Adapter | None:
        """How values before this pass relate to values after it; None when the signature stays.

        Called after `run`, with the graph that `run` left.
        """
        return None

    def __str__(self) -> str:
        """The canonical pipeline text of this pass: options with their default value are left out."""
        written = [
            spec.write(getattr(self, spec.name))
            for spec in options_of(type(self)).values()
            if spec.required or getattr(self, spec.name) != spec.default
        ]
        return self.name + ("{" + " ".join(written) + "}" if written else "")


def check_pass_class(cls: type) -> type[Pass]:
    """The class itself when it is a well-formed pass; TypeError that says what is wrong otherwise."""
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise TypeError(f"{cls!r} is not a subclass of passes.framework.base.Pass")
    params = vars(cls).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise TypeError(f"{cls.__name__} must be decorated with @dataclass(frozen=True)")
    if not _NAME.fullmatch(cls.name):
        raise TypeError(f"{cls.__name__}.name must be lower case words joined by dashes, not {cls.name!r}")
    if not (cls.__doc__ or "").strip() or (cls.__doc__ or "").startswith(f"{cls.__name__}("):
        raise TypeError(f"{cls.__name__} needs a docstring: its first line is the summary that users see")
    options_of(cls)
    return cls
