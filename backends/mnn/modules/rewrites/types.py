"""What a rewrite is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from backends.mnn.modules.build import Build
from ir.graph.graph import Node, Value

Rewrite = Callable[[Node, Build], "Sequence[Value | None] | None"]
"""Builds what stands for each output of a node, in order (None for one that nothing reads); None to leave the node, which
is said before anything is built."""

Table = Mapping[str, tuple[Rewrite, ...]]
"""Rewrites by operator, in the order in which they are tried."""

__all__ = ["Rewrite", "Table"]
