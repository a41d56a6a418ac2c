"""A stage: the actors of a folder of models, their scenes, lengths and clips.

Shape suffixes: F frames, H height, W width.
"""

import warnings
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from flowcept.data import video
from flowcept.data.drawn import draw_length, lengths_around
from flowcept.data.stage import cast, places
from flowcept.data.stage.cast import RESERVED, SWIMMING, Actor
from flowcept.data.stage.draw import Light
from flowcept.data.stage.gltf import Mesh, Model, read_model
from flowcept.data.stage.places import Place, Rng, Sprite
from flowcept.data.stage.scene import ADVERBS, FPS, PACE, VIEWS, Scene, caption
from flowcept.data.stage.take import Take
from flowcept.errors import UserError

ELEVATIONS = (8.0, 40.0)  # from which things that stand about are drawn


class Stage:
    """The actors of a folder of .glb models, and what clips of them need.

    ``actors`` and ``actions`` are "all", or names with commas between them. Models that cannot be
    read are told in a warning each and left out. UserError where no actor is left that can play
    something, or where a name is unknown.
    """

    def __init__(self, folder: Path, actors: str = "all", actions: str = "all") -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; name a folder of .glb models")
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".glb")
        self._models: dict[Path, Model | None] = {}
        self._sprites: dict[tuple[str, Light, float], list[Sprite]] = {}
        self.cast = self._cast(_names(actors))
        if not self.cast and actors == "all":
            raise UserError(f"{folder}: no .glb model with an animation here; name another folder")
        words = sorted({cast.word_for(path) for path in self.files} - {""})
        _check_names("actor", _names(actors), self.cast, words)
        self._played = {name: actor.actions for name, actor in self.cast.items()}
        if (chosen := _names(actions)) is not None:
            _check_names("action", chosen, self.actions, self.actions)
            self._played = {
                name: kept
                for name, played in self._played.items()
                if (kept := tuple(action for action in played if action in chosen))
            }
        self._props = {pattern: self._meshes(pattern) for pattern in places.patterns()}

    def _cast(self, wanted: Sequence[str] | None) -> dict[str, Actor]:
        """Actors by their words; models of one word take turns."""
        found: dict[str, list[Model]] = {}
        known = set()
        for path in self.files:
            word = cast.word_for(path)
            model = self._model(path) if word and (wanted is None or word in wanted) else None
            if model is not None and model.movements:
                found.setdefault(word, []).append(model)
                known |= {word} if cast.key_of(path) in cast.WORDS else set()
        return {word: cast.actor_of(word, models, word in known) for word, models in found.items()}

    def _model(self, path: Path) -> Model | None:
        if path not in self._models:
            try:
                self._models[path] = read_model(path, cast.HIDDEN)
            except UserError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=4)
                self._models[path] = None
        return self._models[path]

    def _meshes(self, pattern: str) -> list[Mesh]:
        """The models whose file names fit a pattern."""
        if pattern == places.FLOWERS:
            return [places.flower(petals) for petals in places.PETALS]
        name, _, shade = pattern.partition("@")
        models = [self._model(path) for path in self.files if fnmatchcase(path.stem, name)]
        meshes = [model.pose() for model in models if model is not None]
        return [places.tinted(mesh, shade) if shade else mesh for mesh in meshes]

    def sprites(self, pattern: str, light: Light, elevation: float) -> list[Sprite]:
        """Pictures, 1 high, of the models whose file names fit a pattern."""
        near = min(ELEVATIONS, key=lambda level: abs(level - elevation))
        key = pattern, light, near
        if key not in self._sprites:
            self._sprites[key] = [places.sprite_of(m, light, near) for m in self._props[pattern]]
        return self._sprites[key]

    @property
    def actors(self) -> tuple[str, ...]:
        """All who play something."""
        return tuple(self._played)

    @property
    def actions(self) -> tuple[str, ...]:
        """All that somebody here plays."""
        return tuple(dict.fromkeys(action for played in self._played.values() for action in played))

    def pairs(self, *, reserved: bool = False) -> list[tuple[str, str]]:
        """Who plays what, but for RESERVED; or of RESERVED those pairs whose action others play.

        What nobody else plays no model can learn. UserError where there are none.
        """
        every = [(actor, action) for actor, played in self._played.items() for action in played]
        trained = [pair for pair in every if pair not in RESERVED]
        known = {action for _, action in trained}
        held = [(a, action) for a, action in every if (a, action) in RESERVED and action in known]
        found = held if reserved else trained
        if not found:
            kind = "a" if reserved else "any but a"
            raise UserError(f"nobody here plays {kind} reserved action: name more actors, actions")
        return found

    def places(self, actor: str, action: str) -> dict[str, Place]:
        """Where an actor can play an action."""
        if action == "surfing":
            return places.SEAS
        return places.WATERS if self.cast[actor].way == SWIMMING else places.PLACES

    def sample_scene(self, rng: Rng, *, reserved: bool = False) -> Scene:
        """A random scene: plain in 2 of 5 cases as to place, in half of them as to adverb, in two
        thirds as to view. Half of the scenes begin with an actor, half with an action, so that
        neither is rare.

        Who plays what is one of `pairs`.
        """
        pairs = self.pairs(reserved=reserved)
        if rng.random() < 0.5:
            actor = _some(rng, list(dict.fromkeys(a for a, _ in pairs)))
            action = _some(rng, [b for a, b in pairs if a == actor])
        else:
            action = _some(rng, list(dict.fromkeys(b for _, b in pairs)))
            actor = _some(rng, [a for a, b in pairs if b == action])
        place = _some(rng, list(self.places(actor, action)), plain=0.4)
        adverb, view = _some(rng, ADVERBS, plain=0.5), _some(rng, list(VIEWS), plain=0.67)
        return Scene(actor, action, place, adverb, view)

    def length_law(self, scene: Scene) -> dict[int, float]:
        """P(number of frames): two or three neighbouring lengths around the action's own.

        That is the length of the actor's animation times the adverb's pace.
        """
        mean = self.cast[scene.actor].seconds(scene.action) * FPS * PACE[scene.adverb]
        return lengths_around(mean, 1.25)

    def sample_length(self, scene: Scene, rng: Rng) -> int:
        """A number of frames drawn from `length_law`."""
        return draw_length(self.length_law(scene), rng)

    def draw_clip(
        self, scene: Scene, size: int, rng: Rng, *, num_frames: int | None = None
    ) -> video.Frames:
        """The scene as frames_FHW3 of `size` x `size` pixels, RGB.

        The length is drawn from `length_law` unless given; the same generator state draws the same
        performance at any length.
        """
        place = self.places(scene.actor, scene.action)[scene.place]
        take = Take(scene, self.cast[scene.actor], place, self.sprites, size, rng)
        if num_frames is None:
            num_frames = self.sample_length(scene, rng)
        last = num_frames if take.loops else max(1, num_frames - 1)
        return np.stack([take.frame(i / last) for i in range(num_frames)])

    def clip(
        self, seed: int, index: int, size: int = 128, *, reserved: bool = False
    ) -> tuple[str, Scene, video.Frames]:
        """Caption, scene and frames of clip `index`, which depend on nothing else."""
        rng = np.random.default_rng([seed, index])
        scene = self.sample_scene(rng, reserved=reserved)
        words = caption(scene, rng)
        return words, scene, self.draw_clip(scene, size, rng)


def _names(told: str) -> list[str] | None:
    """Names with commas between them; None where all are meant."""
    return None if told == "all" else [name.strip() for name in told.split(",")]


def _check_names(
    kind: str, names: Sequence[str] | None, known: Collection[str], choices: Sequence[str]
) -> None:
    """Raise ``UserError`` for a name that is not known."""
    for name in names or ():
        if name not in known:
            every = ", ".join(choices) or "nobody: there is no .glb model here"
            raise UserError(f"unknown {kind} {name!r}: choose from {every}")


def _some(rng: Rng, choices: Sequence[str], plain: float | None = None) -> str:
    """One of the choices; the first in the `plain` share of cases, if that is given."""
    if plain is None:
        return choices[int(rng.integers(len(choices)))]
    return choices[0] if rng.random() < plain else _some(rng, choices[1:])
