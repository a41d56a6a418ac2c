"""``flowcept theatre``: drawn clips with captions to train on."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Quiet, helped, takes
from flowcept.settings import INPUT, OUTPUT, within

SIDES = within(16, 1024)


@takes()
def theatre(
    out: Annotated[Path, typer.Argument(help="a new folder for the clips", metavar="DATA")],
    actors: Annotated[
        str, helped("auto, emoji, shapes, or names with commas between them: dog,cat", panel=INPUT)
    ] = "auto",
    clips: Annotated[int, helped("number of clips", panel=OUTPUT)] = 1000,
    size: Annotated[int, helped("pixels along each side", rule=SIDES, panel=OUTPUT)] = 64,
    seed: Annotated[int, helped("the same seed draws the same clips", panel=OUTPUT, shown="0")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips to train on.

    flowcept theatre data/ --clips 1000
    """
    from tqdm import tqdm

    from flowcept.data import theatre as stage

    with tqdm(total=clips, desc="theatre", unit="clip", disable=quiet, delay=1) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        stage.write_theatre(out, clips, size=size, seed=seed, actors=actors, progress=progress)
    if not quiet:
        typer.echo(f"{out}: {clips} clips; next: flowcept train {out}")
