"""What the losses are least at, what they score, and that parts add up to the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from oracle import AR1_LAW, ar1_clip, draw_length

from flowcept.data.contexts import draw_context
from flowcept.process import forward
from flowcept.process.forward import Flowception, Target
from flowcept.process.loss import (
    LARGEST_LOG,
    LossConfig,
    count_terms,
    loss_sums,
    poisson_nll,
    total_loss,
)
from flowcept.process.state import FrameState, GapTables, Prediction
from flowcept.settings import ContextMixture

PROCESS = Flowception()


def batch(count: int, generator: torch.Generator) -> list[tuple[FrameState, Target]]:
    pairs = []
    while len(pairs) < count:
        n = draw_length(AR1_LAW, generator)
        context = draw_context(n, ContextMixture(), generator)
        if context is None:
            continue
        pair = forward.draw(ar1_clip(n, generator), context, PROCESS, generator)
        if pair is not None:
            pairs.append(pair)
    return pairs


def guess(state: FrameState, generator: torch.Generator) -> Prediction:
    count, clips = sum(state.lengths), len(state.lengths)
    return Prediction(
        torch.randn(state.latent_FCHW.shape, generator=generator),
        torch.randn(count, generator=generator),
        torch.randn(clips, generator=generator),
        torch.randn(clips, 7, generator=generator),
        torch.randn(clips, 5, generator=generator),
        torch.randn(clips, max(state.lengths) + 1, 6, generator=generator),
        GapTables(*(torch.randn(n, m, generator=generator) for n, m in ((7, 3), (7, 3), (3, 7)))),
    )


def words(clips: int, generator: torch.Generator) -> tuple[list[str], torch.Tensor]:
    """Prompts and what they say; every third clip has none."""
    said_BV = torch.randn(clips, 5, generator=generator)
    said_BV[::3] = 0
    return ["" if clip % 3 == 0 else "a dog" for clip in range(clips)], said_BV


def test_poisson_is_least_at_the_conditional_mean() -> None:
    counts = torch.tensor([0.0, 0.0, 1.0, 4.0, 7.0], dtype=torch.float64)
    log_mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(50):  # Newton: the loss is convex in the log
        loss = poisson_nll(log_mean, counts).mean()
        (slope,) = torch.autograd.grad(loss, log_mean)
        with torch.no_grad():
            log_mean -= (slope / log_mean.exp()).clamp(-1, 1)
    assert log_mean.exp().item() == pytest.approx(float(counts.mean()), rel=1e-9)


def test_poisson_is_the_plain_formula_up_to_its_bound() -> None:
    """Value and gradient bit for bit; beyond it a straight line that touches the curve."""
    log_mean = torch.linspace(-30, LARGEST_LOG, 1001).requires_grad_()
    counts = torch.arange(1001).float() % 70
    plain = log_mean.exp() - counts * log_mean
    ours = poisson_nll(log_mean, counts)
    assert torch.equal(ours, plain)
    (slope,), (wanted,) = (torch.autograd.grad(x.sum(), log_mean) for x in (ours, plain))
    assert torch.equal(slope, wanted)


@pytest.mark.parametrize("beyond", [LARGEST_LOG, 30.0, 1e4, 1e30])
def test_poisson_is_bounded_by_a_line_beyond(beyond: float) -> None:
    """An exponential would overflow at 89, and its gradient with it."""
    log_mean = torch.tensor(beyond, requires_grad=True)
    loss = poisson_nll(log_mean, torch.tensor(5.0))
    (slope,) = torch.autograd.grad(loss, log_mean)
    largest = torch.tensor(LARGEST_LOG).exp()
    assert loss.isfinite()
    assert float(slope) == pytest.approx(float(largest) - 5, rel=1e-5)
    line = largest * (1 + beyond - LARGEST_LOG) - 5 * beyond
    torch.testing.assert_close(loss.detach(), line)


def test_only_open_gaps_before_tau_one_and_flowing_frames_are_scored() -> None:
    state = FrameState(
        latent_FCHW=torch.zeros(5, 1, 2, 2),
        time_F=torch.tensor([1.0, 1.0, 0.5, 0.25, 1.0]),
        role_F=torch.tensor([2, 1, 0, 0, 0]),  # passive, active, generated | generated x 2
        tau_B=torch.tensor([0.5, 1.25]),
        open_first_B=torch.tensor([False, True]),
        lengths=(3, 2),
    )
    target = Target(torch.ones(5, 1, 2, 2), torch.ones(5), torch.ones(2), torch.tensor([2, 0]))
    assert count_terms(state, ["a dog", "a cat"]) == {
        "velocity": 2,
        "missing": 2,
        "count": 1,
        "composition": 1,
        "image": 1,
    }
    base = Prediction(
        torch.zeros(5, 1, 2, 2),
        torch.zeros(5),
        torch.zeros(2),
        torch.zeros(2, 4),
        torch.zeros(2, 3),
    )
    said_BV = torch.tensor([[3.0, 0, 4], [1, 1, 1]])
    sums = loss_sums(base, state, target, PROCESS, said_BV)
    assert float(sums["image"]) == pytest.approx(1)  # nothing instead of a vector of length 5
    assert float(sums["velocity"]) == 2
    assert float(sums["missing"]) == 2  # exp(0) - 1 * 0, twice
    # Sizes 1, 2 and 3 are alike; half of the hidden frames would have appeared: 1 + 1/2 + 1/4.
    assert float(sums["count"]) == pytest.approx(torch.tensor(7.0).log().item())
    scored = {"velocity_FCHW": [2, 3], "log_missing_F": [1, 2], "log_missing_first_B": [],
              "size_logits_BK": [0], "image_token_BV": [0]}  # fmt: skip
    for name, rows in scored.items():
        for row in range(len(getattr(base, name))):
            changed = getattr(base, name).clone()
            changed[row].view(-1)[-1] += 1
            moved = loss_sums(replace(base, **{name: changed}), state, target, PROCESS, said_BV)
            same = all(torch.equal(moved[term], sums[term]) for term in sums)
            assert same == (row not in rows), (name, row)


def test_parts_add_up_to_the_whole(generator: torch.Generator) -> None:
    pairs = batch(12, generator)
    state, target = forward.concat(pairs)
    prediction, (prompts, said_BV) = guess(state, generator), words(len(pairs), generator)
    whole = loss_sums(prediction, state, target, PROCESS, said_BV)
    counts = count_terms(state, prompts)
    assert counts["image"] > 2
    assert float(whole["image"]) > 0
    summed = {name: torch.zeros(()) for name in whole}
    counted: Counter[str] = Counter()
    ends = torch.tensor([0, *state.lengths]).cumsum(0).tolist()
    for low, high in ((0, 5), (5, 12)):
        part, part_target = forward.concat(pairs[low:high])
        rows, clips = slice(ends[low], ends[high]), slice(low, high)
        part_prediction = Prediction(
            prediction.velocity_FCHW[rows],
            prediction.log_missing_F[rows],
            prediction.log_missing_first_B[clips],
            prediction.size_logits_BK[clips],
            prediction.image_token_BV[clips],
            prediction.gap_BG2H[clips, : max(part.lengths) + 1],
            prediction.tables,
        )
        sums = loss_sums(part_prediction, part, part_target, PROCESS, said_BV[clips])
        summed = {name: summed[name] + sums[name] for name in sums}
        counted.update(count_terms(part, prompts[clips]))
    assert counted == counts
    for name in whole:
        torch.testing.assert_close(summed[name], whole[name])
    config = LossConfig()
    torch.testing.assert_close(
        total_loss(summed, counted, config), total_loss(whole, counts, config)
    )
    weights = LossConfig(2.0, 0.5, 0.25, 3.0, 0.125)
    expected = (
        2 * whole["velocity"] / counts["velocity"]
        + whole["missing"] / counts["missing"] / 2
        + whole["count"] / counts["count"] / 4
        + whole["composition"] / counts["composition"] * 3
        + whole["image"] / counts["image"] / 8
    )
    torch.testing.assert_close(total_loss(whole, counts, weights), expected)


def test_nothing_to_score_is_zero_and_not_a_nan() -> None:
    zero = {
        name: torch.zeros(()) for name in ("velocity", "missing", "count", "composition", "image")
    }
    assert float(total_loss(zero, dict.fromkeys(zero, 0), LossConfig())) == 0


def test_hidden_context_error_does_not_leak(generator: torch.Generator) -> None:
    """Large context frames must not reach the loss: their velocity means nothing."""
    state, target = forward.concat(batch(12, generator))
    prediction, (_, said_BV) = guess(state, generator), words(12, generator)
    sums = loss_sums(prediction, state, target, PROCESS, said_BV)
    given = ~state.flowing_F
    assert given.any()
    huge = target.velocity_FCHW.clone()
    huge[given] = 1e15
    after = loss_sums(prediction, state, replace(target, velocity_FCHW=huge), PROCESS, said_BV)
    assert torch.equal(after["velocity"], sums["velocity"])


def test_without_words_or_given_frames_nothing_is_to_be_seen(generator: torch.Generator) -> None:
    state, target = forward.concat(batch(12, generator))
    prediction, said_BV = guess(state, generator), torch.ones(12, 5)
    assert float(loss_sums(prediction, state, target, PROCESS, 0 * said_BV)["image"]) == 0
    free = replace(state, role_F=torch.zeros_like(state.role_F))
    assert float(loss_sums(prediction, free, target, PROCESS, said_BV)["image"]) == 0
    right = replace(prediction, image_token_BV=said_BV)
    assert float(loss_sums(right, state, target, PROCESS, said_BV)["image"]) == 0
    assert float(loss_sums(prediction, state, target, PROCESS, said_BV)["image"]) > 0


def test_an_image_without_words_is_neither_scored_nor_counted(generator: torch.Generator) -> None:
    """The mean is over clips that have both; a clip without a prompt would dilute it."""
    state, target = forward.concat(batch(12, generator))
    prediction = guess(state, generator)
    prompts, said_BV = words(12, generator)
    given = [bool(part.any()) for part in state.given_F.split(state.lengths)]
    both = [clip for clip in range(12) if given[clip] and prompts[clip]]
    assert 0 < len(both) < sum(given)
    assert prediction.image_token_BV is not None
    error_B = (prediction.image_token_BV - said_BV).square().sum(1) / said_BV.square().sum(1)
    sums = loss_sums(prediction, state, target, PROCESS, said_BV)
    counts = count_terms(state, prompts)
    assert counts["image"] == len(both)
    image_alone = LossConfig(0, 0, 0, 0, 1)
    mean = error_B[both].mean()
    torch.testing.assert_close(total_loss(sums, counts, image_alone), mean)
