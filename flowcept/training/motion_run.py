"""A training run of motion: any clips in, one model file for ``flowcept interp`` out.

Nothing is said of the clips: each is its own lesson, since between any two of its frames lie others
that are known. Clips become shots and windows of them, the law of how many frames lie in a gap is
taught, then the network learns. A run that was stopped goes on where its last state was written.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from flowcept import model_file, models
from flowcept.data.motion_windows import MotionData, WindowsConfig
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks.flow import DisEstimator, MotionEstimator
from flowcept.networks.motion import MotionConfig, MotionNetwork
from flowcept.networks.motion_video import MotionVideo
from flowcept.settings import RESUMABLE, MotionTrainConfig
from flowcept.stopping import stoppable
from flowcept.training.console import Console, counted
from flowcept.training.distributed import Machine, Team, pick
from flowcept.training.footage import Footage, find, gathered
from flowcept.training.loop import run_to_end
from flowcept.training.motion import MotionTrainer
from flowcept.training.motion_law import LawExamples, fit_law, law_examples
from flowcept.training.run import go_on, open_folder, told_how_to_go_on
from flowcept.training.state import Files, Run

FLOW_BYTES = 8  # of a pixel: two flows of two int16
FLOWS_A_WINDOW = 2  # about, that are new to it: of its gap and of those beside it


@dataclass(frozen=True)
class MotionParts:
    """What no setting tells: which windows are made, how large a new network is, whose flows."""

    windows: WindowsConfig = field(default_factory=WindowsConfig)
    network: MotionConfig = field(default_factory=MotionConfig)
    estimator: MotionEstimator = field(default_factory=DisEstimator)

    @property
    def least(self) -> int:
        """Frames of the shortest clip that can be learned from."""
        return min(self.windows.spacings) + 1


def check_motion(folder: Path, config: MotionTrainConfig) -> list[str]:
    """What training would find in a folder, as lines of text that name every unusable file."""
    progress = Console().progress("reading", "file")
    footage = find(folder, config.motion.photos, MotionParts().least, progress)
    return list(footage.summary(examples=len(footage.findings)))


def train_motion(
    folder: Path,
    run: Path,
    config: MotionTrainConfig,
    *,
    parts: MotionParts | None = None,
    resume: bool = False,
    given: Collection[str] = RESUMABLE,
    pause_at: int | None = None,
    quiet: bool = False,
    console: Callable[[str], None] = print,
) -> Path:
    """Train motion on a folder of clips; the path of the model file.

    ``resume``, ``given`` and ``pause_at`` are as for ``run.train``, and so are interruptions.
    Raises ``UserError`` for a folder without usable clips, for unusable settings, and for a run
    folder that is in use and not to be resumed.
    """
    files = Files(run)
    config = files.recorded(config, given) if resume else files.unused(config)
    begun = Run(files, config, _machine(config), Console(console, quiet))
    course = _course(begun, parts or MotionParts(), resume)
    with stoppable():
        _learn(folder, course, pause_at)
    return files.model


@dataclass(frozen=True)
class Course:
    """What a run starts from."""

    run: Run[MotionTrainConfig]
    parts: MotionParts
    origin: Weights | None  # the model whose weights go on learning; None: new ones
    new: bool  # whether the run's folder is to be taken
    resumed: bool  # whether the run has a state to go on from


def _course(run: Run[MotionTrainConfig], parts: MotionParts, resume: bool) -> Course:
    """A new run, or one that goes on; its preparation may have been stopped before any state."""
    resumed = resume and run.files.state.exists()
    return Course(run, parts, _origin(run, resumed), new=not resume, resumed=resumed)


def _learn(folder: Path, course: Course, pause_at: int | None) -> None:
    """From the folder to the end of the training."""
    run = course.run
    footage = _footage(folder, course)
    run.console.say(*footage.summary())
    if course.new:
        open_folder(run)
    with told_how_to_go_on(folder, run):
        trainer = _trainer(footage, course)
        if course.resumed:
            go_on(trainer, run)
        run.console.say(*describe(trainer, run.files))
        run_to_end(trainer, run, pause_at)


def _machine(config: MotionTrainConfig) -> Machine:
    """Where it is computed; ``UserError`` for what is not there, and for several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("motion is trained by one process: start it without torchrun")
    return Machine(*pick(config.machine), Team())


def _footage(folder: Path, course: Course) -> Footage:
    """What the folder holds."""
    run, least = course.run, course.parts.least
    reading = run.console.progress("reading", "file")
    return find(folder, run.config.motion.photos, least, reading, run.files.cache)


def _origin(run: Run[MotionTrainConfig], resumed: bool) -> Weights | None:
    """The model to go on from: a resumed run's own, else that of ``init``; None: a new one."""
    wanted = run.config.optimizer.init
    if resumed:
        return model_file.load(run.files.model)
    if not wanted:
        return None
    found = models.find(wanted)
    origin = None if found.is_folder else model_file.load(found.path)
    if origin is None or not isinstance(origin.network, MotionVideo):
        raise UserError(f"{wanted} is no model of motion: start from another one, such as motion")
    return origin


def _trainer(footage: Footage, course: Course) -> MotionTrainer:
    """All that is trained and what it learns from, before the first step.

    Where that fails the remedy may be other clips: a new run's folder is free then.
    """
    run = course.run
    try:
        data = _data(footage, course)
        network, held_law = _begun(data, course)
        dataset = _dataset(footage, course)
        return MotionTrainer(network, data, held_law, run.config, run.machine, dataset)
    except UserError:
        if course.new:
            run.files.free()
        raise


def _begun(data: MotionData, course: Course) -> tuple[MotionNetwork, LawExamples]:
    """The network, whose law of gaps is taught, and what that law is scored on."""
    settings, seed = course.run.config.optimizer, course.run.config.machine.seed
    torch.manual_seed(seed)
    network = _network(course)
    measuring = course.run.console.progress("measuring pace", "shot")
    learned, held = law_examples(data, network.config.most_missing, measuring)
    if not course.resumed:
        further = course.origin is not None
        fit_law(network.law, learned, settings.law_steps, seed, further=further)
    return network, held


def _data(footage: Footage, course: Course) -> MotionData:
    """Shots in the run's cache."""
    run, settings = course.run, course.run.config.motion
    layered = bool(settings.layers and settings.layered_share)
    windows = replace(
        course.parts.windows,
        held_out=settings.held_out,
        most_shots=settings.max_shots,
        num_layered=settings.layers if layered else 0,
        layered_share=settings.layered_share if layered else 0.0,
        seed=run.config.machine.seed,
    )
    estimator = course.parts.estimator
    folder = gathered(footage, run.files.cache, windows, estimator, run.console)
    return MotionData(folder, windows, estimator)


def _network(course: Course) -> MotionNetwork:
    """A new network, or the origin's, to be trained on."""
    if course.origin is None:
        return MotionNetwork(course.parts.network)
    assert isinstance(course.origin.network, MotionVideo)
    network: MotionNetwork = course.origin.network.motion.requires_grad_().train()
    return network


def _dataset(footage: Footage, course: Course) -> str:
    """What a card says that was learned from, an origin's clips and authors included."""
    name = footage.folder.resolve().name
    if course.origin is None:
        return name
    before = course.origin.card.dataset
    return before if course.resumed else f"{name}, after {before}"


def describe(trainer: MotionTrainer, files: Files) -> Iterator[str]:
    """What is trained, on what, where, and how long it will take."""
    data, machine = trainer.drawer.data, trainer.machine
    kinds = Counter("layers" if shot.layered else shot.held_out for shot in data.shots)
    yield (
        f"{counted(trainer.drawer.num_windows, 'window')} in {counted(kinds[False], 'shot')} to "
        f"learn from, {counted(kinds['layers'], 'clip')} of moving layers; "
        f"{counted(kinds[True], 'shot')} held out"
    )
    million = sum(weight.numel() for weight in trainer.learning) / 1e6
    dtype = str(machine.dtype).removeprefix("torch.")
    yield (
        f"network of {million:.1f} million weights on {machine.device.type} in {dtype}; up to "
        f"{_disk(data) / 2**30:.1f} GiB in {files.cache}"
    )
    yield _duration(trainer)


def _disk(data: MotionData) -> float:
    """Bytes of a cache in which all flows have been estimated."""
    total = 0
    for shot in data.shots:
        flows = sum(len(data.gaps(shot, spacing)) for spacing in data.config.spacings)
        total += shot.height * shot.width * (3 * shot.num_frames + FLOW_BYTES * flows)
    return total


def _duration(trainer: MotionTrainer) -> str:
    """How long it will take, by the time of a step and of a flow."""
    settings, left = trainer.config.optimizer, trainer.config.optimizer.steps - trainer.step
    step, flow = trainer.seconds()
    windows = left * trainer.drawer.data.config.pixels / max(trainer.drawer.sides) ** 2
    hours = (left * step + min(FLOWS_A_WINDOW * windows, trainer.drawer.num_gaps) * flow) / 3600
    if settings.max_hours:
        hours = min(hours, settings.max_hours - trainer.hours)
    minutes = counted(math.ceil(60 * hours), "minute")
    told = minutes if hours < 1.5 else f"{hours:.1f} hours"
    return f"about {told}: {counted(left, 'step')} at most, of {step:.1f} s each"
