"""Sizes of frames, height and width in pixels: those that a model makes, the nearest of them."""

from __future__ import annotations

import math

from flowcept.data.buckets import Size, nearest, of_area
from flowcept.model_file import Card, Weights
from flowcept.settings import sides


def step_of(weights: Weights) -> int:
    """Pixels of which both sides must be multiples; 0: the model makes frames of one size."""
    return weights.network.grid * weights.codec.config.compression


def words(size: Size) -> str:
    """A size as people write it, width first."""
    height, width = size
    return f"{width}x{height}"


def own_words(card: Card) -> str:
    """The size of a model's frames, in words."""
    return "the pictures' own size" if card.any_size else words(card.size)


def rounded(size: str, card: Card, step: int) -> tuple[Size, list[str]]:
    """The size on the grid that is nearest to one that was asked for, and notes on it.

    Raises ``UserError`` for what is no size.
    """
    asked = sides(size)
    height, width = (max(round(side / step), 1) * step for side in asked)
    made, notes = (height, width), []
    if made != asked:
        told = f"{words(asked)} becomes {words(made)}"
        notes.append(f"`size={size}`: sides must be multiples of {step}; {told}")
    learned = learned_sizes(card)
    if card.steps and made not in learned:
        known = ", ".join(map(words, learned))
        notes.append(f"{words(made)} is new to this model: its training clips have {known}")
    return made, notes


def learned_sizes(card: Card) -> list[Size]:
    """The sizes of the clips that a model was trained on."""
    return [sides(size) for size in card.sizes] or [card.size]


def of_aspect(given: Size, card: Card, step: int) -> Size:
    """The size of the aspect of given pictures: of several that were learned the nearest.

    Else it is the pictures' own where that is on the grid and has half of the usual area to all of
    it, so that their pixels can stay, or it has about the usual area.
    """
    if len(card.sizes) > 1:
        return nearest(given, learned_sizes(card))
    (height, width), area = given, math.prod(card.size)
    on_grid = height % step == 0 and width % step == 0
    if on_grid and area / 2 <= height * width <= area:
        return given
    return of_area(area, width / height, step)
