"""What a case is about: the operator that it tests, and whether its inputs and outputs have plain types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx

from tools.conformance.cases import Case

PLAIN = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL})
SEVERAL = "several operators"
_BODY = re.compile(r"_expanded(_ver\d+)?$|_expanded_function_test$")


def operators(cases: Sequence[Case]) -> Mapping[str, str]:
    """The operator that each case tests, by the key of the case.

    A case of more than one operator is about the one whose function body it is, as its name says; others, which are
    small networks, are about several.
    """
    found = {case.key: _only(onnx.ModelProto.FromString(case.model).graph) for case in cases}
    for key, operator in found.items():
        if not operator:
            whole = found.get(_BODY.sub("", key), "") if _BODY.search(key) else ""
            found[key] = f"{whole} (body)" if whole else SEVERAL
    return found


def _only(graph: onnx.GraphProto) -> str:
    names = {f"{_domain(node.domain)}{node.op_type}" for node in graph.node if node.op_type != "Constant"}
    return names.pop() if len(names) == 1 and len(graph.node) == 1 else (names.pop() if len(names) == 1 else "")


def _domain(domain: str) -> str:
    return f"{domain}." if domain not in ("", "ai.onnx") else ""


def is_plain(model: onnx.ModelProto) -> bool:
    """Whether all inputs and outputs are tensors of float32, int32, int64 or bool."""
    ports = [*model.graph.input, *model.graph.output]
    return all(item.type.HasField("tensor_type") and item.type.tensor_type.elem_type in PLAIN for item in ports)


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from walk(inner)


__all__ = ["SEVERAL", "is_plain", "operators", "walk"]
