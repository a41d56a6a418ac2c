"""What training, sampling and model files ask of a network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import nn

from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest


class VideoNetwork(nn.Module):
    """A state of visible frames and their clips' prompts in, a prediction out.

    What only one network has (an image token, an in-between prior) stays behind this line.
    """

    shift: float  # the process's, of the denoising progress
    checkpoint_blocks: bool = False  # recompute blocks in the backward pass

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents that it reads."""

    @property
    @abstractmethod
    def tokens_per_frame(self) -> int:
        """Tokens that attend for each visible frame: the measure of a batch."""

    @property
    @abstractmethod
    def largest_size(self) -> int:
        """The largest number of generated frames in a clip that its law of sizes reaches."""

    @abstractmethod
    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, missing frames and law of sizes for every clip of the state, float32."""

    @abstractmethod
    def blocks(self) -> Iterator[nn.Module]:
        """The parts that are equal in kind: to be compiled, sharded or checkpointed one by one."""

    @abstractmethod
    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths, with the options of ``torch.compile``."""

    @abstractmethod
    def grow_law(self, largest_size: int) -> Any:  # noqa: ANN401 - settings of its family
        """Let the law of sizes reach further; the network's new settings."""
