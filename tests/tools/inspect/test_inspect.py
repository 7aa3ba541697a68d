"""The summary of a graph, the geometry of its picture, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.graph.graph import Graph
from ir.ops.registry import OPERATORS, AttrDef, OpDef
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.manager import run_passes
from tests.support.graphs import graphs
from tests.support.pass_graphs import decoder
from tests.support.paths import ROOT
from tools.inspect.command import main as inspect
from tools.inspect.layered import Box, layered
from tools.inspect.picture import html, svg
from tools.inspect.scene import LARGEST, make_scene
from tools.inspect.summary import amount, lines, summarize
from tools.shared.formats import Formats

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def model() -> Graph:
    graph = Formats().read(str(EXAMPLE))
    run_passes(graph, "canonicalize")
    return graph


@pytest.fixture(scope="module")
def lowered() -> Graph:
    graph = Formats().read(str(EXAMPLE))
    run_passes(graph, "default")
    return graph


# ---- summary ----


def test_a_decoder_is_described(model):
    found = summarize(model, {"seq": 16})
    (block,) = found.blocks
    assert (block["count"], block["nodes"], block["operators"]["MatMul"]) == (4, 19, 7)
    assert found.parameters == sum(
        value.type.size for value in model.consts.values() if value.dtype.is_float and value.type.size > 1
    )
    assert sum(row["bytes"] for row in found.storage) == found.memory["constants"]
    assert found.memory["sizes"] == {"seq": 16} and found.memory["largest"][0]["name"] == "logits"
    assert found.parts == 1 and found.unused == {"inputs": [], "nodes": 0, "constants": 0}
    assert found.split["bytes"] == 16 * 256 * 4
    # Up to the last attention the angles of the positions go their own way beside the residual stream.
    assert found.bottlenecks == ["model.layers.3.attn_residual", "model.layers.3", "model.norm"]


def test_codes_that_lie_two_to_a_byte_count_as_numbers():
    graph = Graph("packed", {"": 21, "com.microsoft": 1})
    codes, scale = np.zeros((24, 2, 16), np.uint8), np.ones((24, 2), np.float32)
    x = graph.add_input("x", TensorType(F32, (4, 64)))
    inputs = [x, *(graph.add_const(name, InlineTensor(array)) for name, array in (("w", codes), ("s", scale)))]
    attrs = {"K": 64, "N": 24, "bits": 4, "block_size": 32}
    node = graph.add("com.microsoft.MatMulNBits", inputs, attrs, types=[TensorType(F32, (4, 24))])
    graph.set_outputs([node.output])
    assert summarize(graph).parameters == 24 * 64


def test_quantized_storage_and_meetings_of_inputs(lowered):
    found = summarize(lowered)
    stored = {(row["type"], row["stored"]) for row in found.storage}
    assert ("i4", "transposed of quantized_codes of file") in stored
    meets = {item["name"]: item["meets"] for item in found.inputs}
    assert meets["logits_index"] == "model.layers.3.rows"
    assert found.blocks[0]["count"] == 4 and found.tables[0]["name"] == "embedding"


@pytest.fixture
def foreign():
    """An operator as a plugin brings it."""
    definition = OpDef(
        "elsewhere.Mixer", inputs=("x",), attrs={"kind": AttrDef("kind", "str", required=True)},
        role="linear", label=lambda node: f"mixer by {node.attrs['kind']}", doc="Mixes channels.", package="elsewhere",
    )  # fmt: skip
    OPERATORS.add(definition.name, definition, "elsewhere")
    yield definition
    OPERATORS.remove(definition.name)


def test_operators_say_themselves_how_they_are_drawn(foreign, lowered):
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2, 3)))
    node = graph.add(foreign.name, [x], {"kind": "rows"}, outputs=["y"], types=[x.type])
    graph.set_outputs([node.output])
    item = make_scene(graph).items[node]
    assert (item.kind, item.label, item.details["meaning"]) == ("linear", "mixer by rows", "Mixes channels.")
    drawn = {(item.label, item.kind) for item in make_scene(lowered).items.values()}
    assert {("mnn.Binary ADD", "math"), ("mnn.LayerNorm", "norm"), ("mnn.Slice", "layout")} <= drawn


def test_what_is_unused_is_told():
    graph = parse("""lading 1
graph g {
  const @c: f32[3] = [1.0, 2.0, 3.0]
  input %x: f32[2]
  input %idle: f32[2]
  %dead: f32[2] = Neg(%x)
  %y: f32[2] = Abs(%x)
  output %y
}""")
    found = summarize(graph)
    assert found.unused == {"inputs": ["idle"], "nodes": 1, "constants": 1}
    assert ("unused", "input %idle, 1 node, 1 constant") in lines(found)


@pytest.mark.parametrize(("sizes", "part"), [({"sec": 3}, "did you mean 'seq'"), ({"seq": 65}, "seq cannot be 65")])
def test_sizes_are_checked(sizes, part):
    with pytest.raises(LadingError, match=part) as caught:
        summarize(decoder(1), sizes)
    assert caught.value.code == "U932"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_every_graph_can_be_described_and_drawn(graph):
    assert json.dumps([list(row) for row in lines(summarize(graph))])
    scene = make_scene(graph)
    ET.fromstring(svg(scene).encode("utf-8", "replace"))
    assert_apart(scene)


def test_an_empty_graph():
    found = summarize(Graph("none"))
    assert (found.nodes, found.depth, found.blocks) == (0, 0, [])
    assert ET.fromstring(svg(make_scene(Graph("none")))).tag.endswith("svg")


AMOUNTS = [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.35 MB"), (3e9, "3.00 GB")]


@pytest.mark.parametrize(("count", "text"), AMOUNTS)
def test_amounts(count, text):
    assert amount(count) == text


# ---- geometry ----


def assert_apart(scene):
    """Boxes do not overlap, nodes of a block are inside its frame, all others outside."""
    by_row = sorted(scene.boxes.items(), key=lambda item: item[1].y)
    for (one, a), (two, b) in combinations(by_row, 2):
        if b.y >= a.y + a.height:
            continue
        assert not a.overlaps(b), (one, two)
    for index, frame in enumerate(scene.frames):
        for key, box in scene.boxes.items():
            if scene.items[key].group == index:
                assert frame.x <= box.x and box.x + box.width <= frame.x + frame.width
                assert frame.y <= box.y and box.y + box.height <= frame.y + frame.height
            else:
                assert not frame.overlaps(box), key
    for key, box in scene.boxes.items():
        assert box.x >= -1e-6 and box.x + box.width <= scene.width + 1e-6, key
        assert box.y >= -1e-6 and box.y + box.height <= scene.height + 1e-6, key


@pytest.mark.parametrize("which", ["model", "lowered", "traced"])
def test_boxes_of_decoders_do_not_overlap_and_edges_reach_them(which, request):
    graph = decoder(6) if which == "traced" else request.getfixturevalue(which)
    scene = make_scene(graph)
    assert len(scene.frames) == 1 and len(scene.items) < len(graph.nodes)
    assert_apart(scene)
    for (a, b), points in scene.routes.items():
        start, end = scene.boxes[a], scene.boxes[b]
        assert (
            points[0][1] == pytest.approx(start.y + start.height) and start.x <= points[0][0] <= start.x + start.width
        )
        assert points[-1][1] == pytest.approx(end.y) and end.x <= points[-1][0] <= end.x + end.width
        assert [y for _, y in points] == sorted(y for _, y in points), "edges lead down"


def test_edges_do_not_pass_through_boxes(model):
    """Lanes are kept free: no straight piece of a route lies inside a box other than its ends."""
    scene = make_scene(model)
    for ends, points in scene.routes.items():
        for (x, top), (u, bottom) in pairwise(points):
            if x == u and bottom > top:
                lane = Box(x - 0.5, top + 0.5, 1, bottom - top - 1)
                assert [key for key, box in scene.boxes.items() if key not in ends and box.overlaps(lane)] == []


def test_the_svg_has_the_boxes_of_the_scene(model):
    scene = make_scene(model)
    root = ET.fromstring(svg(scene))
    space = "{http://www.w3.org/2000/svg}"
    rects = [
        node.find(f"{space}rect") for node in root.iter(f"{space}g") if "node" in (node.get("class") or "").split()
    ]
    boxes = [Box(*(float(rect.get(name)) for name in ("x", "y", "width", "height"))) for rect in rects]
    assert len(boxes) == len(scene.items)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert [text.text for text in root.iter(f"{space}text") if text.text.startswith("×")] == ["×4"]


def test_texts_fit_into_their_boxes(lowered):
    """By the widths of a common sans serif: 13 px labels about 7.6 px a letter, 11 px notes about 6.4."""
    for item in make_scene(lowered).items.values():
        width, _ = item.size
        assert len(item.label) * 7.6 <= width - 10 and len(item.note) * 6.0 <= width - 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=40))
def test_layouts_of_any_graph_keep_boxes_apart(edges):
    sizes = {key: (40.0 + 7 * (key % 5), 20.0 + key % 3) for key in range(15)}
    drawn = layered(sizes, edges)
    assert not any(a.overlaps(b) for a, b in combinations(drawn.boxes.values(), 2))
    assert set(drawn.routes) == {(a, b) for a, b in edges if a != b}


def test_chains_are_straight():
    drawn = layered({key: (30.0 + 10 * key, 20.0) for key in range(6)}, [(key, key + 1) for key in range(5)])
    assert len({round(box.middle, 6) for box in drawn.boxes.values()}) == 1


# ---- what is drawn ----


def test_weights_are_drawn_inside_the_nodes_that_read_them(lowered):
    scene = make_scene(lowered)
    shown = [item for item in scene.items.values() if item.label == "DequantizeLinear"]
    assert len(shown) == 1, "only the embedding table, which no node reads"
    convolution = next(item for item in scene.items.values() if item.label == "mnn.Convolution")
    assert convolution.note == "i4[256, 256], blocks of 64" and "DequantizeLinear" in convolution.details["weights"][0]


def test_inputs_of_the_blocks_that_are_not_drawn_are_counted():
    graph = Graph("cached", {"": 24})
    kind = TensorType(F32, (4, 4))
    x, made = graph.add("Neg", [graph.add_input("x", kind)], types=[kind]).output, []
    for layer in range(5):
        past = graph.add_input(f"past.{layer}", kind)
        product = graph.add("MatMul", [x, past], types=[kind]).output
        made.append(graph.add("Tanh", [product], types=[kind], outputs=[f"now.{layer}"]).output)
        x = graph.add("Relu", [graph.add("Add", [x, made[-1]], types=[kind]).output], types=[kind]).output
    graph.set_outputs([x, *made])
    labels = [item.label for item in make_scene(graph).items.values()]
    assert "past.0 ×5" in labels and "now.0 ×5" in labels and labels.count("MatMul") == 1


def test_a_part_of_a_graph(model):
    scene = make_scene(model, around="model.layers.2.self_attn.attention", steps=1)
    labels = sorted(item.label for item in scene.items.values())
    assert labels == ["Add", "Attention", "MatMul", "RotaryEmbedding", "RotaryEmbedding"]
    with pytest.raises(LadingError, match="did you mean"):
        make_scene(model, around="model.layers.2.self_attn.atention")


def test_too_large_a_picture_is_refused():
    graph = Graph("wide")
    x = graph.add_input("x", TensorType(F32, (2,)))
    graph.set_outputs([graph.add("Neg", [x]).output for _ in range(LARGEST)])
    with pytest.raises(LadingError, match="--around") as caught:
        make_scene(graph)
    assert caught.value.code == "U930"
    assert len(make_scene(graph, around=graph.outputs[7].name, steps=1).items) > 0


# ---- the command ----


def run(*arguments):
    return CliRunner().invoke(inspect, [str(item) for item in arguments])


def test_the_command_prints_and_draws(tmp_path):
    picture, page = tmp_path / "p" / "g.svg", tmp_path / "p" / "g.html"
    result = run(EXAMPLE, "--size", "seq=16", "--svg", picture, "--html", page)
    assert result.exit_code == 0, result.output
    assert re.search(r"^block +4 times 19 nodes, 689,152 parameters in each: 7 MatMul", result.stdout, re.MULTILINE)
    assert re.search(r"^memory .* with seq = 16$", result.stdout, re.MULTILINE)
    assert ET.parse(picture).getroot().tag.endswith("svg")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page.read_text()), "the page needs nothing from elsewhere"
    data = json.loads(run(EXAMPLE, "--json").stdout)
    assert data["blocks"][0]["count"] == 4 and data["depth"] > 30


@pytest.mark.parametrize(
    ("options", "status", "part"),
    [
        (["--size", "seq"], 2, "is not NAME=SIZE"),
        (["--size", "seq=0"], 1, "error[U932]"),
        (["--svg", "/dev/null/x.svg"], 1, "error[U931]"),
        (["--svg", "x.svg", "--around", "nothing"], 1, "error[U930]"),
    ],
)
def test_what_is_wrong_with_the_options(options, status, part):
    result = run(EXAMPLE, *options)
    assert result.exit_code == status and part in result.stderr


def test_the_module_runs_as_such():
    result = subprocess.run(
        [sys.executable, "-m", "tools.inspect", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0 and "--html" in result.stdout, result.stderr


# ---- the browser ----

PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message)));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
for (const name of ["error", "warn"]) console[name] = (...words) => errors.push(words.join(" "));
addEventListener("load", () => setTimeout(() => {
  const found = {errors, ready: document.documentElement.dataset.ready || ""};
  const get = query => document.querySelector(query), panel = () => get("#panel").innerText;
  try {
    found.nodes = document.querySelectorAll(".node").length;
    found.overview = panel();
    found.boxes = [...document.querySelectorAll(".node")].map(node => {
      const box = node.querySelector("rect").getBBox();
      return [...node.querySelectorAll("text")].every(text => text.getBBox().width <= box.width - 4); });
    const start = get("#view").getAttribute("transform");
    const box = get(".node.attention").getBoundingClientRect();
    get(".node.attention").dispatchEvent(new MouseEvent("click", {bubbles: true}));
    found.details = panel();
    found.near = document.querySelectorAll(".edge.near").length;
    get("#find").value = "softmax or nothing"; get("#find").dispatchEvent(new Event("input"));
    found.none = get("#hits").textContent;
    get("#find").value = "matmul 640"; get("#find").dispatchEvent(new Event("input"));
    found.hits = get("#hits").textContent;
    get("#find").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
    found.current = get("#hits").textContent;
    const label = word => { get("#find").value = word; get("#find").dispatchEvent(new Event("input"));
      get("#find").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"})); return get("#panel h2").textContent; };
    found.whole = ["Mul", "add"].map(label);
    found.moved = get("#view").getAttribute("transform") !== start;
    get("#stage").dispatchEvent(new WheelEvent("wheel", {deltaY: -300, clientX: 300, clientY: 300, cancelable: true}));
    found.zoomed = parseFloat(get("#view").getAttribute("transform").split("scale(")[1]);
    const before = get("#view").getAttribute("transform");
    get("#stage").dispatchEvent(new PointerEvent("pointerdown", {pointerId: 1, clientX: 100, clientY: 100, bubbles: true}));
    window.dispatchEvent(new PointerEvent("pointermove", {pointerId: 1, clientX: 160, clientY: 130}));
    window.dispatchEvent(new PointerEvent("pointerup", {pointerId: 1}));
    found.dragged = get("#view").getAttribute("transform") !== before;
    get(".badge").dispatchEvent(new MouseEvent("click", {bubbles: true}));
    get("#fit").click();
    found.fitted = get("#view").getAttribute("transform") === start;
    const light = getComputedStyle(document.body).backgroundColor;
    get("#theme").click();
    found.themed = getComputedStyle(document.body).backgroundColor !== light;
    found.wide = document.documentElement.scrollWidth > innerWidth;
  } catch (error) { errors.push(String(error)); }
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found); document.body.append(out);
}, 50));
</script>
"""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")
@pytest.mark.parametrize("size", ["1300,900", "420,800"])
def test_the_page_in_a_browser(size, tmp_path, model):
    """Opens, shows details, searches, zooms, moves and changes its theme, without an error on the console."""
    page = tmp_path / "g.html"
    page.write_text(html(make_scene(model), lines(summarize(model))).replace("<head>", "<head>" + PROBE, 1))
    result = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    match = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    assert match, result.stderr[-2000:]
    found = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["errors"] == [] and found["ready"] == "yes"
    assert found["nodes"] == len(make_scene(model).items) and all(found["boxes"])
    assert "4 times 19 nodes" in found["overview"]
    assert "RotaryEmbedding" in found["details"] and "in each of 4 blocks" in found["details"] and found["near"] == 4
    assert found["none"] == "0 found" and found["hits"] == "3 found" and found["current"] == "1 of 3"
    assert found["whole"] == ["Mul", "Add"], "MatMul comes before, and holds the word only inside another one"
    assert found["moved"] and found["zoomed"] > 1 and found["dragged"] and found["fitted"] and found["themed"]
    assert not found["wide"], "the page is never wider than the window"


def test_names_cannot_break_out_of_the_page():
    graph = Graph("</script><script>alert(1)</script>")
    x = graph.add_input("<b>&\"'", TensorType(F32, (2,)))
    graph.set_outputs([graph.add("Neg", [x], name="</script>", loc="<!--").output])
    text = html(make_scene(graph), [("graph", "</script>")])
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<!--" not in text.split("<body>")[1]
    assert print_graph(graph) and ET.fromstring(svg(make_scene(graph)))
