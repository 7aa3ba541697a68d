"""No library that the compiler loads reports on its use: nothing appears in the user's home, and nobody is called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"

FOLDS = """lading 1
graph g {
  opset "" 24
  input %x: f32[2]
  const @a: f32[2] = [1.0, 2.0]
  const @b: f32[2] = [3.0, 4.0]
  %c: f32[2] = Mul(@a, @b)
  %y: f32[2] = Add(%x, %c)
  output %y
}
"""

EMBEDDED = """
import sys
from tools.embed import run
from ir.text.parser import parse
from ir.evaluate.evaluator import evaluate
from ir.evaluate.random_feeds import sample_feeds
graph = run(parse(open(sys.argv[1]).read()), "canonicalize").graph
print(evaluate(graph, sample_feeds(graph)))
# A checkpoint's graph is computed in this process, and so imports the library here.
import onnxruntime, huggingface_hub
onnxruntime.InferenceSession
"""


@pytest.fixture
def observed(tmp_path):
    """Runs Python in a fresh home; gives what is left there and, where strace can be used, addresses called."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_", "HF_", "LADING_"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments: object) -> tuple[list[str], list[str]]:
        log = tmp_path / "calls"
        prefix = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmmsg", "-o", str(log)] if _traces() else []
        done = subprocess.run(
            [*prefix, sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        called = re.findall(r"sa_family=AF_INET6?.*", log.read_text(errors="replace")) if prefix else []
        return sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()), called

    return run


def _traces() -> bool:
    """True where processes can be traced."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def test_compiling_writes_nothing_at_home_and_calls_nobody(observed, tmp_path: Path):
    left, called = observed("-m", "tools.compile", EXAMPLE, "-o", tmp_path / "out")
    assert [name for name in left if not name.startswith(".cache/lading/")] == []
    assert called == []


def test_embedding_writes_nothing_at_home_and_calls_nobody(observed, tmp_path: Path):
    path = tmp_path / "folds.lading"
    path.write_text(FOLDS, encoding="utf-8")
    (tmp_path / "embedded.py").write_text(EMBEDDED, encoding="utf-8")
    assert observed(tmp_path / "embedded.py", path) == ([], [])


@pytest.mark.parametrize("name", ["ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"])
def test_who_has_set_a_variable_keeps_it(name):
    code = f"import os, ir; print(os.environ[{name!r}])"
    for given, found in (("0", "0"), (None, "1")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop(name, None)
        if given is not None:
            environment[name] = given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found
