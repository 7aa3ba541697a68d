"""Progress: what is said, when a plain line comes, and what stays on a terminal."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from tools.shared import progress
from tools.shared.cli import Screen
from tools.shared.progress import PAUSES, State, drawn_progress, plain_progress, span


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_are_told_for_people(seconds, words):
    assert span(seconds) == words


def test_share_and_time_left_follow_from_what_is_done(clock):
    state = State(clock)
    state.phase("reading")
    assert (state.words, state.figures()) == ("reading", "")
    state.step(0, 40, "calibrating")
    assert state.figures() == "0 of 40, 0%"
    clock.now += 1
    state.step(10, 40, "calibrating")
    assert state.figures() == "10 of 40, 25%"
    clock.now += 19
    assert (state.words, state.figures()) == ("calibrating", "10 of 40, 25%, about 1 min 0 s left")


def test_what_an_earlier_run_did_says_nothing_about_the_speed(clock):
    state = State(clock)
    state.step(30, 40, "calibrating")
    clock.now += 10
    assert state.figures() == "30 of 40, 75%"
    state.step(35, 40, "calibrating")
    assert state.figures() == "35 of 40, 88%, about 10 s left"


def test_other_words_for_the_next_step_keep_the_count(clock):
    state = State(clock)
    state.step(0, 4, "running a")
    clock.now += 10
    state.step(1, 4, "running b")
    assert (state.words, state.figures()) == ("running b", "1 of 4, 25%, about 30 s left")
    state.step(0, 9, "running c")
    assert state.figures() == "0 of 9, 0%"


def test_weights_are_told_in_percent_and_one_step_is_none(clock):
    state = State(clock)
    state.weights(3_000_000, 6_000_000)
    assert state.figures() == "50%"
    state.step(0, 1, "calibrating")
    assert state.figures() == ""


def test_parts_are_counted(clock):
    state = State(clock)
    state.begin(1, 5, "rung int8")
    state.phase("writing")
    assert state.words == "2 of 5: rung int8, writing"
    state.begin(0, 1, "installing MNN 3.6.1")
    assert state.words == "installing MNN 3.6.1"


@pytest.fixture
def waits(monkeypatch, clock):
    """The pauses between plain lines, which pass at once, and what lets them begin."""
    found: list[float] = []
    begun = threading.Event()

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None or self.is_set():
                return super().wait(timeout)
            begun.wait(60)
            if len(found) == 80:
                return super().wait()
            found.append(timeout)
            clock.now += timeout
            return False

    monkeypatch.setattr(progress.threading, "Event", Event)
    return found, begun


def test_plain_lines_come_now_and_then(clock, waits):
    lines: list[str] = []
    enough = threading.Condition()

    def say(line: str) -> None:
        with enough:
            lines.append(line)
            enough.notify()

    with plain_progress(say, clock) as state:
        state.phase("verifying")
        waits[1].set()
        with enough:
            assert enough.wait_for(lambda: len(lines) == 80, timeout=60)
    assert waits[0][:8] == [10.0] * 6 + [30.0] * 2 and waits[0][-1] == 60.0 and PAUSES[0] == (60.0, 10.0)
    assert lines[7] == "[2 min 0 s] verifying"


def test_short_runs_say_nothing_and_end_at_once(clock):
    lines: list[str] = []
    with plain_progress(lines.append) as state:
        state.phase("reading")
    assert lines == []


def test_a_stream_that_is_gone_is_no_error(clock, waits):
    tried: list[str] = []
    twice = threading.Semaphore(0)

    def say(line: str) -> None:
        tried.append(line)
        twice.release()
        raise BrokenPipeError

    with plain_progress(say, clock) as state:
        state.phase("reading")
        waits[1].set()
        assert twice.acquire(timeout=60) and twice.acquire(timeout=60)
    assert len(tried) >= 2


def test_nothing_stays_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system=None)
    with drawn_progress(console) as state:
        state.begin(1, 5, "rung with a name that is longer than the line has room for")
        state.step(3, 12, "measuring")
    last = out.getvalue().splitlines()[-1]
    shown = last.split("\r")[0].replace("\x1b[?25l", "").replace("\x1b[2K", "")
    assert "3 of 12, 25%" in out.getvalue() and "…" in out.getvalue() and len(shown) <= 60
    assert out.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("options", [(True, False), (False, True)])
def test_json_and_quiet_say_nothing(options):
    with Screen(*options).progress() as listener:
        assert not isinstance(listener, State)
