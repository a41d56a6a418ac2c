"""Sizes of frames, height and width in pixels: the nearest that a model's grid has."""

from __future__ import annotations

import math

from flowcept.model_file import Card, Weights
from flowcept.settings import sides

Size = tuple[int, int]


def step_of(weights: Weights) -> int:
    """Pixels of which both sides must be multiples; 0: the model makes frames of one size."""
    return weights.network.grid * weights.codec.config.compression


def words(size: Size) -> str:
    """As people write it, width first."""
    height, width = size
    return f"{width}x{height}"


def own_words(card: Card) -> str:
    """The size of a model's frames, in words."""
    return "the pictures' own size" if card.any_size else words(card.size)


def rounded(size: str, step: int) -> tuple[Size, list[str]]:
    """The size on the grid that is nearest to one that was asked for, and a note if it is another.

    Raises ``UserError`` for what is no size.
    """
    asked = sides(size)
    height, width = (max(round(side / step), 1) * step for side in asked)
    made = height, width
    note = f"`size={size}`: sides are multiples of {step}; {words(asked)} becomes {words(made)}"
    return made, [note] if made != asked else []


def of_aspect(given: Size, usual: Size, step: int) -> Size:
    """The size of the aspect of given pictures, as near as the grid has it.

    It is the pictures' own where that is on the grid and has half of the usual area to all of it,
    so that their pixels can stay; else it has about the usual area.
    """
    (height, width), area = given, math.prod(usual)
    on_grid = height % step == 0 and width % step == 0
    if on_grid and area / 2 <= height * width <= area:
        return given
    scale = math.sqrt(area / (height * width)) / step
    tall, wide = (max(round(side * scale), 1) * step for side in given)
    return tall, wide
