"""The time of a run: the hours so far, when it must end, and how long each part may take.

``max_hours`` bounds everything from reading the folder to the last file. The codec may take a share
of the time left when it begins; the network gets the rest, less a reserve for the last files. A
resumed run counts on from the hours before.
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
    """Hours of a run. Only ``tick`` updates ``hours``."""

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
        """Update the hours; under a time limit, all processes use those of the first one."""
        self.hours = self.before + (time.monotonic() - self.started) / 3600
        if team is not None and self.limit < math.inf:
            self.hours, self.reserve = team.agreed((self.hours, self.reserve))

    def keep(self) -> None:
        """Write the hours, for a later resume."""
        self.tick()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({**self.times, "hours": self.hours}))

    def adopt(self, hours: float) -> None:
        """Start from the hours in a network's state that is older than the clock file."""
        if not self.times:
            self.before, self.times = hours, {NETWORK: 0.0}

    def part(self, name: str, steps: int, share: float = 1.0) -> Part:
        """A part of the run, new or begun before the run was stopped."""
        return Part(self, name, steps, share)

    def watched(self, show: Progress, what: str) -> Progress:
        """A progress function that raises ``UserError`` if the work would take too long.

        That is, if at the pace so far it would end after the run's limit. The check starts after a
        tenth of all hours.
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
    """A number of steps, or a share of the run's time: whichever ends first."""

    clock: Clock
    name: str
    steps: int
    share: float  # of the hours from the start to the end of the run

    def begin(self) -> None:
        """Record the start, unless it was recorded before the run was stopped."""
        self.clock.times.setdefault(self.name, self.clock.hours)

    @property
    def start(self) -> float:
        """The hour of the run at which the part began, or would begin now."""
        return self.clock.times.get(self.name, self.clock.hours)

    @property
    def hours(self) -> float:
        """Hours that the part may take in all; infinite without a limit."""
        return self.share * (self.clock.end - self.start)

    @property
    def hours_left(self) -> float:
        """Hours that the part may still take."""
        return max(0.0, self.start + self.hours - self.clock.hours)

    def progress(self, step: int) -> float:
        """Share of the part that is done after ``step`` steps; 1 means it is over."""
        done = step / self.steps
        timed = (self.clock.hours - self.start) / self.hours if self.hours > 0 else 1.0
        return min(1.0, max(done, timed))

    def expected(self, step: int) -> int:
        """Expected number of steps in all, at the pace so far."""
        return max(step, round(step / (self.progress(step) or 1.0)))


def span(hours: float) -> str:
    """A time in words: ``about 40 seconds``."""
    seconds = max(1, round(3600 * hours))
    if seconds < 90:
        return f"about {counted(seconds, 'second')}"
    if hours < 1.5:
        return f"about {counted(round(60 * hours), 'minute')}"
    return f"about {hours:.1f} hours"
