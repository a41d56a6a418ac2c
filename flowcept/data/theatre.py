"""Procedural captioned clips whose length follows from their content.

An actor (an emoji, or a drawn shape that needs no font) performs one of twelve actions in a place.
An action runs from phase 0 to phase 1 over the clip, however many frames that is: a jump has
crouched, risen and landed exactly when the clip ends. So length is neither noise nor a label: it is
the natural duration of the action, stretched by "slowly" and shortened by "quickly", and
`length_law` is its exact distribution, against which a model's own lengths can be measured.

Pictures are bold and clean on purpose, so that a small network can learn them at 64 pixels: few
props, static places, little jitter, and everything is drawn larger and averaged down.

Stage units: x runs right and y runs down, both over [0, 1]; angles are in degrees, positive turns
clockwise, so that an actor facing right leans forward. Shapes: F frames, H height, W width, 3 the
colours red, green, blue.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import atan2, cos, degrees, exp, pi, radians, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowcept.data import video
from flowcept.data.drawn import check_folder, worded, write_folder
from flowcept.errors import UserError

FPS = 12
HORIZON = 0.74
FLOOR = 0.9  # where feet stand
ACTOR_HEIGHT = 0.45  # of the frame
ACTOR_WIDTH = 0.5  # at most

Colour = tuple[int, int, int]
Point = tuple[float, float]
Oval = tuple[float, float, float, float]  # x, y, radius along x, radius along y
Shape = Oval | list[Point]  # the points are the corners of an area
Props = list[tuple[Shape, Colour]]
Rng = np.random.Generator

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
INK = (24, 24, 32)  # of pupils and mouths
STEEL = (60, 68, 88)  # of skates
CRATER = (128, 128, 138)
BOARDS = ((236, 72, 72), (250, 196, 52), WHITE)  # surfboards


@dataclass(frozen=True)
class Scene:
    """Everything that the caption describes."""

    actor: str  # of ACTORS or SHAPES
    action: str  # of ACTIONS
    place: str = ""  # of PLACES; "" is a plain day
    adverb: str = ""  # of ADVERBS


class _Brush:
    """Draws on a square picture in stage units. `alpha` is 0 to 255."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.side = picture.width
        self.drawing = ImageDraw.Draw(picture, "RGBA")

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]

    def box(self, oval: Oval) -> list[Point]:
        x, y, rx, ry = oval
        return self.pixels([(x - rx, y - ry), (x + rx, y + ry)])

    def fill(self, shape: Shape, colour: Colour, alpha: int = 255) -> None:
        if isinstance(shape, list):
            self.drawing.polygon(self.pixels(shape), fill=(*colour, alpha))
        else:
            self.drawing.ellipse(self.box(shape), fill=(*colour, alpha))

    def line(self, points: Sequence[Point], colour: Colour, width: float, alpha: int = 255) -> None:
        thick = max(1, round(width * self.side))
        self.drawing.line(self.pixels(points), fill=(*colour, alpha), width=thick)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from a to b."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _around(point: Callable[[float], Point], corners: int = 64) -> list[Point]:
    """A closed outline: the points at equal angles, in radians, of one turn."""
    return [point(2 * pi * i / corners) for i in range(corners)]


def _tilted(origin: Point, tilt: float, along: float, down: float = 0.0) -> Point:
    """The point so far along and down from the origin, on axes turned by `tilt`."""
    c, s = cos(radians(tilt)), sin(radians(tilt))
    return origin[0] + along * c - down * s, origin[1] + along * s + down * c


# Everything faces right on stage: emoji that have a side face left and are mirrored, but these.
FACES_RIGHT = frozenset({"rocket"})
EMOJI: dict[str, str] = {
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "rabbit": "🐇", "elephant": "🐘", "pig": "🐖",
    "cow": "🐄", "sheep": "🐑", "turtle": "🐢", "penguin": "🐧", "frog": "🐸", "lion": "🦁",
    "tiger": "🐅", "bear": "🐻", "panda": "🐼", "monkey": "🐒", "rooster": "🐓", "duck": "🦆",
    "owl": "🦉", "fish": "🐠", "whale": "🐳", "octopus": "🐙", "crab": "🦀", "fox": "🦊",
    "unicorn": "🦄", "dinosaur": "🦕", "dragon": "🐉", "hedgehog": "🦔", "ladybug": "🐞",
    "robot": "🤖", "ghost": "👻", "pumpkin": "🎃", "snowman": "⛄", "alien": "👽", "car": "🚗",
    "bus": "🚌", "tractor": "🚜", "rocket": "🚀", "mushroom": "🍄", "hamburger": "🍔",
}  # fmt: skip
ACTORS: tuple[str, ...] = tuple(EMOJI)

EMOJI_SIZE = 109  # pixels: the one size at which this bitmap font can be drawn
FONT_NAME = "NotoColorEmoji.ttf"
FONT_PACKAGE = "fonts-noto-color-emoji"
FONT_FOLDERS: tuple[str, ...] = (
    "/usr/share/fonts", "/usr/local/share/fonts", "/opt/homebrew/share/fonts",
    "/Library/Fonts", "~/Library/Fonts", "~/.local/share/fonts", "~/.fonts",
)  # fmt: skip
NO_FONT = (
    f"no {FONT_NAME} on this machine: install it (Debian package {FONT_PACKAGE}) "
    "or draw --actors shapes"
)


@lru_cache(maxsize=1)
def find_font() -> Path | None:
    """The emoji font of this machine, or None. Fonts that cannot be drawn in colour are not it."""
    for folder in FONT_FOLDERS:
        for font in sorted(Path(folder).expanduser().rglob(FONT_NAME)):
            try:
                dog = _draw_emoji(font, "dog")
            except OSError:  # no bitmaps of this size, or a FreeType built without PNG
                continue
            # A font without colour draws in plain white: its channels are equal everywhere.
            if dog is not None and len({band.tobytes() for band in dog.split()[:3]}) > 1:
                return font
    return None


def _draw_emoji(font: Path, actor: str) -> Image.Image | None:
    """One emoji, cropped to its ink, or None where the font has nothing for it."""
    picture = Image.new("RGBA", (192, 192))
    # Unlike `truetype` this never takes a namesake from another folder instead.
    sized = ImageFont.FreeTypeFont(str(font), EMOJI_SIZE)
    ImageDraw.Draw(picture).text((16, 16), EMOJI[actor], font=sized, embedded_color=True)
    box = picture.getbbox()
    if box is None:
        return None
    inked = picture.crop(box)
    return inked if actor in FACES_RIGHT else inked.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


# Fill, and outline in a unit square.
MIDDLE = (0.5, 0.5)
_SHAPES: dict[str, tuple[Colour, list[Point]]] = {
    "red circle": ((226, 54, 54), _around(lambda a: _tilted(MIDDLE, degrees(a), 0.48))),
    "blue square": ((52, 104, 222), [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]),
    "green triangle": ((38, 166, 84), [(0.5, 0.02), (0.98, 0.92), (0.02, 0.92)]),
    "yellow star": ((250, 204, 40), _around(
        lambda a: _tilted(MIDDLE, degrees(a) - 90, 0.375 + 0.125 * cos(5 * a)), 10)),
    "pink heart": ((240, 104, 164), _around(lambda a: (
        0.5 + 0.48 * sin(a) ** 3,
        0.46 - 0.03 * (13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a))))),
    "orange diamond": ((244, 140, 36), [(0.5, 0.02), (0.9, 0.5), (0.5, 0.98), (0.1, 0.5)]),
    "purple hexagon": ((140, 78, 200), _around(
        lambda a: _tilted(MIDDLE, degrees(a) - 90, 0.49), 6)),
    "white egg": ((246, 244, 236), _around(
        lambda a: (0.5 + (0.36 + 0.06 * sin(a)) * cos(a), 0.5 + 0.48 * sin(a)))),
    "brown cross": ((150, 98, 60), [
        (0.33, 0.04), (0.67, 0.04), (0.67, 0.33), (0.96, 0.33), (0.96, 0.67), (0.67, 0.67),
        (0.67, 0.96), (0.33, 0.96), (0.33, 0.67), (0.04, 0.67), (0.04, 0.33), (0.33, 0.33)]),
    "cyan drop": ((60, 190, 214), [(0.5, 0.0)] + [
        (0.5 + 0.36 * cos(a), 0.62 + 0.36 * sin(a)) for a in np.linspace(-0.5, pi + 0.5, 40)]),
}  # fmt: skip
SHAPES: tuple[str, ...] = tuple(_SHAPES)


def _draw_shape(name: str) -> Image.Image:
    """A shape with a face, without which spinning would not show. Cropped to its ink."""
    colour, corners = _SHAPES[name]
    brush = _Brush(Image.new("RGBA", (512, 512), (*colour, 0)))
    edge = brush.pixels([*corners, *corners[:2]])
    brush.fill(corners, colour)
    brush.drawing.line(edge, fill=_mix(colour, BLACK, 0.45), width=22, joint="curve")
    for x in (0.45, 0.65):  # eyes that look where the actor goes
        brush.fill((x, 0.46, 0.085, 0.105), WHITE)
        brush.fill((x + 0.03, 0.47, 0.05, 0.062), INK)
    brush.drawing.arc(brush.box((0.55, 0.59, 0.1, 0.1)), 20, 160, fill=INK, width=22)
    small = brush.picture.reduce(4)
    return small.crop(small.getbbox())


@lru_cache(maxsize=1024)
def _sprite(actor: str, halvings: int) -> Image.Image:
    """The actor's picture facing right, cropped to its ink, halved so many times."""
    if halvings:
        return _sprite(actor, 0).reduce(2**halvings)
    if actor in _SHAPES:
        return _draw_shape(actor)
    font = find_font()
    if font is None:
        raise UserError(NO_FONT)
    picture = _draw_emoji(font, actor)
    if picture is None:
        raise UserError(f"{font} has no picture of {actor!r}: install a newer {FONT_PACKAGE}")
    return picture


@dataclass(frozen=True)
class Place:
    """One or two bold things behind and before the horizon, and colours."""

    behind: Props
    before: tuple[tuple[Shape, Colour], ...]
    sky: Colour
    horizon: Colour
    ground: Colour
    sea: Colour
    ice: Colour
    light: Colour  # foam, puffs and lines


def _place(palette: str, behind: Props, *before: tuple[Shape, Colour]) -> Place:
    """The palette is sky, horizon, ground, sea, ice and light, in hexadecimal."""
    return Place(behind, before, *((c[0], c[1], c[2]) for c in map(bytes.fromhex, palette.split())))


def _discs(radius: float, colour: Colour, *middles: Point) -> Props:
    return [((x, y, radius, radius), colour) for x, y in middles]


def _fir(x: float, height: float) -> Props:
    """Two tiers, each with snow on its tip."""
    props: Props = []
    for k in range(2):
        top = HORIZON + 0.02 - height + 0.32 * height * k
        half = (0.22 + 0.08 * k) * height
        for part, depth, colour in ((1, 0.6, (44, 112, 92)), (0.4, 0.24, WHITE)):
            foot = top + depth * height
            props.append(([(x, top), (x + part * half, foot), (x - part * half, foot)], colour))
    return props


def _tree(x: float, height: float, leaf: Colour) -> Props:
    left, right, foot = x - 0.018, x + 0.018, HORIZON + 0.02
    top = foot - 0.5 * height
    trunk: Shape = [(left, foot), (right, foot), (right, top), (left, top)]
    return [(trunk, (122, 84, 56)), *_discs(0.36 * height, leaf, (x, foot - 0.68 * height))]


_PLACES: dict[str, Place] = {
    "": _place(
        "96d0fa def2fe 80c460 2882d0 cee8f6 ffffff", _discs(0.085, (255, 222, 84), (0.86, 0.13))),
    "at sunset": _place("764896 ffa854 785854 704c94 e0bace ffe0be", [
        *_discs(0.17, (255, 226, 120), (0.72, HORIZON - 0.02))]),
    "at night": _place("0e1438 2c3a70 264248 16306c 607ab0 becef0", [
        *_discs(0.1, (250, 244, 206), (0.82, 0.17)),  # the moon, and what it lacks
        *_discs(0.085, (20, 27, 64), (0.865, 0.145)),
        *_discs(0.013, (255, 250, 214), (0.12, 0.14), (0.34, 0.08), (0.56, 0.2)),
        *_discs(0.013, (255, 250, 214), (0.22, 0.36), (0.92, 0.42))]),
    "in the snow": _place(
        "8ca4c4 bed0e2 e2ecf7 407ca8 cee8f6 ffffff", [*_fir(0.1, 0.42), *_fir(0.9, 0.32)]),
    "in the desert": _place("5cbee8 fceabc ecbc68 22a4b0 cee8f6 ffffff", [
        *_discs(0.1, (255, 244, 180), (0.14, 0.14)),
        ((0.85, HORIZON + 0.06, 0.34, 0.16), (222, 168, 90))]),  # a dune
    "on the moon": _place("080812 1a1a2c a0a0a8 5c628c bec8dc e2e4ec", [
        *_discs(0.11, (62, 132, 216), (0.16, 0.18)),  # the earth, and land on it
        ((0.13, 0.16, 0.05, 0.04), (86, 180, 104)),
        *_discs(0.011, WHITE, (0.4, 0.1), (0.62, 0.2), (0.86, 0.12), (0.92, 0.44), (0.34, 0.4)),
    ], ((0.14, 0.82, 0.08, 0.35 * 0.08), CRATER), ((0.84, 0.95, 0.09, 0.35 * 0.09), CRATER)),
    "in the park": _place("80cef6 cef0fa 62b24e 348cbe cee8f6 ffffff", [
        *_tree(0.1, 0.46, (58, 146, 66)), *_tree(0.92, 0.38, (74, 160, 72))]),
}  # fmt: skip
PLACES: tuple[str, ...] = tuple(_PLACES)


@lru_cache(maxsize=64)
def _background(name: str, side: int) -> Image.Image:
    """The empty place: a sky that fades to the horizon, scenery, ground."""
    place = _PLACES[name]
    share_H1 = np.linspace(0, 1 / HORIZON, side).clip(0, 1)[:, None]
    top, bottom = np.array([place.sky, place.horizon], dtype=np.float64)
    sky_H3 = np.round(top + share_H1 * (bottom - top)).astype(np.uint8)
    brush = _Brush(Image.fromarray(np.repeat(sky_H3[:, None], side, axis=1)))

    ground: Shape = [(0, HORIZON), (1, HORIZON), (1, 1), (0, 1)]
    for shape, colour in (*place.behind, (ground, place.ground), *place.before):
        brush.fill(shape, colour)
    return brush.picture


def _ease(phase: float, start: float = 0.0, end: float = 1.0) -> float:
    """0 before `start`, 1 after `end`, smooth between."""
    share = min(1.0, max(0.0, (phase - start) / (end - start)))
    return share * share * (3 - 2 * share)


def _bump(phase: float, start: float, end: float) -> float:
    """0 outside start..end, a half sine wave inside."""
    share = (phase - start) / (end - start)
    return sin(pi * share) if 0 < share < 1 else 0.0


class _Stage(_Brush):
    """Where one clip is played. The generator sets what differs between two clips of one scene."""

    def __init__(self, scene: Scene, size: int, rng: Rng) -> None:
        shift, zoom, offset = rng.uniform(-1, 1, 3)
        self.shift = 0.03 * shift  # of the whole path
        self.zoom = 1 + 0.05 * zoom  # of the actor
        self.offset = 0.02 * offset  # of ripples
        self.board = BOARDS[int(rng.integers(len(BOARDS)))]
        self.scene = scene
        self.place = _PLACES[scene.place]
        self.size = size

    def frame(self, phase: float) -> video.Frames:
        """The scene at a phase, image_HW3."""
        # Enough averaging for smooth edges without wasting time on large frames.
        oversampling = 3 if self.size < 128 else 2
        super().__init__(_background(self.scene.place, self.size * oversampling).copy())
        _ACTIONS[self.scene.action][1](self, phase)
        return np.asarray(self.picture.reduce(oversampling))

    def actor(
        self, feet: Point, *, lean: float = 0, turn: float = 0, scale: float = 1, squash: float = 1
    ) -> None:
        """Paint the actor. It leans about its feet, turns about its middle; a squash widens it."""
        width, height = _sprite(self.scene.actor, 0).size
        unit = self.zoom * scale * min(ACTOR_HEIGHT / height, ACTOR_WIDTH / width) * self.side
        sprite = _sprite(self.scene.actor, 0 if unit > 0.5 else 1 if unit > 0.25 else 2)
        # Pixels of the picture for each of the sprite.
        step_x = unit * (2 - squash) * width / sprite.width
        step_y = unit * squash * height / sprite.height
        foot = ((feet[0] + self.shift) * self.side, feet[1] * self.side)
        middle = _tilted(foot, lean, 0, -step_y * sprite.height / 2)
        self._paste(sprite, (step_x, step_y), middle, lean + turn)

    def _paste(self, sprite: Image.Image, steps: Point, middle: Point, tilt: float) -> None:
        """Stretch a sprite by `steps`, tilt it, and paste it around `middle`, in pixels."""
        (step_x, step_y), (x, y) = steps, middle
        half_x, half_y = step_x * sprite.width / 2, step_y * sprite.height / 2
        c, s = cos(radians(tilt)), sin(radians(tilt))
        reach_x = abs(c) * half_x + abs(s) * half_y + 1
        reach_y = abs(s) * half_x + abs(c) * half_y + 1
        left, top = int(x - reach_x), int(y - reach_y)
        size = int(x + reach_x) + 1 - left, int(y + reach_y) + 1 - top

        # Pillow wants the map from patch to sprite: turn back, unscale, shift to its middle.
        dx, dy, smooth = left - x, top - y, Image.Resampling.BILINEAR
        back_x = (c / step_x, s / step_x, (c * dx + s * dy) / step_x + sprite.width / 2)
        back_y = (-s / step_y, c / step_y, (-s * dx + c * dy) / step_y + sprite.height / 2)
        patch = sprite.transform(size, Image.Transform.AFFINE, (*back_x, *back_y), smooth)
        self.picture.paste(patch, (left, top), patch)

    def shadow(self, x: float, height: float = 0.0, scale: float = 1.0) -> None:
        """The actor's shadow on the floor, smaller the higher the feet are."""
        size = scale * max(0.3, 1 - 1.4 * height)
        self.fill((x + self.shift, FLOOR, 0.17 * size, 0.032 * size), BLACK, 70)

    def puff(self, x: float, y: float, radius: float, alpha: int = 230) -> None:
        """A light round cloud: dust, foam or vapour."""
        self.fill((x + self.shift, y, radius, radius), self.place.light, alpha)

    def plank(self, middle: Point, radii: Point, tilt: float, fill: Colour, edge: Colour) -> None:
        """A tilted oval with an edge: a board or a wing."""
        rx, ry = radii
        outline = _around(lambda a: _tilted(middle, tilt, rx * cos(a), ry * sin(a)), 32)
        self.fill(outline, fill)
        self.line([*outline, outline[0]], edge, 0.012)

    def wing(self, x: float, y: float, lift: float, colour: Colour) -> None:
        """A wing that reaches back from (x, y), its tip raised by `lift` degrees."""
        edge = _mix(colour, (60, 80, 130), 0.45)
        self.plank(_tilted((x, y), lift, -0.13), (0.17, 0.06), lift, colour, edge)

    def across(self, surface: Callable[[float], float], lower: float = 0.0) -> list[Point]:
        """The line y = surface(x) from edge to edge, lowered."""
        return [(i / 24, surface(i / 24) + lower) for i in range(25)]

    def water(self, surface: Callable[[float], float]) -> None:
        """Everything under `surface` (x to y) is water with a light edge."""
        line = self.across(surface)
        self.fill([*line, (1, 1), (0, 1)], self.place.sea)
        self.line(line, _mix(self.place.sea, self.place.light, 0.65), 0.03)

    def surfing(self, phase: float) -> None:
        """A wave comes from behind, lifts the board, and rolls on."""
        crest = -0.25 + 1.5 * phase
        x = 0.3 + 0.36 * _ease(phase)

        def surface(at: float) -> float:
            return 0.79 - 0.29 * exp(-(((at - crest) / 0.24) ** 2))

        at = x + self.shift
        y = surface(at) - 0.02
        lean = degrees(atan2(surface(at + 0.06) - surface(at - 0.06), 0.12)) * 0.75
        self.water(surface)
        self.line(self.across(surface, 0.1), _mix(self.place.sea, self.place.light, 0.25), 0.035)
        self.plank((at, y), (0.27, 0.045), lean, self.board, _mix(self.board, BLACK, 0.35))
        self.actor((x, y + 0.005), lean=lean, scale=0.92)
        for k in range(3):  # spray from the tail
            spray_x, spray_y = _tilted((x, y), lean, -(0.29 + 0.05 * k))
            self.puff(spray_x, spray_y - 0.02 * k, 0.03 - 0.007 * k)

    def walking(self, phase: float) -> None:
        """Four waddling steps from left to right."""
        x = 0.28 + 0.46 * phase
        step = sin(4 * pi * phase)
        self.shadow(x)
        self.actor((x, FLOOR - 0.035 * abs(step)), lean=11 * step)

    def running(self, phase: float) -> None:
        """Three long leaps across the whole stage, leaning forward, dust behind."""
        x = 0.15 + 0.72 * phase
        height = 0.11 * abs(sin(3 * pi * phase))
        self.shadow(x, height)
        if 0 < phase < 1:
            for k in range(3):
                dust = FLOOR - 0.02 - 0.015 * k
                self.puff(x - 0.24 - 0.09 * k, dust, 0.05 - 0.012 * k, 220 - 50 * k)
            for y in (0.5 - height, 0.62 - height):
                self.line([(x - 0.44, y), (x - 0.27, y)], self.place.light, 0.018, 220)
        self.actor((x, FLOOR - height), lean=15, squash=1 - 0.1 * cos(6 * pi * phase))

    def jumping(self, phase: float) -> None:
        """Crouch, one high leap that carries a little to the right, landing."""
        share = min(1.0, max(0.0, (phase - 0.22) / 0.56))
        x, height = 0.4 + 0.2 * share, 0.4 * 4 * share * (1 - share)
        squash = 1 - 0.3 * _bump(phase, 0.0, 0.26) - 0.3 * _bump(phase, 0.76, 1.0)
        if 0 < share < 1:
            squash += 0.14 * abs(1 - 2 * share)
        self.shadow(x, height)
        self.actor((x, FLOOR - height), squash=squash)

    def flying(self, phase: float) -> None:
        """Takes off on flapping wings and sails to the upper right."""
        x, y = 0.27 + 0.47 * phase, FLOOR - 0.46 * _ease(phase, 0.0, 0.9)
        root, flap = x + self.shift, 50 * sin(8 * pi * phase)
        near = self.place.light
        self.shadow(x, FLOOR - y)
        self.wing(root - 0.03, y - 0.27, 20 + flap, _mix(near, (90, 110, 150), 0.4))
        self.actor((x, y), turn=-20 * _bump(phase, 0.0, 1.0))
        self.wing(root - 0.12, y - 0.23, 12 + flap, near)

    def swimming(self, phase: float) -> None:
        """Half under water from left to right, rocking with each stroke."""
        x = 0.27 + 0.48 * phase
        stroke = sin(5 * pi * phase)

        def surface(at: float) -> float:
            return 0.6 + 0.016 * sin(2 * pi * (2 * (at + self.offset) - 2 * phase))

        self.water(surface)
        self.actor((x, 0.81 - 0.035 * stroke), turn=8 + 12 * stroke)
        # The nearer water covers the lower half but lets it shine through.
        self.fill([*self.across(surface, 0.02), (1, 1), (0, 1)], self.place.sea, 170)
        for k in range(3):  # the wake
            wake = x - 0.22 - 0.1 * k
            self.puff(wake, surface(wake) + 0.015, 0.045 - 0.011 * k)
        self.puff(x + 0.23, 0.57 - 0.05 * max(0.0, stroke), 0.03)

    def falling(self, phase: float) -> None:
        """Drops from the top, faster and faster, turning upright, and lands with a bump."""
        share = min(1.0, phase / 0.72)
        height = 0.47 * (1 - share**2)
        squash = 1 + 0.1 * (share if share < 1 else 0.0) - 0.3 * _bump(phase, 0.7, 1.0)
        self.shadow(0.5, height)
        if 0 < share < 1:
            for k in (-1, 0, 1):
                x, top = 0.5 + self.shift + 0.13 * k, FLOOR - height - 0.5
                self.line([(x, top - 0.2 * share), (x, top)], self.place.light, 0.02, 220)
        if share == 1 and phase < 1:
            landed = _ease(phase, 0.7, 1.0)
            for k in (-1, 1):
                x = 0.5 + k * (0.24 + 0.12 * landed)
                self.puff(x, FLOOR - 0.01, 0.065 * (1 - 0.6 * landed))
        self.actor((0.5, FLOOR - height), turn=-130 * (1 - share), squash=squash)

    def spinning(self, phase: float) -> None:
        """One full turn about its middle."""
        self.shadow(0.5, 0.12)
        self.actor((0.5, FLOOR - 0.12), turn=360 * phase)

    def bouncing(self, phase: float) -> None:
        """Three hops from left to right, each lower than the one before."""
        x = 0.26 + 0.5 * phase
        start, height, squash = 0.0, 0.0, 1.0
        for peak, length in ((0.36, 0.43), (0.22, 0.33), (0.11, 0.24)):
            share = (phase - start) / length
            if 0 <= share <= 1:
                height = peak * 4 * share * (1 - share)
            squash -= 0.3 * exp(-(((phase - start) / 0.045) ** 2))
            start += length
        self.shadow(x, height)
        self.actor((x, FLOOR - height), squash=squash)

    def skating(self, phase: float) -> None:
        """Two gliding strokes on blades, swinging from side to side, a track in the ice behind."""
        ice = self.place.ice
        self.fill((0.5, 0.95, 0.66, 0.19), ice)
        for x, y in ((0.12, 0.86), (0.66, 0.84)):
            self.line([(x, y), (x + 0.14, y)], _mix(ice, self.place.light, 0.8), 0.016)

        def path(at: float) -> Point:
            return 0.26 + 0.5 * at, 0.9 - 0.045 * sin(4 * pi * at)

        if phase > 0:
            track = [path(phase * i / 24) for i in range(25)]
            scratch = _mix(ice, (40, 80, 140), 0.45)
            self.line([(x + self.shift, y) for x, y in track], scratch, 0.014)

        (x, y), lean = path(phase), 20 * cos(4 * pi * phase)
        self.actor(_tilted((x, y), lean, 0, -0.04), lean=lean)
        foot = (x + self.shift, y)
        for u in (-0.11, 0.08):  # a blade and its post under each foot
            self.line([_tilted(foot, lean, u, -v) for v in (0.06, 0.02)], STEEL, 0.05)
            self.line([_tilted(foot, lean, v) for v in (u - 0.05, u + 0.07)], STEEL, 0.028)

    def growing(self, phase: float) -> None:
        """From a quarter to one and a third of its size, in three swells."""
        swell = sin(6 * pi * phase)
        scale = 0.28 + 1.05 * (phase + 0.035 * swell)
        self.shadow(0.5, scale=scale)
        self.actor((0.5, FLOOR), scale=scale, squash=1 + 0.07 * swell)

    def hiding(self, phase: float) -> None:
        """Slips behind a bush, which rustles, and comes back out."""
        away = _ease(phase, 0.05, 0.4) - _ease(phase, 0.62, 0.97)
        x = 0.27 + 0.43 * away
        self.shadow(x)
        self.actor((x, FLOOR - 0.04 * abs(sin(3 * pi * away))))

        rustle = 0.022 * sin(10 * pi * phase) * _bump(phase, 0.25, 0.9)
        leaf = _mix((44, 132, 62), self.place.sky, 0.12)
        lobes = ((0.56, 0.79, 0.15), (0.84, 0.79, 0.15), (0.7, 0.64, 0.2), (0.7, 0.8, 0.16))
        for edge, colour in ((0.018, _mix(leaf, BLACK, 0.3)), (0.0, leaf)):
            for x, y, r in lobes:
                lift = rustle * (0.94 - y) * 6
                self.fill((x + lift + self.shift, y, r + edge, r + edge), colour)


# Mean length of the plain action, in frames at FPS, and the method that draws it.
_ACTIONS: dict[str, tuple[int, Callable[[_Stage, float], None]]] = {
    "surfing": (16, _Stage.surfing), "walking": (12, _Stage.walking),
    "running": (10, _Stage.running), "jumping": (10, _Stage.jumping),
    "flying": (13, _Stage.flying), "swimming": (14, _Stage.swimming),
    "falling": (10, _Stage.falling), "spinning": (11, _Stage.spinning),
    "bouncing": (13, _Stage.bouncing), "skating": (15, _Stage.skating),
    "growing": (12, _Stage.growing), "hiding": (14, _Stage.hiding),
}  # fmt: skip
ACTIONS: tuple[str, ...] = tuple(_ACTIONS)

# How an adverb multiplies the natural length.
_PACE: dict[str, float] = {"": 1.0, "slowly": 1.5, "quickly": 0.65}
ADVERBS: tuple[str, ...] = tuple(_PACE)

# Never written for training: they measure later whether a model combines what it knows. One for
# each action, and four of shapes.
RESERVED: frozenset[tuple[str, str]] = frozenset({
    ("penguin", "surfing"), ("robot", "walking"), ("elephant", "running"), ("pumpkin", "jumping"),
    ("cow", "flying"), ("lion", "swimming"), ("car", "falling"), ("tiger", "spinning"),
    ("octopus", "bouncing"), ("dinosaur", "skating"), ("ghost", "growing"), ("fox", "hiding"),
    ("blue square", "surfing"), ("red circle", "flying"), ("green triangle", "skating"),
    ("yellow star", "jumping"),
})  # fmt: skip


def sample_scene(rng: Rng, *, actors: Sequence[str], reserved: bool = False) -> Scene:
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


def caption(scene: Scene, rng: Rng) -> str:
    """The scene in words, most often in the plain order "a dog surfing slowly at sunset"."""
    vowel = scene.actor[0] in "aeiou" and scene.actor != "unicorn"
    subject = f"{'an' if vowel else 'a'} {scene.actor}"
    return worded(subject, scene.action, scene.adverb, scene.place, rng)


def length_law(scene: Scene) -> dict[int, float]:
    """P(number of frames), which depends on action and adverb only.

    A triangle around the mean, natural length times pace, of half width mean / 6 but 1.5 to 2.5
    frames: two to five neighbouring lengths.
    """
    mean = _ACTIONS[scene.action][0] * _PACE[scene.adverb]
    half = min(2.5, max(1.5, mean / 6))
    weights = {n: half - abs(n - mean) for n in range(round(mean) - 3, round(mean) + 4)}
    weights = {n: weight for n, weight in weights.items() if weight > 1e-9}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def sample_length(scene: Scene, rng: Rng) -> int:
    """A number of frames drawn from `length_law`."""
    law = length_law(scene)
    return int(rng.choice(list(law), p=list(law.values())))


def draw_clip(scene: Scene, size: int, rng: Rng, *, num_frames: int | None = None) -> video.Frames:
    """The scene as frames_FHW3 of `size` x `size` pixels, RGB.

    The length is drawn from `length_law` unless given; the same generator state draws the same
    performance at any length. UserError where an emoji is wanted and its font is missing.
    """
    stage = _Stage(scene, size, rng)
    if num_frames is None:
        num_frames = sample_length(scene, rng)
    last = max(1, num_frames - 1)
    return np.stack([stage.frame(i / last) for i in range(num_frames)])


def _choose_actors(wanted: str) -> tuple[str, ...]:
    groups = {"auto": ACTORS + SHAPES, "emoji": ACTORS, "shapes": SHAPES}
    names = groups.get(wanted) or [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in ACTORS + SHAPES]
    if unknown:
        raise UserError(
            f"unknown actor {unknown[0]!r}: choose auto, emoji, shapes or, with commas, "
            + ", ".join(ACTORS + SHAPES)
        )
    if find_font() is not None or set(names) <= set(SHAPES):
        return tuple(dict.fromkeys(names))
    if wanted != "auto":
        raise UserError(NO_FONT)
    warnings.warn(
        f"no {FONT_NAME} here: drawing shapes only; Debian package {FONT_PACKAGE} has emoji",
        stacklevel=3,
    )
    return SHAPES


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

    APNG because it is lossless, holds a rate of 12 exactly, where GIF and WebP round it, and is the
    quickest of the kind to write. Clip i depends on seed and i alone. It appears only whole, and
    its line in metadata.jsonl after it, so an interrupted folder is a smaller valid one.

    `actors`: emoji, shapes, auto for all that this machine can draw, or names with commas between
    them. `progress` hears the number of clips done. UserError for a folder in use, a missing font,
    or settings that make no sense.
    """
    check_folder(clips, size, seed)
    cast = _choose_actors(actors)
    about = {"seed": seed, "size": size, "fps": FPS, "clips": clips, "actors": list(cast)}
    about["reserved"] = sorted(RESERVED)

    def lines() -> Iterator[dict[str, str]]:
        for index in range(clips):
            rng = np.random.default_rng([seed, index])
            scene = sample_scene(rng, actors=cast)
            line = {"file_name": f"{index:06d}.apng", "caption": caption(scene, rng)}
            video.write_video(out / line["file_name"], draw_clip(scene, size, rng), FPS)
            yield line | asdict(scene)

    write_folder(out, "theatre", about, lines(), progress)
