"""Intervals of differences between arms that were scored on the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from flowcept.evaluation.evaluate import RESAMPLES


def centred_interval(
    score: Callable[[Sequence[int]], float], count: int, seed: int
) -> tuple[float, float, float]:
    """``evaluate.interval`` less by how much bootstraps lie above the score on average.

    That is bias, where fewer distinct clips make a score larger.
    """
    rng = np.random.default_rng(seed)
    drawn = [score(rng.integers(count, size=count).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    whole = score(list(range(count)))
    bias = fmean(drawn) - whole
    return whole, float(low) - bias, float(high) - bias
