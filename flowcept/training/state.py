"""A run's folder: its settings, its log, and what a resumed run starts from.

``docs/run-folder.md`` lists its files.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tomli_w

from flowcept.data import video
from flowcept.errors import UserError
from flowcept.evaluation import report
from flowcept.files import replacing
from flowcept.settings import (
    OF_THE_MODEL,
    PRESETS,
    RESUMABLE,
    MotionTrainConfig,
    TrainConfig,
    flag,
    shown,
)
from flowcept.training.clock import Clock
from flowcept.training.console import Console
from flowcept.training.distributed import Machine

Config = TypeVar("Config", TrainConfig, MotionTrainConfig)

GONE = {"context_noise": 0.0}  # settings that are gone, with the value that left them off


def make_config(preset: str, toml: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Settings from a preset, then a TOML file, then flags; later ones win.

    Raises ``UserError`` for an unknown preset or setting, a wrong type, a file that is not TOML,
    or a flag that ``init`` fixes; the TOML may hold such settings, as a record.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}: use {', '.join(PRESETS)}")
    recorded = read_config(toml) if toml is not None else {}
    config = TrainConfig.from_flat({**PRESETS[preset], **recorded, **flags})
    fixed = [name for name in OF_THE_MODEL if name in flags]
    if config.optimizer.init and fixed:
        raise UserError(
            f"{flag(fixed[0])} is for a new network: --init takes it from the file; leave it out"
        )
    return config


def make_motion_config(toml: Path | None, flags: Mapping[str, Any]) -> MotionTrainConfig:
    """Settings of a motion training from a TOML file, then flags; errors as in ``make_config``."""
    recorded = read_config(toml, MotionTrainConfig) if toml is not None else {}
    return MotionTrainConfig.from_flat({**recorded, **flags})


def read_config(
    path: Path, kind: type[TrainConfig] | type[MotionTrainConfig] = TrainConfig
) -> dict[str, Any]:
    """The settings of a TOML file by name, in tables or not.

    ``UserError`` for a setting that is gone, unless it had no effect there.
    """
    found = _read_toml(path)
    groups = set(asdict(kind())) - {"context"}
    settings: dict[str, Any] = {}
    for name, value in found.items():
        table = name in groups and isinstance(value, dict)
        settings |= value if table else {name: value}
    for name, off in GONE.items():
        value = settings.pop(name, off)
        if value != off:
            raise UserError(f"{name} {shown(value)} is no longer supported: leave it out")
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error


def family_of_run(path: Path) -> str:
    """Which network a recorded run trains: only motion runs have a table ``motion``."""
    return "motion" if "motion" in _read_toml(path) else "transformer"


def write_config(config: TrainConfig | MotionTrainConfig, path: Path) -> None:
    """All settings as TOML, a table for each part."""
    with replacing(path) as temporary:
        temporary.write_text(tomli_w.dumps(asdict(config)), encoding="utf-8")


class Files:
    """The folder of one run, and the names in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.cache = path / "cache"
        self.codec = path / "codec.safetensors"
        self.codec_state = path / "codec-state.safetensors"  # of its training, until it is fitted
        self.state = path / "state.safetensors"
        self.clock = path / "clock.json"
        self.model = path / "model.safetensors"
        self.log = path / "log.jsonl"
        self.samples = path / "samples"

    def unused(self, config: Config) -> Config:
        """The settings of a new run; ``UserError`` if the folder holds another."""
        if self.config.exists():
            raise UserError(
                f"{self.path} holds a training run: add --resume to continue, or use another folder"
            )
        return config

    def open(self, config: TrainConfig | MotionTrainConfig) -> None:
        """Write the settings of a new run, which marks its folder as in use."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_config(config, self.config)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def free(self) -> None:
        """Free the folder for another run."""
        self.config.unlink(missing_ok=True)

    def recorded(self, config: Config, given: Collection[str]) -> Config:
        """The settings that the run was started with, except those ``given`` that may change."""
        if not self.config.exists():
            raise UserError(
                f"nothing to resume in {self.path}: leave out --resume to start a new run"
            )
        family = family_of_run(self.config)
        if family != config.family:
            raise UserError(f"{self.path} is a run of --network {family}: add --network {family}")
        try:
            started = type(config).from_flat(read_config(self.config, type(config)))
        except UserError as error:
            raise UserError(f"{self.config}: {error}") from error
        own, other = started.flat(), config.flat()
        for name in given:
            if name not in RESUMABLE and own[name] != other[name]:
                raise UserError(
                    f"{self.path} was started with another {flag(name)} ({own[name]}), which "
                    "cannot change: leave it out with --resume, or start another run, with "
                    "--init to use this run's model"
                )
        return started.changed(**{name: other[name] for name in RESUMABLE if name in given})

    def append(self, record: Mapping[str, object]) -> None:
        """Append a line to the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of the log; a killed process may have left part of one."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def forget_after(self, step: int) -> None:
        """Remove lines of steps that a resumed run will take again."""
        if self.log.exists():
            kept = [record for record in self.records() if record.get("step", 0) <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            with replacing(self.log) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def draw_losses(self, names: Collection[str]) -> None:
        """Draw the log's curves to ``loss.png``, with those of held-out clips."""
        records = self.records()
        curves: dict[str, list[tuple[float, float]]] = {}
        for name in [full for one in names for full in (one, f"held_out_{one}")]:
            points = [(float(r["step"]), float(r[name])) for r in records if name in r]
            if points:
                curves[name] = points
        chart = report.line_chart(curves, title="loss", x_label="step", log_y=True)
        video.save_image(chart, self.path / "loss.png")


@dataclass(frozen=True)
class Run(Generic[Config]):
    """A run in progress: what its parts share."""

    data: Path  # the folder of clips
    files: Files
    config: Config
    machine: Machine
    console: Console
    clock: Clock
    resumed: bool  # whether it goes on with a run that began before

    @property
    def has_state(self) -> bool:
        """Whether there is a state to resume; a run may be stopped before its first."""
        return self.resumed and self.files.state.exists()
