"""``flowcept train``: a model of a folder of clips."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.cli.options import Quiet, changes, helped, takes, temporary_beside
from flowcept.errors import UserError
from flowcept.settings import TrainConfig, leaf_fields

# The flags and their defaults in words; weights of contexts have none, they stand in a TOML file.
SETTINGS = [(one, str(one.default) or "none") for _, one in leaf_fields(TrainConfig)]


@takes(settings=changes(SETTINGS))
def train(
    settings: dict[str, Any],
    folder: Annotated[Path, typer.Argument(help="clips and captions", metavar="DATA")],
    run: Annotated[Path, helped("folder of the run", "--output", "-o")] = Path("run"),
    preset: Annotated[
        str | None, typer.Option(help="tiny, small or base", show_default="small")
    ] = None,
    config: Annotated[Path | None, helped("settings in a TOML file")] = None,
    resume: Annotated[bool, helped("go on with the run", "--resume")] = False,
    check: Annotated[bool, helped("only say what the folder holds", "--check")] = False,
    pause_at: Annotated[int | None, helped("stop after this step")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on a folder of clips: flowcept train data/"""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give a folder of clips")
    if pause_at is not None and pause_at < 1:
        raise UserError(f"--pause-at must be at least 1, not {pause_at}")
    if preset and resume:
        raise UserError("--preset is for a new run: a resumed one keeps its settings; leave it out")
    from flowcept.training import run as trainer
    from flowcept.training.state import make_config, read_config

    made = make_config(preset or "small", config, settings)
    if check:
        for line in trainer.check(folder, made):
            typer.echo(line)
        return
    temporary_beside(run)
    given = [*settings, *(read_config(config) if config else ())]
    trainer.train(
        folder, run, made, resume=resume, given=given, pause_at=pause_at, quiet=quiet,
        console=typer.echo
    )  # fmt: skip
