"""The bootstrap that takes its own bias off."""

from __future__ import annotations

import intervals
import numpy as np
import pytest

from flowcept.evaluation import evaluate


def test_a_centred_interval_takes_the_bias_off():
    """The largest of 30 numbers is seldom in a bootstrap: its draws lie below the score."""
    values = np.random.default_rng(0).normal(size=30)

    def largest(chosen):
        return float(values[list(chosen)].max())

    score, low, high = evaluate.interval(largest, 30, 0)
    assert high <= score
    centre = intervals.centred_interval(largest, 30, 0)
    assert centre[0] == score
    assert centre[1] < score < centre[2]
    assert centre[2] - centre[1] == pytest.approx(high - low)
