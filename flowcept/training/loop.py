"""The steps of a run and their reports: log, bar, contact sheets, states, the model file."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
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
from flowcept.training.clock import NETWORK, Part
from flowcept.training.distributed import Team
from flowcept.training.plan import Ahead, first_pictures, is_sheet_due
from flowcept.training.state import Config, Files, Run
from flowcept.training.trainer import add

LAST_FILES = 10  # steps that the last scores, sheet and files take about, before that is known
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Training(Protocol):
    """What the loop needs of a trainer, for either network."""

    step: int

    @property
    def config(self) -> TrainConfig | MotionTrainConfig:
        """All settings."""

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the values that the log also has per second."""

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of the values that are drawn in ``loss.png``."""

    @property
    def num_held(self) -> int:
        """How many clips or windows are held out."""

    def train_step(self, progress: float) -> Mapping[str, Tensor | float]:
        """One step at this share of the training: losses, ``norm`` and ``counts`` by name."""

    def seconds(self, steps: int) -> float:
        """About how long ``steps`` more steps take on this machine."""

    def told(self, means: Mapping[str, float]) -> str:
        """A short text for the bar, from the means of the last steps."""

    def held_out(self) -> dict[str, float]:
        """Scores of held-out clips; empty if there are none."""

    def sheet(self) -> Image.Image:
        """A contact sheet of what the model makes so far."""

    def weights(self) -> Weights:
        """The model as it goes into a file."""

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ``ValueError`` or ``KeyError`` if it does not fit."""


def run_to_end(trainer: Training, run: Run[Config], pause_at: int | None = None) -> None:
    """Take steps until the run is over, with reports; if it is stopped, write the state."""
    run.clock.tick(run.machine.team)
    part = run.clock.part(NETWORK, run.config.optimizer.steps)
    last = part.steps if pause_at is None else min(part.steps, pause_at)
    if not trainer.step and part.hours_left <= 0:
        raise UserError(
            f"--max-hours {run.clock.limit:g} passed before the network's first step: continue "
            "with --resume and more hours, or start another run with fewer clips"
        )
    if trainer.step < last:
        _tell_plan(trainer, run, part, last - trainer.step)
    part.begin()
    reports = Reports(trainer, run, part)
    try:
        while trainer.step < last and (done := part.progress(trainer.step)) < 1:
            with whole():
                values = trainer.train_step(done)
            reports.after_step(values)
    except KeyboardInterrupt:
        if run.machine.team.first:
            with whole():
                _save_all(trainer, run)
        run.console.say(f"stopped at step {trainer.step}")
        raise
    finally:
        reports.close()
    if run.machine.team.first:
        reports.finish()
    run.machine.team.wait()


def _tell_plan(trainer: Training, run: Run[Config], part: Part, steps: int) -> None:
    """Print how long ``steps`` steps will take, and reserve time for the last files."""
    seconds = trainer.seconds(steps)
    run.clock.reserve = min(LAST_FILES * seconds / steps / 3600, part.hours_left / 2)
    run.clock.tick(run.machine.team)
    ahead = Ahead(steps, seconds, part.hours_left)
    run.console.say(f"plan: {ahead} of training", first_pictures(ahead, run, trainer.step))


def save(trainer: Training, files: Files) -> None:
    """Write the model file, which refuses weights that are not finite; then the state.

    If the codec for the model file is missing, only the state is written.
    """
    dtype = DTYPES[trainer.config.report.export_dtype]
    try:
        weights = trainer.weights()
    except UserError:
        model_file.save_tree(trainer.state_dict(), files.state)
        raise
    model_file.save(weights, files.model, dtype)
    model_file.save_tree(trainer.state_dict(), files.state)


def _save_all(trainer: Training, run: Run[Any]) -> None:
    """Write everything that a resumed run needs."""
    save(trainer, run.files)
    run.clock.keep()


class Tally:
    """Sums of the steps' values since the last line of the log; tensors stay on their device."""

    def __init__(self) -> None:
        self.steps = 0
        self.numbers = Counter[str]()
        self.tensors: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add the values of one more step."""
        self.steps += 1
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        add(self.tensors, tensors)
        self.numbers.update({name: values[name] for name in values if name not in tensors})

    def means(self, team: Team) -> dict[str, float]:
        """Means over the steps, with tensors summed over all processes. Reads the device once."""
        totals: dict[str, float] = {}
        if self.tensors:
            stacked = torch.stack(list(self.tensors.values()))
            totals = dict(zip(self.tensors, team.summed(stacked).tolist(), strict=True))
        return {name: total / self.steps for name, total in (totals | self.numbers).items()}


class Reports:
    """Reports between steps: only the first process writes them, but all take part in sums."""

    def __init__(self, trainer: Training, run: Run[Config], part: Part) -> None:
        self.run: Run[Any] = run
        self.trainer, self.part = trainer, part
        self.files, self.console, self.team = run.files, run.console, run.machine.team
        self.every: ReportSettings = run.config.report
        if self.team.first:
            self.files.forget_after(trainer.step)
        self.board: Any = _tensorboard(self.files) if self.team.first else None
        self.bar = self.console.steps("training", trainer.step, part.steps)
        self.tally, self.begun = Tally(), time.monotonic()
        self.took: dict[str, float] = {}  # seconds of the last report of each kind

    def after_step(self, values: Mapping[str, Tensor | float]) -> None:
        """Count a step's time, and make the reports that are due."""
        step, every = self.trainer.step, self.every
        seconds = time.monotonic() - self.begun
        self.tally.add({**values, "seconds": seconds})
        if step % every.log_every == 0:
            self._log_steps()
        if self.team.first:
            if step % every.save_every == 0:
                self._make("state", lambda: _save_all(self.trainer, self.run))
            if step % every.eval_every == 0:
                self._make("scores", self.score)
            if is_sheet_due(step, every):
                self._make("sheet", self.sheet)
        self.begun = time.monotonic()
        reserve = max(sum(self.took.values()), LAST_FILES * seconds)
        self.run.clock.reserve = reserve / 3600
        self.run.clock.tick(self.team)
        self.bar.total = self.part.expected(step)
        self.bar.update()

    def finish(self) -> None:
        """Write the last files of a run."""
        _save_all(self.trainer, self.run)
        self.score()
        self.sheet()
        self.console.say(f"wrote {self.files.model} after {self.trainer.step} steps")

    def _make(self, name: str, report: Callable[[], None]) -> None:
        """Make a report, unless time is so short that the last one comes soon."""
        clock, begun = self.run.clock, time.monotonic()
        if clock.hours + self.took.get(name, 0.0) / 3600 > clock.end:
            return
        report()
        self.took[name] = time.monotonic() - begun

    def _log_steps(self) -> None:
        """Log the means since the last line; ``UserError`` if training has diverged."""
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
            self._log({**means, "hours": self.run.clock.hours})

    def _tell(self, means: Mapping[str, float]) -> None:
        """Show the means at the end of the bar."""
        self.bar.set_postfix_str(self.trainer.told(means), refresh=False)

    def score(self) -> None:
        """Log the losses of held-out clips, and draw all losses so far."""
        held_out = self.trainer.held_out()
        if held_out:
            self._log(held_out)
        elif self.trainer.num_held:
            self.console.say("note: no context fits the held-out clips, so they are not scored")
        self.files.draw_losses(self.trainer.curves)

    def sheet(self) -> None:
        """Write a contact sheet to ``samples/``."""
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
