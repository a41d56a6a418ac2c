"""What travels between the CPU and a device while a clip is sampled by the real network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_device import FakeDevice
from fixtures_network import FORMS, SMALL
from oracle import generators

from flowcept.networks import attention
from flowcept.networks.transformer import Transformer
from flowcept.process.forward import Flowception
from flowcept.process.guidance import guided
from flowcept.process.sampler import sample_steps
from flowcept.process.state import Given, PromptTokens, Rest
from flowcept.settings import SampleConfig

GAPS = [(True,), (False, True), (False, True, False), (True, False, True, True)]


def opened(net: Transformer) -> Transformer:
    """With weights that are not zero, so that nothing is silent."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return net.eval()


@FORMS
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("between", [0, 1])
def test_an_evaluation_moves_one_tensor_where_lengths_changed_and_none_where_not(
    pooled: bool, between: int, guidance: float, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In at most one, out none; a sampler's step adds one each way before ``tau = 1`` alone."""
    monkeypatch.setattr(attention, "xformers_ops", lambda: None)
    torch.manual_seed(0)
    net = opened(Transformer(replace(SMALL, between=between, pooled=pooled), shift=1.0))
    generator = torch.Generator().manual_seed(1)
    shape, config = net.latent_shape, SampleConfig(steps=5, max_length=9)
    evaluated: list[tuple[object, int, int]] = []  # what a layout is made of, and journeys

    with FakeDevice() as device:
        device.module(net)

        def counted(state: object, prompt: PromptTokens, rest: Rest) -> object:
            before = len(device.into), len(device.out)
            said = net(state, prompt, rest)
            into, out = len(device.into) - before[0], len(device.out) - before[1]
            # Frames that finish change who is between two finished ones, and who rests.
            finished = rest.finished_F.tolist() if between or rest.may_rest else None
            evaluated.append(((state.lengths, finished, rest.may_rest), into, out))
            return said

        def tokens(count: int) -> PromptTokens:
            token_SD = torch.randn(count, SMALL.text_width, generator=generator)
            return PromptTokens(token_SD.to("cuda"), (count,))

        given = [
            Given(torch.randn(len(gaps) - 1, *shape, generator=generator).to("cuda"), gaps)
            for gaps in GAPS
        ]
        prompts, away = [tokens(2), tokens(3), tokens(2), tokens(4)], [tokens(1)] * 4
        model = guided(counted, prompts, away, guidance, cached=cached)
        seeds = generators(len(given), 0)
        steps = sample_steps(model, given, seeds, config, Flowception(), max_length=9)
        for step in steps:
            own_in, own_out = len(device.into), len(device.out)
            if step.index:
                _, into, out = evaluated[-1]
                assert own_in - into <= (step.index <= config.steps), device.into
                assert own_out - out <= (step.index <= config.steps), device.out
            device.into.clear()
            device.out.clear()

    assert len(evaluated) > config.steps
    made_of = [None, *(made for made, _, _ in evaluated)]
    for before, (made, into, out) in zip(made_of, evaluated, strict=False):
        assert out == 0
        assert into <= (made != before), (made, before)
    assert any(into for _, into, _ in evaluated)
