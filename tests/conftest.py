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
Differences that a pass measured and recorded are the machine's own and are not compared.
An error must have the code given and, when it stands on the line of a node, speak of the node's first output.
``pytest --accept`` writes what came out into the files. The graph is verified after every pass, and evaluated on
made-up
inputs at two sizes of every dimension: passes must keep the numbers, up to rounding or, where they say that they lose
some, up to the usual budget. More lines at the head of a case:

``// tokens: 1 2 3``        a window of token ids for passes that look at text; one line for each window
``// held-out: 1 2 3``      the same, for what they measure with
``// first: b a``          outputs of nodes that are moved to the front of the program, where text cannot have them
``// warning: CODE``        a warning that a pass gives; without it none may come
``// numbers: REASON``      the numbers cannot be compared, for this reason

Property tests draw the same examples in every run: the hypothesis profile below is loaded for all of them.
``python -m tools.fuzz`` is for new ones.
"""

from __future__ import annotations

import difflib
import multiprocessing
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

from tests.support.suite import code_record, workers
from tests.support.text_cases import SEPARATOR, Case, cases_of

# Examples follow from the test's source alone; neither a clock nor what an earlier run found decides the outcome.
settings.register_profile(
    "lading",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lading")

# Whoever started the tests may have ignored these signals, as nohup does; processes that tests start would too.
for _number, _answer in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _answer)

NARROWED = pytest.StashKey[bool]()
SLOW = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def processes():
    """An executor of two processes that share nothing with this one but the file system."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def pytest_addoption(parser):
    """Add ``--accept`` and ``--slow``."""
    parser.addoption("--accept", action="store_true", help="rewrite the expected parts of tests/cases/*.lading")
    parser.addoption("--slow", action="store_true", help="also run the tests that are marked as slow")


def pytest_configure(config):
    """Record the codes that are raised from now on."""
    code_record.watch()
    workers.register(config)


def pytest_itemcollected(item):
    """A case whose operator is one of MNN bears its mark."""
    if re.search(r"[\[-]mnn\.", item.name):
        item.add_marker("mnn")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session, config, items):
    """Leave slow tests out unless they are asked for; check the recorded codes after all other tests, and only where all
    of them run."""
    if not config.getoption("--slow"):
        kept = [item for item in items if not item.get_closest_marker("slow")]
        config.stash[SLOW] = len(items) - len(kept)
        items[:] = kept
    final = [item for item in items if item.get_closest_marker("after_all")]
    if final:
        rest = [item for item in items if item not in final]
        whole = config.stash[code_record.WHOLE] = _is_whole(config, rest)
        alone = whole and not workers.is_worker(config)
        items[:] = [*rest, *final] if alone else rest
        if not alone:
            config.hook.pytest_deselected(items=final)


def pytest_report_collectionfinish(config):
    """Say how many slow tests are left out."""
    left = config.stash.get(SLOW, 0)
    return f"{left} slow tests left out, --slow runs them" if left else None


def _is_whole(config, items) -> bool:
    """True when no test of any file is left out."""
    narrowed = config.stash.get(NARROWED, False)
    return not narrowed and code_record.is_whole(config.rootpath, (item.path for item in items), config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_deselected(items):
    """Remember that something was deselected."""
    for item in items:
        item.config.stash[NARROWED] = True


def pytest_collect_file(file_path, parent):
    """Collect text test cases."""
    if file_path.suffix == ".lading" and file_path.parent.name == "cases":
        return CaseFile.from_parent(parent, path=file_path)
    return None


class CaseFile(pytest.File):
    """A file of cases."""

    def collect(self):
        """One test for each case."""
        seen: dict[str, int] = {}
        for index, case in enumerate(cases_of(self.path)):
            seen[case.title] = seen.get(case.title, 0) + 1
            name = case.title if seen[case.title] == 1 else f"{case.title} ({seen[case.title]})"
            yield CaseItem.from_parent(self, name=name, case=case, index=index)


def unmeasured(text: str) -> str:
    """A graph as text without the differences that were measured."""
    return re.sub(r'"(difference|before|after)": [-+.e0-9]+', r'"\1": 0.0', text)


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

        case = self.case
        base = self.path.parent
        graph = case.graph(base)
        start = print_graph(graph, base=base)
        try:
            with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as cache:
                patch.setenv("LADING_CACHE", cache)
                report = case.run(graph)
        except LadingError as error:
            self.check_error(error)
            return
        if case.code:
            raise Unlike(f"expected error {case.code}, but the pipeline succeeded")
        warned = tuple(item.code for item in report.all_diagnostics())
        if warned != case.warnings:
            raise Unlike(f"expected the warnings {case.warnings}, found {warned}")
        found = print_graph(graph, base=base)
        unchanged = case.expect == "unchanged"
        wanted = start if unchanged else print_graph(parse(case.expect, base=base), base=base) if case.expect else ""
        if unmeasured(found) == unmeasured(wanted):
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
