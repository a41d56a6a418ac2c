"""Networks: a state of visible frames in, a prediction out.

A family is a record of settings and the network that is built from it. To add one: write both, the
network as a ``VideoNetwork``, and enter them in ``FAMILIES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowcept.networks.base import VideoNetwork
from flowcept.networks.motion import MotionConfig
from flowcept.networks.motion_video import MotionVideo
from flowcept.networks.pretrained import Backbone, BackboneConfig
from flowcept.networks.transformer import Transformer, TransformerConfig

__all__ = ["FAMILIES", "Family", "VideoNetwork", "build_network", "family_of"]


@dataclass(frozen=True)
class Family:
    """A kind of network: its settings, and how it is built from them and the process's shift."""

    config: type
    network: type[Any]  # a VideoNetwork


FAMILIES: dict[str, Family] = {
    "transformer": Family(TransformerConfig, Transformer),
    "motion": Family(MotionConfig, MotionVideo),
    "pretrained": Family(BackboneConfig, Backbone),
}


def family_of(config: object) -> str:
    """The name of the family whose settings these are."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_network(config: object, shift: float) -> VideoNetwork:
    """A network with fresh weights."""
    network: VideoNetwork = FAMILIES[family_of(config)].network(config, shift)
    return network
