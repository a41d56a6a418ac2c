"""Pretrained transformers behind the protocol of networks, held against diffusers itself."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import fixtures_diffusers as fixtures
import pytest
import torch
from fake_device import FakeDevice
from torch.nn import functional as F

from flowcept.errors import UserError
from flowcept.networks import attention, build_network
from flowcept.networks.pretrained import (
    LTX,
    NOISE_LEVELS,
    SKYREELS,
    WAN,
    WAN_TOKENS,
    Backbone,
    BackboneConfig,
    check_settings,
    wan_rotary,
)
from flowcept.process import state as frames
from flowcept.process.forward import shifted
from flowcept.process.state import FrameState, PromptTokens, Role

fixtures.require()

SHIFT, FPS, SIDE, CHANNELS = 3.0, 25.0, 4, 8
LENGTHS = (3, 1, 5)
MAKERS = {
    LTX: fixtures.ltx_transformer,
    WAN: fixtures.wan_transformer,
    SKYREELS: fixtures.skyreels_transformer,
}
ALL = pytest.mark.parametrize("source", MAKERS)


def config_of(source, transformer):
    settings = {name: value for name, value in transformer.config.items() if name[0] != "_"}
    return BackboneConfig(
        source, json.dumps(settings), CHANNELS, SIDE, SIDE, fixtures.TEXT_WIDTH,
        pictures_per_latent=8, compression=32, fps=FPS, largest_size=6,
    )  # fmt: skip


@pytest.fixture(params=MAKERS)
def pair(request):
    """A plain transformer, and one of the same weights as a network of ours."""
    torch.manual_seed(0)
    plain = MAKERS[request.param]()
    network = Backbone(config_of(request.param, plain), SHIFT, copy.deepcopy(plain))
    return plain, network.eval()


def random_state(lengths=LENGTHS, seed=0, same_times=False, keyframe=False):
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    time_F = torch.rand(count, generator=generator)
    time_F = torch.full((count,), 0.4) if same_times else time_F
    role_F = torch.zeros(count, dtype=torch.long)
    role_F[0] = Role.PASSIVE
    time_F[0] = 0.4 if same_times else 1.0
    return FrameState(
        latent_FCHW=torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator),
        time_F=time_F,
        role_F=role_F,
        tau_B=torch.rand(len(lengths), generator=generator),
        open_first_B=torch.arange(len(lengths)) % 2 == 1,
        lengths=tuple(lengths),
        keyframe_F=torch.arange(count) == count - 1 if keyframe else None,
    )


def random_prompt(counts=(4, 2, 7), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return PromptTokens(torch.randn(sum(counts), fixtures.TEXT_WIDTH, generator=generator), counts)


@torch.no_grad()
def said_by_diffusers(plain, state, prompt, one_time=False):
    """Clip by clip, a noise level for each token, as the pipelines call it; data - noise."""
    clips = zip(
        state.latent_FCHW.split(state.lengths),
        noise_of(plain, state).split(state.lengths),
        prompt.token_SD.split(prompt.lengths),
        strict=True,
    )
    call = CALLS[type(plain).__name__]
    return -torch.cat([call(plain, *clip, one_time) for clip in clips])


def ltx_call(plain, latent_FCHW, noise_F, text_SV, one_time):
    count, _, height, width = latent_FCHW.shape
    padded = F.pad(text_SV, (0, 0, 0, 9 - len(text_SV)), value=7.0)  # which the mask hides
    noise = noise_F[:1] if one_time else noise_F.repeat_interleave(height * width)[None]
    said = plain(
        hidden_states=latent_FCHW.permute(0, 2, 3, 1).flatten(0, 2)[None],
        encoder_hidden_states=padded[None],
        timestep=noise,
        encoder_attention_mask=(torch.arange(9) < len(text_SV))[None],
        num_frames=count,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / FPS, 32, 32),
        return_dict=False,
    )[0]
    return said[0].unflatten(0, (count, height, width)).permute(0, 3, 1, 2)


def wan_call(plain, latent_FCHW, noise_F, text_SV, one_time):
    padded = F.pad(text_SV, (0, 0, 0, WAN_TOKENS - len(text_SV)))
    tokens = latent_FCHW.shape[2] * latent_FCHW.shape[3] // 4
    noise = noise_F[:1] if one_time else noise_F.repeat_interleave(tokens)[None]
    latent = latent_FCHW.transpose(0, 1)[None]
    return plain(latent, noise, padded[None], return_dict=False)[0][0].transpose(0, 1)


def skyreels_call(plain, latent_FCHW, noise_F, text_SV, one_time):
    padded = F.pad(text_SV, (0, 0, 0, WAN_TOKENS - len(text_SV)))
    noise = noise_F[:1] if one_time else noise_F[None]
    latent = latent_FCHW.transpose(0, 1)[None]
    forced = {"enable_diffusion_forcing": not one_time, "fps": [1], "return_dict": False}
    return plain(latent, noise, padded[None], **forced)[0][0].transpose(0, 1)


CALLS = {LTX: ltx_call, WAN: wan_call, SKYREELS: skyreels_call}


def noise_of(plain, state):
    noise_F = NOISE_LEVELS * (1 - shifted(state.time_F, SHIFT))
    return noise_F.floor() if type(plain).__name__ == SKYREELS else noise_F


@pytest.mark.parametrize("one_time", [False, True])
def test_at_first_the_velocity_is_the_pretrained_one(pair, one_time):
    """Frames as entries of the batch say what whole clips say, whatever is told beside them."""
    plain, network = pair
    state, prompt = random_state(same_times=one_time), random_prompt()
    with torch.no_grad():
        said = network(state, prompt).velocity_FCHW
    expected = said_by_diffusers(plain, state, prompt, one_time)
    assert float(expected.abs().mean()) > 0.1
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)


def test_the_comparison_would_see_a_wrong_sign_or_time(pair):
    plain, network = pair
    state, prompt = random_state(), random_prompt()
    with torch.no_grad():
        said = network(state, prompt).velocity_FCHW
        later = network(replace(state, time_F=state.time_F * 0.9), prompt).velocity_FCHW
        swapped = network(state, replace(prompt, token_SD=prompt.token_SD.flip(0))).velocity_FCHW
    expected = said_by_diffusers(plain, state, prompt)
    for wrong in (-said, later, swapped):
        assert float((wrong - expected).abs().max()) > 1e-3


def test_a_sampler_may_say_the_progress(pair):
    _, network = pair
    state, prompt = random_state(), random_prompt()
    told = replace(state, progress_F=shifted(state.time_F, SHIFT), time_F=state.time_F * 0)
    with torch.no_grad():
        one, other = network(state, prompt), network(told, prompt)
    assert torch.equal(one.velocity_FCHW, other.velocity_FCHW)


def test_a_pack_says_of_each_clip_what_it_says_of_it_alone(pair):
    """And in any order; with weights that are not those of the start."""
    _, network = pair
    open_gates(network)
    state, prompt = random_state(keyframe=True), random_prompt()
    texts = prompt.token_SD.split(prompt.lengths)
    with torch.no_grad():
        whole = network(state, prompt)
        for order in ([2], [1], [2, 0, 1]):
            tokens = PromptTokens(
                torch.cat([texts[b] for b in order]), tuple(prompt.lengths[b] for b in order)
            )
            said = network(frames.select(state, order), tokens)
            for name in ("velocity_FCHW", "log_missing_F"):
                expected = frames.rows_of(order, getattr(whole, name), state.lengths)
                torch.testing.assert_close(getattr(said, name), expected, atol=2e-5, rtol=1e-4)
            for name in ("log_missing_first_B", "size_logits_BK"):
                expected = getattr(whole, name)[order]
                torch.testing.assert_close(getattr(said, name), expected, atol=2e-5, rtol=1e-4)


def open_gates(network):
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)


def test_everything_told_changes_velocity_and_laws_once_gates_are_open(pair):
    _, network = pair
    state, prompt = random_state(), random_prompt()
    open_gates(network)
    changes = {
        "role_F": torch.full_like(state.role_F, Role.ACTIVE),
        "tau_B": state.tau_B / 2,
        "open_first_B": ~state.open_first_B,
        "keyframe_F": torch.arange(len(state.time_F)) == len(state.time_F) - 1,
    }
    with torch.no_grad():
        plain = network(state, prompt)
        for name, value in changes.items():
            other = network(replace(state, **{name: value}), prompt)
            for said in ("velocity_FCHW", "log_missing_F", "size_logits_BK"):
                gap = (getattr(plain, said) - getattr(other, said)).abs().max()
                assert float(gap) > 1e-3, (name, said)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_new_weight_learns_by_the_second_step(pair, checkpointing):
    """The same gradients whether blocks are recomputed or not."""
    _, network = pair
    network.train()
    network.checkpoint_blocks = checkpointing
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(network).backward()
        kept = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        optimizer.step()
    silent = [n for n, _ in network.named_parameters() if n not in kept or not kept[n].any()]
    assert silent == []
    if checkpointing:
        network.checkpoint_blocks = False
        network.zero_grad()
        loss = loss_of(network)
        network.zero_grad()
        loss.backward()
        plain = {n: p.grad.clone() for n, p in network.named_parameters()}
        network.zero_grad()
        network.checkpoint_blocks = True
        loss_of(network).backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-5)


def loss_of(network):
    said = network(random_state(keyframe=True), random_prompt())
    target = random_state(seed=5).latent_FCHW
    squares = (said.velocity_FCHW - target).square().mean()
    laws = said.log_missing_F.exp().sum() - said.log_missing_first_B.sum()
    return squares + laws + (said.size_logits_BK.log_softmax(-1)[:, 2]).square().sum()


def test_the_transformer_stays_as_diffusers_built_it(pair):
    plain, network = pair
    assert network.transformer.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in network.transformer.modules()] == [type(m) for m in plain.modules()]


def test_a_copy_answers_for_itself(pair):
    _, network = pair
    with torch.no_grad():
        expected = network(random_state(), random_prompt()).velocity_FCHW
        twin = copy.deepcopy(network)
        network.transformer.proj_out.weight.zero_()
        assert torch.equal(twin(random_state(), random_prompt()).velocity_FCHW, expected)


def test_evaluations_copy_their_numbers_to_a_device_at_once(pair, monkeypatch):
    """A pack in one journey, the same pack again in none; nothing is read."""
    monkeypatch.setattr(attention, "xformers_ops", lambda: None)
    _, network = pair
    copies = []
    for lengths in (LENGTHS, LENGTHS, (2, 2, 4)):
        state, prompt = random_state(lengths), random_prompt()
        with torch.no_grad(), FakeDevice() as device:
            there = state.to("cuda"), replace(prompt, token_SD=prompt.token_SD.to("cuda"))
            device.into.clear()
            said = device.module(network)(*there)
            ours = [line for line in device.into if line.startswith(("pretrained", "layout"))]
            copies.append(len(ours))
            assert not device.out
            assert said.velocity_FCHW.is_cuda
    assert copies == [1, 0, 1]


def test_times_reach_the_embedder_as_float32_in_half_precision(pair):
    _, network = pair
    network.transformer.to(torch.bfloat16)
    inner = network.transformer
    embedder = inner.time_embed.emb if network.config.source == LTX else inner.condition_embedder
    waves = embedder.time_proj if network.config.source == LTX else embedder.timesteps_proj
    seen = []
    waves.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    state = random_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        said = network(state, random_prompt())
    assert torch.equal(seen[0], noise_of(inner, state))
    assert said.velocity_FCHW.dtype == said.size_logits_BK.dtype == torch.float32


@pytest.mark.parametrize("head_width", [16, 24, 128])
def test_wan_positions_are_those_of_its_table(head_width):
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    table = WanRotaryPosEmbed(head_width, (1, 2, 2), 64)
    cosine, sine = table(torch.zeros(1, 1, 3, 4, 6))
    axes = torch.meshgrid(*map(torch.arange, (3, 2, 3)), indexing="ij")
    position_FTA = torch.stack(axes, dim=-1).flatten(0, 2)[None].float()
    ours = wan_rotary(position_FTA, head_width)
    torch.testing.assert_close(ours[0], cosine, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[1], sine, atol=1e-6, rtol=0)


@ALL
def test_built_from_settings_alone(source):
    config = config_of(source, MAKERS[source]())
    network = build_network(config, SHIFT)
    said = network(random_state(), random_prompt())
    assert said.size_logits_BK.shape == (3, 7)
    assert network.grow_law(9).largest_size == 9
    assert network(random_state(), random_prompt()).size_logits_BK.shape == (3, 10)
    assert network.tokens_per_frame == (17 if source == LTX else 5)


@pytest.mark.parametrize(
    ("source", "change", "match"),
    [
        (LTX, {"patch_size": 2}, "patches"),
        (LTX, {"patch_size_t": 2}, "patches"),
        (LTX, {"in_channels": 9}, "more than a clip"),
        (WAN, {"patch_size": [2, 2, 2]}, "patches"),
        (WAN, {"in_channels": 36}, "more than a clip"),
        (WAN, {"image_dim": 8}, "picture beside"),
        (SKYREELS, {"num_frame_per_block": 5}, "block by block"),
    ],
)
def test_transformers_that_need_more_are_refused(source, change, match):
    settings = dict(MAKERS[source]().config) | change
    with pytest.raises(UserError, match=match):
        check_settings(source, settings)
