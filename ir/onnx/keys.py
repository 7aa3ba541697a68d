"""What an ONNX file says that the IR has no field for: the keys under which the frontend keeps it and the backend finds
it.

Everything is plain text or JSON, so that it is printed, parsed and compared with the graph. Where a pass removes or
renames what an entry speaks of, the entry is passed over when the model is written.

=======================  ======================================================================================
place                    contents
=======================  ======================================================================================
``Graph.metadata``       under `MODEL` a dict: ``model`` (root graphs: format version, producer, documentation),
                         ``function`` (function bodies: attributes, defaults), ``doc``, ``metadata``,
                         ``annotations``, ``inputs`` (order, where constants are among them), ``values`` and
                         ``tensors`` (documentation, metadata and denotations by name)
``Node.metadata``        `DOC`, `ABSENT` and `REFS`
``Graph.tables``         ``DEFAULT + name``: the constant that input ``name`` has when it is not fed
=======================  ======================================================================================
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ir.graph.graph import Node

MODEL = "lading.onnx"
"""Key of a graph's metadata."""
LOCATION = "lading.loc"
"""Metadata key of a node's source location in a file; in the IR it is `Node.loc`."""
DOC = "lading.doc"
"""Key of a node's metadata: its documentation string."""
ABSENT = "lading.absent"
"""Key of a node's metadata: positions of the outputs that the file leaves out, as a JSON list."""
REFS = "lading.refs"
"""Key of a node's metadata in a function body: attributes that are the function's own, as a JSON object ``{name: name
in the function}``. The node's attribute of that name is a stand-in of the right kind."""
UNMADE = "free:"
"""How the source of an input begins that a file reads and never declares."""
DEFAULT = "default:"
"""Prefix of the tables that hold default values of inputs."""
UNKNOWN = "unk."
"""Prefix of the names of dimensions that a file leaves open; they are open again in what is written."""

RESERVED = frozenset({LOCATION, DOC, ABSENT, REFS})
"""Node metadata that is not written as such."""


def is_unknown(name: str) -> bool:
    """True for the name of a dimension that a file leaves open."""
    return name.startswith(UNKNOWN) and name[len(UNKNOWN) :].isdigit()


def references(node: Node) -> dict[str, str]:
    """Attributes of a node of a function body that are attributes of the function: own name to the function's."""
    text = node.metadata.get(REFS)
    return json.loads(text) if text else {}


def absent_outputs(node: Node) -> frozenset[int]:
    """Positions of the outputs that the file leaves out."""
    text = node.metadata.get(ABSENT)
    return frozenset(json.loads(text)) if text else frozenset()


__all__ = ["ABSENT", "DEFAULT", "DOC", "LOCATION", "MODEL", "REFS", "RESERVED", "UNKNOWN", "absent_outputs",
           "is_unknown", "references"]  # fmt: skip
