"""The network on packed clips: alone, packed, padded; blind to order and to other clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda
from fake_device import FakeDevice
from fake_xformers import install
from fixtures_network import (
    CLIPS,
    FORMS,
    ORDER,
    PROMPTS,
    SMALL,
    check_against_dense_attention,
    clip_mask,
    close,
    network,
    outputs,
    prompt,
    run,
    score,
)
from oracle import sample
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pad_sequence

from flowcept.networks import attention, layers
from flowcept.networks.attention import Plan
from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process import state as frames
from flowcept.process.forward import Flowception
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator
from flowcept.process.state import FrameState, Given, Prediction, Rest, Role
from flowcept.settings import SampleConfig


def split(prediction: Prediction, lengths: Sequence[int]) -> list[list[Tensor]]:
    parts = [
        out.split(list(lengths)) if i < 2 else out.split(1)
        for i, out in enumerate(outputs(prediction))
    ]
    return [list(one) for one in zip(*parts, strict=True)]


@FORMS
@pytest.mark.parametrize("window", [0, 1])
def test_a_clip_alone_equals_a_clip_in_a_pack(pooled: bool, window: int) -> None:
    net, chosen = network(window, pooled=pooled), [0, 1, 2, 4]
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


@FORMS
def test_order_of_a_pack_does_not_matter(pooled: bool) -> None:
    net, order = network(pooled=pooled), [4, 2, 0, 3, 1]
    straight = split(run(net, range(5)), [c.lengths[0] for c in CLIPS])
    shuffled = split(run(net, order), [CLIPS[b].lengths[0] for b in order])
    for b, part in zip(order, shuffled, strict=True):
        for a, c in zip(part, straight[b], strict=True):
            close(a, c)


@FORMS
@pytest.mark.parametrize("window", [0, 1, 2])
def test_network_equals_one_with_dense_masked_attention(pooled: bool, window: int) -> None:
    own = clip_mask([CLIPS[b].lengths[0] for b in ORDER], window)
    check_against_dense_attention(network(window, pooled=pooled), own)


@FORMS
def test_packing_equals_padding_with_a_mask(pooled: bool) -> None:
    """Attention over ``[B, longest]`` with a mask on the padding, gathered from the packed rows."""
    net = network(pooled=pooled)
    tokens = net.tokens_per_frame
    packed = run(net, ORDER)

    def spans(lengths: list[int]) -> list[list[int]]:
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        return [list(range(ends[b], ends[b + 1])) for b in range(5)]

    own = spans([(CLIPS[b].lengths[0] + 1) * tokens for b in ORDER])
    prompts = spans([PROMPTS[b].lengths[0] + 1 for b in ORDER])  # the image token, too

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

    net.attend = padded
    for a, c in zip(outputs(packed), outputs(run(net, ORDER)), strict=True):
        close(a, c)


@FORMS
def test_planted_mistake_is_seen(pooled: bool) -> None:
    """The prompt of another clip, another role, time, tau or gap 0 changes the output."""
    net, state = network(pooled=pooled), CLIPS[2]
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


@FORMS
def test_tau_past_one_counts_as_one(pooled: bool) -> None:
    net, at = network(pooled=pooled), torch.tensor([1.0])
    one, later = (net(replace(CLIPS[0], tau_B=at * tau), PROMPTS[0]) for tau in (1.0, 1.7))
    for a, c in zip(outputs(one), outputs(later), strict=True):
        assert torch.equal(a, c)


@FORMS
def test_sizes_that_reach_further(pooled: bool) -> None:
    """Old sizes keep their proportions, new ones are as likely as the least likely bias says."""
    net = network(pooled=pooled)
    before = run(net, range(5))
    old = net.largest_size
    grown = net.grow_law(old + 3)
    assert grown == net.config == replace(SMALL, largest_size=old + 3, pooled=pooled)
    assert net.largest_size == old + 3
    after = run(net, range(5))
    for a, b in zip(outputs(before)[:3], outputs(after)[:3], strict=True):
        assert torch.equal(a, b)
    close(after.size_logits_BK[:, : old + 1], before.size_logits_BK)
    least = net.size.bias[: old + 1].min()
    assert torch.equal(after.size_logits_BK[:, old + 1 :], least.expand(5, 3))
    assert net.grow_law(old + 3) == grown
    with pytest.raises(ValueError, match="shrink"):
        net.grow_law(old)


@FORMS
def test_gradient_checkpointing_changes_nothing(pooled: bool) -> None:
    net = network(pooled=pooled).train()
    score(run(net, range(5))).backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.checkpoint_blocks = True
    score(run(net, range(5))).backward()
    for p, g in zip(net.parameters(), gradient, strict=True):
        close(p.grad, g)


@FORMS
@pytest.mark.parametrize("training", [True, False])
def test_compiled_blocks_serve_packs_of_other_lengths(
    pooled: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between attentions is compiled for one pack, generalised for another, then kept.

    A backend that only counts stands in for the compiler. Parts, of which longer packs have more,
    are for what is not compiled.
    """
    monkeypatch.setattr(layers, "CHUNK", 700)
    net, plain, counter = network(pooled=pooled), network(pooled=pooled), CompileCounter()
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


@FORMS
def test_a_fresh_network_starts_from_nothing(pooled: bool) -> None:
    """It knows no size from another, and what is missing follows by Bayes' rule alone."""
    torch.manual_seed(0)
    said = run(Transformer(replace(SMALL, pooled=pooled), shift=1.0), range(5))
    for out in outputs(said):
        assert out.abs().max().item() == 0


@FORMS
def test_a_pack_may_have_no_frame(pooled: bool) -> None:
    """A clip alone before its first frame appears."""
    said = run(network(pooled=pooled), [3])
    assert said.velocity_FCHW.shape == (0, 3, 4, 4)
    assert said.log_missing_F.shape == (0,)
    assert said.log_missing_first_B.isfinite().all()
    assert said.size_logits_BK.shape == (1, 10)


@FORMS
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("window", [0, 1])
def test_sampling_together_equals_sampling_alone(
    pooled: bool, guidance: float, window: int
) -> None:
    net = network(window, pooled=pooled)
    given = [
        Given(torch.zeros(0, 3, 4, 4), (True,)),
        Given(torch.randn(2, 3, 4, 4), (False, True, False)),
        Given(torch.randn(1, 3, 4, 4), (True, True)),
    ]
    away = [prompt(2, 99)] * 3
    config = SampleConfig(steps=5, guidance=guidance)

    def go(chosen: list[int]) -> list[Tensor]:
        words, none = [PROMPTS[b] for b in chosen], [away[b] for b in chosen]
        return sample(
            guided(net, words, none, guidance),
            [given[b] for b in chosen],
            [clip_generator(b) for b in chosen],
            config,
            Flowception(),
            max_length=8,
        )

    together = go([0, 1, 2])
    assert max(len(latent) for latent in together) > 3
    for b, other in zip([2, 0, 1], go([2, 0, 1]), strict=True):
        close(other, together[b])
    for b in range(3):
        close(go([b])[0], together[b])


@FORMS
def test_content_means_nothing_but_itself(pooled: bool) -> None:
    """Frames of zeros, of -1 and repeated frames are seen as frames: each adds to the output."""
    net, state = network(pooled=pooled), CLIPS[2]
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
        {"largest_size": -1},
        {"patch": 0},
        {"heads": 0},
        {"stem_channels": 0},
        {"stem_depth": -1},
        {"between": -1},
        {"depth": 1001},
        {"stem_depth": 1001},
        {"between": 1001},
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        TransformerConfig(**settings)


@FORMS
@pytest.mark.parametrize("place", [False, True])
def test_a_frame_is_told_its_place(pooled: bool, place: bool) -> None:
    """Equal frames say the same where nothing but their place can tell them apart, or not."""
    torch.manual_seed(0)
    config = replace(SMALL, stem_depth=0, between=0, place=place, pooled=pooled)
    net = Transformer(config, shift=1.0).eval()
    with torch.no_grad():
        for parameter in net.stem.parameters():
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


@FORMS
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("part", [1, 700, 3000])
def test_chunks_change_nothing_but_memory(
    pooled: bool, window: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated frame by frame, or by a few frames, of which the last part has fewer."""
    net = network(pooled=pooled, window=window).eval()
    state, prompt = frames.concat(CLIPS), frames.concat(PROMPTS)
    with torch.no_grad():
        whole = net(state, prompt)
        monkeypatch.setattr(layers, "CHUNK", part)
        monkeypatch.setattr(attention, "PART", part)
        parts = net(state, prompt)
    for a, b in zip(outputs(parts), outputs(whole), strict=True):
        close(a, b)


@FORMS
def test_given_frames_are_read_clip_by_clip(pooled: bool) -> None:
    """What they show, each one alike, normalised; generated frames say nothing, however clean."""
    net, generated = network(pooled=pooled), Role.GENERATED
    roles = [Role.ACTIVE, generated, generated, Role.PASSIVE]
    some = replace(CLIPS[0], role_F=torch.tensor(roles))
    none = replace(CLIPS[2], role_F=torch.full((6,), generated), time_F=torch.ones(6))
    one = replace(CLIPS[4], role_F=torch.tensor([generated, Role.ACTIVE, generated, generated]))
    shown: list[Tensor] = []
    net.image_read.register_forward_hook(lambda _, __, y: shown.append(y))
    said = net(
        frames.concat([some, none, one]), frames.concat([PROMPTS[0], PROMPTS[2], PROMPTS[4]])
    )
    token_BV = said.image_token_BV
    assert token_BV is not None
    shown_FD = torch.nn.functional.silu(shown[0]).mean((1, 2))  # of the clips 2, 0, 1 of the pack
    close(token_BV[0], net.image_token(layers.layer_norm(shown_FD[4] + shown_FD[7])))
    assert not token_BV[1].any()
    close(token_BV[2], net.image_token(layers.layer_norm(shown_FD[1])))


@FORMS
def test_the_image_token_reaches_all_frames_of_its_clip_only(pooled: bool) -> None:
    """Another token changes every frame of its clip, also where blocks see neighbours only."""
    net, state = network(pooled=pooled, window=1), frames.concat([CLIPS[0], CLIPS[2]])
    state = replace(state, role_F=torch.tensor([1, 0, 0, 0, 1, 0, 0, 0, 0, 0]))
    words = frames.concat([PROMPTS[0], PROMPTS[2]])
    twice_second = lambda _, __, token_BV: token_BV * torch.tensor([[1.0], [2.0]])  # noqa: E731
    with torch.no_grad():
        before = net(state, words)
        net.image_token.register_forward_hook(twice_second)
        after = net(state, words)
    differs_F = (before.velocity_FCHW != after.velocity_FCHW).flatten(1).any(1)
    assert differs_F.tolist() == [False] * 4 + [True] * 6


@FORMS
def test_the_image_token_is_taught_by_words_alone(pooled: bool) -> None:
    """What else is learned does not reach it: no gradient from velocities or laws."""
    net = network(pooled=pooled)
    sum(out.sum() for out in outputs(run(net, range(5)))).backward()
    assert net.image_token.weight.grad is None
    run(net, range(5)).image_token_BV.sum().backward()
    assert net.image_token.weight.grad is not None


def test_states_of_roles_use_their_embedding() -> None:
    assert network().frame_role.weight.shape[0] == len(Role)


def test_pooled_rows_have_a_token_less() -> None:
    """And the law of a gap is read from the rows on both sides of it."""
    with_tokens, pooled = network(), network(pooled=True)
    assert with_tokens.tokens_per_frame == 5
    assert pooled.tokens_per_frame == 4
    rows: list[torch.Size] = []
    features: list[Tensor] = []

    def note(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(inputs[0].shape)
        features.append(output)

    pooled.gaps.register_forward_hook(note)
    said = run(pooled, [0])
    assert rows == [(1 + 4, 4, SMALL.hidden)]
    first_D, *gap_FD = features[0]
    close(pooled.log_missing_first(first_D), said.log_missing_first_B)
    close(pooled.log_missing(torch.stack(gap_FD))[:, 0], said.log_missing_F)


# On a GPU


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_on_cuda_is_of_one_dtype(
    pooled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast makes norms float32 there; xformers refuses queries, keys, values that differ."""
    seen: list[tuple[torch.dtype, ...]] = []

    def note(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        seen.append((query.dtype, key.dtype, value.dtype))
        return query

    ops = install(monkeypatch, note)
    monkeypatch.setattr(attention, "xformers_ops", lambda: ops)
    with FakeCuda() as cuda, torch.no_grad(), cuda.autocast(dtype):
        # With an in-between prior, training asks the device who lies between.
        net = cuda.module(network(pooled=pooled, between=0))
        said = net(cuda.record(frames.concat(CLIPS)), cuda.record(frames.concat(PROMPTS)))
    assert seen == [(dtype,) * 3] * (2 * SMALL.depth), "both attentions of each block"
    for out in outputs(said):
        assert out.is_cuda
        assert out.dtype == torch.float32


@FORMS
def test_evaluations_in_sampling_copy_once_and_read_nothing(
    pooled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers of a layout go to the device together; the same layout again costs no copy."""
    monkeypatch.setattr(attention, "xformers_ops", lambda: None)
    net, memory = network(pooled=pooled), {}
    copies: list[int] = []
    for clips, may_rest in [(range(5), False)] * 2 + [(range(5), True)] * 3 + [([4, 2, 0], True)]:
        state = frames.concat([CLIPS[b] for b in clips])
        tokens = frames.concat([PROMPTS[b] for b in clips])
        rest = Rest(tuple(clips), ~state.flowing_F, may_rest, memory)
        with torch.no_grad(), FakeDevice() as device:
            there = state.to("cuda"), replace(tokens, token_SD=tokens.token_SD.to("cuda"))
            device.into.clear()
            said = device.module(net)(*there, rest)
            copies.append(len(device.into))
            assert not device.out
            assert all(out.is_cuda for out in outputs(said))
    assert copies == [1, 0, 0, 1, 0, 1], "a pack, one in which frames rest, and one of fewer clips"


@FORMS
def test_laws_are_float32_under_autocast(pooled: bool) -> None:
    """A logit near 12 moves in steps of .06 in bfloat16: it stays where float32 has it."""
    net = network(pooled=pooled)
    with torch.no_grad():
        net.size.weight.mul_(0.003)
        net.size.bias.fill_(12.03)
        for layer in (net.log_missing, net.log_missing_first):
            layer.weight.zero_()
            layer.bias.fill_(-12.03)
        exact = run(net, range(5))
        with torch.autocast("cpu", torch.bfloat16):
            rough = run(net, range(5))
    assert 11 < float(exact.size_logits_BK.mean()) < 13
    for a, b in zip(outputs(rough)[1:], outputs(exact)[1:], strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max()) < 1e-3


def test_a_plan_tells_frames_their_places() -> None:
    """Its own index and its clip's length count; without a plan all is as in other processes."""
    net, state, words = network(), CLIPS[4], PROMPTS[4]
    both = frames.concat([state, CLIPS[2]])
    prompts = frames.concat([words, PROMPTS[2]])

    def said(index: list[int], totals: list[int]) -> Tensor:
        plan = {"index_F": torch.tensor(index), "total_B": torch.tensor(totals)}
        return net(replace(both, **plan), prompts).velocity_FCHW

    plain, none = net(both, prompts).velocity_FCHW, said([-1] * 10, [-1, -1])
    told = said([0, 2, 5, 6, *range(6)], [8, 6])
    longer = said([0, 2, 5, 6, *range(6)], [9, 6])
    assert torch.isfinite(told).all()
    assert not torch.allclose(none[:4], told[:4], atol=1e-3)
    assert not torch.allclose(told[:4], longer[:4], atol=1e-3)
    close(told[4:], longer[4:])
    assert plain.shape == none.shape
