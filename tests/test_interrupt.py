"""A signal ends a loop between two items, whenever it comes."""

from __future__ import annotations

import os
import signal

import pytest

from avssl_ros.interrupt import Interrupt

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_done_with_an_item_is_done_wholly(number):
    done = []
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        for item in interrupt.between(range(5)):
            if item == 2:
                send(number)
            done.append(item)
    assert done == [0, 1, 2]


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_an_item_is_broken_off(number):
    def items():
        yield 0
        send(number)
        reached.append("the rest")
        yield 1

    done, reached = [], []
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        for item in interrupt.between(items()):
            done.append(item)
    assert done == [0] and not reached


def test_the_first_one_raises_at_the_start_and_a_second_disturbs_nothing():
    with Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
            pytest.fail("not raised")
        send(signal.SIGTERM)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(interrupt.between(range(5)))


def test_after_the_last_item_nothing_is_raised_and_errors_of_the_items_come_through():
    def items():
        yield 0
        raise OSError("the disk is gone")

    with Interrupt() as interrupt:
        assert list(interrupt.between(range(3))) == [0, 1, 2]
        send(signal.SIGTERM)
    with Interrupt() as interrupt:
        with pytest.raises(OSError, match="disk is gone"):
            list(interrupt.between(items()))
        send(signal.SIGTERM)


def test_afterwards_signals_are_handled_as_before_and_ignored_ones_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            assert list(interrupt.between(range(2))) == [0, 1]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
