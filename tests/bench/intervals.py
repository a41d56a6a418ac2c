"""Intervals of scores that two arms got on the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from flowcept.evaluation.evaluate import RESAMPLES

Score = Callable[[Sequence[int], Sequence[int]], float]  # of these clips, each in this drawing
Scored = dict[str, Any]  # ``whole`` and ``drawn``: by name a score of all clips, and bootstraps


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


def averaged(several: Sequence[Scored]) -> Scored:
    """The mean of some networks' scores, and of each bootstrap of them."""
    names = several[0]["whole"]
    return {
        "whole": {name: fmean(one["whole"][name] for one in several) for name in names},
        "drawn": {
            name: [fmean(row) for row in zip(*(one["drawn"][name] for one in several), strict=True)]
            for name in names
        },
    }


def difference(first: Scored, other: Scored, name: str) -> tuple[float, float, float]:
    """By how much the other's score is larger, and the 5 % and 95 % points of that."""
    drawn = [b - a for a, b in zip(first["drawn"][name], other["drawn"][name], strict=True)]
    return centred(other["whole"][name] - first["whole"][name], drawn)
