"""``flowcept interp``: the frames between keyframes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowcept.cli.making import check_rate, job_of, make_clips
from flowcept.cli.options import Exact, Fit, MakeOptions, Prompt, making, takes
from flowcept.errors import UserError
from flowcept.settings import FIT, SampleConfig, check_keyframes

if TYPE_CHECKING:
    from flowcept.data.video import Frames


@takes(**making("interp"))
def interp(
    options: MakeOptions,
    config: SampleConfig,
    keyframes: Annotated[list[Path], typer.Argument(help="two pictures or more, or one clip")],
    prompt: Prompt = "",
    multi: Annotated[
        int, typer.Option(help="exactly so many frames in every gap; for a clip 1")
    ] = 0,
    fit: Fit = "crop",
    exact: Exact = None,
) -> None:
    """Make the frames between keyframes: flowcept interp a.png b.png --frames auto"""
    from flowcept.data import video

    FIT.check("fit", fit)
    if len(keyframes) == 1:
        frames_FHW3, clip_fps = _frames_of(keyframes[0])
        chosen = config.frames or config.min_length or config.max_length
        multi = multi or (0 if chosen else 1)
        check_rate(options.fps or clip_fps * (multi + 1 if multi else 1))
        sound = keyframes[0] if video.has_sound(keyframes[0]) else None
    else:
        frames_FHW3, clip_fps, sound = _pictures(keyframes, fit), None, None
    check_keyframes(config, len(frames_FHW3), multi)
    make_clips(
        "interp",
        options,
        [job_of(prompt, options, config)],
        lambda studio, text, shared: studio.interp(
            frames_FHW3,
            text,
            multi=multi,
            clip_fps=clip_fps,
            fit=fit,
            exact=exact,
            sound=sound,
            **shared,
        ),
        inputs=keyframes,
        least=multi + 2 if multi else len(frames_FHW3),
    )


def _frames_of(clip: Path) -> tuple[Frames, float]:
    """The frames of a clip as keyframes, and their rate."""
    from flowcept.data import video

    frames_FHW3, rate = video.read_video(clip)
    if len(frames_FHW3) < 2:
        raise UserError(f"{clip} is one picture: give two pictures, or a clip")
    return frames_FHW3, rate


def _pictures(paths: list[Path], fit: str) -> Frames:
    """Pictures as keyframes, all of the first one's size."""
    import numpy as np

    from flowcept.data import video

    pictures = [video.read_image(path) for path in paths]
    height, width, _ = pictures[0].shape
    return np.concatenate([video.fit(one[None], (height, width), fit)[0] for one in pictures])
