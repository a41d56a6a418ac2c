"""A training run of motion: any clips in, one model file for ``flowcept interp`` out.

Nothing is said of the clips: each is its own lesson, since between any two of its frames lie others
that are known. Clips become shots and windows of them, the law of how many frames lie in a gap is
taught, then the network learns. A run that was stopped goes on where its last state was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from flowcept import model_file
from flowcept.data.motion_windows import MotionData, WindowsConfig
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks.flow import DisEstimator, MotionEstimator
from flowcept.networks.motion import MotionConfig, MotionNetwork
from flowcept.networks.motion_video import MotionVideo
from flowcept.settings import RESUMABLE, MotionTrainConfig
from flowcept.training.console import Console
from flowcept.training.distributed import Machine, Team, pick
from flowcept.training.footage import Footage, find, gathered
from flowcept.training.loop import run_to_end
from flowcept.training.motion import MotionTrainer
from flowcept.training.motion_law import fit_law, law_examples
from flowcept.training.run import go_on, open_folder, told_how_to_go_on
from flowcept.training.state import Files, Run
from flowcept.training.stopping import stoppable

FLOW_BYTES = 8  # of a pixel: two flows of two int16


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
    parts, files = parts or MotionParts(), Files(run)
    config = files.recorded(config, given) if resume else files.unused(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("motion is trained by one process: start it without torchrun")
    device, dtype = pick(config.machine)
    origin = _origin(config, files, resume)

    with stoppable():
        said = Console(console, quiet)
        state = Run(files, config, Machine(device, dtype, Team()), said)
        footage = find(
            folder, config.motion.photos, parts.least, said.progress("reading", "file"), files.cache
        )
        said.say(*footage.summary())
        if not resume:
            open_folder(state)
        with told_how_to_go_on(folder, state):
            trainer = _trainer(footage, state, parts, origin, resume)
            if resume:
                go_on(trainer, state)
            said.say(*describe(trainer, files))
            run_to_end(trainer, state, pause_at)
    return files.model


def _origin(config: MotionTrainConfig, files: Files, resume: bool) -> Weights | None:
    """The model to go on from: a resumed run's own, else that of ``init``; None: a new one."""
    if resume and files.state.exists():
        return model_file.load(files.model)
    wanted = config.optimizer.init
    if not wanted:
        return None
    origin = model_file.load(model_file.find(wanted))
    if not isinstance(origin.network, MotionVideo):
        raise UserError(f"{wanted} is no model of motion: start from another one, such as motion")
    return origin


def _trainer(
    footage: Footage,
    run: Run[MotionTrainConfig],
    parts: MotionParts,
    origin: Weights | None,
    resume: bool,
) -> MotionTrainer:
    """All that is trained and what it learns from, before the first step.

    Where that fails the remedy may be other clips: a new run's folder is free then.
    """
    try:
        data = _data(footage, run, parts)
        torch.manual_seed(run.config.machine.seed)
        network = _network(origin, parts.network)
        measuring = run.console.progress("measuring pace", "shot")
        learned, held = law_examples(data, network.config.most_missing, measuring)
        if not (resume and run.files.state.exists()):
            steps, seed = run.config.optimizer.law_steps, run.config.machine.seed
            fit_law(network.law, learned, steps, seed, further=origin is not None)
        name = _dataset(footage, origin, resume and run.files.state.exists())
        return MotionTrainer(network, data, held, run.config, run.machine, name)
    except UserError:
        if not resume:
            run.files.free()
        raise


def _data(footage: Footage, run: Run[MotionTrainConfig], parts: MotionParts) -> MotionData:
    """Shots in the run's cache."""
    settings = run.config.motion
    layered = bool(settings.layers and settings.layered_share)
    windows = replace(
        parts.windows,
        held_out=settings.held_out,
        most_shots=settings.max_shots,
        num_layered=settings.layers if layered else 0,
        layered_share=settings.layered_share if layered else 0.0,
        seed=run.config.machine.seed,
    )
    folder = gathered(footage, run.files.cache, windows, parts.estimator, run.console)
    return MotionData(folder, windows, parts.estimator)


def _network(origin: Weights | None, config: MotionConfig) -> MotionNetwork:
    """A new network, or the origin's, to be trained on."""
    if origin is None:
        return MotionNetwork(config)
    assert isinstance(origin.network, MotionVideo)
    network: MotionNetwork = origin.network.motion.requires_grad_().train()
    return network


def _dataset(footage: Footage, origin: Weights | None, resumed: bool) -> str:
    """What a card says that was learned from, an origin's clips and authors included."""
    if origin is None:
        return footage.folder.resolve().name
    if resumed:
        return origin.card.dataset
    return f"{footage.folder.resolve().name}, after {origin.card.dataset}"


def describe(trainer: MotionTrainer, files: Files) -> Iterator[str]:
    """What is trained, on what, where, and how long it will take."""
    data, machine = trainer.drawer.data, trainer.machine
    real = [shot for shot in data.shots if not shot.layered]
    held = sum(shot.held_out for shot in real)
    layered = len(data.shots) - len(real)
    yield (
        f"{trainer.drawer.num_windows} windows in {len(real) - held} shots to learn from and "
        f"{layered} clips of moving layers; {held} shots held out"
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
    """How long it will take, by the time of one step."""
    settings, seconds = trainer.config.optimizer, trainer.seconds()
    hours = (settings.steps - trainer.step) * seconds / 3600
    if settings.max_hours:
        hours = min(hours, settings.max_hours - trainer.hours)
    told = f"{60 * hours:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours"
    return f"a step takes about {seconds:.1f} s here: about {told}, some more while flows are new"
