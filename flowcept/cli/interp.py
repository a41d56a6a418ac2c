"""``flowcept interp``: the frames between keyframes."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

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
    making,
    record,
)
from flowcept.cli.retiming import retime_clips, retimes
from flowcept.errors import UserError
from flowcept.settings import FIT, LENGTH, RetimeConfig, SampleConfig, check_keyframes

PREFERRED = "motion"  # the model that is taken where neither it nor a prompt is named


@making("interp", "motion, or theatre with a prompt", retiming=record(RetimeConfig()))
def interp(
    options: MakeOptions,
    config: SampleConfig,
    retiming: RetimeConfig,
    flags: typer.Context,
    keyframes: Annotated[
        list[Path],
        typer.Argument(help="two or more pictures, a clip, or several clips", metavar="KEYFRAME"),
    ],
    prompt: Prompt = "",
    multi: Annotated[
        int,
        helped(
            "new frames in each gap between keyframes; 0: one for a clip, else the model chooses",
            panel=LENGTH,
        ),
    ] = 0,
    fit: Fit = "crop",
    exact: Exact = None,
    anyway: Anyway = False,
    no_sound: NoSound = False,
) -> None:
    """Make the frames between keyframes.

    flowcept interp a.png b.png --frames auto
    """
    FIT.check("fit", fit)
    if not (options.model or prompt or options.negative_prompt):
        options = replace(options, model=_preferred())
    if retimes(options, config, retiming, keyframes):
        retime_clips(options, retiming, keyframes, multi, silent=no_sound)
        return
    from flowcept.inputs import Source

    given = Source.of(keyframes[0] if len(keyframes) == 1 else keyframes, fit)
    if len(given.frames_FHW3) < 2:
        raise UserError(f"{keyframes[0]} is one picture: give two pictures, or a clip")
    multi = multi or given.usual(config)
    check_keyframes(config, len(given.frames_FHW3), multi)
    check_rate(options.fps or (given.fps or 1) * (multi + 1))
    count = len(given.frames_FHW3) + options.loop  # the first one ends a loop, too

    if no_sound:
        given = replace(given, sound=None)

    make_clips(
        options,
        [options.job(prompt, config)],
        lambda studio, asked: studio.interp(
            given, multi=multi, fit=fit, exact=exact, anyway=anyway, **asked
        ),
        inputs=keyframes,
        own_steps=not _named(flags, "steps"),
        least=multi + 2 if multi else count,
        keyframes=2 if multi else count,
        size=given.frames_FHW3.shape[1:3],
    )


def _named(flags: typer.Context, name: str) -> bool:
    """Whether a flag was given, be it with its default, or by the clip of ``--like``."""
    source = flags.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _preferred() -> str:
    """The model for frames between pictures without words."""
    from flowcept.models import find

    return find(None, prefer=PREFERRED).source
