"""The pipelines of diffusers that are known here, and the noise levels at which each samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowcept.networks.base import TASKS
from flowcept.networks.pretrained import LTX, SKYREELS, WAN


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
    tasks: frozenset[str] = frozenset(["gen"])  # for which it was trained
    backward: bool = False  # whether ``extend`` has a meaning at a clip's start too


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


WITH_PICTURE = frozenset(["gen", "i2v"])

_EARLY_LTX = Kind(LTX, "ltx", (512, 704), 25.0, 161, _of_ltx, tasks=WITH_PICTURE)
_WAN = Kind(WAN, "wan", (480, 832), 16.0, 81, _of_wan)
_SKYREELS = Kind(
    SKYREELS, "wan", (544, 960), 24.0, 97, _of_wan, tasks=WITH_PICTURE | {"extend"}
)  # fmt: skip

KINDS = {
    "LTXPipeline": _EARLY_LTX,
    "LTXImageToVideoPipeline": _EARLY_LTX,
    "LTXConditionPipeline": Kind(
        LTX, "later-ltx", (512, 704), 25.0, 161, _of_later_ltx, first_picture=True, tasks=TASKS,
        backward=True,
    ),
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": _WAN,
    "SkyReelsV2DiffusionForcingPipeline": _SKYREELS,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _SKYREELS,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _SKYREELS,
}  # fmt: skip


def kind_of(index: Mapping[str, Any]) -> Kind | None:
    """The kind of a pipeline by its ``model_index.json``; None where it is not known here.

    Wan's transformer for words and pictures (2.2, 5B) is told from that for words alone by a
    setting: it takes a noise level for every token, so that a first picture can be clean.
    """
    kind = KINDS.get(str(index.get("_class_name")))
    if kind is not None and index.get("expand_timesteps"):
        return replace(kind, tasks=WITH_PICTURE)
    return kind
