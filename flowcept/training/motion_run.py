"""A training run of motion: any clips in, one model file for ``flowcept interp`` out.

Clips need no captions: between any two frames of a clip lie others that are known, to learn from.
Clips become shots and windows of shots; the law of how many frames lie in a gap is trained, then
the network. A stopped run continues from its last state.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from flowcept import model_file, models
from flowcept.data.folder import digest_of_files
from flowcept.data.motion_windows import MotionData, WindowsConfig
from flowcept.errors import UserError, counted
from flowcept.model_file import Training, Weights
from flowcept.networks.flow import DisEstimator, MotionEstimator
from flowcept.networks.motion import MotionConfig, MotionNetwork
from flowcept.networks.motion_video import MotionVideo
from flowcept.settings import RESUMABLE, MotionTrainConfig
from flowcept.training.console import Console
from flowcept.training.footage import Footage, find, gathered
from flowcept.training.lineage import begun_training
from flowcept.training.loop import run_to_end
from flowcept.training.motion import MotionTrainer
from flowcept.training.motion_law import LawExamples, fit_law, law_examples
from flowcept.training.session import begun, freed_if_refused, go_on, in_its_folder
from flowcept.training.state import Files, Run

FLOW_BYTES = 8  # of a pixel: two flows of two int16


@dataclass(frozen=True)
class MotionParts:
    """What has no setting: which windows are made, a new network's size, the flow estimator."""

    windows: WindowsConfig = field(default_factory=WindowsConfig)
    network: MotionConfig = field(default_factory=MotionConfig)
    estimator: MotionEstimator = field(default_factory=DisEstimator)

    @property
    def least(self) -> int:
        """Frames of the shortest clip that can be used."""
        return min(self.windows.spacings) + 1


def check_motion(folder: Path, config: MotionTrainConfig) -> list[str]:
    """What training would find in a folder, as lines of text; every unusable file is named."""
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
    """Train motion on a folder of clips, and return the path of the model file.

    ``resume``, ``given``, ``pause_at`` and interruptions are as in ``run.train``. Raises
    ``UserError`` for a folder without usable clips, for unusable settings, and for a run folder
    that is in use without ``resume``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--network motion trains in one process: start it without torchrun")
    begin = begun(folder, run, config, resume=resume, given=given, quiet=quiet, console=console)
    with begin as state:
        course = Course(state, parts or MotionParts(), _origin(state))
        footage = _footage(course)
        with in_its_folder(state):
            trainer = _trainer(footage, course)
            run_to_end(trainer, state, pause_at)
    return state.files.model


@dataclass(frozen=True)
class Course:
    """The settings, parts and model that a run starts from."""

    run: Run[MotionTrainConfig]
    parts: MotionParts
    origin: Weights | None  # the model that is trained further; None: a new one


def _footage(course: Course) -> Footage:
    """The clips and pictures of the folder; prints a summary."""
    run, least = course.run, course.parts.least
    reading = run.console.progress("reading", "file")
    footage = find(run.data, run.config.motion.photos, least, reading, run.files.cache)
    run.console.say(*footage.summary())
    return footage


def _origin(run: Run[MotionTrainConfig]) -> Weights | None:
    """The model to start from: a resumed run's own, else that of ``init``; None: a new one."""
    wanted = run.config.optimizer.init
    if run.has_state:
        return model_file.load(run.files.model)
    if not wanted:
        return None
    found = models.find(wanted)
    origin = None if found.is_folder else model_file.load(found.path)
    if origin is None or not isinstance(origin.network, MotionVideo):
        raise UserError(f"{wanted} is not a motion model: use another for --init, such as motion")
    return origin


def _trainer(footage: Footage, course: Course) -> MotionTrainer:
    """The trainer with its data, before the first step or as the last state has it."""
    run = course.run
    with freed_if_refused(run):
        data = _data(footage, course)
        network, held_law = _begun(data, course)
        before = _dataset(footage, course), _trainings(footage, course)
        trainer = MotionTrainer(network, data, held_law, run.config, run.machine, *before)
    go_on(trainer, run)
    run.console.say(*describe(trainer, run.files))
    return trainer


def _begun(data: MotionData, course: Course) -> tuple[MotionNetwork, LawExamples]:
    """The network with its law of gaps trained, and the examples that score this law."""
    settings, seed = course.run.config.optimizer, course.run.config.machine.seed
    torch.manual_seed(seed)
    network = _network(course)
    bar = course.run.console.progress("measuring speed", "shot")
    measuring = course.run.clock.watched(bar, "measuring the speed of motion")
    learned, held = law_examples(data, network.config.most_missing, measuring)
    if not course.run.has_state:
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
    cache, console, clock = run.files.cache, run.console, run.clock
    folder = gathered(footage, cache, windows, estimator, console, clock)
    return MotionData(folder, windows, estimator)


def _network(course: Course) -> MotionNetwork:
    """A new network, or the origin's to train further."""
    if course.origin is None:
        return MotionNetwork(course.parts.network)
    assert isinstance(course.origin.network, MotionVideo)
    network: MotionNetwork = course.origin.network.motion.requires_grad_().train()
    return network


def _dataset(footage: Footage, course: Course) -> str:
    """The card's name of the dataset, which includes the origin's."""
    name = footage.folder.resolve().name
    if course.origin is None:
        return name
    before = course.origin.card.dataset
    return before if course.run.has_state else f"{name}, after {before}"


def _trainings(footage: Footage, course: Course) -> tuple[Training, ...]:
    """The card's trainings, this one as the last."""
    run = course.run
    before: tuple[Training, ...] = ()
    if course.origin is not None:
        before = course.origin.card.trainings
    if run.has_state:  # the origin is the run's own file
        before = before[:-1]
    files = digest_of_files(path for path, _ in footage.clips)
    return begun_training(run.config, footage.folder.resolve().name, files, before)


def describe(trainer: MotionTrainer, files: Files) -> Iterator[str]:
    """Lines of text on the data, the network and the device."""
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


def _disk(data: MotionData) -> float:
    """Bytes of a cache in which all flows have been estimated."""
    total = 0
    for shot in data.shots:
        flows = sum(len(data.gaps(shot, spacing)) for spacing in data.config.spacings)
        total += shot.height * shot.width * (3 * shot.num_frames + FLOW_BYTES * flows)
    return total
