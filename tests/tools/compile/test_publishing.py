"""Whatever happens to a compilation, the old folder or the new one is there as a whole, and what is said of it is true."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.mnn.backend import LlmCompilation
from ir.base.diag import LadingError
from tests.support.kills.compiled_folder import is_whole
from tests.support.paths import ROOT
from tests.support.suite.code_record import expect_code
from tools.compile.job import EXAMPLE, Request, compile_model

COMPILE = (sys.executable, "-m", "tools.compile", str(EXAMPLE), "--verify", "none")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def compiled(out: Path, *options: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMPILE, "-o", str(out), *options], cwd=ROOT, text=True, timeout=300, check=False, **more)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A compiled folder."""
    out = tmp_path_factory.mktemp("old") / "out"
    compile_model(Request(str(EXAMPLE), out, "int8", verify="none"))
    return out


# ---- signals ----

STOPPED = """
import os, sys
point, number, name = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
events = 0
def hook(event, arguments):
    global events
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir"):
        if any(isinstance(item, (str, bytes)) and name in os.fsdecode(item) for item in arguments):
            events += 1
            if events == point:
                os.kill(os.getpid(), number)
sys.addaudithook(hook)
if not point:
    import atexit
    atexit.register(lambda: print(events))
from tools.compile.command import main
main()
"""


def stopped(out: Path, point: int, number: int) -> subprocess.CompletedProcess[str]:
    """A compilation that replaces `out` and gets a signal when it has asked the system so often about it."""
    words = [sys.executable, "-c", STOPPED, str(point), str(int(number)), out.parent.name, *COMPILE[3:]]
    return subprocess.run(
        [*words, "-o", str(out), "--force", "--passes", "int4", "-q"], cwd=ROOT, capture_output=True, text=True, timeout=300,
        # A shell that starts tests in the background has them ignore interrupts, and children would do so too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), check=False,
    )  # fmt: skip


def test_compilation_that_is_stopped_leaves_the_old_folder_or_the_new_and_says_which(tmp_path, old):
    out = tmp_path / "out"
    before = (old / "contract.json").read_bytes()
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    words = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted", signal.SIGHUP: "stopped by SIGHUP"}
    compile_model(Request(str(EXAMPLE), out, "int8", verify="none"))
    replaced, count = 0, int(stopped(out, 0, 0).stdout)
    compile_model(Request(str(EXAMPLE), out, "int8", verify="none", force=True))
    for index, point in enumerate(range(3, count + 1, count // 8)):
        number = signals[index % 4]
        done = stopped(out, point, number)
        assert is_whole(out), point
        is_new = (out / "contract.json").read_bytes() != before
        assert done.returncode in (0, -number if number == signal.SIGKILL else 128 + number), done.stderr
        if done.returncode > 0:
            told = f"written before that: {out}" if is_new else "nothing was written"
            assert done.stderr == f"{words[number]}; {told}\n" and listing(tmp_path) == ["out"]
        if is_new:
            replaced += 1
            compile_model(Request(str(EXAMPLE), out, "int8", verify="none", force=True))
            assert (out / "contract.json").read_bytes() == before
    assert replaced and listing(tmp_path) == ["out"]


def processes_of(folder: Path) -> list[int]:
    """Processes with a path of this folder in their words or as their working folder."""
    found = []
    for item in Path("/proc").iterdir():
        if item.name.isdigit() and int(item.name) != os.getpid():
            try:
                if str(folder).encode() in (item / "cmdline").read_bytes() or str(folder) in os.readlink(item / "cwd"):
                    found.append(int(item.name))
            except OSError:
                continue
    return found


def ours(folder: Path) -> list[str]:
    """What the compiler puts into a folder for temporary files; other libraries have things of their own there."""
    return [name for name in listing(folder) if name.startswith("lading-")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_processes_that_run_the_result_end_with_the_command(tmp_path, number):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = [sys.executable, "-m", "tools.compile", str(EXAMPLE), "-o", str(tmp_path / "out"), "--verify", "full", "-q"]
    environment = {**os.environ, "TMPDIR": str(temporary), "ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (found := processes_of(temporary)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found, "the result was never run"
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(temporary) == []
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and "nothing was written" in told
        assert ours(temporary) == [] and listing(tmp_path) == ["temporary"]
        return
    # What is left is removed by the next run.
    assert {name.rpartition("-")[0] for name in ours(temporary)} == {f"lading-{process.pid}"}
    words[words.index("full")] = "quick"
    done = subprocess.run(words, cwd=ROOT, env=environment, timeout=300, check=False)
    assert done.returncode == 0 and ours(temporary) == [] and listing(tmp_path) == ["out", "temporary"]


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    code = (
        "import os, signal\nfrom tools.shared.cli import guarded\n"
        "def work():\n    os.kill(os.getpid(), signal.SIGHUP)\n    print('went on')\n    return 0\n"
        "raise SystemExit(guarded(work, False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "went on\n"


# ---- after the folder is in its place ----


@pytest.mark.parametrize("step", ["sample", "lines", "figures"])
def test_what_fails_fails_before_the_folder_is_there(tmp_path, monkeypatch, step):
    def broken(self):
        raise LadingError("U902", "the system refused")

    monkeypatch.setattr(LlmCompilation, step, broken)
    with pytest.raises(LadingError):
        compile_model(Request(str(EXAMPLE), tmp_path / "out", verify="none"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_result_that_cannot_be_printed_is_there_and_the_command_says_so(tmp_path, options):
    out = tmp_path / "out"
    with open("/dev/full", "w") as full:
        done = compiled(out, *options, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and is_whole(out)
    assert "No space left on device" in done.stderr and str(out) in done.stderr and "Traceback" not in done.stderr


def test_reader_that_goes_away_is_told_what_is_there(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = compiled(tmp_path / "out", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and is_whole(tmp_path / "out")
    assert done.stderr == f"standard output was closed early; written before that: {tmp_path / 'out'}\n"


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_streams_that_are_closed_are_no_place_for_files(tmp_path, streams):
    """A weight file with the number of standard error would hold what libraries print."""
    words = " ".join(f"'{word}'" for word in (*COMPILE, "-o", str(tmp_path / "out")))
    done = subprocess.run(["sh", "-c", f"exec {words} {streams}"], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0 and is_whole(tmp_path / "out")


def test_error_after_a_plan_was_saved_says_so(tmp_path):
    plan = tmp_path / "plan.toml"
    words = ("--save-plan", str(plan), "--passes", "int4", "--json")
    limit = 1 << 20
    done = compiled(
        tmp_path / "out", *words, capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    expect_code(done.stdout, "B620")
    assert (
        done.returncode == 1
        and json.loads(done.stdout)["written"] == [str(plan)]
        and listing(tmp_path) == ["plan.toml"]
    )


def test_a_plan_that_is_saved_is_whole_or_the_old_one(tmp_path, monkeypatch):
    plan = tmp_path / "plan.toml"
    plan.write_text("old")

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LadingError) as error:
        compile_model(Request(str(EXAMPLE), tmp_path / "out", "int4", verify="none", save_plan=plan))
    assert error.value.code == "Q457" and plan.read_text() == "old" and listing(tmp_path) == ["plan.toml"]


def test_what_a_rerun_resumes_is_said(tmp_path):
    """Stopped while calibration statistics are kept."""
    words = [sys.executable, "-c", STOPPED, "12", str(int(signal.SIGINT)), "/cache/partial", *COMPILE[3:]]
    done = subprocess.run(
        [*words, "-o", str(tmp_path / "out"), "--passes", "calibrated"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "LADING_CACHE": str(tmp_path / "cache")}, timeout=300, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode == 130 and listing(tmp_path) == ["cache"]
    told = "interrupted; nothing was written; what was measured is kept: the same command goes on from there"
    assert done.stderr.splitlines()[-1] == told
