"""Signals that ask a run to stop, heard between its steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set by the signals that ask to stop: the step in hand is finished and saved. A second one ends at once."""
    event = threading.Event()

    def note(number: int, _: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:             # `nohup` ignores SIGHUP, and means it
            signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
