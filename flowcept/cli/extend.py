"""``flowcept extend``: more frames after, before or around a clip."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.making import check_rate, make_clips
from flowcept.cli.options import Anyway, MakeOptions, NoSound, Prompt, helped, making
from flowcept.settings import DIRECTION, INPUT, LENGTH, SampleConfig, check_extension


@making("extend")
def extend(
    options: MakeOptions,
    config: SampleConfig,
    clip: Annotated[Path, typer.Argument(help="the clip to make longer", metavar="CLIP")],
    prompt: Prompt = "",
    direction: Annotated[
        str,
        helped(
            "where new frames go: after the clip, before it, or both", rule=DIRECTION, panel=LENGTH
        ),
    ] = "forward",
    context: Annotated[
        int | None,
        helped(
            "frames of the clip that the model sees; default at most 8",
            panel=INPUT,
        ),
    ] = None,
    anyway: Anyway = False,
    no_sound: NoSound = False,
) -> None:
    """Make a clip longer.

    flowcept extend clip.mp4 -o longer.mp4 (lengths count new frames only)
    """
    from flowcept.data import video

    check_extension(direction, context)
    file = video.Footage.open(clip)
    check_rate(options.fps or file.timing.fps)
    sound = clip if video.has_sound(clip) and not no_sound else None

    make_clips(
        options,
        [options.job(prompt, config)],
        lambda studio, asked: studio.extend_file(
            file,
            direction=direction,
            context=context,
            sound=sound,
            anyway=anyway,
            **asked,
        ),
        inputs=[clip],
    )
