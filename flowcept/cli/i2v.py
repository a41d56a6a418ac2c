"""``flowcept i2v``: clips that begin with a picture."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.making import make_clips
from flowcept.cli.options import Anyway, Exact, Fit, MakeOptions, Prompt, making
from flowcept.settings import FIT, SampleConfig


@making("i2v")
def i2v(
    options: MakeOptions,
    config: SampleConfig,
    image: Annotated[Path, typer.Argument(help="the first frame", metavar="PICTURE")],
    prompt: Prompt = "",
    fit: Fit = "crop",
    exact: Exact = None,
    anyway: Anyway = False,
) -> None:
    """Make a clip that begins with a picture.

    flowcept i2v photo.png -o out.mp4
    """
    from flowcept.data import video

    FIT.check("fit", fit)
    picture_HW3 = video.read_image(image)
    make_clips(
        options,
        [options.job(prompt, config)],
        lambda studio, asked: studio.i2v(picture_HW3, fit=fit, exact=exact, anyway=anyway, **asked),
        inputs=[image],
    )
