"""Pipelines as text, as TOML and as values; options; the registry and its plugins."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir.base import plugins
from ir.base.diag import LadingError
from ir.base.plugins import Loaded, Plugin, of_entry_points, rows_of
from ir.base.tables import Table
from ir.ops.registry import OpDef, check_definition
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.load import load, parse
from passes.framework.options import option, options_of, read_text
from passes.framework.pipeline import Pipeline, Repeat
from passes.framework.registry import Registry, built_in_registry, default_registry
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Tune(Pass):
    """Has an option of every kind.

    The second paragraph is for the manual.
    """

    name = "tune-all"
    requires, establishes, breaks, lossy = ("typed",), ("tuned",), ("sorted",), True

    bits: Literal[4, 8] = option(4, help="storage width")
    mode: Literal["fast", "best"] = "fast"
    rate: float = option(0.5, low=0.0, high=1.0)
    count: int = option(3, low=1)
    label: str = ""
    plan: Path | None = None
    keep: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    deep: bool = False
    safe: bool = True
    limit: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits == 8 and self.mode == "best":
            raise ValueError("8 bits have no best mode")

    def run(self, graph, ctx):
        return None


@dataclass(frozen=True)
class Load(Pass):
    """Needs a file."""

    name = "load-plan"
    plan: Path = option(help="the plan to read")

    def prepare(self):
        return read_text(self.plan, "plan")

    def run(self, graph, ctx):
        return None


@dataclass(frozen=True)
class Trim(Pass):
    """Another pass with a count."""

    name = "trim"
    count: int = 0

    def run(self, graph, ctx):
        return None


TABLES = {"tune-all": Tune, "load-plan": Load, "trim": Trim}
NAMED = {
    "usual": "trim,repeat{max=2}(tune-all{bits=8})",
    "more": "usual,trim",
    "ring": "trim,ring-two",
    "ring-two": "ring",
}


@pytest.fixture
def registry() -> Registry:
    return Registry(TABLES, NAMED)


def fault(text: str, registry: Registry) -> tuple[str, str]:
    """Code of the error that a text gives, and the part of the text that is underlined."""
    with pytest.raises(LadingError) as caught:
        parse(text, registry)
    found = caught.value.diagnostics[0]
    lines = found.where.splitlines()
    start = lines[2].index("^")
    return found.code, lines[1][start : start + lines[2].count("^")]


# ---- the grammar ----


@pytest.mark.parametrize(
    "text",
    [
        "tune-all{bits=8 keep=a,b deep}",
        " tune_all { bits = 8 , keep = [ a , b ] deep=true } ",
        "tune-all{\n  bits=8   # width\n  keep=a,\n       b\n  deep\n},",
        "tune-all{keep=a,b,deep=true bits=8}",
        'tune-all{bits=8,keep=["a","b"],deep}',
    ],
)
def test_spellings_of_one_pipeline(text, registry):
    assert parse(text, registry) == Pipeline((Tune(bits=8, keep=("a", "b"), deep=True),))


def test_canonical_text_leaves_defaults_out(registry):
    pipeline = parse(
        "tune-all{bits=4 safe=false keep=logits rate=1e-3},repeat(trim),repeat{max=2}(trim,trim)", registry
    )
    assert str(pipeline) == "tune-all{rate=0.001 keep=[logits] safe=false},repeat(trim),repeat{max=2}(trim,trim)"


def test_numbers_are_read_by_the_type_of_their_field(registry):
    (one,) = parse("tune-all{rate=1 label=1e-3 count=7 sizes=5}", registry).items
    assert (one.rate, one.label, one.count, one.sizes) == (1.0, "1e-3", 7, (5,))
    assert type(one.rate) is float


def test_none_is_a_value_only_of_optional_options(registry):
    (one,) = parse('tune-all{limit=none note="none" label=none plan=none}', registry).items
    assert (one.limit, one.note, one.label, one.plan) == (None, "none", "none", None)
    assert parse(str(one), registry) == Pipeline((one,))


def test_empty_text_is_the_empty_pipeline(registry):
    assert parse(" # nothing\n", registry) == Pipeline()
    assert str(Pipeline()) == ""


def test_pipelines_add_map_and_list_their_passes(registry):
    both = parse("trim", registry) + parse("repeat(trim{count=1},tune-all)", registry)
    assert [type(one) for one in both.passes()] == [Trim, Trim, Tune]
    assert str(both.map(lambda one: Trim(9))) == "trim{count=9},repeat(trim{count=9},trim{count=9})"


WORDS = st.text(max_size=6) | st.sampled_from(["none", "true", "a b", 'q"', "x,y", "#", "\\", "é", "", "[1]", "a=b"])
PASS_VALUES = st.one_of(
    st.builds(
        Tune,
        bits=st.just(4),
        mode=st.sampled_from(["fast", "best"]),
        rate=st.floats(0, 1),
        count=st.integers(1, 10**30),
        label=WORDS,
        plan=st.none() | WORDS.filter(lambda w: "\x00" not in w).map(Path),
        keep=st.lists(WORDS, max_size=3).map(tuple),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        deep=st.booleans(),
        safe=st.booleans(),
        limit=st.none() | st.integers(),
        note=st.none() | WORDS,
    ),
    st.builds(Trim, st.integers()),
    st.builds(Load, WORDS.map(Path)),
)
PIPES = st.recursive(
    st.lists(PASS_VALUES, min_size=1, max_size=3).map(lambda items: Pipeline(tuple(items))),
    lambda inner: st.lists(
        PASS_VALUES | st.builds(Repeat, inner, st.integers(1, 20), st.booleans()), min_size=1, max_size=3
    ).map(lambda items: Pipeline(tuple(items))),
    max_leaves=4,
)


@given(PIPES)
def test_text_round_trips(pipeline):
    registry = Registry(TABLES, NAMED)
    text = str(pipeline)
    assert parse(text, registry) == pipeline
    assert str(parse(text, registry)) == text


@given(st.text(alphabet='tune-al,{}()[]="# \nbits48\\repeat', max_size=40))
def test_any_text_is_a_pipeline_or_a_coded_error(text):
    registry = Registry(TABLES, NAMED)
    try:
        parse(text, registry)
    except LadingError as error:
        assert error.code.startswith("P30")


# ---- faults ----


@pytest.mark.parametrize(
    ("text", "code", "underlined"),
    [
        ("trim,,trim", "P300", ","),
        ("trim trim", "P300", "trim"),
        ("trim(trim)", "P300", "("),
        ("repeat()", "P300", ")"),
        ("trim)", "P300", ")"),
        ("tune-all{bits=}", "P300", "}"),
        ("tune-all{keep=[a b]}", "P300", "b"),
        ('tune-all{label="a}', "P300", '"'),
        ('tune-all{label="\\q"}', "P300", '"\\q"'),
        ("trim,tirm", "P301", "tirm"),
        ("tune-all{bit=4}", "P302", "bit"),
        ("tune-all{bits=5}", "P303", "5"),
        ("tune-all{bits}", "P303", "bits"),
        ("tune-all{bits=4,deep}", "P303", "4,deep"),
        ("tune-all{rate=2}", "P303", "2"),
        ("tune-all{rate=nan}", "P303", "nan"),
        ("tune-all{count=0}", "P303", "0"),
        ("tune-all{count=x1}", "P303", "x1"),
        ('tune-all{count="1"}', "P303", '"1"'),
        ("tune-all{deep=maybe}", "P303", "maybe"),
        ("tune-all{keep}", "P303", "keep"),
        ("repeat{max=0}(trim)", "P303", "0"),
        ("tune-all{bits=4 bits=8}", "P304", "bits"),
        ("trim,load-plan", "P305", "load-plan"),
        ("tune-all{bits=8 mode=best}", "P306", "tune-all"),
        ("usual{count=1}", "P307", "count"),
        ("usual{cuont=1}", "P302", "cuont"),
        ("usual{bits=5}", "P303", "5"),
        ("usual{mode=best}", "P306", "usual"),
        ("ring", "P308", "ring"),
    ],
)
def test_faults_are_coded_and_underlined(text, code, underlined, registry):
    assert fault(text, registry) == (code, underlined)


def test_text_that_ends_too_early(registry):
    for text in ("tune-all{", "repeat(trim", "repeat", "tune-all{bits="):
        with pytest.raises(LadingError, match="the text ends") as caught:
            parse(text, registry)
        assert caught.value.code == "P300"


def test_errors_give_line_column_and_suggestion(registry):
    with pytest.raises(LadingError) as caught:
        parse("trim,\n\ttune-al{bits=4}", registry)
    assert str(caught.value).splitlines()[1:] == [
        "  at line 2, column 2 of the pipeline",
        "      tune-al{bits=4}",
        "      ^^^^^^^",
        "  hint: did you mean 'tune-all'?",
    ]
    with pytest.raises(LadingError, match="did you mean 'bits'"):
        parse("tune-all{bitz=4}", registry)
    with pytest.raises(LadingError, match="did you mean 'best'"):
        parse("tune-all{mode=bst}", registry)


def test_a_long_line_is_shown_around_the_fault(registry):
    with pytest.raises(LadingError) as caught:
        parse(",".join(["trim"] * 100) + ",trin," + ",".join(["trim"] * 100), registry)
    _, line, carets = caught.value.diagnostics[0].where.splitlines()
    assert len(line) < 120 and line.startswith("...") and line.endswith("...")
    assert line[carets.index("^") :].startswith("trin")


def test_nesting_has_a_limit(registry):
    assert fault("repeat(" * 500 + "trim" + ")" * 500, registry)[0] == "P300"


# ---- named pipelines ----


def test_a_name_stands_for_its_text(registry):
    expected = "trim,repeat{max=2}(tune-all{bits=8}),trim,trim"
    assert str(parse("more,trim", registry)) == expected
    assert parse(expected, registry) == parse("more,trim", registry)


def test_options_of_a_name_go_to_the_pass_that_has_them(registry):
    assert str(parse("usual{bits=4 keep=x}", registry)) == "trim,repeat{max=2}(tune-all{keep=[x]})"


# ---- files ----

TOML = """
[[pass]]
name = "tune_all"
options = { bits = 8, keep = ["a", "b"], rate = 0.25, deep = true, plan = "plan.txt" }

[[pass]]
name = "repeat"
options = { max = 3 }
  [[pass.pass]]
  name = "usual"
  [[pass.pass]]
  name = "load-plan"
  options = { plan = "/else/plan.txt" }
"""


def test_a_toml_file_is_a_pipeline(tmp_path, registry):
    path = tmp_path / "my pipeline.toml"
    path.write_text(TOML)
    assert load(str(path), registry) == Pipeline(
        (
            Tune(bits=8, keep=("a", "b"), rate=0.25, deep=True, plan=tmp_path / "plan.txt"),
            Repeat(parse("usual", registry) + Pipeline((Load(Path("/else/plan.txt")),)), 3),
        )
    )


def test_load_takes_text_and_names_too(registry):
    assert load("usual", registry) == parse("usual", registry)
    assert load("trim,trim", registry) == Pipeline((Trim(), Trim()))


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("[[pass]", "P309", "not valid TOML"),
        ("x = 1", "P309", "unknown key 'x'"),
        ("pass = 1", "P309", "list of"),
        ("pass = [1]", "P309", "a table with a name"),
        ("[[pass]]\noptions = {}", "P309", "a table with a name"),
        ("[[pass]]\nname = 'trim'\ncount = 1", "P309", "unknown key 'count'"),
        ("[[pass]]\nname = 'trim'\noptions = 1", "P309", "options must be a table"),
        ("[[pass]]\nname = 'trim'\noptions = { count = 1979-05-27 }", "P309", "not date"),
        ("[[pass]]\nname = 'trim'\n[[pass.pass]]\nname = 'trim'", "P309", "only repeat"),
        ("[[pass]]\nname = 'repeat'", "P309", "at least one"),
        ("[[pass]]\nname = 'trim'\n[[pass]]\nname = 'trum'", "P301", "pass 2"),
        ("[[pass]]\nname = 'trim'\noptions = { cout = 1 }", "P302", "did you mean 'count'"),
        ("[[pass]]\nname = 'tune-all'\noptions = { bits = '8' }", "P303", "without quotes"),
        ("[[pass]]\nname = 'tune-all'\noptions = { keep = [['a']] }", "P303", "lists in lists"),
        ("[[pass]]\nname = 'trim'\noptions = { count = [1] }", "P303", "not a list"),
    ],
)
def test_faults_of_files(text, code, part, tmp_path, registry):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(LadingError) as caught:
        load(str(path), registry)
    assert caught.value.code == code
    assert part in str(caught.value) and "p.toml" in str(caught.value)


def test_missing_and_unreadable_files(tmp_path, registry):
    (tmp_path / "right.toml").write_text("")
    with pytest.raises(LadingError, match=r"did you mean 'right.toml'") as caught:
        load(str(tmp_path / "wright.toml"), registry)
    assert caught.value.code == "P313"
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LadingError, match="not UTF-8"):
        load(str(tmp_path / "bytes.toml"), registry)


# ---- options from Python ----


def test_values_from_python_are_checked():
    for wrong in (
        {"bits": 5},
        {"bits": True},
        {"rate": 1.5},
        {"count": 0},
        {"keep": "a"},
        {"sizes": (1.5,)},
        {"deep": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Tune(**wrong)


def test_fields_that_text_cannot_write_are_refused():
    @dataclass(frozen=True)
    class Odd(Pass):
        """Odd."""

        name = "odd"
        table: dict[str, int] = None  # type: ignore[assignment]

        def run(self, graph, ctx):
            return None

    with pytest.raises(TypeError, match="cannot write"):
        options_of(Odd)


# ---- the registry ----


def test_every_built_in_pass_loads_and_every_built_in_pipeline_parses():
    registry = built_in_registry()
    for name in registry.passes:
        info = registry.describe(name)
        assert info.summary and info.package == "lading"
        assert all(spec.help for spec in info.options), f"{name} has an option without help"
    for name in registry.pipelines:
        pipeline = parse(name, registry)
        assert parse(str(pipeline), registry) == pipeline


def test_every_pass_class_is_registered():
    registry = built_in_registry()
    known = {f"{cls.__module__}:{cls.__name__}" for cls in map(registry.pass_class, list(registry.passes))}
    for path in (*(ROOT / "passes").rglob("*.py"), *(ROOT / "backends").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for line in path.read_text().splitlines():
            if line.startswith("class ") and "(Pass):" in line:
                assert f"{module}:{line.split()[1].partition('(')[0]}" in known


def test_describe_comes_from_the_class(registry):
    info = registry.describe("tune-all").as_dict()
    assert info["summary"] == "Has an option of every kind."
    assert "second paragraph" in info["doc"]
    assert (info["requires"], info["establishes"], info["breaks"], info["lossy"]) == (
        ["typed"],
        ["tuned"],
        ["sorted"],
        True,
    )
    assert info["options"][0] == {
        "name": "bits",
        "type": "4 | 8",
        "default": "4",
        "required": False,
        "help": "storage width",
    }
    types = {row["name"]: row["type"] for row in info["options"]}
    assert types["keep"] == "list of str" and types["plan"] == "path | none" and types["mode"] == "fast | best"
    assert registry.describe("load-plan").as_dict()["options"][0]["required"]
    assert len(info["options"]) == len(fields(Tune))
    assert [row.name for row in registry.list_passes()] == sorted(TABLES)


def entry(name: str, package: str, load) -> SimpleNamespace:
    """A stand-in for an installed entry point."""
    return SimpleNamespace(name=name, value=f"{package}:plugin", dist=SimpleNamespace(name=package), load=load)


def load_plugins(registry: Registry, entries: list[SimpleNamespace]) -> None:
    """Add the plugins of entry points."""
    for item in of_entry_points(entries):
        registry.add(item.plugin, item.package)


def test_plugins_add_to_every_table(registry):
    class_path = f"{__name__}:Late"
    plugin = Plugin(passes={"late": class_path}, pipelines={"mine": "late,trim"}, backends={"toy": 2})
    load_plugins(registry, [entry("one", "pkg-one", lambda: plugin)])
    assert parse("mine", registry) == Pipeline((Late(), Trim()))
    assert registry.describe("late").package == "pkg-one"
    assert registry.backends == {"toy": 2}


@dataclass(frozen=True)
class Late(Pass):
    """Imported when it is used."""

    name = "late"

    def run(self, graph, ctx):
        return None


def with_plugin(plugin: Plugin, monkeypatch) -> tuple[Table, Table]:
    """The tables of operators and recipes, as they are when a plugin of the package ``pkg-new`` is installed."""
    monkeypatch.setattr(plugins, "loaded", lambda: (Loaded("new", "pkg-new", plugin),))
    operators = Table("operator", {"known.Op": OpDef("known.Op")}, rows_of("ops"), check_definition)
    return operators, Table("tensor recipe", {"inline": "ir.tensor.inline:rebuild_inline"}, rows_of("recipes"))


def test_operators_and_recipes_of_plugins_reach_the_ir(monkeypatch):
    made = OpDef("plugged.Op", package="pkg-new")
    operators, recipes = with_plugin(Plugin(ops={"plugged.Op": made}, recipes={"plugged": InlineTensor}), monkeypatch)
    assert operators["plugged.Op"] is made and recipes["plugged"] is InlineTensor
    assert operators.package("plugged.Op") == "pkg-new" and list(operators) == ["known.Op", "plugged.Op"]


@pytest.mark.parametrize(
    ("plugin", "part"),
    [
        (Plugin(ops={"plugged.Other": OpDef("plugged.Op")}), "listed as"),
        (Plugin(ops={"NoDomain": OpDef("NoDomain")}), "needs a domain"),
        (Plugin(ops={"known.Op": OpDef("known.Op", doc="another")}), "claimed by lading and by pkg-new"),
        (Plugin(recipes={"inline": dict}), "claimed by lading and by pkg-new"),
    ],
)
def test_operators_and_recipes_that_clash_name_their_package(plugin, part, monkeypatch):
    operators, recipes = with_plugin(plugin, monkeypatch)
    with pytest.raises(LadingError, match=part) as caught:
        _ = [*operators, *recipes]
    assert caught.value.code in ("P330", "P331") and "pkg-new" in str(caught.value)


@pytest.mark.parametrize("table", ["passes", "pipelines"])
def test_a_name_claimed_twice_names_both_packages(table, registry):
    plugin = Plugin(**{table: {"trim": "trim" if table == "pipelines" else Trim}})
    with pytest.raises(LadingError, match="claimed by lading and by pkg-two") as caught:
        load_plugins(registry, [entry("two", "pkg-two", lambda: plugin)])
    assert caught.value.code == "P331"


def test_two_plugins_cannot_share_a_name(registry):
    points = [entry(p, p, lambda: Plugin(frontends={"gguf": 1})) for p in ("pkg-b", "pkg-a")]
    with pytest.raises(LadingError, match="claimed by pkg-a and by pkg-b"):
        load_plugins(registry, points)


def test_nobody_can_claim_repeat(registry):
    with pytest.raises(LadingError, match="'repeat'"):
        registry.add(Plugin(pipelines={"repeat": "trim"}), "pkg")


def broken():
    raise ImportError("no such thing")


class Bare(Pass):
    """Not decorated."""

    name = "bare"

    def run(self, graph, ctx):
        return None


@pytest.mark.parametrize(
    ("load", "use", "part"),
    [
        (broken, None, "does not load"),
        (lambda: 7, None, "is not an ir.base.plugins.Plugin"),
        (lambda: Plugin(passes={"gone": "no.such.module:X"}), "gone", "cannot import"),
        (lambda: Plugin(passes={"bare": Bare}), "bare", "must be decorated"),
        (lambda: Plugin(passes={"other": Late}), "other", "is registered as 'other'"),
        (lambda: Plugin(passes={"number": 5}), "number", "is not a subclass"),
    ],
)
def test_malformed_plugins_are_named(load, use, part, registry):
    with pytest.raises(LadingError, match=part) as caught:
        load_plugins(registry, [entry("bad", "pkg-bad", load)])
        registry.pass_class(use)
    assert caught.value.code == "P330" and "pkg-bad" in str(caught.value)


def test_installed_plugins_are_found(tmp_path, monkeypatch):
    (tmp_path / "lading_toy.py").write_text(
        "from ir.base.plugins import Plugin\nplugin = Plugin(pipelines={'toy': 'fold,dce'})\n"
    )
    info = tmp_path / "lading_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lading-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lading.plugins]\ntoy = lading_toy:plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    default_registry.cache_clear()
    plugins.loaded.cache_clear()
    try:
        assert default_registry().package("toy") == "lading-toy"
        assert str(parse("toy")) == "fold,dce"
    finally:
        default_registry.cache_clear()
        plugins.loaded.cache_clear()


# ---- the context ----


def test_settings_are_found_by_type():
    ctx = PassContext("text", 5)
    assert (ctx.get(str), ctx.get(int), ctx.get(object)) == ("text", 5, "text")
    assert ctx.get(float, 1.5) == 1.5
    with pytest.raises(LadingError, match="needs a float") as caught:
        ctx.get(float)
    assert caught.value.code == "P321"
    with pytest.raises(ValueError, match="two settings"):
        PassContext("a", "b")


def test_progress_is_heard():
    heard = []
    PassContext(progress=lambda *what: heard.append(what)).progress(1, 2, "layers")
    PassContext().progress(1, 2, "layers")
    assert heard == [(1, 2, "layers")]


def test_a_pass_declares_names_in_tuples():
    with pytest.raises(TypeError, match="must be a tuple"):

        class Wrong(Pass):
            """Wrong."""

            name = "wrong"
            requires = "typed"

            def run(self, graph, ctx):
                return None
