"""One constant rate for the frames of a file, whose durations may all differ.

Shape suffix: F frames as a file stores them. A *beat* is one turn of the constant rate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_FPS = 12.0  # of a still picture or a folder of pictures, which carry no rate
Edges = NDArray[np.float64]
_FASTEST_MIXED = 120  # frames a second, the most that unequal durations are brought to


@dataclass(frozen=True)
class Timing:
    """How a clip plays at its constant rate."""

    fps: float
    num_frames: int  # counted, not taken from a header
    times: tuple[int, ...] = ()  # for how many beats each stored frame is shown; empty: one each


def from_stamps(ticks_F: NDArray[np.int64], tick: float, declared: float) -> Timing:
    """The constant rate of one or more frames by their time stamps, counted in a `tick` (s).

    `declared` are the frames per second that the file or its reader says, 0 if neither does.
    """
    return constant_rate(durations(ticks_F, tick, declared), tick, declared)


def durations(ticks_F: NDArray[np.int64], tick: float, declared: float) -> NDArray[np.float64]:
    """How long each frame is shown (s), by time stamps as `from_stamps` gets them."""
    steps = np.diff(ticks_F.astype(np.float64))
    # Nothing follows the last frame to time it, and its stored duration is often wrong.
    last = 1 / (declared or DEFAULT_FPS) / tick
    if len(steps):  # a rate that a reader had to guess can be a multiple of the true one
        last = max(last, steps.min()) if declared else np.median(steps)
    shown_F: NDArray[np.float64] = np.append(steps, last) * tick
    return shown_F


def edges(
    durations_F: NDArray[np.float64], tick: float, declared: float = 0.0
) -> tuple[Edges, float]:
    """When each frame begins, and the last one ends (s, the first at 0); and the frames per second.

    Where a constant rate explains all stamps these are its beats, which no clock has rounded. Where
    none does they are the stamps, and the rate is that of the median duration.
    """
    durations_F = np.maximum(durations_F, max(tick, 1e-6))
    timing = _explained(durations_F, tick, declared)
    if timing is None:
        return np.append(0.0, np.cumsum(durations_F)), _median_rate(durations_F)
    beats_F = np.cumsum(timing.times or (1,) * timing.num_frames)
    return np.append(0, beats_F) / timing.fps, timing.fps


def constant_rate(durations_F: NDArray[np.float64], tick: float, declared: float = 0.0) -> Timing:
    """The constant rate for frames of given durations (s), counted in a `tick` (s).

    Tried in order: every frame once; frames repeated because equal neighbours had been merged
    (durations are whole multiples of the shortest). Of either the first candidate that explains
    every time stamp is taken. Where nothing does, the frame on show in the middle of each beat is,
    at the rate of the median duration.
    """
    durations_F = np.maximum(durations_F, max(tick, 1e-6))
    timing = _explained(durations_F, tick, declared)
    if timing is not None:
        return timing
    rate, ends_F, count = _median_rate(durations_F), np.cumsum(durations_F), len(durations_F)
    middles = (np.arange(max(1, round(ends_F[-1] * rate))) + 0.5) / rate
    shown = np.minimum(np.searchsorted(ends_F, middles, side="right"), count - 1)
    return _timing(rate, np.bincount(shown, minlength=count))


def _median_rate(durations_F: NDArray[np.float64]) -> float:
    return min(float(1 / np.median(durations_F)), _FASTEST_MIXED)


def _explained(durations_F: NDArray[np.float64], tick: float, declared: float) -> Timing | None:
    """The constant rate that explains every time stamp; None if there is none."""
    ends_F = np.cumsum(durations_F)
    spare_F = np.zeros_like(ends_F)
    spare_F[-1] = tick / 2  # the last duration is rounded by itself, not to fit the next stamp

    count = len(durations_F)
    multiples_F = np.maximum(1, np.rint(durations_F / durations_F.min())).astype(np.intp)
    for times_F in (np.ones_like(multiples_F), multiples_F):
        beats_F = np.cumsum(times_F)
        mean = float(beats_F[-1] / ends_F[-1])
        if beats_F[-1] > count and mean > _FASTEST_MIXED:
            continue
        for rate, slack in _candidates(mean, declared, tick):
            if rate > 0 and np.all(np.abs(beats_F / rate - ends_F) <= slack + spare_F):
                return _timing(rate, times_F)
    return None


def _timing(fps: float, times_F: NDArray[np.intp]) -> Timing:
    times = () if (times_F == 1).all() else tuple(times_F.tolist())
    return Timing(fps, int(times_F.sum()), times)


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
