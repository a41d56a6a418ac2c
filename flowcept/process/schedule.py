"""When frames appear: the law of a hidden frame's delay (arXiv 2512.11438, section 3)."""

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """``kappa = tau ** exponent``, the probability that a frame has appeared by extended time tau.

    At exponent 1, the paper's choice, frames appear evenly; over it late, far under it nearly all
    at once. Tensors of any shape go in and come out, all in [0, 1].
    """

    exponent: float = 1.0

    def kappa(self, tau: Tensor) -> Tensor:
        """Probability that a frame has appeared by ``tau``."""
        return tau**self.exponent

    def inverse(self, probability: Tensor) -> Tensor:
        """The ``tau`` at which ``kappa`` reaches ``probability``: a delay, from a uniform draw."""
        return probability ** (1 / self.exponent)

    def jump(self, start: float, end: float) -> float:
        """Probability that a frame hidden at ``tau = start`` has appeared by ``end``; 1 at 1.

        ``(kappa(end) - kappa(start)) / (1 - kappa(start))``.
        """
        before, after = self.kappa(torch.tensor([start, end], dtype=torch.float64)).tolist()
        return 1.0 if end >= 1 else float((after - before) / (1 - before))


LEAST_EXPONENT = 0.01  # under it more than one delay in a thousand is 0 in float64


def parse_schedule(name: str) -> Schedule:
    """The schedule called ``linear`` or ``power:EXPONENT``, for example ``power:0.25``.

    Raises ``ValueError`` for any other name and for an exponent under ``LEAST_EXPONENT``.
    """
    exponent = 1.0 if name == "linear" else math.nan
    if name.startswith("power:"):
        with suppress(ValueError):
            exponent = float(name.removeprefix("power:"))
    if LEAST_EXPONENT <= exponent < math.inf:
        return Schedule(exponent)
    raise ValueError(f"unknown schedule {name!r}: linear or power:EXPONENT (>= {LEAST_EXPONENT})")
