"""Captioned clips of simple shapes, drawn from nothing: for tests, and where no data is at hand.

A coloured shape performs one of eight actions in a place. An action runs from phase 0 to phase 1
over the clip, however many frames that is. So length is neither noise nor a label: it is the
natural duration of the action, stretched by "slowly" and shortened by "quickly"; `length_law` is
its exact distribution, against which a model's own lengths can be measured.

x runs right and y runs down, both over [0, 1] of the picture; angles are in degrees, clockwise.
Suffixes: F frames, H height, W width, S side of a solid's picture, P corners, 3 red, green, blue.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import cos, degrees, exp, pi, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from flowcept.data import drawn, video

FPS = 12
HORIZON, FLOOR, RADIUS = 0.66, 0.87, 0.2  # where the ground begins, where shapes stand, their size
SIDE, ROOM = 80, 1.25  # of a solid's picture: its pixels, and how many radii it reaches
WHITE = "fafafa"
COLOURS: dict[str, str] = {
    "red": "e42c2c", "orange": "ff8414", "yellow": "ffd624",
    "green": "18b054", "blue": "2868f0", "purple": "9646dc",
}  # fmt: skip
Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Thing = tuple[Array, float, float, float, float, str]  # outline, x, y, its width and height, colour


@dataclass(frozen=True)
class Scene:
    """Everything that the caption describes."""

    colour: str  # of COLOURS
    shape: str  # of SHAPES
    action: str  # of ACTIONS
    place: str = ""  # of PLACES; "" is a meadow
    adverb: str = ""  # of ADVERBS


def _round(radius: Callable[[Array], Array | float], corners: int = 80) -> Array:
    """The outline with this radius at each angle from the top, in radians."""
    angle_P = np.arange(corners) * 2 * pi / corners
    return (radius(angle_P) * np.array([np.sin(angle_P), -np.cos(angle_P)])).T


def _rotation(turn: float) -> Array:
    c, s = cos(radians(turn)), sin(radians(turn))
    return np.array([[c, -s], [s, c]])


# Outlines about a middle at 0, about 1 from it.
_X = np.linspace(-1, 1, 80)
_BELLY = pi / 2 + 2 * _X  # of a drop
_HEART = 13 * np.cos(pi * _X) - 5 * np.cos(2 * pi * _X) - 2 * np.cos(3 * pi * _X)
_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
_TRIANGLE = np.array([(0, -1), (1, 1), (-1, 1)])
_GEM = np.array([(-0.5, -0.72), (0.5, -0.72), (0.97, -0.2), (0, 0.92), (-0.97, -0.2)])
_DISC = _round(lambda _: 0.97)
_LOBES = _round(lambda a: 0.84 + 0.12 * np.abs(np.cos(3.5 * a)))
_HILLS = np.array([[-1, *_X, 1], [1, *np.sin(7 * _X), 1]]).T
# Solids, and what is white on them: without stripes no ball would be seen to turn.
_SOLIDS: dict[str, tuple[Array, list[Array]]] = {
    "ball": (_DISC, [(_TRIANGLE * 0.6 + [0, 0.6]) @ _rotation(120 * k) for k in range(3)]),
    "box": (_SQUARE * 0.86, [_SQUARE * (0.18, 1), _SQUARE * (1, 0.18)]),
    "star": (_round(lambda a: 0.7 + 0.28 * np.cos(5 * a), 10), []),
    "heart": (np.array([np.sin(pi * _X) ** 3, 0.15 - (_HEART - np.cos(4 * pi * _X)) / 16]).T, []),
    "ring": (_DISC, [_SQUARE * (0.25, 1), _SQUARE * (1, 0.25)]),
    "drop": (np.array([[0, *0.68 * np.cos(_BELLY)], [-1, *0.29 + 0.68 * np.sin(_BELLY)]]).T, []),
    "flower": (_round(lambda a: 0.57 + 0.4 * np.abs(np.cos(2.5 * a)) ** 0.7), [_DISC * 0.3]),
    "diamond": (_GEM, [np.array([*_GEM[:2], (0.3, -0.2), (-0.3, -0.2)])]),
    "wing": (_DISC * (1, 0.4), []),
    "mound": (_LOBES, []),
}
SHAPES: tuple[str, ...] = tuple(_SOLIDS)[:8]

_STARS: list[Thing] = [
    (_DISC, x, y, 0.011, 0.011, WHITE)
    for x, y in ((0.36, 0.09), (0.56, 0.2), (0.92, 0.4), (0.42, 0.38), (0.06, 0.42), (0.65, 0.06))
]
# Colours of sky and ground, from top to foot; of what a shape hides behind; and a few bold things.
_PLACES: dict[str, tuple[str, str, list[Thing]]] = {
    "": ("5ab4f4 d4f0fc 9ad65c 62b23c", "3d9440", [
        (_DISC, 0.84, 0.15, 0.09, 0.09, "ffe26a"), (_LOBES, 0.25, 0.19, 0.16, 0.09, WHITE),
        (_HILLS, 0.3, 0.61, 0.9, 0.05, "86cc78"), (_HILLS, 0.6, 0.63, 0.7, 0.03, "78c460")]),
    "at sunset": ("5b3f8e ffa65c a8586c 5c3560", "4c2c56", [
        (_DISC, 0.68, 0.49, 0.17, 0.17, "ffd56a"), (_HILLS, 0.5, 0.61, 0.7, 0.05, "8c4a78")]),
    "at night": ("0c1240 3a4a90 2f5a5c 1c3a44", "1d4a48", [
        *_STARS, (_DISC, 0.8, 0.18, 0.1, 0.1, "fbf3cf"), (_DISC, 0.84, 0.16, 0.09, 0.09, "131a4c"),
        (_HILLS, 0.4, 0.6, 0.9, 0.06, "1f2f5e")]),
    "in the snow": ("8fb4dc e2eefa ffffff d0e0f2", "e8f0fa", [
        (_HILLS, 0.5, 0.59, 0.6, 0.07, "c4d8ee"),
        (_TRIANGLE, 0.73, 0.58, 0.07, 0.1, "2c7a64"), (_TRIANGLE, 0.73, 0.52, 0.03, 0.04, WHITE),
        (_TRIANGLE, 0.9, 0.53, 0.11, 0.17, "2c7a64"), (_TRIANGLE, 0.9, 0.43, 0.05, 0.07, WHITE),
        (_TRIANGLE, 0.1, 0.48, 0.14, 0.21, "2c7a64"), (_TRIANGLE, 0.1, 0.36, 0.06, 0.09, WHITE)]),
    "on the beach": ("62bff6 dff5fd fbe6ae edc87c", "e0b668", [
        (_LOBES, 0.7, 0.2, 0.16, 0.08, WHITE), (_SQUARE, 0.5, 0.6, 0.5, 0.06, "2f9fd0"),
        (_TRIANGLE, 0.1, 0.4, 0.09, 0.12, WHITE), (_TRIANGLE, 0.1, 0.57, 0.13, -0.04, "d8483c")]),
    "on the moon": ("04040e 20203a b4b4c0 84848f", "74747f", [
        *_STARS, (_DISC, 0.2, 0.2, 0.12, 0.12, "3a82d8"), (_LOBES, 0.2, 0.15, 0.1, 0.05, "5cba72"),
        (_HILLS, 0.5, 0.65, 0.8, 0.02, "9a9aa8"), (_DISC, 0.85, 0.79, 0.1, 0.03, "8c8c98")]),
}  # fmt: skip
PLACES: tuple[str, ...] = tuple(_PLACES)


@dataclass(frozen=True)
class Pose:
    """Where a shape is at one moment, and how it is deformed."""

    x: float = 0.5
    height: float = 0.0  # of its lowest point above the floor
    turn: float = 0.0
    scale: float = 1.0
    squash: float = 1.0  # of its height; under 1 it is wider


def _bump(share: float) -> float:
    """Half a sine wave from 0 to 1, nothing outside."""
    return sin(pi * share) if 0 < share < 1 else 0.0


def _jumping(phase: float) -> Pose:
    """Crouches, leaps, lands."""
    share = min(1.0, max(0.0, (phase - 0.22) / 0.56))
    squash = 1 - 0.32 * (_bump(phase / 0.26) + _bump((phase - 0.76) / 0.24))
    return Pose(0.38 + 0.24 * share, 1.6 * share * (1 - share), squash=squash)


def _bouncing(phase: float) -> Pose:
    """Three hops, each lower than the one before."""
    hop, share = divmod(3 * phase, 1)
    squash = 1 - 0.32 * exp(-((min(share, 1 - share) / 0.12) ** 2))
    return Pose(0.25 + 0.5 * phase, 1.6 * 0.55**hop * share * (1 - share), squash=squash)


def _falling(phase: float) -> Pose:
    """Turns upright on its way and lands with a bump."""
    left = max(0.0, 1 - phase / 0.72)
    squash = 1 - 0.32 * _bump((phase - 0.7) / 0.3)
    return Pose(height=0.62 * left * (2 - left), turn=-130 * left, squash=squash)


# Mean length of the plain action, in frames, and how it is done.
_ACTIONS: dict[str, tuple[int, Callable[[float], Pose]]] = {
    "hiding": (14, lambda p: Pose(0.24 + 0.46 * min(1.0, 0.6 - 0.6 * cos(2 * pi * p)), scale=0.75)),
    "jumping": (10, _jumping),
    "rolling": (15, lambda p: Pose(0.2 + 0.6 * p, turn=degrees(0.75 * p / RADIUS), scale=0.8)),
    "flying": (13, lambda p: Pose(0.32 + 0.36 * p, 0.42 * sin(pi / 2 * p), 12 * _bump(p), 0.8)),
    "spinning": (11, lambda p: Pose(height=0.12, turn=360 * p)),
    "growing": (12, lambda p: Pose(scale=0.29 + 1.16 * p, squash=1 + 0.07 * sin(6 * pi * p))),
    "bouncing": (13, _bouncing),
    "falling": (10, _falling),
}
ACTIONS: tuple[str, ...] = tuple(_ACTIONS)
_PACE = {"": 1.0, "slowly": 1.5, "quickly": 0.65}  # how an adverb multiplies the natural length
ADVERBS: tuple[str, ...] = tuple(_PACE)

# Never written for training: these measure later whether a model combines what it knows.
RESERVED: frozenset[tuple[str, str]] = frozenset(zip(SHAPES, ACTIONS, strict=True))


def sample_scene(rng: Rng, *, reserved: bool = False) -> Scene:
    """A random scene; `reserved=True` draws only pairs of RESERVED, False never does."""
    pairs = [(s, a) for s in SHAPES for a in ACTIONS if ((s, a) in RESERVED) == reserved]
    shape, action = pairs[int(rng.integers(len(pairs)))]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    place = PLACES[int(rng.integers(1, len(PLACES)))] if rng.random() < 0.6 else ""
    adverb = ADVERBS[int(rng.integers(1, len(ADVERBS)))] if rng.random() < 0.5 else ""
    return Scene(colour, shape, action, place, adverb)


def caption(scene: Scene, rng: Rng) -> str:
    """The scene in words, most often in the plain order "a red ball bouncing slowly at night"."""
    subject = f"{'an' if scene.colour == 'orange' else 'a'} {scene.colour} {scene.shape}"
    return drawn.worded(subject, scene.action, scene.adverb, scene.place, rng)


def length_law(scene: Scene) -> dict[int, float]:
    """P(number of frames): two to five neighbouring lengths around natural length times pace."""
    mean = _ACTIONS[scene.action][0] * _PACE[scene.adverb]
    return drawn.lengths_around(mean, min(2.5, max(1.5, mean / 6)))


def sample_length(scene: Scene, rng: Rng) -> int:
    """A number of frames drawn from `length_law`."""
    return drawn.draw_length(length_law(scene), rng)


@lru_cache(maxsize=64)
def _background(place: str, side: int) -> Image.Image:
    colours, _, things = _PLACES[place]
    knots = np.array([0, HORIZON, HORIZON, 1]) * side
    bands = np.array([[*bytes.fromhex(colour)] for colour in colours.split()]).T
    column_H3 = np.stack([np.interp(np.arange(side) + 0.5, knots, band) for band in bands], 1)
    picture = Image.fromarray(np.tile(column_H3[:, None], (1, side, 1)).astype(np.uint8))
    for outline, x, y, width, height, colour in things:
        points = (outline * (width, height) + (x, y)) * side
        ImageDraw.Draw(picture).polygon(points.ravel().tolist(), fill=f"#{colour}")
    return picture


def _area(outlines: list[Array], turn: float) -> Image.Image:
    """What turned outlines enclose, white on black."""
    picture = Image.new("L", (2 * SIDE, 2 * SIDE))
    for outline in outlines:
        points = (outline @ _rotation(turn).T / ROOM + 1) * SIDE
        ImageDraw.Draw(picture).polygon(points.ravel().tolist(), fill=255)
    return picture.reduce(2)


@lru_cache(maxsize=2048)
def _solid(name: str, colour: str, turn: int = 0) -> Image.Image:
    """A shape as a cushion, RGBA, turned, in light from the upper left."""
    outline, marks = _SOLIDS[name]
    inside = _area([outline], turn)
    if name == "ring":
        inside.paste(0, mask=_area([outline * 0.4], turn))
    # The more a point is surrounded, the higher it stands.
    blurred = [inside.filter(ImageFilter.GaussianBlur(SIDE * r)) for r in (0.02, 0.055, 0.12)]
    down_SS, right_SS = np.gradient(np.mean([*map(np.asarray, blurred)], 0) * (SIDE / 680))
    facing_SS = (0.6 + 0.5 * right_SS + 0.62 * down_SS).clip(0)
    bright_SS1 = (facing_SS / np.sqrt(1 + down_SS**2 + right_SS**2))[..., None]
    white_SS1 = np.asarray(_area(marks, turn))[..., None] / 255
    paint_SS3 = np.array([*bytes.fromhex(colour)]) * (1 - white_SS1) + 250 * white_SS1
    lit_SS3 = paint_SS3 * (0.45 + 0.8 * bright_SS1) + 700 * (bright_SS1 - 0.85).clip(0)
    picture = Image.fromarray(lit_SS3.clip(0, 255).astype(np.uint8))
    picture.putalpha(inside)
    return picture


_SHADOW = Image.radial_gradient("L").reduce(4).point(lambda value: max(0, 125 - 0.7 * value))


def _frame(scene: Scene, phase: float, side: int, shift: float, zoom: float) -> Image.Image:
    """A scene at a phase, its path shifted and its shape zoomed."""
    pose = _ACTIONS[scene.action][1](phase)
    radius, x = RADIUS * zoom * pose.scale, pose.x + shift
    width, height = radius * (2 - pose.squash), radius * pose.squash
    turn = round(pose.turn / 5) * 5 % 360  # in steps, so that pictures are used again
    lowest = (_SOLIDS[scene.shape][0] @ _rotation(turn).T)[:, 1].max()
    y = FLOOR - pose.height - lowest * height
    picture = _background(scene.place, side).copy()

    def paste(image: Image.Image, at: tuple[float, float], radii: tuple[float, float]) -> None:
        size = round(2 * ROOM * side * radii[0]), round(2 * ROOM * side * radii[1])
        patch = image.resize(size, Image.Resampling.BILINEAR)
        corner = round(at[0] * side - patch.width / 2), round(at[1] * side - patch.height / 2)
        picture.paste(0 if image is _SHADOW else patch, corner, patch)

    shade = width * max(0.35, 1 - 1.3 * pose.height)
    paste(_SHADOW, (x, FLOOR), (1.2 * shade, 0.3 * shade))
    for way in (-1, 1) if scene.action == "flying" else ():
        wing = _solid("wing", WHITE, way * round(40 * cos(8 * pi * phase)))
        paste(wing, (x + way * 1.15 * radius, y - 0.3 * radius), (0.8 * radius, 0.8 * radius))
    paste(_solid(scene.shape, COLOURS[scene.colour], turn), (x, y), (width, height))
    if scene.action == "hiding":
        paste(_SHADOW, (0.71 + shift, FLOOR), (0.3, 0.075))
        paste(_solid("mound", _PLACES[scene.place][1]), (0.71 + shift, FLOOR - 0.15), (0.27, 0.25))
    return picture


def draw_clip(scene: Scene, size: int, rng: Rng, *, num_frames: int | None = None) -> video.Frames:
    """The scene as frames_FHW3 of `size` x `size` pixels, RGB.

    The length is drawn from `length_law` unless given; the same generator state draws the same
    performance at any length.
    """
    shift, zoom = rng.uniform(-1, 1, 2) * (0.04, 0.06) + (0, 1)
    num_frames = num_frames or sample_length(scene, rng)
    finer = 3 if size < 128 else 2
    phases = [i / max(1, num_frames - 1) for i in range(num_frames)]
    pictures = [_frame(scene, phase, finer * size, shift, zoom) for phase in phases]
    return np.stack([np.asarray(picture.reduce(finer)) for picture in pictures])


def write_shapes(
    out: Path, clips: int, *, size: int = 64, seed: int = 0, progress: drawn.Progress | None = None
) -> None:
    """Write a data folder: 000000.apng and so on, metadata.jsonl with captions, shapes.json.

    Clip i depends on seed and i alone; an interrupted folder is a smaller valid one. UserError for
    a folder in use, or settings that make no sense.
    """
    drawn.check_folder(clips, size, seed)
    about = {"seed": seed, "size": size, "fps": FPS, "clips": clips, "reserved": sorted(RESERVED)}

    def write(index: int) -> dict[str, str]:
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng)
        line = {"caption": caption(scene, rng)} | asdict(scene)
        return drawn.write_clip(out, index, line, draw_clip(scene, size, rng), FPS)

    drawn.write_folder(out, "shapes", about, map(write, range(clips)), progress)
