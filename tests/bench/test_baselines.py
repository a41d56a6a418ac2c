"""What flowception is compared with: baselines, rules from the mean, orders, other attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import baselines
import pytest
import torch
from baselines import Autoregressive, FullSequence, Ruled
from fixtures_network import (
    CLIPS,
    ORDER,
    PROMPTS,
    SMALL,
    check_against_dense_attention,
    clip_mask,
    close,
)
from oracle import Flat, LengthOracle, bound, empty, generators, sample, total_variation
from torch import Tensor

from flowcept import networks
from flowcept.networks.layers import rotate
from flowcept.networks.transformer import Transformer
from flowcept.process.compositions import Gaps
from flowcept.process.forward import Process, draw, shifted
from flowcept.process.sampler import sample_steps
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import Given, Role
from flowcept.settings import SampleConfig

LAW = {8: 0.2, 12: 0.5, 24: 0.3}


def calls_of(process: Process, steps: int, given: Given, frames: int | None) -> int:
    """Evaluations of one clip, in which every frame moves as far as its age says."""
    model, born = Flat(), dict[int, tuple[int, Tensor]]()
    config = SampleConfig(steps=steps, frames=frames)
    every = sample_steps(model, [given], generators(1, steps), config, process, max_length=9)
    for step in every:
        for row, name in enumerate(step.name_F.tolist()):
            age, latent_CHW = int(step.age_F[row]), step.state.latent_FCHW[row]
            if age == 0:
                born[name] = (step.index, latent_CHW)
            if name in born:
                index, noise_CHW = born[name]
                assert age == min(step.index - index, steps)
                moved = latent_CHW - noise_CHW
                progress = shifted(torch.tensor(age / steps), process.shift)
                torch.testing.assert_close(moved, progress.expand_as(moved), rtol=0, atol=2e-5)
        last = step
    assert (last.state.time_F == 1).all()
    kept = last.state.role_F != Role.GENERATED
    assert torch.equal(last.state.latent_FCHW[kept], given.latent_FCHW)
    assert len(last.done[0]) == (frames or 9)
    return model.calls


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("frames", [7, None])
def test_baselines_keep_time_and_length(steps: int, frames: int | None) -> None:
    """Without a length a clip gets the greatest, here 9."""
    given = Given(torch.ones(2, 1, 1, 1), (False, True, False))
    assert calls_of(FullSequence(shift=2.0), steps, given, frames) == steps
    for block in (1, 2, 9):
        rounds = math.ceil(((frames or 9) - 2) / block)
        assert calls_of(Autoregressive(block=block), steps, given, frames) == steps * rounds


PROCESSES = [
    FullSequence(), Autoregressive(), Autoregressive(block=2),
    *(Ruled(order=order) for order in baselines.ORDERS),
]  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_missing_per_gap_is_met(process: Process, steps: int) -> None:
    values = torch.tensor([5.0, 6.0, 7.0]).view(3, 1, 1, 1)
    missing = (2, 0, 3, 1)
    given = Given(values, (True, False, True, True), missing)
    for seed in range(3):
        config, seeds = SampleConfig(steps=steps), generators(1, seed)
        out = sample(Flat(), [given], seeds, config, process, max_length=9)[0].flatten()
        places = [int((out == value).nonzero()) for value in (5.0, 6.0, 7.0)]
        edges = [-1, *places, len(out)]
        assert tuple(b - a - 1 for a, b in itertools.pairwise(edges)) == missing


def test_full_sequence_shows_every_frame(generator: torch.Generator) -> None:
    for _ in range(50):
        pair = draw(torch.zeros(5, 1, 1, 1), [True] + [False] * 4, FullSequence(), generator)
        assert pair is not None
        state, target = pair
        assert state.lengths == (5,)
        assert int(target.total_B) == 0
        assert len(set(state.time_F[1:].tolist())) == 1


@pytest.mark.parametrize("block", [1, 2])
def test_autoregressive_shows_clean_frames_and_one_block(
    block: int, generator: torch.Generator
) -> None:
    process, context = Autoregressive(block=block), [True] + [False] * 5
    for _ in range(100):
        pair = draw(torch.zeros(6, 1, 1, 1), context, process, generator)
        if pair is None:
            continue
        state, target = pair
        flowing = state.flowing_F.nonzero().flatten().tolist()
        assert flowing == list(range(flowing[0], state.lengths[0]))
        assert len(flowing) <= block
        assert (flowing[0] - 1) % block == 0
        assert (target.missing_F[:-1] == 0).all()


# --- rules and orders


@pytest.mark.parametrize("rule", ["systematic", "bernoulli", "poisson"])
def test_the_mean_alone_is_not_enough(rule: str) -> None:
    clips, process = 500, Ruled(rule=rule)
    out = sample(
        LengthOracle(LAW), [empty()] * clips, generators(clips, 1), SampleConfig(steps=5), process,
        max_length=64,
    )  # fmt: skip
    assert total_variation([len(latent) for latent in out], LAW) > 3 * bound(LAW, clips)


@pytest.mark.parametrize("rule", ["bernoulli", "poisson"])
def test_rules_from_the_mean_where_the_hazard_has_no_bound(rule: str) -> None:
    """``power:0.5`` rises endlessly fast at first; closed gaps stay closed."""
    given = Given(torch.zeros(1, 1, 1, 1), (False, True))
    out = sample(
        LengthOracle(LAW, parse_schedule("power:0.5")), [given] * 8, generators(8, 1),
        SampleConfig(steps=4), Ruled("power:0.5", rule=rule), max_length=24,
    )  # fmt: skip
    assert all(1 < len(latent) <= 24 for latent in out)
    assert all(latent[0] == 0 for latent in out)


@pytest.mark.parametrize(("rule", "law"), [
    ("multinomial", {(0, 2): 1 / 16, (1, 1): 6 / 16, (2, 0): 9 / 16}),
    ("posterior", {(1, 1): 0.5, (2, 0): 0.5}),
])  # fmt: skip
def test_two_frames_shared_out_by_a_rule(rule: str, law: dict[tuple[int, ...], float]) -> None:
    """Three quarters belong to the first gap: one by one, or rounded up or down."""
    given = Given(torch.zeros(1, 1, 1, 1), (True, True))
    config, generator = SampleConfig(steps=1, frames=3), torch.Generator().manual_seed(0)
    size_logits_K, gaps = torch.zeros(9), Gaps(torch.tensor([3.0, 1.0]).double().log())
    found = [
        tuple(Ruled(rule=rule).grow(given, generator, config, (1, 9)).count(0, gaps, size_logits_K))
        for _ in range(1000)
    ]
    assert total_variation(found, law) < bound(law, 1000)


@pytest.mark.parametrize("order", ["left-to-right", "bisection"])
def test_orders_differ_only_in_place(order: str) -> None:
    """Names tell the order of appearance: left to right they rise, bisection splits evenly."""
    config = SampleConfig(steps=200, frames=9)
    run_ = sample_steps(
        Flat(), [empty()], generators(1, 0), config, Ruled(order=order), max_length=9
    )
    names = list(run_)[-1].name_F.tolist()
    if order == "left-to-right":
        assert names == sorted(names)
    else:
        assert 2 <= names.index(0) <= 6


# --- networks


def network(family: str, **settings: int) -> Transformer:
    """A network whose every weight counts; the same weights in every family."""
    torch.manual_seed(0)
    config = networks.FAMILIES[family].config(**vars(replace(SMALL, **settings)))
    net = networks.build_network(config, 1.0).eval()
    assert networks.family_of(config) == family
    assert isinstance(net, Transformer)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return net


def causal_mask(lengths: Sequence[int], window: int) -> Tensor:
    """Which row sees which: none a frame after it, and a clip's own row no frame."""
    place = torch.tensor([f for n in lengths for f in (-1, *range(n))])
    return clip_mask(lengths, window) & (place[None] <= place[:, None])


@pytest.mark.parametrize("window", [0, 1, 2])
def test_causal_network_equals_one_with_dense_masked_attention(window: int) -> None:
    own = causal_mask([CLIPS[b].lengths[0] for b in ORDER], window)
    check_against_dense_attention(network("causal", window=window, between=0), own)


@pytest.mark.parametrize("family", ["causal", "transformer"])
@torch.no_grad()
def test_causal_frames_do_not_know_what_follows(family: str) -> None:
    """Others do."""
    state = replace(CLIPS[2], role_F=torch.zeros(6, dtype=torch.long))
    noise = torch.randn(state.latent_FCHW.shape)
    net, unlike = network(family, between=0), []
    base = net(state, PROMPTS[2]).velocity_FCHW
    for frame in range(6):
        latent_FCHW = state.latent_FCHW.clone()
        latent_FCHW[frame] = noise[frame]
        other = net(replace(state, latent_FCHW=latent_FCHW), PROMPTS[2]).velocity_FCHW
        unlike.append((other - base).abs().amax((1, 2, 3)) > 1e-6)
    expected_FF = torch.ones(6, 6, dtype=torch.bool)
    assert torch.equal(
        torch.stack(unlike), expected_FF.triu() if family == "causal" else expected_FF
    )


@pytest.mark.parametrize("start", [0, 5])
def test_rotary_values_carry_a_motion_on(start: int) -> None:
    """A pair that turns at its rate from frame to frame stays in step, a plain mean would fade."""
    heads, width, count = 2, 16, 24
    index = torch.arange(start, start + count)
    cosine, sine = baselines.value_rotary(index, heads, width)
    rate = torch.atan2(sine, cosine)[1, 0] - torch.atan2(sine, cosine)[0, 0]
    rate = rate.remainder(2 * math.pi)  # of each head's pairs, radians a frame
    steady = math.pi * torch.arange(8).view(4, 2).T / 7
    close(rate, torch.nn.functional.pad(steady, (0, 4)).float())
    angle = -torch.arange(count)[:, None, None, None] * rate
    moving = torch.cat([angle.cos(), angle.sin()], dim=-1)  # each pair of unit length
    mean = rotate(moving, (cosine, sine)).mean(0, keepdim=True).expand(count, -1, -1, -1)
    close(rotate(mean, (cosine, -sine)), moving)
    assert moving[:, 0, 1, 0].mean().abs() < 0.1, "a plain mean of the second head's first pair"


@torch.no_grad()
def test_rotary_values_are_plain_attention_where_no_frame_is_seen() -> None:
    """A clip's row alone sees only itself; with frames beside it what it gathers is turned."""
    turned, plain = network("rotary-values"), network("transformer")
    for clip, prompt in zip(CLIPS, PROMPTS, strict=True):
        a, b = (net(clip, prompt).size_logits_BK for net in (turned, plain))
        assert torch.allclose(a, b, atol=1e-4) == (clip.lengths == (0,))
