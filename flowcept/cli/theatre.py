"""``flowcept theatre``: drawn clips with captions to train on."""

from typing import Annotated

from flowcept.cli.drawing import Clips, Out, Seed, Size, drawing
from flowcept.cli.options import Quiet, helped, takes
from flowcept.settings import INPUT


@takes()
def theatre(
    out: Out,
    actors: Annotated[
        str, helped("auto, emoji, shapes, or names with commas between them: dog,cat", panel=INPUT)
    ] = "auto",
    clips: Clips = 1000,
    size: Size = 64,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips to train on.

    flowcept theatre data/ --clips 1000
    """
    from flowcept.data import theatre as stage

    with drawing("theatre", out, clips, quiet=quiet) as progress:
        stage.write_theatre(out, clips, size=size, seed=seed, actors=actors, progress=progress)
