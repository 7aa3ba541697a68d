"""Child processes that answer requests: limits, ends, and what is said about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ir.base.child import Child, ChildFailed, kept_children
from ir.base.diag import LadingError
from tests.support.paths import ROOT

SERVE = "tests.ir.base.child_requests:serve"


@pytest.fixture
def child():
    with Child(SERVE, memory=2 << 30) as made:
        yield made


def test_requests_and_answers_carry_json_and_bytes(child):
    answer, buffers = child.ask({"do": "echo", "text": "\ud800é\x00"}, [b"abc", bytearray(1 << 20), b""], seconds=60)
    assert answer == {"text": "\ud800é\x00", "sizes": [3, 1 << 20, 0]}
    assert [bytes(item[:3]) for item in buffers] == [b"abc", b"\0\0\0", b""]
    first = child.pid
    child.ask({"do": "echo", "text": ""}, seconds=60)
    assert child.pid == first


def test_coded_errors_come_back_as_they_were(child):
    with pytest.raises(LadingError, match="no such thing") as caught:
        child.ask({"do": "refuse"}, seconds=60)
    assert (caught.value.code, caught.value.diagnostics[0].where) == ("U902", "here")


@pytest.mark.parametrize(
    "what, kind, words",
    [
        ("raise", "raised", "failed"),
        ("panic", "raised", "failed"),
        ("crash", "died", "died of SIGSEGV"),
        ("abort", "died", "died of SIGABRT"),
        ("leave", "died", "left with exit code 7"),
        ("allocate", "memory", "needs more than 2,147 MB of memory"),
        ("close", "died", "left with exit code [01]"),  # the watch over the connection may be the first to leave
        ("nonsense", "died", "stopped answering|left with"),
    ],
)
def test_how_a_child_fails_is_told_and_the_next_request_is_answered(child, what, kind, words):
    with pytest.raises(ChildFailed, match=words) as caught:
        child.ask({"do": what}, seconds=60)
    assert caught.value.kind == kind
    assert child.ask({"do": "echo", "text": "x"}, seconds=60)[0]["text"] == "x"


def test_what_a_child_wrote_before_it_died_is_kept(child):
    with pytest.raises(ChildFailed) as caught:
        child.ask({"do": "complain"}, seconds=60)
    assert "something is wrong" in caught.value.detail


@pytest.mark.parametrize("what", ["spin", "sleep", "stop"])
def test_a_child_that_takes_too_long_is_ended(child, what):
    child.ask({"do": "echo", "text": ""}, seconds=60)
    number = child.pid
    with pytest.raises(ChildFailed, match=r"was stopped after 0.5 s") as caught:
        child.ask({"do": what}, seconds=0.5)
    assert caught.value.kind == "late"
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_stopped_child_does_not_hold_up_who_sends(child):
    child.ask({"do": "echo", "text": ""}, seconds=60)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildFailed, match="was stopped after"):
        child.ask({"do": "echo", "text": ""}, [bytes(64 << 20)], seconds=0.5)


def test_threads_wait_for_each_other(child):
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(child.ask({"do": "echo", "text": n}, seconds=60)[0]["text"]))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


PARENT = """
import sys, time
from ir.base.child import Child
child = Child("tests.ir.base.child_requests:serve")
child.ask({"do": "echo", "text": ""}, seconds=60)
print(child.pid, flush=True)
child.begin({"do": sys.argv[1]}, seconds=60)
time.sleep(60)
"""


@pytest.mark.parametrize("what", ["spin", "sleep", "echo"])
def test_a_child_ends_with_the_process_that_started_it(what):
    command = [sys.executable, "-c", PARENT, what]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        number = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


def test_a_child_that_cannot_be_started_is_a_coded_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with Child(SERVE) as child, pytest.raises(LadingError, match="Too many open files") as caught:
        child.ask({"do": "echo", "text": ""}, seconds=60)
    assert caught.value.code == "U981"


def answered(child: Child) -> int | None:
    """The number of the process that answers."""
    child.ask({"do": "echo", "text": ""}, seconds=60)
    return child.pid


def test_children_are_kept_for_the_next_of_their_kind():
    with kept_children():
        with Child(SERVE, memory=2 << 30) as one, Child(SERVE, memory=2 << 30) as two:
            numbers = {answered(one), answered(two)}
        with Child(SERVE, memory=3 << 30) as other:
            assert answered(other) not in numbers
        with Child(SERVE, memory=2 << 30) as one, Child(SERVE, memory=2 << 30) as two:
            assert {answered(one), answered(two)} == numbers
    for number in numbers:
        assert number is not None
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_a_child_that_is_lost_or_busy_is_not_kept():
    with kept_children():
        with Child(SERVE) as one:
            first = answered(one)
            one.begin({"do": "echo", "text": ""}, seconds=60)
        with Child(SERVE) as two:
            second = answered(two)
            assert second != first
            assert second is not None
            os.kill(second, signal.SIGKILL)
            with pytest.raises(ChildFailed):
                two.ask({"do": "echo", "text": ""}, seconds=60)
        with Child(SERVE) as three:
            assert answered(three) not in (first, second)


def test_a_kept_child_whose_connection_the_collector_closed_is_not_used():
    with kept_children():
        lost = Child(SERVE)
        first = answered(lost)
        connection = lost._socket
        lost.close()
        assert connection is not None
        connection.close()
        with Child(SERVE) as other:
            assert answered(other) != first


def test_a_child_starts_and_imports_before_it_is_asked(child):
    child.prepare("colorsys", "no.such.module")
    pid = child.pid
    assert pid is not None
    assert child.ask({"do": "modules", "names": ["colorsys", "sndhdr"]}, seconds=60)[0] == {"found": ["colorsys"]}
    assert child.pid == pid


def test_a_child_that_died_while_it_waited_is_not_alive(child):
    child.prepare()
    assert child.alive
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not child.alive


def test_a_bare_child_starts_without_what_others_add_to_interpreters_and_finds_our_packages():
    request = {"do": "modules", "names": ["site", "ir.base.child"]}
    for bare, found in ((True, ["ir.base.child"]), (False, ["site", "ir.base.child"])):
        with Child(SERVE, bare=bare) as made:
            assert made.ask(request, seconds=60)[0] == {"found": found}
