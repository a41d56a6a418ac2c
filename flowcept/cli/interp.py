"""``flowcept interp``: the frames between keyframes."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.making import check_rate, make_clips
from flowcept.cli.options import Exact, Fit, MakeOptions, Prompt, helped, making
from flowcept.errors import UserError
from flowcept.settings import FIT, SampleConfig, check_keyframes


@making("interp")
def interp(
    options: MakeOptions,
    config: SampleConfig,
    keyframes: Annotated[list[Path], typer.Argument(help="two pictures or more, or one clip")],
    prompt: Prompt = "",
    multi: Annotated[int, helped("exactly so many frames in every gap; for a clip 1")] = 0,
    fit: Fit = "crop",
    exact: Exact = None,
) -> None:
    """Make the frames between keyframes: flowcept interp a.png b.png --frames auto"""
    import numpy as np

    from flowcept.data import video

    FIT.check("fit", fit)
    rate, sound = None, None
    if len(keyframes) == 1:
        keys_FHW3, rate = video.read_video(keyframes[0])
        if len(keys_FHW3) < 2:
            raise UserError(f"{keyframes[0]} is one picture: give two pictures, or a clip")
        chosen = config.frames or config.min_length or config.max_length
        multi = multi or (0 if chosen else 1)
        check_rate(options.fps or rate * (multi + 1))
        sound = keyframes[0] if video.has_sound(keyframes[0]) else None
    else:  # all get the size of the first
        pictures = [video.read_image(path) for path in keyframes]
        height, width, _ = pictures[0].shape
        fitted = [video.fit(one[None], (height, width), fit)[0] for one in pictures]
        keys_FHW3 = np.concatenate(fitted)
    check_keyframes(config, len(keys_FHW3), multi)
    make_clips(
        options,
        [options.job(prompt, config)],
        lambda studio, text, rest: studio.interp(
            keys_FHW3, text, multi=multi, clip_fps=rate, fit=fit, exact=exact, sound=sound, **rest
        ),
        inputs=keyframes,
        least=multi + 2 if multi else len(keys_FHW3),
    )
