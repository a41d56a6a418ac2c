"""Errors of frames by cases in which the nearest real frame is known."""

from __future__ import annotations

import framewise
import pytest
import torch

REAL = torch.linspace(-0.8, 0.8, 5).view(5, 1, 1, 1).expand(5, 3, 4, 4)  # 0.4 apart


def errors(levels: list[float], born: list[int], real: torch.Tensor = REAL) -> dict[str, float]:
    image = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return framewise.errors(framewise.Made(image, "", torch.tensor(born)), real)


def test_the_clip_itself_has_no_error():
    found = errors([-0.8, -0.4, 0.0, 0.4, 0.8], [0, 1, 2, 3, 4])
    assert found == pytest.approx(dict.fromkeys(framewise.SCORES, 0), abs=1e-9)


def test_likely_frames_in_the_wrong_place():
    found = errors([-0.8, -0.8, -0.8, -0.7, 0.8], [1, 3, 2, 0, 4])
    assert found["look"] == pytest.approx(1000 * 0.1**2 / 5, rel=1e-4)
    assert found["look, first born"] == pytest.approx(1000 * 0.1**2, rel=1e-4)
    assert found["look, later born"] == pytest.approx(0, abs=1e-9)
    assert found["place"] == pytest.approx((0 + 1 + 2 + 3 + 0) / 5)
    assert found["same"] == pytest.approx(1000 * (0.4**2 + 0.8**2 + 1.1**2) / 5, rel=1e-4)


def test_lengths_are_made_equal():
    found = errors([-0.8, 0.0, 0.8], [0, 1, 2])
    assert found["place"] == 0
    assert found["same"] != found["same"], "no number: the lengths do not agree"
    assert errors([0.8, 0.0, -0.8], [0, 1, 2])["place"] == pytest.approx(8 / 3)


def test_of_equal_real_frames_the_one_in_the_best_place_counts():
    real = REAL[[0, 1, 0, 1, 0]]
    assert errors([-0.8, -0.4, -0.8, -0.4, -0.8], [0, 1, 2, 3, 4], real)["place"] == 0
    assert errors([-0.4, -0.8, -0.4, -0.8, -0.4], [0, 1, 2, 3, 4], real)["place"] == 1
