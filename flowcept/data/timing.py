"""One constant rate for the frames of a file, whose durations may all differ. In a single place.

Shape suffix: F frames as a file stores them. A *beat* is one turn of the constant rate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_FPS = 12.0  # of a still picture or a folder of pictures, which carry no rate
_FASTEST_MIXED = 120  # frames a second, the most that unequal durations are brought to


@dataclass(frozen=True)
class Timing:
    """Which stored frame is on show at each beat, ascending, and how many beats a second has."""

    fps: float
    index: NDArray[np.intp]
    num_stored: int

    def times(self) -> tuple[int, ...]:
        """How many beats each stored frame is shown; empty if all are shown once."""
        if np.array_equal(self.index, np.arange(self.num_stored)):
            return ()
        return tuple(np.bincount(self.index, minlength=self.num_stored).tolist())


@dataclass(frozen=True)
class Stamps:
    """When the frames of a file are shown, in the file's own clock."""

    ticks_F: NDArray[np.int64]  # time stamps, ascending
    tick: float  # seconds
    declared: float  # frames per second as the file or its reader says, 0 if neither does

    def timing(self) -> Timing:
        """The constant rate of these frames, of which there is at least one."""
        steps = np.diff(self.ticks_F.astype(np.float64))
        # Nothing follows the last frame to time it, and its stored duration is often wrong.
        last = 1 / (self.declared or DEFAULT_FPS) / self.tick
        if len(steps):  # a rate that a reader had to guess can be a multiple of the true one
            last = max(last, steps.min()) if self.declared else np.median(steps)
        return constant_rate(np.append(steps, last) * self.tick, self.tick, self.declared)


def _candidates(mean: float, declared: float, tick: float) -> list[tuple[float, float]]:
    """Rates to try for frames of a mean rate, the preferred first, 0 for none.

    With each the seconds that a time stamp may lie off its beat.
    """
    rounding = 0.51 * tick + 1e-6
    return [
        (declared, 1.01 * tick),  # the first stamp is rounded too
        (float(round(mean)), rounding),
        (round(mean) * 1000 / 1001, rounding),  # NTSC
        (mean, max(0.99 * tick, 0.25 / mean)),  # jitter
    ]


def constant_rate(durations_F: NDArray[np.float64], tick: float, declared: float = 0.0) -> Timing:
    """The constant rate for frames of given durations (s), counted in a `tick` (s).

    Tried in order: every frame once; frames repeated because equal neighbours had been merged
    (durations are whole multiples of the shortest). Of either the first candidate that explains
    every time stamp is taken. Where nothing does, the frame on show in the middle of each beat is,
    at the rate of the median duration.
    """
    frame_F = np.arange(len(durations_F))
    durations_F = np.maximum(durations_F, max(tick, 1e-6))
    ends_F = np.cumsum(durations_F)
    spare_F = np.zeros_like(ends_F)
    spare_F[-1] = tick / 2  # the last duration is rounded by itself, not to fit the next stamp

    once_F = np.ones_like(frame_F)
    multiples_F = np.maximum(1, np.rint(durations_F / durations_F.min())).astype(np.intp)
    for repeats_F in (once_F, multiples_F):
        beats_F = np.cumsum(repeats_F)
        mean = float(beats_F[-1] / ends_F[-1])
        if beats_F[-1] > len(frame_F) and mean > _FASTEST_MIXED:
            continue
        for rate, slack in _candidates(mean, declared, tick):
            if rate > 0 and np.all(np.abs(beats_F / rate - ends_F) <= slack + spare_F):
                return Timing(rate, np.repeat(frame_F, repeats_F), len(frame_F))

    rate = min(float(1 / np.median(durations_F)), _FASTEST_MIXED)
    middles = (np.arange(max(1, round(ends_F[-1] * rate))) + 0.5) / rate
    index = np.minimum(np.searchsorted(ends_F, middles, side="right"), len(frame_F) - 1)
    return Timing(rate, index, len(frame_F))
