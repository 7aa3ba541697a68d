"""The manager, its report, and the instruments."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F32, Dim, TensorType
from ir.graph.facts import RawFact
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.base import Pass
from passes.framework.check_numbers import CheckNumbers, distance, legal_sizes
from passes.framework.context import PassContext
from passes.framework.instruments import (
    DumpIR,
    Journal,
    JsonReport,
    KeepLastGood,
    RuleStats,
    StopAfter,
    Timing,
    VerifyEach,
)
from passes.framework.load import parse as parse_pipeline
from passes.framework.manager import Instrument, PassManager, check_needs, run_passes
from passes.framework.options import option, read_text
from passes.framework.registry import Registry
from passes.rewrite.patterns import Op, Var
from passes.rewrite.rules import RuleSet, rule

N = Dim("n", 1, 64)
T = TensorType(F32, (N, 4))


@dataclass(frozen=True)
class Toy(Pass):
    """Base of the passes of these tests."""

    name = "toy"

    def run(self, graph, ctx):
        return None


@dataclass(frozen=True)
class Plan(Toy):
    """Records a fact."""

    name = "plan"
    establishes = ("toy-plan",)

    def run(self, graph, ctx):
        graph.set_fact("toy-plan", RawFact("toy-plan", {}))
        return {"planned": 1}


@dataclass(frozen=True)
class Use(Toy):
    """Needs the plan."""

    name = "use"
    requires = ("toy-plan",)


@dataclass(frozen=True)
class Forget(Toy):
    """Breaks the plan."""

    name = "forget"
    breaks = ("toy-plan",)

    def run(self, graph, ctx):
        graph.set_fact("toy-plan", None)


@dataclass(frozen=True)
class Shorten(Toy):
    """Takes one Neg away, as long as there are any."""

    name = "shorten"

    def run(self, graph, ctx):
        for node in graph.nodes:
            if node.op == "Neg" and node.output.use_count:
                graph.replace(node.output, node.inputs[0])
                graph.erase(node)
                return {"gone": 1}
        return {"gone": 0}


@dataclass(frozen=True)
class Scale(Toy):
    """Multiplies the output."""

    name = "scale"
    by: float = 1.0

    def run(self, graph, ctx):
        out = graph.outputs[0]
        factor = graph.add_const("factor", InlineTensor(np.float32(self.by)))
        graph.set_outputs([graph.add("Mul", [out, factor], types=[out.type]).output])
        name = out.name
        graph.rename(out, graph.fresh_name("before"))
        graph.rename(graph.outputs[0], name)


@dataclass(frozen=True)
class Coarse(Scale):
    """Multiplies the output, and says that it is not exact."""

    name = "coarse"
    lossy = True


@dataclass(frozen=True)
class Fail(Toy):
    """Always fails, after an edit."""

    name = "fail"
    coded: bool = False

    def run(self, graph, ctx):
        graph.add_const("rest", InlineTensor(np.zeros(100, np.float32)))
        raise LadingError("P303", "wrong") if self.coded else ZeroDivisionError("oops")


@dataclass(frozen=True)
class Load(Toy):
    """Reads a file."""

    name = "load"
    file: Path = option(help="the file")

    def prepare(self):
        return read_text(self.file, "toy file")

    def run(self, graph, ctx):
        ctx.warn("P322", f"the file says {ctx.prepared}")


x = Var("x")


@rule(Op("Neg", Op("Neg", x)))
def no_double(m, rw):
    return m.x


@dataclass(frozen=True)
class Rules(Toy):
    """Applies a rule."""

    name = "rules"

    def run(self, graph, ctx):
        return ctx.rewrite(graph, RuleSet(no_double))


@dataclass(frozen=True)
class Lie(Toy):
    """Claims to type the graph, and unlearns a type."""

    name = "lie"
    establishes = ("typed",)

    def run(self, graph, ctx):
        graph.set_type(graph.first.output, None)


@dataclass(frozen=True)
class Scramble(Toy):
    """Breaks the program order."""

    name = "scramble"

    def run(self, graph, ctx):
        graph.move(graph.first)


class Doubling:
    """Relates the values around `Widen`: the input is given twice, the output has its first row alone."""

    def adapt_feeds(self, feeds, graph):
        """See `passes.framework.base.Adapter`."""
        return {"pair": np.stack([feeds["a"], feeds["a"]])}

    def adapt_outputs(self, outputs, graph):
        """See `passes.framework.base.Adapter`."""
        return {"row": outputs["y"][:1]}


@dataclass(frozen=True)
class Widen(Toy):
    """Changes the graph's signature: takes ``pair`` and gives ``row``."""

    name = "widen"
    told: bool = True
    wrong: bool = False

    def run(self, graph, ctx):
        old = graph.inputs[0]
        pair = graph.add_input("pair", TensorType(F32, (2, *old.shape)))
        zero, one = (graph.add_const(name, InlineTensor(np.array(i))) for name, i in (("i0", 0), ("i1", 1)))
        picked = graph.add("Gather", [pair, zero], {"axis": 0}, types=[old.type], before=graph.first).output
        graph.replace(old, picked)
        graph.remove_input(old)
        index = graph.add_const("rows", InlineTensor(np.array([1 if self.wrong else 0])))
        row = TensorType(F32, (1, 4))
        graph.set_outputs(
            [graph.add("Gather", [graph.outputs[0], index], {"axis": 0}, types=[row], outputs=("row",)).output]
        )
        graph.erase_const(one)

    def adapter(self, graph):
        return Doubling() if self.told else None


CLASSES = (Plan, Use, Forget, Shorten, Scale, Coarse, Fail, Load, Rules, Lie, Scramble, Widen)


@pytest.fixture
def registry() -> Registry:
    return Registry({cls.name: cls for cls in CLASSES}, {})


@pytest.fixture
def graph() -> Graph:
    """a -> Neg -> Neg -> Neg -> Relu -> y"""
    made = Graph("g")
    made.add_dim(N)
    value = made.add_input("a", T)
    for _ in range(3):
        value = made.add("Neg", [value], types=[T]).output
    made.set_outputs([made.add("Relu", [value], types=[T], outputs=("y",)).output])
    return made


@pytest.fixture
def run(graph, registry):
    def run(text, *instruments, **options):
        return PassManager(text, instruments, registry=registry).run(graph, **options)

    return run


# ---- the manager ----


def test_the_report_tells_what_happened(run, graph):
    report = run("plan,shorten,use")
    assert [(one.number, one.path, one.text, one.changed, one.counts) for one in report.passes] == [
        (1, "1", "plan", True, {"planned": 1}),
        (2, "2", "shorten", True, {"gone": 1}),
        (3, "3", "use", False, {}),
    ]
    assert report.passes[1].nodes == (4, 3) and report.changed and report.pipeline == "plan,shorten,use"
    data = report.as_dict()
    assert data["passes"][1]["counts"] == {"gone": 1} and "rules" not in data["passes"][1]
    assert json.loads(json.dumps(data)) == data


def test_changed_follows_the_version_alone(run, graph):
    run("shorten,shorten,shorten")
    assert [one.changed for one in run("shorten").passes] == [False]


def test_repeat_runs_until_nothing_changes(run):
    report = run("repeat(shorten,use)", given=["toy-plan"])
    assert [(one.path, one.changed) for one in report.passes] == [
        ("1.1.1", True),
        ("1.1.2", False),
        ("1.2.1", True),
        ("1.2.2", False),
        ("1.3.1", True),
        ("1.3.2", False),
        ("1.4.1", False),
    ]
    assert not report.all_diagnostics()


def test_repeat_warns_when_it_does_not_settle(run):
    report = run("repeat{max=2}(shorten)")
    assert [item.code for item in report.all_diagnostics()] == ["P322"]
    assert len(report.passes) == 2


def test_rule_statistics_reach_the_report(run):
    (one,) = run("rules").passes
    assert one.counts == {"no_double": 1}
    assert one.rules["no_double"].hits == 1 and one.rules["no_double"].tries >= 3
    assert one.as_dict()["rules"]["no_double"]["hits"] == 1 and not one.why_not


def test_explanations_reach_the_report(run):
    (one,) = run("rules", ctx=PassContext(explain=True)).passes
    assert any("not made by Neg" in item.reason for item in one.why_not)


def test_files_are_read_before_any_pass_runs(run, graph, tmp_path):
    version = graph.version
    with pytest.raises(LadingError) as caught:
        run(f"shorten,load{{file={tmp_path}/none}}")
    assert caught.value.code == "P313" and graph.version == version
    (tmp_path / "some").write_text("hello")
    report = run(f"shorten,load{{file={tmp_path}/some}}")
    assert [item.message for item in report.all_diagnostics()] == ["the file says hello"]


def test_the_collector_is_left_as_it_was(run):
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        run("fail")
    assert gc.isenabled()


def test_run_passes_is_one_call(graph):
    assert run_passes(graph, "dce", 5).passes[0].name == "dce"


# ---- needs ----


def needs(text: str, registry: Registry, *args) -> list[str]:
    try:
        check_needs(parse_pipeline(text, registry), *args, registry=registry)
    except LadingError as error:
        return [f"{item.code} {item.message}" for item in error.diagnostics]
    return []


def test_unmet_needs_are_rejected_before_any_work(run, graph):
    version = graph.version
    with pytest.raises(LadingError, match=r"P320.*use needs toy-plan; plan gives it") as caught:
        run("shorten,use,plan")
    assert graph.version == version
    assert "step 2 of the pipeline" in str(caught.value) and "put plan before use" in str(caught.value)


def test_needs_follow_establishes_and_breaks(registry):
    assert needs("plan,use", registry) == []
    assert needs("plan,forget,use", registry) == [
        "P320 use needs toy-plan, which forget (step 2) breaks; plan gives it"
    ]
    assert needs("plan,forget,plan,use", registry) == []
    assert needs("use,use", registry) == ["P320 use needs toy-plan; plan gives it"]


def test_needs_may_be_given_or_recorded_on_the_graph(registry, graph):
    assert needs("use", registry, None, ["toy-plan"]) == []
    assert needs("use", registry, graph) != []
    graph.set_fact("toy-plan", RawFact("toy-plan", {}))
    assert needs("use", registry, graph) == []


def test_the_second_round_of_a_repeat_needs_what_the_first_left(registry):
    assert needs("plan,repeat(use,forget)", registry) != []
    assert needs("plan,repeat{max=1}(use,forget)", registry) == []
    assert needs("repeat(plan,use,forget)", registry) == []


def test_invariants_are_tested_on_the_graph_when_needed(graph):
    @dataclass(frozen=True)
    class NeedsTypes(Toy):
        """Needs types."""

        name = "needs-types"
        requires = ("typed",)

    @dataclass(frozen=True)
    class LosesTypes(Toy):
        """Loses types."""

        name = "loses-types"
        breaks = ("typed",)

    registry = Registry({"needs-types": NeedsTypes, "loses-types": LosesTypes}, {})
    assert needs("needs-types", registry, graph) == []
    (problem,) = needs("loses-types,needs-types", registry, graph)
    assert "which loses-types (step 1) breaks" in problem
    graph.set_type(graph.first.output, None)
    assert needs("needs-types", registry, graph) == ["P320 needs-types needs typed"]


# ---- instruments ----


def test_instruments_are_called_in_order(run):
    calls = []

    class Spy(Instrument):
        def before(self, step, graph):
            calls.append(("before", step.number, str(step)))

        def after(self, step, graph, report):
            calls.append(("after", step.number, report.changed))

        def failed(self, step, graph, error):
            calls.append(("failed", step.number, type(error).__name__))

        def finished(self, graph, report):
            calls.append(("finished", len(report.passes)))

    run("shorten", Spy())
    assert calls == [("before", 1, "step 1 (shorten)"), ("after", 1, True), ("finished", 1)]
    calls.clear()
    with pytest.raises(ZeroDivisionError) as caught:
        run("shorten,fail", Spy())
    assert [call[0] for call in calls] == ["before", "after", "before", "failed"]
    assert caught.value.__notes__ == ["in step 2 (fail) of the pipeline shorten,fail"]


def test_timing_adds_up(run):
    timing = Timing()
    report = run("shorten,plan,shorten", timing)
    rows = {name: (calls, seconds) for name, calls, seconds in timing.rows()}
    assert rows["shorten"][0] == 2 and rows["plan"][0] == 1
    assert rows["shorten"][1] == pytest.approx(report.passes[0].seconds + report.passes[2].seconds)
    assert [row[2] for row in timing.rows()] == sorted((row[2] for row in timing.rows()), reverse=True)


def test_rule_statistics_add_up(run):
    stats = RuleStats()
    run("rules,rules", stats)
    ((one, name, tries, hits, seconds),) = stats.rows()
    assert (one, name, hits) == ("rules", "no_double", 1) and tries >= 4 and seconds > 0


def test_stop_after(run):
    report = run("shorten,shorten,shorten", StopAfter(2))
    assert len(report.passes) == 2 and report.stopped == "stopped after pass 2, shorten"
    assert run("shorten", StopAfter(2)).stopped == ""


def test_dump_writes_readable_graphs(run, graph, tmp_path):
    data = np.arange(1000, dtype=np.float32)
    graph.add_const("big", InlineTensor(data))
    folder = tmp_path / "ir"
    run("use,shorten,use,shorten", DumpIR(folder), given=["toy-plan"])
    names = sorted(path.name for path in folder.glob("*.lading"))
    assert names == ["000-input.lading", "002-shorten.lading", "004-shorten.lading"]
    reread = [parse((folder / name).read_text(), base=folder) for name in names]
    assert [len(one.nodes) for one in reread] == [4, 3, 2]
    assert all(np.array_equal(one.consts["big"].const.load(), data) for one in reread)


def test_dump_of_every_pass(run, tmp_path):
    run("use,shorten", DumpIR(tmp_path, only_changed=False), given=["toy-plan"])
    assert sorted(path.name for path in tmp_path.glob("*.lading")) == [
        "000-input.lading",
        "001-use.lading",
        "002-shorten.lading",
    ]


def test_files_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    for instrument in (DumpIR(tmp_path / "file"), JsonReport(tmp_path / "file" / "r.json")):
        with pytest.raises(LadingError) as caught:
            run("shorten", instrument)
        assert caught.value.code == "P364" and str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("coded", [False, True])
def test_a_failure_leaves_the_last_good_graph_and_a_command(coded, run, graph, tmp_path):
    text = "fail{coded}" if coded else "fail"
    with pytest.raises((ZeroDivisionError, LadingError)) as caught:
        run(f"shorten,{text}", KeepLastGood(tmp_path, command="tool {file} -p {passes}"))
    kept = parse((tmp_path / "last-good.lading").read_text(), base=tmp_path)
    assert len(kept.nodes) == 3 and "rest" not in kept.consts
    note = caught.value.__notes__[1]
    assert note.endswith(f"tool {tmp_path}/last-good.lading -p {text if not coded else repr(text)}")


def test_success_leaves_nothing_behind(run, tmp_path):
    run("shorten,shorten", KeepLastGood(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_journal_knows_who_edited_a_value(run, graph):
    journal = Journal()
    run("shorten,scale{by=2.0}", journal)
    entries = [(entry.number, entry.one, entry.kind) for entry in journal.of("y")]
    assert (2, "scale{by=2.0}", "add") in entries and (2, "scale{by=2.0}", "rename") in entries
    assert {entry.number for entry in journal.of("neg")} == {1}
    assert journal.of("nobody") == []
    version = graph.version
    graph.rename(graph.outputs[0], "z")
    assert graph.version > version and journal.of("z") == []


def test_json_report(run, tmp_path):
    run("shorten", JsonReport(tmp_path / "deep" / "report.json", model="toy"))
    data = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert data["model"] == "toy" and data["passes"][0]["pass"] == "shorten"


# ---- verify each ----


def test_verify_each_names_the_pass_that_broke_the_graph(run):
    with pytest.raises(LadingError) as caught:
        run("shorten,scramble,shorten", VerifyEach())
    codes = [item.code for item in caught.value.diagnostics]
    assert codes[0] == "P360" and len(codes) > 1
    assert "scramble left the graph malformed" in str(caught.value)


def test_verify_each_tests_what_passes_claim(run, graph):
    with pytest.raises(LadingError, match=r"P360.*lie does not establish typed"):
        run("lie", VerifyEach())


def test_verify_each_notices_broken_promises(run):
    @dataclass(frozen=True)
    class Unlearn(Toy):
        """Forgets types without saying so."""

        name = "unlearn"

        def run(self, graph, ctx):
            graph.set_type(graph.first.output, None)

    made = Registry({"unlearn": Unlearn}, {})
    graph = parse(print_graph(_small()))
    with pytest.raises(LadingError, match=r"P360.*unlearn breaks typed"):
        PassManager("unlearn", [VerifyEach()], registry=made).run(graph, given=["typed"])


def _small() -> Graph:
    graph = Graph("g")
    value = graph.add_input("a", TensorType(F32, (4,)))
    graph.set_outputs([graph.add("Neg", [value], types=[TensorType(F32, (4,))]).output])
    return graph


def test_a_graph_that_was_bad_before_is_not_blamed_on_a_pass(run, graph):
    graph.move(graph.first)
    with pytest.raises(LadingError) as caught:
        run("shorten", VerifyEach())
    assert caught.value.code.startswith("I")


# ---- check numbers ----


def test_numbers_of_exact_passes_stay(run):
    report = run("rules,scale{by=1.0}", CheckNumbers())
    notes = report.passes[0].notes["numbers"]
    assert notes["y"]["max_abs"] == 0 and notes["y"]["allowed"] > 0
    assert "sizes" in notes["y"]


def test_the_first_pass_that_drifts_is_named(run):
    with pytest.raises(LadingError) as caught:
        run("rules,shorten,scale{by=1.5}", CheckNumbers())
    assert caught.value.code == "P361"
    assert "shorten" in caught.value.diagnostics[0].message and "y" in caught.value.diagnostics[0].message


def test_rounding_is_allowed_and_more_is_not(run):
    assert run("scale{by=1.000001}", CheckNumbers())
    with pytest.raises(LadingError, match=r"P361.*scale\{by=1.01\}"):
        run("scale{by=1.01}", CheckNumbers())


def test_lossy_passes_have_a_budget(run):
    assert run("coarse{by=1.02}", CheckNumbers(budget=0.05)).passes[0].notes["numbers"]["y"]["relative"] > 0.01
    with pytest.raises(LadingError, match=r"P361.*budget"):
        run("coarse{by=1.2}", CheckNumbers(budget=0.05))


def test_two_sizes_show_what_one_hides():
    """A pass that is right for one size of a dynamic dimension alone is caught."""

    @dataclass(frozen=True)
    class Freeze(Toy):
        """Cuts every sequence to four rows."""

        name = "freeze"

        def run(self, graph, ctx):
            ints = [graph.add_const("i", InlineTensor(np.array([number]))) for number in (0, 4, 0)]
            out = graph.outputs[0]
            cut = graph.add("Slice", [out, *ints], types=[TensorType(F32, (Dim("m"), 4))], outputs=("cut",))
            padded = graph.add(
                "Reshape", [cut.output, graph.add_const("s", InlineTensor(np.array([-1, 4])))], types=[T]
            )
            graph.set_outputs([padded.output])
            graph.rename(out, "old")
            graph.rename(padded.output, "y")

    made = Registry({"freeze": Freeze}, {})
    assert PassManager("freeze", [CheckNumbers(sizes=[{"n": 4}])], registry=made).run(_chain())
    with pytest.raises(LadingError, match="P361"):
        PassManager("freeze", [CheckNumbers(sizes=[{"n": 4}, {"n": 6}])], registry=made).run(_chain())


def _chain() -> Graph:
    made = Graph("g")
    made.add_dim(N)
    value = made.add_input("a", T)
    made.set_outputs([made.add("Relu", [value], types=[T], outputs=("y",)).output])
    return made


def test_nan_where_there_was_none_is_a_drift(run, graph):
    with pytest.raises(LadingError, match="P361"):
        run("scale{by=inf}", CheckNumbers())


def test_signature_changes_need_an_adapter(run):
    with pytest.raises(LadingError, match=r"P363.*pair") as caught:
        run("widen{told=false}", CheckNumbers())
    assert "adapter" in str(caught.value)


def test_signature_changes_are_followed(run):
    sizes = [{"n": 2}, {"n": 5}]
    report = run("widen,scale{by=1.0}", CheckNumbers(sizes=sizes))
    assert report.passes[0].notes["numbers"]["row"]["max_abs"] == 0


def test_a_drift_after_a_signature_change_is_noticed(run):
    with pytest.raises(LadingError, match=r"P361.*scale"):
        run("widen,scale{by=2.0}", CheckNumbers(sizes=[{"n": 2}, {"n": 5}]))


def test_a_wrong_signature_change_is_noticed(run):
    with pytest.raises(LadingError, match=r"P361.*widen"):
        run("widen{wrong}", CheckNumbers(sizes=[{"n": 2}, {"n": 5}]))


def test_given_inputs_are_used(run):
    feeds = [{"a": np.full((3, 4), -2.0, np.float32)}]
    assert run("scale{by=1.0}", CheckNumbers(feeds=feeds)).passes[0].notes["numbers"]["y"]["largest"] == 2.0


def test_a_graph_that_cannot_be_evaluated(graph, registry):
    graph.set_outputs([graph.add("nobody.Knows", [graph.inputs[0]], types=[T]).output])
    with pytest.raises(LadingError) as caught:
        PassManager("shorten", [CheckNumbers()], registry=registry).run(graph)
    assert caught.value.code == "P362"


def test_sizes_are_legal_and_differ():
    dims = [Dim("a", 1, 64), Dim("b", 1, 64), Dim("c", 8, 32, 8), Dim("d", 5, 5), Dim("e", 0, None)]
    first, second = legal_sizes(dims)
    for sizes in (first, second):
        assert all(dim.accepts(sizes[dim.name]) for dim in dims)
    assert first["a"] != second["a"] and first["a"] != first["b"] and first["c"] != second["c"]
    assert first["d"] == second["d"] == 5


def test_distances():
    nan, inf = float("nan"), float("inf")
    assert distance(np.array([1.0, -4.0]), np.array([1.5, -4.0])) == (0.5, 4.0)
    assert distance(np.array([nan, inf, 1.0]), np.array([nan, inf, 1.0])) == (0.0, 1.0)
    assert distance(np.array([inf]), np.array([-inf]))[0] == inf
    assert distance(np.array([1.0]), np.array([nan]))[0] == inf
    assert distance(np.zeros(2), np.zeros(3))[0] == inf
    assert distance(np.zeros(0), np.zeros(0)) == (0.0, 0.0)
    assert distance(np.array([nan]), np.array([nan])) == (0.0, 0.0)
    assert distance(np.array(["a"]), np.array(["b"]))[0] == inf


def test_inputs_that_cannot_be_made_up(graph, registry):
    graph.add_input("text", TensorType(DTYPES["str"], (2,)))
    with pytest.raises(LadingError, match="made up") as caught:
        PassManager("shorten", [CheckNumbers()], registry=registry).run(graph)
    assert caught.value.code == "P362"


def test_weights_are_streamed_under_a_memory_limit(registry):
    graph = Graph("g")
    value = graph.add_input("a", TensorType(F32, (2, 64)))
    for _ in range(4):
        weight = graph.add_const(
            "w", InlineTensor(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 8)
        )
        value = graph.add("MatMul", [value, weight], types=[TensorType(F32, (2, 64))]).output
    graph.set_outputs([value])
    graph.rename(value, "y")
    report = PassManager("scale", [CheckNumbers(memory_limit=20_000)], registry=registry).run(graph)
    assert report.passes[0].notes["numbers"]["y"]["max_abs"] == 0


@pytest.mark.parametrize("foreign", [False, True])
def test_steps_for_graphs_of_others_run_on_those_alone(run, graph, foreign):
    graph.foreign = foreign
    report = run("repeat{max=1 foreign}(shorten)")
    assert [one.name for one in report.passes] == ["shorten"] * foreign and not report.diagnostics
