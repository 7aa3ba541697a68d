"""Which ONNX operators each release's converter knows, against the converter itself."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from backends.mnn.run.native import onnx_to_mnn
from backends.mnn.target.converter import converts
from backends.mnn.target.releases import PROFILES, RELEASES
from tests.support.runs import each_release, interpreters

UNKNOWN = ("IsNaN", "Attention", "RMSNormalization", "RotaryEmbedding", "GroupQueryAttention", "MatMulNBits",
           "GatherBlockQuantized", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "FusedRoPE",
           "Hardmax", "ConvInteger", "QLinearMatMul", "BitwiseAnd")  # fmt: skip


def model(path, ops):
    """One node of each operator, whatever it would compute."""
    nodes = [helper.make_node(op, ["x"], [f"y{place}"], domain="com.example") for place, op in enumerate(ops)]
    outputs = [helper.make_tensor_value_info(f"y{place}", TensorProto.FLOAT, [4]) for place in range(len(ops))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("version", each_release())
def test_operators_that_no_converter_knows(version, tmp_path):
    path = model(tmp_path / "m.onnx", [*UNKNOWN, "Relu", "Sigmoid"])
    ended = onnx_to_mnn(path, tmp_path / "m.mnn", interpreter=interpreters()[version])
    (line,) = [line for line in ended.log.splitlines() if "These Op Not Support" in line]
    assert {word for word in UNKNOWN if f"ONNX::{word} " in f"{line} "} == set(UNKNOWN)
    assert "Relu" not in line and not any(converts(RELEASES[version], op) for op in UNKNOWN)
    assert not (tmp_path / "m.mnn").exists()


@pytest.mark.parametrize("version", each_release())
def test_an_operator_is_known_by_its_name_alone(version, tmp_path):
    path = model(tmp_path / "m.onnx", ["Relu", "Sigmoid"])
    assert onnx_to_mnn(path, tmp_path / "m.mnn", interpreter=interpreters()[version]).ok
    assert (tmp_path / "m.mnn").is_file() and converts(RELEASES[version], "Relu")


def test_operators_came_and_went():
    known = {
        op: [version for version, release in PROFILES.items() if converts(release, op)] for op in ("STFT", "GroupNorm")
    }
    assert known == {"STFT": list(PROFILES)[1:], "GroupNorm": ["3.0.0", "3.1.0"]}
