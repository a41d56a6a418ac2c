"""The steps of a run with all that is told of them: log, bar, sheets, states, the model file."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowcept import model_file
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.settings import MotionTrainConfig, ReportSettings, TrainConfig
from flowcept.stopping import whole
from flowcept.training.distributed import Team
from flowcept.training.state import Config, Files, Run
from flowcept.training.trainer import add

FIRST_SHEET = 100  # the step of the first contact sheet
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Training(Protocol):
    """What is trained, whichever network it is: what changes from step to step."""

    step: int
    hours: float

    @property
    def config(self) -> TrainConfig | MotionTrainConfig:
        """All settings."""

    @property
    def counts(self) -> tuple[str, ...]:
        """What of a step's values is told per second."""

    @property
    def curves(self) -> tuple[str, ...]:
        """Which values are drawn."""

    @property
    def num_held(self) -> int:
        """How many clips or windows are never learned from."""

    @property
    def out_of_time(self) -> bool:
        """Whether ``max_hours`` are over."""

    def progress(self) -> float:
        """Share of the training that lies behind."""

    def train_step(self) -> Mapping[str, Tensor | float]:
        """One step: losses, ``norm`` and ``counts`` by name."""

    def told(self, means: Mapping[str, float]) -> str:
        """A few words for the bar on the means of the last steps."""

    def held_out(self) -> dict[str, float]:
        """Scores of what is held out; empty where there are none."""

    def sheet(self) -> Image.Image:
        """What the model makes so far."""

    def weights(self) -> Weights:
        """The model as it goes into a file."""

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ``ValueError`` or ``KeyError`` for one of something else."""


def run_to_end(trainer: Training, run: Run[Config], pause_at: int | None = None) -> None:
    """Steps until the run is over, with its reports; the state is written where it is stopped."""
    steps, first = run.config.optimizer.steps, run.machine.team.first
    last = steps if pause_at is None else min(steps, pause_at)
    reports = Reports(trainer, run)
    try:
        while trainer.step < last and not trainer.out_of_time:
            with whole():
                values = trainer.train_step()
            reports.after_step(values)
    except KeyboardInterrupt:
        if first:
            with whole():
                save(trainer, run.files)
        run.console.say(f"stopped at step {trainer.step}")
        raise
    finally:
        reports.close()
    if first:
        save(trainer, run.files)
        reports.score()
        reports.sheet()
        run.console.say(f"wrote {run.files.model} after {trainer.step} steps")
    run.machine.team.wait()


def save(trainer: Training, files: Files) -> None:
    """The model file, which refuses weights that are not finite; then the state.

    Where the codec that belongs into the file is gone the state alone is written.
    """
    dtype = DTYPES[trainer.config.report.export_dtype]
    try:
        weights = trainer.weights()
    except UserError:
        model_file.save_tree(trainer.state_dict(), files.state)
        raise
    model_file.save(weights, files.model, dtype)
    model_file.save_tree(trainer.state_dict(), files.state)


class Tally:
    """Sums of what steps say, since the last line of the log; tensors stay on their device."""

    def __init__(self) -> None:
        self.steps = 0
        self.numbers = Counter[str]()
        self.tensors: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """One more step."""
        self.steps += 1
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        add(self.tensors, tensors)
        self.numbers.update({name: values[name] for name in values if name not in tensors})

    def means(self, team: Team) -> dict[str, float]:
        """Means over the steps; of tensors the sums over all processes. One read of the device."""
        totals: dict[str, float] = {}
        if self.tensors:
            stacked = torch.stack(list(self.tensors.values()))
            totals = dict(zip(self.tensors, team.summed(stacked).tolist(), strict=True))
        return {name: total / self.steps for name, total in (totals | self.numbers).items()}


class Reports:
    """What happens between steps, every so often. The first process writes, all help to sum."""

    def __init__(self, trainer: Training, run: Run[Config]) -> None:
        self.trainer, self.files, self.console = trainer, run.files, run.console
        self.team = run.machine.team
        self.every: ReportSettings = run.config.report
        if self.team.first:
            self.files.forget_after(trainer.step)
        self.board: Any = _tensorboard(self.files) if self.team.first else None
        self.bar = self.console.steps("training", trainer.step, run.config.optimizer.steps)
        self.tally, self.clock = Tally(), time.monotonic()

    def after_step(self, values: Mapping[str, Tensor | float]) -> None:
        """The time that a step took, and the reports that are due."""
        trainer, every = self.trainer, self.every
        seconds = time.monotonic() - self.clock
        hours = trainer.hours + seconds / 3600
        # One clock for all where rates and the end depend on it.
        timed = trainer.config.optimizer.max_hours > 0
        trainer.hours = self.team.agreed(hours) if timed else hours
        self.bar.update()
        self.tally.add({**values, "seconds": seconds})
        if trainer.step % every.log_every == 0:
            self._log_steps()
        if self.team.first:
            if trainer.step % every.save_every == 0:
                save(trainer, self.files)
            if trainer.step % every.eval_every == 0:
                self.score()
            if trainer.step == FIRST_SHEET or trainer.step % every.sample_every == 0:
                self.sheet()
        self.clock = time.monotonic()

    def _log_steps(self) -> None:
        """A line of means since the last one; ``UserError`` where training has diverged."""
        means = self.tally.means(self.team)
        self.tally = Tally()
        if not means["norm"] < float("inf"):
            raise UserError(
                f"training diverged before step {self.trainer.step}: start another run with a "
                "lower --learning-rate"
            )
        seconds = means.pop("seconds")
        for name in self.trainer.counts:
            means[f"{name}_per_second"] = means[name] / seconds
        self._tell(means)
        if self.team.first:
            self._log({**means, "hours": self.trainer.hours})

    def _tell(self, means: Mapping[str, float]) -> None:
        """The bar's last words, and where hours end the run, how many steps these will be."""
        self.bar.set_postfix_str(self.trainer.told(means), refresh=False)
        if self.trainer.config.optimizer.max_hours:
            self.bar.total = round(self.trainer.step / min(1.0, self.trainer.progress()))

    def score(self) -> None:
        """The losses of held-out clips, and the picture of all losses so far."""
        held_out = self.trainer.held_out()
        if held_out:
            self._log(held_out)
        elif self.trainer.num_held:
            self.console.say("note: the held-out clips fit no context: they are not scored")
        self.files.draw_losses(self.trainer.curves)

    def sheet(self) -> None:
        """A contact sheet in ``samples/``."""
        self.files.samples.mkdir(exist_ok=True)
        path = self.files.samples / f"step_{self.trainer.step:06d}.png"
        try:
            sheet = self.trainer.sheet()
        except UserError as error:
            self.console.say(f"note: no contact sheet: {error}")
        else:
            video.save_image(sheet, path)

    def _log(self, values: Mapping[str, float]) -> None:
        self.files.append({"step": self.trainer.step, **values})
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(name, value, self.trainer.step)

    def close(self) -> None:
        self.bar.close()
        if self.board:
            self.board.close()


def _tensorboard(files: Files) -> Any:  # noqa: ANN401 - a writer, or None without the extra
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SummaryWriter(files.path / "tensorboard")
