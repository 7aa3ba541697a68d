"""Compiling a checkpoint with a chat template: what is written, said and promised."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import backends.contract as c
from backends.mnn.chat import plan as plans
from backends.mnn.chat import releases
from backends.mnn.chat.conversations import CONVERSATIONS
from backends.mnn.chat.plan import ChatJob, ChatPlan, digest
from backends.mnn.chat.releases import Outcome
from backends.mnn.chat.report import ChatReport, tried
from backends.mnn.target.environments import installed_version
from frontends.text.chat_child import Limits, Template
from ir.base.diag import LadingError
from tests.support.paths import ROOT
from tests.support.text.chats import TOKENS
from tools.compile.job import Request, Result, compile_model

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"
HERE = installed_version() or ""
REPORTED = (
    "{% for m in messages %}[{{ m.name | default(m.role) }}] "
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
"""Two reports in one: roles by default, and reasoning that is cut off."""


def checkpoint(folder: Path, template: str | None) -> Path:
    shutil.copytree(EXAMPLE, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def compiled(tmp_path: Path, template: str | None, **options: str) -> Result:
    return compile_model(Request(str(checkpoint(tmp_path / "model", template)), tmp_path / "out", **options))


def planned(source: str) -> ChatPlan:
    template = Template(source, TOKENS)
    return ChatPlan(source, tuple(template.render(conversation.chat()) for conversation in CONVERSATIONS))


def test_templates_of_the_reports(tmp_path: Path) -> None:
    result = compiled(tmp_path, REPORTED)
    chat = c.read(tmp_path / "out").chat
    assert chat is not None and chat.template == digest(REPORTED)
    assert {"default", "in"} <= set(chat.rewritten)
    assert [(run.release, run.same, run.differing) for run in chat.runs] == [(HERE, len(CONVERSATIONS), ())]
    assert len(chat.untried) == 4 and HERE not in chat.untried
    written = json.loads((tmp_path / "out" / "llm_config.json").read_text())["jinja"]["chat_template"]
    assert chat.written == digest(written) and "default" not in written
    assert dict(result.lines)["chat"] == f"template rewritten; {len(CONVERSATIONS)} chats as the original on {HERE}"
    assert not [item for item in result.warnings if item.code.startswith("B77")]


def test_what_renders_otherwise_is_said(tmp_path: Path) -> None:
    """No release since 3.5 multiplies, and no rule makes a product of sums."""
    result = compiled(
        tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages|length * 2 }}", target="3.6.1"
    )
    found = [item for item in result.warnings if item.code == "B770"]
    assert len(found) == 1 and found[0].severity == "warning"
    assert f"MNN {HERE} renders 18 of 18 chats otherwise: one question" in found[0].message
    assert "other text on 3.6.1: one question and 17 more" in dict(result.lines)["chat"]
    chat = c.read(tmp_path / "out").chat
    assert chat is not None and len(chat.runs[0].differing) == 18 and not chat.untried
    assert any(item.code == "B770" for item in c.read(tmp_path / "out").warnings)


def test_a_template_that_hangs_the_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "SECONDS", 3.0)
    with pytest.raises(LadingError) as error:
        compiled(tmp_path, "{% for m in messages %}{{ m.content }}{{ [2 ** 3] }}{% endfor %}", target="3.6.1")
    assert error.value.code == "B771" and "3.6.1" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", ["{% for %}", "{% for m in messages %}{{ m.content }}"])
def test_a_template_that_is_not_valid(tmp_path: Path, template: str) -> None:
    result = compiled(tmp_path, template, verify="none")
    chat = c.read(tmp_path / "out").chat
    assert chat is not None and chat.problem is not None and "not valid" in chat.problem and not chat.runs
    assert [item.code for item in result.warnings if item.code.startswith("B77")] == ["B772"]
    assert "not valid" in dict(result.lines)["chat"]


def test_a_template_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LIMITS", Limits(seconds=1))
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with ChatJob(checkpoint(tmp_path / "model", loop), older=True) as job:
        found = job.result()
    assert found is not None and found.problem == "was stopped after 1 s" and found.rewritten is None
    report = tried(found, {"chat_template": loop}, {HERE: sys.executable}, (HERE,))
    assert [item.code for item in report.warnings()] == ["B772"] and report.untried == (HERE,)


def test_without_template(tmp_path: Path) -> None:
    result = compiled(tmp_path, None, verify="none")
    assert c.read(tmp_path / "out").chat is None and dict(result.lines)["chat"] == "no template"


def test_not_tried(tmp_path: Path) -> None:
    result = compiled(tmp_path, REPORTED, verify="none")
    chat = c.read(tmp_path / "out").chat
    assert chat is not None and not chat.runs and len(chat.untried) == 5 and chat.rewritten
    assert dict(result.lines)["chat"] == "template rewritten, not tried"


def test_the_original_is_kept_where_it_turns_out_better() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    plan = replace(planned(source), rewritten="{{ 'worse' }}", rules=("none",))
    lead = "{%- set x = 1 -%}"
    jinja = plan.written({"chat_template": lead + source, "eos": "</s>"})
    assert jinja["chat_template"] == lead + "{{ 'worse' }}"
    report = tried(plan, jinja, {HERE: sys.executable}, (HERE, "3.4.0"))
    assert not report.rewritten and report.written["chat_template"] == lead + source
    assert report.text() == f"template as it is; 18 chats as the original on {HERE}"
    assert report.untried == ("3.4.0",) and report.contract().rewritten == ()


def test_the_lines_of_several_releases() -> None:
    plan = planned("{{ messages[0].content }}")
    same = [Outcome(item.name, "same") for item in CONVERSATIONS]
    other = [replace(item, verdict="differs") if item.name.startswith("tool") else item for item in same]
    report = ChatReport(plan, {"chat_template": ""}, True, {"3.4.0": other, "3.4.1": other, "3.5.0": same}, ())
    assert report.text().splitlines() == [
        "template rewritten; 18 chats as the original on 3.5.0",
        "other text on 3.4.0 to 3.4.1: tools and 2 more",
    ]
    assert all(len(line) < 69 for line in report.text().splitlines())
    (warning,) = report.warnings()
    assert "MNN 3.4.0 and 3.4.1 render 3 of 18 chats otherwise: tools, tool call" in warning.message


def test_crashes_are_named_by_release() -> None:
    plan = planned("{{ messages[0].content }}")
    crash = Outcome("one question", "crashes", None, "x", "crashed with SIGSEGV")
    report = ChatReport(plan, {"chat_template": ""}, False, {"3.4.0": [crash]}, ())
    (problem,) = report.problems()
    assert problem.code == "B771" and "MNN 3.4.0 crashed with SIGSEGV" in problem.message
