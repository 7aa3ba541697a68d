"""Graphs of narrow and unsigned integers become graphs of 32-bit integers that give the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from passes.framework.check_numbers import CheckNumbers
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager
from passes.integers.steps import Steps
from passes.integers.widen_integers import WIDE
from passes.integers.wrapping import shift
from tests.support.modules.sweep import OneNode, assert_same

RNG = np.random.default_rng(5)
U8, I8, U16, I16, I32, U32 = (getattr(TensorProto, name) for name in "UINT8 INT8 UINT16 INT16 INT32 UINT32".split())
F32, F16, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
info = helper.make_tensor_value_info


def widened(model: onnx.ModelProto, keeps: tuple[str, ...] = ()) -> Graph:
    """The graph with wide integers alone but for some values; its types are those that inference gives."""
    graph = load(model)
    PassManager("infer-types,widen-integers", (VerifyEach(),)).run(graph)
    assert not infer_types(graph)
    for one in graph.graphs():
        for value in one._names.values():
            assert not isinstance(value.type, TensorType) or value.type.dtype not in WIDE or value.name in keeps, value
    return graph


def numbers(graph: Graph, feeds) -> list[np.ndarray]:
    held = {value.name: feeds[value.name].astype(value.dtype.numpy) for value in graph.inputs}
    found = evaluate(graph, held)
    return [found[value.name] for value in graph.outputs]


def every(kind) -> np.ndarray:
    """All numbers of 8 bits; some of 16, the extremes among them."""
    limits = np.iinfo(kind)
    if limits.bits == 8:
        return np.arange(limits.min, limits.max + 1).astype(kind)
    edges = [limits.min, limits.min + 1, limits.max, limits.max - 1, 0, 1, 255, 256, 257]
    return np.concatenate([edges, RNG.integers(limits.min, limits.max, 247)]).astype(kind)


def arithmetic() -> list[OneNode]:
    cases = []
    for kind in (np.uint8, np.int8, np.uint16, np.int16):
        x, y = every(kind), RNG.permutation(every(kind))
        some = np.where(y == 0, 3, y).astype(kind)
        cases += [
            OneNode(op, [x, y]) for op in ("Add", "Sub", "Mul", "Max", "Min", "BitwiseAnd", "BitwiseOr", "Greater")
        ]
        cases += [OneNode(op, [x, some]) for op in ("Div", "Mod")]
        cases += [OneNode(op, [x]) for op in ("Abs", "BitwiseNot", "Sign")]
        if np.iinfo(kind).min:
            cases += [OneNode("Neg", [x]), OneNode("Div", [x, np.array(-1, kind)], (1,))]
        else:
            by = RNG.integers(0, np.iinfo(kind).bits, 256).astype(kind)
            cases += [OneNode("BitShift", [x, by], attrs={"direction": way}) for way in ("LEFT", "RIGHT")]
        for other in (U8, I8, U16, I16, I32, F32, BOOL):
            cases.append(OneNode("Cast", [x], attrs={"to": other}))
        cases.append(OneNode("CastLike", [RNG.integers(-(2**20), 2**20, 9).astype(np.int32), x[:1]]))
    return cases


def quantized() -> list[OneNode]:
    codes = [RNG.integers(0, 255, shape).astype(np.uint8) for shape in ((2, 3, 4), (2, 4, 5))]
    signed = RNG.integers(-128, 127, (2, 3, 4)).astype(np.int8)
    scale, scales = np.array(0.1, np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    zero, zeros = np.array(7, np.uint8), np.array([1, -2, 3], np.int8)
    x = (RNG.normal(size=(2, 3, 4)) * 20).astype(np.float32)
    image = RNG.integers(0, 255, (1, 3, 5, 5)).astype(np.uint8)
    weights = RNG.integers(-128, 127, (2, 3, 3, 3)).astype(np.int8)
    two = np.array([0.01, 0.02], np.float32)
    return [
        OneNode("DequantizeLinear", [codes[0], scale, zero]),
        OneNode("DequantizeLinear", [signed, scales, zeros], attrs={"axis": 1}),
        OneNode("DequantizeLinear", [signed, scales]),
        OneNode("DequantizeLinear", [signed, RNG.uniform(0.1, 1, (2, 3, 2)).astype(np.float32)],
                attrs={"axis": 2, "block_size": 2}),
        OneNode("QuantizeLinear", [x, scale, zero]),
        OneNode("QuantizeLinear", [x, scales, zeros], attrs={"axis": 1}),
        OneNode("QuantizeLinear", [x, scale]),
        OneNode("QuantizeLinear", [x, scale], attrs={"output_dtype": I16}),
        OneNode("QuantizeLinear", [np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32), np.array(1, np.float32)]),
        OneNode("DynamicQuantizeLinear", [x], outputs=3),
        OneNode("MatMulInteger", [codes[0], codes[1], zero, np.array(3, np.uint8)]),
        OneNode("ConvInteger", [image, weights.astype(np.uint8), zero], (1,), attrs={"pads": [1, 1, 1, 1]}),
        OneNode("QLinearMatMul", [codes[0], scale, zero, codes[1], scale, zero, np.array(9, np.float32), zero]),
        OneNode("QLinearConv", [image, scale, zero, weights, two, np.zeros(2, np.int8), np.array(3, np.float32), zero,
                                np.array([100, -100], np.int32)], (3, 8)),
        OneNode("MaxPool", [image], attrs={"kernel_shape": [2, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ]  # fmt: skip


@pytest.mark.parametrize("case", [*arithmetic(), *quantized()], ids=str)
def test_numbers_are_the_same(case):
    """Integers in every bit, the extremes of their types among them."""
    graph = widened(case.model(), keeps=("x1", "x3"))
    with np.errstate(all="ignore"):
        assert_same(numbers(graph, case.feeds), case.wanted(), case)


@pytest.mark.parametrize("way", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_shifts_of_signed_integers(kind, way):
    """By more than there are bits, and by negative numbers, what is left is copies of the sign."""
    limits, width = np.iinfo(kind), np.iinfo(kind).bits
    x = np.array([limits.min, -7, -1, 0, 1, 7, 100, limits.max], kind)
    by = np.array([0, 1, 3, 7, width - 1, width, -1, -5], kind)
    if width == 64:
        by = np.clip(by, -9, 31)
        x = np.clip(x, -9, 9)
    x, by = (each.reshape(-1) for each in np.meshgrid(x, by))
    wide = np.int64 if width == 64 else np.int32
    model = OneNode("Add", [x.astype(wide), by.astype(wide)], opset=24).model()
    graph = load(model)
    infer_types(graph)
    node = next(iter(graph.nodes))
    graph.set_op(node, "BitShift")
    graph.set_attrs(node, direction=way)
    steps = Steps(node)
    kinds = {dtype.numpy: dtype for dtype in WIDE} | {value.dtype.numpy: value.dtype for value in graph.inputs}
    steps.put([shift(node, steps, kinds[np.dtype(kind)])])
    inside = (by >= 0) & (by < width)
    amount = np.where(inside, by, 0).astype(kind)
    whole = np.right_shift(x, amount) if way == "RIGHT" else np.left_shift(x, amount)
    rest = np.where(x < 0, -1, 0) if way == "RIGHT" else np.zeros_like(x)
    found = evaluate(graph, {"x0": x.astype(wide), "x1": by.astype(wide)})["y0"]
    np.testing.assert_array_equal(found, np.where(inside, whole, rest))


def test_values_that_fit_stay_those_of_unsigned_integers():
    case = OneNode("Mul", [np.array([3, 70000], np.uint32), np.array([5, 30000], np.uint32)])
    graph = widened(case.model())
    assert [str(value.type) for value in graph.inputs] == ["i64[2]", "i64[2]"]
    assert_same(numbers(graph, case.feeds), case.wanted(), case)


def test_codes_of_constant_weights_stay():
    case = OneNode("DequantizeLinear", [every(np.int8), np.array(0.5, np.float32), np.array(3, np.int8)], (0, 1, 2))
    model = case.model()
    model.graph.node.append(helper.make_node("Cast", ["x0"], ["y1"], to=F32))
    model.graph.output.append(info("y1", F32, [256]))
    graph = widened(model, keeps=("x0", "x2"))
    assert [str(value.type) for value in next(iter(graph.nodes)).inputs] == ["i8[256]", "f32[]", "i8[]"]
    plain, direct = numbers(graph, {})
    np.testing.assert_array_equal(direct, every(np.int8).astype(np.float32))
    np.testing.assert_array_equal(plain, (direct - 3) * np.float32(0.5))


def test_bodies_sequences_and_attributes():
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["t"])], "yes", [], [info("t", U8, None)],
        [numpy_helper.from_array(np.array(1, np.uint8), "one")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("BitwiseNot", ["x"], ["e"])], "no", [], [info("e", U8, None)])
    fill = helper.make_tensor("v", U8, [1], [200])
    nodes = [
        helper.make_node("If", ["flag"], ["h"], then_branch=body, else_branch=other),
        helper.make_node("ConstantOfShape", ["size"], ["f"], value=fill),
        helper.make_node("Add", ["h", "f"], ["s"]),
        helper.make_node("SequenceConstruct", ["s", "x"], ["q"]),
        helper.make_node("SequenceAt", ["q", "size"], ["y"]),
        helper.make_node("SequenceAt", ["q", "nought"], ["z"]),
    ]
    held = [
        numpy_helper.from_array(np.array(1, np.int64), "size"),
        numpy_helper.from_array(np.array(0, np.int64), "nought"),
    ]
    nodes[1].input[0] = "sizes"
    held.append(numpy_helper.from_array(np.array([2]), "sizes"))
    graph = helper.make_graph(
        nodes, "g", [info("x", U8, [2]), info("flag", BOOL, [])], [info("y", U8, [2]), info("z", U8, [2])], held
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    wide = widened(model)
    x = np.array([255, 60], np.uint8)
    for flag in (True, False):
        y, z = numbers(wide, {"x": x, "flag": np.array(flag)})
        assert y.tolist() == [255, 60]
        assert z.tolist() == ([(0 + 200) % 256, (61 + 200) % 256] if flag else [200, (195 + 200) % 256])


def test_passes_are_checked_across_it():
    """Its adapter says what the values of a changed signature mean."""
    case = OneNode("Add", [every(np.uint8), every(np.uint8)])
    graph = load(case.model())
    PassManager("infer-types,widen-integers,cse,dce", (CheckNumbers(), VerifyEach())).run(graph)
    assert [str(value.type) for value in (*graph.inputs, *graph.outputs)] == ["i32[256]"] * 3


def test_bits_read_as_another_type_are_refused():
    case = OneNode("BitCast", [np.zeros(4, np.uint16)], opset=26, attrs={"to": F16})
    with pytest.raises(LadingError) as caught:
        widened(case.model())
    assert caught.value.code == "P389"
    assert "BitCast reads the bits of u16[4] as f16[4], and neither is kept" in str(caught.value)


@pytest.mark.parametrize(("given", "to"), [(np.arange(250, 256).astype(np.uint8), I8), (np.array([True, False]), U8)])
def test_bits_of_integers_are_their_values(given, to):
    case = OneNode("BitCast", [given], opset=26, attrs={"to": to})
    found = numbers(widened(case.model()), case.feeds)
    np.testing.assert_array_equal(found[0], given.view(helper.tensor_dtype_to_np_dtype(to)))


def test_a_graph_of_wide_integers_stays():
    graph = load(OneNode("Add", [np.zeros(3, np.int32), np.zeros(3, np.int32)]).model())
    infer_types(graph)
    version = graph.version
    report = PassManager("widen-integers").run(graph)
    assert graph.version == version and not report.passes[0].counts
