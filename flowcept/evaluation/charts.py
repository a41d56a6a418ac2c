"""Pictures of numbers with nothing but Pillow: lines, bars, and a clip that grows.

Shapes are drawn four times too large and shrunk, which is what makes their edges smooth; letters
come last, at their own size, because they are smooth already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flowcept.data import video

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
INK: Color = (38, 42, 51)  # titles
GREY: Color = (99, 105, 117)  # labels
AXIS: Color = (150, 156, 168)
GRID: Color = (229, 232, 237)
HIDDEN: Color = (244, 246, 249)  # the place of a frame that does not exist yet
INSERTED: Color = (226, 61, 90)
GIVEN: Color = (245, 166, 66)
# Okabe and Ito's colours, which the usual kinds of colour blindness keep apart; their yellow is
# left out because it is too pale for a line on white.
SERIES: tuple[Color, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (60, 60, 60),
)
# Noise to finished in equal steps of OKLab lightness (0.24 to 0.90), hue 285 to 165 degrees.
RAMP: tuple[Color, ...] = (
    (29, 24, 65),
    (26, 61, 123),
    (0, 109, 166),
    (0, 158, 185),
    (96, 200, 192),
    (175, 238, 210),
)

TITLE, LABEL = 20, 14  # heights of letters, pixels
PAD = 18  # pixels of white around a picture
HUGE = 1e150  # beyond it differences and products overflow; also false for NaN and infinity


class _Canvas:
    """A picture in the making; all places and sizes are pixels of the finished one."""

    scale = 4

    def __init__(self, width: float, height: float) -> None:
        self.size = (max(1, round(width)), max(1, round(height)))
        self._large = Image.new("RGB", (self.size[0] * 4, self.size[1] * 4), WHITE)
        self._draw = ImageDraw.Draw(self._large)
        self._over: list[tuple[Image.Image, tuple[int, int], Color | None]] = []

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float = 1) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._draw.line(scaled, color, round(width * self.scale), joint="curve")

    def box(
        self, left: float, top: float, right: float, bottom: float, color: Color, radius: float = 0
    ) -> None:
        """A filled rectangle; Pillow counts the last pixel in, hence the - 1."""
        left, top, right, bottom = (v * self.scale for v in (left, top, right, bottom))
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        self._draw.rounded_rectangle(corners, radius * self.scale, color)

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        self.box(x - radius, y - radius, x + radius, y + radius, color, radius)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        self._draw.polygon([(x * self.scale, y * self.scale) for x, y in points], color)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: tuple[float, float] = (0, 0.5),
        color: Color = GREY,
        height: int = LABEL,
        upright: bool = False,
    ) -> None:
        """Letters whose box has the point at ``anchor``, (0, 0) its top left, at x, y."""
        if not text:
            return
        start = PAD if upright or anchor[0] else x
        text = shorten(text, self.size[1 if upright else 0] - PAD - start, height)
        ascent, descent = _font(height).getmetrics()
        mask = Image.new("L", (math.ceil(text_width(text, height)), ascent + descent))
        ImageDraw.Draw(mask).text((0, 0), text, 255, _font(height))
        if upright:
            mask = mask.transpose(Image.Transpose.ROTATE_90)
        self._over.append((mask, _corner(mask, x, y, anchor), color))

    def paste(self, picture: Image.Image, x: float, y: float) -> None:
        """A picture with its top left corner at x, y."""
        self._over.append((picture, (round(x), round(y)), None))

    def finish(self) -> Image.Image:
        image = self._large.reduce(self.scale)
        for picture, corner, color in self._over:
            if color is None:
                image.paste(picture, corner)
            else:
                image.paste(color, (*corner, *_sum(corner, picture.size)), picture)
        return image


def _corner(mask: Image.Image, x: float, y: float, anchor: tuple[float, float]) -> tuple[int, int]:
    return round(x - anchor[0] * mask.width), round(y - anchor[1] * mask.height)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


@cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(height)
    assert isinstance(font, ImageFont.FreeTypeFont), "every wheel of Pillow carries FreeType"
    return font


def text_width(text: str, height: int = LABEL) -> float:
    """Pixels that a line of text takes."""
    return max(1.0, _font(height).getlength(text))


def shorten(text: str, room: float, height: int = LABEL) -> str:
    """The text on one line, its end replaced by "..." where it would take more than ``room``."""
    text = video.legible(text)
    if text_width(text, height) <= room:
        return text
    while text and text_width(text + "...", height) > room:
        text = text[:-1]
    return text.rstrip() + "..."


# --- axes


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], about ``count`` of them."""
    rough = (high - low) / max(1, count)
    power = math.floor(math.log10(rough))
    factor = next(f for f in (1, 2, 5, 10) if f * 10.0**power >= rough * 0.999)
    # Dividing by a whole power of ten keeps 0.3 from becoming 0.30000000000000004.
    up, down = (10.0**power, 1.0) if power >= 0 else (1.0, 10.0**-power)
    step = factor * up / down
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * factor * up / down for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values in [10**low, 10**high]: powers of ten; over few decades also 2 and 5 times
    them, and over a fraction of one plain :func:`ticks`."""
    first, last = math.floor(low), math.ceil(high)
    stride = max(1, math.ceil((last - first) / (count + 2)))
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [f * 10.0**p for p in range(first, last + 1, stride) for f in factors]
    values = [v for v in values if low - 1e-9 <= math.log10(v) <= high + 1e-9]
    return values if len(values) > 2 else ticks(10.0**low, 10.0**high, count)


def tick_labels(values: Sequence[float]) -> list[str]:
    """Numbers as short as tells them apart."""
    largest = max((abs(v) for v in values), default=0.0)
    smallest = min((abs(v) for v in values if v), default=1.0)
    steps = [b - a for a, b in pairwise(values)]
    step = min([*steps, smallest])
    if not 1e-4 <= step <= largest < 1e7:
        digits = 1 + max(0, math.ceil(math.log10(largest / step))) if largest else 1
        return [f"{v:.{digits}g}" for v in values]
    # Decades are written each with its own digits, even steps all with the same.
    even = not steps or max(steps) < 1.5 * min(steps)
    return [f"{v:,.{_decimals(step if even else v)}f}" for v in values]


def _decimals(value: float) -> int:
    return next((d for d in range(6) if math.isclose(round(value, d), value, rel_tol=1e-6)), 6)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest, apart from each other; 0 to 1 where there is none."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 * abs(low) or 1.0
        return low - margin, high + margin
    return low, high


class _Frame:
    """Title, legend, labels, grid and the plot's place; maps values to pixels."""

    def __init__(
        self,
        size: tuple[int, int],
        names: Sequence[str],
        labels: tuple[str, str, str],  # title, x, y
        x: tuple[float, float, list[float]],  # bounds and ticks
        y: tuple[float, float, list[float]],
        *,
        log_y: bool = False,
    ) -> None:
        self.canvas = canvas = _Canvas(*size)
        self.x, self.y, self.log_y = x, y, log_y
        title, x_label, y_label = labels
        width, height = canvas.size
        y_texts = tick_labels(y[2])
        self.left = PAD + max(map(text_width, y_texts), default=0) + 8 + (24 if y_label else 0)
        self.right = max(self.left + 1, width - PAD - 8)
        self.top = PAD + (TITLE + 14 if title else 0)
        canvas.text(self.left, PAD + TITLE / 2, title, color=INK, height=TITLE)
        self._legend([n for n in names if n], dict(zip(names, _colors(len(names)), strict=True)))
        self.bottom = max(self.top + 1, height - PAD - 22 - (24 if x_label else 0))
        middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        canvas.text(middle[0], height - PAD, x_label, anchor=(0.5, 1))
        canvas.text(PAD, middle[1], y_label, anchor=(0, 0.5), upright=True)
        for value, text in zip(y[2], y_texts, strict=True):
            at = self.place(x[0], value)[1]
            canvas.line([(self.left, at), (self.right, at)], GRID)
            canvas.text(self.left - 8, at, text, anchor=(1, 0.5))
        for value, text in zip(x[2], tick_labels(x[2]), strict=True):
            at = self.left + (value - x[0]) / (x[1] - x[0]) * (self.right - self.left)
            canvas.line([(at, self.bottom), (at, self.bottom + 4)], AXIS)
            canvas.text(at, self.bottom + 8, text, anchor=(0.5, 0))

    def _legend(self, names: Sequence[str], colors: Mapping[str, Color]) -> None:
        """Names in rows above the plot, which moves down to make room."""
        x, row = self.left, 22
        for name in names:
            wide = 24 + text_width(name)
            if x > self.left and x + wide > self.right:
                x, self.top = self.left, self.top + row
            self.canvas.box(x, self.top + 5, x + 16, self.top + 9, colors[name], 2)
            self.canvas.text(x + 24, self.top + 7, name)
            x += wide + 22
        self.top += row + 6 if names else 0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a value."""
        y = math.log10(y) if self.log_y else y
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + right * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def finish(self, base: float) -> Image.Image:
        """The picture, with the horizontal axis at pixel ``base`` over all else."""
        self.canvas.line([(self.left, base), (self.right, base)], AXIS)
        return self.canvas.finish()


def _colors(count: int) -> list[Color]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    log_y: bool = False,
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """Lines through (x, y) points, a colour a series; ``size`` is (width, height) in pixels.

    Points that are not finite, and with ``log_y`` those that are not positive, are left out; the
    line goes on from its next point. A series of one point is a dot, an empty one only a name.
    """
    shown = {
        name: [
            (float(x), float(y))
            for x, y in points
            if abs(x) < HUGE and abs(y) < HUGE and (y > 0 or not log_y)
        ]
        for name, points in series.items()
    }
    x_low, x_high = _bounds([x for points in shown.values() for x, _ in points])
    ys = [y for points in shown.values() for _, y in points]
    y_low, y_high = _bounds([math.log10(y) for y in ys] if log_y else ys)
    margin = 0.05 * (y_high - y_low)
    # A loss that nears zero is read against zero; one that does not is read closely.
    to_zero = not log_y and 0 <= y_low < 0.3 * y_high
    y_low, y_high = 0.0 if to_zero else y_low - margin, y_high + margin
    count = max(2, size[1] // 60)
    y_ticks = log_ticks(y_low, y_high, count) if log_y else ticks(y_low, y_high, count)
    x_ticks = ticks(x_low, x_high, max(2, size[0] // 130))
    frame = _Frame(
        size,
        list(shown),
        (title, x_label, y_label),
        (x_low, x_high, x_ticks),
        (y_low, y_high, y_ticks),
        log_y=log_y,
    )
    for points, color in zip(shown.values(), _colors(len(shown)), strict=True):
        places = [frame.place(x, y) for x, y in points]
        if len(places) > 1:
            frame.canvas.line(_thin(places), color, 2)
        if len(places) <= 30:
            for x, y in places:
                frame.canvas.dot(x, y, 3.5, color)
    return frame.finish(frame.bottom)


def _thin(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the places that fall into one pixel column in a row: the first, the extremes, the last.

    The picture stays the same, and a log of 100,000 steps is drawn in a second.
    """
    kept = []
    for _, run in groupby(places, key=lambda place: round(place[0])):
        inside = list(run)
        heights = [y for _, y in inside]
        extremes = heights.index(min(heights)), heights.index(max(heights))
        kept += [inside[i] for i in sorted({0, *extremes, len(inside) - 1})]
    return kept


def bar_chart(
    series: Mapping[str, Mapping[int, float]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """Bars over whole numbers, those of all series side by side; values not finite are left out.

    ``size`` is (width, height) in pixels.
    """
    shown = {
        name: {n: float(v) for n, v in bars.items() if abs(v) < HUGE}
        for name, bars in series.items()
    }
    places = [n for bars in shown.values() for n in bars] or [0]
    low, high = min(places) - 0.5, max(places) + 0.5
    heights = [0.0, *(v for bars in shown.values() for v in bars.values())]
    y_low, y_high = _bounds([*heights, 1.0] if not any(heights) else heights)
    y_low, y_high = (v * 1.05 for v in (y_low, y_high))
    x_ticks = [v for v in ticks(low, high, max(2, size[0] // 60)) if v == round(v)]
    y_ticks = ticks(y_low, y_high, max(2, size[1] // 60))
    frame = _Frame(
        size,
        list(shown),
        (title, x_label, y_label),
        (low, high, x_ticks),
        (y_low, y_high, y_ticks),
    )
    base = frame.place(low, 0.0)[1]
    wide = 0.8 / max(1, len(shown))
    for i, (bars, color) in enumerate(zip(shown.values(), _colors(len(shown)), strict=True)):
        for n, value in bars.items():
            x, y = frame.place(n - 0.4 + i * wide, value)
            right = frame.place(n - 0.4 + (i + 1) * wide, value)[0]
            gap = min(1.0, 0.1 * (right - x))
            frame.canvas.box(x, min(y, base), right - gap, max(y, base), color)
    return frame.finish(base)


# --- a clip that grows


def flow_shade(flow_time: float) -> Color:
    """Colour of a generated frame: dark noise at 0, bright and finished at 1."""
    place = min(1.0, max(0.0, flow_time)) * (len(RAMP) - 1)
    i = min(int(place), len(RAMP) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True)
    )
    return red, green, blue


def growth_chart(
    steps: Sequence[Sequence[tuple[int, float, bool]]],
    order: Sequence[int],
    *,
    thumbnails: Sequence[NDArray[np.uint8]] | None = None,
    title: str = "",
    num_steps: int | None = None,
) -> Image.Image:
    """A clip growing: a row a step from the top, a column a frame of the finished clip.

    ``steps[i]`` lists the visible frames of row i as (name, flow time in [0, 1], inserted in this
    step); row 0 is the start, at ``tau = 0``, and bears no marks. ``order`` names the finished
    clip's frames from left to right, ``thumbnails`` are its pictures [H, W, 3]; where they would
    be too small, only some are shown, evenly spread and with a line to their column. Row i stands
    for ``tau = i / num_steps``; without ``num_steps`` the last row is taken to be at ``tau = 2``.
    A frame of flow time 1 in row 0 was given and keeps a hue of its own. A frame that ``order``
    lacks, and thumbnails of another count, are a ``ValueError``.
    """
    column = {name: i for i, name in enumerate(order)}
    unknown = {name for row in steps for name, _, _ in row} - column.keys()
    if unknown or len(column) != len(order):
        raise ValueError(f"every frame needs one place in the order: {sorted(unknown) or 'twice'}")
    if thumbnails is not None and len(thumbnails) != len(order):
        raise ValueError(f"{len(thumbnails)} thumbnails for {len(order)} frames")
    given = {name for name, time, _ in steps[0] if time >= 1} if steps else set()
    rows_per_tau = num_steps or max(1.0, (len(steps) - 1) / 2)

    wide = min(68, max(15, 960 // max(1, len(order))))  # pixels from a column to the next
    tall = min(26.0, max(3.0, 416 / max(1, len(steps))))  # pixels from a row to the next
    left, gap = PAD + 52.0, 4 if wide > 40 else 2
    body = max(wide * len(order), 420)  # the legend's width
    top = PAD + (TITLE + 14 if title else 0) + 40.0
    bottom = top + tall * len(steps)
    pictures = _thumbnails(thumbnails or (), wide, gap)
    below = 0.0 if not pictures else 12 + pictures[0][1].height
    if pictures and len(pictures) < len(order):
        below += 14
    canvas = _Canvas(left + body + PAD, bottom + below + PAD)
    canvas.text(left, PAD + TITLE / 2, title, color=INK, height=TITLE)
    _growth_legend(canvas, left, top - 30, bool(given))

    def x_of(name: int) -> float:
        return left + column[name] * wide

    for name in order:
        canvas.box(x_of(name), top, x_of(name) + wide - gap, bottom, HIDDEN, 2)
    seam = 1.0 if tall >= 8 else 0.0
    for i, row in enumerate(steps):
        for name, time, _ in row:
            x, y = x_of(name), top + i * tall
            color = GIVEN if name in given else flow_shade(time)
            canvas.box(x, y, x + wide - gap, y + tall - seam, color, 2 if seam else 0)
    for i, row in enumerate(steps):
        for name, _, is_new in row:
            if is_new and i > 0:
                _caret(canvas, x_of(name) + (wide - gap) / 2, top + i * tall, (wide - gap) / 2)

    _tau_axis(canvas, left, (top, bottom), tall, rows_per_tau)
    for index, picture, x in pictures:
        y = bottom + below - picture.height
        if len(pictures) < len(order):
            foot = left + index * wide + (wide - gap) / 2, bottom + 2
            head = left + x + picture.width / 2, y - 2
            canvas.line([foot, head], AXIS)
        canvas.paste(picture, left + x, y)
    return canvas.finish()


def _tau_axis(
    canvas: _Canvas, left: float, span: tuple[float, float], tall: float, rows_per_tau: float
) -> None:
    """Marks at ``tau`` 0, 1 and 2, each in the middle of its row, as far as there are rows."""
    top, bottom = span
    for tau in range(3):
        y = top + (tau * rows_per_tau + 0.5) * tall
        if y < bottom:
            canvas.line([(left - 12, y), (left - 5, y)], AXIS)
            canvas.text(left - 18, y, str(tau), anchor=(1, 0.5))
    canvas.text(PAD, (top + bottom) / 2, "tau", upright=True)


def _thumbnails(
    thumbnails: Sequence[NDArray[np.uint8]], wide: int, gap: int
) -> list[tuple[int, Image.Image, float]]:
    """Index, picture and left edge, from the first column's, of the frames that are shown."""
    count, full = len(thumbnails), wide * len(thumbnails) - gap
    shown = count if wide >= 28 else min(count, full // 48)
    size = wide - gap if shown == count else 44
    found = []
    for place in range(shown):
        share = place / max(1, shown - 1)
        index = round(share * (count - 1))
        picture = Image.fromarray(thumbnails[index])
        height = max(1, round(size * picture.height / picture.width))
        picture = picture.resize((size, height), Image.Resampling.LANCZOS)
        found.append((index, picture, share * (full - size)))
    return found


def _caret(canvas: _Canvas, x: float, y: float, room: float) -> None:
    """A small arrow head that points down to (x, y), where a frame was inserted."""
    half = min(5.0, room)
    canvas.polygon([(x - half, y - 1.3 * half), (x + half, y - 1.3 * half), (x, y)], INSERTED)


def _growth_legend(canvas: _Canvas, x: float, y: float, given: bool) -> None:
    """The ramp from noise to finished, the mark of an insertion, the hue of given frames."""
    canvas.text(x, y + 6, "noise")
    x += text_width("noise") + 8
    for i in range(100):
        canvas.box(x + i, y, x + i + 1, y + 12, flow_shade(i / 99))
    canvas.text(x + 108, y + 6, "finished")
    x += 108 + text_width("finished") + 28
    _caret(canvas, x, y + 9, 5)
    canvas.text(x + 11, y + 6, "inserted")
    x += 11 + text_width("inserted") + 28
    if given:
        canvas.box(x, y, x + 12, y + 12, GIVEN, 2)
        canvas.text(x + 20, y + 6, "given")
