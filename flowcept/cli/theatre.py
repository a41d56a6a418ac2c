"""``flowcept theatre``: drawn clips with captions to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Quiet


def theatre(
    out: Annotated[Path, typer.Argument(help="a new folder")],
    clips: Annotated[int, typer.Option(help="number of clips")] = 1000,
    size: Annotated[int, typer.Option(help="pixels along each side")] = 64,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
    actors: Annotated[
        str, typer.Option(help="auto, emoji, shapes, or names: dog,cat,robot")
    ] = "auto",
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
