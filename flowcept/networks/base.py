"""What training, sampling and model files ask of a network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest

TASKS = frozenset(["gen", "i2v", "interp", "extend"])


class VideoNetwork(nn.Module):
    """A state of visible frames and their clips' prompts in, a prediction out.

    What only one network has (an image token, an in-between prior) stays behind this line.
    """

    config: Any  # settings of its family
    shift: float  # the process's, of the denoising progress
    checkpoint_blocks: bool = False  # recompute blocks in the backward pass
    tasks: frozenset[str] = TASKS  # commands that it is for
    # Latent cells of which the sides of frames must be multiples, where a network makes frames of
    # any such size; 0: it makes them of its card's size alone.
    grid: int = 0
    extends_backward: bool = True  # whether it makes frames before those that are given
    steps: int | None = None  # of the sampler where nothing else is asked; None: the command's
    gapwise: bool = False  # takes each gap for itself: a card's lengths are those of one gap

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents that it reads; sides of 0: any."""
        shape: tuple[int, int, int] = self.config.latent_shape
        return shape

    @property
    @abstractmethod
    def tokens_per_frame(self) -> int:
        """Tokens that attend for each visible frame: the measure of a batch."""

    @property
    def largest_size(self) -> int:
        """The largest number of generated frames in a clip that its law of sizes reaches."""
        return int(self.config.largest_size)

    @abstractmethod
    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, missing frames and law of sizes for every clip of the state, float32."""

    @abstractmethod
    def sampling_bytes(
        self, frames: int, latent_shape: tuple[int, int, int], dtype: torch.dtype
    ) -> float:
        """Peak of sampling beside the weights, both sides of guidance counted as ``frames``."""

    @abstractmethod
    def blocks(self) -> Iterator[nn.Module]:
        """The parts that are equal in kind: to be compiled, sharded or checkpointed one by one."""

    @abstractmethod
    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths, with the options of ``torch.compile``."""

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold weights in a dtype where the network was made for that; else they are float32."""
        del dtype

    def bring_to(self, device: torch.device) -> None:
        """Bring the weights to the device where they are used."""
        self.to(device)

    def learn(self, *, whole: bool = True) -> None:
        """Let all that is to be trained have gradients, and be in training mode.

        Not ``whole``: only what was added to a pretrained network, if it is one.
        """
        del whole
        self.requires_grad_().train()

    def hidden_matrices(self) -> list[Tensor]:
        """Its trained matrices that Muon may move; none where weights are pretrained."""
        return []

    def at_rate(self, fps: float) -> Any:  # noqa: ANN401 - settings of its family
        """Take note of the clips' pictures per second; the network's settings."""
        del fps  # most networks know frames by their order alone
        return self.config

    @abstractmethod
    def grow_law(self, largest_size: int) -> Any:  # noqa: ANN401 - settings of its family
        """Let the law of sizes reach further; the network's new settings."""
