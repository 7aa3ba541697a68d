"""The manual and the READMEs: generated pages are up to date, links lead somewhere, code runs, figures are true."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from backends.bars import EXACT_BAR, KL_BARS, KL_USUAL, TOP1_BARS, TOP1_USUAL
from backends.contract import read
from backends.mnn.backend import QUICK_SAMPLE
from backends.mnn.target.releases import PROFILES, RELEASES
from backends.mnn.verify.logits import LEVELS, WINDOW
from frontends.families.table import FAMILIES, WRAPPERS
from frontends.parts.rope import KINDS
from ir.base.plugins import Plugin
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.load import parse as parse_pipeline
from passes.framework.manager import PassManager
from passes.framework.registry import Registry, default_registry
from tests.support.families.judge import main as judge
from tests.support.families.keys import main as try_keys
from tests.support.families.mutations import main as try_mistakes
from tests.support.paths import ROOT
from tools.compile.job import EXAMPLE, Request, compile_model, with_example_texts
from tools.docs import PAGES
from tools.ladder.charts import short_name
from tools.main import main
from tools.pictures import PICTURES, matrix_rows
from tools.pictures import main as draw

DOCS = ROOT / "docs"
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
CHINESE = sorted((DOCS / "zh").glob("*.md"))
MANUAL = [*READMES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *CHINESE]
WRITTEN = [path for path in MANUAL if path.parent != DOCS or path.name not in PAGES]


def named(paths):
    """Parametrize over pages by their names."""
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


def blocks(path: Path, language: str, mark: str = "") -> list[str]:
    """The fenced blocks of a language, or only those behind a comment that begins with `mark`."""
    before = rf"<!-- {re.escape(mark)}[^\n]*-->\n" if mark else ""
    return re.findall(rf"^{before}```{language}\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """The text of a page without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """Inline code of a page, table cells unescaped."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(path))]


def rows(path: Path, first: str) -> list[list[str]]:
    """Rows of the table whose head begins with `first`, cells without code marks."""
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.replace("`", "").startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.replace("`", "").strip("|").split("|")])
    return found


# ---- generated pages ----


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_what_the_source_says(name, pytestconfig):
    page = PAGES[name]()
    if pytestconfig.getoption("--accept"):
        (DOCS / name).write_text(page)
    assert (DOCS / name).read_text() == page, "run python -m tools.docs"


@pytest.mark.parametrize("name", PICTURES)
def test_generated_picture_is_what_its_numbers_say(name, pytestconfig):
    drawn = PICTURES[name](DOCS)
    if pytestconfig.getoption("--accept"):
        (DOCS / "pictures" / name).write_text(drawn)
    assert (DOCS / "pictures" / name).read_text() == drawn, "run python -m tools.pictures"
    assert len(drawn) < 20_000 and all(f"(docs/pictures/{name})" in path.read_text() for path in READMES)
    picture = ElementTree.fromstring(drawn)
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    # On a telephone the picture is 330 pixels wide; letters of 13 are then at least 7.
    assert float(picture.attrib["width"]) == width <= 600
    for item in picture.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(item.attrib["x"]) < width and 0 < float(item.attrib["y"]) < height
        wide = 6.4 * len(item.text) * {"end": 1, "mid": 0.5}.get(item.attrib.get("class", "").split(" ")[-1], 0)
        assert float(item.attrib["x"]) - wide > 0, item.text


def test_pictures_have_every_rung_pass_and_outcome():
    numbers = json.loads((DOCS / "pictures" / "ladder.json").read_text())
    curve = (DOCS / "pictures" / "ladder.svg").read_text()
    assert curve.count('class="point') - len({rung["kind"] for rung in numbers["rungs"]}) == len(numbers["rungs"])
    labels = set(re.findall(r"<text[^>]*>([^<]+)</text>", curve))
    assert {short_name(rung) for rung in numbers["rungs"]} <= labels
    releases, models = matrix_rows((DOCS / "compatibility.md").read_text())
    cells = sum(len(cells) for rows in models.values() for cells in rows.values())
    outcomes = (DOCS / "pictures" / "matrix.svg").read_text()
    shown = re.findall(r'class="square \w+" d="([^"]*)"', outcomes)
    assert sum(path.count("M") for path in shown) == cells + len(shown) / 2 and len(releases) == len(RELEASES)


# ---- links ----


def anchors(path: Path) -> set[str]:
    """The anchors that headings of a page get."""
    heads = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", named(MANUAL))
def test_links_lead_somewhere(path):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
            dead.append(target)
    assert dead == []


def linked(path: Path) -> set[Path]:
    """Pages of the manual that a page links to, itself aside."""
    found = {path.parent / target for target in re.findall(r"\]\(([\w./-]+\.md)[#)]", path.read_text())}
    return {page.resolve() for page in found} - {path}


def test_index_lists_every_page():
    assert linked(DOCS / "index.md") >= {*DOCS.glob("*.md")} - {DOCS / "index.md"}
    assert DOCS / "zh" / "index.md" in linked(DOCS / "index.md")


def test_chinese_index_lists_every_page_once_in_chinese_where_there_is_one():
    index = DOCS / "zh" / "index.md"
    # The page on repair is part of the one on the doctor.
    translated = {DOCS / path.name for path in CHINESE} | {DOCS / "repair.md"}
    assert linked(index) == {*CHINESE, *DOCS.glob("*.md"), DOCS / "index.md"} - {index} - translated | {
        DOCS / "index.md"
    }


@pytest.mark.parametrize("path", named(CHINESE))
def test_chinese_pages_lead_to_their_originals_and_the_readme_to_them(path):
    assert DOCS / path.name in linked(path)
    reachable = linked(READMES[1]) | linked(DOCS / "zh" / "index.md")
    assert path in reachable and (path.name == "index.md" or DOCS / "zh" / "index.md" in linked(path))
    assert path in linked(DOCS / path.name)


CODE = ("console", "cpp", "kotlin", "lading")


@pytest.mark.parametrize("path", named(CHINESE))
def test_code_of_chinese_pages_stands_in_their_originals(path):
    original = DOCS / path.name
    for language in CODE:
        own = blocks(path, language)
        assert own == blocks(original, language)[: len(own)], language


def test_chinese_readme_leads_to_chinese_pages():
    originals = linked(READMES[1]) & {DOCS / path.name for path in CHINESE}
    assert originals == set()


# ---- commands, options and pipelines that pages speak of ----


def options() -> set[str]:
    """Long options of all commands, and of other programs where pages call them."""
    found = {"--version", "--help", "--index-url", "--accept", "--check", "--slow", "--nthreads"}
    own = [main.get_command(click.Context(main), name) for name in main.list_commands(click.Context(main))]
    for command in [*own, draw, judge, try_mistakes, try_keys]:
        found.update(
            text for item in command.params for text in (*item.opts, *item.secondary_opts) if text.startswith("--")
        )
    return found


@pytest.mark.parametrize(
    "path", named([path for path in WRITTEN if path.name not in ("embedding.md", "conformance.md")])
)
def test_options_exist(path):
    code = [*blocks(path, "sh"), *spans(path), *re.findall(r"^    (?:lading|python) .*$", prose(path), re.MULTILINE)]
    used = {option for text in code for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert used - options() == set()


@pytest.mark.parametrize("path", named(WRITTEN))
def test_pipelines_parse(path):
    known = "|".join(sorted({*default_registry().passes, *default_registry().pipelines}))
    code = [*spans(path), *re.findall(r"--passes '([^']+)'", path.read_text())]
    for text in code:
        if re.fullmatch(rf"({known})\{{.*\}}", text):
            parse_pipeline(text)


# ---- code ----


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder in which the example is compiled to build/tiny-qwen2.5."""
    folder = tmp_path_factory.mktemp("docs")
    compile_model(Request(str(EXAMPLE), folder / "build" / "tiny-qwen2.5", verify="none"))
    return folder


def run_doctest(text: str, name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert result.attempted and not result.failed, "".join(output)


@pytest.mark.parametrize("path", named(READMES))
def test_contract_check_of_the_readme_runs(path, example, monkeypatch):
    monkeypatch.chdir(example)
    (block,) = blocks(path, "python")
    run_doctest(block, path.name)
    assert "error[C820]: input 'logits_index' is missing" in block


@pytest.mark.parametrize("path", named([*READMES, DOCS / "quantization.md", DOCS / "zh" / "quantization.md"]))
def test_quantization_file_decides_as_it_says(path, tmp_path, monkeypatch):
    (tmp_path / "mix.toml").write_text(next(block for block in blocks(path, "toml") if "[[rule]]" in block))
    monkeypatch.chdir(tmp_path)
    compile_model(Request(str(EXAMPLE), tmp_path / "out", 'default{plan="mix.toml"}', verify="none"))
    storage = {item.name: item.storage for item in read(tmp_path / "out").weights}
    down = storage["model.layers.3.mlp.down_proj.weight"]
    assert down.bits in (5, 6) and down.block == 32
    assert storage["lm_head.weight"].symmetric and not down.symmetric
    assert storage["model.layers.3.mlp.up_proj.weight"].bits == 4


def test_pipeline_file_of_the_concepts_is_a_pipeline(tmp_path):
    (block,) = blocks(DOCS / "concepts.md", "toml")
    (tmp_path / "pipeline.toml").write_text(block)
    from passes.framework.load import load

    assert str(load(str(tmp_path / "pipeline.toml"))) == str(
        parse_pipeline("default{bits=4 block=32 keep=[re:o_proj]}")
    )


def test_graph_of_the_concepts_reads_back_and_becomes_what_is_shown():
    text, after = blocks(DOCS / "concepts.md", "lading")
    graph = parse(text)
    assert print_graph(graph) == text
    # the only product of this graph is its output, so it counts as the logits matrix
    PassManager("assign-precision{logits-bits=4},insert-qdq").run(graph, given=("signature",))
    lines = print_graph(graph).splitlines()
    assert [line for line in after.splitlines() if line not in lines] == []


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The files of docs/writing-a-pass.md, installed in a folder."""
    page = DOCS / "writing-a-pass.md"
    folder = tmp_path_factory.mktemp("plugin")
    (source,) = blocks(page, "python", "file: lading_powers.py")
    (cases,) = blocks(page, "text", "file: cases/expand_powers.lading")
    (folder / "lading_powers.py").write_text(source)
    (folder / "cases").mkdir()
    (folder / "cases" / "expand_powers.lading").write_text(cases)
    points = tomllib.loads(blocks(page, "toml", "entry points")[0])["project"]["entry-points"]
    info = folder / "lading_powers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lading-powers\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in table.items())
        for group, table in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def with_plugin(plugin: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(plugin), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_cases_of_the_example_pass_succeed(plugin):
    cases = str(plugin / "cases" / "expand_powers.lading")
    pytest_options = (
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(plugin),
        "-c",
        os.devnull,
    )
    result = with_plugin(plugin, "-m", "pytest", *pytest_options, cases)
    assert result.returncode == 0 and "3 passed" in result.stdout, result.stdout + result.stderr


def test_example_pass_is_listed_once_installed(plugin):
    result = with_plugin(plugin, "-m", "tools.compile", "--list-passes")
    assert "expand-powers\n    Replace powers with a small whole exponent by products." in result.stdout, result.stderr
    result = with_plugin(plugin, "-m", "tools.compile", "--passes", "powers{max=5}", "--print-pipeline")
    assert result.stdout.strip() == "infer-types,expand-powers{max=5},cse,dce", result.stderr


def test_numbers_of_the_example_pass_are_checked_as_shown(plugin):
    (block,) = blocks(DOCS / "writing-a-pass.md", "python", "run")
    (plugin / "shown.txt").write_text(block)
    result = with_plugin(plugin, "-m", "doctest", str(plugin / "shown.txt"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_example_pass_meets_the_rules_for_passes(plugin, monkeypatch):
    monkeypatch.syspath_prepend(plugin)
    from lading_powers import PLUGIN

    assert isinstance(PLUGIN, Plugin)
    registry = Registry()
    registry.add(PLUGIN, "lading-powers")
    info = registry.describe("expand-powers")
    assert info.requires == ("typed",) and [item.key for item in info.options] == ["max"]


# ---- what the READMEs state ----


def test_both_readmes_hold_the_same_code():
    for language in ("sh", "toml", "console"):
        assert blocks(READMES[0], language) == blocks(READMES[1], language)


def test_the_two_commands_are_what_ci_runs():
    _, compile_command, test_command, *_ = (block.strip() for block in blocks(READMES[0], "sh"))
    assert compile_command == "pip install . && python -m tools.compile --passes default"
    steps = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")
    assert test_command in steps


def test_terminal_output_is_what_the_first_command_prints(tmp_path):
    shown = blocks(READMES[0], "console")[0].splitlines()
    assert shown[0] == "$ python -m tools.compile --passes default"
    result = subprocess.run(
        [sys.executable, "-m", "tools.compile", "--verify", "none", "-o", str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    until = next(number for number, line in enumerate(lines) if line.startswith("tokenizer"))
    assert lines[:until] == shown[1 : until + 1] and until > 5, result.stderr


COSTS = rows(READMES[0], "pipeline")


@pytest.mark.parametrize("row", COSTS, ids=[row[0] for row in COSTS])
def test_sizes_of_named_pipelines_are_those_stated(row, tmp_path):
    from tools.shared.stored import bits_per_weight

    request = Request(str(EXAMPLE), tmp_path / "out", row[0], verify="none")
    result = compile_model(with_example_texts(request, EXAMPLE))
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != "contract.json")
    assert f"{bits_per_weight(result.contract.weights):.2f}" == row[4]
    assert abs(size / 1e6 - float(row[3].removesuffix(" MB"))) < 0.02


def test_costs_are_stated_for_every_named_pipeline_alike():
    from backends.mnn.plugin import PLUGIN

    # Those for language models; the others are for graphs of any kind.
    assert {row[0] for row in COSTS} == {name for name in PLUGIN.pipelines if not name.startswith("mnn")}
    translated = rows(READMES[1], "流水线")
    assert [[row[0], *row[3:]] for row in COSTS] == [[row[0], *row[3:]] for row in translated]


@pytest.mark.parametrize(("path", "head"), [(READMES[0], "family"), (READMES[1], "模型系列")], ids=["en", "zh"])
def test_families_and_rotary_embeddings_are_those_of_the_tables(path, head):
    table = rows(path, head)
    named = [name for row in table for name in re.split("[、,] ?", row[1])]
    assert sorted(named) == sorted({*FAMILIES, *WRAPPERS})
    ropes = re.search(
        r"^(?:Rotary embeddings:|旋转位置编码：) *(.*?)[.。]$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert ropes is not None and re.split("[、,] ?", ropes[1]) == list(KINDS)


@pytest.mark.parametrize("path", named(READMES))
def test_targets_are_the_releases(path):
    table = rows(path, "--target")
    listed = [name for row in table for name in re.split("[、,] ?", row[0])]
    assert listed == ["portable", *PROFILES]
    halves = {name: row[3] for row in table for name in re.split("[、,] ?", row[0])}
    assert {name for name, text in halves.items() if "scale=f16" in text} == {
        name for name, release in RELEASES.items() if release.f16_scales
    }


# ---- what the manual states ----


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(
            DOCS / "verification.md",
            ("level", "yes", " weights", "A window is {} tokens", "more than {} against", "bits", "usual "), id="en",
        ),
        pytest.param(
            DOCS / "zh" / "verification.md",
            ("级别", "是", " 个权重", "一个窗口是 `--text` 文件中的 {} 个 token", "超过 {}", "位宽", "通常的 "), id="zh",
        ),
    ],
)  # fmt: skip
def test_levels_and_bars_of_verification(page, words):
    level, yes, weights, window, off, width, usual = words
    text = page.read_text()
    names = {row[0]: re.match(r"\w+", row[0], re.ASCII)[0] for row in rows(page, level)}
    stated = {names[row[0]]: tuple(map(int, row[2:5])) for row in rows(page, level)}
    assert {names[row[0]] for row in rows(page, level) if row[5] == yes} == {
        name for name, level in LEVELS.items() if level.original
    }
    assert stated == {
        "none": (0, 0, 0),
        **{name: (level.prompts, level.decode, level.windows) for name, level in LEVELS.items()},
    }
    assert f"{QUICK_SAMPLE:,}{weights}" in text and window.format(WINDOW) in text
    assert off.format(f"{EXACT_BAR:g}") in text
    found = re.findall(rf"^\| ({width}|(?:{usual})?KL|(?:{usual})?top-1) \|(.*)\|$", text, flags=re.MULTILINE)
    bars = {name: [cell.strip() for cell in line.split("|")] for name, line in found}
    widths = list(map(int, bars[width]))
    assert list(KL_BARS) == list(TOP1_BARS) == list(KL_USUAL) == list(TOP1_USUAL) == widths
    for name, table in (("KL", KL_BARS), (f"{usual}KL", KL_USUAL)):
        assert bars[name] == [str(limit) for limit in table.values()]
    for name, table in (("top-1", TOP1_BARS), (f"{usual}top-1", TOP1_USUAL)):
        assert bars[name] == [f"{limit:.0%}" for limit in table.values()]


def test_files_of_the_model_directory(tmp_path):
    stated = {row[0] for row in rows(DOCS / "mnn-backend.md", "file")}
    compile_model(Request(str(EXAMPLE), tmp_path / "out", "fp32", verify="none"))
    assert stated == {path.name for path in (tmp_path / "out").iterdir()}


def test_bits_per_weight_of_blocks(tmp_path):
    """The rule `bits + 64 / block`, less what the small headers take."""
    from tools.shared.stored import bits_per_weight

    for pipeline, wanted in (("int4", 4 + 64 / 64), ("int8{block=32}", 8 + 64 / 32), ("int4{symmetric}", 4 + 32 / 64)):
        result = compile_model(Request(str(EXAMPLE), tmp_path / pipeline[:8], pipeline, verify="none"))
        assert wanted <= bits_per_weight(result.contract.weights) < wanted + 0.03


@pytest.mark.parametrize(("name", "head"), [("quantization.md", "key"), ("zh/quantization.md", "键")])
def test_keys_of_the_quantization_file(name, head):
    from passes.precision import plan_file

    assert {row[0] for row in rows(DOCS / name, head)} == set(plan_file._KEYS)


def test_chinese_page_lists_every_command_and_exit_code():
    page = DOCS / "zh" / "commands.md"
    listed = [name for row in rows(page, "命令") for name in re.findall(r"lading (\w+)", row[0])]
    assert sorted(listed) == main.list_commands(click.Context(main))
    codes = [row[0] for row in rows(page, "退出码")]
    assert [code.replace("、", ", ") for code in codes] == [row[0] for row in rows(DOCS / "commands.md", "exit code")]


def test_chinese_page_on_quantization_has_the_figures_of_the_original():
    figures = {row[0]: row[1:] for row in rows(DOCS / "quantization.md", "pipeline")}
    for row in rows(DOCS / "zh" / "quantization.md", "流水线"):
        assert row[1:] == figures[row[0]]


def test_both_readmes_have_the_same_parts():
    def parts(path: Path) -> list[str]:
        lines = re.findall(r"^(#+ |- |\||!\[|```\w*)", re.sub(r"^    .*$", "", path.read_text(), flags=re.M), re.M)
        return [line.strip() for line in lines]

    assert parts(READMES[0]) == parts(READMES[1])


def test_pages_say_how_many_conversations_are_rendered():
    from backends.mnn.chat.conversations import CONVERSATIONS

    assert (
        f"in a process of its own with limits of time and memory, on {len(CONVERSATIONS)}\n"
        in (DOCS / "chat.md").read_text()
    )
    assert f"用运行时渲染 {len(CONVERSATIONS)} 段对话" in (DOCS / "zh" / "verification.md").read_text()
