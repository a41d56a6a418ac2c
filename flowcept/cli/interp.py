"""``flowcept interp``: the frames between keyframes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcept.cli.making import check_rate, make_clips
from flowcept.cli.options import Exact, Fit, MakeOptions, NoSound, Prompt, helped, record, takes
from flowcept.cli.retiming import retime_clips, retimes
from flowcept.errors import UserError
from flowcept.settings import FIT, RetimeConfig, SampleConfig, check_keyframes, defaults

if TYPE_CHECKING:
    from flowcept.data.video import Frames
    from flowcept.generation import Clip, Studio

PREFERRED = "motion"  # the model that is taken where neither it nor a prompt is named


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
    no_sound: NoSound = False,
) -> None:
    """Make the frames between keyframes: flowcept interp a.png b.png --frames auto"""
    from flowcept.data import video

    FIT.check("fit", fit)
    if not (options.model or prompt or options.negative_prompt):
        options = replace(options, model=_preferred())
    if retimes(options, config, retiming, keyframes):
        retime_clips(options, retiming, keyframes, multi, silent=no_sound)
        return
    keys_FHW3, rate, notes = _read(keyframes, fit)
    sound = None
    if rate is not None:
        chosen = config.frames or config.min_length or config.max_length
        multi = multi or (0 if chosen else 1)
        check_rate(options.fps or rate * (multi + 1))
        sound = keyframes[0] if video.has_sound(keyframes[0]) and not no_sound else None
    check_keyframes(config, len(keys_FHW3), multi)

    def call(studio: "Studio", asked: dict[str, Any]) -> "Clip":
        made = studio.interp(
            keys_FHW3, multi=multi, clip_fps=rate, fit=fit, exact=exact, sound=sound, **asked
        )
        return replace(made, notes=[*notes, *made.notes])

    make_clips(
        options,
        [options.job(prompt, config)],
        call,
        inputs=keyframes,
        own_steps=not _named(flags, "steps"),
        least=multi + 2 if multi else len(keys_FHW3),
        keyframes=2 if multi else len(keys_FHW3),
        size=keys_FHW3.shape[1:3],
    )


def _named(flags: typer.Context, name: str) -> bool:
    """Whether a flag was given, be it with its default."""
    source = flags.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _preferred() -> str:
    """The model for frames between pictures without words."""
    from flowcept import model_file

    return str(model_file.find(None, prefer=PREFERRED))


def _read(keyframes: list[Path], fit: str) -> "tuple[Frames, float | None, list[str]]":
    """The frames of one clip, with its rate, or pictures, all of the size of the first; notes."""
    import numpy as np

    from flowcept.data import video

    if len(keyframes) == 1:
        keys_FHW3, rate = video.read_video(keyframes[0])
        if len(keys_FHW3) < 2:
            raise UserError(f"{keyframes[0]} is one picture: give two pictures, or a clip")
        lost = video.Footage.open(keyframes[0]).lost
        return keys_FHW3, rate, [lost] if lost else []
    pictures = [video.read_image(path) for path in keyframes]
    height, width, _ = pictures[0].shape
    fitted, said = zip(
        *(video.fit(one[None], (height, width), fit) for one in pictures), strict=True
    )
    notes = [f"{path} is {note}" for path, note in zip(keyframes, said, strict=True) if note]
    return np.concatenate(fitted), None, notes
