"""Interrupts that wait for the end of a phase."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ir.base.interrupts import held_interrupts


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
