"""``flowcept train``: a model of a folder of clips."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import Field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.cli.options import Quiet, changes, helped, takes, temporary_beside
from flowcept.errors import UserError
from flowcept.settings import CONFIGS, MotionTrainConfig, TrainConfig, flag, leaf_fields

BY_NAME = {
    family: {one.name: one for _, one in leaf_fields(kind)} for family, kind in CONFIGS.items()
}


def _flags() -> Iterator[tuple[Field[Any], str, str]]:
    """Flags of all settings, with defaults in words and the group of each in the help.

    Weights of contexts have none, they stand in a TOML file.
    """
    usual, motion = BY_NAME[TrainConfig.family], BY_NAME[MotionTrainConfig.family]
    for name, one in usual.items():
        shown = str(one.default) or "none"
        if name not in motion:
            yield one, shown, "Options of --network transformer alone"
            continue
        other = str(motion[name].default) or "none"
        yield one, shown if shown == other else f"{shown}; motion {other}", "Options"
    for name, one in motion.items():
        if name not in usual:
            yield one, str(one.default) or "none", "Options of --network motion alone"


@takes(settings=changes(_flags()))
def train(
    settings: dict[str, Any],
    folder: Annotated[
        Path, typer.Argument(help="clips, with captions or not, or shards", metavar="DATA")
    ],
    run: Annotated[Path, helped("folder of the run", "--output", "-o")] = Path("run"),
    network: Annotated[
        str,
        helped("transformer: clips from words; motion: frames between pictures, from any clips"),
    ] = TrainConfig.family,
    preset: Annotated[
        str | None, typer.Option(help="of a transformer: tiny, small, base", show_default="small")
    ] = None,
    config: Annotated[Path | None, helped("settings in a TOML file")] = None,
    resume: Annotated[bool, helped("go on with the run", "--resume")] = False,
    check: Annotated[bool, helped("only say what the folder holds", "--check")] = False,
    pause_at: Annotated[int | None, helped("stop after this step")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on a folder of clips: flowcept train data/"""
    if network not in CONFIGS:
        raise UserError(f"--network must be {' or '.join(CONFIGS)}, not {network!r}")
    _check_flags(network, [*settings, *(["preset"] if preset else [])])
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give a folder of clips")
    if pause_at is not None and pause_at < 1:
        raise UserError(f"--pause-at must be at least 1, not {pause_at}")
    if preset and resume:
        raise UserError("--preset is for a new run: a resumed one keeps its settings; leave it out")
    from flowcept.training.state import read_config

    look, learn = _trainer(network, preset or "small", config, settings)
    if check:
        for line in look(folder):
            typer.echo(line)
        return
    temporary_beside(run)
    given = [*settings, *(read_config(config, CONFIGS[network]) if config else ())]
    learn(
        folder, run, resume=resume, given=given, pause_at=pause_at, quiet=quiet,
        console=typer.echo
    )  # fmt: skip


def _check_flags(network: str, given: Collection[str]) -> None:
    """Raise ``UserError`` for a flag of the other network."""
    known = {*BY_NAME[network], *(["preset"] if network == TrainConfig.family else [])}
    for name in given:
        if name not in known:
            other = next(family for family in CONFIGS if family != network)
            raise UserError(f"{flag(name)} is of --network {other}, not {network}: leave it out")


def _trainer(
    network: str, preset: str, toml: Path | None, settings: dict[str, Any]
) -> tuple[Callable[[Path], list[str]], Callable[..., Path]]:
    """What says what a folder holds, and what trains a network on it."""
    from flowcept.training import motion_run, run
    from flowcept.training.state import make_config, make_motion_config

    if network == MotionTrainConfig.family:
        motion = make_motion_config(toml, settings)
        look, learn = motion_run.check_motion, motion_run.train_motion
        return partial(look, config=motion), partial(learn, config=motion)
    config = make_config(preset, toml, settings)
    return partial(run.check, config=config), partial(run.train, config=config)
