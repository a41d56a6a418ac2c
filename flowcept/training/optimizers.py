"""What moves the weights: Muon the hidden matrices of a new network, AdamW all other weights.

Muon (Jordan and others, 2024; scaled as in arXiv 2502.16982) makes every singular value of a
matrix's update about equal. Where a step holds many clips it needs fewer steps for the same loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcept.settings import OptimizerSettings

MUON_RATE = 5.0  # times the learning rate; an update's root mean square is then about the rate


class Optimizers:
    """The optimisers of all trained weights; only matrices get weight decay."""

    def __init__(
        self, weights: Sequence[Tensor], hidden: Sequence[Tensor], settings: OptimizerSettings
    ) -> None:
        """``hidden`` are those of the weights that Muon may move."""
        chosen = {id(weight) for weight in hidden} if settings.muon else set[int]()
        others = [weight for weight in weights if id(weight) not in chosen]
        decay, rate = settings.weight_decay, settings.learning_rate
        self.each: dict[str, torch.optim.Optimizer] = {}
        if chosen:
            group = {"params": list(hidden), "times": MUON_RATE}
            self.each["muon"] = torch.optim.Muon(
                [group], rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        groups: list[dict[str, Any]] = [
            {"params": [w for w in others if w.ndim > 1], "weight_decay": decay},
            {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = weights[0].device.type in ("cpu", "cuda")
        self.each["adamw"] = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), fused=fused)

    def _groups(self) -> Iterator[dict[str, Any]]:
        for one in self.each.values():
            yield from one.param_groups

    def step(self, rate: float) -> None:
        """Move the weights by their gradients at this learning rate, and forget the gradients."""
        for group in self._groups():
            group["lr"] = rate * group.get("times", 1.0)
        for one in self.each.values():
            one.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.each.values():
            one.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on, by the optimiser's name."""
        return {name: one.state_dict() for name, one in self.each.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ``KeyError`` or ``ValueError`` if it is of other weights."""
        if "param_groups" in state:  # of a run before there was Muon
            state = {"adamw": state}
        for name, one in self.each.items():
            one.load_state_dict(state[name])
