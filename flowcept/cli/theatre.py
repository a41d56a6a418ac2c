"""``flowcept theatre``: drawn clips with captions to train on."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Quiet, helped


def theatre(
    out: Annotated[Path, typer.Argument(help="a new folder")],
    clips: Annotated[int, helped("number of clips")] = 1000,
    size: Annotated[int, helped("pixels along each side")] = 64,
    seed: Annotated[int, helped("of what is drawn")] = 0,
    actors: Annotated[str, helped("auto, emoji, shapes, or names: dog,cat,robot")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips to train on: flowcept theatre data/ --clips 1000"""
    from tqdm import tqdm

    from flowcept.data import theatre as stage

    with tqdm(total=clips, desc="theatre", unit="clip", disable=quiet, delay=1) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        stage.write_theatre(out, clips, size=size, seed=seed, actors=actors, progress=progress)
    if not quiet:
        typer.echo(f"{out}: {clips} clips; next: flowcept train {out}")
