"""Small decoders as exporters write them: norms, rotary embedding and attention in plain ONNX operators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Written:
    """What the decoder computes, and how it is written.

    Attributes:
        layers, hidden, heads, groups, size, vocab: sizes; `groups` heads of keys and values.
        style: ``half``, ``interleaved`` or ``none``: the rotary embedding.
        window: tokens that are seen; 0 for all.
        scale: factor of the scores; None for one by the square root of the size.
        mask: ``causal``, or ``strided`` for a mask that no runtime knows.
        tokens: a fixed number of tokens; 0 for any.
        rows: take embedding rows in place of ids.
        stretch: angles are others for positions from this on, or in sequences whose mask is longer; 0 for none.
        flat: a product is of rows without a batch, which is put back by sizes that are computed.
        learned: an input ``places`` chooses rows of a table, which are added to those of the tokens.
        row_norm: rows of queries and of keys are normalized.
        bound: queries, keys and values are cut off at this; 0 for nowhere.
        activation: ``silu``, ``gelu``, ``tanh gelu`` or ``tanh``.
        padding: the mask depends on an input ``pad`` too; ``content`` when the rows of the
            embedding are multiplied by it; ``ids`` when the mask depends on the ids in its place;
            ``matrix`` when a matrix ``pad`` is the mask.
        logits: the output has logits; else a single number.
        opset: version of the operators.
    """

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    groups: int = 2
    size: int = 8
    vocab: int = 64
    style: str = "half"
    window: int = 0
    scale: float | None = None
    mask: str = "causal"
    tokens: int = 0
    rows: bool = False
    stretch: int = 0
    flat: bool = False
    learned: bool = False
    row_norm: bool = False
    bound: float = 0.0
    activation: str = "silu"
    padding: str = ""
    logits: bool = True
    opset: int = 18


@dataclass
class _Writer:
    form: Written
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.const(np.array(numbers, np.int64))

    def floats(self, *numbers: float) -> str:
        return self.const(np.array(numbers, np.float32))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"/{kind}_{len(self.nodes)}", **attrs))
        return names[0]

    def matrix(self, rows: int, columns: int) -> str:
        return self.const(self.rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32))

    def norm(self, x: str, width: int = 0) -> str:
        mean = self.op("ReduceMean", self.op("Pow", x, self.floats(2.0)), self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.floats(1e-6)))
        gain = self.const(self.rng.uniform(0.5, 1.5, width or self.form.hidden).astype(np.float32))
        return self.op("Mul", self.op("Mul", x, self.op("Div", self.floats(1.0), root)), gain)

    def heads(self, x: str, count: int) -> str:
        split = self.op("Reshape", x, self.ints(0, 0, count, self.form.size))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def turned(self, x: str, cos: str, sin: str) -> str:
        size = self.form.size
        if self.form.style == "none":
            return x
        if self.form.style == "half":
            left = self.op("Slice", x, self.ints(0), self.ints(size // 2), self.ints(3))
            right = self.op("Slice", x, self.ints(size // 2), self.ints(size), self.ints(3))
            other = self.op("Concat", self.op("Neg", right), left, axis=-1)
        else:
            even = self.op("Slice", x, self.ints(0), self.ints(size), self.ints(3), self.ints(2))
            odd = self.op("Slice", x, self.ints(1), self.ints(size), self.ints(3), self.ints(2))
            last = self.ints(4)
            pair = self.op(
                "Concat", self.op("Unsqueeze", self.op("Neg", odd), last), self.op("Unsqueeze", even, last), axis=4
            )
            other = self.op("Reshape", pair, self.ints(0, 0, 0, size))
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", other, sin))

    def tables(self, steps: str) -> tuple[str, str]:
        """cos and sin, [seq, size]."""
        form = self.form
        real = self.op("Unsqueeze", self.op("Cast", steps, to=TensorProto.FLOAT), self.ints(1))
        if form.stretch and form.padding == "mask":
            length = self.op("ReduceSum", self.op("Cast", "pad", to=TensorProto.FLOAT))
            more = self.op("Max", self.op("Div", length, self.floats(float(form.stretch))), self.floats(1.0))
            real = self.op("Div", real, self.op("Reshape", more, self.ints(1, 1)))
        elif form.stretch:
            far = self.op("Max", self.op("Sub", real, self.floats(float(form.stretch))), self.floats(0.0))
            real = self.op("Sub", real, self.op("Mul", far, self.floats(0.5)))
        frequencies = (1 / 100.0 ** (np.arange(0, form.size, 2) / form.size)).astype(np.float32)
        twice = np.concatenate([frequencies] * 2) if form.style == "half" else np.repeat(frequencies, 2)
        angles = self.op("Mul", real, self.const(twice))
        return self.op("Cos", angles), self.op("Sin", angles)

    def masked(self, steps: str) -> str:
        """bool[seq, seq]."""
        query, key = self.op("Unsqueeze", steps, self.ints(1)), self.op("Unsqueeze", steps, self.ints(0))
        seen = self.op("LessOrEqual", key, query)
        if self.form.window:
            near = self.op("Sub", query, self.const(np.array(self.form.window, np.int64)))
            seen = self.op("And", seen, self.op("Greater", key, near))
        if self.form.mask == "strided":
            gap = self.op("Mod", self.op("Add", query, key), self.const(np.array(400, np.int64)))
            seen = self.op("And", seen, self.op("Less", gap, self.const(np.array(399, np.int64))))
        if self.form.padding == "matrix":
            return "pad"
        if self.form.padding:
            given = "tokens" if self.form.padding == "ids" else "pad"
            kept = self.op("Unsqueeze", self.op("Cast", given, to=TensorProto.BOOL), self.ints(1, 2))
            seen = self.op("And", seen, kept)
        return seen

    def bounded(self, x: str) -> str:
        bound = self.form.bound
        return (
            self.op("Clip", x, self.const(np.array(-bound, np.float32)), self.const(np.array(bound, np.float32)))
            if bound
            else x
        )

    def gate(self, x: str) -> str:
        hidden = self.form.hidden
        weight = self.matrix(hidden, 2 * hidden)
        if not self.form.flat:
            return self.op("MatMul", x, weight)
        length = self.op("Slice", self.op("Shape", x), self.ints(1), self.ints(2))
        flat = self.op("MatMul", self.op("Reshape", x, self.ints(-1, hidden)), weight)
        return self.op("Reshape", flat, self.op("Concat", self.ints(1), length, self.ints(2 * hidden), axis=0))

    def active(self, x: str) -> str:
        kind = self.form.activation
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "tanh":
            return self.op("Mul", self.op("Tanh", x), self.floats(1.5))
        if kind == "gelu":
            curve = self.op("Erf", self.op("Div", x, self.floats(2**0.5)))
        else:
            cube = self.op("Mul", self.op("Pow", x, self.floats(3.0)), self.floats(0.044715))
            curve = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.floats(0.7978845608)))
        return self.op("Mul", self.op("Mul", x, self.floats(0.5)), self.op("Add", curve, self.floats(1.0)))

    def layer(self, x: str, cos: str, sin: str, seen: str) -> str:
        form = self.form
        normed = self.norm(x)
        widths = [count * form.size for count in (form.heads, form.groups, form.groups)]
        q, k, v = (self.bounded(self.op("MatMul", normed, self.matrix(form.hidden, width))) for width in widths)
        if form.row_norm:
            q, k = self.norm(q, widths[0]), self.norm(k, widths[1])
        q, k, v = self.heads(q, form.heads), self.heads(k, form.groups), self.heads(v, form.groups)
        q, k = self.turned(q, cos, sin), self.turned(k, cos, sin)
        group = form.heads // form.groups
        order = self.const(np.repeat(np.arange(form.groups), group))
        k, v = self.op("Gather", k, order, axis=1), self.op("Gather", v, order, axis=1)
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scale = form.scale if form.scale is not None else form.size**-0.5
        scores = self.op("Where", seen, self.op("Mul", scores, self.floats(scale)), self.floats(-1e30))
        mix = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        mix = self.op("Reshape", mix, self.ints(0, 0, form.heads * form.size))
        x = self.op("Add", x, self.op("MatMul", mix, self.matrix(form.heads * form.size, form.hidden)))
        gate = self.gate(self.norm(x))
        active = self.active(gate)
        return self.op("Add", x, self.op("MatMul", active, self.matrix(2 * form.hidden, form.hidden)))


def decoder(form: Written = Written()) -> onnx.ModelProto:
    """A decoder with random weights as a checked model."""
    writer = _Writer(form)
    seq = form.tokens or "seq"
    if form.rows:
        given = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [1, seq, form.hidden])
        x, axis = "inputs_embeds", 1
    else:
        given = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, seq])
        table = writer.const(writer.rng.normal(0, 1, (form.vocab, form.hidden)).astype(np.float32))
        x, axis = writer.op("Gather", table, "tokens", axis=0), 1
    length = writer.op("Gather", writer.op("Shape", given.name), writer.const(np.array(axis, np.int64)), axis=0)
    zero, one = (writer.const(np.array(number, np.int64)) for number in (0, 1))
    steps = writer.op("Range", zero, length, one)
    cos, sin = writer.tables(steps) if form.style != "none" else ("", "")
    seen = writer.masked(steps)
    if form.learned:
        places = writer.const(writer.rng.normal(0, 1, (256, form.hidden)).astype(np.float32))
        x = writer.op("Add", x, writer.op("Gather", places, "places", axis=0))
    if form.padding == "content":
        kept = writer.op("Unsqueeze", writer.op("Cast", "pad", to=TensorProto.FLOAT), writer.ints(2))
        x = writer.op("Mul", x, kept)
    for _ in range(form.layers):
        x = writer.layer(x, cos, sin, seen)
    x = writer.norm(x)
    if form.logits:
        x = writer.op("MatMul", x, writer.matrix(form.hidden, form.vocab))
    else:
        x = writer.op("ReduceMax", x, writer.ints(1, 2), keepdims=0)
    out = helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, seq, form.vocab] if form.logits else [1])
    inputs = [given]
    if form.learned:
        inputs.append(helper.make_tensor_value_info("places", TensorProto.INT64, [1, seq]))
    if form.padding == "matrix":
        inputs.append(helper.make_tensor_value_info("pad", TensorProto.BOOL, [1, 1, seq, seq]))
    if form.padding in ("mask", "content"):
        inputs.append(helper.make_tensor_value_info("pad", TensorProto.INT64, [1, seq]))
    graph = helper.make_graph(writer.nodes, "decoder", inputs, [out], writer.stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model
