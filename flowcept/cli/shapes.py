"""``flowcept shapes``: drawn clips with captions, where no data is at hand."""

from flowcept.cli.drawing import Clips, Out, Seed, Size, drawing
from flowcept.cli.options import Quiet, takes


@takes()
def shapes(
    out: Out,
    clips: Clips = 1000,
    size: Size = 64,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips of simple shapes.

    flowcept shapes data/ --clips 1000
    """
    from flowcept.data.shapes import write_shapes

    with drawing("shapes", out, clips, quiet=quiet) as progress:
        write_shapes(out, clips, size=size, seed=seed, progress=progress)
