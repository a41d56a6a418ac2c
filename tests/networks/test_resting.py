"""Frames that rest: what is remembered of them is what was said, for every clip and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from test_model_file import CARD
from test_transformer import CLIPS, PROMPTS, close, network, outputs
from torch import Tensor

from flowcept.networks import attention
from flowcept.networks import transformer as model
from flowcept.networks.resting import Cache, Rest
from flowcept.networks.transformer import Network
from flowcept.process import state as frames
from flowcept.process.forward import ProcessConfig
from flowcept.process.sampler import Given, clip_generator, concat_prompts, guided, sample
from flowcept.process.state import FrameState, Prediction
from flowcept.settings import SampleConfig


def states(chosen: Sequence[int], shift: float = 0.0) -> FrameState:
    """Some clips; ``shift`` moves all their latents."""
    state = frames.concat([CLIPS[b] for b in chosen])
    return replace(state, latent_FCHW=state.latent_FCHW + shift)


def generated(state: FrameState) -> FrameState:
    """The same without given frames, which would not move."""
    return replace(state, role_F=torch.zeros_like(state.role_F))


def say(
    net: Network, state: FrameState, chosen: Sequence[int], cache: Cache | None, resting_F: Tensor
) -> Prediction:
    rest = None if cache is None else Rest(cache, tuple(chosen), resting_F)
    with torch.no_grad():
        return net(state, concat_prompts([PROMPTS[b] for b in chosen]), rest)


def resting(state: FrameState, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(state.time_F), generator=generator) < 0.5


@pytest.mark.parametrize("part", [None, 1, 700])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 2])
def test_awake_frames_see_what_they_saw(
    window: int, causal: bool, part: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an unchanged state the same is said again, whoever rests and whichever clips have left."""
    if part is not None:
        monkeypatch.setattr(model, "PART", part)
        monkeypatch.setattr(attention, "PART", part)
    net, cache = network(window, causal=causal), Cache()
    for seed, chosen in enumerate([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 2, 0], [4, 0], [0]]):
        state = states(chosen)
        rests_F = resting(state, seed)
        assert rests_F.any()
        assert not rests_F.all()
        whole, said = (say(net, state, chosen, c, rests_F) for c in (None, cache))
        silent_F = rests_F if seed else torch.zeros_like(rests_F)  # nothing is remembered at first
        close(said.velocity_FCHW[~silent_F], whole.velocity_FCHW[~silent_F])
        close(said.log_missing_F[~silent_F], whole.log_missing_F[~silent_F])
        assert not said.velocity_FCHW[silent_F].any()
        for a, b in zip(outputs(said)[2:], outputs(whole)[2:], strict=True):
            close(a, b)


def test_what_rests_is_not_evaluated() -> None:
    """Its new latent does not count, and no layer is asked about it."""
    net, cache, chosen = network(), Cache(), [0, 2]
    state = states(chosen)
    rests_F = torch.tensor([True, False, True, True, False, True, True, False, True, True])
    first = say(net, state, chosen, cache, rests_F)
    moved = state.latent_FCHW + rests_F[:, None, None, None]
    sizes: list[int] = []
    layer = net.blocks[0].up
    layer.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    said = say(net, replace(state, latent_FCHW=moved), chosen, cache, rests_F)
    close(said.velocity_FCHW[~rests_F], first.velocity_FCHW[~rests_F])
    assert sizes == [3 + 2], "three frames and the clips' own rows"


def test_a_causal_network_says_exactly_the_same() -> None:
    """Where those that rest come first, as in one that is made from left to right."""
    net, cache, chosen = network(causal=True), Cache(), [0, 2]
    rests_F = torch.tensor([True, True, False, False, True, True, True, False, False, False])
    state = generated(states(chosen))
    say(net, state, chosen, cache, rests_F)
    for shift in (0.3, 0.7):
        moved = generated(states(chosen, shift))
        moved = replace(
            moved,
            latent_FCHW=torch.where(
                rests_F[:, None, None, None], state.latent_FCHW, moved.latent_FCHW
            ),
        )
        whole, said = (say(net, moved, chosen, c, rests_F) for c in (None, cache))
        close(said.velocity_FCHW[~rests_F], whole.velocity_FCHW[~rests_F])
        before = say(net, state, chosen, None, rests_F)
        assert not torch.allclose(said.velocity_FCHW, before.velocity_FCHW, atol=1e-3)


@pytest.mark.parametrize("change", ["a name", "a length"])
def test_other_clips_are_learned_anew(change: str) -> None:
    net, cache = network(), Cache()
    say(net, states([0]), [0], cache, torch.zeros(4, dtype=torch.bool))
    state = CLIPS[4] if change == "a name" else states([2])
    name = 4 if change == "a name" else 0
    rests_F = torch.ones(len(state.time_F), dtype=torch.bool)
    said = net(state, PROMPTS[name], Rest(cache, (name,), rests_F))
    whole = net(state, PROMPTS[name])
    for a, b in zip(outputs(said), outputs(whole), strict=True):
        close(a, b)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_evaluates_each_frame_for_as_many_steps_as_it_flows(guidance: float) -> None:
    """And once more at ``tau = 1`` where it has finished by then; before, all that are visible."""
    steps, frames_made = 6, 5
    net = network()
    evaluated: list[int] = []
    hook = lambda _, inputs: evaluated.append(len(inputs[0]))  # noqa: E731
    net.blocks[0].up.register_forward_pre_hook(hook)
    made: dict[bool, Tensor] = {}
    counts: dict[bool, int] = {}
    for cached in (True, False):
        evaluated.clear()
        (made[cached],) = sample(
            guided(net, [PROMPTS[0]], [PROMPTS[1]], guidance, guidance, cached=cached),
            [Given(torch.zeros(0, 3, 4, 4), (True,))],
            [clip_generator(3)],
            SampleConfig(steps=steps, frames=frames_made),
            ProcessConfig(),
            max_length=8,
        )
        sides = 1 if guidance == 1 else 2
        counts[cached] = sum(evaluated) // sides - len(evaluated)  # without the clip's own rows
    assert counts[True] == steps * frames_made + 1, "one had finished at tau = 1: the start frame"
    assert counts[False] > counts[True] + frames_made
    assert made[True].shape == made[False].shape


@pytest.mark.parametrize("num_given", [0, 2])
def test_a_causal_autoregressive_network_makes_exactly_the_same(num_given: int) -> None:
    """Every frame is evaluated while it flows; those before it only when it appears."""
    steps, frames_made = 3, 6
    net = network(causal=True)
    process = ProcessConfig("autoregressive")
    evaluated: list[int] = []
    hook = lambda _, inputs: evaluated.append(len(inputs[0]))  # noqa: E731
    net.blocks[0].up.register_forward_pre_hook(hook)
    given = Given(
        torch.randn(num_given, 3, 4, 4, generator=clip_generator(0)),
        (num_given == 0, *[False] * (num_given - 1), *[True] * (num_given > 0)),
    )
    made, counts = [], []
    for cached in (True, False):
        evaluated.clear()
        (latent,) = sample(
            guided(net, [PROMPTS[0]], [PROMPTS[1]], 2.0, 1.0, cached=cached),
            [given],
            [clip_generator(3)],
            SampleConfig(steps=steps, frames=frames_made),
            process,
            max_length=8,
        )
        made.append(latent)
        counts.append(sum(evaluated) // 2 - len(evaluated))  # without the clip's own rows
    close(*made)
    visible = range(num_given + 1, frames_made + 1)  # while each generated frame flows
    assert counts[1] == steps * sum(visible)
    later = sum(visible[1:]) + (steps - 1) * len(visible[1:])
    assert counts[0] == steps * visible[0] + later, "the first frame flows before tau = 1"


@pytest.mark.parametrize(
    ("kind", "causal", "rests"),
    [
        ("flowception", False, True),
        ("full-sequence", False, False),
        ("autoregressive", False, False),
        ("autoregressive", True, True),
    ],
)
def test_frames_rest_where_they_do_not_answer_to_later_ones(
    kind: str, causal: bool, rests: bool
) -> None:
    network_config = replace(CARD.network, causal=causal)
    card = replace(CARD, network=network_config, process=ProcessConfig(kind))
    assert card.rests == rests
