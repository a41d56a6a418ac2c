"""A training run: a folder of clips in, one model file out.

The codec is fitted first, on the folder's own frames; then every clip is encoded once and the
network is trained on latents. A stopped run continues from its last state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowcept import models
from flowcept.adapters import open_model
from flowcept.codecs import Codec
from flowcept.data import folder as data
from flowcept.data.encoded import EncodedClips
from flowcept.data.folder import digest_of_files
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.device import training_bytes
from flowcept.diffusers_folder import Stored
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.process.forward import Process
from flowcept.settings import RESUMABLE, TrainConfig, as_flags, flag
from flowcept.training.console import Console
from flowcept.training.fitting import fitted, new_codec, rebuilt_psnr
from flowcept.training.lineage import begun_training
from flowcept.training.loop import run_to_end
from flowcept.training.parts import (
    Clips,
    assemble,
    check_lexicon,
    check_parts,
    pretrained,
    split,
)
from flowcept.training.session import begun, freed_if_refused, go_on, in_its_folder
from flowcept.training.state import Run
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
    """What training would find in a folder, as lines of text; every clip is named."""
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
    """Train on a folder of clips, and return the path of the model file.

    ``resume`` continues the run in ``run`` with its own settings, except those of ``RESUMABLE``
    that ``given`` names. ``pause_at`` stops after that step and writes the state, as an
    interruption does; SIGTERM and SIGHUP interrupt like Ctrl-C. For baselines, ``process`` replaces
    the process of the settings, and ``family`` names another kind of network.

    Raises ``UserError`` for unusable data or settings, for a run folder that is in use without
    ``resume``, and if ``given`` names a setting that differs and cannot change on resume.
    """
    begin = begun(folder, run, config, resume=resume, given=given, quiet=quiet, console=console)
    with begin as new:
        shards = open_shards(folder, new.config.optimizer.init)
        state = _settled(new, shards, given)
        parts = _parts(state, shards, process, family)
        source = _Folder(state) if shards is None else _Shards(shards, parts.origin)
        _tell(source, state, given)
        with in_its_folder(state):
            trainer = _trainer(source, state, parts)
            run_to_end(trainer, state, pause_at)
    return state.files.model


@dataclass(frozen=True)
class Parts:
    """What a run starts from, before it reads clips."""

    origin: Weights | None  # a model to go on from
    codec: Codec  # not fitted yet
    process: Process | None
    family: str


def _settled(
    run: Run[TrainConfig], shards: EncodedClips | None, given: Collection[str]
) -> Run[TrainConfig]:
    """The run, with the settings that its shards fix; a resumed run has them already."""
    return run if run.resumed else replace(run, config=settled(run.config, shards, given))


def _parts(
    run: Run[TrainConfig], shards: EncodedClips | None, process: Process | None, family: str
) -> Parts:
    """The parts; ``UserError`` for anything wrong with the settings alone."""
    check_parts(run.config, family)
    stored = None if shards is None else stored_parts(shards)
    origin = _origin(run.config, run.machine.dtype, stored)
    return Parts(origin, new_codec(run.config, origin, stored), process, family)


def _tell(source: _Folder | _Shards, run: Run[TrainConfig], given: Collection[str]) -> None:
    """Print a summary of the data, and for a new run the settings without effect."""
    run.console.say(*source.summary)
    if not run.resumed:
        check_lexicon(run.config.data.lexicon, source.captions)
        run.console.say(*idle(run.config, given))


def _trainer(source: _Folder | _Shards, run: Run[TrainConfig], parts: Parts) -> Trainer:
    """The trainer with its data, before the first step or as the last state has it."""
    config, origin = run.config, parts.origin
    clips, codec, facts = source.ready(parts, run)
    before = () if origin is None else origin.card.trainings
    files = digest_of_files(source.files)
    facts["trainings"] = begun_training(config, run.data.resolve().name, files, before)
    weights = assemble(config, clips, codec, origin, parts.process, parts.family, **facts)
    trainer = Trainer(weights, clips, config, run.machine)
    go_on(trainer, run)
    run.console.say(*_differences(config, origin), *_words(weights), describe(trainer))
    return trainer


class _Folder:
    """A folder of clips, which are decoded and encoded into the run's cache."""

    def __init__(self, run: Run[TrainConfig]) -> None:
        progress, cache = run.console.progress("reading", "clip"), run.files.cache
        team, settings = run.machine.team, run.config.data
        self.scan = team.in_turn(lambda: data.scan(run.data, settings, progress, cache))
        self.files = [finding.path for finding in self.scan.findings]
        self.summary = self.scan.summary()
        self.captions = [entry.caption for entry in self.scan.entries]

    def ready(self, parts: Parts, run: Run[TrainConfig]) -> tuple[Clips, Codec, dict[str, Any]]:
        """Latents, the codec that made them, and the card's entries on both."""
        pictures = run.machine.team.in_turn(lambda: _decoded(self.scan, run))
        codec = parts.codec.to(run.machine.device)
        if parts.origin is None:
            codec = fitted(codec, pictures, run)
        clips = _encoded(pictures, codec, run)
        psnr, name = rebuilt_psnr(codec, pictures, run), run.data.resolve().name
        return clips, codec, {"dataset": name, "fps": self.scan.fps, "codec_psnr": psnr}


class _Shards:
    """A folder of shards, whose clips are encoded."""

    def __init__(self, shards: EncodedClips, origin: Weights | None) -> None:
        check_sizes(shards, origin)
        self.shards, self.files = shards, shards.places.values()
        self.summary, self.captions = [*shards.index.summary()], shards.captions

    def ready(self, parts: Parts, run: Run[TrainConfig]) -> tuple[Clips, Codec, dict[str, Any]]:
        """As for a folder of clips; the codec has no weights."""
        train, held = split(self.shards, run.config)
        facts = facts_of(self.shards, train)
        if parts.origin is None:
            facts["text"] = text_of(self.shards)
        return Clips(self.shards, train, held), parts.codec, facts


def _origin(config: TrainConfig, dtype: torch.dtype, stored: Stored | None) -> Weights | None:
    """The model to start from; ``UserError`` if it makes frames of another size."""
    named, beside = config.optimizer.init, config.optimizer.lora or config.optimizer.freeze
    found = models.find(named) if named else None
    if beside and not (found and found.is_folder):
        flag = "--lora" if config.optimizer.lora else "--freeze"
        raise UserError(f"{flag} needs a pretrained model: give its diffusers folder by --init")
    if found is None:
        return None
    if found.is_folder:
        return pretrained(found, config, dtype, stored)
    origin = open_model(found, torch.float32, stored=stored)
    if origin.card.any_size:
        raise UserError(f"{named} cannot be trained on clips with captions: use another for --init")
    if origin.card.size != config.data.frame_size:
        size = "x".join(map(str, reversed(origin.card.size)))
        raise UserError(f"{named} makes frames of {size}: train with --size {size}")
    return origin


def _differences(config: TrainConfig, origin: Weights | None) -> Iterator[str]:
    """Notes on process settings that differ from those of the model to start from."""
    if origin is not None:
        for name, was in asdict(origin.card.process).items():
            now = getattr(config.process, name)
            if now != was:
                then, today = (" ".join(as_flags(name, value)) for value in (was, now))
                yield f"note: {config.optimizer.init} was trained with {then}, this run has {today}"


def _words(weights: Weights) -> Iterator[str]:
    """A line on the model's lexicon, if it has one."""
    if weights.card.lexicon is not None:
        yield f"lexicon: {weights.card.lexicon}"


def idle(config: TrainConfig, given: Collection[str]) -> Iterator[str]:
    """Notes on given settings that have no effect."""
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
        why["paraphrase"] = "it needs --lexicon"
    if config.optimizer.init and models.find(config.optimizer.init).is_folder:
        why["muon"] = "pretrained weights are moved by AdamW"
    for name in given:
        if name in why:
            yield f"note: {flag(name)} has no effect: {why[name]}"


def _decoded(scan: data.Scan, run: Run[TrainConfig]) -> PictureStore:
    """All frames of the clips, decoded into the cache."""
    progress = run.clock.watched(run.console.progress("decoding", "frame"), "decoding the clips")
    with freed_if_refused(run):
        store = PictureStore(scan, run.files.cache, progress)
    run.console.say(*map(str, store.findings))
    return store


def _encoded(pictures: PictureStore, codec: Codec, run: Run[TrainConfig]) -> Clips:
    """All clips as latents, split into those to train on and those held out."""
    machine = run.machine
    progress = run.clock.watched(run.console.progress("encoding", "frame"), "encoding the clips")
    latents = machine.team.in_turn(
        lambda: LatentStore(
            pictures,
            codec,
            run.files.cache,
            device=machine.device,
            dtype=machine.dtype,
            progress=progress,
        )
    )
    run.console.say(*map(str, latents.findings))
    return Clips(latents, *split(latents, run.config))


def describe(trainer: Trainer) -> str:
    """A line of text on the network, device, clips and memory."""
    million = sum(weight.numel() for weight in trainer.learner.parameters()) / 1e6
    machine, clips = trainer.machine, trainer.clips
    return (
        f"network of {million:.1f} million weights on {machine.device.type} in "
        f"{str(machine.dtype).removeprefix('torch.')}; {len(clips.train)} clips to train on, "
        f"{len(clips.held)} held out; about {_memory(trainer) / 2**30:.1f} GiB of memory"
    )


def _memory(trainer: Trainer) -> float:
    """Bytes that training takes for one part of a step, with clips of mean length."""
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
