"""``flowcept stage``: clips of three-dimensional models with captions to train on."""

from pathlib import Path
from typing import Annotated

from flowcept.cli.drawing import Clips, Out, Seed, Size, drawing
from flowcept.cli.options import Quiet, helped, takes
from flowcept.settings import COMPUTER, INPUT


@takes()
def stage(
    out: Out,
    models: Annotated[
        Path, helped("a folder of glTF models, .glb files with animations", panel=INPUT)
    ],
    actors: Annotated[
        str, helped("all, or names with commas between them: dog,knight", panel=INPUT)
    ] = "all",
    actions: Annotated[
        str, helped("all, or names with commas between them: running,surfing", panel=INPUT)
    ] = "all",
    reserved: Annotated[
        bool,
        helped(
            "only the pairs of actor and action that are otherwise never drawn",
            "--reserved",
            panel=INPUT,
        ),
    ] = False,
    clips: Clips = 1000,
    size: Size = 128,
    seed: Seed = 0,
    jobs: Annotated[int, helped("processes that draw at once", panel=COMPUTER)] = 1,
    quiet: Quiet = False,
) -> None:
    """Draw captioned clips of 3D models.

    flowcept stage data/ --models models/ --clips 1000
    """
    from flowcept.data.stage.folder import write_stage

    with drawing("stage", out, clips, quiet=quiet) as progress:
        write_stage(
            out, models, clips, size=size, seed=seed, actors=actors, actions=actions,
            reserved=reserved, jobs=jobs, progress=progress
        )  # fmt: skip
