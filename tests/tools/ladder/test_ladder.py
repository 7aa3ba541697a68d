"""The ladder: rungs are named, built, measured and resumed; one is recommended for a reason; the page shows the
data."""

from __future__ import annotations

import base64
import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import backends.mnn.verify.measure
from backends.contract import CONTRACT_FILE, check_files, read
from backends.mnn.target.environments import LLM_RELEASES, installed_version
from backends.mnn.verify.run_settings import Trial, UseTrial
from ir.base.diag import LadingError
from ir.facts.sensitivity import CurvePoint, Sensitivity, TriedPlan, WeightSensitivity
from tests.support.paths import ROOT
from tests.support.runs import shown_at
from tools.compile.job import EXAMPLE
from tools.ladder import child as ladder_compile
from tools.ladder import child_main as ladder_child
from tools.ladder import climb as ladder_run
from tools.ladder import command as tool
from tools.ladder.charts import LOWEST, Axis, bits_axis, loss_axis, milli, size_axis
from tools.ladder.page import HEADS, html_page
from tools.ladder.report import COLUMNS, FORMAT, VERSION
from tools.ladder.rungs import (
    DEFAULT_RUNGS,
    MAX_KL,
    MAX_RISE,
    Rule,
    change,
    divergence,
    front,
    parse_rungs,
    parse_size,
    recommend,
    slug,
)
from tools.ladder.text import read_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_runtime = pytest.mark.skipif(
    installed_version() not in LLM_RELEASES, reason="needs an installed MNN with a language-model runtime"
)
TUNED = ("--settings", "int4")
SHORT = ("--windows", "2", "--window", "48", "--verify", "none", "--settings", "none")


def run(*arguments, code: int = 0):
    """Run the command and require an exit code."""
    result = CliRunner().invoke(tool.main, [str(item) for item in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


# ---- names ----


def test_rungs_are_read():
    found = parse_rungs("fp32, uniform:3,w4=default{bits=4 keep=[a,b]},int8{block=32}", [3, 8])
    assert [(item.name, item.kind, item.pipeline) for item in found] == [
        ("fp32", "fixed", "fp32"),
        ("uniform:3", "uniform", "default{bits=3 logits-bits=4}"),
        ("w4", "pipeline", "default{bits=4 keep=[a,b]}"),
        ("int8{block=32}", "pipeline", "int8{block=32}"),
        ("uniform:8", "uniform", "default{bits=8 logits-bits=8}"),
    ]
    assert [item.slug for item in found[:3]] == ["fp32", "uniform-3", "w4"]


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("mixed:4.5bpw", "calibrated{budget=4.5bpw}"),
        ("mixed:300MB", "calibrated{max-size=300MB}"),
        ("mixed:5bpw+0.85x", "calibrated{budget=5bpw min-speed=0.85x}"),
        ("mixed:kl=0.02", "calibrated{max-kl=0.02}"),
    ],
)
def test_rungs_of_mixed_precision_have_a_limit(name, pipeline):
    (found,) = parse_rungs(name)
    assert (found.kind, found.pipeline) == ("mixed", pipeline)


def test_the_usual_rungs_climb_from_floats_to_mixed_precision():
    assert [item.name for item in parse_rungs("")] == list(DEFAULT_RUNGS)
    assert [item.kind for item in parse_rungs("")].count("mixed") == 5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("fp23", "did you mean 'fp32'"),
        ("mixed:4.5", "mixed:4.5bpw (bits per weight)"),
        ("mixed:", "has no limit"),
        ("uniform:9", "no width from 2 to 8"),
        ("int4,fp32,int4", "'int4' is named twice"),
    ],
)
def test_rungs_that_cannot_be_read(text, part):
    with pytest.raises(LadingError, match=re.escape(part)) as caught:
        parse_rungs(text)
    assert caught.value.code == "U933"


def test_a_pipeline_that_cannot_be_read_is_refused_before_any_work():
    with pytest.raises(LadingError) as caught:
        parse_rungs("fp32,x=default{bitz=4}")
    assert caught.value.code.startswith("P")


def test_slugs_tell_long_and_odd_names_apart():
    names = ["a" * 90, "a" * 91, "x{y=1}", "x-y-1", "mixed:kl=0.02", "../../etc", "用"]
    assert len({slug(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[\w.-]{1,60}", slug(name)) and not slug(name).startswith(".") for name in names)


@pytest.mark.parametrize(
    ("text", "size"), [("300MB", 300_000_000), ("1.5 GB", 1_500_000_000), ("2MiB", 2 << 20), ("1000", 1000)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


def test_sizes_of_two_digits_are_exact():
    for number in range(1, 1000):
        assert parse_size(f"{number / 100:.2f}MB") == number * 10_000
        assert parse_size(f"{number // 100}.{number % 100:02}GB") == number * 10_000_000


@pytest.mark.parametrize("text", ["0", "-3MB", "3 TB", "MB", ""])
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(LadingError) as caught:
        parse_size(text)
    assert caught.value.code == "U934"


def test_widths_are_read():
    assert tool.parse_widths("2-4,8,3") == [2, 3, 4, 8]
    with pytest.raises(LadingError) as caught:
        tool.parse_widths("1-4")
    assert caught.value.code == "U933"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.gate_proj.weight", (3, "gate")),
        ("model.layers.12.self_attn.q_proj.weight", (12, "q")),
        ("lm_head.weight", (None, "head")),
        ("model.embed_tokens.weight", (None, "embedding")),
        ("transformer.h.0.attn.c_attn.weight", (0, "c_attn")),
        ("stage.2.layers.4.mlp.up_proj.weight", (4, "up")),
        ("decoder.7.o_proj.weight", (7, "o")),
    ],
)
def test_names_of_weights_tell_their_place(name, place):
    assert ladder_child.place_of(name) == place


# ---- judging ----


def rung(name: str, size: int, kl: float, rise: float = 0.0, **more):
    """A measured rung, as far as judging needs it."""
    return {"name": name, "status": "ok", "bytes": size, "kl": kl, "perplexity_rise": rise, **more}


LADDER = [
    rung("fp32", 4_000, 1e-9),
    rung("int8", 1_000, 1e-3, 0.001),
    rung("mixed", 600, 0.015, 0.006),
    rung("odd", 620, 0.03, 0.02),
    rung("int4", 500, 0.05, 0.03),
    {"name": "lost", "status": "failed"},
]


def test_the_front_holds_what_nothing_beats():
    assert front(LADDER) == ["int4", "mixed", "int8", "fp32"]


def test_the_smallest_rung_that_keeps_the_default_rule_is_taken():
    found = recommend(LADDER, Rule())
    assert (found["rung"], found["basis"]) == ("mixed", "default-rule")
    assert found["why"] == (
        "mixed is the smallest rung whose perplexity rises by at most 1 % and whose KL is at most 0.02: 600 bytes, KL "
        "0.015, perplexity +0.60 %. The next smaller one, int4, saves 100 bytes but has KL 0.050 and perplexity +3.00 %."
    )


@pytest.mark.parametrize(
    ("rule", "name"),
    [(Rule(max_kl=0.04), "mixed"), (Rule(max_kl=0.002), "int8"), (Rule(700, None), "mixed"), (Rule(999, 0.1), "int4")],
)
def test_limits_are_kept(rule, name):
    found = recommend(LADDER, rule)
    assert (found["rung"], found["basis"]) == (name, "limits")
    assert found["why"].count(". ") == 1


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (Rule(max_size=100), "No rung fits into 100 bytes. The nearest is int4"),
        (Rule(max_kl=1e-12), "No rung has a KL of at most 1e-12. The nearest is fp32"),
        (Rule(700, 1e-3), "No rung fits into 700 bytes and has a KL of at most 0.001. The nearest is mixed"),
    ],
)
def test_limits_that_no_rung_keeps(rule, part):
    found = recommend(LADDER, rule)
    assert (found["rung"], found["basis"]) == (None, "none")
    assert part in found["why"]


def test_the_knee_is_taken_where_no_rung_keeps_the_default_rule():
    rungs = [rung("a", 1000, 0.1, 0.2), rung("b", 1100, 0.03, 0.05), rung("c", 3000, 0.025, 0.04)]
    found = recommend(rungs, Rule())
    assert (found["rung"], found["basis"]) == ("b", "knee")


def test_nothing_measured_gives_no_recommendation():
    assert recommend([{"name": "x", "status": "failed"}], Rule())["rung"] is None


RUNGS = st.lists(
    st.tuples(st.integers(1, 10**6), st.floats(0, 10, allow_nan=False), st.floats(-0.1, 5)), min_size=1, max_size=8
)


@settings(max_examples=80, deadline=None)
@given(RUNGS, st.none() | st.integers(1, 10**6), st.none() | st.floats(1e-6, 10))
def test_no_smaller_rung_would_have_done(drawn, size, kl):
    rungs = [rung(str(number), *item) for number, item in enumerate(drawn)]
    found = recommend(rungs, Rule(size, kl))
    taken = next((item for item in rungs if item["name"] == found["rung"]), None)

    def fits(item):
        if size is None and kl is None:
            return item["kl"] <= MAX_KL and item["perplexity_rise"] <= MAX_RISE
        return (size is None or item["bytes"] <= size) and (kl is None or item["kl"] <= kl)

    fitting = [item for item in rungs if fits(item)]
    if fitting and size is not None and kl is None:
        assert taken["kl"] == min(item["kl"] for item in fitting)
    elif fitting:
        assert taken["bytes"] == min(item["bytes"] for item in fitting)
    else:
        assert (taken is None) == (size is not None or kl is not None)
    names = front(rungs)
    for item in rungs:
        beaten = any(
            (other["bytes"] <= item["bytes"] and other["kl"] < item["kl"])
            or (other["bytes"] < item["bytes"] and other["kl"] <= item["kl"])
            for other in rungs
        )
        assert not (beaten and item["name"] in names)


@pytest.mark.parametrize(
    ("kl", "text"),
    [(1e-9, "<1e-7"), (2.5e-6, "2.5e-6"), (0.01, "0.010"), (0.277, "0.28"), (1.5, "1.5"), (12.34, "12.3")],
)
def test_divergences_for_people(kl, text):
    assert divergence(kl) == text


@pytest.mark.parametrize(
    ("share", "text"), [(-1e-9, "0.00 %"), (0.0042, "+0.42 %"), (-0.01, "-1.00 %"), (31, "+3,100 %")]
)
def test_changes_for_people(share, text):
    assert change(share) == text


# ---- a run ----


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, JSON data and output of a run of two rungs."""
    folder = tmp_path_factory.mktemp("ladder") / "out"
    result = run("--rungs", "fp32,int4", *SHORT, *TUNED, "-o", folder)
    return folder, json.loads((folder / "ladder.json").read_text()), result.output


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the run's folder, and the arguments that repeat it."""
    shutil.copytree(made[0], tmp_path / "out")
    return tmp_path / "out", ["--rungs", "fp32,int4", *SHORT, *TUNED, "-o", tmp_path / "out"]


@pytest.fixture
def work(monkeypatch):
    """What is really compiled and measured: names of folders."""
    seen: dict[str, list[str]] = {"built": [], "measured": []}
    build, measure = ladder_run.compile_rung, backends.mnn.verify.measure.measure

    def watched_build(request, *rest):
        seen["built"].append(Path(request["out"]).name)
        return build(request, *rest)

    def watched_measure(folder, *rest, **more):
        seen["measured"].append(folder.name)
        return measure(folder, *rest, **more)

    monkeypatch.setattr(ladder_run, "compile_rung", watched_build)
    monkeypatch.setattr(backends.mnn.verify.measure, "measure", watched_measure)
    return seen


@needs_runtime
def test_rungs_are_built_and_measured(made):
    folder, data, output = made
    assert (data["format"], data["version"], data["ok"]) == (FORMAT, VERSION, True)
    whole, four = data["rungs"]
    assert (whole["name"], whole["status"], four["status"]) == ("fp32", "ok", "ok")
    assert whole["kl"] < 1e-6 and whole["top1"] == 1 and abs(whole["perplexity_rise"]) < 1e-4
    assert 1e-3 < four["kl"] < 0.5 and 0.5 < four["top1"] <= 1
    assert four["bytes"] < whole["bytes"] / 4 and 4 < four["bits_per_weight"] < 6
    assert four["bytes"] == sum(
        path.stat().st_size for path in (folder / "int4").rglob("*") if path.name != "contract.json"
    )
    assert {item["bits"] for item in four["weights"]} == {4}
    low, high = four["decode_spread"]
    assert 0 < low <= high and low / 2 < four["decode_tokens_per_s"] < 2 * high
    recommended = data["recommendation"]
    assert Path(recommended["folder"]).is_dir() and f"folder: {recommended['folder']}" in output
    assert f"--passes {recommended['rung']} " in recommended["command"]
    assert min(four["decode_tokens_per_s"], four["prefill_tokens_per_s"], four["load_s"], four["peak_rss"]) > 0
    assert four["perplexity"] == pytest.approx(data["reference"]["perplexity"] * (1 + four["perplexity_rise"]))
    assert data["text"]["name"] == "evaluation.txt" and data["text"]["tokens"] == 96
    assert len(four["sample"]) > 20 and whole["sample"] != four["sample"]
    assert "No rung keeps perplexity" in output or " is the smallest rung" in output
    assert "96 tokens of evaluation.txt" in output.replace("\n", " ")


@needs_runtime
def test_settings_are_tried_beside_those_that_are_shipped_and_told(made):
    folder, data = made[0], made[1]
    (found,) = data["settings"]
    trials = {item["name"]: item for item in found["trials"]}
    usual = trials["as shipped"]
    assert found["rung"] == "int4" and found["error"] is None and usual["verdict"] == "usual"
    assert {"attention_mode=0", "attention_mode=10", "dynamic_option=2", "kvcache_mmap=true"} <= set(trials)
    # Keys and values in few bits show only where tokens are decoded behind them; how scores are cut changes nothing.
    coarse, flash = trials["attention_mode=10"], trials["attention_mode=0"]
    assert coarse["verdict"] == "costs" and coarse["more_decode"] > 10 * abs(flash["more_decode"])
    assert all(len(usual[rate]) == 3 and set(usual[rate]) == {1.0} for rate in ("decode", "prefill", "load", "memory"))
    contract = read(folder / "int4")
    recorded = {choice.settings.others.get("attention_mode"): choice for choice in contract.runtime.choices}
    assert recorded[10].kl_decode == coarse["kl_decode"] and "keys and values" in recorded[10].note
    assert check_files(contract, folder / "int4") == []
    assert [item["name"] for item in found["uses"]] == ["kept history", "lookahead", "prefix cache"]
    assert found["uses"][2]["times"] is None and "not measured" in found["uses"][2]["note"]


@needs_runtime
def test_a_second_run_does_nothing_and_writes_the_same_page(copy, work, made):
    run(*copy[1])
    assert work == {"built": [], "measured": []}
    again = (copy[0] / "ladder.html").read_text().replace(str(copy[0].parent), str(made[0].parent))
    assert again == (made[0] / "ladder.html").read_text()
    assert all(item["reused"] for item in json.loads((copy[0] / "ladder.json").read_text())["rungs"])


@needs_runtime
def test_only_what_has_changed_is_done_again(copy, work):
    out, arguments = copy
    run(*arguments, "--prompt", "def f(x):")
    assert work == {"built": [], "measured": ["fp32", "int4"]}
    weights = out / "int4" / "llm.mnn.weight"
    weights.write_bytes(weights.read_bytes()[:-1])
    work["measured"].clear()
    run(*arguments, "--prompt", "def f(x):")
    assert work == {"built": ["int4"], "measured": ["int4"]}


@needs_runtime
def test_fresh_does_all_again_and_nothing_is_kept_when_so_asked(copy, work):
    out, arguments = copy
    arguments = ["--rungs", "int4", *arguments[2:]]
    assert run(*arguments, "--fresh", "--no-keep", "--quiet").output == ""
    assert work == {"built": ["int4"], "measured": ["int4"]}
    assert sorted(path.name for path in out.iterdir()) == [".rungs", "fp32", "ladder.html", "ladder.json"]
    work["built"].clear()
    data = json.loads(run(*arguments, "--no-keep", "--json", "-").stdout)
    assert work["built"] == [] and data["rungs"][0]["folder"] is None


@needs_runtime
def test_rungs_that_a_cluster_builds_have_the_same_bytes(copy, work, made):
    out, arguments = copy
    run("--rungs", "int4", *arguments[2:], "--fresh", "--quiet", "--cluster", "local:2")
    assert work == {"built": ["int4"], "measured": ["int4"]}
    # The contract of the other has what was tried of settings, too.
    names = sorted(path.name for path in (made[0] / "int4").iterdir() if path.name != CONTRACT_FILE)
    assert filecmp.cmpfiles(out / "int4", made[0] / "int4", names, shallow=False) == (names, [], [])
    ours, theirs = read(out / "int4"), read(made[0] / "int4")
    assert ours.weights == theirs.weights and ours.files == theirs.files


@needs_runtime
def test_a_rung_that_fails_is_shown_and_the_others_go_on(tmp_path):
    (tmp_path / "fp16").mkdir()
    (tmp_path / "fp16" / "diary.txt").write_text("not ours")
    result = run("--rungs", "fp16,int4", *SHORT, "-o", tmp_path, code=1)
    again = run("--rungs", "fp16,int4", *SHORT, "-o", tmp_path, "--quiet", code=1)
    assert "fp16: error[B631]" in again.stderr and again.stdout == ""
    data = json.loads((tmp_path / "ladder.json").read_text())
    assert [item["status"] for item in data["rungs"]] == ["failed", "ok"]
    assert data["rungs"][0]["error"]["code"] == "B631"
    assert "failed B631" in result.output and not data["ok"] and data["recommendation"]["rung"] == "int4"
    assert (tmp_path / "fp16" / "diary.txt").read_text() == "not ours"
    page = (tmp_path / "ladder.html").read_text()
    assert "failed: B631" in page


@needs_runtime
def test_numbers_that_are_not_finite_fail_a_rung(copy, monkeypatch):
    measure = backends.mnn.verify.measure.measure

    def broken(folder, *rest, **more):
        found = measure(folder, *rest, **more)
        return replace(found, kl=float("nan")) if folder.name == "int4" else found

    monkeypatch.setattr(backends.mnn.verify.measure, "measure", broken)
    run(*copy[1], "--prompt", "x = ", code=1)
    failed = json.loads((copy[0] / "ladder.json").read_text())["rungs"][1]
    assert failed["error"]["code"] == "U936" and failed["error"]["message"].startswith("kl cannot be measured")


@needs_runtime
def test_limits_that_cannot_be_kept_give_exit_code_one(copy):
    assert "No rung fits into 10.00 kB." in run(*copy[1], "--budget-size", "10kB", code=1).output


@needs_runtime
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--text", "/none.txt"), "U903"),
        (("--calibration", "/none.txt"), "U903"),
        (("--budget-size", "much"), "U934"),
        (("--uniform", "1-9"), "U933"),
        (("--settings", "int9"), "U933"),
        (("--html", "/dev/null/page.html"), "U935"),
        (("-o", "/dev/null/out"), "B632"),
        (("--cluster", "local:none"), "U969"),
        (("--cluster", "nowhere"), "U969"),
    ],
)
def test_what_is_wrong_with_the_options(copy, options, code):
    assert f"error[{code}]" in run(*copy[1], *options, code=1).output


def test_a_text_shorter_than_a_window_is_refused(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("x = 1\n")
    with pytest.raises(LadingError) as caught:
        read_text(text, "file", EXAMPLE, 4, 64)
    assert caught.value.code == "U938"


def test_windows_are_spread_over_the_text():
    text = read_text(EXAMPLE / "evaluation.txt", "example", EXAMPLE, 4, 32)
    assert [len(window) for window in text.windows] == [32] * 4
    assert len({tuple(window) for window in text.windows}) == 4
    assert text.as_dict()["tokens"] == 128
    assert (
        text == replace(text) and read_text(EXAMPLE / "evaluation.txt", "example", EXAMPLE, 4, 32).sha256 == text.sha256
    )


def test_windows_begin_with_what_the_tokenizer_puts_before_a_text(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="{ $A }", special_tokens=[("{", 5), ("}", 6)])
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = read_text(EXAMPLE / "evaluation.txt", "example", tmp_path, 4, 32)
    assert [(len(window), window[0]) for window in text.windows] == [(32, 5)] * 4


def test_a_model_without_a_text_of_its_own_gets_the_packaged_sample(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.txt"))
    options = {"target": "portable", "windows": 3, "window": 64, "verify": "none", "threads": 1, "keep": True}
    options |= {"resume": True, "timeout": 9, "settings": "recommended"}
    options |= dict.fromkeys(("budget_size", "max_kl", "calibration", "revision", "text", "prompt", "out", "cluster"))
    job = tool.make_job(str(folder), [], options)
    assert (job.text.origin, len(job.text.windows), max(map(len, job.text.windows))) == ("sample", 3, 64)
    assert job.calibration is None and job.out == Path("build/ladder/mine")


# ---- child processes ----


def test_a_child_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(ladder_compile.sys, "executable", "/bin/false")
    with pytest.raises(LadingError, match="left with exit code 1") as caught:
        ladder_compile.compile_rung({}, lambda *event: None, 60)
    assert caught.value.code == "U937"


def test_a_child_that_takes_too_long_is_stopped(monkeypatch, tmp_path):
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(ladder_compile.sys, "executable", str(script))
    started = time.perf_counter()
    with pytest.raises(LadingError, match="was stopped after") as caught:
        ladder_compile.compile_rung({}, lambda *event: None, 0.3)
    assert caught.value.code == "U937" and "--timeout" in caught.value.diagnostics[0].hint
    assert time.perf_counter() - started < 20


def test_a_child_tells_its_progress_and_its_failure(tmp_path):
    events = []
    request = {"model": str(tmp_path / "nothing"), "out": str(tmp_path / "out"), "pipeline": "fp32", "verify": "none"}
    with pytest.raises(LadingError) as caught:
        ladder_compile.compile_rung(request, lambda *event: events.append(event), 120)
    assert caught.value.code.startswith("F5") and ("reading the model", 0, 0) in events


def start(out: Path) -> subprocess.Popen:
    """The command in a process of its own, that nothing of the keyboard reaches but what we send."""
    arguments = ["--rungs", "int4,int8,fp16,default", *SHORT, "-o", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tools.ladder", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(condition, seconds: float = 120) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.02)


@needs_runtime
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_half_done_and_goes_on(how, tmp_path):
    out = tmp_path / "out"
    process = start(out)
    try:
        wait_for(lambda: list(out.glob(".int8.partial-*")) or process.poll() is not None)
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not list(out.glob(".*.partial-*")), 30)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in errors
        return
    before = (out / ".rungs" / "int4.json").stat().st_mtime_ns
    data = json.loads(run("--rungs", "int4,int8", *SHORT, "-o", out, "--json", "-").stdout)
    assert [item["status"] for item in data["rungs"]] == ["ok", "ok"] and data["rungs"][0]["reused"]
    assert (out / ".rungs" / "int4.json").stat().st_mtime_ns == before


# ---- what assign-precision found out ----


def measured_fact() -> Sensitivity:
    points = tuple(CurvePoint(bits, 64, False, "rtn", 100 * bits, 1 / bits, 0.1 / bits) for bits in (2, 4, 8))
    name = "model.layers.1.mlp.down_proj.weight"
    one = WeightSensitivity(name, "layer", 1, "down", 1000, "3 bits, block 64", 0.02, 0.1, 1.5, points, 1)
    plan = TriedPlan("mixed, round 1", 400, 4.2, 0.05, 0.06, 0.001, 0.9, True)
    return Sensitivity("budget=4.5bpw", (512, 2048), (one, replace(one, name="lm_head.weight", probe="")), (plan,))


def test_the_report_gets_what_was_measured_of_each_weight():
    found = ladder_child._sensitivity(measured_fact())
    assert [(item["layer"], item["kind"], item["kl"]) for item in found["weights"]] == [
        (1, "down", 0.02),
        (None, "head", None),
    ]
    assert found["plans"][0]["measured"] == 0.06 and found["limit"] == "budget=4.5bpw"


def test_the_predicted_loss_of_a_weight_is_that_of_what_was_chosen():
    from backends.contract import Storage, WeightEntry

    fact = measured_fact().weights[0]
    storage = Storage(bits=4, block=64, symmetric=False, zero="int", scale_dtype="f32", method="rtn", layout="x")
    entry = WeightEntry(name=fact.name, file="w", offset=0, bytes=400, shape=(20, 50), storage=storage)
    assert ladder_child._weight(entry, fact)["loss"] == pytest.approx(0.1 / 4 * 1.5)
    assert ladder_child._weight(entry, None)["loss"] is None


# ---- the page ----


def full_rung(name: str, kind: str, bpw: float, kl: float, layers: int, rng: random.Random) -> dict:
    """A measured rung as the report has it."""
    kinds = ["q", "k", "v", "o", "gate", "up", "down"]
    places = [(None, "embedding"), *((layer, one) for layer in range(layers) for one in kinds), (None, "head")]
    weights = [
        {
            "name": f"model.layers.{layer}.{one}.weight", "layer": layer, "kind": one, "rows": 64, "columns": 64,
            "bits": rng.choice([2, 3, 4, 6, 8]) if kind == "mixed" else max(2, min(32, round(bpw))), "block": 64,
            "symmetric": False, "method": "rtn", "bytes": 2048, "shared_with": None, "error": rng.uniform(0, 0.3),
            "loss": 10 ** rng.uniform(-6, -1) if kind == "mixed" else None,
        }
        for layer, one in places
    ]  # fmt: skip
    probes = [
        {key: item[key] for key in ("name", "layer", "kind")}
        | {"probe": "3 bits, block 64", "kl": 10 ** rng.uniform(-7, 1)}
        for item in weights
    ]
    probes[1] |= {"probe": "", "kl": None}
    plan = {"name": "p", "bytes": 9, "bits_per_weight": bpw, "predicted": kl, "measured": kl, "measured_error": kl / 9,
            "top1": 0.9, "taken": True}  # fmt: skip
    return {
        "name": name, "kind": kind, "pipeline": name, "status": "ok", "reused": False, "error": None, "folder": None,
        "bytes": int(5e8 * bpw / 8), "weight_bytes": int(5e8 * bpw / 8), "bits_per_weight": bpw,
        "settings": {"memory": "low", "precision": "low", "threads": 4}, "weights": weights, "warnings": [],
        "streamed": dict.fromkeys(("x86", "arm82", "arm86", "metal", "opencl"), int(6e8 * bpw / 8)),
        "sensitivity": {"limit": "budget=4bpw", "tokens": [512, 2048], "weights": probes, "plans": [plan]}
        if kind == "mixed" else None,
        "kl": kl, "kl_error": kl / 30, "top1": max(0.0, 1 - kl), "perplexity": 10 * (1 + kl), "perplexity_rise": kl,
        "nll_error": 0.001, "max_abs": 1.0, "max_logit": 20.0, "median_abs": 0.1, "load_s": 0.1 * bpw,
        "prefill_tokens_per_s": 12345.6, "decode_tokens_per_s": 300 / bpw,
        "prefill_spread": [12000.4, 12601.1], "decode_spread": [280 / bpw, 310 / bpw], "peak_rss": int(6e8 * bpw / 8),
        "sample": f"def f{kl}(x):\n\treturn <b>{'unbreakable' * 12}&</b>", "seconds": {"build": 1.0, "measure": 1.0},
    }  # fmt: skip


def tried_settings() -> list[dict]:
    """What was tried on two rungs, on one of which the runtime failed."""
    usual = Trial("as shipped", {}, "", kl=2e-3, kl_decode=3e-3, top1=0.9, decode=(1, 1), prefill=(1, 1), load=(1, 1),
                  memory=(1, 1))  # fmt: skip
    other = replace(usual, name="attention_mode=10", meaning="keys and <values> in 8 bits", more=1e-3, error=1e-5,
                    more_decode=-4e-3, error_decode=2e-4, decode=(0.9, 1.1, 1.0), verdict="costs")  # fmt: skip
    failed = Trial("dynamic_option=1", {}, "", verdict="failed", note="it ended")
    use = UseTrial("lookahead", "several at once", 1.7, "the same tokens")
    found = {"trials": [item.as_dict() for item in (usual, other, failed)], "uses": [use.as_dict()], "chosen": ["a=1"]}
    error = {"code": "B667", "severity": "error", "message": "it <ended>", "where": "", "hint": ""}
    return [
        {"rung": "int4", **found, "error": None, "seconds": 2.0, "reused": False},
        {"rung": "int8", "trials": [], "uses": [], "chosen": [], "error": error, "seconds": 0.0, "reused": False},
    ]


def report(layers: int, *, name: str = "m", failed: int = 0, limit: Rule | None = None) -> dict:
    """A report of many rungs, the first `failed` of which failed."""
    rng = random.Random(7)
    rungs = [
        full_rung(one, kind, bpw, kl, layers, rng)
        for one, kind, bpw, kl in [
            ("fp32", "fixed", 32, 1e-12), ("int8", "fixed", 9, 8e-4), ("int4", "fixed", 5, 0.11),
            *((f"mixed:{b}bpw", "mixed", b, 2.0 ** (-1.6 * b)) for b in (3.5, 4, 4.5, 5, 6)),
            *((f"uniform:{b}", "uniform", b + 1, 3 * 4.0 ** (1.5 - b)) for b in range(2, 9)),
            ("a-pipeline-{of=[many,words] and=more words=still} and-a-very-long-name", "pipeline", 4.2, 0.2),
        ]
    ]  # fmt: skip
    error = {"code": "U937", "severity": "error", "message": "it <ended>", "where": "", "hint": "give it more"}
    for number in range(failed):
        known = {key: rungs[number][key] for key in ("name", "kind", "pipeline")}
        rungs[number] = known | {"status": "failed", "reused": False, "error": error}
    best = front(rungs)
    rungs = [item | {"on_front": item["name"] in best} for item in rungs]
    rule = limit or Rule()
    return {
        "format": FORMAT, "version": VERSION, "ok": not failed, "compiler": "0", "platform": "Linux",
        "model": {"source": f"/some/path/{name}", "name": name, "family": "qwen2", "layers": layers, "parameters": 10**9},
        "target": "portable", "releases": ["3.4.0", "3.6.1"], "release": None if failed == len(rungs) else "3.6.1",
        "text": {"name": "t.txt", "origin": "file", "sha256": "0" * 64, "windows": 8, "tokens": 2048, "longest_window": 256},
        "calibration": None, "prompt": "import os\n", "reference": {"perplexity": 10.0, "positions": 2048},
        "verify": "quick", "rule": rule.as_dict(), "rungs": rungs, "seconds": 1.0, "settings": tried_settings(),
        "recommendation": {**recommend(rungs, rule), "folder": "build/ladder/m/x", "command": "lading compile m -o x"},
    }  # fmt: skip


REPORTS = {
    "28-layers": dict(layers=28),
    "1-layer-long-name": dict(layers=1, name="an-organisation/" + "A-Model-With-An-Endless-Name" * 5, failed=2),
    "all-failed": dict(layers=2, failed=16),
    "limit": dict(layers=4, limit=Rule(max_kl=0.05)),
}


def test_equal_data_give_equal_pages():
    assert html_page(report(2)) == html_page(json.loads(json.dumps(report(2))))


def test_the_page_needs_nothing_from_elsewhere():
    page = html_page(report(3))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")|src=", page)


def test_names_cannot_break_out_of_the_page():
    bad = "</script><script>alert(1)</script>"
    data = report(1, name=bad)
    data["prompt"] = data["text"]["name"] = data["model"]["source"] = bad
    data["rungs"][1] |= {"name": bad, "sample": bad}
    data["rungs"][1]["weights"][0] |= {"name": bad, "method": bad}
    page = html_page(data)
    assert page.count("<script>") == page.count("</script>") == 1


def test_the_pages_text_is_legible_in_both_themes():
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = ((part / 12.92) if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    page = html_page(report(1))
    themes = [dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", part)) for part in re.findall(r":root\{([^{}]*)\}", page)]
    assert len(themes) == 2 and themes[0] != themes[1]
    pairs = [(f"s{shade}", "low-ink" if shade < 6 else "high-ink") for shade in range(9)]
    pairs += [("paper", "ink"), ("paper", "soft"), ("take", "soft"), ("bad-paper", "bad"), ("panel", "soft")]
    for theme in themes:
        for paper, ink in pairs:
            low, high = sorted([luminance(theme[paper]), luminance(theme[ink])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (paper, ink)


@pytest.mark.parametrize("values", [[1.5e6, 1.4e7], [300e6], [1e3, 9e9], [5.0, 5.0]])
def test_axes_hold_their_values_and_have_ticks(values):
    axis = size_axis(values, 1.0, "")
    assert all(0 < axis.share(value) < 1 for value in values) and axis.ticks
    assert all(0 <= axis.share(value) <= 1 for value, _ in axis.ticks)


def test_the_axis_of_divergences_has_room_below_for_rounding():
    axis = loss_axis([1e-12, 3e-4, 0.2])
    assert [text for _, text in axis.ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert axis.share(1e-12) == 0 and axis.share(LOWEST) == 0 and axis.share(3e-4) > 0.15
    assert isinstance(loss_axis([1e-12]), Axis) and bits_axis([4.0]).share(4.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kl", "text"),
    [
        (1e-9, "<.01"),
        (1e-5, ".01"),
        (0.000996, "1.0"),
        (0.0012, "1.2"),
        (0.00996, "10"),
        (0.4567, "457"),
        (12.3, "12k"),
    ],
)
def test_thousandths_fit_into_cells(kl, text):
    assert milli(kl) == text and len(text) <= 4


OUTER = """<!doctype html><body><script>
const page=new TextDecoder().decode(Uint8Array.from(atob("%s"),c=>c.charCodeAt(0)));
const found={};
const wait=ms=>new Promise(done=>setTimeout(done,ms));
async function look(width,scheme){
 const frame=document.createElement("iframe");
 frame.style.cssText=`border:0;width:${width}px;height:900px;color-scheme:${scheme}`;
 frame.srcdoc=page;document.body.append(frame);
 await new Promise(done=>frame.addEventListener("load",done));await wait(30);
 const win=frame.contentWindow,doc=frame.contentDocument,all=query=>[...doc.querySelectorAll(query)];
 const shown=node=>node.getClientRects().length>0,box=node=>node.getBoundingClientRect();
 const seen={errors:win.errors,ready:doc.documentElement.dataset.ready};
 seen.wide=doc.documentElement.scrollWidth-win.innerWidth;
 seen.out=all("body *").filter(node=>shown(node)&&!node.closest("svg,.hidden,thead")&&
  (box(node).right>width+0.5||box(node).left<-0.5)).map(node=>node.outerHTML.slice(0,90));
 seen.cut=all(".map td,.numbers td,.figures dd,.worst td,.tabs button").filter(node=>shown(node)&&
  node.scrollWidth>node.clientWidth+1).map(node=>node.outerHTML.slice(0,90));
 const labels=all(".label").filter(shown);
 seen.labels=labels.length;
 seen.covered=labels.filter((one,index)=>labels.some((two,other)=>other>index&&one.parentElement===two.parentElement&&
  box(one).left<box(two).right-1&&box(two).left<box(one).right-1&&box(one).top<box(two).bottom-2&&
  box(two).top<box(one).bottom-2)).map(node=>node.textContent);
 seen.paper=win.getComputedStyle(doc.body).backgroundColor;
 seen.rows=all("table.numbers:not(.settings) tbody tr").map(row=>[row.dataset.rung,
  Object.fromEntries([...row.querySelectorAll("td[data-field]")].map(cell=>[cell.dataset.field,cell.textContent]))]);
 seen.points=all(".size .point[data-rung]").map(node=>node.dataset.rung);
 seen.samples=all(".samples h3").map(node=>node.textContent);
 seen.cells=all(".map td[data-tip]").length;
 const point=doc.querySelector(".size .point.taken[data-rung]");
 if(point){
  point.focus();await wait(5);
  const tip=doc.querySelector("#tip");
  seen.tip=tip.hidden?"":tip.textContent;
  seen.tipped=box(tip).left>=0&&box(tip).right<=width;
  doc.dispatchEvent(new win.KeyboardEvent("keydown",{key:"Escape"}));
  seen.closed=tip.hidden;
  doc.querySelector("#by-bits").click();
  seen.switched=!shown(point)&&shown(doc.querySelector(".bits .point.taken[data-rung]"));
  const tabs=all("[role=tab]"),chosen=tabs.findIndex(tab=>tab.getAttribute("aria-selected")==="true");
  seen.first=tabs[chosen].textContent;
  seen.panes=all(".pane").filter(shown).length;
  tabs[chosen].dispatchEvent(new win.KeyboardEvent("keydown",{key:"ArrowRight",bubbles:true}));
  seen.next=tabs[(chosen+1)%%tabs.length].getAttribute("aria-selected");
  const cell=all(".map td[data-tip]").filter(shown)[1];
  cell.focus();cell.dispatchEvent(new win.KeyboardEvent("keydown",{key:"ArrowRight",bubbles:true}));
  seen.walked=doc.activeElement===cell.nextElementSibling;
 }
 frame.remove();
 return seen;
}
(async()=>{
 for(const width of [360,900,1920])for(const scheme of ["light","dark"])found[`${width} ${scheme}`]=await look(width,scheme);
 const out=document.createElement("pre");out.id="probe";out.textContent=btoa(unescape(encodeURIComponent(JSON.stringify(found))));
 document.body.append(out);
})();
</script>"""
CATCH = """<script>window.errors=[];
addEventListener("error",event=>errors.push(String(event.message)));
addEventListener("unhandledrejection",event=>errors.push(String(event.reason)));
for(const name of ["error","warn"])console[name]=(...words)=>errors.push(words.join(" "));</script>"""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=9000", "--dump-dom",
    "--window-size=2000,1000",
)  # fmt: skip


def look(page: str, folder: Path) -> dict:
    """What a browser makes of a page, by width and theme."""
    content = page.replace("<head>", "<head>" + CATCH, 1)
    place = folder / "outer.html"
    place.write_text(OUTER % base64.b64encode(content.encode()).decode())
    result = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", place.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    match = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    assert match, result.stderr[-2000:]
    return json.loads(base64.b64decode(match[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")
@pytest.mark.parametrize("which", REPORTS)
def test_the_page_in_a_browser(which, tmp_path):
    """At three widths in both themes: nothing overflows, every rung is there, numbers are the data's, parts react."""
    data = report(**REPORTS[which])
    found = look(html_page(data), tmp_path)
    ready = [item for item in data["rungs"] if item["status"] == "ok"]
    chosen = data["recommendation"]["rung"]
    for place, seen in found.items():
        assert (seen["errors"], seen["ready"]) == ([], "yes"), place
        assert (seen["wide"] <= 0, seen["out"], seen["cut"], seen["covered"]) == (True, [], [], []), place
        shown = dict(seen["rows"])
        assert list(shown) == [item["name"] for item in data["rungs"]]
        for item in ready:
            assert shown[item["name"]] == {key: text(item) for _, key, text in HEADS}
        assert sorted(seen["points"]) == sorted(item["name"] for item in ready)
        assert seen["samples"] == [item["name"] for item in ready]
        if ready:
            assert seen["tip"].startswith(f"{chosen} (recommended)") and seen["tipped"] and seen["closed"]
            assert seen["switched"] and seen["panes"] == 1 and seen["next"] == "true" and seen["walked"]
            assert seen["first"] == chosen and seen["labels"] >= 5
    for width in (360, 900, 1920):
        assert found[f"{width} light"]["paper"] != found[f"{width} dark"]["paper"]


@needs_runtime
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")
def test_the_page_of_a_real_run_in_a_browser(made, tmp_path):
    folder, data, _ = made
    found = look((folder / "ladder.html").read_text(), tmp_path)
    for seen in found.values():
        assert seen["errors"] == [] and seen["wide"] <= 0 and seen["out"] == [] and seen["cut"] == []
        for name, cells in seen["rows"]:
            item = next(item for item in data["rungs"] if item["name"] == name)
            assert cells == {key: text(item) for _, key, text in HEADS}
        assert seen["cells"] >= 4 * 7 + 2


# ---- the terminal, the manual ----


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_has_every_number_whole_on_any_terminal(width):
    from tools.ladder.report import show_ladder

    data = report(2, failed=1)
    text = shown_at(width, lambda console: show_ladder(console, data))
    assert "…" not in text
    for item in data["rungs"][1:-1]:
        lines = [line.split() for line in text.splitlines() if f" {item['name']} " in line]
        cells = [cell(item).split() for _, cell in COLUMNS]
        assert len(lines) <= 5
        words = [word for line in lines for word in line[line.index(item["name"]) + 1 :]]
        assert words == [word for cell in cells for word in cell]
    assert "fp32: [U937] it <ended>" in text
    assert "folder: build/ladder/m/x\ncommand: lading compile m -o x\n" in text
    assert (
        "attention_mode=10" in text and "+0.0010 ± 1e-5" in text and "-0.0040 ± 0.0002" in text and "costs KL" in text
    )
    assert "lookahead (several at once): 1.7 times as fast, the same tokens" in " ".join(text.split())
    assert "written to the configuration and the contract: a=1." in text.lower() and "[B667] it <ended>" in text


def keys_of(data, place: str = "") -> set[str]:
    """Dotted names of all fields, lists as ``[]``."""
    found: set[str] = set()
    if isinstance(data, dict):
        for key, value in data.items():
            found |= {f"{place}{key}"} | keys_of(value, f"{place}{key}.")
    elif isinstance(data, list):
        for value in data:
            found |= keys_of(value, f"{place.removesuffix('.')}[].")
    return found


def test_the_manual_names_every_field_of_the_json():
    page = (ROOT / "docs" / "ladder.md").read_text()
    table = page[page.index("## The JSON") :]
    documented = {
        name for line in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", line)
    }
    data = report(2, failed=1)
    assert keys_of(data) <= documented
    model = {name for name in documented if name.startswith("model.")}
    assert documented - keys_of(data) - model == set()


@needs_runtime
def test_a_real_report_has_the_documented_fields(made):
    have = {name for name in keys_of(made[1]) if not name.startswith("model.")}
    want = {name for name in keys_of(report(2, failed=1)) if not name.startswith("model.")}
    assert have - want == {name for name in have if "warnings[]" in name}
    assert {name for name in want - have} == {name for name in want if ".sensitivity." in name or ".error." in name}


@pytest.mark.parametrize(
    ("pipeline", "reads"),
    [
        ("int4", False),
        ("calibrated", True),
        ("mixed", True),
        ("default{method=gptq}", True),
        ("default{budget=4bpw}", True),
    ],
)
def test_every_rung_that_looks_at_text_is_given_the_text_that_was_named(pipeline, reads, tmp_path):
    """Compiling puts the pass calibrate before a method or a limit that needs it; the packaged sample must not stand in."""
    from types import SimpleNamespace

    from tools.ladder.climb import calibration_of
    from tools.ladder.rungs import Spec

    job = SimpleNamespace(calibration=tmp_path / "text.txt")
    assert calibration_of(job, Spec(pipeline, "pipeline", pipeline)) == (job.calibration if reads else None)
