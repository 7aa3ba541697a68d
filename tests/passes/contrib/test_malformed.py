"""Operators of others with operands and attributes that make no sense: an error or a warning, never a crash."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.types import DTYPES, Dim, TensorType
from ir.dialects.llm_exporter import DEFINITIONS as EXPORTER
from ir.dialects.microsoft import DEFINITIONS as MICROSOFT
from ir.graph.graph import Graph, Value
from ir.ops.registry import OpDef
from ir.tensor.inline import InlineTensor
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager

KINDS = ("f32", "f16", "i64", "i32", "u8", "i8", "bool", "f64")
NUMBERS = (0, 1, -1, 2, 4, 8, 16, 3, 1 << 40, -(1 << 40))


def operand(graph: Graph, rng: random.Random, name: str) -> Value | None:
    """Nothing, an input, or a constant of any type and shape."""
    choice = rng.random()
    if choice < 0.1:
        return None
    shape = tuple(rng.choice((0, 1, 2, 4, 8, 16, 32)) for _ in range(rng.randint(0, 4)))
    dtype = DTYPES[rng.choice(KINDS[:1] * 4 + KINDS)]
    if choice < 0.5:
        return graph.add_const(name, InlineTensor(np.zeros(shape, dtype.numpy), dtype))
    if choice < 0.6:
        return graph.add_input(name, None if choice < 0.55 else TensorType(dtype))
    return graph.add_input(name, TensorType(dtype, tuple(rng.choice((size, Dim("n"), size)) for size in shape)))


def attributes(definition: OpDef, rng: random.Random) -> dict:
    found = {}
    for name, described in definition.attrs.items():
        if described.required or rng.random() < 0.5:
            number = rng.choice(NUMBERS[:6] * 3 + NUMBERS)
            value = {
                "int": number,
                "float": rng.choice((0.0, 1.0, -1.0, float("nan"), 1e30)),
                "str": "NONE",
                "ints": (number, 4, 4)[: rng.randint(1, 3)],
                "floats": (1.0,),
            }
            found[name] = value[described.kind]
    return found


@pytest.mark.parametrize("definition", [*MICROSOFT, *EXPORTER], ids=lambda item: item.name)
def test_nonsense_is_told(definition):
    seen: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(f"{definition.name} {seed}")
        graph = Graph("g", {"": rng.choice((13, 21, 24)), "com.microsoft": 1, "LlmExporter": 1})
        graph.foreign = graph.hinted = True
        most = min(definition.max_inputs, 18)
        count = rng.choice((rng.randint(0, most + 1), definition.min_inputs, most))
        inputs = [operand(graph, rng, f"x{place}") for place in range(count)]
        outputs = tuple(f"y{place}" for place in range(rng.randint(1, definition.max_outputs)))
        node = graph.add(definition.name, inputs, attributes(definition, rng), outputs=outputs)
        graph.set_outputs(node.outputs[: rng.randint(1, len(outputs))])
        try:
            report = PassManager("infer-types,upgrade-opset,expand-contrib,widen-floats").run(graph)
        except LadingError as error:
            seen[error.code] += 1
            continue
        seen.update(item.code for item in report.all_diagnostics())
        PassManager("dce", (VerifyEach(),)).run(graph)
    assert seen and set(seen) <= {"T201", "T203", "T204", "T211", "T212", "P324", "P325"}, seen
