"""Networks: a state of visible frames in, a prediction out.

A family is a record of settings and the network that is built from it. To add one: write both,
give the network what ``VideoNetwork`` asks for, and enter it in ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest


class VideoNetwork(Protocol):
    """What training, sampling and model files ask of a network; it is an ``nn.Module`` too."""

    checkpoint_blocks: bool  # recompute blocks in the backward pass

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents that it reads."""
        ...

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that attend for each visible frame: the measure of a batch."""
        ...

    @property
    def largest_size(self) -> int:
        """The largest number of generated frames in a clip that its law of sizes reaches."""
        ...

    def __call__(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, missing frames and law of sizes for every clip of the state."""
        ...

    def blocks(self) -> Iterator[nn.Module]:
        """The parts that are equal in kind: to be compiled, sharded or checkpointed one by one."""
        ...

    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths."""
        ...

    def grow_law(self, largest_size: int) -> None:
        """Let the law of sizes reach further."""
        ...


@dataclass(frozen=True)
class Family:
    """A kind of network: its settings, and how it is built from them and the process's shift."""

    config: type
    network: Callable[[Any, float], VideoNetwork]


FAMILIES: dict[str, Family] = {"transformer": Family(TransformerConfig, Transformer)}


def family_of(config: object) -> str:
    """The name of the family whose settings these are."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_network(config: object, shift: float) -> VideoNetwork:
    """A network with fresh weights."""
    return FAMILIES[family_of(config)].network(config, shift)
