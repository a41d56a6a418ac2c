"""Classifier-free guidance with a network whose outputs follow from its prompt."""

from __future__ import annotations

import pytest
import torch

from flowcept.process import state as frames
from flowcept.process.guidance import guided
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest


class Prompted:
    """A network whose outputs follow from the mean of the prompt; its calls are kept."""

    def __init__(self) -> None:
        self.clips: list[int] = []
        self.rests: list[Rest] = []

    def __call__(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        assert rest is not None
        assert len(prompt.lengths) == len(state.lengths) == len(rest.names)
        assert len(rest.finished_F) == len(state.time_F)
        self.clips.append(len(state.lengths))
        self.rests.append(rest)
        level_B = torch.stack([part.mean() for part in prompt.token_SD.split(list(prompt.lengths))])
        level_F = level_B[state.clip_F]
        logits_BK = torch.stack([level_B * 0, level_B, -level_B], 1)
        velocity_FCHW = state.latent_FCHW + level_F[:, None, None, None]
        return Prediction(velocity_FCHW, level_F * 2, level_B * 3, logits_BK)


def pack() -> tuple[FrameState, list[PromptTokens], list[PromptTokens]]:
    state = FrameState(
        torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(5),
        torch.zeros(5).long(), torch.zeros(2), torch.ones(2).bool(), (2, 3),
    )  # fmt: skip
    prompts = [PromptTokens(torch.full((n, 1), v), (n,)) for n, v in ((2, 1.0), (3, 2.0))]
    away = [PromptTokens(torch.full((n, 1), v), (n,)) for n, v in ((1, -1.0), (2, 0.5))]
    return state, prompts, away


FLOWING = torch.zeros(5, dtype=torch.bool)


def test_guidance_of_one_is_one_plain_call() -> None:
    state, prompts, away = pack()
    network = Prompted()
    said = guided(network, prompts, away, 1.0)(state, [0, 1], FLOWING, may_rest=False)
    assert network.clips == [2]
    assert said.log_missing_first_B.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("guidance", [3.0, 0.0, 2.5])
def test_guidance_leans_the_velocity_alone_in_one_packed_call(guidance: float) -> None:
    state, prompts, away = pack()
    network = Prompted()
    said = guided(network, prompts, away, guidance)(state, [0, 1], FLOWING, may_rest=False)
    assert network.clips == [4]
    wanted, unwanted = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    level = unwanted + guidance * (wanted - unwanted)
    torch.testing.assert_close(
        said.velocity_FCHW[:, 0, 0, 0], state.latent_FCHW[:, 0, 0, 0] + level[state.clip_F]
    )
    plain = guided(network, prompts, away, 1.0)(state, [0, 1], FLOWING, may_rest=False)
    for name in ("log_missing_F", "log_missing_first_B", "size_logits_BK"):
        assert torch.equal(getattr(said, name), getattr(plain, name)), name


def test_guidance_names_clips_by_their_place_in_the_request() -> None:
    """When clips have finished, the prompts of those that still run are used."""
    state, prompts, away = pack()
    one = FrameState(
        state.latent_FCHW[:1], torch.zeros(1), torch.zeros(1).long(), torch.zeros(1),
        torch.ones(1).bool(), (1,),
    )  # fmt: skip
    network = Prompted()
    said = guided(network, prompts, away, 1.0)(one, [1], FLOWING[:1], may_rest=False)
    assert said.log_missing_first_B.tolist() == [6.0]
    guided(network, prompts, away, 2.0)(one, [1], FLOWING[:1], may_rest=False)
    assert [rest.names for rest in network.rests] == [((0, 1),), ((0, 1), (1, 1))]


@pytest.mark.parametrize("cached", [True, False])
def test_frames_rest_where_they_may_and_should(cached: bool) -> None:
    """Both sides' frames are named, and one memory serves all evaluations of a request."""
    state, prompts, away = pack()
    finished_F = torch.tensor([True, False, True, True, False])
    network = Prompted()
    model = guided(network, prompts, away, 2.0, cached=cached)
    for may_rest in (False, True, True):
        model(state, [0, 1], finished_F, may_rest)
        assert torch.equal(network.rests[-1].finished_F, torch.cat([finished_F, finished_F]))
    assert [rest.may_rest for rest in network.rests] == [False, cached, cached]
    assert all(rest.memory is network.rests[0].memory for rest in network.rests)
    guided(network, prompts, away, 2.0)(state, [0, 1], finished_F, may_rest=True)
    assert network.rests[-1].memory is not network.rests[0].memory


def test_prompts_end_to_end() -> None:
    _, prompts, _ = pack()
    both = frames.concat(prompts)
    assert both.lengths == (2, 3)
    assert both.token_SD.flatten().tolist() == [1, 1, 2, 2, 2]
