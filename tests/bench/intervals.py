"""Intervals of scores that two arms got on the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from flowcept.evaluation.evaluate import RESAMPLES

Score = Callable[[Sequence[int], Sequence[int]], float]  # of these clips, each in this drawing


def bootstraps(score: Score, clips: int, drawings: int, seed: int) -> list[float]:
    """Scores of clips drawn with repeats, each in a drawing of noise that is drawn for it.

    The same seed draws the same ones for every arm, so that differences are paired. They spread as
    one drawing does: more than the mean over all drawings would.
    """
    rng = np.random.default_rng(seed)
    shape, found = (RESAMPLES, clips), []
    for rows, which in zip(
        rng.integers(clips, size=shape), rng.integers(drawings, size=shape), strict=True
    ):
        found.append(score(rows.tolist(), which.tolist()))
    return found


def centred(whole: float, drawn: Sequence[float]) -> tuple[float, float, float]:
    """The score of all, and the 5 % and 95 % points of bootstraps, less their bias.

    That is by how much they lie above the score on average, where fewer distinct clips make it
    larger.
    """
    low, high = np.quantile(drawn, [0.05, 0.95])
    bias = fmean(drawn) - whole
    return whole, float(low) - bias, float(high) - bias
