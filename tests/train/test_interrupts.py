"""Signals: the first is heard, the second ends at once, and ignored ones stay ignored."""

import os
import signal

import pytest

from minisd.train.interrupts import SIGNALS, interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_ends_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted.is_set()
        os.kill(os.getpid(), number)
        assert interrupted.is_set()
        os.kill(os.getpid(), SIGNALS[0])
    assert signal.getsignal(number) == before


def test_ignored_signals_stay_ignored():
    """As `nohup` leaves SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
