"""Being stopped: SIGTERM and SIGHUP act as Ctrl-C does, and none of them halves a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
STOPS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, a terminating program or a closing terminal raises KeyboardInterrupt."""
    with _handled(_interrupt):
        yield


@contextmanager
def whole() -> Iterator[None]:
    """Within, what would stop the program waits for the end: a step happens whole or not at all.

    Then it does what it would have done before.
    """
    came: list[int] = []
    try:
        with _handled(lambda number, _: came.append(number)):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def noticed() -> Iterator[list[int]]:
    """Within, what would stop the program is noted in the list; a second time it stops it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            _interrupt(number, frame)
        came.append(number)

    with _handled(note):
        yield came


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Signals that stop go to a handler, but for those that are ignored, say by ``nohup``."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread alone
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    before = {number: one for number, one in before.items() if one not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
