"""Short clips of moving layers cut from photographs, of which all motion is drawn at random.

A background and a few cut-out layers above it (blobs, discs, polygons, thin bars, blurred lights)
move along bent ways, turn, grow and ripple; what they cover and show again, motion blur, changes
of light and noise come with it. A model of motion learns from them what real clips show rarely.

Shape suffixes: F frames, H W height and width, 3 colours; values are float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
CANVAS = 1.5  # sides of a layer's own picture, in sides of the frame


@dataclass(frozen=True)
class LayersConfig:
    """What is drawn."""

    num_frames: int = 13
    side: int = 192  # pixels
    most_layers: int = 5  # above the background
    pace: float = 3.5  # pixels a frame: mean speed of a layer
    fastest: float = 22.0  # pixels a frame


@dataclass(frozen=True)
class Way:
    """How a layer moves: polynomials of time in frames from the middle of the clip."""

    start: tuple[float, float]  # of its centre, pixels from the middle of the frame
    speed: tuple[float, float]  # pixels a frame
    bend: tuple[float, float]  # pixels a frame squared
    angle: float  # radians
    spin: float  # radians a frame
    growth: float  # of the logarithm of its size, a frame
    ripple_HW2: Picture  # pixels: the shape of an elastic motion
    ripple_pace: float  # radians a frame of its swing

    def source(self, time: float, side: int) -> Picture:
        """For each place of the frame, where on the canvas it comes from: [H, W, 2] in pixels."""
        x = self.start[0] + self.speed[0] * time + self.bend[0] * time * time
        y = self.start[1] + self.speed[1] * time + self.bend[1] * time * time
        angle, scale = self.angle + self.spin * time, np.exp(-self.growth * time)
        middle = (side - 1) / 2
        line, column = np.mgrid[:side, :side].astype(np.float32)
        swing = np.float32(np.sin(self.ripple_pace * time))
        right = column - middle - x + swing * self.ripple_HW2[..., 0]
        down = line - middle - y + swing * self.ripple_HW2[..., 1]
        cosine, sine = np.float32(scale * np.cos(angle)), np.float32(scale * np.sin(angle))
        canvas_middle = np.float32((CANVAS * side - 1) / 2)
        source = [cosine * right + sine * down, cosine * down - sine * right]
        return np.stack(source, -1).astype(np.float32) + canvas_middle


@dataclass(frozen=True)
class Layer:
    """One picture with its shape and way."""

    colour_HW3: Picture  # on its canvas
    shape_HW: Picture | None  # opacity on its canvas; None: the background, mirrored at its edges
    way: Way

    def over(self, below_HW3: Picture, time: float) -> Picture:
        """The frame with this layer upon it."""
        source = self.way.source(time, below_HW3.shape[0])
        colour: Picture = cv2.remap(
            self.colour_HW3, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        if self.shape_HW is None:
            return colour
        opacity = cv2.remap(
            self.shape_HW, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )[..., None]
        mixed: Picture = below_HW3 + opacity * (colour - below_HW3)
        return mixed


def layered_clip(
    photos: Sequence[NDArray[np.uint8]], rng: np.random.Generator, config: LayersConfig
) -> NDArray[np.uint8]:
    """A clip uint8 [F, H, W, 3] of layers from RGB photographs of at least 64 px a side."""
    layers = [_background(photos, rng, config)]
    for _ in range(rng.integers(1, config.most_layers + 1)):
        layers.append(_cut_out(photos, rng, config))
    exposures = _exposures(rng)
    brighter = rng.normal(0, 0.01) if rng.random() < 0.4 else 0.0
    flicker = 0.03 if rng.random() < 0.15 else 0.0
    noise = rng.uniform(0, 0.02) if rng.random() < 0.4 else 0.0
    blur = rng.uniform(0.4, 1.2) if rng.random() < 0.3 else 0.0
    frames = []
    for index in range(config.num_frames):
        time = index - (config.num_frames - 1) / 2
        parts = [_drawn(layers, time + offset, config.side) for offset in exposures]
        frame_HW3 = np.mean(parts, axis=0)
        if blur:
            frame_HW3 = cv2.GaussianBlur(frame_HW3, (0, 0), blur)
        frame_HW3 = frame_HW3 * (1 + brighter * time + rng.normal() * flicker)
        frame_HW3 = frame_HW3 + noise * rng.standard_normal(frame_HW3.shape)
        frames.append((frame_HW3 * 255).round().clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def _exposures(rng: np.random.Generator) -> list[float]:
    """Times within a frame at which light falls in: several for motion blur."""
    if rng.random() < 0.6:
        return [0.0]
    opened = rng.uniform(0.2, 0.8)  # share of a frame's time
    return [float(offset) for offset in np.linspace(-opened / 2, opened / 2, 5)]


def _drawn(layers: Sequence[Layer], time: float, side: int) -> Picture:
    frame = np.zeros((side, side, 3), np.float32)
    for layer in layers:
        frame = layer.over(frame, time)
    return frame


def _background(
    photos: Sequence[NDArray[np.uint8]], rng: np.random.Generator, config: LayersConfig
) -> Layer:
    calm = rng.random() < 0.3  # a camera that stands still
    way = _way(rng, config, 0.0 if calm else 0.6, middle=True)
    return Layer(_texture(photos, rng, config.side), None, way)


def _cut_out(
    photos: Sequence[NDArray[np.uint8]], rng: np.random.Generator, config: LayersConfig
) -> Layer:
    colour = _texture(photos, rng, config.side)
    kind = rng.choice(["blob", "disc", "polygon", "bars", "light"], p=[0.35, 0.15, 0.2, 0.2, 0.1])
    if kind == "light":
        colour = np.full_like(colour, 1) * rng.uniform(0.5, 1, 3).astype(np.float32)
    return Layer(colour, _shape(str(kind), rng, config.side), _way(rng, config, 1.0))


def _way(
    rng: np.random.Generator, config: LayersConfig, pace: float, *, middle: bool = False
) -> Way:
    speed = min(rng.exponential(config.pace * pace + 1e-9), config.fastest)
    direction = rng.uniform(0, 2 * np.pi)
    heading = np.array([np.cos(direction), np.sin(direction)]) * speed
    bend = rng.normal(size=2) * 0.03 * speed
    turning = pace * rng.normal() * rng.choice([0.003, 0.02, 0.08], p=[0.5, 0.4, 0.1])
    growth = pace * rng.normal() * rng.choice([0.002, 0.012])
    start = np.zeros(2) if middle else rng.uniform(-0.5, 0.5, 2) * config.side
    rippled = pace > 0 and rng.random() < 0.35
    ripple = _waves(rng, config.side, 2) * (rng.uniform(1, 6) if rippled else 0)
    return Way(
        start=(float(start[0]), float(start[1])),
        speed=(float(heading[0]), float(heading[1])),
        bend=(float(bend[0]), float(bend[1])),
        angle=float(rng.uniform(-0.5, 0.5)),
        spin=float(turning),
        growth=float(growth),
        ripple_HW2=ripple.astype(np.float32),
        ripple_pace=float(rng.uniform(0.1, 0.5)),
    )


def _waves(rng: np.random.Generator, side: int, channels: int) -> Picture:
    """Smooth noise of unit variance [H, W, channels]."""
    cells = int(rng.integers(3, 9))
    coarse = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    waves: Picture = smooth.reshape(side, side, channels)
    spread = float(waves.std()) + 1e-6
    even: Picture = waves / spread
    return even


def _texture(photos: Sequence[NDArray[np.uint8]], rng: np.random.Generator, side: int) -> Picture:
    """A random part of a random photograph, turned or mirrored, as large as a canvas."""
    photo = photos[int(rng.integers(len(photos)))]
    canvas = round(CANVAS * side)
    shorter = min(photo.shape[:2])
    cut = int(rng.uniform(0.4, 1) * shorter)
    top = rng.integers(photo.shape[0] - cut + 1)
    left = rng.integers(photo.shape[1] - cut + 1)
    part = np.rot90(photo[top : top + cut, left : left + cut], int(rng.integers(4)))
    if rng.random() < 0.5:
        part = part[:, ::-1]
    part = cv2.resize(np.ascontiguousarray(part), (canvas, canvas), interpolation=cv2.INTER_AREA)
    gain = rng.uniform(0.6, 1.3)
    texture: Picture = (part.astype(np.float32) / 255 * np.float32(gain)).clip(0, 1)
    return texture


def _shape(kind: str, rng: np.random.Generator, side: int) -> Picture:
    """Opacity on a canvas, in its middle: [H, W] in [0, 1]."""
    canvas = round(CANVAS * side)
    radius = rng.uniform(0.08, 0.35) * side
    line, column = np.mgrid[:canvas, :canvas].astype(np.float32) - canvas / 2
    shape = np.zeros((canvas, canvas), np.float32)
    soft = rng.uniform(0.4, 1.0)
    middle = canvas / 2
    if kind == "blob":
        bumps = _waves(rng, canvas, 1)[..., 0]
        inside = np.hypot(line, column) / radius + 0.5 * bumps < 1
        shape = inside.astype(np.float32)
    elif kind in {"disc", "light"}:
        flat = rng.uniform(0.5, 1)
        if kind == "light":
            radius, soft = radius * 0.3, rng.uniform(1.5, 5)
        shape = (np.hypot(line, column / flat) < radius).astype(np.float32)
    elif kind == "polygon":
        corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        reach = radius * rng.uniform(0.5, 1.4, len(corners))
        points = np.stack([np.cos(corners) * reach, np.sin(corners) * reach], 1) + middle
        cv2.fillPoly(shape, [points.round().astype(np.int32)], 1.0)
    else:
        for _ in range(rng.integers(1, 7)):
            ends = middle + rng.uniform(-1.6, 1.6, (2, 2)) * radius
            first, last = (tuple(int(n) for n in end.round()) for end in ends)
            cv2.line(shape, first, last, 1.0, int(rng.integers(1, 7)), cv2.LINE_AA)
    blurred: Picture = cv2.GaussianBlur(shape, (0, 0), soft)
    return blurred
