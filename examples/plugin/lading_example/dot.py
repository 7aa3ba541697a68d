"""A backend that writes the graph in the language of Graphviz."""

from __future__ import annotations

import json
from pathlib import Path

from ir.base.diag import LadingError
from ir.graph.graph import Graph


class DotFile:
    """What ``lading opt`` needs: suffixes and write."""

    suffixes = (".dot",)

    @staticmethod
    def write(graph: Graph, path: Path) -> None:
        """Write the file; LadingError when that is not possible."""
        lines = [f"digraph {json.dumps(graph.name)} {{", "  node [shape=box]"]
        lines += [f"  {json.dumps(value.name)} [shape=oval]" for value in graph.inputs]
        for node in graph.nodes:
            label = node.output.name
            lines.append(f"  {json.dumps(label)} [label={json.dumps(node.op)}]")
            for value in node.inputs:
                if value is not None and value.const is None:
                    source = value.producer.output.name if value.producer is not None else value.name
                    lines.append(f"  {json.dumps(source)} -> {json.dumps(label)}")
        try:
            path.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")
        except OSError as error:
            raise LadingError("B690", f"cannot write: {error.strerror}", str(path)) from None
