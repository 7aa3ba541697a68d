"""Interrupts that wait for the end of a phase."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ir.base.interrupts import Stopped, held_interrupts, raising_signals


@pytest.fixture(autouse=True)
def default_handler():
    """Python's own handler, whatever the shell left; put back afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupt_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        interrupt()
        done.append(True)
    assert done == [True]


def test_second_interrupt_ends_the_block_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        interrupt()
        interrupt()
        done.append(True)
    assert done == []


def test_handler_is_restored_and_nothing_is_raised_without_an_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_errors_of_the_block_pass_through():
    with pytest.raises(ValueError, match="mine"), held_interrupts():
        raise ValueError("mine")


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with held_interrupts():
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_ignored_interrupts_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_interrupts():
        interrupt()


@pytest.fixture
def default_ends():
    """Signals that end a process, whatever the shell left; put back afterwards."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_processes_raise_in_a_command(default_ends, number):
    with pytest.raises(Stopped, match=number.name) as stop, raising_signals():
        os.kill(os.getpid(), number)
    assert stop.value.number == number and isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_signals_that_are_ignored_or_answered_by_others_are_left_to_them(default_ends):
    seen = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with raising_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_every_signal_waits_for_the_end_of_a_firm_block(default_ends):
    done = []
    with pytest.raises(Stopped), raising_signals(), held_interrupts(firmly=True):
        os.kill(os.getpid(), signal.SIGTERM)
        interrupt()
        os.kill(os.getpid(), signal.SIGHUP)
        done.append(True)
    assert done == [True]


def test_libraries_leave_signals_to_the_program(default_ends):
    with held_interrupts():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_library_makes_of_a_signal_is_the_signal(default_ends, number):
    def imported():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ImportError("_multiarray_umath failed to import") from None

    with pytest.raises(KeyboardInterrupt) as stop, raising_signals():
        imported()
    assert getattr(stop.value, "number", signal.SIGINT) == number
    with pytest.raises(ImportError), raising_signals():
        raise ImportError
