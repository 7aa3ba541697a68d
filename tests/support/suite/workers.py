"""Tests in several processes, by pytest-xdist (``pytest -n auto``).

Each file of tests goes to one process as a whole, so that what its tests share is made once. The tests that judge all
others run at last, in the process that started the workers, on what the workers saw.
"""

from __future__ import annotations

import json

import pytest

from tests.support.suite import code_record

KEY = "lading"


def is_worker(config: pytest.Config) -> bool:
    """True in a process that pytest-xdist started."""
    return hasattr(config, "workerinput")


class Worker:
    """In each worker: hands what it saw to the process that started it."""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        """Put the record of codes beside what the worker says of itself."""
        whole = session.config.stash.get(code_record.WHOLE, False)
        # As JSON, which has an escape for every character that a name may hold.
        session.config.workeroutput[KEY] = json.dumps({"codes": code_record.taken(), "whole": whole})


class Starter:
    """In the process that starts workers: puts together what they saw, and runs what judges all tests."""

    def __init__(self) -> None:
        self.whole: list[bool] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config, log):
        """Files as wholes, whatever ``--dist`` says."""
        from xdist.scheduler import LoadFileScheduling

        return LoadFileScheduling(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        """Add what a worker saw; one that crashed saw nothing that counts."""
        output = json.loads(getattr(node, "workeroutput", {}).get(KEY, "{}"))
        self.whole.append(output.get("whole", False))
        if output:
            code_record.add(output["codes"])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        """After the workers: the tests marked ``after_all``, where every worker had the whole suite before it."""
        result = yield
        if self.whole and all(self.whole) and not session.shouldstop:
            session.config.stash[code_record.WHOLE] = True
            items = [item for item in session.perform_collect() if item.get_closest_marker("after_all")]
            for item, following in zip(items, [*items[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return result


def register(config: pytest.Config) -> None:
    """Take part, where tests run in several processes."""
    if is_worker(config):
        config.pluginmanager.register(Worker())
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Starter())
