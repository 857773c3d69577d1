"""Stop requests: SIGINT, SIGTERM and SIGHUP counted, so that the first drains and the second ends.

Knows nothing about what is being stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Counts requests to stop. Callable, so that it can stand in `RunnerOptions.stop`."""

    def __init__(self) -> None:
        self.count = 0
        self.signum = 0

    def __call__(self) -> int:
        return self.count

    def request(self, signum: int = 0) -> None:
        """Ask once more. `signum` of the first request decides the exit code."""
        self.count += 1
        self.signum = self.signum or signum

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells expect (130, 143, 129); 0 when no signal came."""
        return 128 + self.signum if self.signum else 0


@contextmanager
def stop_on_signals(tell: Callable[[int], object] | None = None) -> Iterator[StopRequests]:
    """Count SIGINT, SIGTERM and SIGHUP while the block runs; main thread only. Under `nohup`
    SIGHUP stays ignored.

    A third signal gets the default treatment, so that nobody is ever locked out. tell: is called
    with the first signal at once, in whatever the main thread is at: it may print only what
    goes past Python's own buffers.
    """
    stop = StopRequests()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP and stop.count:
            return  # a terminal that closes sends it, and its shell does, too
        stop.request(signum)
        if stop.count == 1 and tell is not None:
            tell(signum)
        if stop.count >= 2:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    is_under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    counted = [each for each in SIGNALS if each != signal.SIGHUP or not is_under_nohup]
    previous = [(each, signal.signal(each, on_signal)) for each in counted]
    try:
        yield stop
    finally:
        for each, handler in previous:
            signal.signal(each, handler)
