"""The time of a run: how long it has taken, when it must end, and what its parts may take of it.

``max_hours`` bounds everything from reading the folder to the last file. The codec may take a share
of what is left when it begins, the network all of it but a reserve for the last files. A resumed
run goes on with the hours that it had.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowcept.errors import UserError, counted
from flowcept.files import replacing
from flowcept.training.distributed import Team

CODEC, NETWORK = "codec", "network"  # the parts that take time
CODEC_SHARE = 0.25  # of the time that is left when the codec begins
SURE_AFTER = 0.1  # of all hours: then the pace of reading is known

Progress = Callable[[int, int], None]  # called with (done, total)


class Clock:
    """Hours of a run. ``hours`` stands still between two calls of ``tick``."""

    def __init__(self, path: Path, max_hours: float = 0.0, *, resume: bool = False) -> None:
        self.path, self.limit = path, max_hours or math.inf
        self.times: dict[str, float] = {}  # hours at which parts began, and those until now
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads(path.read_text()) if resume else {}
            self.times = {name: float(hours) for name, hours in found.items()}
        self.before = self.hours = self.times.get("hours", 0.0)
        self.reserve = 0.0  # hours that the last files will take
        self.started = time.monotonic()

    @property
    def end(self) -> float:
        """The hour at which to begin with the last files; infinite without a limit."""
        return self.limit - self.reserve

    def tick(self, team: Team | None = None) -> None:
        """Look at the time; several processes take that of the first one where it decides."""
        self.hours = self.before + (time.monotonic() - self.started) / 3600
        if team is not None and self.limit < math.inf:
            self.hours, self.reserve = team.agreed((self.hours, self.reserve))

    def keep(self) -> None:
        """Write the hours for a run that goes on later."""
        self.tick()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({**self.times, "hours": self.hours}))

    def adopt(self, hours: float) -> None:
        """Go on with the hours of a network's state that was written before runs had clocks."""
        if not self.times:
            self.before, self.times = hours, {NETWORK: 0.0}

    def part(self, name: str, steps: int, share: float = 1.0) -> Part:
        """A part of the run that is to begin, or that began before the run was stopped."""
        return Part(self, name, steps, share)

    def watched(self, show: Progress, what: str) -> Progress:
        """A function of progress that raises ``UserError`` where the work would take too long.

        That is, at its pace so far it would end after the run. It is tested once a tenth of all
        hours is over.
        """
        self.tick()
        begun = self.hours

        def see(done: int, total: int) -> None:
            show(done, total)
            self.tick()
            needed = (self.hours - begun) * total / max(done, 1)
            if self.hours > SURE_AFTER * self.limit and begun + needed > self.limit:
                raise UserError(
                    f"{what} would take {span(needed)}, more than --max-hours {self.limit:g} "
                    "leaves: allow more hours, or take fewer clips or a smaller --size"
                )

        return see


@dataclass(frozen=True)
class Part:
    """So many steps, or a share of a run's time from its start on: whichever ends first."""

    clock: Clock
    name: str
    steps: int
    share: float  # of the hours from the start to the end of the run

    def begin(self) -> None:
        """Now, or else when the run that goes on first did."""
        self.clock.times.setdefault(self.name, self.clock.hours)

    @property
    def start(self) -> float:
        """The hour of the run at which it began, or would."""
        return self.clock.times.get(self.name, self.clock.hours)

    @property
    def hours(self) -> float:
        """How long it may take in all; infinite without a limit."""
        return self.share * (self.clock.end - self.start)

    @property
    def hours_left(self) -> float:
        """How long it may go on from now."""
        return max(0.0, self.start + self.hours - self.clock.hours)

    def progress(self, step: int) -> float:
        """Share of the part that lies behind after so many steps; 1: it is over."""
        done = step / self.steps
        timed = (self.clock.hours - self.start) / self.hours if self.hours > 0 else 1.0
        return min(1.0, max(done, timed))

    def expected(self, step: int) -> int:
        """How many steps there will be, at the pace so far."""
        return max(step, round(step / (self.progress(step) or 1.0)))


def span(hours: float) -> str:
    """A time in words: ``about 40 seconds``."""
    seconds = max(1, round(3600 * hours))
    if seconds < 90:
        return f"about {counted(seconds, 'second')}"
    if hours < 1.5:
        return f"about {counted(round(60 * hours), 'minute')}"
    return f"about {hours:.1f} hours"
