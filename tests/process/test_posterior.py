"""Bayes' rule of missing frames, and draws from its law."""

from __future__ import annotations

import math

import pytest
import torch
from calibration import CASES, CLIPS, IDS, TOLERANCE, deviations, draws, oracle_of, worst
from oracle import AR1_LAW, per_clip
from torch import Tensor

from flowcept.process import posterior
from flowcept.process.forward import Flowception
from flowcept.process.posterior import BEYOND, inverse_cdf, systematic, tempered
from flowcept.process.state import FrameState


def size_logits(state: FrameState) -> Tensor:
    """The law of generated frames behind the given ones of each clip, ``[B, K]``."""
    given_B = per_clip(state, state.given_F).tolist()
    logits_BK = torch.full((len(given_B), max(AR1_LAW) + 1), BEYOND)
    for row, given in enumerate(given_B):
        for n, p in AR1_LAW.items():
            if n > given:
                logits_BK[row, n - given] = math.log(p)
    return logits_BK


@pytest.mark.parametrize(("kind", "process"), CASES, ids=IDS)
def test_the_law_of_sizes_is_all_that_a_posterior_needs(kind: str, process: Flowception) -> None:
    """How many have appeared by when turns it into a calibrated posterior of the missing ones."""
    state, target = draws(kind, process, CLIPS, seed=3)
    sizes_BK = size_logits(state)
    if kind == "alternate":  # the given frames say how many there are
        given_B = per_clip(state, state.given_F)
        sizes_BK = torch.full_like(sizes_BK, BEYOND)
        sizes_BK[torch.arange(len(given_B)), given_B - 1] = 0
    said = oracle_of(kind, process)(state, range(len(state.lengths)))
    found = deviations(state, target, said, process.missing_logits(sizes_BK, state))
    assert worst(found, "P(")[0] < TOLERANCE, worst(found, "P(")


@pytest.mark.parametrize("mistake", ["start frame forgotten", "wrong schedule", "no evidence"])
def test_a_mistake_in_the_posterior_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, target = draws("none", Flowception(), CLIPS, seed=3)
    if mistake == "start frame forgotten":
        monkeypatch.setattr(posterior, "START_FRAMES", 0)
    wrong = Flowception(schedule="power:2") if mistake == "wrong schedule" else Flowception()
    missing_BK = size_logits(state)
    if mistake != "no evidence":
        missing_BK = wrong.missing_logits(missing_BK, state)
    said = oracle_of("none", Flowception())(state, range(len(state.lengths)))
    assert worst(deviations(state, target, said, missing_BK), "P(")[0] > TOLERANCE


def test_sizes_out_of_reach_are_unlikely_and_finite() -> None:
    """With more frames visible than the law knows, and after ``tau = 1``."""
    state, _ = draws("none", Flowception(), CLIPS, seed=3)
    missing_BK = Flowception().missing_logits(torch.zeros(len(state.lengths), 3), state)
    assert missing_BK.isfinite().all()
    visible_B1 = torch.tensor(state.lengths)[:, None]
    beyond_BK = visible_B1 + torch.arange(3) > 2
    assert (missing_BK[beyond_BK] < -5000).all()
    assert (missing_BK[~beyond_BK] > -100).all()


def test_systematic_shares_are_rounded_up_or_down_and_right_on_average() -> None:
    shares = torch.tensor([0.05, 0.0, 0.6, 0.35])
    total, grid = 7, 1000
    counts = torch.tensor([systematic(total, shares, (u + 0.5) / grid) for u in range(grid)])
    assert (counts.sum(1) == total).all()
    assert ((counts - total * shares).abs() < 1).all()
    torch.testing.assert_close(counts.float().mean(0), total * shares, rtol=0, atol=2e-3)


def test_inverse_cdf_has_the_law() -> None:
    law = torch.tensor([0.0, 0.25, 0.0, 0.75])
    drawn = [inverse_cdf(law, (u + 0.5) / 1000) for u in range(1000)]
    assert (drawn.count(1), drawn.count(3)) == (250, 750)
    assert inverse_cdf(law, 0.0) == 1


def test_tempered() -> None:
    log = torch.tensor([0.1, 0.4, 0.5]).double().log()
    torch.testing.assert_close(tempered(log, 1.0).softmax(-1), log.exp())
    assert tempered(log, 0.0).softmax(-1).tolist() == [0, 0, 1]
    assert tempered(torch.zeros(2), 0.0).softmax(-1).tolist() == [0.5, 0.5]
    powered = log.exp() ** 2
    torch.testing.assert_close(tempered(log, 0.5).softmax(-1), powered / powered.sum())
