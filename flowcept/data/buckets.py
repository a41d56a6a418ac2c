"""Sizes of one area: every clip gets the one of which least of its picture is cut off.

Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Size = tuple[int, int]

ASPECTS = (16 / 9, 3 / 2, 4 / 3, 1.0, 3 / 4, 2 / 3, 9 / 16)  # width to height


def family(size: Size, step: int) -> tuple[Size, ...]:
    """A size and others of about its area, upright ones too; all sides are multiples of ``step``.

    Of two that are equally near in area and aspect the smaller one is taken.
    """
    height, width = size
    found = [_nearest(height * width, aspect, step) for aspect in (width / height, *ASPECTS)]
    return tuple(dict.fromkeys(found))


def _nearest(area: int, aspect: float, step: int) -> Size:
    """Of the sizes around an exact one that which is least off in area and aspect together."""
    exact = math.sqrt(area / aspect), math.sqrt(area * aspect)

    def off(size: Size) -> tuple[float, int]:
        height, width = size
        wrong = abs(math.log(height * width / area)) + abs(math.log(width / height / aspect))
        return round(wrong, 9), height * width

    heights, widths = (_around(side, step) for side in exact)
    return min(itertools.product(heights, widths), key=off)


def _around(side: float, step: int) -> tuple[int, int]:
    """The multiples below and above, none of them 0."""
    below = max(math.floor(side / step), 1)
    return below * step, max(math.ceil(side / step), 1) * step


def cropped(clip: Size, bucket: Size) -> float:
    """The share of a picture that is cut off where it is to fill another aspect."""
    aspects = clip[1] / clip[0], bucket[1] / bucket[0]
    return 1 - min(aspects) / max(aspects)


def nearest(clip: Size, buckets: Sequence[Size]) -> Size:
    """The bucket of which least of a clip is cut off; of equal ones the first."""
    return min(buckets, key=lambda bucket: round(cropped(clip, bucket), 9))
