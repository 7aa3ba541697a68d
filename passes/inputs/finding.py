"""What a finder says: a value of a graph is what a runtime feeds, and how that is known.

Each kind of input has a file with the function ``find``, which looks at a graph and changes nothing. It returns a
`Finding`, or several where the graph has several of the kind, or none where it has none and may; where the graph has to
have one, it raises a `LadingError` that says what is missing. A finder for another exporter's spelling is one more
function in the file of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.facts.inputs import Why
from ir.graph.graph import Node, Value


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        value: the value that is of the kind.
        why: what the graph does, as recorded in `ir.facts.inputs.Discovery`.
        reason: the reason as a sentence.
        where: the place in the source of the graph.
    """

    value: Value
    why: Why
    reason: str
    where: str


@dataclass(frozen=True)
class LookUp(Finding):
    """Embedding rows, and the node that looks them up."""

    node: Node


@dataclass(frozen=True)
class Masked(Finding):
    """What an attention mixes under a mask.

    Attributes:
        node: the attention.
        window: how many tokens it sees, itself included; 0 for all before.
    """

    node: Node
    window: int
