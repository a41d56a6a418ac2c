"""Where actors play: skies, grounds, light, and what stands about.

Everything that does not move is drawn once a clip; the ground and what stands on it pass by
when an actor covers ground. Shape suffixes: H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi, radians, sin, tan

import cv2
import numpy as np

from flowcept.data.stage.draw import FIELD_OF_VIEW, Camera, Light, paint
from flowcept.data.stage.gltf import Floats, Mesh

Rng = np.random.Generator
Point = tuple[float, float]  # x and z on the ground

TILE = 256  # pixels along the noise, which repeats
TILE_WIDTH = 6.0  # in world units
FAR = 13.0  # where the ground has half the colour of the horizon
LOW = 0.36  # what is no higher hides nobody
FOOT = 0.95  # of a sprite's picture, from its top
SPRITE = 96  # pixels along the picture of something that stands about

DAY = Light((1.5, 1.42, 1.25), (0.62, 0.68, 0.78), (0.36, 0.35, 0.28))
DUSK = Light((1.7, 0.95, 0.5), (0.6, 0.46, 0.6), (0.34, 0.25, 0.24))
NIGHT = Light((0.5, 0.6, 0.95), (0.26, 0.32, 0.52), (0.13, 0.16, 0.24))
SPACE = Light((1.7, 1.65, 1.6), (0.3, 0.3, 0.36), (0.3, 0.3, 0.32))
SHOW = Light((1.75, 1.55, 1.25), (0.5, 0.42, 0.5), (0.4, 0.3, 0.24))
WATER = Light((1.35, 1.4, 1.35), (0.58, 0.72, 0.8), (0.34, 0.4, 0.42))
DEEP = Light((0.62, 0.78, 1.05), (0.26, 0.42, 0.62), (0.12, 0.2, 0.32))


@dataclass(frozen=True)
class Place:
    """Colours are in hexadecimal.

    `props` are patterns of file names, numbers and heights; what follows an @ is a colour for it.
    """

    colours: str  # the sky above, the horizon, and two that mix on the ground
    light: Light
    props: tuple[tuple[str, int, float], ...] = ()
    hills: str = ""  # colour of what rises at the horizon
    rise: float = 0.1  # height of the hills, of the picture
    extra: str = ""  # clouds, stars, moon, sun, earth, curtain or rays, with spaces between


FLOWERS = "flowers"  # made here, of many colours
GRASS = (("Grass", 7, 0.14), ("Grass_Short", 7, 0.1), ("Plant_[134]", 3, 0.2))
MEADOW = "5aa8ec d4ecfa 6cb04a 8cc45a"
PLACES: dict[str, Place] = {
    "": Place(MEADOW, DAY, (("CommonTree_[1-5]", 3, 2.2), *GRASS), "7fb06e", 0.07,
              "clouds"),
    "in a forest": Place("7cb8dc cfe6d8 4e7e3c 6a8f46", DAY,
                         (("PineTree_[1-5]", 9, 2.5), ("CommonTree_[1-5]", 7, 2.4),
                          ("Plant_[134]", 7, 0.25)), "56805a", 0.16),
    "in an autumn forest": Place("9cc0dc f4e4c8 a8743a c08c44", DAY,
                                 (("CommonTree_Autumn*", 8, 2.4), ("BirchTree_Autumn*", 7, 2.4),
                                  ("WoodLog*", 2, 0.25)), "c08a58", 0.16),
    "in the desert": Place("4ea6ea fbe6b8 e8b866 f2cc80", DAY,
                           (("Cactus_*", 6, 1.0), ("Rock_[1-7]", 5, 0.3)), "d89c5c", 0.12),
    "in the snow": Place("8fb4dc e4eef8 e6eef8 fafcff", DAY,
                         (("PineTree_Snow*", 8, 2.3), ("Rock_Snow*", 4, 0.3)), "bccce0", 0.15),
    "on a beach": Place("3f9fec c8f0fa ecd498 f6e4b4", DAY,
                        (("PalmTree*", 5, 2.4), ("Rock_[1-7]", 3, 0.22)), "2e90c4", 0.055,
                        "clouds"),
    "at sunset": Place("6a4a96 ffb060 6e6a3e 8a7a48", DUSK,
                       (("CommonTree_[1-5]", 3, 2.2), *GRASS), "80506a", 0.09, "sun"),
    "at night": Place("0c1236 35468a 24463e 2e5444", NIGHT,
                      (("CommonTree_[1-5]", 3, 2.2), *GRASS), "1e2c58", 0.08,
                      "stars moon"),
    "on the moon": Place("05050c 15151f 8e8e98 b0b0b8", SPACE,
                         (("Rock_[1-7]", 9, 0.3),), "6c6c78", 0.06, "stars earth"),
    "by a castle": Place("62a8e4 dceaf4 7aa858 98b868", DAY,
                         (("Tower", 4, 2.8), ("CommonTree_[1-5]", 2, 2.2)), "8ea892",
                         0.1, "clouds"),
    "on a stage": Place("4a0f18 7c1c26 a8703c b8804a", SHOW, (), "", 0.0, "curtain"),
    "among flowers": Place(MEADOW, DAY, ((FLOWERS, 60, 0.26), *GRASS), "7fb06e", 0.07, "clouds"),
}  # fmt: skip
WATERS: dict[str, Place] = {
    "": Place("5fd0e8 2f9cc8 c8c890 dcd8a4", WATER, (("Rock_[1-7]", 4, 0.35),), "2b88b4", 0.1,
              "rays"),
    "over a coral reef": Place("62d4ec 38a8d0 d8c8a0 e8d8b0", WATER,
                               (("CactusFlowers_[23]@f0604c", 6, 0.6), ("Plant_3@c860d0", 6, 0.4),
                                ("BushBerries*@f4a03c", 5, 0.35), ("Rock_Moss*", 4, 0.35),
                                ("CommonTree_Dead_[12]@f080b0", 4, 0.7)), "3090b8", 0.12, "rays"),
    "in the deep sea": Place("12386e 081c44 1c3458 24406a", DEEP, (("Rock_[1-7]", 6, 0.4),),
                             "0c2450", 0.1),
    "among seaweed": Place("58c4a8 2a8c84 7c9a64 90ac74", WATER,
                           (("Grass@2c9a58", 9, 1.1), ("Grass@74b84c", 9, 0.8),
                            ("Plant_3@2f8f70", 5, 0.5)), "2a7c74", 0.14, "rays"),
}  # fmt: skip
# Surfers need a sea; the ground's colours are those of deep and shallow water.
SEAS: dict[str, Place] = {
    "": Place("3f9fec c8f0fa 0e4a7c 36a4b0", DAY, (), "", 0.0, "clouds"),
    "at sunset": Place("6a4a96 ffb060 3c3c78 b0788c", DUSK, (), "", 0.0, "sun"),
    "at night": Place("0c1236 35468a 081c48 2c5890", NIGHT, (), "", 0.0, "stars moon"),
    "by an island": Place("3f9fec d4f2fa 0e5c80 3cb4a8", DAY, (("PalmTree*", 8, 3.0),), "", 0.0,
                          "clouds"),
}  # fmt: skip
PETALS = ("e8304c", "f4f0f0", "f0a0d0", "f4c828", "a060e0")


def patterns() -> list[str]:
    """All that stands about anywhere."""
    everywhere = [*PLACES.values(), *WATERS.values(), *SEAS.values()]
    return sorted({pattern for place in everywhere for pattern, _, _ in place.props})


def colour(hexadecimal: str) -> Floats:
    return np.array(list(bytes.fromhex(hexadecimal)), np.float32) / 255


@lru_cache(maxsize=8)
def noise(sharpness: float, seed: int) -> Floats:
    """Clouds of grey in [0, 1] that repeat, [TILE, TILE]; sharper ones have finer grains."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[np.fft.fftfreq(TILE) * TILE] * 2, indexing="ij")
    size = np.maximum(np.hypot(x, y), 1) ** -sharpness
    waves = np.fft.fft2(rng.standard_normal((TILE, TILE))) * size
    waves[0, 0] = 0
    grey = np.real(np.fft.ifft2(waves))
    ranks = np.empty(TILE * TILE)
    ranks[np.argsort(grey, axis=None, kind="stable")] = np.linspace(0, 1, TILE * TILE)
    return ranks.reshape(TILE, TILE).astype(np.float32)


def sampled(tile: Floats, x: Floats, y: Floats, width: float = TILE_WIDTH) -> Floats:
    """The noise between its pixels at points of the world, where one tile is so wide."""
    column, row = (x * np.float32(TILE / width)), (y * np.float32(TILE / width))
    left, top = np.floor(column), np.floor(row)
    right_share, low_share = column - left, row - top
    left, top = left.astype(np.int64) % TILE, top.astype(np.int64) % TILE
    right, low = (left + 1) % TILE, (top + 1) % TILE
    above = tile[top, left] * (1 - right_share) + tile[top, right] * right_share
    below = tile[low, left] * (1 - right_share) + tile[low, right] * right_share
    found: Floats = above * (1 - low_share) + below * low_share
    return found


def over(below: Floats, above: Floats, share_HW: Floats) -> Floats:
    """Colours or pictures mixed: `above` where the share is 1."""
    mixed: Floats = below + (above - below) * share_HW[..., None].astype(np.float32)
    return mixed


@dataclass(frozen=True)
class Sprite:
    """A picture of something that stands on the ground, at SPRITE pixels and two halves of it."""

    pictures: tuple[Floats, ...]  # [H, W, 4], colours times coverage
    width: float  # of the picture in world units


def flower(petals: str) -> Mesh:
    """A stem with six petals around a yellow middle."""
    leaf, middle, petal = (colour(shade) ** 2.2 for shade in ("3c7c30", "f0c030", petals))
    rim = [(0.3 * cos(pi * i / 3), 0.95, 0.3 * sin(pi * i / 3)) for i in range(6)]
    point_V3 = np.array([(-0.03, 0, 0), (0.03, 0, 0), (0, 0.9, 0), (0, 0.82, 0), *rim], np.float32)
    face_T3 = np.array([(0, 1, 2), *((3, 4 + i, 4 + (i + 1) % 6) for i in range(6))])
    colour_V3 = np.array([leaf, leaf, leaf, middle, *[petal] * 6], np.float32)
    return Mesh(point_V3, np.tile(np.array((0, 0.8, 0.6), np.float32), (10, 1)), colour_V3, face_T3)


def tinted(mesh: Mesh, shade: str) -> Mesh:
    """The mesh in one colour, as bright and dark as it was."""
    grey_V1 = mesh.colour_V3.mean(1, keepdims=True)
    level_V1 = 0.6 + 0.4 * grey_V1 / max(float(grey_V1.max()), 1e-6)
    return replace(mesh, colour_V3=(colour(shade) ** 2.2 * level_V1).astype(np.float32))


def sprite_of(mesh: Mesh, light: Light, elevation: float) -> Sprite:
    """A mesh, made 1 high, as seen from far away."""
    high = max(float(np.ptp(mesh.point_V3[:, 1])), 1e-6)
    small = replace(mesh, point_V3=(mesh.point_V3 - mesh.foot_3) / high)
    wide = max(1.0, 2 * float(np.abs(small.point_V3[:, [0, 2]]).max())) * 1.1
    zoom = 24 * tan(radians(FIELD_OF_VIEW / 2))  # so that `wide` fills the picture
    camera = Camera((0, (FOOT - 0.5) * wide, 0), 12 * wide, elevation, zoom)
    pictures = [paint(small, camera, light, SPRITE)]
    for _ in range(3):
        half = len(pictures[-1]) // 2
        pictures.append(cv2.resize(pictures[-1], (half, half), interpolation=cv2.INTER_AREA))
    return Sprite(tuple(pictures), wide)


def paste(canvas: Floats, sprite: Sprite, foot: Point, unit: float, fog: Floats) -> None:
    """Paint a sprite whose foot stands at a pixel, `unit` pixels a world unit, into a picture.

    `fog` is a colour and, last, its share.
    """
    wide = sprite.width * unit
    picture = next((p for p in reversed(sprite.pictures) if len(p) >= wide), sprite.pictures[0])
    corner = np.array((foot[0] - wide / 2, foot[1] - FOOT * wide))
    x0, y0 = np.clip(corner - 1, 0, len(canvas)).astype(int)
    x1, y1 = np.clip(corner + wide + 2, 0, len(canvas)).astype(int)
    if x0 >= x1 or y0 >= y1:
        return
    scale = wide / len(picture)
    shift = corner - (x0, y0) + scale / 2 - 0.5  # pixels' middles lie at halves
    move = np.array(((scale, 0, shift[0]), (0, scale, shift[1])))
    patch = cv2.warpAffine(picture, move, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
    covered = patch[..., 3:]
    part = canvas[y0:y1, x0:x1]
    part *= 1 - covered
    part += patch[..., :3] * (1 - fog[3]) + fog[:3] * covered * fog[3]


class Backdrop:
    """A place as one camera sees it. `sky` stands still; `ground` passes by."""

    def __init__(self, place: Place, camera: Camera, size: int) -> None:
        self.place, self.camera, self.size = place, camera, size
        self.above, self.horizon, self.dark, self.bright = map(colour, place.colours.split())
        self.world_HW2, self.meets_HW = camera.ground(size)
        away_HW = np.maximum(camera.target[2] - self.world_HW2[..., 1], 0)
        self.fog_HW = 1 - np.exp(-away_HW / FAR)
        self.sky_HW3 = self._sky()

    def fog_at(self, z: float) -> Floats:
        """The horizon's colour and its share in what stands at this depth."""
        share = 0.8 * (1 - np.exp(-max(self.camera.target[2] - z, 0) / FAR))
        return np.append(self.horizon, share)

    def _sky(self) -> Floats:
        level = (np.arange(self.size) + 0.5) / self.size
        horizon = self._horizon()
        share_H1 = np.clip(level / max(horizon, 0.35), 0, 1)[:, None] ** 1.2
        row_H3 = self.above + (self.horizon - self.above) * share_H1
        sky_HW3 = np.repeat(row_H3[:, None], self.size, axis=1).astype(np.float32)
        for name in self.place.extra.split():
            sky_HW3 = EXTRAS[name](sky_HW3, horizon)
        return self._with_hills(sky_HW3, horizon)

    def _horizon(self) -> float:
        """Its height in the picture, from 0 at the top."""
        return 0.5 - 0.5 * tan(radians(self.camera.elevation)) / tan(radians(FIELD_OF_VIEW / 2))

    def _with_hills(self, sky_HW3: Floats, horizon: float) -> Floats:
        if not self.place.hills:
            return sky_HW3
        across = np.linspace(0, 1, self.size)
        waves = 0.6 + 0.25 * np.sin(5 * across + 1) + 0.15 * np.sin(13 * across + 4)
        if self.place.rise < 0.06:  # the sea, or a flat shore
            waves = np.ones_like(waves)
        top_W = (horizon - self.place.rise * waves) * self.size
        share_HW = np.clip(np.arange(self.size)[:, None] + 1 - top_W, 0, 1)
        return over(sky_HW3, colour(self.place.hills), share_HW)

    def ground(self, passed: Point, time: float) -> Floats:
        """The whole picture without anything that stands or plays; `passed` is the way gone."""
        x, z = self.world_HW2[..., 0] + passed[0], self.world_HW2[..., 1] + passed[1]
        share_HW = self._planks(x) if "curtain" in self.place.extra else self._soil(x, z)
        if "rays" in self.place.extra:  # light that waves throw on the ground
            moving_HW = sampled(noise(1.8, 3), x + 0.8 * time, z - 0.5 * time, 4.0)
            share_HW = share_HW + 0.9 * np.clip(1 - 14 * np.abs(moving_HW - 0.5), 0, 1)
        floor_HW3 = over(self.dark, self.bright, share_HW)
        shown_HW3 = over(floor_HW3, self.horizon, self.fog_HW)
        return np.where(self.meets_HW[..., None], shown_HW3, self.sky_HW3).astype(np.float32)

    def _planks(self, x: Floats) -> Floats:
        return 1 - 0.45 * (1 + np.tanh(12 * (np.abs((x / 0.35) % 1 - 0.5) - 0.46)))

    def _soil(self, x: Floats, z: Floats) -> Floats:
        return 0.65 * sampled(noise(1.6, 1), x, z) + 0.35 * sampled(noise(1.0, 2), x, z, 3.0)


def _grid(picture: Floats) -> tuple[Floats, Floats]:
    level = (np.arange(len(picture), dtype=np.float32) + 0.5) / len(picture)
    x, y = np.meshgrid(level, level)
    return x, y


def _disc(picture: Floats, x: float, y: float, radius: float, shade: str, halo: float) -> Floats:
    """A disc with light around it."""
    across, down = _grid(picture)
    away = np.hypot(across - x, down - y)
    glow = halo * np.exp(-np.maximum(away - radius, 0) / radius)
    inside = np.clip((radius - away) * len(picture) + 0.5, 0, 1)
    return over(picture, colour(shade), np.maximum(glow, inside))


def _clouds(picture: Floats, horizon: float) -> Floats:
    x, y = _grid(picture)
    thick = sampled(noise(2.2, 4), x * 3, y * 8, 6.0)
    share = np.clip((thick - 0.62) * 4, 0, 0.85) * np.clip((horizon - y) * 8, 0, 1)
    return over(picture, np.ones(3), share)


def _stars(picture: Floats, _: float) -> Floats:
    rng = np.random.default_rng(7)
    for x, y, radius in rng.uniform((0, 0, 0.003), (1, 0.5, 0.007), (26, 3)):
        picture = _disc(picture, x, y, radius, "fff8dc", 0.5)
    return picture


def _rays(picture: Floats, _: float) -> Floats:
    x, y = _grid(picture)
    slant = np.sin((x + 0.35 * y) * 17) + np.sin((x + 0.35 * y) * 31 + 2)
    share = np.clip(slant * 0.12, 0, 0.3) * np.clip(1 - 1.6 * y, 0, 1)
    return over(picture, np.ones(3), share)


def _curtain(picture: Floats, _: float) -> Floats:
    x, y = _grid(picture)
    fold = 0.72 + 0.28 * np.sin(x * 2 * np.pi * 9 + 0.8 * np.sin(x * 17))
    spot = 0.55 + 0.75 * np.exp(-(((x - 0.5) / 0.33) ** 2) - ((y - 0.45) / 0.5) ** 2)
    hung = picture * (fold * spot)[..., None]
    gold = np.clip(1 - np.abs(y - 0.045) * 40, 0, 1)
    return over(hung, colour("e0b050"), gold)


EXTRAS: dict[str, Callable[[Floats, float], Floats]] = {
    "clouds": _clouds,
    "stars": _stars,
    "rays": _rays,
    "curtain": _curtain,
    "sun": lambda picture, horizon: _disc(picture, 0.74, horizon - 0.05, 0.1, "ffe890", 0.7),
    "moon": lambda picture, _: _disc(picture, 0.8, 0.13, 0.065, "f8f4d8", 0.35),
    "earth": lambda picture, _: _disc(picture, 0.2, 0.14, 0.085, "4c8cdc", 0.25),
}


Thing = tuple[float, float, Sprite]  # x and z where it stands


def scattered(
    place: Place, sprites: Callable[[str], Sequence[Sprite]], way: Sequence[Point], rng: Rng
) -> list[Thing]:
    """What stands about: in view at some part of the way, and never in its way.

    `sprites` finds what a pattern of file names fits, 1 high; `way` is what the actor passes.
    """
    found = []
    for pattern, number, height in place.props:
        kinds = sprites(pattern)
        for _ in range(2 * number if kinds else 0):
            tall = height * rng.uniform(0.75, 1.25)
            x, z = _spot(height, way, rng)
            kind = kinds[int(rng.integers(len(kinds)))]
            if _clear(x, z, tall, way):
                found.append((x, z, Sprite(kind.pictures, kind.width * tall)))
    return found


def _spot(height: float, way: Sequence[Point], rng: Rng) -> Point:
    """A point in view from some part of the way; what is low may stand before the actor."""
    at_x, at_z = way[int(rng.integers(len(way)))]
    depth = rng.uniform(-4.0, 1.4) if height < LOW else rng.uniform(-8.0, -1.0)
    return at_x + rng.uniform(-1, 1) * (1.1 + 0.32 * abs(depth - 4)), at_z + depth


def _clear(x: float, z: float, height: float, way: Sequence[Point]) -> bool:
    """Whether it neither stands in the actor's way nor hides it."""
    for passed_x, passed_z in way:
        side, depth = abs(x - passed_x), z - passed_z
        reach = 0.75 + 0.3 * height
        if side < reach and abs(depth) < reach:
            return False
        if height > LOW and depth > -0.5:
            return False
    return True
