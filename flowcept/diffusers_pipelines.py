"""The pipelines of diffusers that are known here, and the noise levels at which each samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowcept.networks.pretrained import LTX, WAN


@dataclass(frozen=True)
class Kind:
    """A pipeline of diffusers, and what it makes where nothing else is asked."""

    transformer: str  # its class
    recipe: str  # of its prompts
    size: tuple[int, int]  # height and width in pixels
    fps: float
    pictures: int
    levels: Callable[[Any, int, int], None]  # sets its scheduler's noise levels
    first_picture: bool = False  # whether frames are placed at their first picture


def _of_ltx(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """Even noise levels, moved by the number of tokens of a clip where the scheduler wants that."""
    settings = scheduler.config
    few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    even = [1 - step / num_steps for step in range(num_steps)]
    scheduler.set_timesteps(sigmas=even, mu=tokens * slope + low - slope * few)


SLOW_SHARE = 0.025  # of the noise that the first half of LTX-Video's later steps takes away


def _of_later_ltx(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """Noise falls little and evenly in the first half of the steps, then by a parabola."""
    del tokens
    slow = num_steps // 2
    levels = [1 - SLOW_SHARE * step / slow for step in range(slow)]
    fast = num_steps - slow
    # Through the end of the straight line with its slope, down to 0 after the last step.
    slope = SLOW_SHARE / slow if slow else 0.0
    start = 1 - SLOW_SHARE * (slow > 0)
    bend = (start - slope * fast) / fast**2
    levels += [start - slope * step - bend * step**2 for step in range(fast)]
    scheduler.set_timesteps(sigmas=levels, mu=0.0)


def _of_wan(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """The scheduler's own."""
    del tokens
    scheduler.set_timesteps(num_steps)


KINDS = {
    "LTXPipeline": Kind(LTX, "ltx", (512, 704), 25.0, 161, _of_ltx),
    "LTXConditionPipeline": Kind(
        LTX, "later-ltx", (512, 704), 25.0, 161, _of_later_ltx, first_picture=True
    ),
    "WanPipeline": Kind(WAN, "wan", (480, 832), 16.0, 81, _of_wan),
}
