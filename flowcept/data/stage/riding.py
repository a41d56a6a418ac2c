"""What actors ride on: a board, with wheels or on a wave.

Shape suffixes: V vertices, T triangles, P points, D drops.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from flowcept.data.stage.gltf import Floats, Mesh, face_normals, joined
from flowcept.data.stage.places import noise, sampled

BOARDS = ((0.85, 0.06, 0.05), (0.95, 0.55, 0.03), (0.9, 0.9, 0.9), (0.1, 0.5, 0.8))
WHEEL = (0.03, 0.03, 0.035)
FOAM = 0.5
WHEELS = 0.105  # height of the deck over them
SPEED = 2.4  # of the wave, in world units a second
CREST = 0.95  # height of the wave
BEHIND = -1.35  # where its crest runs


def _mesh(points: list[tuple[float, float, float]], faces: Sequence[tuple[int, ...]],
          colour: tuple[float, float, float]) -> Mesh:  # fmt: skip
    point_V3, face_T3 = np.array(points, np.float32), np.array(faces, np.int64)
    colour_V3 = np.tile(np.array(colour, np.float32), (len(points), 1))
    return Mesh(point_V3, face_normals(point_V3, face_T3), colour_V3, face_T3)


def board(length: float, width: float, colour: tuple[float, float, float]) -> Mesh:
    """Pointed, bent up at the tip, its top at y = 0, lying along z."""
    points, faces, rings = [], [], 13
    for i in range(rings):
        along = i / (rings - 1) * 2 - 1
        half = width / 2 * max(1 - abs(along) ** 2.6, 0.0) ** 0.6
        z, lift = along * length / 2, 0.06 * max(along, 0.0) ** 3 * length
        points += [(-half, lift, z), (half, lift, z), (0.0, lift - 0.05, z)]
    for i in range(0, 3 * (rings - 1), 3):
        for a, b in ((0, 1), (1, 2), (2, 0)):
            faces += [(i + a, i + 3 + a, i + b), (i + b, i + 3 + a, i + 3 + b)]
    return _mesh(points, faces, colour)


def skateboard(length: float, width: float, colour: tuple[float, float, float]) -> Mesh:
    """A board on four wheels."""
    turns = [2 * pi * i / 10 for i in range(10)]
    sides = [(i, (i + 1) % 10, i + 10) for i in range(10)]
    sides += [((i + 1) % 10, (i + 1) % 10 + 10, i + 10) for i in range(10)]
    caps = [(s, s + i, s + i + 1) for s in (0, 10) for i in range(1, 9)]
    parts = [board(length, width, colour)]
    for x, z in itertools.product((-0.36 * width, 0.36 * width), (-0.32 * length, 0.32 * length)):
        rim = [(0.05 * cos(a) + z, 0.05 * sin(a) - WHEELS + 0.05) for a in turns]
        corners = [(x + side, y, z) for side in (0.0, 0.05) for z, y in rim]
        parts.append(_mesh(corners, sides + caps, WHEEL))
    return joined(*parts)


def wave_height(x: Floats, z: Floats, time: float) -> Floats:
    """The sea at points of the world: a wave that breaks on the left, and ripples."""
    steep = np.where(z < BEHIND, 0.95, 0.62)
    crest = CREST * (0.62 + 0.38 * np.tanh(0.9 * (0.6 - x)))
    swell = crest * np.exp(-(((z - BEHIND) / steep) ** 2))
    ripple = 0.02 * np.sin(5 * (x + SPEED * time) + 3 * z)
    ripple += 0.015 * np.sin(9 * z - 6 * time + 2 * x)
    height: Floats = swell + ripple
    return height


def wave(time: float) -> Mesh:
    """The sea as far as one sees; rows lie closer near the wave."""
    stretches = ((-14, -3, 8), (-2.6, 0.6, 26), (0.8, 7, 12))
    depth = np.concatenate([np.linspace(*stretch) for stretch in stretches])
    across = np.linspace(-1, 1, 37)
    z, side = np.meshgrid(depth, across, indexing="ij")
    x = side * np.maximum(3.4, 0.62 * (5 - z))
    point_V3 = np.stack([x, wave_height(x, z, time), z], -1).reshape(-1, 3).astype(np.float32)
    row, column = np.meshgrid(np.arange(len(depth) - 1), np.arange(len(across) - 1), indexing="ij")
    corner = (row * len(across) + column).ravel()
    right, below = corner + 1, corner + len(across)
    face_T3 = np.concatenate([
        np.stack([corner, below, right], 1), np.stack([right, below, below + 1], 1)
    ])  # fmt: skip
    return Mesh(point_V3, face_normals(point_V3, face_T3), np.ones_like(point_V3), face_T3)


@dataclass(frozen=True)
class Water:
    """Linear colours of the sea: light where the wave is thin, with foam, fading far away."""

    deep: Floats
    shallow: Floats
    far: Floats
    time: float

    def __call__(self, point_P3: Floats) -> Floats:
        x, y, z = point_P3.T
        streak_P = sampled(noise(1.2, 5), x + SPEED * self.time, z * 2.2 + y, 4.0)
        thin_P1 = np.clip(y / CREST, 0, 1)[:, None]
        colour_P3 = self.deep + (self.shallow - self.deep) * (0.12 + 0.8 * thin_P1)
        colour_P3 = colour_P3 * (0.8 + 0.4 * streak_P[:, None])
        colour_P3 = colour_P3 + (FOAM - colour_P3) * self.foam(x, y, z)[:, None]
        fog_P1 = (1 - np.exp(-np.maximum(-1.5 - z, 0) / 7))[:, None]
        faded_P3: Floats = colour_P3 + (self.far - colour_P3) * fog_P1
        return faded_P3

    def foam(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """On the crest, where the wave has broken, and behind the board; in [0, 1]."""
        lip = np.clip((y - 0.7) * 3, 0, 0.9) * np.clip((z - BEHIND + 0.5) * 4, 0, 1)
        broken = np.clip((-1.0 - x) * 1.3, 0, 1) * np.exp(-(((z - BEHIND - 0.2) / 0.9) ** 2))
        back = np.maximum(-x, 0)
        wake = np.exp(-((z / (0.1 + 0.16 * back)) ** 2) - 0.5 * back) * np.clip(3 * back, 0, 1)
        wanted = np.maximum(np.maximum(lip, 1.2 * broken), wake)
        grain = sampled(noise(1.4, 6), x + 0.9 * SPEED * self.time, z - 0.8 * y, 2.0)
        share: Floats = np.clip((wanted - 0.75 * grain) * 5, 0, 1)
        return share


def spray(time: float) -> Mesh:
    """Drops that fly up behind the board, whose tail is the origin; they fall within a second."""
    rng = np.random.default_rng(3)
    start_D = rng.uniform(0, 1, 40)
    away_D3 = rng.uniform((-1.3, 0.5, -0.5), (-0.2, 1.3, 0.5), (40, 3))
    age_D1 = ((start_D + 1.4 * time) % 1)[:, None] * 0.7
    middle_D3 = away_D3 * age_D1 - np.array((0, 1.3, 0)) * age_D1**2
    radius_D1 = 0.038 * (1 - age_D1)
    corner_3 = [np.array((cos(a), sin(a), 0.0)) for a in (pi / 2, 7 * pi / 6, 11 * pi / 6)]
    point_V3 = np.stack([middle_D3 + radius_D1 * c for c in corner_3], 1).reshape(-1, 3)
    normal_V3 = np.tile(np.array((0, 0.8, 0.6), np.float32), (120, 1))
    white_V3 = np.full((120, 3), 0.55, np.float32)
    return Mesh(point_V3.astype(np.float32), normal_V3, white_V3, np.arange(120).reshape(-1, 3))
