"""The network on packed clips: alone, packed, padded; blind to order and to other clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from test_attention import clip_mask, dense_rows, prompt_mask
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pad_sequence

from flowcept.networks import attention
from flowcept.networks import transformer as model
from flowcept.networks.attention import Plan
from flowcept.networks.transformer import ModelConfig, Network
from flowcept.process import forward as process
from flowcept.process import state as frames
from flowcept.process.forward import ProcessConfig
from flowcept.process.sampler import Given, clip_generator, concat_prompts, guided, sample
from flowcept.process.state import FrameState, Prediction, PromptTokens, Role
from flowcept.settings import SampleConfig

SMALL = ModelConfig(
    channels=3, height=4, width=4, max_count=9, text_width=12, hidden=32, depth=2, heads=2,
    patch=2, cells=8, between=1, place=True, rotary_values=True,
)  # fmt: skip


def network(window: int = 0, seed: int = 0, *, causal: bool = False) -> Network:
    """A network whose every weight counts: fresh gates are closed and would hide mistakes."""
    torch.manual_seed(seed)
    config = replace(SMALL, window=window, causal=causal, between=int(not causal))
    net = Network(config, ProcessConfig()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return net


def close(a: Tensor, b: Tensor, msg: str | None = None) -> None:
    """Equal up to float32 rounding; a mistake changes the outputs by a thousand times as much."""
    atol = 1e-4 * max(1.0, b.detach().abs().max().item()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=1e-3, atol=atol, msg=msg)


def clip(length: int, seed: int) -> FrameState:
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(length, generator=generator) < 0.3
    given[1:4] = torch.tensor([True, False, True])[: max(length - 1, 0)]  # one between two
    roles = torch.where(given, torch.randint(1, 3, (length,), generator=generator), 0)
    time = torch.rand(length, generator=generator)
    return FrameState(
        torch.randn(length, 3, 4, 4, generator=generator),
        torch.where(given, 1.0, time),
        roles,
        torch.rand(1, generator=generator) * 2,
        torch.rand(1, generator=generator) < 0.5,
        (length,),
    )


def prompt(length: int, seed: int) -> PromptTokens:
    generator = torch.Generator().manual_seed(seed)
    return PromptTokens(torch.randn(length, 12, generator=generator), (length,))


CLIPS = [clip(length, seed) for seed, length in enumerate((4, 1, 6, 0, 4))]
ORDER = [3, 1, 4, 0, 2]  # by length of clip and prompt: the order in which the network packs them
PROMPTS = [prompt(length, seed + 50) for seed, length in enumerate((3, 2, 3, 5, 2))]


def outputs(prediction: Prediction) -> list[Tensor]:
    return [
        prediction.velocity_FCHW,
        prediction.log_missing_F,
        prediction.log_missing_first_B,
        prediction.count_logits_BK,
    ]


def score(prediction: Prediction) -> Tensor:
    """A sum over clips of something that uses every output."""
    every = [*outputs(prediction), prediction.seen_BV]
    return sum((out.sin() * (i + 1)).sum() for i, out in enumerate(every))


def run(net: Network, chosen: Sequence[int]) -> Prediction:
    states = frames.concat([CLIPS[b] for b in chosen])
    return net(states, concat_prompts([PROMPTS[b] for b in chosen]))


def split(prediction: Prediction, lengths: Sequence[int]) -> list[list[Tensor]]:
    parts = [
        out.split(list(lengths)) if i < 2 else out.split(1)
        for i, out in enumerate(outputs(prediction))
    ]
    return [list(one) for one in zip(*parts, strict=True)]


@pytest.mark.parametrize("window", [0, 1])
def test_a_clip_alone_equals_a_clip_in_a_pack(window: int) -> None:
    net, chosen = network(window), [0, 1, 2, 4]
    packed = run(net, chosen)
    score(packed).backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for b, part in zip(chosen, split(packed, [CLIPS[b].lengths[0] for b in chosen]), strict=True):
        alone = run(net, [b])
        for a, c in zip(outputs(alone), part, strict=True):
            close(a, c)
        score(alone).backward()
    for (name, p), g in zip(net.named_parameters(), gradient, strict=True):
        close(p.grad, g, msg=name)
        assert float(g.abs().max()) > 0, f"{name} has no part in the output"


def test_order_of_a_pack_does_not_matter() -> None:
    net, order = network(), [4, 2, 0, 3, 1]
    straight = split(run(net, range(5)), [c.lengths[0] for c in CLIPS])
    shuffled = split(run(net, order), [CLIPS[b].lengths[0] for b in order])
    for b, part in zip(order, shuffled, strict=True):
        for a, c in zip(part, straight[b], strict=True):
            close(a, c)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 2])
def test_network_equals_one_with_dense_masked_attention(
    window: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, lengths = network(window, causal=causal), [CLIPS[b].lengths[0] for b in ORDER]
    packed = run(net, ORDER)
    score(packed).backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    own = clip_mask(lengths, window, causal=causal)
    other = prompt_mask(lengths, [PROMPTS[b].lengths[0] + 1 for b in ORDER])  # what is seen, too

    def masked(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        del plan
        return dense_rows(q, k, v, own if q.shape[1] == k.shape[1] else other)

    monkeypatch.setattr(model, "attend", masked)
    reference = run(net, ORDER)
    for a, c in zip(outputs(packed), outputs(reference), strict=True):
        close(a, c)
    score(reference).backward()
    for (name, p), g in zip(net.named_parameters(), gradient, strict=True):
        close(p.grad, g, msg=name)


def test_causal_frames_do_not_know_what_follows() -> None:
    """Without the setting they do."""
    state = replace(CLIPS[2], role_F=torch.zeros(6, dtype=torch.long))
    noise = torch.randn(state.latent_FCHW.shape)
    for causal in (True, False):
        net, unlike = network(causal=causal), []
        base = net(state, PROMPTS[2]).velocity_FCHW
        for frame in range(6):
            latent_FCHW = state.latent_FCHW.clone()
            latent_FCHW[frame] = noise[frame]
            other = net(replace(state, latent_FCHW=latent_FCHW), PROMPTS[2]).velocity_FCHW
            unlike.append((other - base).abs().amax((1, 2, 3)) > 1e-6)
        changed_FF = torch.stack(unlike)
        expected_FF = torch.ones(6, 6, dtype=torch.bool)
        assert torch.equal(changed_FF, expected_FF.triu() if causal else expected_FF)


def test_packing_equals_padding_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over ``[B, longest]`` with a mask on the padding, gathered from the packed rows."""
    net, tokens = network(), SMALL.patches + 1
    packed = run(net, ORDER)

    def spans(lengths: list[int]) -> list[list[int]]:
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        return [list(range(ends[b], ends[b + 1])) for b in range(5)]

    own = spans([(CLIPS[b].lengths[0] + 1) * tokens for b in ORDER])
    prompts = spans([PROMPTS[b].lengths[0] + 1 for b in ORDER])  # what is seen, too

    def padded(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        del plan
        shape, keys = q.shape, own if q.shape[1] == k.shape[1] else prompts
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        q_BTNE = pad_sequence([q[rows] for rows in own], batch_first=True)
        k_BSNE, v_BSNE = (
            pad_sequence([x[rows] for rows in keys], batch_first=True, padding_value=7.0)
            for x in (k, v)
        )
        real = torch.arange(k_BSNE.shape[1]) < torch.tensor([[len(rows)] for rows in keys])
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q_BTNE, k_BSNE, v_BSNE)), attn_mask=real[:, None, None]
        ).transpose(1, 2)
        result = torch.empty_like(q)
        for b, rows in enumerate(own):
            result[rows] = out[b, : len(rows)]
        return result.view(shape)

    monkeypatch.setattr(model, "attend", padded)
    for a, c in zip(outputs(packed), outputs(run(net, ORDER)), strict=True):
        close(a, c)


def test_planted_mistake_is_seen() -> None:
    """The prompt of another clip, another role, time, tau or gap 0 changes the output."""
    net, state = network(), CLIPS[2]
    base = net(state, PROMPTS[2])
    changed = {
        "prompt": (state, PROMPTS[3]),
        "time": (replace(state, time_F=state.time_F * 0.9), PROMPTS[2]),
        "role": (replace(state, role_F=(state.role_F + 1) % 3), PROMPTS[2]),
        "tau": (replace(state, tau_B=state.tau_B * 0.5), PROMPTS[2]),
        "gap 0": (replace(state, open_first_B=~state.open_first_B), PROMPTS[2]),
        "order": (replace(state, latent_FCHW=state.latent_FCHW.flip(0)), PROMPTS[2]),
    }
    state = replace(state, tau_B=torch.tensor([0.6]))
    changed["tau"] = (replace(state, tau_B=state.tau_B * 0.5), PROMPTS[2])
    for name, (other, words) in changed.items():
        reference = net(state, PROMPTS[2]) if name == "tau" else base
        for a, c in zip(outputs(net(other, words)), outputs(reference), strict=True):
            assert not torch.allclose(a, c, atol=1e-6), name


def test_tau_past_one_counts_as_one() -> None:
    net, at = network(), torch.tensor([1.0])
    one, later = (net(replace(CLIPS[0], tau_B=at * tau), PROMPTS[0]) for tau in (1.0, 1.7))
    for a, c in zip(outputs(one), outputs(later), strict=True):
        assert torch.equal(a, c)


def test_sizes_that_reach_further() -> None:
    """Old sizes keep their proportions, new ones are as likely as the least likely bias says."""
    net = network()
    before = run(net, range(5))
    old = net.config.max_count
    net.count_to(old + 3)
    after = run(net, range(5))
    for a, b in zip(outputs(before)[:3], outputs(after)[:3], strict=True):
        assert torch.equal(a, b)
    for b, state in enumerate(CLIPS):
        reached = old + 1 - int((~state.given_F).sum())
        assert reached > 0
        close(after.count_logits_BK[b, :reached], before.count_logits_BK[b, :reached])
    empty = next(b for b, state in enumerate(CLIPS) if state.lengths == (0,))
    kappa = float(CLIPS[empty].tau_B.clamp(max=1))
    new_K = torch.arange(old + 1.0, old + 4)
    least = net.count.bias[: old + 1].min()
    hidden = max(1 - kappa, process.LEAST_HIDDEN)
    close(after.count_logits_BK[empty, old + 1 :], least + new_K * math.log(hidden))
    assert after.count_logits_BK.shape == (5, old + 4)
    assert net.config.max_count == old + 3
    net.count_to(old + 3)
    with pytest.raises(ValueError, match="shrink"):
        net.count_to(old)


def test_gradient_checkpointing_changes_nothing() -> None:
    net = network().train()
    score(run(net, range(5))).backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.checkpoint_blocks = True
    score(run(net, range(5))).backward()
    for p, g in zip(net.parameters(), gradient, strict=True):
        close(p.grad, g)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_blocks_serve_packs_of_other_lengths(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between attentions is compiled for one pack, generalised for another, then kept.

    A backend that only counts stands in for the compiler. Parts, of which longer packs have more,
    are for what is not compiled.
    """
    monkeypatch.setattr(model, "PART", 700)
    net, plain, counter = network(), network(), CompileCounter()
    net.compile_blocks(backend=counter)
    counts = []
    for chosen in ([0, 2], [1, 4, 3], [2, 0, 4, 1], [4, 2, 0]):
        with torch.set_grad_enabled(training):
            said = run(net, chosen)
            for a, b in zip(outputs(said), outputs(run(plain, chosen)), strict=True):
                close(a, b)
            if training:
                score(said).backward()
        counts.append(counter.frame_count)
    assert counts[0] >= 3, "three parts of a block: before, between and after two attentions"
    assert counts[1:] == [counts[1]] * 3


def test_a_fresh_network_starts_from_nothing() -> None:
    """It knows no size from another; what the visible frames' number says of it is not learned."""
    torch.manual_seed(0)
    said = run(Network(SMALL, ProcessConfig()), range(5))
    for out in outputs(said)[:3]:
        assert out.abs().max().item() == 0
    nothing = torch.zeros_like(said.count_logits_BK)
    expected = process.missing_logits(nothing, frames.concat(CLIPS), ProcessConfig())
    close(said.count_logits_BK, expected)


@pytest.mark.parametrize("num_start", [0, 1, 2])
def test_sampling_starts_from_any_number_of_frames(num_start: int) -> None:
    """With none, the first call sees no frame at all."""
    model_ = guided(network(), PROMPTS[:2], PROMPTS[:2], 1.0, 1.0)
    latents = sample(
        model_,
        [Given(torch.zeros(0, 3, 4, 4), (True,))] * 2,
        [clip_generator(b) for b in range(2)],
        SampleConfig(steps=3, frames=4),
        ProcessConfig(num_start=num_start),
        max_length=8,
    )
    assert [latent.shape for latent in latents] == [(4, 3, 4, 4)] * 2


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("window", [0, 1])
def test_sampling_together_equals_sampling_alone(guidance: float, window: int) -> None:
    net = network(window)
    given = [
        Given(torch.zeros(0, 3, 4, 4), (True,)),
        Given(torch.randn(2, 3, 4, 4), (False, True, False)),
        Given(torch.randn(1, 3, 4, 4), (True, True)),
    ]
    away = [prompt(2, 99)] * 3
    config = SampleConfig(steps=5, guidance=guidance, rate_guidance=guidance)

    def go(chosen: list[int]) -> list[Tensor]:
        model_ = guided(
            net, [PROMPTS[b] for b in chosen], [away[b] for b in chosen], guidance, guidance
        )
        return sample(
            model_,
            [given[b] for b in chosen],
            [clip_generator(b) for b in chosen],
            config,
            ProcessConfig(),
            max_length=8,
        )

    together = go([0, 1, 2])
    assert max(len(latent) for latent in together) > 3
    for b, other in zip([2, 0, 1], go([2, 0, 1]), strict=True):
        close(other, together[b])
    for b in range(3):
        close(go([b])[0], together[b])


def test_content_means_nothing_but_itself() -> None:
    """Frames of zeros, of -1 and repeated frames are seen as frames: each adds to the output."""
    net, state = network(), CLIPS[2]
    for value in (0.0, -1.0):
        filled = replace(state, latent_FCHW=torch.full_like(state.latent_FCHW, value))
        fewer = frames.select(filled, [0])
        fewer = FrameState(
            fewer.latent_FCHW[:-1], fewer.time_F[:-1], fewer.role_F[:-1], fewer.tau_B,
            fewer.open_first_B, (fewer.lengths[0] - 1,),
        )  # fmt: skip
        whole, short = net(filled, PROMPTS[2]), net(fewer, PROMPTS[2])
        assert whole.velocity_FCHW.isfinite().all()
        assert not torch.allclose(whole.velocity_FCHW[:-1], short.velocity_FCHW, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": 30},
        {"height": 5},
        {"depth": 0},
        {"window": -1},
        {"max_count": -1},
        {"patch": 0},
        {"heads": 0},
        {"cells": 0},
        {"cell_depth": -1},
        {"between": -1},
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        ModelConfig(**settings)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_squares_of_cells_merge_and_divide(side: int) -> None:
    cell_FHWC = torch.randn(2, 2 * side, 3 * side, 5)
    merged_FHWC = model.merged(cell_FHWC, side)
    assert merged_FHWC.shape == (2, 2, 3, side * side * 5)
    square_C = cell_FHWC[1, side : 2 * side, 2 * side : 3 * side].flatten()
    assert torch.equal(merged_FHWC[1, 1, 2], square_C)
    assert torch.equal(model.divided(merged_FHWC, side), cell_FHWC)


@pytest.mark.parametrize(("patch", "merges"), [(1, [1]), (2, [2]), (3, [3]), (8, [2, 2, 2])])
def test_cells_become_patches_of_any_size(patch: int, merges: list[int]) -> None:
    config = replace(SMALL, height=2 * patch, width=patch, patch=patch)
    assert config.merges == merges
    assert config.patches == 2
    net = Network(config, ProcessConfig()).eval()
    state = clip(3, 0)
    state = replace(state, latent_FCHW=torch.randn(3, 3, 2 * patch, patch))
    with torch.no_grad():
        net.cells.velocity.weight.normal_()
        velocity_FCHW = net(state, PROMPTS[0]).velocity_FCHW
    assert velocity_FCHW.shape == state.latent_FCHW.shape
    assert (velocity_FCHW.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("cell_depth", [0, 1])
def test_convolutions_see_their_frame_and_those_beside_it(cell_depth: int) -> None:
    """With silent transformer blocks a frame's velocity is its own, edge to edge.

    Each block of cells looks one visible frame further, never into another clip.
    """
    torch.manual_seed(0)
    net = Network(replace(SMALL, cell_depth=cell_depth), ProcessConfig()).eval()
    with torch.no_grad():
        for parameter in net.cells.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    state = frames.concat([CLIPS[0], CLIPS[1], CLIPS[2]])
    prompt = concat_prompts([PROMPTS[0], PROMPTS[1], PROMPTS[2]])
    before = net(state, prompt).velocity_FCHW
    for changed in range(sum(state.lengths)):
        changed_FCHW = state.latent_FCHW.clone()
        changed_FCHW[changed] += 1
        after = net(replace(state, latent_FCHW=changed_FCHW), prompt).velocity_FCHW
        reach = 2 * cell_depth * len(net.config.merges)
        differs = (before != after).flatten(1)
        for frame, own in enumerate(state.clip_F):
            seen = own == state.clip_F[changed] and abs(frame - changed) <= reach
            assert differs[frame].all() if seen else not differs[frame].any()


def test_what_lies_between_two_finished_frames_sees_those_two() -> None:
    """With all else silent, and a look at nothing further; other frames see their own alone."""
    torch.manual_seed(0)
    net = Network(replace(SMALL, cell_depth=0, between=2), ProcessConfig()).eval()
    assert net.between is not None
    with torch.no_grad():
        for parameter in (*net.cells.parameters(), *net.between.parameters()):
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    state = frames.concat([CLIPS[0], CLIPS[2]])
    prompt = concat_prompts([PROMPTS[0], PROMPTS[2]])
    between = state.between_F.nonzero().flatten().tolist()
    assert between == [2, 6]
    before = net(state, prompt).velocity_FCHW
    for changed in range(sum(state.lengths)):
        changed_FCHW = state.latent_FCHW.clone()
        changed_FCHW[changed] += 1
        after = net(replace(state, latent_FCHW=changed_FCHW), prompt).velocity_FCHW
        differs = (before != after).flatten(1)
        for frame in range(sum(state.lengths)):
            seen = frame == changed or (frame in between and abs(frame - changed) == 1)
            assert differs[frame].all() if seen else not differs[frame].any()
    with pytest.raises(ValueError, match="later frame"):
        replace(SMALL, causal=True)


def test_what_lies_between_pulls_the_clean_frame_towards_its_guess() -> None:
    """``z + (1 - s) v`` moves by the trusted part of its way there, at a shift that is not 1."""
    torch.manual_seed(0)
    shift = 3.0
    net = Network(replace(SMALL, between=2), ProcessConfig(shift=shift)).eval()
    assert net.between is not None
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
        net.between.when.weight.zero_()
        state = frames.concat([CLIPS[0], CLIPS[2]])
        prompt = concat_prompts([PROMPTS[0], PROMPTS[2]])
        pulled = net(state, prompt).velocity_FCHW
        own = state.between_F.nonzero().flatten()
        guess, trust = net.between.guess(state.latent_FCHW[own - 1], state.latent_FCHW[own + 1])
        net.between.where.weight.zero_()
        net.between.where.bias.zero_()
        alone = net(state, prompt).velocity_FCHW
    time = state.time_F[own][:, None, None, None]
    left = 1 - time / (time + shift * (1 - time))
    way = guess - (state.latent_FCHW[own] + left * alone[own])
    assert (trust * way).abs().mean() > 1e-3, "there is something to see"
    torch.testing.assert_close(pulled[own], alone[own] + trust * way)
    others = ~state.between_F
    assert torch.equal(pulled[others], alone[others])


@pytest.mark.parametrize("place", [False, True])
def test_a_frame_is_told_its_place(place: bool) -> None:
    """Equal frames say the same where nothing but their place can tell them apart, or not."""
    torch.manual_seed(0)
    net = Network(replace(SMALL, cell_depth=0, between=0, place=place), ProcessConfig()).eval()
    with torch.no_grad():
        for parameter in net.cells.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    state = frames.select(CLIPS[0], [0])
    same = torch.zeros(4, dtype=torch.long)
    state = replace(
        state, latent_FCHW=state.latent_FCHW[same], time_F=state.time_F[same], role_F=same
    )
    with torch.no_grad():
        first, *others = net(state, PROMPTS[0]).velocity_FCHW
    for other in others:
        assert (float((first - other).abs().max()) > 1e-3) is place  # rounding apart


@pytest.mark.parametrize("start", [0, 5])
def test_rotary_values_carry_a_motion_on(start: int) -> None:
    """A pair that turns at its rate from frame to frame stays in step, a plain mean would fade."""
    heads, width, count = 2, 16, 24
    index = torch.arange(start, start + count)
    cosine, sine = model.value_rotary(index, heads, width)
    rate = torch.atan2(sine, cosine)[1, 0] - torch.atan2(sine, cosine)[0, 0]
    rate = rate.remainder(2 * math.pi)  # of each head's pairs, radians a frame
    steady = math.pi * torch.arange(8).view(4, 2).T / 7
    close(rate, torch.nn.functional.pad(steady, (0, 4)).float())
    angle = -torch.arange(count)[:, None, None, None] * rate
    moving = torch.cat([angle.cos(), angle.sin()], dim=-1)  # each pair of unit length
    mean = model.rotate(moving, (cosine, sine)).mean(0, keepdim=True).expand(count, -1, -1, -1)
    close(model.rotate(mean, (cosine, -sine)), moving)
    assert moving[:, 0, 1, 0].mean().abs() < 0.1, "a plain mean of the second head's first pair"


def test_rotary_values_are_plain_attention_where_no_frame_is_seen() -> None:
    """A clip's row alone sees only itself; with frames beside it what it gathers is turned."""
    torch.manual_seed(0)
    turned, plain = (
        Network(replace(SMALL, rotary_values=on), ProcessConfig()).eval() for on in (True, False)
    )
    with torch.no_grad():
        for weight, other in zip(turned.parameters(), plain.parameters(), strict=True):
            weight.copy_(torch.randn_like(weight) * 0.25)
            other.copy_(weight)
        for clip, prompt in zip(CLIPS, PROMPTS, strict=True):
            a, b = (net(clip, prompt).count_logits_BK for net in (turned, plain))
            assert torch.allclose(a, b, atol=1e-4) == (clip.lengths == (0,))


def test_neighbours_are_the_frames_beside_in_the_same_clip() -> None:
    neighbours = model.Neighbours.of(torch.tensor([0, 1, 2, 0, 0, 1]))
    x_FHWC = torch.arange(1.0, 7.0)[:, None, None, None]
    for start, stop in [(0, 6), (0, 2), (2, 4), (3, 6), (5, 6)]:
        rows = slice(start, stop)
        before, after = neighbours.beside(x_FHWC, rows).flatten(1).unbind(1)
        assert before.tolist() == [0, 1, 2, 0, 0, 5][rows]
        assert after.tolist() == [2, 3, 0, 0, 6, 0][rows]


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("part", [1, 700, 3000])
def test_parts_change_nothing_but_memory(
    window: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated frame by frame, or by a few frames, of which the last part has fewer."""
    net = network(window=window).eval()
    state, prompt = frames.concat(CLIPS), concat_prompts(PROMPTS)
    with torch.no_grad():
        whole = net(state, prompt)
        monkeypatch.setattr(model, "PART", part)
        monkeypatch.setattr(attention, "PART", part)
        parts = net(state, prompt)
    for a, b in zip(outputs(parts), outputs(whole), strict=True):
        close(a, b)


def test_parts_cover_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PART", 30)
    x = torch.arange(50.0).reshape(10, 5)
    asked: list[slice] = []

    def work(rows: slice) -> torch.Tensor:
        asked.append(rows)
        return x[rows] + 1

    with torch.no_grad():
        assert torch.equal(model.by_parts(work, torch.zeros(10, 2, 5)), x + 1)
    assert asked == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    asked.clear()
    assert torch.equal(model.by_parts(work, torch.zeros(10, 2, 5)), x + 1)
    assert asked == [slice(0, 10)]


def test_given_frames_are_read_clip_by_clip() -> None:
    """What they show, each one alike, normalised; generated frames say nothing, however clean."""
    net, generated = network(), Role.GENERATED
    roles = [Role.ACTIVE, generated, generated, Role.PASSIVE]
    some = replace(CLIPS[0], role_F=torch.tensor(roles))
    none = replace(CLIPS[2], role_F=torch.full((6,), generated), time_F=torch.ones(6))
    one = replace(CLIPS[4], role_F=torch.tensor([generated, Role.ACTIVE, generated, generated]))
    patch_FHWD = torch.randn(14, 2, 2, 32)
    seen_BV = net.read(frames.concat([some, none, one]), patch_FHWD)
    shown_FD = torch.nn.functional.silu(net.look(patch_FHWD)).mean((1, 2))
    close(seen_BV[0], net.seen(model.normed(shown_FD[0] + shown_FD[3])))
    assert not seen_BV[1].any()
    close(seen_BV[2], net.seen(model.normed(shown_FD[11])))


def test_what_is_seen_reaches_all_frames_of_its_clip_only() -> None:
    """Another token changes every frame of its clip, also where blocks see neighbours only."""
    net, state = network(window=1), frames.concat([CLIPS[0], CLIPS[2]])
    state = replace(state, role_F=torch.tensor([1, 0, 0, 0, 1, 0, 0, 0, 0, 0]))
    words = concat_prompts([PROMPTS[0], PROMPTS[2]])
    with torch.no_grad():
        before = net(state, words)
        read = net.read
        net.read = lambda *parts: read(*parts) * torch.tensor([[1.0], [2.0]])  # type: ignore[method-assign]
        after = net(state, words)
    differs_F = (before.velocity_FCHW != after.velocity_FCHW).flatten(1).any(1)
    assert differs_F.tolist() == [False] * 4 + [True] * 6
    assert after.seen_BV is not None


def test_states_of_roles_use_their_embedding() -> None:
    net = network()
    assert net.frame_role.weight.shape[0] == len(Role)


def test_squared_relu_has_its_derivative() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(model.SquaredRelu.apply(x), x.clamp(min=0) ** 2)
    assert torch.autograd.gradcheck(model.SquaredRelu.apply, (x,))
