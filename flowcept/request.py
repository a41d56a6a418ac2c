"""A request: what a model's file says, prompts, given frames and the sampler, put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from flowcept.model_file import Weights
from flowcept.process.guidance import guided
from flowcept.process.sampler import Step, sample_steps
from flowcept.process.state import Given
from flowcept.settings import SampleConfig


def from_nothing(weights: Weights, device: torch.device | None = None) -> Given:
    """The start of a clip without any given frame, as in text-to-video."""
    return Given(torch.zeros(0, *weights.network.latent_shape, device=device), (True,))


def request(
    weights: Weights,
    given: Sequence[Given],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
) -> Iterator[Step]:
    """Sample a clip for each given start, step by step (``sampler.sample_steps``).

    Lengths are bounded by those trained. Where no prompt differs from its negative one there is
    nothing to lean to: the network is asked once, not twice, a step.
    """
    text, card = weights.text, weights.card
    leans = list(prompts) != list(negative_prompts)
    model = guided(
        weights.network,
        [text([prompt]) for prompt in prompts],
        [text([prompt]) for prompt in negative_prompts],
        config.guidance if leans else 1.0,
        cached=config.cache,
    )
    bounds = {"min_length": card.min_length, "max_length": card.max_length}
    return sample_steps(model, given, generators, config, weights.process, **bounds)
