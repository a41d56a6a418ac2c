"""Models in less memory, and how much they take; the help of each flag names its price.

Weights are those of the network, the codec and a prompt encoder that is read from a folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks import VideoNetwork
from flowcept.networks.pretrained import Backbone
from flowcept.networks.recipes import RecipeEncoder
from flowcept.settings import OFFLOAD

IN_FLIGHT = 2  # blocks on the device: one works, the next one comes


@dataclass(frozen=True)
class Thrift:
    """What a model does to take less memory. Only the first leaves its clips as they are."""

    offload: str = "none"  # encoder: the prompt encoder leaves; blocks: and blocks come one by one
    fp8: bool = False  # the network's weights in 8 bits
    tiling: bool = False  # pictures are decoded in overlapping tiles

    def __post_init__(self) -> None:
        OFFLOAD.check("offload", self.offload)

    def apply(self, weights: Weights, dtype: torch.dtype) -> None:
        """Let a model take less memory, whose weights are not on their device yet.

        Raises ``UserError`` where it is not a pretrained one.
        """
        network, text, codec = weights.network, weights.text, weights.codec
        if self == Thrift():
            return
        if not (isinstance(network, Backbone) and isinstance(text, RecipeEncoder)):
            name = next(name for name, value in vars(self).items() if value not in ("none", False))
            kinds = "pretrained video models and models trained from them"
            raise UserError(f"`{name}` is for {kinds}: leave it out")
        text.let_go = self.offload != "none"
        if self.fp8:
            network.hold_in_8_bits(dtype)
        network.block_by_block = self.offload == "blocks"
        codec.tiled = self.tiling


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(weight.nbytes for weight in module.parameters())


def peak(weights: Weights, work: float, device: torch.device) -> float:
    """Most bytes of weights and work at once, where sampling and decoding take ``work``."""
    text, codec = weights.text, bytes_of(weights.codec)
    network = _resident(weights.network, device)
    if not isinstance(text, RecipeEncoder):
        return network + codec + bytes_of(text) + work
    if text.let_go:
        return codec + max(text.nbytes, network + work)
    return codec + text.nbytes + network + work


def _resident(network: VideoNetwork, device: torch.device) -> int:
    """Bytes of a network's weights that lie on the device at once."""
    whole = bytes_of(network)
    if not (isinstance(network, Backbone) and network.block_by_block) or device.type == "cpu":
        return whole
    blocks = [bytes_of(block) for block in network.blocks()]
    return whole - sum(blocks) + IN_FLIGHT * max(blocks)
