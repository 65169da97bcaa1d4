"""Handle Ctrl-C, SIGTERM and SIGHUP (a closed terminal).

A long loop treats the first signal as a request to stop at its next safe point (`StopRequest`). Elsewhere, a signal
raises `EndedBySignal`, so that all clean-up code runs (`ending_on_signals`). A second Ctrl-C or SIGTERM acts at once. A
second SIGHUP does not: when a terminal closes, the shell, the kernel and the session manager may each send SIGHUP, and
SIGTERM too. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([SIGHUP] if SIGHUP is not None else []))

_hang_ups: list[int] = []
"""SIGHUPs that this command has received. A list, because a signal handler must not wait for a lock."""


class Interrupted(Exception):  # noqa: N818 -- not an error: the command can be resumed
    """The work stopped on request at a safe point; the message says how to resume."""

    num_finished = 0
    """Number of clips that an extraction finished and stored."""


class EndedBySignal(KeyboardInterrupt):
    """A signal ended a command outside a loop with safe points; the message is the signal's name."""


def terminal_is_gone(error: OSError) -> bool:
    """Return whether output failed because the terminal closed, or the reader of the output with it."""
    return error.errno == errno.EIO or bool(_hang_ups)


class StopRequest:
    """Inside the block, the first signal sets `requested`; a second Ctrl-C or SIGTERM has its usual effect."""

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        """`also` returns whether another thread or process has received a request to stop."""
        self._signalled, self._also = False, also
        self._earlier_handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signalled or self._also()

    def __enter__(self) -> StopRequest:
        self._earlier_handlers = _handle(SIGNALS, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(*self._earlier_handlers)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if number == SIGHUP:
            _hang_ups.append(number)
        else:
            self._restore(*(other for other in self._earlier_handlers if other != SIGHUP))

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._earlier_handlers.pop(number))


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP raise `EndedBySignal` in the main thread.

    A second SIGTERM kills the process.
    """
    received: set[int] = set()

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and number in received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first = not received and not (number == SIGHUP and _hang_ups)
        received.add(number)
        if number == SIGHUP:
            _hang_ups.append(number)
        if first:
            raise EndedBySignal(signal.Signals(number).name)

    _hang_ups.clear()
    earlier_handlers = _handle(SIGNALS[1:], end)
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)


def _handle(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of signals that are not ignored, and return the earlier handlers.

    Only the main thread may set handlers; in other threads nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    # `nohup` and background jobs of a shell ignore signals on purpose.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}
