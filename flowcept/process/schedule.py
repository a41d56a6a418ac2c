"""When frames appear: the law of a hidden frame's delay (arXiv 2512.11438, section 3).

``kappa(tau)`` is the probability that a frame has appeared by extended time ``tau``; it rises from
0 at 0 to 1 at 1. Everything else follows from it, so value, derivative and inverse of a schedule
stand together here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """One increasing function of ``tau`` in [0, 1]; tensors of any shape go in and come out."""

    @abstractmethod
    def kappa(self, tau: Tensor) -> Tensor:
        """Probability in [0, 1] that a frame has appeared by ``tau`` in [0, 1]."""

    @abstractmethod
    def derivative(self, tau: Tensor) -> Tensor:
        """``d kappa / d tau``, per unit of ``tau``."""

    @abstractmethod
    def inverse(self, probability: Tensor) -> Tensor:
        """The ``tau`` at which ``kappa`` reaches ``probability``: a delay, from a uniform draw."""

    def hazard(self, tau: Tensor) -> Tensor:
        """``kappa' / (1 - kappa)``: the rate at which one still hidden frame appears."""
        return self.derivative(tau) / (1 - self.kappa(tau))

    def jump(self, start: float, end: float) -> float:
        """Probability that a frame hidden at ``start`` has appeared by ``end``; 1 at ``end`` 1."""
        before, after = self.kappa(torch.tensor([start, end], dtype=torch.float64)).tolist()
        return 1.0 if end >= 1 else float((after - before) / (1 - before))


@dataclass(frozen=True)
class Linear(Schedule):
    """``kappa = tau``: frames appear evenly. The paper's choice."""

    def kappa(self, tau: Tensor) -> Tensor:
        return tau

    def derivative(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau)

    def inverse(self, probability: Tensor) -> Tensor:
        return probability


@dataclass(frozen=True)
class Cosine(Schedule):
    """``kappa = (1 - cos(pi tau)) / 2``: few frames at either end, most in the middle."""

    def kappa(self, tau: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * tau)) / 2

    def derivative(self, tau: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi * tau)

    def inverse(self, probability: Tensor) -> Tensor:
        return torch.acos(1 - 2 * probability) / math.pi


@dataclass(frozen=True)
class Power(Schedule):
    """``kappa = tau ** exponent``: frames appear late where the exponent is over 1."""

    exponent: float = 2.0

    def kappa(self, tau: Tensor) -> Tensor:
        return tau**self.exponent

    def derivative(self, tau: Tensor) -> Tensor:
        return self.exponent * tau ** (self.exponent - 1)

    def inverse(self, probability: Tensor) -> Tensor:
        return probability ** (1 / self.exponent)


LEAST_EXPONENT = 0.01  # under it more than one delay in a thousand is 0 in float64


def parse_schedule(name: str) -> Schedule:
    """``linear``, ``cosine``, ``power`` (exponent 2) or ``power:EXPONENT``.

    Raises ``ValueError`` for any other name and for an exponent under ``LEAST_EXPONENT``.
    """
    kind, _, exponent = name.partition(":")
    if kind == "power":
        try:
            value = float(exponent or 2)
        except ValueError:
            value = math.nan
        if LEAST_EXPONENT <= value < math.inf:
            return Power(value)
    elif name == "linear":
        return Linear()
    elif name == "cosine":
        return Cosine()
    raise ValueError(
        f"unknown schedule {name!r}: use linear, cosine, power or power:EXPONENT, the exponent at "
        f"least {LEAST_EXPONENT}"
    )
