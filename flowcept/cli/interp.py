"""``flowcept interp``: the frames between keyframes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcept.cli.making import check_rate, make_clips
from flowcept.cli.options import (
    Anyway,
    Exact,
    Fit,
    MakeOptions,
    NoSound,
    Prompt,
    helped,
    record,
    takes,
)
from flowcept.cli.retiming import retime_clips, retimes
from flowcept.errors import UserError
from flowcept.settings import FIT, RetimeConfig, SampleConfig, check_keyframes, defaults

if TYPE_CHECKING:
    from flowcept.clip import Clip
    from flowcept.data.video import Frames
    from flowcept.generation import Studio

PREFERRED = "motion"  # the model that is taken where neither it nor a prompt is named


@dataclass(frozen=True)
class Keyframes:
    """What is given: pictures, or the frames of a clip with its rate and perhaps its sound."""

    frames_FHW3: "Frames"
    fps: float | None = None
    sound: Path | None = None
    notes: tuple[str, ...] = ()  # what the user should know

    def usual(self, config: SampleConfig) -> int:
        """Frames in every gap where none are named: 1 in a clip's, unless a length is asked for."""
        chosen = config.frames or config.min_length or config.max_length
        return 0 if self.fps is None or chosen else 1


@takes(
    options=record(MakeOptions("interp")),
    config=record(defaults("interp")),
    retiming=record(RetimeConfig()),
)
def interp(
    options: MakeOptions,
    config: SampleConfig,
    retiming: RetimeConfig,
    flags: typer.Context,
    keyframes: Annotated[list[Path], typer.Argument(help="two pictures or more, or clips")],
    prompt: Prompt = "",
    multi: Annotated[int, helped("exactly so many frames in every gap; for a clip 1")] = 0,
    fit: Fit = "crop",
    exact: Exact = None,
    anyway: Anyway = False,
    no_sound: NoSound = False,
) -> None:
    """Make the frames between keyframes: flowcept interp a.png b.png --frames auto"""
    FIT.check("fit", fit)
    if not (options.model or prompt or options.negative_prompt):
        options = replace(options, model=_preferred())
    if retimes(options, config, retiming, keyframes):
        retime_clips(options, retiming, keyframes, multi, silent=no_sound)
        return
    given = _read(keyframes, fit)
    multi = multi or given.usual(config)
    check_keyframes(config, len(given.frames_FHW3), multi)
    check_rate(options.fps or (given.fps or 1) * (multi + 1))
    count = len(given.frames_FHW3) + options.loop  # the first one ends a loop, too

    def call(studio: "Studio", asked: dict[str, Any]) -> "Clip":
        made = studio.interp(
            given.frames_FHW3,
            multi=multi,
            clip_fps=given.fps,
            fit=fit,
            exact=exact,
            sound=None if no_sound else given.sound,
            anyway=anyway,
            **asked,
        )
        return replace(made, notes=[*given.notes, *made.notes])

    make_clips(
        options,
        [options.job(prompt, config)],
        call,
        inputs=keyframes,
        own_steps=not _named(flags, "steps"),
        least=multi + 2 if multi else count,
        keyframes=2 if multi else count,
        size=given.frames_FHW3.shape[1:3],
    )


def _named(flags: typer.Context, name: str) -> bool:
    """Whether a flag was given, be it with its default."""
    source = flags.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _preferred() -> str:
    """The model for frames between pictures without words."""
    from flowcept.models import find

    return find(None, prefer=PREFERRED).source


def _read(keyframes: list[Path], fit: str) -> Keyframes:
    """The frames of one clip, or pictures, all of the size of the first."""
    import numpy as np

    from flowcept.data import video

    if len(keyframes) == 1:
        keys_FHW3, rate = video.read_video(keyframes[0])
        if len(keys_FHW3) < 2:
            raise UserError(f"{keyframes[0]} is one picture: give two pictures, or a clip")
        file = keyframes[0]
        sound, lost = file if video.has_sound(file) else None, video.Footage.open(file).lost
        return Keyframes(keys_FHW3, rate, sound, (lost,) if lost else ())
    pictures = [video.read_image(path) for path in keyframes]
    height, width, _ = pictures[0].shape
    fitted, said = zip(
        *(video.fit(one[None], (height, width), fit) for one in pictures), strict=True
    )
    notes = [f"{path} is {note}" for path, note in zip(keyframes, said, strict=True) if note]
    return Keyframes(np.concatenate(fitted), notes=tuple(notes))
