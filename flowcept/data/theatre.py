"""Procedural captioned clips whose length follows from their content.

An actor (an emoji, or a drawn shape that needs no font) performs one of twelve actions in a place.
An action runs from phase 0 to phase 1 over the clip, however many frames that is: a jump has
crouched, risen and landed exactly when the clip ends. So length is neither noise nor a label: it is
the natural duration of the action, stretched by "slowly" and shortened by "quickly", and
`length_law` is its exact distribution, against which a model's own lengths can be measured.

Pictures are bold and clean on purpose, so that a small network can learn them at 64 pixels: few
props, static places, little jitter, and everything is drawn larger and averaged down.

Stage units: x runs right and y runs down, both over [0, 1]; angles are in degrees, positive turns
clockwise, so that an actor facing right leans forward.

Shapes: F frames, H height, W width, 3 the colours red, green, blue.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import atan2, cos, degrees, exp, pi, radians, sin
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flowcept.data import video
from flowcept.errors import UserError

FPS = 12

Colour = tuple[int, int, int]
Point = tuple[float, float]
FramesArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """Everything that the caption tells."""

    actor: str  # of ACTORS or SHAPES
    action: str  # of ACTIONS
    place: str = ""  # of PLACES; "" is a plain day
    adverb: str = ""  # of ADVERBS


# --- actors -----------------------------------------------------------------------------------

# Everything faces right on stage. Most emoji that have a side face left and are mirrored; of those
# named in FACES_RIGHT this is not so.
EMOJI: dict[str, str] = {
    "dog": "\U0001f415",
    "cat": "\U0001f408",
    "horse": "\U0001f40e",
    "rabbit": "\U0001f407",
    "elephant": "\U0001f418",
    "pig": "\U0001f416",
    "cow": "\U0001f404",
    "sheep": "\U0001f411",
    "turtle": "\U0001f422",
    "penguin": "\U0001f427",
    "frog": "\U0001f438",
    "lion": "\U0001f981",
    "tiger": "\U0001f405",
    "bear": "\U0001f43b",
    "panda": "\U0001f43c",
    "monkey": "\U0001f412",
    "rooster": "\U0001f413",
    "duck": "\U0001f986",
    "owl": "\U0001f989",
    "fish": "\U0001f420",
    "whale": "\U0001f433",
    "octopus": "\U0001f419",
    "crab": "\U0001f980",
    "fox": "\U0001f98a",
    "unicorn": "\U0001f984",
    "dinosaur": "\U0001f995",
    "dragon": "\U0001f409",
    "hedgehog": "\U0001f994",
    "ladybug": "\U0001f41e",
    "robot": "\U0001f916",
    "ghost": "\U0001f47b",
    "pumpkin": "\U0001f383",
    "snowman": "\u26c4",
    "alien": "\U0001f47d",
    "car": "\U0001f697",
    "bus": "\U0001f68c",
    "tractor": "\U0001f69c",
    "rocket": "\U0001f680",
    "mushroom": "\U0001f344",
    "hamburger": "\U0001f354",
}
FACES_RIGHT = frozenset({"rocket"})
ACTORS: tuple[str, ...] = tuple(EMOJI)

SHAPE_COLOURS: dict[str, Colour] = {
    "red circle": (226, 54, 54),
    "blue square": (52, 104, 222),
    "green triangle": (38, 166, 84),
    "yellow star": (250, 204, 40),
    "pink heart": (240, 104, 164),
    "orange diamond": (244, 140, 36),
    "purple hexagon": (140, 78, 200),
    "white egg": (246, 244, 236),
    "brown cross": (150, 98, 60),
    "cyan drop": (60, 190, 214),
}
SHAPES: tuple[str, ...] = tuple(SHAPE_COLOURS)

# The one size at which the bitmap font NotoColorEmoji can be drawn, in pixels.
EMOJI_SIZE = 109
FONT_NAME = "NotoColorEmoji.ttf"
FONT_PACKAGE = "fonts-noto-color-emoji"
FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/opt/homebrew/share/fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "~/.local/share/fonts",
    "~/.fonts",
)


@lru_cache(maxsize=1)
def find_font() -> Path | None:
    """The emoji font of this machine, or None. Fonts that cannot be drawn in colour are not it."""
    for folder in FONT_FOLDERS:
        for path in sorted(Path(folder).expanduser().rglob(FONT_NAME)):
            try:
                sprite = _draw_emoji(path, EMOJI["dog"])
            except OSError:  # no bitmaps of this size, or a FreeType built without PNG
                continue
            # A font without colour draws in plain white: its channels are equal everywhere.
            if sprite is not None and len({band.tobytes() for band in sprite.split()[:3]}) > 1:
                return path
    return None


def _draw_emoji(font: Path, character: str) -> Image.Image | None:
    """One emoji, cropped to its ink, or None where the font has nothing for it."""
    picture = Image.new("RGBA", (192, 192))
    drawing = ImageDraw.Draw(picture)
    drawing.text(
        (16, 16),
        character,
        # Unlike `truetype` this never takes a namesake from another folder instead.
        font=ImageFont.FreeTypeFont(str(font), EMOJI_SIZE),
        embedded_color=True,
    )
    box = picture.getbbox()
    return None if box is None else picture.crop(box)


def _regular(corners: int, radius: float, inner: float | None = None) -> list[Point]:
    """A regular polygon around (.5, .5), or a star when `inner` gives the second radius."""
    radii = [radius] if inner is None else [radius, inner]
    count = corners * len(radii)
    angles = [2 * pi * i / count - pi / 2 for i in range(count)]
    return [
        (0.5 + radii[i % len(radii)] * cos(a), 0.5 + radii[i % len(radii)] * sin(a))
        for i, a in enumerate(angles)
    ]


def _curve(point: Callable[[float], Point]) -> list[Point]:
    return [point(2 * pi * i / 64) for i in range(64)]


# Outlines in a unit square, y down.
OUTLINES: dict[str, list[Point]] = {
    "circle": _curve(lambda a: (0.5 + 0.48 * cos(a), 0.5 + 0.48 * sin(a))),
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.02), (0.98, 0.92), (0.02, 0.92)],
    "star": _regular(5, 0.5, 0.25),
    "heart": _curve(
        lambda a: (
            0.5 + 0.48 * sin(a) ** 3,
            0.46 - 0.03 * (13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)),
        )
    ),
    "diamond": [(0.5, 0.02), (0.9, 0.5), (0.5, 0.98), (0.1, 0.5)],
    "hexagon": _regular(6, 0.49),
    "egg": _curve(lambda a: (0.5 + (0.36 + 0.06 * sin(a)) * cos(a), 0.5 + 0.48 * sin(a))),
    "cross": [
        *((0.33, 0.04), (0.67, 0.04), (0.67, 0.33), (0.96, 0.33), (0.96, 0.67), (0.67, 0.67)),
        *((0.67, 0.96), (0.33, 0.96), (0.33, 0.67), (0.04, 0.67), (0.04, 0.33), (0.33, 0.33)),
    ],
    "drop": [(0.5, 0.0)]
    + [(0.5 + 0.36 * cos(a), 0.62 + 0.36 * sin(a)) for a in np.linspace(-0.5, pi + 0.5, 40)],
}


def _draw_shape(name: str) -> Image.Image:
    """A shape with a face, without which spinning would not show. Cropped to its ink."""
    side = 512  # four times the sprite, averaged down below
    colour = SHAPE_COLOURS[name]
    picture = Image.new("RGBA", (side, side), (*colour, 0))
    drawing = ImageDraw.Draw(picture)
    corners = [(side * x, side * y) for x, y in OUTLINES[name.split()[1]]]
    dark = _mix(colour, (0, 0, 0), 0.45)
    drawing.polygon(corners, fill=colour)
    drawing.line([*corners, *corners[:2]], fill=dark, width=22, joint="curve")
    for x in (0.45, 0.65):  # eyes that look where the actor goes
        drawing.ellipse(_box(x, 0.46, 0.085, 0.105, side), fill=(255, 255, 255))
        drawing.ellipse(_box(x + 0.03, 0.47, 0.05, 0.062, side), fill=(24, 24, 32))
    drawing.arc(_box(0.55, 0.59, 0.1, 0.1, side), 20, 160, fill=(24, 24, 32), width=22)
    small = picture.reduce(4)
    return small.crop(small.getbbox())


@lru_cache(maxsize=1024)
def _sprite(actor: str, halvings: int) -> Image.Image:
    """The actor's picture facing right, cropped to its ink, halved so many times."""
    if halvings:
        return _sprite(actor, 0).reduce(2**halvings)
    if actor in SHAPE_COLOURS:
        return _draw_shape(actor)
    font = find_font()
    if font is None:
        raise UserError(_no_font())
    picture = _draw_emoji(font, EMOJI[actor])
    if picture is None:
        raise UserError(f"{font} has no picture of {actor!r}: install a newer {FONT_PACKAGE}")
    if actor not in FACES_RIGHT:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


def _no_font() -> str:
    return (
        f"no {FONT_NAME} on this machine: install it (Debian package {FONT_PACKAGE}) "
        "or draw --actors shapes"
    )


# --- places -----------------------------------------------------------------------------------

HORIZON = 0.74
FLOOR = 0.9  # where feet stand


@dataclass(frozen=True)
class Place:
    sky: tuple[Colour, Colour]  # top, horizon
    ground: Colour
    sea: Colour
    ice: Colour = (206, 232, 246)
    light: Colour = (255, 255, 255)  # foam, puffs and lines


_PLACES: dict[str, Place] = {
    "": Place(((150, 208, 250), (222, 242, 254)), (128, 196, 96), (40, 130, 208)),
    "at sunset": Place(
        ((118, 72, 150), (255, 168, 84)),
        (120, 88, 84),
        (112, 76, 148),
        ice=(224, 186, 206),
        light=(255, 224, 190),
    ),
    "at night": Place(
        ((14, 20, 56), (44, 58, 112)),
        (38, 66, 72),
        (22, 48, 108),
        ice=(96, 122, 176),
        light=(190, 206, 240),
    ),
    "in the snow": Place(((140, 164, 196), (190, 208, 226)), (226, 236, 247), (64, 124, 168)),
    "in the desert": Place(((92, 190, 232), (252, 234, 188)), (236, 188, 104), (34, 164, 176)),
    "on the moon": Place(
        ((8, 8, 18), (26, 26, 44)),
        (160, 160, 168),
        (92, 98, 140),
        ice=(190, 200, 220),
        light=(226, 228, 236),
    ),
    "in the park": Place(((128, 206, 246), (206, 240, 250)), (98, 178, 78), (52, 140, 190)),
}
PLACES: tuple[str, ...] = tuple(_PLACES)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from a to b."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _box(x: float, y: float, rx: float, ry: float, side: int) -> tuple[float, float, float, float]:
    """Pixel box of an ellipse given in stage units."""
    return (x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side


class _Brush:
    """Draws on a square picture in stage units. Colours may carry an alpha of 0..255."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.side = picture.width
        self._drawing = ImageDraw.Draw(picture, "RGBA")

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: int = 255
    ) -> None:
        self._drawing.ellipse(_box(x, y, rx, ry, self.side), fill=(*colour, alpha))

    def polygon(self, points: Sequence[Point], colour: Colour, alpha: int = 255) -> None:
        pixels = [(x * self.side, y * self.side) for x, y in points]
        self._drawing.polygon(pixels, fill=(*colour, alpha))

    def line(self, points: Sequence[Point], colour: Colour, width: float, alpha: int = 255) -> None:
        pixels = [(x * self.side, y * self.side) for x, y in points]
        thick = max(1, round(width * self.side))
        self._drawing.line(pixels, fill=(*colour, alpha), width=thick)


def _tree(brush: _Brush, x: float, y: float, height: float, leaf: Colour, trunk: Colour) -> None:
    brush.polygon(
        [
            (x - 0.018, y),
            (x + 0.018, y),
            (x + 0.018, y - 0.5 * height),
            (x - 0.018, y - 0.5 * height),
        ],
        trunk,
    )
    brush.ellipse(x, y - 0.68 * height, 0.36 * height, 0.36 * height, leaf)


def _fir(brush: _Brush, x: float, y: float, height: float, leaf: Colour) -> None:
    for k in range(2):
        top = y - height + 0.32 * height * k
        half = (0.22 + 0.08 * k) * height
        brush.polygon(
            [(x, top), (x + half, top + 0.6 * height), (x - half, top + 0.6 * height)], leaf
        )
        brush.polygon(
            [
                (x, top),
                (x + 0.4 * half, top + 0.24 * height),
                (x - 0.4 * half, top + 0.24 * height),
            ],
            (255, 255, 255),
        )


def _scenery(brush: _Brush, name: str) -> None:
    """What stands in the sky and on the horizon: one or two bold things at the edges."""
    place = _PLACES[name]
    white = (255, 255, 255)
    match name:
        case "":
            brush.ellipse(0.86, 0.13, 0.085, 0.085, (255, 222, 84))
        case "at sunset":
            brush.ellipse(0.72, HORIZON - 0.02, 0.17, 0.17, (255, 226, 120))
        case "at night":
            brush.ellipse(0.82, 0.17, 0.1, 0.1, (250, 244, 206))
            brush.ellipse(0.865, 0.145, 0.085, 0.085, (20, 27, 64))
            for x, y in ((0.12, 0.14), (0.34, 0.08), (0.56, 0.2), (0.22, 0.36), (0.92, 0.42)):
                brush.ellipse(x, y, 0.013, 0.013, (255, 250, 214))
        case "in the snow":
            _fir(brush, 0.1, HORIZON + 0.02, 0.42, (44, 112, 92))
            _fir(brush, 0.9, HORIZON + 0.02, 0.32, (44, 112, 92))
        case "in the desert":
            brush.ellipse(0.14, 0.14, 0.1, 0.1, (255, 244, 180))
            brush.ellipse(0.85, HORIZON + 0.06, 0.34, 0.16, (222, 168, 90))
        case "on the moon":
            brush.ellipse(0.16, 0.18, 0.11, 0.11, (62, 132, 216))
            brush.ellipse(0.13, 0.16, 0.05, 0.04, (86, 180, 104))
            for x, y in ((0.4, 0.1), (0.62, 0.2), (0.86, 0.12), (0.92, 0.44), (0.34, 0.4)):
                brush.ellipse(x, y, 0.011, 0.011, white)
        case _:
            trunk = (122, 84, 56)
            _tree(brush, 0.1, HORIZON + 0.02, 0.46, (58, 146, 66), trunk)
            _tree(brush, 0.92, HORIZON + 0.02, 0.38, (74, 160, 72), trunk)
    brush.polygon([(0, HORIZON), (1, HORIZON), (1, 1), (0, 1)], place.ground)
    if name == "on the moon":
        for x, y, r in ((0.14, 0.82, 0.08), (0.84, 0.95, 0.09)):
            brush.ellipse(x, y, r, 0.35 * r, (128, 128, 138))


@lru_cache(maxsize=64)
def _background(name: str, icy: bool, side: int) -> Image.Image:
    place = _PLACES[name]
    share_H1 = np.clip(np.linspace(0, 1 / HORIZON, side), 0, 1)[:, None]
    top, bottom = (np.array(colour, dtype=np.float64) for colour in place.sky)
    sky_H3 = np.round(top + share_H1 * (bottom - top)).astype(np.uint8)
    picture = Image.fromarray(np.repeat(sky_H3[:, None], side, axis=1))
    brush = _Brush(picture)
    _scenery(brush, name)
    if icy:
        brush.ellipse(0.5, 0.95, 0.66, 0.19, place.ice)
        for x, y in ((0.12, 0.86), (0.66, 0.84)):
            brush.line([(x, y), (x + 0.14, y)], _mix(place.ice, place.light, 0.8), 0.016)
    return picture


# --- the stage --------------------------------------------------------------------------------

ACTOR_HEIGHT = 0.45  # of the frame
ACTOR_WIDTH = 0.5  # at most

# Surfboards come in these hues.
BOARDS: tuple[Colour, ...] = ((236, 72, 72), (250, 196, 52), (255, 255, 255))
STEEL: Colour = (60, 68, 88)  # of skates


@dataclass(frozen=True)
class _Take:
    """The small differences between two clips of one scene."""

    shift: float  # of the whole path, in stage widths
    zoom: float  # of the actor
    offset: float  # of ripples, in stage widths
    board: Colour


def _sample_take(rng: np.random.Generator) -> _Take:
    shift, zoom, offset = rng.uniform(-1, 1, 3)
    board = BOARDS[int(rng.integers(len(BOARDS)))]
    return _Take(0.03 * shift, 1 + 0.05 * zoom, 0.02 * offset, board)


class _Stage(_Brush):
    """One frame being drawn, larger than it will be."""

    def __init__(self, scene: Scene, take: _Take, size: int) -> None:
        self.scene = scene
        self.take = take
        self.place = _PLACES[scene.place]
        # Enough averaging for smooth edges without wasting time on large frames.
        self.oversampling = 3 if size < 128 else 2
        icy = scene.action == "skating"
        super().__init__(_background(scene.place, icy, size * self.oversampling).copy())

    def finish(self) -> FramesArray:
        """The frame as image_HW3."""
        return np.asarray(self.picture.reduce(self.oversampling))

    def actor(
        self,
        x: float,
        y: float,
        *,
        lean: float = 0.0,
        turn: float = 0.0,
        scale: float = 1.0,
        squash: float = 1.0,
    ) -> None:
        """Paint the actor, feet at (x, y).

        `lean` rotates about the feet, `turn` about the middle (degrees). `squash` multiplies the
        height and widens accordingly.
        """
        width, height = _sprite(self.scene.actor, 0).size
        unit = self.take.zoom * scale * min(ACTOR_HEIGHT / height, ACTOR_WIDTH / width) * self.side
        halvings = 0 if unit > 0.5 else 1 if unit > 0.25 else 2
        source = _sprite(self.scene.actor, halvings)
        step_x = unit * (2 - squash) * width / source.width  # canvas pixels per sprite pixel
        step_y = unit * squash * height / source.height
        half_x, half_y = step_x * source.width / 2, step_y * source.height / 2
        feet = radians(lean)
        middle_x = (x + self.take.shift) * self.side + half_y * sin(feet)
        middle_y = y * self.side - half_y * cos(feet)
        angle = radians(lean + turn)
        c, s = cos(angle), sin(angle)
        reach_x = abs(c) * half_x + abs(s) * half_y + 1
        reach_y = abs(s) * half_x + abs(c) * half_y + 1
        left, right = int(middle_x - reach_x), int(middle_x + reach_x) + 1
        top, bottom = int(middle_y - reach_y), int(middle_y + reach_y) + 1
        # Pillow wants the map from patch to sprite: turn back, unscale, shift to its middle.
        dx, dy = left - middle_x, top - middle_y
        patch = source.transform(
            (right - left, bottom - top),
            Image.Transform.AFFINE,
            (
                c / step_x,
                s / step_x,
                (c * dx + s * dy) / step_x + source.width / 2,
                -s / step_y,
                c / step_y,
                (-s * dx + c * dy) / step_y + source.height / 2,
            ),
            resample=Image.Resampling.BILINEAR,
        )
        self.picture.paste(patch, (left, top), patch)

    def shadow(self, x: float, height: float = 0.0) -> None:
        """The actor's shadow on the floor, smaller the higher the feet are."""
        size = max(0.3, 1 - 1.4 * height)
        self.ellipse(x + self.take.shift, FLOOR, 0.17 * size, 0.032 * size, (0, 0, 0), 70)

    def puff(self, x: float, y: float, radius: float, alpha: int = 230) -> None:
        """A light round cloud: dust, foam or vapour."""
        self.ellipse(x + self.take.shift, y, radius, radius, self.place.light, alpha)

    def oval(self, x: float, y: float, rx: float, ry: float, tilt: float) -> list[Point]:
        """Outline of an ellipse turned by `tilt` degrees about its middle."""
        c, s = cos(radians(tilt)), sin(radians(tilt))
        ring = [(rx * cos(2 * pi * i / 32), ry * sin(2 * pi * i / 32)) for i in range(32)]
        return [(x + u * c - v * s, y + u * s + v * c) for u, v in ring]

    def wing(self, x: float, y: float, lift: float, colour: Colour) -> None:
        """A wing that reaches back from (x, y), its tip raised by `lift` degrees."""
        c, s = cos(radians(lift)), sin(radians(lift))
        outline = self.oval(x - 0.13 * c, y - 0.13 * s, 0.17, 0.06, lift)
        self.polygon(outline, colour)
        self.line([*outline, outline[0]], _mix(colour, (60, 80, 130), 0.45), 0.012)

    def water(self, surface: Callable[[float], float], alpha: int = 255) -> None:
        """Everything under `surface` (x to y) is water with a light edge."""
        line = [(i / 24, surface(i / 24)) for i in range(25)]
        self.polygon([*line, (1, 1), (0, 1)], self.place.sea, alpha)
        self.line(line, _mix(self.place.sea, self.place.light, 0.65), 0.03, alpha)


# --- actions: each draws phase 0..1 of itself --------------------------------------------------


def _ease(phase: float, start: float = 0.0, end: float = 1.0) -> float:
    """0 before `start`, 1 after `end`, smooth between."""
    share = min(1.0, max(0.0, (phase - start) / (end - start)))
    return share * share * (3 - 2 * share)


def _bump(phase: float, start: float, end: float) -> float:
    """0 outside start..end, a half sine wave inside."""
    share = (phase - start) / (end - start)
    return sin(pi * share) if 0 < share < 1 else 0.0


def _surfing(stage: _Stage, phase: float) -> None:
    """A wave comes from behind, lifts the board, and rolls on."""
    crest = -0.25 + 1.5 * phase
    x = 0.3 + 0.36 * _ease(phase)

    def surface(at: float) -> float:
        return 0.79 - 0.29 * exp(-(((at - crest) / 0.24) ** 2))

    at = x + stage.take.shift
    lean = degrees(atan2(surface(at + 0.06) - surface(at - 0.06), 0.12)) * 0.75
    stage.water(surface)
    stage.line(
        [(i / 24, surface(i / 24) + 0.1) for i in range(25)],
        _mix(stage.place.sea, stage.place.light, 0.25),
        0.035,
    )
    y = surface(at) - 0.02
    c, s = cos(radians(lean)), sin(radians(lean))
    board = stage.oval(at, y, 0.27, 0.045, lean)
    stage.polygon(board, stage.take.board)
    stage.line([*board, board[0]], _mix(stage.take.board, (0, 0, 0), 0.35), 0.012)
    stage.actor(x, y + 0.005, lean=lean, scale=0.92)
    for k in range(3):  # spray from the tail
        stage.puff(
            x - (0.29 + 0.05 * k) * c, y - (0.29 + 0.05 * k) * s - 0.02 * k, 0.03 - 0.007 * k
        )


def _walking(stage: _Stage, phase: float) -> None:
    """Four waddling steps from left to right."""
    x = 0.28 + 0.46 * phase
    stage.shadow(x)
    stage.actor(x, FLOOR - 0.035 * abs(sin(4 * pi * phase)), lean=11 * sin(4 * pi * phase))


def _running(stage: _Stage, phase: float) -> None:
    """Three long leaps across the whole stage, leaning forward, dust behind."""
    x = 0.15 + 0.72 * phase
    height = 0.11 * abs(sin(3 * pi * phase))
    stage.shadow(x, height)
    if 0 < phase < 1:
        for k in range(3):
            stage.puff(
                x - 0.24 - 0.09 * k, FLOOR - 0.02 - 0.015 * k, 0.05 - 0.012 * k, 220 - 50 * k
            )
        for y in (0.5 - height, 0.62 - height):
            stage.line([(x - 0.44, y), (x - 0.27, y)], stage.place.light, 0.018, 220)
    stage.actor(x, FLOOR - height, lean=15, squash=1 - 0.1 * cos(6 * pi * phase))


def _jumping(stage: _Stage, phase: float) -> None:
    """Crouch, one high leap that carries a little to the right, landing."""
    share = min(1.0, max(0.0, (phase - 0.22) / 0.56))
    height = 0.4 * 4 * share * (1 - share)
    squash = 1 - 0.3 * _bump(phase, 0.0, 0.26) - 0.3 * _bump(phase, 0.76, 1.0)
    if 0 < share < 1:
        squash += 0.14 * abs(1 - 2 * share)
    x = 0.4 + 0.2 * share
    stage.shadow(x, height)
    stage.actor(x, FLOOR - height, squash=squash)


def _flying(stage: _Stage, phase: float) -> None:
    """Takes off on flapping wings and sails to the upper right."""
    rise = _ease(phase, 0.0, 0.9)
    x, y = 0.27 + 0.47 * phase, FLOOR - 0.46 * rise
    lean = -20 * _bump(phase, 0.0, 1.0)
    flap = sin(8 * pi * phase)
    stage.shadow(x, FLOOR - y)
    far, near = _mix(stage.place.light, (90, 110, 150), 0.4), stage.place.light
    root = x + stage.take.shift
    stage.wing(root - 0.03, y - 0.27, 20 + 50 * flap, far)
    stage.actor(x, y, turn=lean)
    stage.wing(root - 0.12, y - 0.23, 12 + 50 * flap, near)


def _swimming(stage: _Stage, phase: float) -> None:
    """Half under water from left to right, rocking with each stroke."""
    x = 0.27 + 0.48 * phase
    stroke = sin(5 * pi * phase)

    def surface(at: float) -> float:
        return 0.6 + 0.016 * sin(2 * pi * (2 * (at + stage.take.offset) - 2 * phase))

    stage.water(surface)
    stage.actor(x, 0.81 - 0.035 * stroke, turn=8 + 12 * stroke)
    # The nearer water covers the lower half but lets it shine through.
    line = [(i / 24, surface(i / 24) + 0.02) for i in range(25)]
    stage.polygon([*line, (1, 1), (0, 1)], stage.place.sea, 170)
    for k in range(3):  # the wake
        stage.puff(x - 0.22 - 0.1 * k, surface(x - 0.22 - 0.1 * k) + 0.015, 0.045 - 0.011 * k)
    stage.puff(x + 0.23, 0.57 - 0.05 * max(0.0, stroke), 0.03)


def _falling(stage: _Stage, phase: float) -> None:
    """Drops from the top, faster and faster, turning upright, and lands with a bump."""
    share = min(1.0, phase / 0.72)
    height = 0.47 * (1 - share**2)
    landed = _ease(phase, 0.7, 1.0)
    stage.shadow(0.5, height)
    if 0 < share < 1:
        for k in (-1, 0, 1):
            x = 0.5 + stage.take.shift + 0.13 * k
            top = FLOOR - height - 0.5
            stage.line([(x, top - 0.2 * share), (x, top)], stage.place.light, 0.02, 220)
    if share == 1 and phase < 1:
        for k in (-1, 1):
            stage.puff(0.5 + k * (0.24 + 0.12 * landed), FLOOR - 0.01, 0.065 * (1 - 0.6 * landed))
    squash = 1 + 0.1 * (share if share < 1 else 0.0) - 0.3 * _bump(phase, 0.7, 1.0)
    stage.actor(0.5, FLOOR - height, turn=-130 * (1 - share), squash=squash)


def _spinning(stage: _Stage, phase: float) -> None:
    """One full turn about its middle."""
    height = 0.12
    stage.shadow(0.5, height)
    stage.actor(0.5, FLOOR - height, turn=360 * phase)


def _bouncing(stage: _Stage, phase: float) -> None:
    """Three hops from left to right, each lower than the one before."""
    x = 0.26 + 0.5 * phase
    start, height, squash = 0.0, 0.0, 1.0
    for peak, length in ((0.36, 0.43), (0.22, 0.33), (0.11, 0.24)):
        share = (phase - start) / length
        if 0 <= share <= 1:
            height = peak * 4 * share * (1 - share)
        squash -= 0.3 * exp(-(((phase - start) / 0.045) ** 2))
        start += length
    stage.shadow(x, height)
    stage.actor(x, FLOOR - height, squash=squash)


def _skating(stage: _Stage, phase: float) -> None:
    """Two gliding strokes on blades, swinging from side to side, a track in the ice behind."""

    def path(at: float) -> Point:
        return 0.26 + 0.5 * at, 0.9 - 0.045 * sin(4 * pi * at)

    track = [path(phase * i / 24) for i in range(25)]
    if phase > 0:
        track = [(x + stage.take.shift, y) for x, y in track]
        stage.line(track, _mix(stage.place.ice, (40, 80, 140), 0.45), 0.014)
    x, y = path(phase)
    lean = 20 * cos(4 * pi * phase)
    c, s = cos(radians(lean)), sin(radians(lean))
    stage.actor(x + 0.04 * s, y - 0.04 * c, lean=lean)
    foot = x + stage.take.shift
    for u in (-0.11, 0.08):  # a blade and its post under each foot
        post = [(foot + u * c + v * s, y + u * s - v * c) for v in (0.06, 0.02)]
        blade = [(foot + v * c, y + v * s) for v in (u - 0.05, u + 0.07)]
        stage.line(post, STEEL, 0.05)
        stage.line(blade, STEEL, 0.028)


def _growing(stage: _Stage, phase: float) -> None:
    """From a quarter to one and a third of its size, in three swells."""
    scale = 0.28 + 1.05 * (phase + 0.035 * sin(6 * pi * phase))
    stage.ellipse(0.5 + stage.take.shift, FLOOR, 0.17 * scale, 0.032 * scale, (0, 0, 0), 70)
    stage.actor(0.5, FLOOR, scale=scale, squash=1 + 0.07 * sin(6 * pi * phase))


def _hiding(stage: _Stage, phase: float) -> None:
    """Slips behind a bush, which rustles, and comes back out."""
    away = _ease(phase, 0.05, 0.4) - _ease(phase, 0.62, 0.97)
    x = 0.27 + 0.43 * away
    stage.shadow(x)
    stage.actor(x, FLOOR - 0.04 * abs(sin(3 * pi * away)))
    rustle = 0.022 * sin(10 * pi * phase) * _bump(phase, 0.25, 0.9)
    leaf = _mix((44, 132, 62), stage.place.sky[0], 0.12)
    dark = _mix(leaf, (0, 0, 0), 0.3)
    lobes = ((0.56, 0.79, 0.15), (0.84, 0.79, 0.15), (0.7, 0.64, 0.2), (0.7, 0.8, 0.16))
    for grow, colour in ((0.018, dark), (0.0, leaf)):
        for bx, by, r in lobes:
            lift = rustle * (0.94 - by) * 6
            stage.ellipse(bx + lift + stage.take.shift, by, r + grow, r + grow, colour)


@dataclass(frozen=True)
class _Action:
    frames: float  # mean length of the plain action, in frames at FPS
    draw: Callable[[_Stage, float], None]


_ACTIONS: dict[str, _Action] = {
    "surfing": _Action(16, _surfing),
    "walking": _Action(12, _walking),
    "running": _Action(10, _running),
    "jumping": _Action(10, _jumping),
    "flying": _Action(13, _flying),
    "swimming": _Action(14, _swimming),
    "falling": _Action(10, _falling),
    "spinning": _Action(11, _spinning),
    "bouncing": _Action(13, _bouncing),
    "skating": _Action(15, _skating),
    "growing": _Action(12, _growing),
    "hiding": _Action(14, _hiding),
}
ACTIONS: tuple[str, ...] = tuple(_ACTIONS)

# How an adverb multiplies the natural length.
_PACE: dict[str, float] = {"": 1.0, "slowly": 1.5, "quickly": 0.65}
ADVERBS: tuple[str, ...] = tuple(_PACE)

# Never written for training: they measure later whether a model combines what it knows. One for
# each action, and four of shapes.
RESERVED: frozenset[tuple[str, str]] = frozenset(
    {
        ("penguin", "surfing"),
        ("robot", "walking"),
        ("elephant", "running"),
        ("pumpkin", "jumping"),
        ("cow", "flying"),
        ("lion", "swimming"),
        ("car", "falling"),
        ("tiger", "spinning"),
        ("octopus", "bouncing"),
        ("dinosaur", "skating"),
        ("ghost", "growing"),
        ("fox", "hiding"),
        ("blue square", "surfing"),
        ("red circle", "flying"),
        ("green triangle", "skating"),
        ("yellow star", "jumping"),
    }
)


# --- scenes, captions, lengths, clips ----------------------------------------------------------


def sample_scene(
    rng: np.random.Generator, *, actors: Sequence[str], reserved: bool = False
) -> Scene:
    """A random scene: plain in 2 of 5 cases as to place, in half of them as to adverb.

    `reserved=True` draws only pairs of RESERVED, False never does. ValueError where none of the
    actors has a reserved pair.
    """
    if reserved:
        pairs = sorted(pair for pair in RESERVED if pair[0] in actors)
        if not pairs:
            raise ValueError("none of these actors has a reserved pair")
        actor, action = pairs[int(rng.integers(len(pairs)))]
    else:
        while True:
            actor = actors[int(rng.integers(len(actors)))]
            action = ACTIONS[int(rng.integers(len(ACTIONS)))]
            if (actor, action) not in RESERVED:
                break
    place = PLACES[int(rng.integers(1, len(PLACES)))] if rng.random() < 0.6 else ""
    adverb = ADVERBS[int(rng.integers(1, len(ADVERBS)))] if rng.random() < 0.5 else ""
    return Scene(actor, action, place, adverb)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in words, most often in the plain order "a dog surfing slowly at sunset"."""
    vowel = scene.actor[0] in "aeiou" and scene.actor != "unicorn"
    subject = f"{'an' if vowel else 'a'} {scene.actor}"
    orders = (
        ([subject, scene.action, scene.adverb, scene.place], 0.7),
        ([subject, "is", scene.action, scene.adverb, scene.place], 0.1),
        ([subject, scene.adverb, scene.action, scene.place], 0.1),
        ([scene.place and f"{scene.place},", subject, scene.action, scene.adverb], 0.1),
    )
    words = orders[int(rng.choice(len(orders), p=[share for _, share in orders]))][0]
    return " ".join(word for word in words if word)


def length_law(scene: Scene) -> dict[int, float]:
    """P(number of frames), which depends on action and adverb only.

    A triangle around the mean, natural length times pace, of half width mean / 6 but 1.5 to 2.5
    frames: two to five neighbouring lengths.
    """
    mean = _ACTIONS[scene.action].frames * _PACE[scene.adverb]
    half = min(2.5, max(1.5, mean / 6))
    weights = {n: half - abs(n - mean) for n in range(round(mean) - 3, round(mean) + 4)}
    weights = {n: weight for n, weight in weights.items() if weight > 1e-9}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def sample_length(scene: Scene, rng: np.random.Generator) -> int:
    """A number of frames drawn from `length_law`."""
    law = length_law(scene)
    return int(rng.choice(list(law), p=list(law.values())))


def draw_clip(
    scene: Scene, size: int, rng: np.random.Generator, *, num_frames: int | None = None
) -> FramesArray:
    """The scene as frames_FHW3 of `size` x `size` pixels, RGB.

    The length is drawn from `length_law` unless given; the same generator state draws the same
    performance at any length. UserError where an emoji is wanted and its font is missing.
    """
    take = _sample_take(rng)
    if num_frames is None:
        num_frames = sample_length(scene, rng)
    last = max(1, num_frames - 1)
    frames = []
    for i in range(num_frames):
        stage = _Stage(scene, take, size)
        _ACTIONS[scene.action].draw(stage, i / last)
        frames.append(stage.finish())
    return np.stack(frames)


# --- writing ------------------------------------------------------------------------------------


def _choose_actors(wanted: str) -> tuple[str, ...]:
    if wanted == "shapes":
        return SHAPES
    if wanted == "emoji":
        return _need_font(ACTORS)
    if wanted == "auto":
        if find_font() is not None:
            return ACTORS + SHAPES
        warnings.warn(
            f"no {FONT_NAME} here: drawing shapes only; Debian package {FONT_PACKAGE} has emoji",
            stacklevel=3,
        )
        return SHAPES
    cast = tuple(dict.fromkeys(name.strip() for name in wanted.split(",")))
    unknown = [name for name in cast if name not in ACTORS + SHAPES]
    if unknown:
        raise UserError(
            f"unknown actor {unknown[0]!r}: choose auto, emoji or shapes, or names with commas of "
            + ", ".join(ACTORS + SHAPES)
        )
    return cast if set(cast) <= set(SHAPES) else _need_font(cast)


def _need_font(cast: tuple[str, ...]) -> tuple[str, ...]:
    if find_font() is None:
        raise UserError(_no_font())
    return cast


def write_theatre(
    out: Path,
    clips: int,
    *,
    size: int = 64,
    seed: int = 0,
    actors: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a data folder: 000000.apng and so on, metadata.jsonl with captions, theatre.json.

    APNG because it is lossless (lossy video would blur pictures as small as these), holds a rate
    of 12 exactly, where GIF and WebP round it, and is the quickest of the kind to write.

    Clip i depends on seed and i alone. A clip appears only whole, and its line in metadata.jsonl
    after it, so an interrupted folder is a smaller valid one. `actors`: emoji, shapes, auto for
    all that this machine can draw, or names with commas between them. `progress` hears the number
    of clips done. UserError for a folder in use, a missing font, or settings that make no sense.
    """
    if clips < 1:
        raise UserError(f"cannot write {clips} clips: ask for at least 1")
    if not 16 <= size <= 1024:
        raise UserError(f"cannot draw frames of {size} pixels: choose 16 to 1024")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: choose 0 or more")
    cast = _choose_actors(actors)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not an empty folder: remove it or choose another name")
        out.mkdir(parents=True, exist_ok=True)
        about = {
            "seed": seed,
            "size": size,
            "fps": FPS,
            "clips": clips,
            "actors": list(cast),
            "reserved": sorted(RESERVED),
        }
        (out / "theatre.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for index in range(clips):
                rng = np.random.default_rng([seed, index])
                scene = sample_scene(rng, actors=cast)
                text = caption(scene, rng)
                path = out / f"{index:06d}.apng"
                video.write_video(path, draw_clip(scene, size, rng), FPS)
                line = {"file_name": path.name, "caption": text, **asdict(scene)}
                metadata.write(json.dumps(line) + "\n")
                metadata.flush()
                if progress is not None:
                    progress(index + 1)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
