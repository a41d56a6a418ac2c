"""What is asked for: a prompt, the controls of the sampler and the settings of the clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from flowcept import settings
from flowcept.process.sampler import Step
from flowcept.settings import SampleConfig, mixed

Watch = Callable[[Step], None]


@dataclass(frozen=True)
class Request:
    """What is asked for, whatever the task."""

    command: str
    prompt: str
    config: SampleConfig  # lengths in pictures
    seed: int
    negative_prompt: str = ""
    fps: float | None = None  # of playback; None: the model's
    scale: int | None = None  # whole-number enlargement; None: to SHORT_SIDE
    loop: bool = False  # whether frames from the last one back to the first are put at the end
    anyway: bool = False  # whether pictures may be given that the codec cannot rebuild
    literal: bool = False  # no word is read as another that the model knows
    watch: Watch | None = None  # called after every step of the sampler, with the clip's latents

    def __post_init__(self) -> None:
        settings.SEED.check("seed", self.seed)
        for text in (self.prompt, self.negative_prompt):
            settings.check_prompt(text)

    @staticmethod
    def of(command: str, prompt: str, options: Mapping[str, Any]) -> Request:
        """The request of a call; controls that it does not name are the command's own.

        Raises ``TypeError`` for an unknown keyword and ``UserError`` for a wrong value.
        """
        rest = dict(options)
        start = rest.pop("config", settings.defaults(command))
        names = [one.name for one in fields(SampleConfig) if one.name in rest]
        controls = {name: rest.pop(name) for name in names}
        if rest.get("seed") is None:
            rest["seed"] = settings.random_seed()
        config = settings.from_mapping(SampleConfig, controls, start=start)
        return Request(command, prompt, config, **rest)

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
