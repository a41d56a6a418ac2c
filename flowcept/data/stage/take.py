"""One performance: an actor plays a scene before a camera.

Phase runs from 0 to 1 over a clip, however many frames that is. Shape suffixes: H height, W width,
V vertices.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import cos, pi, radians, sin

import cv2
import numpy as np

from flowcept.data import video
from flowcept.data.stage import places, riding
from flowcept.data.stage.cast import FLYING, Act, Actor
from flowcept.data.stage.draw import Camera, Light, paint, shadow
from flowcept.data.stage.gltf import Floats, Mesh, Model, joined
from flowcept.data.stage.places import Backdrop, Place, Point, Rng, Sprite, Thing
from flowcept.data.stage.scene import VIEWS, Scene

SHADE = 0.42  # what a shadow takes from the ground
ONCE = frozenset({"doing a backflip", "diving"})  # invented actions that do not end as they began
SPRAY_TIME = 1.6  # seconds of water that pass in a clip
BRIGHTER = 0.85  # power of linear colours: dark actors would be lost on dark grounds

Sprites = Callable[[str, Light, float], Sequence[Sprite]]  # by pattern, light and elevation


def turned(
    mesh: Mesh, yaw: float, pitch: float = 0.0, roll: float = 0.0, about: float = 0.0
) -> Mesh:
    """Rolled and pitched at a height of its axis, then turned; degrees, pitch lowers the nose."""
    c, s = cos(radians(yaw)), sin(radians(yaw))
    spin = np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    c, s = cos(radians(pitch)), sin(radians(pitch))
    dive = np.array(((1, 0, 0), (0, c, -s), (0, s, c)))
    c, s = cos(radians(roll)), sin(radians(roll))
    tilt = np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)))
    turn_33 = (spin @ dive @ tilt).astype(np.float32)
    lift = np.array((0, about, 0), np.float32)
    point_V3 = (mesh.point_V3 - lift) @ turn_33.T + lift
    return replace(mesh, point_V3=point_V3, normal_V3=mesh.normal_V3 @ turn_33.T)


def moved(mesh: Mesh, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
    """The mesh elsewhere."""
    return replace(mesh, point_V3=mesh.point_V3 + np.array((x, y, z), np.float32))


def squashed(mesh: Mesh, height: float) -> Mesh:
    """The mesh so much higher, and thinner instead."""
    factor_3 = np.array((height**-0.5, height, height**-0.5), np.float32)
    return replace(mesh, point_V3=mesh.point_V3 * factor_3)


class Poses:
    """A model made about 1 large, standing on y = 0 at the middle, facing +z."""

    def __init__(self, model: Model) -> None:
        self.model = model
        standing = [n for n in model.animations if n.rpartition("|")[2].lower().endswith("idle")]
        self.idle = next(iter([*standing, *model.animations]))
        mesh = model.pose(self.idle)
        self.foot_3 = mesh.foot_3
        wide, high, long = np.ptp(mesh.point_V3, axis=0)
        self.scale = np.float32(1 / max(high, 0.72 * long, 0.6 * wide, 1e-6))
        self.colour_V3 = model.mesh.colour_V3**BRIGHTER
        self.length, self.height = float(long * self.scale), float(high * self.scale)

    def at(self, name: str, share: float) -> Mesh:
        """A share of the way through an animation."""
        mesh = self.model.pose(name, share * self.model.animations[name].seconds)
        point_V3 = (mesh.point_V3 - self.foot_3) * self.scale
        return replace(mesh, point_V3=point_V3, colour_V3=self.colour_V3)

    def stride(self, name: str) -> float:
        """World units ahead in one turn of an animation on the spot, so that feet do not slide."""
        steps = 16
        poses = [self.at(name, i / steps).point_V3 for i in range(steps + 1)]
        ahead = []
        for before, after in pairwise(poses):
            touching = np.maximum(before[:, 1], after[:, 1]) < min(before[:, 1].min(), 0.0) + 0.05
            if touching.any():
                ahead.append(float(np.median((before - after)[touching, 2])))
        return float(np.mean(ahead)) * steps if ahead else 0.0


class Take:
    """The generator sets what differs between two clips of one scene."""

    def __init__(
        self, scene: Scene, actor: Actor, place: Place, sprites: Sprites, size: int, rng: Rng
    ) -> None:
        self.scene, self.actor, self.place, self.size = scene, actor, place, size
        view = VIEWS[scene.view]
        wobble, tilt, self.shift, near = rng.uniform(-1, 1, 4)
        self.yaw = view.yaw + 8 * wobble
        self.elevation = view.elevation + 1.5 * tilt
        self.filled = view.filled * (1 + 0.05 * near)
        self.paint = riding.BOARDS[int(rng.integers(len(riding.BOARDS)))]

        self.poses = Poses(actor.models[int(rng.integers(len(actor.models)))])
        self.name, self.act = actor.acts.get(scene.action, (self.poses.idle, Act(())))
        self.surfs = scene.action == "surfing"
        self.loops = self.act.loops and scene.action not in ONCE
        self.play = self._playing()
        self.way = self._way()
        self.camera = self._camera()
        self.backdrop = Backdrop(place, self.camera, size)
        self.things = self._things(sprites, rng)

    def _playing(self) -> Callable[[float], Mesh]:
        """From a phase to the actor and what it rides on, where they are then."""
        invented = {
            "surfing": self._surfing,
            "skateboarding": self._skateboarding,
            "spinning": self._spinning,
            "bouncing": self._bouncing,
            "doing a backflip": self._backflip,
            "diving": self._diving,
        }
        return self._animated if self.act.names else invented[self.scene.action]

    def _way(self) -> Point:
        """How far the actor gets, x and z on the ground."""
        ahead = {"skateboarding": 3.0, "diving": 1.6}.get(self.scene.action, 0.0)
        if self.act.ahead:
            afoot = not self.actor.way and self.scene.action != "leaping"
            stride = self.poses.stride(self.name) if afoot else 0.0
            ahead = max(stride, self.act.ahead) * self.actor.turns(self.scene.action)
        return ahead * sin(radians(self.yaw)), ahead * cos(radians(self.yaw))

    def _camera(self) -> Camera:
        """So far away that all of the performance fits."""
        camera = Camera((0, 0, 0), 1.0, self.elevation)
        point_V3 = np.concatenate([self.play(phase).point_V3 for phase in np.linspace(0, 1, 6)])
        middle_3 = (point_V3.min(0) + point_V3.max(0)) / 2
        reach_3 = np.abs((point_V3 - middle_3) @ camera.axes.T).max(0)
        need = max(reach_3[1] / self.filled, reach_3[0] / min(1.0, self.filled * 1.25))
        distance = float(need / camera.slope + reach_3[2] * 0.6)
        x, y, z = middle_3 + need * np.array((0.05 * self.shift, 0.06, 0))
        return Camera((float(x), float(y), float(z)), distance, self.elevation)

    def _things(self, sprites: Sprites, rng: Rng) -> list[Thing]:
        """What stands about, the farthest first."""
        way = [(self.way[0] * share, self.way[1] * share) for share in np.linspace(0, 1, 9)]
        light, elevation = self.place.light, self.elevation
        found = places.scattered(self.place, lambda p: sprites(p, light, elevation), way, rng)
        return sorted(found, key=lambda thing: thing[1])

    def _aloft(self, phase: float) -> float:
        """How high those are that swim or fly."""
        if not self.actor.way:
            return 0.0
        return (0.5 if self.actor.way == FLYING else 0.4) + 0.03 * sin(2 * pi * phase)

    def _animated(self, phase: float) -> Mesh:
        share = phase * self.actor.turns(self.scene.action)
        mesh = self.poses.at(self.name, share % 1 if self.loops else share)
        return moved(turned(mesh, self.yaw), y=self._aloft(phase))

    def _spinning(self, phase: float) -> Mesh:
        """Once around on the spot."""
        return moved(
            turned(self.poses.at(self.name, 0), self.yaw + 360 * phase), y=self._aloft(phase)
        )

    def _bouncing(self, phase: float) -> Mesh:
        """Two bounces, squashed at each landing."""
        height = abs(sin(2 * pi * phase))
        squash = 1 + 0.1 * height - 0.22 * max(0.0, 1 - 4 * height)
        mesh = turned(squashed(self.poses.at(self.name, 0), squash), self.yaw)
        return moved(mesh, y=0.4 * height + 0.3 * self._aloft(0))

    def _backflip(self, phase: float) -> Mesh:
        """Crouching, a leap with one turn backwards, landing; those aloft only turn."""
        share = min(1.0, max(0.0, (phase - 0.15) / 0.7))
        turn = share * share * (3 - 2 * share)
        height = 0.0 if self.actor.way else 0.75 * 4 * share * (1 - share)
        crouch = max(0.0, 1 - abs(phase - 0.1) / 0.1, 1 - abs(phase - 0.9) / 0.1)
        mesh = squashed(self.poses.at(self.name, 0), 1 - 0.15 * crouch)
        mesh = turned(mesh, self.yaw, -360 * turn, about=self.poses.height / 2)
        return moved(mesh, y=height + self._aloft(phase))

    def _diving(self, phase: float) -> Mesh:
        """Nose down from above to the ground, levelling out."""
        lower = phase * phase * (3 - 2 * phase)
        mesh = self.poses.at(self.name, 2 * phase % 1)
        mesh = turned(mesh, self.yaw, 48 * sin(pi * phase), about=self.poses.height / 2)
        return moved(mesh, y=1.3 - 1.1 * lower)

    def _on(self, deck: Mesh, phase: float, sway: float) -> Mesh:
        """The standing actor on a board, swaying."""
        standing = self.poses.at(self.name, 0.3 * phase)
        swaying = turned(standing, 0, roll=sway * sin(2 * pi * phase + 0.6))
        return joined(swaying, deck)

    def _skateboarding(self, phase: float) -> Mesh:
        deck = riding.skateboard(max(0.75, 1.05 * self.poses.length), 0.36, self.paint)
        mesh = self._on(deck, phase, 7)
        return moved(turned(mesh, self.yaw + 7 * sin(2 * pi * phase)), y=riding.WHEELS)

    def _surfing(self, phase: float) -> Mesh:
        """Along the wave, up and down its face, leaning; nobody surfs straight up or down."""
        length = max(1.1, 1.3 * self.poses.length)
        climb, turn = sin(2 * pi * phase), cos(2 * pi * phase)
        yaw = min(max(self.yaw, 20.0), 150.0) + 12 * turn
        mesh = self._on(riding.board(length, 0.42, self.paint), phase, 11)
        back = moved(riding.spray(SPRAY_TIME * phase), z=-0.45 * length)
        mesh = joined(turned(mesh, yaw, -10 * turn), turned(back, yaw))
        z = -0.3 - 0.18 * climb
        water = riding.wave_height(np.zeros(1), np.full(1, z), SPRAY_TIME * phase)
        return moved(mesh, 0.0, float(water[0]) + 0.05, z)

    def frame(self, phase: float) -> video.Frames:
        """The scene at a phase, image_HW3."""
        mesh = self.play(phase)
        passed = self.way[0] * phase, self.way[1] * phase
        picture = self._sea(phase) if self.surfs else self._land(mesh, passed, phase)
        shown_HW4 = paint(mesh, self.camera, self.place.light, self.size)
        picture = picture * (1 - shown_HW4[..., 3:]) + shown_HW4[..., :3]
        if not self.surfs:
            self._stand(picture, passed, behind=False)
        frame: video.Frames = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        return frame

    def _land(self, mesh: Mesh, passed: Point, phase: float) -> Floats:
        """All that is behind the actor, and its shadow."""
        picture = self.backdrop.ground(passed, phase)
        sharp_HW = shadow(mesh, self.camera, self.size)
        dark_HW = cv2.GaussianBlur(sharp_HW, (0, 0), self.size / 110)
        lit_HW: Floats = 1 - SHADE * dark_HW * self.backdrop.meets_HW
        picture *= lit_HW[..., None]
        self._stand(picture, passed, behind=True)
        return picture

    def _sea(self, phase: float) -> Floats:
        """The wave, and an island far behind it if there is one."""
        time = SPRAY_TIME * phase
        picture = self.backdrop.sky_HW3.copy()
        self._stand(picture, (0.0, 6.0), behind=True)
        shades = self.backdrop.dark, self.backdrop.bright, self.backdrop.horizon
        deep, shallow, far = (shade**2.2 for shade in shades)
        water = riding.Water(deep, shallow, far, time)
        shown_HW4 = paint(riding.wave(time), self.camera, self.place.light, self.size, shader=water)
        sea: Floats = picture * (1 - shown_HW4[..., 3:]) + shown_HW4[..., :3]
        return sea

    def _stand(self, picture: Floats, passed: Point, *, behind: bool) -> None:
        """Paint the things behind the actor, or those before it."""
        for x, z, sprite in self.things:
            at_13 = np.array([[x - passed[0], 0.0, z - passed[1]]], np.float32)
            column, row, near = map(float, self.camera.pixels(at_13, self.size)[0])
            if (at_13[0, 2] < 0) == behind and near < 3:
                unit = near * self.size / (2 * self.camera.slope)
                fog = self.backdrop.fog_at(z - passed[1])
                places.paste(picture, sprite, (column, row), unit, fog)
