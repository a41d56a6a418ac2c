"""``flowcept stage``: clips of three-dimensional models with captions to train on."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Quiet, helped, takes
from flowcept.settings import COMPUTER, INPUT, OUTPUT, within

SIDES = within(16, 1024)


@takes()
def stage(
    out: Annotated[Path, typer.Argument(help="a new folder for the clips", metavar="DATA")],
    models: Annotated[
        Path, helped("a folder of glTF models, .glb files with animations", panel=INPUT)
    ],
    actors: Annotated[
        str, helped("all, or names with commas between them: dog,knight", panel=INPUT)
    ] = "all",
    actions: Annotated[
        str, helped("all, or names with commas between them: running,surfing", panel=INPUT)
    ] = "all",
    clips: Annotated[int, helped("number of clips", panel=OUTPUT)] = 1000,
    size: Annotated[int, helped("pixels along each side", rule=SIDES, panel=OUTPUT)] = 128,
    seed: Annotated[int, helped("the same seed draws the same clips", panel=OUTPUT, shown="0")] = 0,
    jobs: Annotated[int, helped("processes that draw at once", panel=COMPUTER)] = 1,
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips of 3D models.

    flowcept stage data/ --models models/ --clips 1000
    """
    from tqdm import tqdm

    from flowcept.data.stage.folder import write_stage

    with tqdm(total=clips, desc="stage", unit="clip", disable=quiet, delay=1) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        write_stage(
            out, models, clips, size=size, seed=seed, actors=actors, actions=actions, jobs=jobs,
            progress=progress
        )  # fmt: skip
    if not quiet:
        typer.echo(f"{out}: {clips} clips; next: flowcept train {out}")
