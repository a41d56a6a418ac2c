"""``flowcept train``: train a model on a folder of clips."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import Field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flowcept.cli.options import Quiet, changes, helped, in_words, takes, temporary_beside
from flowcept.errors import UserError
from flowcept.settings import (
    CONFIGS,
    OUTPUT,
    PRESETS,
    TRAINING,
    MotionTrainConfig,
    Tables,
    TrainConfig,
    flag,
    leaf_fields,
    one_of,
)

NETWORK, PRESET = one_of(*CONFIGS), one_of(*PRESETS)
BY_NAME = {
    family: {one.name: one for _, one in leaf_fields(kind)} for family, kind in CONFIGS.items()
}


def _flags() -> Iterator[tuple[Field[Any], str, str]]:
    """Flags of all settings, with defaults in words and the panel of each in the help.

    Flags of both networks come first, then those of only one. Weights of contexts have no flag:
    they are set in a TOML file.
    """
    usual, motion = BY_NAME[TrainConfig.family], BY_NAME[MotionTrainConfig.family]
    for name, one in usual.items():
        if name in motion:
            shown, other = in_words(one.default), in_words(motion[name].default)
            told = shown if shown == other else f"{shown}, motion {other}"
            yield one, told, _panel(TrainConfig, name)
    for kind, shared in ((TrainConfig, motion), (MotionTrainConfig, usual)):
        for name, one in BY_NAME[kind.family].items():
            if name not in shared:
                panel = f"{_panel(kind, name)} (--network {kind.family} only)"
                yield one, in_words(one.default), panel


def _panel(config: type[Tables], name: str) -> str:
    """The panel of a setting in the help: its own, or that of its table."""
    tables = get_type_hints(config)
    group, one = next((group, one) for group, one in leaf_fields(config) if one.name == name)
    panel: str = one.metadata["panel"] or tables[group].panel
    return panel


def _preset_words() -> str:
    """The flags that each preset sets."""
    told = []
    for name, values in PRESETS.items():
        flags = " ".join(f"{flag(setting)} {in_words(value)}" for setting, value in values.items())
        told.append(f"--preset {name} sets {flags or 'nothing: it has the defaults above'}.")
    return "\n\n".join(told)


@takes(settings=changes(_flags()))
def train(
    settings: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Argument(
            help="a folder of clips (with captions for a transformer) or of shards",
            metavar="DATA",
        ),
    ],
    run: Annotated[
        Path,
        helped("folder of the run: model, states, log, sheets", "--output", "-o", panel=OUTPUT),
    ] = Path("run"),
    preset: Annotated[
        str | None,
        helped(
            "size of a transformer and its training; the end of this help lists the flags set",
            rule=PRESET,
            panel=TRAINING,
            shown="small",
        ),
    ] = None,
    network: Annotated[
        str,
        helped(
            "transformer: clips from prompts; motion: frames between pictures",
            rule=NETWORK,
            panel=TRAINING,
        ),
    ] = TrainConfig.family,
    resume: Annotated[
        bool, helped("continue the run in --output", "--resume", panel=TRAINING)
    ] = False,
    check: Annotated[
        bool, helped("only print what the folder holds; train nothing", "--check", panel=OUTPUT)
    ] = False,
    config: Annotated[
        Path | None, helped("a TOML file of settings; flags override it", panel=TRAINING)
    ] = None,
    pause_at: Annotated[
        int | None,
        helped("stop after this step; --resume continues", panel=TRAINING),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on a folder of clips.

    flowcept train data/
    """
    NETWORK.check("network", network)
    PRESET.check("preset", preset)
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
            raise UserError(f"{flag(name)} is only for --network {other}: leave it out")


def _trainer(
    network: str, preset: str, toml: Path | None, settings: dict[str, Any]
) -> tuple[Callable[[Path], list[str]], Callable[..., Path]]:
    """Two functions: one describes a folder, one trains a network on it."""
    from flowcept.training import motion_run, run
    from flowcept.training.state import make_config, make_motion_config

    if network == MotionTrainConfig.family:
        motion = make_motion_config(toml, settings)
        look, learn = motion_run.check_motion, motion_run.train_motion
        return partial(look, config=motion), partial(learn, config=motion)
    config = make_config(preset, toml, settings)
    return partial(run.check, config=config), partial(run.train, config=config)


EPILOG = _preset_words()  # at the end of the help
