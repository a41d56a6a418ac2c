"""A request: a prompt, the settings of the sampler and those of the clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from flowcept import settings
from flowcept.data.video import Sound, sound_of
from flowcept.errors import UserError
from flowcept.process.sampler import Step
from flowcept.settings import ClipConfig, SampleConfig, from_mapping, mixed, setting

Watch = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Request(ClipConfig):
    """All that is asked for in one call, for every task."""

    command: str
    prompt: str
    seed: int = setting(0, "of this clip", settings.SEED)
    config: SampleConfig = setting(
        SampleConfig(), "all settings of the sampler at once; keywords change single ones"
    )  # lengths in pictures
    watch: Watch | None = setting(None, "a function that is called with each step of the sampler")
    clip_fps: float | None = setting(
        None,
        "frames per second of what is given; default the clip's own, for pictures the model's",
        settings.STATED,
    )
    sound: Sound | None = setting(
        None, "a file whose sound the clip gets; default the given clip's, None: no sound"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.prompt, self.negative_prompt):
            settings.check_prompt(text)

    @staticmethod
    def of(command: str, prompt: str, words: Mapping[str, object]) -> Request:
        """The request of a call; controls that it does not name are the command's own.

        Raises ``UserError`` for a wrong value.
        """
        given = {name: _plain(value) for name, value in words.items()}
        frames = given.get("frames")
        if isinstance(frames, str):
            if frames != "auto":
                raise UserError(f"`frames` must be auto or a number, not {frames!r}")
            given["frames"] = None
        config = given.pop("config", settings.defaults(command))
        watch, sound = given.pop("watch", None), given.pop("sound", None)
        if not (isinstance(config, SampleConfig) and (watch is None or callable(watch))):
            raise UserError("`config` must be a SampleConfig, and `watch` a function")

        names = [one.name for one in fields(SampleConfig) if one.name in given]
        controls = {name: given.pop(name) for name in names}
        given["config"] = from_mapping(SampleConfig, controls, start=config)
        given["seed"] = settings.random_seed() if given.get("seed") is None else given["seed"]
        request = from_mapping(Request, {"command": command, "prompt": prompt, **given})
        return replace(request, watch=watch, sound=_sound(sound))

    def repeated(self) -> list[Request]:
        """The same for each of ``count`` clips, with a seed of its own."""
        return [replace(self, seed=seed) for seed in settings.seeds(self.seed, self.count)]

    def window(self, number: int) -> Request:
        """The same for a window of the clip: the first has the clip's seed, others their own."""
        return replace(self, seed=mixed(self.seed, "window", number)) if number else self

    def way_there(self) -> Request:
        """The same for a clip that is to come back to its start: half of its frames do that."""
        names = ("frames", "min_length", "max_length")
        asked = {name: getattr(self.config, name) for name in names}
        half = {
            name: value and max(value - value // 2, min(value, 2)) for name, value in asked.items()
        }
        return replace(self, config=replace(self.config, **half))


def _plain(value: object) -> object:
    """A number of NumPy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _sound(given: object) -> Sound | None:
    """The sound of a file; ``UserError`` where it cannot be read."""
    if given is None or isinstance(given, Sound):
        return given
    if isinstance(given, str | Path):
        return sound_of(Path(given).expanduser())
    raise UserError(f"`sound` must be a file, not {given!r}")
