"""When frames appear: the law of a hidden frame's delay (arXiv 2512.11438, section 3).

``kappa(tau)`` is the probability that a frame has appeared by extended time ``tau``; it rises from
0 at 0 to 1 at 1. Everything else follows from it, so value, derivative and inverse of a schedule
stand together here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """One increasing function of ``tau`` in [0, 1]; tensors of any shape go in and come out."""

    def kappa(self, tau: Tensor) -> Tensor:
        """Probability in [0, 1] that a frame has appeared by ``tau`` in [0, 1]."""
        ...

    def derivative(self, tau: Tensor) -> Tensor:
        """``d kappa / d tau``, per unit of ``tau``."""
        ...

    def inverse(self, probability: Tensor) -> Tensor:
        """The ``tau`` at which ``kappa`` reaches ``probability``: a delay, from a uniform draw."""
        ...


@dataclass(frozen=True)
class Linear:
    """``kappa = tau``: frames appear evenly. The paper's choice."""

    def kappa(self, tau: Tensor) -> Tensor:
        return tau

    def derivative(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau)

    def inverse(self, probability: Tensor) -> Tensor:
        return probability


@dataclass(frozen=True)
class Power:
    """``kappa = tau ** exponent``: over 1 frames appear late, far under 1 nearly all at once."""

    exponent: float

    def kappa(self, tau: Tensor) -> Tensor:
        return tau**self.exponent

    def derivative(self, tau: Tensor) -> Tensor:
        return self.exponent * tau ** (self.exponent - 1)

    def inverse(self, probability: Tensor) -> Tensor:
        return probability ** (1 / self.exponent)


def jump(schedule: Schedule, start: float, end: float) -> float:
    """Probability that a frame hidden at ``tau = start`` has appeared by ``end``; 1 at ``end`` 1.

    ``(kappa(end) - kappa(start)) / (1 - kappa(start))``.
    """
    before, after = schedule.kappa(torch.tensor([start, end], dtype=torch.float64)).tolist()
    return 1.0 if end >= 1 else float((after - before) / (1 - before))


LEAST_EXPONENT = 0.01  # under it more than one delay in a thousand is 0 in float64


def parse_schedule(name: str) -> Schedule:
    """The schedule called ``linear`` or ``power:EXPONENT``, for example ``power:0.25``.

    Raises ``ValueError`` for any other name and for an exponent under ``LEAST_EXPONENT``.
    """
    kind, _, written = name.partition(":")
    if name == "linear":
        return Linear()
    try:
        exponent = float(written)
    except ValueError:
        exponent = math.nan
    if kind == "power" and LEAST_EXPONENT <= exponent < math.inf:
        return Power(exponent)
    raise ValueError(
        f"unknown schedule {name!r}: use linear or power:EXPONENT, the exponent at least "
        f"{LEAST_EXPONENT}"
    )
