"""Frames that rest: what is remembered of them is what was said, for every clip and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures_network import CLIPS, FORMS, PROMPTS, close, network, outputs
from oracle import sample
from torch import Tensor

from flowcept.networks import attention, layers
from flowcept.networks.resting import Memory
from flowcept.networks.transformer import Transformer
from flowcept.process import state as frames
from flowcept.process.forward import Flowception
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator
from flowcept.process.state import FrameState, Given, Prediction, Rest
from flowcept.settings import SampleConfig

Kept = dict[str, Any]  # what a network remembers of one request


def states(chosen: Sequence[int]) -> FrameState:
    return frames.concat([CLIPS[b] for b in chosen])


def say(
    net: Transformer, state: FrameState, chosen: Sequence[int], kept: Kept | None, resting_F: Tensor
) -> Prediction:
    """What is said of clips some of whose frames rest; without ``kept`` every frame is evaluated.

    Who lies between two finished frames is told the same either way.
    """
    rest = Rest(tuple(chosen), resting_F, kept is not None, {} if kept is None else kept)
    with torch.no_grad():
        return net(state, frames.concat([PROMPTS[b] for b in chosen]), rest)


def some_of(state: FrameState, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(state.time_F), generator=generator) < 0.5


@FORMS
@pytest.mark.parametrize("chunk", [None, 1, 700])
@pytest.mark.parametrize("window", [0, 1, 2])
def test_awake_frames_see_what_they_saw(
    pooled: bool, window: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an unchanged state the same is said again, whoever rests and whichever clips have left."""
    if chunk is not None:
        monkeypatch.setattr(layers, "CHUNK", chunk)
        monkeypatch.setattr(attention, "PART", chunk)
    net, kept = network(window, pooled=pooled), {}
    for seed, chosen in enumerate([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 2, 0], [4, 0], [0]]):
        state = states(chosen)
        rests_F = some_of(state, seed)
        assert rests_F.any()
        assert not rests_F.all()
        whole, said = (say(net, state, chosen, memory, rests_F) for memory in (None, kept))
        silent_F = rests_F if seed else torch.zeros_like(rests_F)  # nothing is remembered at first
        close(said.velocity_FCHW[~silent_F], whole.velocity_FCHW[~silent_F])
        close(said.log_missing_F[~silent_F], whole.log_missing_F[~silent_F])
        assert not said.velocity_FCHW[silent_F].any()
        for a, b in zip(outputs(said)[2:], outputs(whole)[2:], strict=True):
            close(a, b)


@FORMS
def test_what_rests_is_not_evaluated(pooled: bool) -> None:
    """Its new latent does not count, and no layer is asked about it."""
    net, kept, chosen = network(pooled=pooled, between=0), {}, [0, 2]
    state = states(chosen)
    rests_F = torch.tensor([True, False, True, True, False, True, True, False, True, True])
    first = say(net, state, chosen, kept, rests_F)
    moved = state.latent_FCHW + rests_F[:, None, None, None]
    sizes: list[int] = []
    layer = net.layers[0].up
    layer.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    said = say(net, replace(state, latent_FCHW=moved), chosen, kept, rests_F)
    close(said.velocity_FCHW[~rests_F], first.velocity_FCHW[~rests_F])
    assert sizes == [3 + 2], "three frames and the clips' own rows"


@FORMS
def test_what_is_remembered_is_of_frames_as_they_were(pooled: bool) -> None:
    """A frame that moves while another rests changes what is said, also of itself."""
    net, kept, chosen = network(pooled=pooled), {}, [2]
    state = states(chosen)
    rests_F = torch.tensor([True, True, True, False, False, False])
    first = say(net, state, chosen, kept, rests_F)
    moved = state.latent_FCHW + ~rests_F[:, None, None, None]
    said = say(net, replace(state, latent_FCHW=moved), chosen, kept, rests_F)
    assert not torch.allclose(said.velocity_FCHW[3:], first.velocity_FCHW[3:], atol=1e-3)


@FORMS
@pytest.mark.parametrize("change", ["a name", "a length"])
def test_other_clips_are_learned_anew(pooled: bool, change: str) -> None:
    net, kept = network(pooled=pooled), {}
    say(net, states([0]), [0], kept, torch.zeros(4, dtype=torch.bool))
    state = CLIPS[4] if change == "a name" else states([2])
    name = 4 if change == "a name" else 0
    rests_F = torch.ones(len(state.time_F), dtype=torch.bool)
    said = net(state, PROMPTS[name], Rest((name,), rests_F, True, kept))
    whole = net(state, PROMPTS[name], Rest((name,), rests_F, False))
    for a, b in zip(outputs(said), outputs(whole), strict=True):
        close(a, b)


def test_a_memory_knows_names_and_lengths() -> None:
    memory = Memory()
    assert not memory.enter(["a", "b", "c"], [2, 1, 3])
    memory.image_token_BV = torch.arange(3.0)[:, None]
    of_frames = memory.whole("frames", torch.arange(6.0), None)
    of_rows = memory.whole("rows", torch.arange(9.0), None)
    assert (len(of_frames), len(of_rows)) == (6, 9)

    assert memory.enter(["c", "a"], [3, 2]), "one has left, the others stand in another order"
    assert memory.image_token_BV.flatten().tolist() == [2, 0]
    awake = torch.tensor([1])
    kept = memory.whole("frames", torch.tensor([-1.0]), awake)
    assert kept.tolist() == [3, -1, 5, 0, 1]
    assert memory.whole("rows", torch.tensor([-1.0]), awake).tolist() == [5, -1, 7, 8, 0, 1, 2]

    assert not memory.enter(["c", "a"], [3, 3])
    assert memory.image_token_BV is None


@FORMS
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_evaluates_each_frame_for_as_many_steps_as_it_flows(
    pooled: bool, guidance: float
) -> None:
    """And once more at ``tau = 1`` where it has finished by then; before, all that are visible."""
    steps, frames_made = 6, 5
    net = network(pooled=pooled)
    evaluated: list[int] = []
    hook = lambda _, inputs: evaluated.append(len(inputs[0]))  # noqa: E731
    net.layers[0].up.register_forward_pre_hook(hook)
    made: dict[bool, Tensor] = {}
    counts: dict[bool, int] = {}
    for cached in (True, False):
        evaluated.clear()
        (made[cached],) = sample(
            guided(net, [PROMPTS[0]], [PROMPTS[1]], guidance, cached=cached),
            [Given(torch.zeros(0, 3, 4, 4), (True,))],
            [clip_generator(3)],
            SampleConfig(steps=steps, frames=frames_made),
            Flowception(),
            max_length=8,
        )
        sides = 1 if guidance == 1 else 2
        counts[cached] = sum(evaluated) // sides - len(evaluated)  # without the clip's own rows
    assert counts[True] == steps * frames_made + 1, "one had finished at tau = 1: the start frame"
    assert counts[False] > counts[True] + frames_made
    assert made[True].shape == made[False].shape
