"""The in-between prior: who has one, what it sees, and how velocities are pulled towards it."""

from __future__ import annotations

from dataclasses import replace

import torch
from fixtures_network import CLIPS, PROMPTS, SMALL, close, network, outputs

from flowcept.networks.in_between import between
from flowcept.networks.transformer import Transformer
from flowcept.process import state as frames
from flowcept.process.state import FrameState, Rest, Role

STATE = frames.concat([CLIPS[0], CLIPS[2]])
PROMPT = frames.concat([PROMPTS[0], PROMPTS[2]])


def test_what_lies_between_two_finished_frames_sees_those_two() -> None:
    """With all else silent, and a look at nothing further; other frames see their own alone."""
    torch.manual_seed(0)
    net = Transformer(replace(SMALL, stem_depth=0, between=2), shift=1.0).eval()
    assert net.in_between is not None
    with torch.no_grad():
        for parameter in (*net.stem.parameters(), *net.in_between.parameters()):
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    own = between(STATE).nonzero().flatten().tolist()
    assert own == [2, 6]
    before = net(STATE, PROMPT).velocity_FCHW
    for changed in range(sum(STATE.lengths)):
        changed_FCHW = STATE.latent_FCHW.clone()
        changed_FCHW[changed] += 1
        after = net(replace(STATE, latent_FCHW=changed_FCHW), PROMPT).velocity_FCHW
        differs = (before != after).flatten(1)
        for frame in range(sum(STATE.lengths)):
            seen = frame == changed or (frame in own and abs(frame - changed) == 1)
            assert differs[frame].all() if seen else not differs[frame].any()


def test_the_clean_frame_is_pulled_towards_the_guess() -> None:
    """``z + (1 - s) v`` moves by the trusted part of its way there, at a shift that is not 1."""
    torch.manual_seed(0)
    shift = 3.0
    net = Transformer(replace(SMALL, between=2), shift).eval()
    assert net.in_between is not None
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
        net.in_between.when.weight.zero_()
        pulled = net(STATE, PROMPT).velocity_FCHW
        own = between(STATE).nonzero().flatten()
        beside = STATE.latent_FCHW[own - 1], STATE.latent_FCHW[own + 1]
        guess, trust = net.in_between.guess(*beside)
        net.in_between.where.weight.zero_()
        net.in_between.where.bias.zero_()
        alone = net(STATE, PROMPT).velocity_FCHW
    time = STATE.time_F[own][:, None, None, None]
    left = 1 - time / (time + shift * (1 - time))
    way = guess - (STATE.latent_FCHW[own] + left * alone[own])
    assert (trust * way).abs().mean() > 1e-3, "there is something to see"
    torch.testing.assert_close(pulled[own], alone[own] + trust * way)
    others = ~between(STATE)
    assert torch.equal(pulled[others], alone[others])


def test_the_sampler_says_who_lies_between() -> None:
    """What the CPU knows of finished frames is what the state's own times say."""
    net = network()
    rest = Rest(("a", "b"), ~STATE.flowing_F, may_rest=False)
    for a, b in zip(outputs(net(STATE, PROMPT, rest)), outputs(net(STATE, PROMPT)), strict=True):
        assert torch.equal(a, b)
    told = Rest(("a", "b"), torch.zeros_like(STATE.given_F), may_rest=False)
    differs_F = (
        net(STATE, PROMPT, told).velocity_FCHW != net(STATE, PROMPT).velocity_FCHW
    ).flatten(1)
    assert torch.equal(differs_F.any(1), between(STATE))


def test_without_any_such_frame_nothing_is_pulled() -> None:
    net, silent = network(), network()
    assert silent.in_between is not None
    torch.nn.init.zeros_(silent.in_between.where.weight)
    torch.nn.init.zeros_(silent.in_between.where.bias)
    torch.nn.init.zeros_(silent.in_between.when.weight)
    state = replace(STATE, time_F=torch.full_like(STATE.time_F, 0.5), role_F=STATE.role_F * 0)
    close(net(state, PROMPT).velocity_FCHW, silent(state, PROMPT).velocity_FCHW)


def test_between_are_flowing_frames_beside_finished_ones_of_their_clip() -> None:
    state = FrameState(
        torch.zeros(9, 1, 1, 1),
        torch.tensor([1.0, 0.9, 1.0, 0.5, 0.0, 1.0, 1.0, 0.2, 1.0]),
        torch.tensor([Role.ACTIVE, 0, 0, 0, 0, Role.PASSIVE, Role.PASSIVE, 0, Role.PASSIVE]),
        torch.zeros(3),
        torch.ones(3, dtype=torch.bool),
        (6, 1, 2),  # what flows in the last clip has no frame before it
    )
    assert between(state).nonzero().flatten().tolist() == [1]
