"""The text form: everything survives, printing again gives the same bytes, errors point at their place."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.types import BF16, F16, F32, I32, I64, Dim, TensorType
from ir.graph.compare import differences, equal
from ir.graph.facts import FACTS, RawFact
from ir.graph.graph import EmptyList, Fact, Graph
from ir.tensor.elementwise import cast, multiplied, scaled
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import reshaped, row_concat, row_gather, row_slice, transposed
from ir.text.parser import parse
from ir.text.printer import print_graph, quote, snippet, type_text
from tests.support.graphs import ODD_NAMES, attributes, graphs, names, tensors, value_types
from tests.support.work import calls_of

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def round_trip(graph: Graph, **options) -> Graph:
    """Print and parse; demand the law."""
    text = print_graph(graph, **options)
    again = parse(text)
    assert differences(graph, again, locs=True) == []
    assert print_graph(again, **options) == text
    return again


def one_node(**attrs) -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2,)))
    graph.set_outputs([graph.add("acme.Op", [x], attrs).output])
    return graph


# ---- the law ----


@quick
@given(graphs())
def test_random_graphs_survive(graph):
    round_trip(graph)


@quick
@given(graphs(typed=False))
def test_graphs_without_types_survive(graph):
    round_trip(graph)


@settings(quick, max_examples=150)
@given(st.dictionaries(st.one_of(names.filter(bool), st.just("node"), st.just("self")), attributes(), max_size=4))
def test_attributes_survive(attrs):
    graph = one_node()
    graph.set_attrs(next(iter(graph.nodes)), **attrs)
    found = next(iter(round_trip(graph).nodes)).attrs
    assert {key: type(value) for key, value in found.items() if isinstance(value, int | float | str | bytes)} == {
        key: type(value) for key, value in attrs.items() if isinstance(value, int | float | str | bytes)
    }


@settings(quick, max_examples=150)
@given(tensors(), st.sampled_from([0, 4, 100]))
def test_constants_survive_bit_for_bit(tensor, limit):
    graph = Graph("g")
    graph.add_const("c", tensor)
    found = round_trip(graph, inline_limit=limit).value("c").const
    assert found.type == tensor.type
    if tensor.type.dtype.kind != "s":
        assert found.load().tobytes() == tensor.load().tobytes()


@quick
@given(value_types(), names)
def test_types_survive(type, name):
    graph = Graph("g")
    graph.add_input(name, type)
    assert round_trip(graph).inputs[0].type == type


@quick
@given(st.lists(names, min_size=1, max_size=6, unique=True), names, names)
def test_names_survive_everywhere(values, node, place):
    graph = Graph(node)
    for name in values:
        graph.add_input(name, TensorType(F32, (Dim(name),)), place)
        graph.add_dim(Dim(name, 1, 7, 2))
        graph.opsets[name] = 3
        graph.metadata[name] = {name: [name]}
        graph.set_fact(name, {"value": name})
    made = graph.add("Identity", [graph.inputs[0]], name=node, loc=place)
    made.metadata[node] = place
    made.overload = node
    graph.set_table(node, made.output)
    graph.set_outputs(graph.inputs)
    again = round_trip(graph)
    assert [value.name for value in again.inputs] == values
    assert next(iter(again.nodes)).overload == node
    assert next(iter(again.nodes)).metadata == {node: place}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_odd_name_is_one_line(name):
    graph = Graph("g")
    graph.add_input(name, None)
    text = print_graph(graph)
    assert len(text.splitlines()) == len(text.split("\n")) - 1 == 5
    text.encode("utf-8")
    round_trip(graph)


def test_empty_lists_keep_their_kind():
    kinds = ("floats", "graphs", "ints", "strings", "tensors", "types")
    graph = one_node(untyped=(), **{kind: EmptyList(kind) for kind in kinds})
    found = next(iter(round_trip(graph).nodes)).attrs
    assert [found[kind].kind for kind in kinds] == list(kinds)
    assert found["untyped"] == () and not isinstance(found["untyped"], EmptyList)
    assert differences(one_node(a=EmptyList("ints")), one_node(a=EmptyList("floats")))
    assert differences(one_node(a=EmptyList("ints")), one_node(a=()))


def test_float_attributes_keep_every_bit():
    odd = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    values = (0.1, -0.0, float("inf"), float("-inf"), float("nan"), odd, 5e-324, 1e22)
    found = next(iter(round_trip(one_node(a=values)).nodes)).attrs["a"]
    assert [struct.pack("<d", value) for value in found] == [struct.pack("<d", value) for value in values]
    assert differences(one_node(a=0.0), one_node(a=-0.0))
    assert differences(one_node(a=1), one_node(a=1.0))


def test_locations_of_values_and_constants_survive():
    graph = Graph("g")
    x = graph.add_input("x", None, loc="the input")
    c = graph.add_const("c", InlineTensor(np.zeros(2, np.float32), loc="somewhere"))
    d = graph.add_const("d", transposed(InlineTensor(np.zeros((2, 3), np.float32), loc="elsewhere")))
    e = graph.add_const("e", FileTensor("model.safetensors", 8, TensorType(F32, (2,)), "w"))
    graph.set_loc(e, "")
    node = graph.add("Foo", [x, c, d, e], outputs=["a", "b"], loc="the node")
    graph.set_loc(node.outputs[1], "its second output")
    again = round_trip(graph)
    places = ["the input", "somewhere", "elsewhere", "", "the node", "its second output"]
    assert [again.value(name).loc for name in "xcdeab"] == places


def test_subgraphs_capture_and_nest():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2,)))
    flag = graph.add_const("flag", InlineTensor(np.array(True)))
    outer = graph.add("If", [flag], outputs=["r"])
    then = Graph("then", owner=outer)
    inner = then.add("If", [flag], outputs=["s"])
    deep = Graph("deep", owner=inner)
    deep.set_outputs([x])
    other = Graph("other", owner=inner)
    other.set_outputs([other.add("Neg", [x], outputs=["t"]).output])
    then.set_attrs(inner, then_branch=deep, else_branch=other)
    then.set_outputs([inner.output])
    last = Graph("else", owner=outer)
    last.set_outputs([last.add("Abs", [x], outputs=["t"]).output])
    graph.set_attrs(outer, then_branch=then, else_branch=last)
    graph.set_outputs([outer.output])
    again = round_trip(graph)
    branch = next(iter(again.nodes)).attrs["then_branch"]
    assert next(iter(branch.nodes)).attrs["then_branch"].outputs[0] is again.inputs[0]


def test_functions_survive():
    graph = one_node()
    body = Graph("body", {"": 20, "acme": 2})
    a = body.add_input("a", None)
    body.set_outputs([body.add("Neg", [a]).output])
    graph.functions["acme.Op"] = body
    again = round_trip(graph)
    assert again.functions["acme.Op"].opsets == {"": 20, "acme": 2}
    graph.functions["acme.Op"].set_op(next(iter(body.nodes)), "Abs")
    assert "acme.Op" in differences(graph, again)[0]


# ---- constants ----


def recipes(folder) -> dict:
    """One tensor of each recipe worth printing, over a file."""
    path = folder / "model.safetensors"
    np.arange(24, dtype=np.float32).tofile(path)
    matrix = FileTensor(path, 0, TensorType(F32, (4, 6)), "a.weight")
    vector = InlineTensor(np.array([0.5, 1.0, 2.0, 4.0], np.float32))
    return {
        "file": matrix,
        "keyless": FileTensor(path, 16, TensorType(BF16, (3,))),
        "transposed": transposed(matrix),
        "cast": transposed(cast(cast(matrix, BF16), F32)),
        "slice": row_slice(matrix, 1, 3),
        "concat": row_concat([row_slice(matrix, 2, 3), transposed(row_slice(transposed(matrix), 0, 6))]),
        "gather": row_gather(matrix, [3, 0, 0]),
        "reshaped": reshaped(matrix, (2, 12)),
        "scaled": scaled(matrix, -0.1),
        "multiplied": multiplied(matrix, vector, 0),
    }


def test_recipes_survive_and_give_the_same_numbers(tmp_path):
    graph = Graph("g")
    made = recipes(tmp_path)
    for name, tensor in made.items():
        graph.add_const(name, tensor)
    again = round_trip(graph)
    for name, tensor in made.items():
        assert again.value(name).const.load().tobytes() == tensor.load().tobytes()


def test_paths_are_relative_to_the_base(tmp_path):
    graph = Graph("g")
    graph.add_const("w", recipes(tmp_path)["file"])
    text = print_graph(graph, base=tmp_path)
    assert 'file("model.safetensors", 0, f32[4, 6], "a.weight")' in text
    again = parse(text, base=tmp_path)
    assert equal(graph, again)
    assert again.value("w").const.load()[1, 1] == 7.0
    assert print_graph(again, base=tmp_path) == text


def test_large_inline_data_goes_to_the_side_file(tmp_path):
    graph = Graph("g")
    big = np.arange(100, dtype=np.float16)
    graph.add_const("big", InlineTensor(big))
    graph.add_const("small", InlineTensor(np.array([1, 2], np.int32)))
    graph.add_const("flags", InlineTensor(np.arange(40) % 3 == 0))
    text = print_graph(graph, side=tmp_path / "side.bin", base=tmp_path)
    assert 'file("side.bin", 0, f16[100])' in text and "base64" not in text
    again = parse(text, base=tmp_path)
    assert differences(graph, again, locs=False) == []
    assert again.value("big").const.load().tobytes() == big.tobytes()
    assert print_graph(again, base=tmp_path) == text
    graph.set_const(graph.value("big"), InlineTensor(big + 1))
    assert "contents differ" in differences(graph, again)[0]


def test_a_side_file_that_the_graph_reads_is_not_overwritten(tmp_path):
    side = tmp_path / "side.bin"
    graph = Graph("g")
    graph.add_const("big", InlineTensor(np.arange(100)))
    again = parse(print_graph(graph, side=side))
    before = side.read_bytes()
    print_graph(again, side=side)
    assert side.read_bytes() == before
    again.add_const("more", InlineTensor(np.arange(50)))
    with pytest.raises(ValueError, match="side file"):
        print_graph(again, side=side)
    assert side.read_bytes() == before


def test_short_floats_are_short():
    graph = Graph("g")
    graph.add_const("c", InlineTensor(np.array([0.1, 1e-6, 16777216.0, 3.4028235e38], np.float32)))
    graph.add_const("h", InlineTensor(np.array([0.1, 65504.0], np.float16)))
    text = print_graph(graph)
    assert "[0.1, 1e-06, 16777216.0, 3.4028235e+38]" in text
    assert "[0.1, 65504.0]" in text
    round_trip(graph)


# ---- facts ----


class Colour(Fact):
    """A fact for the tests."""

    name = "test-colour"

    def __init__(self, colour: str) -> None:
        if colour not in ("red", "blue"):
            raise ValueError(colour)
        self.colour = colour

    def to_data(self):
        return {"colour": self.colour, "pair": (1, 2)}

    @classmethod
    def from_data(cls, data):
        return cls(data["colour"])


FACTS.add("test-colour", Colour)


def test_facts_are_rebuilt_and_unknown_ones_kept():
    graph = one_node()
    graph.set_fact("test-colour", Colour("red"))
    graph.set_fact("nobody-knows", {"deep": [{"a": 0.1, "b": None}] * 20})
    again = round_trip(graph)
    assert isinstance(again.facts["test-colour"], Colour) and again.facts["test-colour"].colour == "red"
    assert isinstance(again.facts["nobody-knows"], RawFact)
    assert again.facts["nobody-knows"].to_data() == graph.facts["nobody-knows"]
    again.set_fact("test-colour", Colour("blue"))
    assert "fact 'test-colour'" in differences(graph, again)[0]


def test_two_classes_cannot_have_one_fact_name():
    with pytest.raises(LadingError, match="test-colour"):
        FACTS.add("test-colour", type("Other", (Colour,), {"name": "test-colour"}))


# ---- what a person writes ----

HEAD = 'lading 1\ngraph g {\n  opset "" 24\n  dim seq = 1..8\n  input %x: f32[2, seq]\n'


def body(text: str) -> str:
    return HEAD + text + "\n}\n"


def test_comments_and_blanks_are_free():
    text = "// first\nlading 1 graph g{ // here\n  input %x : f32[ 2 ,seq] dim seq=1 .. 8\n\n"
    text += "%y=Neg( %x )output %y}//last"
    assert len(parse(text).nodes) == 1


@pytest.mark.parametrize(
    ("line", "code", "at", "underlined", "hint"),
    [
        ("  %y = Neg(%x", "I100", "7:1", "}", ""),
        ("  ouput %x", "I100", "6:3", "ouput", "did you mean 'output'?"),
        ("  %y = Neg(%xx)", "I102", "6:12", "%xx", "did you mean 'x'?"),
        ("  %y = Neg(@x)", "I108", "6:12", "@x", ""),
        ("  %x = Neg(%x)", "I103", "6:3", "%x", ""),
        ("  %y, %y = Split(%x)", "I103", "6:7", "%y", ""),
        ("  %y: f33[2] = Neg(%x)", "T270", "6:7", "f33", "did you mean 'f32'?"),
        ("  %y: f32[a b] = Neg(%x)", "I100", "6:7", "f32[a b]", "quote"),
        ("  %y = Neg(%x) {a = 1, a = 2}", "I103", "6:24", "a", ""),
        ("  %y = Neg(%x) {a = ?}", "I100", "6:21", "?", ""),
        ("  %y = Neg(%x) {a = }", "I100", "6:21", "}", ""),
        ('  %y = Neg(%x) "open', "I100", "6:16", '"open', ""),
        ('  %y = Neg(%x) "a\\qb"', "I100", "6:16", '"a\\qb"', "known"),
        ("  const @c: f32[2] = [1.0]", "I104", "6:22", "[", ""),
        ("  const @c: i8[1] = [300]", "I104", "6:22", "300", ""),
        ("  const @c: f16[1] = [1e6]", "I104", "6:22", "[", ""),
        ("  const @c: f16[1] = [nan:0]", "I104", "6:22", "[", ""),
        ("  const @c: f32[seq] = [1.0]", "I104", "6:24", "[", ""),
        ('  const @c: f32[1] = base64 "AAA="', "I104", "6:29", '"AAA="', ""),
        ('  const @c: f32[1] = base64 "!"', "I104", "6:29", '"!"', ""),
        ("  const @c: f32[1] = tranposed(1)", "I105", "6:22", "tranposed", "did you mean 'transposed'?"),
        ("  const @c: f32[1] = transposed(1)", "I105", "6:22", "transposed", ""),
        ('  const @c: f32[1] = transposed(file("x", 0, f32[2, 3]))', "I106", "6:22", "transposed", ""),
        ('  const @c: f32[1] = file("x", 0, f32[2])', "I106", "6:22", "file", ""),
        ("  const %c: f32[1] = [1.0]", "I108", "6:9", "%c", ""),
        ("  dim seq = 2..3", "I103", "6:7", "seq", ""),
        ("  dim n = 1.." + "9" * 200, "I104", "6:14", "9" * 20, ""),
        ("  table a = %x table a = %x", "I103", "6:22", "a", ""),
        ("  fact a {} fact a {}", "I103", "6:18", "a", ""),
        ("  fact a {b}", "I100", "6:11", "b", ""),
        ("  fact a [1]", "I107", "6:8", "a", ""),
        ('  fact test-colour {"colour": "green"}', "I107", "6:8", "test-colour", ""),
        ("  output", "I100", "7:1", "}", ""),
    ],
)  # fmt: skip
def test_errors_point_at_their_place(line, code, at, underlined, hint):
    text = body(line)
    with pytest.raises(LadingError) as caught:
        parse(text, source="case.lading")
    found = caught.value.diagnostics[0]
    place, shown, carets = found.where.split("\n")
    assert (found.code, place) == (code, f"case.lading:{at}")
    start = carets.index("^")
    assert shown[start : start + len(carets) - start].startswith(underlined[: len(carets) - start])
    assert hint in found.hint


def test_a_new_version_is_refused_by_name():
    with pytest.raises(LadingError, match="I101") as caught:
        parse("lading 2\ngraph g {}")
    assert "version 2" in str(caught.value)


def test_an_inner_name_cannot_hide_an_outer_one():
    text = body("  %y = If(%x) {b = graph t { %q = Neg(%x) output %q }}\n  %q = Neg(%x)")
    with pytest.raises(LadingError, match="I103"):
        parse(text)


def test_long_lines_are_cut_around_the_error():
    text = body("  %y = Neg(" + "%x, " * 200 + "%oops" + ", %x" * 200 + ")")
    with pytest.raises(LadingError) as caught:
        parse(text)
    _, shown, carets = caught.value.diagnostics[0].where.split("\n")
    assert len(shown) <= 120 and shown[carets.index("^") :].startswith("%oops")


def test_deep_nesting_is_an_error_and_no_crash():
    for text in ("[" * 100_000, "".join(f"graph t {{%q{n} = If(%x) {{b = " for n in range(3000))):
        with pytest.raises(LadingError, match="I100"):
            parse(body("  %y = Neg(%x) {a = " + text))


DAMAGE = ("", '"', "{", "}", "[", "%", "@", "nan", "9" * 200, "\\", "=", "x", ",", "\n", "-")


@settings(quick, max_examples=150)
@given(graphs(max_nodes=4), st.data())
def test_damaged_text_is_never_a_crash(graph, data):
    text = print_graph(graph)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        upto = data.draw(st.integers(at, min(len(text), at + 12)))
        new = data.draw(st.sampled_from(DAMAGE))
        text = text[:at] + new + text[upto:]
    try:
        found = parse(text)
    except LadingError as error:
        assert error.code in {"I100", "I101", "I102", "I103", "I104", "I105", "I106", "I107", "I108", "T270"}
    else:
        parse(print_graph(found))


def test_what_cannot_be_printed_is_the_author_s_mistake():
    with pytest.raises(TypeError, match="object"):
        print_graph(one_node(a=object()))
    graph = one_node()
    graph.set_fact("f", 3)
    with pytest.raises(TypeError):
        print_graph(graph)


# ---- pieces ----


def test_type_text_names_every_kind():
    seq = Dim("seq")
    assert type_text(TensorType(F32)) == "f32[*]"
    assert type_text(TensorType(F16, ())) == "f16[]"
    assert type_text(TensorType(I32, (1, seq, Dim("past + 1")))) == 'i32[1, seq, "past + 1"]'


def test_quote_is_reversible_json_free_text():
    assert quote('a"b\n\u2028') == '"a\\"b\\n\\u{2028}"'


def test_snippet_underlines_the_operand():
    graph = parse(body("  const @c: f32[1] = [1.0]\n  %a = Neg(%x)\n  %b, %d = Foo(%a, _, @c) {k = 1}\n  %e = Neg(%b)"))
    node = list(graph.nodes)[1]
    for options, wanted in ({"operand": 2}, "@c"), ({"operand": 1}, "_"), ({"output": 1}, "%d"), ({}, "Foo"):
        before, line, carets, after = snippet(node, **options).split("\n")
        assert line[carets.index("^") :].startswith(wanted) and carets.count("^") == len(wanted)
    assert "%a = Neg" in before and "%e = Neg" in after


def test_printing_and_parsing_is_linear():
    def cost(count: int) -> float:
        graph = Graph("g")
        value = graph.add_input("x", TensorType(F32, (1, Dim("seq"), 64)))
        for index in range(count):
            value = graph.add(
                "Add", [value, value], {"axis": -1}, outputs=[f"v{index}"], types=[value.type], name=f"/n/{index}"
            ).output
        graph.set_outputs([value])
        return calls_of(lambda: parse(print_graph(graph))) / count

    assert cost(4000) < 1.2 * cost(400)


def test_int64_extremes_survive():
    graph = Graph("g")
    graph.add_const("c", InlineTensor(np.array([-(2**63), 2**63 - 1], np.int64)))
    graph.add_const("u", InlineTensor(np.array([2**64 - 1], np.uint64)))
    assert round_trip(graph).value("c").const.load().tolist() == [-(2**63), 2**63 - 1]
    assert graph.value("c").type == TensorType(I64, (2,))
