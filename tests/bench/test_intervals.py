"""The bootstrap over clips and drawings of noise, and the bias that is taken off it."""

from __future__ import annotations

import intervals
import numpy as np
import pytest

from flowcept.evaluation import evaluate


def test_a_centred_interval_takes_the_bias_off():
    """The largest of 30 numbers is seldom in a bootstrap: its draws lie below the score."""
    values = np.random.default_rng(0).normal(size=30)

    def largest(chosen, _which):
        return float(values[list(chosen)].max())

    drawn = intervals.bootstraps(largest, 30, 1, 0)
    low, high = np.quantile(drawn, [0.05, 0.95])
    assert high <= values.max()
    centre = intervals.centred(values.max(), drawn)
    assert centre[0] == values.max()
    assert centre[1] < values.max() < centre[2]
    assert centre[2] - centre[1] == pytest.approx(high - low)


@pytest.mark.parametrize(("of_clips", "of_noise"), [(3.0, 1.0), (0.0, 2.0)])
def test_bootstraps_spread_as_clips_and_noise_do(of_clips, of_noise):
    """A mean of 400 clips has the standard error of one clip, noise and all, over 20."""
    rng = np.random.default_rng(1)
    values_DN = of_clips * rng.normal(size=400) + of_noise * rng.normal(size=(2, 400))

    def mean(rows, which):
        return float(values_DN[which, rows].mean())

    drawn = intervals.bootstraps(mean, 400, 2, 0)
    assert len(drawn) == evaluate.RESAMPLES
    expected = np.hypot(of_clips, of_noise) / 20
    assert np.std(drawn) == pytest.approx(expected, rel=0.2), "200 draws: 5 % of it by chance"
    assert drawn == intervals.bootstraps(mean, 400, 2, 0), "the same for every arm"


def test_differences_are_paired():
    """What is hard for both arms counts for neither."""
    rng = np.random.default_rng(2)
    common_N, own_N = rng.normal(size=100), 0.01 * rng.normal(size=100)

    def scored(value_N):
        drawn = intervals.bootstraps(lambda rows, _: float(value_N[rows].mean()), 100, 1, 0)
        return {"whole": {"error": float(value_N.mean())}, "drawn": {"error": drawn}}

    first, other = scored(common_N), scored(common_N + own_N + 0.05)
    whole, low, high = intervals.difference(first, other, "error")
    assert whole == pytest.approx(own_N.mean() + 0.05)
    assert low < whole < high
    assert high - low < 0.01, "of either arm alone it is 0.3"
    alone = intervals.centred(first["whole"]["error"], first["drawn"]["error"])
    assert alone[2] - alone[1] > 0.2
    mean = intervals.averaged([first, other])
    assert mean["whole"]["error"] == pytest.approx(common_N.mean() + whole / 2)
    assert intervals.difference(first, mean, "error")[0] == pytest.approx(whole / 2)
