"""How every training run begins and ends, for either network."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowcept import model_file
from flowcept.errors import UserError
from flowcept.settings import MotionTrainConfig
from flowcept.stopping import stoppable
from flowcept.training.clock import Clock
from flowcept.training.console import Console
from flowcept.training.distributed import Machine, joined, pick
from flowcept.training.loop import Training
from flowcept.training.state import Config, Files, Run


@contextmanager
def begun(
    data: Path,
    path: Path,
    config: Config,
    *,
    resume: bool,
    given: Collection[str],
    quiet: bool,
    console: Callable[[str], None],
) -> Iterator[Run[Config]]:
    """A run on a folder of clips, new or resumed; its clock runs, and signals can stop it.

    ``UserError`` if the folder cannot be used, or the machine lacks the device or precision.
    """
    files = Files(path)
    config = files.recorded(config, given) if resume else files.unused(config)
    clock = Clock(files.clock, config.optimizer.max_hours, resume=resume)
    device, dtype = pick(config.machine)
    with stoppable(), joined(device) as team:
        said = Console(console, quiet or not team.first)
        try:
            yield Run(data, files, config, Machine(device, dtype, team), said, clock, resume)
        finally:
            said.close()


@contextmanager
def in_its_folder(run: Run[Config]) -> Iterator[None]:
    """Use the run's folder within; if the run is stopped, print how to continue."""
    if not run.resumed:
        _take_folder(run)
    try:
        yield
    except KeyboardInterrupt:
        run.console.close()
        if run.machine.team.first:
            run.clock.keep()
        run.console.say(f"to continue: {_resuming(run)}")
        raise


def _take_folder(run: Run[Config]) -> None:
    """Claim the folder, once all processes have seen that it is free."""
    team = run.machine.team
    team.wait()
    if team.first:
        run.files.open(run.config)
    team.wait()


def _resuming(run: Run[Any]) -> str:
    """The command that continues a run."""
    words = ["flowcept", "train", str(run.data), "-o", str(run.files.path)]
    if run.config.family == MotionTrainConfig.family:
        words += ["--network", "motion"]
    return shlex.join([*words, "--resume"])


@contextmanager
def freed_if_refused(run: Run[Config]) -> Iterator[None]:
    """Free a new run's folder if the clips are refused, since the remedy may be a setting."""
    try:
        yield
    except UserError:
        if not run.resumed:
            run.files.free()
        raise


def go_on(trainer: Training, run: Run[Config]) -> None:
    """Load the state, if there is one; ``UserError`` if it is of other clips."""
    if not run.has_state:
        return
    state = model_file.load_tree(run.files.state)
    try:
        trainer.load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the state in {run.files.path} does not fit these clips: give --resume the same "
            "clips as before, or start another run, with --init to use this model"
        ) from error
    run.clock.adopt(state.get("hours", 0.0))
    run.console.say(f"continuing from step {trainer.step}")
