"""Drawing triangles: a camera, a z-buffer, light, and shadows on the ground.

World units: the ground is y = 0, x runs right, z towards the viewer; an actor is about 1 high.

Shape suffixes: V vertices, T triangles, P pixels that are candidates, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, radians, sin, tan

import cv2
import numpy as np
from numpy.typing import NDArray

from flowcept.data.stage.gltf import Floats, Indices, Mesh, unit

NEAREST = 0.05  # what is nearer to the camera is not drawn
OVERSAMPLING = 2  # along each side
FLAT = 1e-6  # square pixels: triangles seen from their edges
FIELD_OF_VIEW = 32.0  # degrees, of the whole height
SUN = np.array((-0.45, 0.8, 0.55), np.float32) / np.float32(np.linalg.norm((-0.45, 0.8, 0.55)))


@dataclass(frozen=True)
class Camera:
    """Looks at `target` from `distance` away, `elevation` degrees above the horizon."""

    target: tuple[float, float, float]
    distance: float
    elevation: float = 8.0
    zoom: float = 1.0

    @property
    def slope(self) -> float:
        """Half of the picture's height, one unit away."""
        return tan(radians(FIELD_OF_VIEW / 2)) / self.zoom

    @property
    def axes(self) -> Floats:
        """Rows are right, up, and towards the viewer."""
        c, s = cos(radians(self.elevation)), sin(radians(self.elevation))
        return np.array(((1, 0, 0), (0, c, -s), (0, s, c)), np.float32)

    def seen(self, point_V3: Floats) -> Floats:
        """x and y in [-1, 1] of the picture, y up, and 1 / depth, which is linear between them."""
        away_V3 = (point_V3 - np.array(self.target, np.float32)) @ self.axes.T
        depth_V = np.maximum(self.distance - away_V3[:, 2], NEAREST)
        scale_V = 1 / (depth_V * np.float32(self.slope))
        return np.stack([away_V3[:, 0] * scale_V, away_V3[:, 1] * scale_V, 1 / depth_V], axis=1)

    def pixels(self, point_V3: Floats, size: int) -> Floats:
        """x and y in pixels from the upper left corner, and 1 / depth."""
        seen_V3 = self.seen(point_V3)
        seen_V3[:, 0] = (1 + seen_V3[:, 0]) * (size / 2)
        seen_V3[:, 1] = (1 - seen_V3[:, 1]) * (size / 2)
        return seen_V3

    def ground(self, size: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Where each pixel's ray meets the ground, [H, W, 2] as x and z, and whether it does."""
        step = self.slope * ((np.arange(size) + 0.5) / size * 2 - 1)
        right_HW, down_HW = np.meshgrid(step.astype(np.float32), step.astype(np.float32))
        ray_HW3 = np.stack([right_HW, -down_HW, -np.ones_like(right_HW)], -1) @ self.axes
        eye_3 = np.array(self.target, np.float32) + self.distance * self.axes[2]
        meets_HW = ray_HW3[..., 1] < -1e-3
        reach_HW = np.where(meets_HW, eye_3[1] / np.maximum(-ray_HW3[..., 1], 1e-3), 0)
        return eye_3[[0, 2]] + reach_HW[..., None] * ray_HW3[..., [0, 2]], meets_HW


@dataclass(frozen=True)
class Light:
    """Linear colours of the sun, the sky above and what the ground throws back."""

    sun: tuple[float, float, float] = (1.0, 0.96, 0.88)
    sky: tuple[float, float, float] = (0.42, 0.47, 0.55)
    ground: tuple[float, float, float] = (0.24, 0.23, 0.2)

    def on(self, normal_X3: Floats, colour_X3: Floats) -> Floats:
        """Linear colours of surfaces; lit ones face the sun, and edges catch a little more."""
        sun_X1 = np.clip((normal_X3 @ SUN)[:, None] * 0.85 + 0.15, 0, 1)
        up_X1 = normal_X3[:, 1:2] * 0.5 + 0.5
        sky, ground, sun = (np.array(c, np.float32) for c in (self.sky, self.ground, self.sun))
        edge_X1 = np.clip(1 - np.abs(normal_X3[:, 2:3]), 0, 1) ** 3 * up_X1
        light_X3 = ground + (sky - ground) * up_X1 + sun * sun_X1 + 0.5 * sky * edge_X1
        lit: Floats = colour_X3 * light_X3
        return lit


def to_srgb(linear: Floats) -> Floats:
    """What screens show, in [0, 1]."""
    shown: Floats = np.clip(linear, 0, 1) ** np.float32(1 / 2.2)
    return shown


def _planes(corner_T33: Floats) -> Floats:
    """Per triangle three rows (a, b, c) for two corners' shares and 1 / depth: a x + b y + c."""
    corner_T33 = corner_T33.astype(np.float64)
    (x0, y0, near0), (x1, y1, near1), (x2, y2, near2) = corner_T33.transpose(1, 2, 0)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    area = np.where(np.abs(area) < FLAT, np.inf, area)
    first = np.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1]) / area
    second = np.stack([y2 - y0, x0 - x2, x2 * y0 - x0 * y2]) / area
    near = first * (near0 - near2) + second * (near1 - near2)
    near[2] += np.where(np.isinf(area), 0, near2)
    planes_33T: Floats = np.stack([first, second, near]).astype(np.float32)
    return planes_33T


def _candidates(corner_T33: Floats, size: int) -> tuple[Indices, Indices, Indices]:
    """Triangles with the x and y of all pixels in their boxes."""
    low_T2 = np.ceil(corner_T33[:, :, :2].min(1) - 0.5).clip(0, size).astype(np.int64)
    high_T2 = np.floor(corner_T33[:, :, :2].max(1) - 0.5).clip(-1, size - 1).astype(np.int64)
    wide_T, high_T = np.maximum(high_T2 - low_T2 + 1, 0).T
    count_T = np.where(corner_T33[:, :, 2].max(1) < 1 / NEAREST, wide_T * high_T, 0)
    triangle_P = np.repeat(np.arange(len(corner_T33)), count_T)
    within_P = np.arange(len(triangle_P)) - np.repeat(np.cumsum(count_T) - count_T, count_T)
    row_P = within_P // wide_T[triangle_P]
    x_P = low_T2[:, 0][triangle_P] + within_P - row_P * wide_T[triangle_P]
    return triangle_P, x_P, low_T2[:, 1][triangle_P] + row_P


@dataclass(frozen=True)
class Seen:
    """The triangles that are nearest at each pixel where there is any."""

    pixel_P: Indices  # y * size + x
    corner_P3: Indices  # vertices of the triangle
    share_P3: Floats  # of each corner, in the picture

    def of(self, value_V3: Floats) -> Floats:
        """Values of vertices, between them."""
        corner_3P = self.corner_P3.T
        parts = [value_V3[corner_3P[i]] * self.share_P3[:, i : i + 1] for i in range(3)]
        mixed: Floats = parts[0] + parts[1] + parts[2]
        return mixed

    def points(self, point_V3: Floats, camera: Camera) -> Floats:
        """Points of the world; in the picture, what is near is larger."""
        near_P3 = self.share_P3 * camera.seen(point_V3)[:, 2][self.corner_P3]
        near_P3 /= near_P3 @ np.ones((3, 1), np.float32)
        return replace(self, share_P3=near_P3).of(point_V3)


def rasterise(pixel_V3: Floats, face_T3: Indices, size: int) -> Seen:
    """What is seen of triangles whose corners are given as x, y and 1 / depth.

    Exact: every candidate pixel of every triangle is compared.
    """
    corner_T33 = pixel_V3[face_T3]
    triangle_P, x_P, y_P = _candidates(corner_T33, size)
    middle_x, middle_y = (x_P + 0.5).astype(np.float32), (y_P + 0.5).astype(np.float32)
    first_P, second_P, near_P = (
        a[triangle_P] * middle_x + b[triangle_P] * middle_y + c[triangle_P]
        for a, b, c in _planes(corner_T33)
    )
    third_P = 1 - first_P - second_P
    # Triangles without area have a nearness of 0.
    inside_P = (first_P >= 0) & (second_P >= 0) & (third_P >= 0) & (near_P > 0)
    best = _nearest(y_P * size + x_P, np.where(inside_P, near_P, 0), size)
    share_P3 = np.stack([first_P[best], second_P[best], third_P[best]], axis=1)
    return Seen((y_P * size + x_P)[best], face_T3[triangle_P[best]], share_P3)


def _nearest(pixel_P: Indices, near_P: Floats, size: int) -> Indices:
    """The candidate of each pixel that is nearest, of those that are nearer than 0."""
    order = np.flatnonzero(near_P)
    order = order[np.argsort(near_P[order], kind="stable")]
    winner = np.full(size * size, -1)
    winner[pixel_P[order]] = order  # the last stays
    return winner[winner >= 0]


Shader = Callable[[Floats], Floats]  # from points of the world to linear colours


def paint(
    mesh: Mesh, camera: Camera, light: Light, size: int, *, shader: Shader | None = None
) -> Floats:
    """A lit mesh as [H, W, 4]: colours for screens times coverage, and coverage; edges smooth.

    `shader` gives colours in place of the mesh's own.
    """
    large = size * OVERSAMPLING
    seen = rasterise(camera.pixels(mesh.point_V3, large), mesh.face_T3, large)
    normal_P3 = unit(seen.of(mesh.normal_V3))
    colour_P3 = shader(seen.points(mesh.point_V3, camera)) if shader else seen.of(mesh.colour_V3)

    canvas = np.zeros((large * large, 4), np.float32)
    canvas[seen.pixel_P, :3] = to_srgb(light.on(normal_P3, colour_P3))
    canvas[seen.pixel_P, 3] = 1
    picture = canvas.reshape(large, large, 4)
    small: Floats = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return small


def shadow(mesh: Mesh, camera: Camera, size: int) -> Floats:
    """How much of each pixel of the ground lies in the mesh's shadow, [H, W] in [0, 1]."""
    height_V1 = np.maximum(mesh.point_V3[:, 1:2], 0)
    flat_V3 = mesh.point_V3 - SUN * (height_V1 / SUN[1])
    flat_V3[:, 1] = 0
    dark = np.zeros(size * size, np.float32)
    dark[rasterise(camera.pixels(flat_V3, size), mesh.face_T3, size).pixel_P] = 1
    return dark.reshape(size, size)
