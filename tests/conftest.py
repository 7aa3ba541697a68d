"""Text test cases: every ``tests/cases/*.lading`` file is a list of small before/after tests.

::

    // what the case shows
    // pipeline: fold,dce
    lading 1
    graph g { ... }
    // expect:
    lading 1
    graph g { ... }
    // -----
    // pipeline: infer-types
    lading 1
    graph g {
      ...
      %y = MatMul(%a, %b)  // error: T212
    }

The graph that the pipeline makes must print like the expected one; ``// expect: unchanged`` stands for the input.
An error must have the code given and, when it stands on the line of a node, speak of the node's first output.
``pytest --accept`` writes what came out into the files. The graph is verified after every pass.
"""

from __future__ import annotations

import difflib
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest

SEPARATOR = "// -----"
_ERROR = re.compile(r"//\s*error:\s*(\w+)")
_OUTPUT = re.compile(r'\s*%("[^"]*"|[\w.]+)')


@pytest.fixture(scope="session")
def processes():
    """An executor of two processes that share nothing with this one but the file system."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def pytest_addoption(parser):
    """Add ``--accept``."""
    parser.addoption("--accept", action="store_true", help="rewrite the expected parts of tests/cases/*.lading")


def pytest_collect_file(file_path, parent):
    """Collect text test cases."""
    if file_path.suffix == ".lading" and file_path.parent.name == "cases":
        return CaseFile.from_parent(parent, path=file_path)
    return None


@dataclass
class Case:
    """One case of a file: its title, pipeline, input text, expected text or error code."""

    title: str
    pipeline: str
    text: str
    expect: str | None
    code: str = ""
    speaks_of: str = ""

    @classmethod
    def read(cls, text: str) -> Case:
        """The case that a part of a file spells."""
        before, mark, after = text.partition("// expect:")
        head = [line[2:].strip() for line in before.splitlines() if line.startswith("//")]
        pipelines = [line.partition(":")[2].strip() for line in head if line.startswith("pipeline:")]
        if len(pipelines) != 1:
            raise ValueError(f"a case needs one '// pipeline:' line:\n{text}")
        title = next((line for line in head if line and not re.match(r"\w+:", line)), "case")
        error = next((line for line in before.splitlines() if _ERROR.search(line)), "")
        if bool(mark) == bool(error):
            raise ValueError(f"a case needs either '// expect:' or '// error: CODE':\n{text}")
        code = _ERROR.search(error)[1] if error else ""
        output = _OUTPUT.match(error)
        return cls(
            title, pipelines[0], before, after.strip() if mark else None, code, output[1].strip('"') if output else ""
        )


class CaseFile(pytest.File):
    """A file of cases."""

    def collect(self):
        """One test for each case."""
        parts = self.path.read_text().split(SEPARATOR)
        seen: dict[str, int] = {}
        for index, part in enumerate(parts):
            case = Case.read(part)
            seen[case.title] = seen.get(case.title, 0) + 1
            name = case.title if seen[case.title] == 1 else f"{case.title} ({seen[case.title]})"
            yield CaseItem.from_parent(self, name=name, case=case, index=index)


class Unlike(Exception):
    """The outcome of a case is not the expected one."""


class CaseItem(pytest.Item):
    """One case."""

    def __init__(self, *, case: Case, index: int, **kwargs):
        super().__init__(**kwargs)
        self.case = case
        self.index = index

    def runtest(self):
        """Run the pipeline and compare."""
        from ir.base.diag import LadingError
        from ir.text.parser import parse
        from ir.text.printer import print_graph
        from passes.framework.instruments import VerifyEach
        from passes.framework.manager import PassManager

        case = self.case
        base = self.path.parent
        graph = parse(case.text, base=base)
        start = print_graph(graph, base=base)
        try:
            PassManager(case.pipeline, [VerifyEach()]).run(graph)
        except LadingError as error:
            self.check_error(error)
            return
        if case.code:
            raise Unlike(f"expected error {case.code}, but the pipeline succeeded")
        found = print_graph(graph, base=base)
        unchanged = case.expect == "unchanged"
        wanted = start if unchanged else print_graph(parse(case.expect, base=base), base=base) if case.expect else ""
        if found == wanted:
            return
        if self.config.getoption("--accept") and not unchanged:
            self.accept(found)
            return
        lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), "expected", "found", lineterm="", n=100)
        raise Unlike("\n".join(lines))

    def check_error(self, error):
        """The error must be the expected one, about the expected node."""
        case = self.case
        if not case.code or error.code != case.code:
            raise error
        if case.speaks_of and f"%{case.speaks_of}" not in str(error):
            raise Unlike(f"the error does not speak of %{case.speaks_of}:\n{error}")

    def accept(self, found: str):
        """Write what came out into the file."""
        parts = self.path.read_text().split(SEPARATOR)
        before, mark, _ = parts[self.index].partition("// expect:")
        end = "\n" if self.index + 1 < len(parts) else ""
        parts[self.index] = f"{before}{mark}\n{found.rstrip()}\n{end}".rstrip("\n") + "\n"
        self.path.write_text(SEPARATOR.join(parts))

    def repr_failure(self, excinfo):
        """The difference alone for a mismatch, the usual for everything else."""
        if isinstance(excinfo.value, Unlike):
            return f"{self.path.name}: {self.case.title}\n// pipeline: {self.case.pipeline}\n{excinfo.value}"
        return super().repr_failure(excinfo)

    def reportinfo(self):
        """Where the case is."""
        line = self.path.read_text().split(SEPARATOR)[: self.index]
        return self.path, sum(part.count("\n") for part in line), f"{self.path.name}: {self.name}"
