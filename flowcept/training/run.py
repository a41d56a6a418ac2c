"""A training run: a folder of clips in, one model file out.

The codec is fitted first, on the folder's own frames; then every clip is encoded once and the
network learns on latents. A run that was stopped goes on where its last state was written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowcept import model_file, models
from flowcept.adapters import open_model
from flowcept.codecs import Codec
from flowcept.data import folder as data
from flowcept.data.encoded import EncodedClips
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.device import training_bytes
from flowcept.diffusers_folder import Stored
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.process.forward import Process
from flowcept.settings import RESUMABLE, TrainConfig, flag
from flowcept.stopping import stoppable
from flowcept.training.console import Console
from flowcept.training.distributed import Machine, joined, pick
from flowcept.training.fitting import fitted, new_codec, rebuilt_psnr
from flowcept.training.loop import Training, run_to_end
from flowcept.training.parts import (
    Clips,
    assemble,
    check_lexicon,
    check_parts,
    pretrained,
    split,
)
from flowcept.training.state import Config, Files, Run
from flowcept.training.stored import (
    check_sizes,
    facts_of,
    open_shards,
    settled,
    stored_parts,
    text_of,
)
from flowcept.training.trainer import Trainer


def check(folder: Path, config: TrainConfig) -> list[str]:
    """What training would make of a folder, as lines of text that name every clip."""
    if shards := open_shards(folder, config.optimizer.init):
        return [*shards.index.summary()]
    progress = Console().progress("reading", "clip")
    scan = data.scan(folder, config.data, progress)
    findings = [str(finding) for finding in scan.findings]
    return [*findings, *data.caption_notes(folder, scan), *scan.summary(examples=0)]


def train(
    folder: Path,
    run: Path,
    config: TrainConfig,
    *,
    process: Process | None = None,
    family: str = "transformer",
    resume: bool = False,
    given: Collection[str] = RESUMABLE,
    pause_at: int | None = None,
    quiet: bool = False,
    console: Callable[[str], None] = print,
) -> Path:
    """Train on a folder of clips; the path of the model file.

    ``resume`` continues the run in ``run``, whose own settings then hold, but for those of
    ``RESUMABLE`` that ``given`` names. ``pause_at`` ends after that step with the state written, as
    an interruption does; SIGTERM and SIGHUP interrupt as Ctrl-C does. ``process`` takes the place
    of the one that the settings name, and ``family`` names another kind of network: baselines.

    Raises ``UserError`` for unusable data or settings, for a run folder that is in use and not to
    be resumed, and for a resumed run that differs in another setting that ``given`` names.
    """
    files = Files(run)
    config = files.recorded(config, given) if resume else files.unused(config)
    shards = open_shards(folder, config.optimizer.init)
    if not resume:
        config = settled(config, shards, given)
    check_parts(config, family)
    device, dtype = pick(config.machine)
    stored = None if shards is None else stored_parts(shards)
    origin = _origin(config, dtype, stored)
    codec = new_codec(config, origin, stored)

    with stoppable(), joined(device) as team:
        said = Console(console, quiet or not team.first)
        state = Run(files, config, Machine(device, dtype, team), said)
        source = _Folder(folder, state) if shards is None else _Shards(shards, origin)
        said.say(*source.summary)
        if not resume:
            check_lexicon(config.data.lexicon, source.captions)
            said.say(*idle(config, given))
            open_folder(state)
        with told_how_to_go_on(folder, state):
            clips, codec, facts = source.ready(codec, origin, state, resume=resume)
            weights = assemble(config, clips, codec, origin, process, family, **facts)
            trainer = Trainer(weights, clips, config, state.machine)
            if resume:
                go_on(trainer, state)
            said.say(*_differences(config, origin), *_words(weights), describe(trainer))
            run_to_end(trainer, state, pause_at)
    return files.model


class _Folder:
    """A folder of clips, which are decoded and encoded into the run's cache."""

    def __init__(self, folder: Path, run: Run[TrainConfig]) -> None:
        progress, cache = run.console.progress("reading", "clip"), run.files.cache
        team, settings = run.machine.team, run.config.data
        self.name = folder.resolve().name
        self.scan = team.in_turn(lambda: data.scan(folder, settings, progress, cache))
        self.summary = self.scan.summary()
        self.captions = [entry.caption for entry in self.scan.entries]

    def ready(
        self, codec: Codec, origin: Weights | None, run: Run[TrainConfig], *, resume: bool
    ) -> tuple[Clips, Codec, dict[str, Any]]:
        """Latents, the codec that made them, and what a card says of both."""
        pictures = run.machine.team.in_turn(lambda: _decoded(self.scan, run, resume))
        codec = codec.to(run.machine.device)
        if origin is None:
            codec = fitted(codec, pictures, run)
        clips = _encoded(pictures, codec, run)
        psnr = rebuilt_psnr(codec, pictures, run)
        return clips, codec, {"dataset": self.name, "fps": self.scan.fps, "codec_psnr": psnr}


class _Shards:
    """A folder of shards, whose clips are encoded."""

    def __init__(self, shards: EncodedClips, origin: Weights | None) -> None:
        check_sizes(shards, origin)
        self.shards = shards
        self.summary, self.captions = [*shards.index.summary()], shards.captions

    def ready(
        self, codec: Codec, origin: Weights | None, run: Run[TrainConfig], *, resume: bool
    ) -> tuple[Clips, Codec, dict[str, Any]]:
        """As of a folder of clips; the codec has no weights."""
        del resume
        train, held = split(self.shards, run.config)
        facts = facts_of(self.shards, train)
        if origin is None:
            facts["text"] = text_of(self.shards)
        return Clips(self.shards, train, held), codec, facts


def _origin(config: TrainConfig, dtype: torch.dtype, stored: Stored | None) -> Weights | None:
    """The model to go on from; ``UserError`` where it makes frames of another size."""
    named, beside = config.optimizer.init, config.optimizer.lora or config.optimizer.freeze
    found = models.find(named) if named else None
    if beside and not (found and found.is_folder):
        flag = "--lora" if config.optimizer.lora else "--freeze"
        raise UserError(f"{flag} is for a pretrained model: give its diffusers folder by --init")
    if found is None:
        return None
    if found.is_folder:
        return pretrained(found, config, dtype, stored)
    origin = open_model(found, torch.float32, stored=stored)
    if origin.card.any_size:
        raise UserError(f"{named} is no model to train on clips with captions: take another one")
    if origin.card.size != config.data.frame_size:
        size = "x".join(map(str, reversed(origin.card.size)))
        raise UserError(f"{named} makes frames of {size}: train with --size {size}")
    return origin


def _differences(config: TrainConfig, origin: Weights | None) -> Iterator[str]:
    """What a model to go on from has learned that this run does otherwise."""
    if origin is not None:
        for name, was in asdict(origin.card.process).items():
            now = getattr(config.process, name)
            if now != was:
                yield (
                    f"note: {config.optimizer.init} was trained with {name.replace('_', ' ')} "
                    f"{was}, this run has {now}"
                )


def _words(weights: Weights) -> Iterator[str]:
    """What a model's lexicon holds."""
    if weights.card.lexicon is not None:
        yield f"lexicon: {weights.card.lexicon}"


def idle(config: TrainConfig, given: Collection[str]) -> Iterator[str]:
    """Notes on settings that were given and change nothing."""
    named, new = config.codec.codec, config.codec.codec == "autoencoder"
    ours = new or (named != "pixels" and not models.find(named, part="vae").is_folder)
    why: dict[str, str] = {}
    if config.optimizer.init or not ours:
        training = ("codec_steps", "codec_batch", "codec_rate", "adversarial")
        why |= dict.fromkeys(training, "the codec is not trained")
    if not new:
        shape = ("compression", "codec_channels", "codec_width")
        why |= dict.fromkeys(shape, "the codec has its own shape")
    if config.text.text_source:
        why |= dict.fromkeys(("text_width", "text_depth"), "the encoder has its own shape")
    if not (config.data.lexicon or config.optimizer.init):
        why["paraphrase"] = "there is no --lexicon"
    for name in given:
        if name in why:
            yield f"note: {flag(name)} has no effect: {why[name]}"


def open_folder(run: Run[Config]) -> None:
    """Take the run's folder, once all processes have seen that it was not in use."""
    team = run.machine.team
    team.wait()
    if team.first:
        run.files.open(run.config)
    team.wait()


@contextmanager
def told_how_to_go_on(folder: Path, run: Run[Config]) -> Iterator[None]:
    """Whoever stops the run within is told how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        family: str = run.config.family
        network: list[str] = [] if family == TrainConfig.family else ["--network", family]
        words = shlex.join(["train", str(folder), "-o", str(run.files.path), *network, "--resume"])
        run.console.say(f"to go on: flowcept {words}")
        raise


def _decoded(scan: data.Scan, run: Run[TrainConfig], resume: bool) -> PictureStore:
    """All frames. Where that fails the remedy may be a setting: a new run's folder is free then."""
    progress = run.console.progress("decoding", "frame")
    try:
        store = PictureStore(scan, run.files.cache, progress)
    except UserError:
        if not resume:
            run.files.free()
        raise
    run.console.say(*map(str, store.findings))
    return store


def _encoded(pictures: PictureStore, codec: Codec, run: Run[TrainConfig]) -> Clips:
    """All clips as latents, some of them held out."""
    machine = run.machine
    latents = machine.team.in_turn(
        lambda: LatentStore(
            pictures,
            codec,
            run.files.cache,
            device=machine.device,
            dtype=machine.dtype,
            progress=run.console.progress("encoding", "frame"),
        )
    )
    run.console.say(*map(str, latents.findings))
    return Clips(latents, *split(latents, run.config))


def go_on(trainer: Training, run: Run[Config]) -> None:
    """Load the state, if one was written; ``UserError`` where it is of other clips."""
    if not run.files.state.exists():
        return
    try:
        trainer.load_state_dict(model_file.load_tree(run.files.state))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the state in {run.files.path} does not fit these clips: resume on the folder as it "
            "was when training began, or start another run, with --init to go on"
        ) from error
    run.console.say(f"continuing from step {trainer.step}")


def describe(trainer: Trainer) -> str:
    """The size of what is trained, where, and on what."""
    million = sum(weight.numel() for weight in trainer.learner.parameters()) / 1e6
    machine, clips = trainer.machine, trainer.clips
    return (
        f"network of {million:.1f} million weights on {machine.device.type} in "
        f"{str(machine.dtype).removeprefix('torch.')}; {len(clips.train)} clips to train on, "
        f"{len(clips.held)} held out; about {_memory(trainer) / 2**30:.1f} GiB of memory"
    )


def _memory(trainer: Trainer) -> float:
    """Bytes that training takes, of clips of the mean length in one part of a step."""
    network, settings = trainer.card.network, trainer.config.optimizer
    tokens = min(settings.micro_tokens, settings.tokens)
    weights = list(trainer.learner.parameters())
    frozen = sum(weight.nbytes for weight in weights if not weight.requires_grad)
    return frozen + training_bytes(
        max(tokens // trainer.tokens_per_frame, 1),
        trainer.tokens_per_frame,
        network.hidden,
        network.depth,
        network.height * network.width * network.stem_channels,
        weights=sum(weight.numel() for weight in weights if weight.requires_grad),
        half=trainer.machine.dtype != torch.float32,
    )
