"""The trainings of a model, as recorded in its card: commands that repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from flowcept.hub import parse
from flowcept.model_file import Card, Training
from flowcept.settings import (
    OF_THE_MODEL,
    PRESETS,
    ContextMixture,
    MotionTrainConfig,
    ReportSettings,
    TrainConfig,
    as_flags,
)

Config = TrainConfig | MotionTrainConfig
# What changes no weight of the model file.
ELSEWHERE = {*(one.name for one in fields(ReportSettings)), "device"} - {"export_dtype"}


def begun_training(
    config: Config, dataset: str, files: str, before: tuple[Training, ...] = ()
) -> tuple[Training, ...]:
    """The trainings for a model's card when a new one begins after those ``before``."""
    words = ["flowcept", "train", dataset, "-o", f"run{len(before) + 1}"]
    settings = {**config.flat()}
    if before:
        settings["init"] = f"run{len(before)}"
    words += _flags(config, settings)
    command = " ".join([shlex.join(words), *_mixture(settings)])
    return (*before, Training(command, dataset, files))


def ended_training(card: Card, config: Config, step: int, seen: int) -> Card:
    """The card after ``step`` steps and ``seen`` clips; the command ends there, too."""
    *before, last = card.trainings
    command, settings = last.command, config.optimizer
    if step < settings.steps and not settings.max_hours:
        head, *comment = command.split("  # ")
        command = "  # ".join([f"{head} --pause-at {step}", *comment])
    last = replace(last, command=command, steps=step, seen=seen)
    return replace(card, steps=step, trainings=(*before, last))


def _flags(config: Config, settings: Mapping[str, Any]) -> Iterator[str]:
    """The flags of a command that differ from the preset that is nearest."""
    if isinstance(config, MotionTrainConfig):
        yield from ("--network", "motion")
        yield from _differing(settings, MotionTrainConfig())
        return
    starts = {name: TrainConfig.from_flat(preset) for name, preset in PRESETS.items()}
    found = {name: list(_differing(settings, start)) for name, start in starts.items()}
    preset = min(found, key=lambda name: (len(found[name]), name != "small"))
    if preset != "small":
        yield from ("--preset", preset)
    yield from found[preset]
    if settings["context"] != ContextMixture():
        yield from ("--config", "context.toml")


def _differing(settings: Mapping[str, Any], start: Config) -> Iterator[str]:
    """Flags of the settings that differ from ``start``, except those that change no weight."""
    usual = start.flat()
    for name, value in settings.items():
        settled = bool(settings["init"]) and name in OF_THE_MODEL
        if name == "context" or name in ELSEWHERE or settled or value == usual[name]:
            continue
        yield from as_flags(name, value if isinstance(value, bool) else _named(value))


def _named(value: object) -> str:
    """A value for a flag; of a path only the last part, so that no computer's folders show."""
    text = str(value)
    on_hub = parse(text) and not Path(text).exists()
    return text if on_hub else Path(text).name


def _mixture(settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings that have no flag, as a comment that shows the TOML file."""
    mixture = settings.get("context")
    if mixture and mixture != ContextMixture():
        weights = ", ".join(f"{name} = {weight}" for name, weight in asdict(mixture).items())
        yield f" # context.toml: context = {{{weights}}}"
