"""What is kept of ONNX's schemas, so that its package need not be loaded, is what they say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ir.graph.graph import OPSET
from ir.ops import registry
from ir.ops.registry import USUAL, lookup, schema_row

NAMES = (
    "Abs Add And ArgMax Attention Cast Ceil Clip Concat Cos CumSum DequantizeLinear Div Equal Erf Exp Expand Floor Gather "
    "GatherElements Gelu Greater GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log MatMul Max Min Mod Mul Neg "
    "Not Or Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape "
    "RotaryEmbedding ScatterElements ScatterND Shape Sigmoid Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Swish Tanh "
    "Tile TopK Transpose Trilu Unsqueeze Where"
).split()


def test_rows_are_those_of_the_schemas(request: pytest.FixtureRequest) -> None:
    rows = {name: schema_row("", name, OPSET) for name in NAMES}
    assert None not in rows.values()
    text = "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}\n"
    if request.config.getoption("--accept"):
        USUAL.write_text(text)
    assert USUAL.read_text() == text


def test_definitions_are_the_same_with_and_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [lookup(name, {"": OPSET}) for name in NAMES]
    monkeypatch.setattr(registry, "_usual_rows", dict)
    registry._onnx_definition.cache_clear()
    try:
        assert [lookup(name, {"": OPSET}) for name in NAMES] == kept
    finally:
        registry._onnx_definition.cache_clear()


@pytest.mark.mnn
def test_a_compile_does_without_the_package(tmp_path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tools.compile", "--passes", "default", "--verify", "none"]
    run = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "ir.ops.registry" in run.stderr and "| onnx\n" not in run.stderr
