"""A stage: actors from a folder of models, scenes, captions, lengths and clips.

Phase runs from 0 to 1 over a clip, however many frames that is. Shape suffixes: F frames,
H height, W width, V vertices.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import cos, pi, radians, sin
from pathlib import Path

import cv2
import numpy as np

from flowcept.data import video
from flowcept.data.stage import cast, places, riding
from flowcept.data.stage.cast import (
    ALOFT_ONLY,
    FLYING,
    GROUND_ONLY,
    INVENTED,
    RESERVED,
    SWIMMING,
    Act,
)
from flowcept.data.stage.draw import Camera, Light, paint, shadow
from flowcept.data.stage.gltf import Floats, Mesh, Model, read_model
from flowcept.data.stage.places import Backdrop, Place, Point, Rng, Sprite
from flowcept.errors import UserError

FPS = 12
SHORTEST, LONGEST = 8, 20  # frames of a plain clip
PACE = {"": 1.0, "slowly": 1.5, "quickly": 0.7}  # how an adverb multiplies the natural length
ADVERBS: tuple[str, ...] = tuple(PACE)

ONCE = frozenset({"doing a backflip", "diving"})  # of the invented ones

# How the camera stands: what is added to the actor's turn, elevation, share of the picture filled.
VIEWS: dict[str, tuple[float, float, float]] = {
    "": (52, 8, 0.68),
    "from the side": (90, 6, 0.68),
    "from the front": (6, 8, 0.68),
    "from behind": (160, 12, 0.68),
    "from above": (52, 40, 0.64),
    "close up": (42, 7, 0.98),
    "from far away": (55, 9, 0.32),
}


@dataclass(frozen=True)
class Scene:
    """Everything that the caption tells."""

    actor: str
    action: str
    place: str = ""
    adverb: str = ""  # of ADVERBS
    view: str = ""  # of VIEWS


@dataclass(frozen=True)
class Actor:
    """A word with the models that it means, all of which play the same actions."""

    models: tuple[Model, ...]
    acts: dict[str, tuple[str, Act]]  # from actions to animations of each model
    way: str  # FLYING, SWIMMING, or "" on the ground

    @property
    def actions(self) -> tuple[str, ...]:
        """Its own, and those that anybody can play."""
        barred = GROUND_ONLY if self.way == SWIMMING else frozenset() if self.way else ALOFT_ONLY
        return (*self.acts, *(one for one in INVENTED if one not in barred))

    def length(self, action: str) -> float:
        """Frames of the plain action: one or more whole turns of its animation."""
        if action not in self.acts:
            return round(INVENTED[action] * FPS)
        name, act = self.acts[action]
        seconds = self.models[0].animations[name].seconds
        return float(np.clip(seconds * self.turns(action) * FPS, SHORTEST, LONGEST))

    def turns(self, action: str) -> int:
        """How often the animation is played in a clip: for at least about a second."""
        if action not in self.acts:
            return 1
        name, act = self.acts[action]
        seconds = self.models[0].animations[name].seconds
        return max(1, round(1.1 / max(seconds, 0.1))) if act.loops else 1


class Poses:
    """One model made 1 large, standing on y = 0 at the middle, facing +z."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.idle = self._idle()
        mesh = model.pose(self.idle, 0.0)
        low, high = mesh.point_V3.min(0), mesh.point_V3.max(0)
        self.middle = np.array(((low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2), np.float32)
        extent = high - low
        self.scale = np.float32(1 / max(extent[1], 0.72 * extent[2], 0.6 * extent[0], 1e-6))
        self.strides: dict[str, Point] = {}
        self.length = float(extent[2] * self.scale)

    def _idle(self) -> str | None:
        """The animation in which it merely stands, or its first."""
        names = list(self.model.animations)
        standing = [name for name in names if name.rpartition("|")[2].lower().endswith("idle")]
        return next(iter(standing + names), None)

    def at(self, name: str | None, time: float) -> Mesh:
        mesh = self.model.pose(name, time)
        return replace(mesh, point_V3=(mesh.point_V3 - self.middle) * self.scale)

    def stride(self, name: str, flying: bool) -> float:
        """World units ahead in one turn of an animation on the spot, so that feet do not slide."""
        if flying:
            return 1.6
        seconds, steps = self.model.animations[name].seconds, 16
        poses = [self.at(name, seconds * i / steps).point_V3 for i in range(steps + 1)]
        moved = []
        for before, after in zip(poses, poses[1:], strict=False):
            touching = np.maximum(before[:, 1], after[:, 1]) < min(before[:, 1].min(), 0.0) + 0.05
            if touching.any():
                moved.append(float(np.median((before - after)[touching, 2])))
        return max(0.3, float(np.mean(moved)) * steps) if moved else 1.0


def turned(mesh: Mesh, yaw: float = 0, pitch: float = 0, roll: float = 0,
           about: float = 0.0) -> Mesh:  # fmt: skip
    """Rolled and pitched about a height on its axis, then turned; degrees, a pitch lowers the nose."""
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


def moved(mesh: Mesh, x: float = 0, y: float = 0, z: float = 0) -> Mesh:
    return replace(mesh, point_V3=mesh.point_V3 + np.array((x, y, z), np.float32))


class Stage:
    """The actors of a folder of .glb models, and what clips of them need.

    Models that cannot be read are told in a warning each and left out. UserError where no actor is
    left or an actor is unknown.
    """

    def __init__(self, folder: Path, actors: str = "all") -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; name a folder of .glb models")
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".glb")
        self._models: dict[Path, Model | None] = {}
        wanted = [] if actors == "all" else [name.strip() for name in actors.split(",")]
        self.cast = self._cast(wanted)
        unknown = [name for name in wanted if name not in self.cast]
        if unknown or not self.cast:
            everyone = ", ".join(sorted({cast.word_for(path) for path in self.files} - {""}))
            if not unknown:
                raise UserError(f"{folder}: no .glb model with animations here")
            raise UserError(f"unknown actor {unknown[0]!r}: choose names with commas of {everyone}")
        self.actors: tuple[str, ...] = tuple(self.cast)
        self._sprites: dict[tuple[str, Light, float], list[Sprite]] = {}
        self._poses: dict[int, Poses] = {}

    def _cast(self, wanted: Sequence[str]) -> dict[str, Actor]:
        found: dict[str, list[Model]] = {}
        known = {}
        for path in self.files:
            word = cast.word_for(path)
            if not word or (wanted and word not in wanted):
                continue
            model = self._model(path)
            if model is not None and model.animations:
                found.setdefault(word, []).append(model)
                known[word] = f"{path.parent.name}/{path.stem}" in cast.WORDS
        actors = {}
        for word, models in found.items():
            acts = cast.acts_of(word, list(models[0].animations), known[word])
            alike = [
                model for model in models if set(models[0].animations) <= set(model.animations)
            ]
            way = next((way for way in (SWIMMING, FLYING) if way in acts), "")
            if way:  # there is nothing to fall on
                acts.pop("falling over", None)
            actors[word] = Actor(tuple(alike), acts, way)
        return actors

    def _model(self, path: Path) -> Model | None:
        if path not in self._models:
            try:
                self._models[path] = read_model(path, cast.HIDDEN)
            except UserError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=4)
                self._models[path] = None
        return self._models[path]

    def sprites(self, pattern: str, light: Light, elevation: float) -> list[Sprite]:
        """Pictures, 1 high, of the models whose file names fit a pattern."""
        near = min((8.0, 40.0), key=lambda level: abs(level - elevation))
        key = pattern, light, near
        if key not in self._sprites:
            meshes = self._props(pattern)
            self._sprites[key] = [places.sprite_of(mesh, 1.0, light, near) for mesh in meshes]
        return self._sprites[key]

    def _props(self, pattern: str) -> list[Mesh]:
        if pattern == places.FLOWERS:
            return [places.flower(petals) for petals in places.PETALS]
        name, _, shade = pattern.partition("@")
        models = [self._model(path) for path in self.files if fnmatchcase(path.stem, name)]
        meshes = [model.pose() for model in models if model is not None]
        return [places.tinted(mesh, shade) if shade else mesh for mesh in meshes]

    def poses(self, model: Model) -> Poses:
        if id(model) not in self._poses:
            self._poses[id(model)] = Poses(model)
        return self._poses[id(model)]

    def places(self, actor: str, action: str) -> dict[str, Place]:
        """Where an actor can play an action."""
        if action == "surfing":
            return places.SEAS
        return places.WATERS if self.cast[actor].way == SWIMMING else places.PLACES

    def sample_scene(self, rng: Rng, *, reserved: bool = False) -> Scene:
        """A random scene: plain in 2 of 5 cases as to place, in half of them as to adverb, in two
        thirds as to view.

        `reserved=True` draws only pairs of RESERVED, False never does. ValueError where none of the
        actors has a reserved pair.
        """
        pairs = [(a, b) for a in self.actors for b in self.cast[a].actions]
        if reserved:
            kept = [pair for pair in pairs if pair in RESERVED]
            if not kept:
                raise ValueError("none of these actors has a reserved pair")
            actor, action = kept[int(rng.integers(len(kept)))]
        else:
            actor = self.actors[int(rng.integers(len(self.actors)))]
            free = [b for b in self.cast[actor].actions if (actor, b) not in RESERVED]
            action = free[int(rng.integers(len(free)))]
        chosen = [_some(rng, list(self.places(actor, action)), 0.6)]
        chosen += [_some(rng, ADVERBS, 0.5), _some(rng, list(VIEWS), 0.33)]
        return Scene(actor, action, *chosen)

    def length_law(self, scene: Scene) -> dict[int, float]:
        """P(number of frames): two or three neighbouring lengths around the action's own.

        That is the length of the animation times the adverb's pace, and depends on nothing else.
        """
        mean = self.cast[scene.actor].length(scene.action) * PACE[scene.adverb]
        weights = {n: 1.25 - abs(n - mean) for n in range(round(mean) - 2, round(mean) + 3)}
        weights = {n: weight for n, weight in weights.items() if weight > 1e-9}
        total = sum(weights.values())
        return {n: weight / total for n, weight in weights.items()}

    def sample_length(self, scene: Scene, rng: Rng) -> int:
        """A number of frames drawn from `length_law`."""
        law = self.length_law(scene)
        return int(rng.choice(list(law), p=list(law.values())))

    def draw_clip(
        self, scene: Scene, size: int, rng: Rng, *, num_frames: int | None = None
    ) -> video.Frames:
        """The scene as frames_FHW3 of `size` x `size` pixels, RGB.

        The length is drawn from `length_law` unless given; the same generator state draws the same
        performance at any length.
        """
        take = Take(self, scene, size, rng)
        if num_frames is None:
            num_frames = self.sample_length(scene, rng)
        last = num_frames if take.loops else max(1, num_frames - 1)
        return np.stack([take.frame(i / last) for i in range(num_frames)])

    def clip(self, seed: int, index: int, size: int = 128) -> tuple[str, Scene, video.Frames]:
        """Caption, scene and frames of clip `index`, which depend on seed and index alone."""
        rng = np.random.default_rng([seed, index])
        scene = self.sample_scene(rng)
        words = caption(scene, rng)
        return words, scene, self.draw_clip(scene, size, rng)


def _some(rng: Rng, choices: Sequence[str], share: float) -> str:
    """One of the choices but the first, which is taken in the remaining share of cases."""
    if rng.random() >= share:
        return choices[0]
    return choices[int(rng.integers(1, len(choices)))]


def caption(scene: Scene, rng: Rng) -> str:
    """The scene in words, most often in the plain order "a dog running slowly on a beach"."""
    subject = f"{'an' if scene.actor[0] in 'aeiou' else 'a'} {scene.actor}"
    orders = (
        [subject, scene.action, scene.adverb, scene.place],
        [subject, "is", scene.action, scene.adverb, scene.place],
        [subject, scene.adverb, scene.action, scene.place],
        [scene.place and f"{scene.place},", subject, scene.action, scene.adverb],
    )
    words = orders[int(rng.choice(len(orders), p=[0.7, 0.1, 0.1, 0.1]))]
    told = " ".join(word for word in words if word)
    if scene.view.startswith("from"):
        return f"{told}, seen {scene.view}"
    return f"{told}, {scene.view}" if scene.view else told


class Take:
    """One performance. The generator sets what differs between two clips of one scene."""

    def __init__(self, stage: Stage, scene: Scene, size: int, rng: Rng) -> None:
        self.scene, self.size = scene, size
        self.actor = stage.cast[scene.actor]
        self.poses = stage.poses(self.actor.models[int(rng.integers(len(self.actor.models)))])
        self.place = stage.places(scene.actor, scene.action)[scene.place]
        turn, elevation, self.filled = VIEWS[scene.view]
        wobble, tilt, self.shift, near = rng.uniform(-1, 1, 4)
        self.yaw = turn + 8 * wobble
        self.elevation = elevation + 1.5 * tilt
        self.filled *= 1 + 0.05 * near
        self.board = riding.BOARDS[int(rng.integers(len(riding.BOARDS)))]

        self.name, self.act = self.actor.acts.get(scene.action, (self.poses.idle, Act(())))
        self.loops = self.act.loops and self.scene.action not in ONCE
        self.turns = self.actor.turns(scene.action)
        self.way = self._way()
        self.camera = self._camera()
        self.backdrop = Backdrop(self.place, self.camera, size)
        ways = [(self.way[0] * p, self.way[1] * p) for p in np.linspace(0, 1, 9)]
        self.things = places.scattered(
            self.place, lambda p: stage.sprites(p, self.place.light, self.elevation), ways, rng
        )
        self.things.sort(key=lambda thing: thing[1])

    def _way(self) -> Point:
        """How far the actor gets, x and z on the ground."""
        ahead = 0.0
        if self.act.travels and self.name:
            aloft = self.actor.way != "" or self.scene.action == "leaping"
            ahead = self.poses.stride(self.name, aloft) * self.turns
        ahead = {"skateboarding": 3.0, "diving": 1.6}.get(self.scene.action, ahead)
        return ahead * sin(radians(self.yaw)), ahead * cos(radians(self.yaw))

    def _camera(self) -> Camera:
        """So far away that all of the performance fits."""
        camera = Camera((0, 0, 0), 1.0, self.elevation)
        points = np.concatenate([self.mesh(p).point_V3 for p in np.linspace(0, 1, 6)])
        middle = (points.min(0) + points.max(0)) / 2
        flat_V3 = (points - middle) @ camera.axes.T
        high, wide = np.abs(flat_V3[:, 1]).max(), np.abs(flat_V3[:, 0]).max()
        need = max(high / self.filled, wide / min(1.0, self.filled * 1.25))
        distance = need / camera.slope + max(flat_V3[:, 2].max(), 0) * 0.6
        target = (middle[0] + 0.05 * self.shift * need, middle[1] + 0.06 * need, middle[2])
        return Camera(tuple(map(float, target)), float(distance), self.elevation)

    def mesh(self, phase: float) -> Mesh:
        """The actor and what it rides on, where they are."""
        played = {
            "surfing": self._surfing, "skateboarding": self._skateboarding,
            "spinning": self._spinning, "bouncing": self._bouncing,
            "doing a backflip": self._backflip, "diving": self._diving,
        }  # fmt: skip
        if self.scene.action in self.actor.acts:
            return self._animated(phase)
        return played[self.scene.action](phase)

    def _animated(self, phase: float) -> Mesh:
        seconds = self.poses.model.animations[self.name].seconds if self.name else 0.0
        turn = phase * self.turns
        turn = turn % 1 if self.loops else turn
        mesh = turned(self.poses.at(self.name, turn * seconds), self.yaw)
        return moved(mesh, y=self._aloft(phase))

    def _aloft(self, phase: float) -> float:
        """How high those are that swim or fly."""
        if not self.actor.way:
            return 0.0
        return (0.5 if self.actor.way == FLYING else 0.4) + 0.03 * sin(2 * pi * phase)

    def _spinning(self, phase: float) -> Mesh:
        mesh = self.poses.at(self.name, 0.0)
        return moved(turned(mesh, self.yaw + 360 * phase), y=self._aloft(phase))

    def _bouncing(self, phase: float) -> Mesh:
        """Two bounces, squashed at each landing."""
        height = abs(sin(2 * pi * phase))
        squash = 1 + 0.1 * height - 0.22 * max(0.0, 1 - 4 * height)
        mesh = self.poses.at(self.name, 0.0)
        wide = np.array((1 / squash**0.5, squash, 1 / squash**0.5), np.float32)
        mesh = replace(mesh, point_V3=mesh.point_V3 * wide)
        return moved(turned(mesh, self.yaw), y=0.4 * height + self._aloft(0) * 0.3)

    def _backflip(self, phase: float) -> Mesh:
        """Crouching, a leap with one turn backwards, landing; those aloft only turn."""
        share = min(1.0, max(0.0, (phase - 0.15) / 0.7))
        turn = share * share * (3 - 2 * share)
        height = 0.0 if self.actor.way else 0.75 * 4 * share * (1 - share)
        crouch = max(0.0, 1 - abs(phase - 0.1) / 0.1, 1 - abs(phase - 0.9) / 0.1)
        mesh = self.poses.at(self.name, 0.0)
        wide = np.array((1, 1 - 0.15 * crouch, 1), np.float32)
        mesh = replace(mesh, point_V3=mesh.point_V3 * wide)
        mesh = turned(mesh, self.yaw, -360 * turn, about=0.4)
        return moved(mesh, y=height + self._aloft(phase))

    def _diving(self, phase: float) -> Mesh:
        """Nose down from above to the ground, levelling out."""
        lower = phase * phase * (3 - 2 * phase)
        seconds = self.poses.model.animations[self.name].seconds if self.name else 0.0
        mesh = self.poses.at(self.name, (2 * phase) % 1 * seconds)
        mesh = turned(mesh, self.yaw, 48 * sin(pi * phase), about=0.3)
        return moved(mesh, y=1.3 - 1.1 * lower)

    def _ridden(self, deck: Mesh, phase: float, sway: float) -> Mesh:
        """The standing actor on a board, swaying."""
        seconds = self.poses.model.animations[self.name].seconds if self.name else 0.0
        standing = self.poses.at(self.name, phase * min(seconds, 1.0))
        standing = turned(standing, roll=0.8 * sway * sin(2 * pi * phase + 0.6))
        return riding.joined(standing, deck)

    def _skateboarding(self, phase: float) -> Mesh:
        length = max(0.75, 1.05 * self.poses.length)
        deck = riding.skateboard(length, 0.36, self.board)
        mesh = self._ridden(deck, phase, 9)
        return moved(turned(mesh, self.yaw + 7 * sin(2 * pi * phase)), y=0.105)

    def _surfing(self, phase: float) -> Mesh:
        """Riding along the wave, leaning, up and down its face."""
        length = max(1.1, 1.3 * self.poses.length)
        mesh = self._ridden(riding.board(length, 0.42, self.board), phase, 14)
        climb, time = sin(2 * pi * phase), 1.6 * phase
        x, z = 0.0, -0.3 - 0.18 * climb
        ahead = riding.wave_height(np.array([x, x + 0.25]), np.array([z, z]), time)
        yaw = self._surf_yaw() + 12 * cos(2 * pi * phase)
        mesh = turned(mesh, yaw, -10 * cos(2 * pi * phase))
        back = -0.45 * length
        drops = moved(riding.spray(time), back * sin(radians(yaw)), 0.0, back * cos(radians(yaw)))
        return moved(riding.joined(mesh, drops), x, float(ahead[0]) + 0.05, z)

    def _surf_yaw(self) -> float:
        """Along the wave, more or less; nobody surfs up a wave."""
        return float(np.clip(self.yaw, 30, 130))

    def frame(self, phase: float) -> video.Frames:
        """The scene at a phase, image_HW3."""
        mesh = self.mesh(phase)
        light = self.place.light
        passed = (self.way[0] * phase, self.way[1] * phase)
        if self.scene.action == "surfing":
            picture = self._sea(phase)
        else:
            picture = self.backdrop.ground(passed, 1.6 * phase)
            dark_HW = cv2.GaussianBlur(
                shadow(mesh, self.camera, self.size), (0, 0), self.size / 110
            )
            picture = picture * (1 - 0.42 * dark_HW * self.backdrop.meets_HW)[..., None]
            self._stand(picture, passed, behind=True)
        shown = paint(mesh, self.camera, light, self.size)
        picture = picture * (1 - shown[..., 3:]) + shown[..., :3]
        if self.scene.action != "surfing":
            self._stand(picture, passed, behind=False)
        frame: video.Frames = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        return frame

    def _stand(self, picture: Floats, passed: Point, *, behind: bool) -> None:
        """Paint the things behind the actor, or those before it."""
        for x, z, sprite in self.things:
            at = np.array([[x - passed[0], 0.0, z - passed[1]]], np.float32)
            if (at[0, 2] < 0) != behind:
                continue
            column, row, near = self.camera.pixels(at, self.size)[0]
            if near < 0.9 / 0.3:
                unit = near * self.size / (2 * self.camera.slope)
                dim = self.backdrop.fog_at(float(at[0, 2]))
                foot = float(column), float(row)
                places.paste(picture, sprite, foot, float(unit), self.backdrop.horizon, dim)

    def _sea(self, phase: float) -> Floats:
        time = 1.6 * phase
        shades = self.backdrop.dark, self.backdrop.bright, self.backdrop.horizon
        shown = paint(
            riding.wave(time),
            self.camera,
            self.place.light,
            self.size,
            2,
            riding.water(*shades, time),
        )
        picture = self.backdrop.sky_HW3.copy()
        self._stand(picture, (0.0, 6.0), behind=True)  # an island far behind the wave
        sea: Floats = picture * (1 - shown[..., 3:]) + shown[..., :3]
        return sea
