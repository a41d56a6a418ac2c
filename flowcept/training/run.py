"""The trainer: a folder of clips in, one model file out.

The codec is fitted first, on the folder's own frames; then every clip is encoded once and the
network learns on latents. Every step is a function of the seed, the step's number and the state,
so that a run continues exactly where its last state was written; on a CPU, bit for bit.

A run's folder holds ``config.toml``, ``log.jsonl``, ``loss.png``, ``samples/``, the cache, the
state to resume from, and ``model.safetensors``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from flowcept import model_file as checkpoint
from flowcept.codecs import Codec, CodecConfig, build_codec, to_frames, to_images
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer, CodecTraining
from flowcept.codecs.pretrained import load_pretrained
from flowcept.data import batches, video
from flowcept.data import folder as data
from flowcept.data.folder import DataConfig
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.device import autocast, pick_device, pick_dtype, training_bytes
from flowcept.errors import UserError
from flowcept.evaluation import charts
from flowcept.generation import from_nothing, sample_clips
from flowcept.model_file import WORDS, Card, Weights
from flowcept.networks import VideoNetwork, build_network
from flowcept.networks.text import ByteEncoder, PromptEncoder, TextConfig, build_encoder, words_of
from flowcept.networks.transformer import TransformerConfig
from flowcept.process import forward as process
from flowcept.process.forward import Flowception, Process
from flowcept.process.loss import Counts, LossConfig, count_terms, loss_sums, total_loss
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import FrameState
from flowcept.settings import (
    OF_THE_MODEL,
    PRESETS,
    RESUMABLE,
    ContextMixture,
    SampleConfig,
    TrainConfig,
)

Console = Callable[[str], None]


def process_config(config: TrainConfig) -> Flowception:
    """The process to train; ``UserError`` for a schedule that does not exist."""
    try:
        return Flowception(config.schedule, config.shift, config.late)
    except ValueError as error:
        raise UserError(str(error)) from error


def loss_config(config: TrainConfig) -> LossConfig:
    """The weights of the objective's terms."""
    return LossConfig(1.0, config.rate_weight, config.count_weight)


def make_config(preset: str, toml: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Settings from a preset, then a TOML file, then flags; later ones win.

    Raises ``UserError`` for an unknown preset or setting, a wrong type, a file that is no TOML, or
    a flag that a model to go on from has settled; its TOML may record what it was made with.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}: use {', '.join(PRESETS)}")
    settings: dict[str, Any] = dict(PRESETS[preset])
    if toml is not None:
        settings |= read_config(toml)
    settings |= flags
    fixed = [name for name in OF_THE_MODEL if name in flags]
    if settings.get("init") and fixed:
        flag = "--" + fixed[0].replace("_", "-")
        raise UserError(f"{flag} is for a new network: --init takes it from the file; leave it out")
    return TrainConfig(**settings)


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, checked by name and type."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    kinds = {f.name: str(f.type) for f in fields(TrainConfig)}
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    weights = {f.name for f in fields(ContextMixture)}
    settings: dict[str, Any] = {}
    for name, value in found.items():
        if name == "context" and isinstance(value, dict):
            unknown = set(value) - weights
            if unknown:
                raise UserError(f"{path}: unknown context {min(unknown)!r}; use {sorted(weights)}")
            try:
                settings[name] = ContextMixture(**{k: float(v) for k, v in value.items()})
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: context weights: {error}") from error
            continue
        kind = kinds.get(name)
        if kind is None:
            raise UserError(f"{path}: unknown setting {name!r}")
        if name == "context":
            raise UserError(f"{path}: context must be a table of weights, not {value!r}")
        fits = isinstance(value, types.get(kind, ()))
        if not fits or (isinstance(value, bool) and kind != "bool"):
            raise UserError(f"{path}: {name} must be of type {kind}, not {value!r}")
        settings[name] = value
    return settings


def write_config(config: TrainConfig, path: Path) -> None:
    """All settings as TOML."""
    lines = [
        f"{f.name} = {_toml(getattr(config, f.name))}"
        for f in fields(config)
        if f.name != "context"
    ]
    lines += ["", "[context]"]
    lines += [f"{name} = {_toml(value)}" for name, value in asdict(config.context).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    # ASCII alone would need surrogate pairs, which TOML does not know.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else repr(value)


@dataclass(frozen=True)
class Team:
    """The processes that train together (``torchrun`` starts them); alone: one of one."""

    rank: int = 0
    size: int = 1

    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def agreed(self, value: float) -> float:
        """The first process's value."""
        if self.size > 1:
            values = [value]
            dist.broadcast_object_list(values, src=0)
            value = values[0]
        return value


@contextmanager
def _team(device: torch.device) -> Iterator[Team]:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=7))  # others wait for the codec
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def check(folder: Path, config: TrainConfig) -> list[str]:
    """What training would make of a folder, as lines of text that name every clip."""
    scan = data.scan(folder, _data_config(config), _bar("reading", "clip"))
    return [*(str(finding) for finding in scan.findings), *scan.summary(examples=0)]


def _data_config(config: TrainConfig) -> DataConfig:
    return DataConfig(
        config.frame_size, config.fps, config.min_frames, config.max_frames, config.fit
    )


def _bar(label: str, unit: str, quiet: bool = False) -> Callable[[int, int], None]:
    """A progress callback ``(done, total)`` with bar and ETA."""
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=label, unit=unit, disable=quiet, delay=1)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def train(
    folder: Path,
    run: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    given: Collection[str] = RESUMABLE,
    pause_at: int | None = None,
    quiet: bool = False,
    console: Console = print,
) -> Path:
    """Train on a folder of clips; the path of the model file.

    ``resume`` continues the run in ``run``, whose own settings then hold, but for those of
    ``RESUMABLE`` that ``given`` names. ``pause_at`` ends after
    that step with the state written, as an interruption does. Raises ``UserError`` for unusable
    data or settings, for a run folder that is in use and not to be resumed, and for a resumed run
    that differs in another setting that ``given`` names.
    """
    if resume:
        config = _recorded(run, config, given)
    elif (run / "config.toml").exists():
        raise UserError(
            f"{run} holds a training run: add --resume to go on, or name another folder"
        )
    _check_parts(config)
    device = pick_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dtype = pick_dtype(config.dtype, device)
    if dtype == torch.float16:
        raise UserError("training in float16 is not stable: use --dtype bfloat16 or float32")
    origin = checkpoint.load(Path(config.init)) if config.init else None
    if origin is not None and origin.card.size != config.frame_size:
        size = "x".join(map(str, reversed(origin.card.size)))
        raise UserError(f"{config.init} makes frames of {size}: train with --size {size}")
    codec = _new_codec(config, origin)
    with _team(device) as team:
        say = console if team.first() and not quiet else _silent
        shown = quiet or not team.first()
        bar = _bar("reading", "clip", shown)
        scan = _in_turn(
            team, lambda: data.scan(folder, _data_config(config), bar, run / "cache")
        )
        for line in (*scan.summary(), *_idle(config, () if resume else given)):
            say(line)
        if not resume:
            _open_run(run, config, team)
        images = _in_turn(team, lambda: _decoded(scan, run, config, resume, shown))
        for finding in images.findings:
            say(str(finding))
        codec = codec.to(device)
        if origin is None:
            codec = _fitted(codec, images, run, config, team, dtype, say, shown)
        latents = _in_turn(
            team,
            lambda: LatentStore(
                images,
                codec,
                run / "cache",
                device=device,
                dtype=dtype,
                progress=_bar("encoding", "frame", shown),
            ),
        )
        trainer = Trainer(
            folder, run, config, latents, scan.fps, codec, origin, team, device, dtype
        )
        if resume and (run / "state.safetensors").exists():
            state = checkpoint.load_tree(run / "state.safetensors")
            try:
                trainer.load_state_dict(state)
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"the state in {run} does not fit these clips: resume on the folder as it was "
                    "when training began, or start another run, with --init to go on"
                ) from error
            say(f"continuing from step {trainer.step}")
        for line in _other_process(origin, trainer.card.process):
            say(f"note: {config.init} {line}")
        say(trainer.describe())
        trainer.run_to_end(pause_at, shown, say)
        return run / "model.safetensors"


def _silent(_: str) -> None:
    return


def _other_process(origin: Weights | None, process: Flowception) -> Iterator[str]:
    """What a model to go on from has learned that this run does otherwise."""
    if origin is not None:
        for name, was in asdict(origin.card.process).items():
            now = getattr(process, name)
            if now != was:
                yield f"was trained with {name.replace('_', ' ')} {was}, this run has {now}"


def _in_turn(team: Team, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is made
    """The first process makes what the others then find in the cache."""
    made = make() if team.first() else None
    team.wait()
    return made if team.first() else make()


def _idle(config: TrainConfig, given: Collection[str]) -> Iterator[str]:
    """Settings that were given and change nothing."""
    idle: dict[str, str] = {}
    new = config.codec == "autoencoder"
    ours = new or (config.codec != "pixels" and checkpoint.is_model(Path(config.codec)))
    if config.init or not ours:
        training = ("codec_steps", "codec_batch", "codec_rate", "adversarial")
        idle |= dict.fromkeys(training, "the codec is not trained")
    if not new:
        shape = ("compression", "codec_channels", "codec_width")
        idle |= dict.fromkeys(shape, "the codec has its own shape")
    if config.process != "autoregressive":
        idle["block"] = "it is for --process autoregressive"
    if config.process != "flowception":
        idle |= dict.fromkeys(("schedule", "num_start", "late"), "it is for --process flowception")
    for name in given:
        if name in idle:
            yield f"note: --{name.replace('_', '-')} has no effect: {idle[name]}"


def _check_parts(config: TrainConfig) -> None:
    """``UserError`` for what would only show after the codec's training."""
    process_config(config)
    try:
        text = _text_config(config)
        _network_config(config, (1, config.patch, config.patch), 1, text)
    except ValueError as error:
        raise UserError(str(error)) from error
    if text.kind == "pretrained":
        build_encoder(text)


def _text_config(config: TrainConfig) -> TextConfig:
    if config.text_source:
        return _pretrained_text(config.text_source)
    return TextConfig(width=config.text_width, depth=config.text_depth)


def _network_config(
    config: TrainConfig, latent: tuple[int, int, int], longest: int, text: TextConfig
) -> TransformerConfig:
    """The network for latents of so many channels, rows and columns, and clips so long."""
    channels, height, width = latent
    return TransformerConfig(
        channels=channels,
        height=height,
        width=width,
        largest_size=longest,
        text_width=text.width,
        hidden=config.hidden,
        depth=config.depth,
        heads=config.heads,
        patch=config.patch,
        stem_channels=config.cells,
        stem_depth=config.cell_depth,
        between=config.between,
        place=config.place,
        window=config.window,
    )


def _recorded(run: Path, config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The settings that a run was started with, but for the given ones that may change."""
    recorded = run / "config.toml"
    if not recorded.exists():
        raise UserError(f"nothing to resume in {run}: leave out --resume to start there")
    started = TrainConfig(**read_config(recorded))
    for name in given:
        own = getattr(started, name)
        if name not in RESUMABLE and getattr(config, name) != own:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{run} was started with another {flag} ({own}), which cannot change: leave it out "
                "of --resume, or start another run, with --init to go on from this one's model"
            )
    return replace(started, **{name: getattr(config, name) for name in RESUMABLE if name in given})


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds a Ctrl-C back until the end, so that a step happens whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread alone
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _open_run(run: Path, config: TrainConfig, team: Team) -> None:
    """Record the settings of a new run: from now on its folder is in use."""
    team.wait()  # until all have seen that it was not
    if team.first():
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_config(config, run / "config.toml")
        except OSError as error:
            raise UserError(f"cannot write to {run}: {error.strerror}") from error
    team.wait()


def _decoded(
    scan: data.Scan, run: Path, config: TrainConfig, resume: bool, quiet: bool
) -> PictureStore:
    """All frames. Where that fails the remedy may be a setting: a new run's folder is free then."""
    try:
        bar = _bar("decoding", "frame", quiet)
        return PictureStore(scan, _data_config(config), run / "cache", bar)
    except UserError:
        if not resume:
            (run / "config.toml").unlink(missing_ok=True)
        raise


def _new_codec(config: TrainConfig, origin: Weights | None) -> Codec:
    """The codec that the settings name, not fitted yet, or that of the model to go on from.

    Raises ``UserError`` where frames do not divide into its cells and the network's patches.
    """
    torch.manual_seed(config.seed)
    if origin is not None:
        codec = origin.codec
    elif config.codec == "pixels":
        codec = build_codec(CodecConfig("pixels", 1, 3))
    elif config.codec == "autoencoder":
        kind = CodecConfig(
            "autoencoder", config.compression, config.codec_channels, config.codec_width
        )
        codec = build_codec(kind)
    else:
        path = Path(config.codec)
        ours = checkpoint.is_model(path)
        codec = checkpoint.load(path).codec.requires_grad_() if ours else load_pretrained(path)
    patch = config.patch if origin is None else origin.card.network.patch
    multiple = codec.config.compression * patch
    if any(side % multiple for side in config.frame_size):
        raise UserError(f"--size {config.size} must be a multiple of {multiple} (codec and patch)")
    return codec


CODEC_STATE = "codec-state.safetensors"  # of its training, until it is fitted


def _fitted(
    codec: Codec,
    images: PictureStore,
    run: Path,
    config: TrainConfig,
    team: Team,
    dtype: torch.dtype,
    say: Console,
    quiet: bool,
) -> Codec:
    """The codec trained on the clips, where it is ours, and its statistics; once per run."""
    fitted = run / "codec.safetensors"
    if not fitted.exists() and team.first():
        train_clips, _ = _split(images, config)
        if isinstance(codec, Autoencoder) and config.codec_steps:
            codec = _fit_autoencoder(codec, images, train_clips, run, config, dtype, say, quiet)
        codec.fit_statistics(_some_images(images, train_clips, config.seed))
        checkpoint.save_tree(codec.state_dict(), fitted)
        (run / CODEC_STATE).unlink(missing_ok=True)
    team.wait()
    codec.load_state_dict(checkpoint.load_tree(fitted))
    return codec.eval().requires_grad_(requires_grad=False)


def _split(images: PictureStore | LatentStore, config: TrainConfig) -> tuple[list[int], list[int]]:
    groups = [entry.path for entry in images.entries]
    return batches.split_held_out(len(images), config.held_out, config.seed, groups)


def _some_images(images: PictureStore, clips: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Frames of up to 512 clips, for the latents' statistics."""
    order = torch.randperm(len(clips), generator=clip_generator(seed))[:512].tolist()
    for clip in order:
        yield to_images(images.frames(clips[clip]))


def _fit_autoencoder(
    codec: Autoencoder,
    images: PictureStore,
    clips: Sequence[int],
    run: Path,
    config: TrainConfig,
    dtype: torch.dtype,
    say: Console,
    quiet: bool,
) -> Autoencoder:
    """Train the autoencoder on frames of the training clips; resumable like the network."""
    settings = CodecTraining(
        steps=config.codec_steps,
        learning_rate=config.codec_rate,
        adversarial=config.adversarial,
        seed=config.seed,
    )
    trainer = CodecTrainer(codec, settings, dtype=dtype)
    state = run / CODEC_STATE
    if state.exists():
        trainer.load_state_dict(checkpoint.load_tree(state))
        say(f"continuing the codec from step {trainer.num_steps}")
    starts = images.starts
    rows = torch.cat([torch.arange(starts[c], starts[c] + images.lengths[c]) for c in clips])
    bar = tqdm(
        total=settings.steps, initial=trainer.num_steps, desc="codec", unit="step", disable=quiet
    )
    try:
        while trainer.num_steps < settings.steps:
            generator = clip_generator((config.seed * 1_000_003 + trainer.num_steps) % 2**63)
            chosen = rows[torch.randint(len(rows), (config.codec_batch,), generator=generator)]
            with _uninterrupted():
                losses = trainer.step(to_images(images.array[chosen.numpy()]))
            bar.update()
            if trainer.num_steps % config.log_every == 0:
                values = {name: float(loss) for name, loss in losses.items()}
                psnr = 10 * math.log10(4 / max(values["l2"], 1e-12))
                bar.set_postfix_str(f"PSNR {psnr:.1f} dB", refresh=False)
                _append(
                    run / "log.jsonl", {"codec_step": trainer.num_steps, "psnr": psnr, **values}
                )
            if trainer.num_steps % config.save_every == 0:
                checkpoint.save_tree(trainer.state_dict(), state)
    except KeyboardInterrupt:
        checkpoint.save_tree(trainer.state_dict(), state)
        raise
    finally:
        bar.close()
    checkpoint.save_tree(trainer.state_dict(), state)  # until the codec itself is written
    return trainer.averaged


def _append(path: Path, record: Mapping[str, object]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


class Learner(nn.Module):
    """Network and prompt encoder as one module, whose output is its share of the loss."""

    def __init__(
        self, network: VideoNetwork, text: PromptEncoder, weights: LossConfig, process: Process
    ) -> None:
        super().__init__()
        self.network, self.text, self.weights = network, text, weights
        self.process = process

    def forward(
        self,
        state: FrameState,
        target: process.Target,
        prompts: Sequence[str],
        counts: Counts,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss with the means over ``counts``, and the sums of its terms."""
        tokens = self.text(prompts)
        with torch.no_grad():  # the prompt learns nothing from what frames say of it
            parts = tokens.token_SD.float().split(list(tokens.lengths))
            said = [part.sum(0) * bool(p) for part, p in zip(parts, prompts, strict=True)]
        sums = loss_sums(
            self.network(state, tokens), state, target, self.process, torch.stack(said)
        )
        return total_loss(sums, counts, self.weights), sums


class Trainer:
    """A training run: what changes from step to step, and the step."""

    def __init__(
        self,
        folder: Path,
        run: Path,
        config: TrainConfig,
        latents: LatentStore,
        fps: float,
        codec: Codec,
        origin: Weights | None,
        team: Team,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.folder, self.run, self.config = folder, run, config
        self.latents, self.codec = latents, codec
        self.team, self.device, self.dtype = team, device, dtype
        self.train_clips, self.held_clips = _split(latents, config)
        self.card = self._card(folder, fps, origin)
        torch.manual_seed(config.seed)
        if origin is None:
            network = build_network(self.card.network, self.card.process.shift)
            text = build_encoder(self.card.text)
            if isinstance(text, ByteEncoder):
                text.know(self.card.words)
        else:
            network, text = origin.network, origin.text
            network.shift = self.card.process.shift
            network.requires_grad_().train()
            if self.card.text.kind == "bytes":
                text.requires_grad_()
        network.checkpoint_blocks = config.checkpointing
        self.learner = Learner(network, text, loss_config(config), self.card.process).to(device)
        self.averaged = AveragedModel(self.learner, multi_avg_fn=self._average)
        self.averaged.requires_grad_(requires_grad=False)
        if config.compile:
            network.compile_blocks()
        self.worker: nn.Module = self.learner
        if team.size > 1:
            self.worker = DistributedDataParallel(self.learner)
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=device.type in ("cpu", "cuda"),
        )
        self.step, self.cursor, self.hours = 0, 0, 0.0
        self.tokens_per_frame = network.tokens_per_frame

    def _card(self, folder: Path, fps: float, origin: Weights | None) -> Card:
        config, latents = self.config, self.latents
        lengths = Counter(latents.lengths[clip] for clip in self.train_clips)
        channels, height, width = latents.latent(0).shape[1:]
        longest = max(latents.lengths)  # held-out clips are scored as well
        if origin is None:
            text = _text_config(config)
            network = _network_config(config, (channels, height, width), longest, text)
        else:
            network, text = origin.card.network, origin.card.text
            if longest > network.largest_size:
                network = origin.network.grow_law(longest)
        captions = [latents.captions[clip] for clip in self.train_clips]
        words = Counter(w for caption in captions for w in set(words_of(caption)))
        return Card(
            network=network,
            process=process_config(config),
            text=text,
            codec=self.codec.config,
            size=config.frame_size,
            fps=fps,
            lengths=dict(sorted(lengths.items())),
            fit=config.fit,
            dataset=folder.resolve().name,
            prompts=dict(Counter(filter(None, captions)).most_common(64)),
            words=dict(words.most_common(WORDS)),
        )

    def describe(self) -> str:
        million = sum(p.numel() for p in self.learner.parameters()) / 1e6
        return (
            f"network of {million:.1f} million weights on {self.device.type} in "
            f"{str(self.dtype).removeprefix('torch.')}; {len(self.train_clips)} clips to train on, "
            f"{len(self.held_clips)} held out; about {self._memory() / 2**30:.1f} GiB of memory"
        )

    def _memory(self) -> float:
        """Bytes that training takes, with one part of a step at once on clips of mean length."""
        weights = sum(p.numel() for p in self.learner.parameters())
        law = self.card.lengths
        mean = round(sum(n * count for n, count in law.items()) / sum(law.values()))
        tokens = min(self.config.micro_tokens, self.config.tokens)
        network = self.card.network
        clips = max(tokens // ((mean + 1) * self.tokens_per_frame), 1)
        return training_bytes(
            clips * mean,
            self.tokens_per_frame,
            network.hidden,
            network.depth,
            network.height * network.width * network.stem_channels,
            weights=weights,
            half=self.dtype != torch.float32,
        )

    def _average(
        self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int
    ) -> None:
        """Exponential average whose decay rises from 0, so that the first weights are forgotten."""
        decay = min(self.config.ema, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    def learning_rate(self) -> float:
        """Of the next step: linear rise, level, linear fall to 0 over the last share."""
        config = self.config
        progress = self.step / config.steps
        if config.max_hours:
            progress = max(progress, self.hours / config.max_hours)
        rise = min(1.0, (self.step + 1) / max(config.warmup, 1))
        fall = min(1.0, (1 - progress) / config.decay) if config.decay else 1.0
        return config.learning_rate * rise * max(fall, 0.01)

    def draw(self) -> batches.Batch:
        """The next step's batch."""
        config = self.config
        return batches.draw_batch(
            self.latents,
            self.train_clips,
            seed=config.seed,
            step=self.step,
            cursor=self.cursor,
            tokens=config.tokens,
            tokens_per_frame=self.tokens_per_frame,
            least=self.team.size,
            process=self.card.process,
            mixture=config.context,
            prompt_dropout=config.prompt_dropout,
            given_prompt_dropout=config.given_prompt_dropout,
            context_dropout=config.context_dropout,
        )

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; the means of the loss terms over this process's share."""
        batch = self.draw()
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        counts = _count(batch)
        own = list(range(self.team.rank, len(batch.pairs), self.team.size))
        share = replace(
            batch,
            pairs=tuple(batch.pairs[i] for i in own),
            prompts=tuple(batch.prompts[i] for i in own),
        )
        parts = batches.split_batch(share, self.config.micro_tokens, self.tokens_per_frame)
        totals: Counter[str] = Counter()
        self.learner.train()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            wait = nullcontext() if last or self.team.size == 1 else self.worker.no_sync()  # type: ignore[operator]
            with wait:
                loss, sums = self._forward(self.worker, share, part, counts)
                # Processes average their gradients; the loss is a sum over all of them.
                (loss * self.team.size).backward()
            totals.update({name: float(value.detach()) for name, value in sums.items()})
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.clip)
        if not bool(norm.isfinite()):
            raise UserError(
                f"training diverged at step {self.step}: start another run with a lower "
                "--learning-rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.learner)
        self.step += 1
        self.cursor += batch.taken
        frames = sum(state.lengths[0] for state, _ in batch.pairs)
        return {
            **_means(totals, counts, self.team),
            "rate": rate,
            "norm": float(norm),
            "clips": len(batch.pairs),
            "tokens": (frames + len(batch.pairs)) * self.tokens_per_frame,
        }

    def _forward(
        self, module: nn.Module, batch: batches.Batch, part: Sequence[int], counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        state, target = process.concat([batch.pairs[i] for i in part])
        target = process.Target(
            **{f.name: getattr(target, f.name).to(self.device) for f in fields(target)}
        )
        with autocast(self.device, self.dtype):
            result = module(state.to(self.device), target, [batch.prompts[i] for i in part], counts)
        loss, sums = result
        return loss, sums

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss of the averaged weights on fixed draws of the held-out clips.

        None where there are no such clips, or where these few fit no context.
        """
        config = self.config
        if not self.held_clips:
            return {}
        try:
            batch = batches.draw_batch(
                self.latents,
                self.held_clips,
                seed=config.seed + 1,
                step=0,
                cursor=0,
                tokens=4 * config.tokens,
                tokens_per_frame=self.tokens_per_frame,
                least=1,
                process=self.card.process,
                mixture=config.context,
                prompt_dropout=0.0,
                given_prompt_dropout=0.0,
                context_dropout=0.0,
            )
        except UserError:
            return {}
        counts = _count(batch)
        totals: Counter[str] = Counter()
        self.averaged.eval()
        at_once = min(config.micro_tokens, config.tokens)  # no more than a step of training
        for part in batches.split_batch(batch, at_once, self.tokens_per_frame):
            _, sums = self._forward(self.averaged, batch, part, counts)
            totals.update({name: float(value) for name, value in sums.items()})
        return {f"held_out_{k}": v for k, v in _means(totals, counts, Team()).items()}

    def weights(self) -> Weights:
        """The averaged model as it goes into a file."""
        learner = self.averaged.module
        assert isinstance(learner, Learner)
        return Weights(
            learner.network,
            learner.text,
            self.codec,
            replace(self.card, steps=self.step),
            self.card.process,
        )

    def export(self) -> None:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.config.export_dtype]
        checkpoint.save(self.weights(), self.run / "model.safetensors", dtype)

    @torch.no_grad()
    def sheet(self) -> None:
        """A contact sheet of a few clips from held-out prompts, in ``samples/``."""
        weights = self.weights()
        weights.network.eval()
        clips = self.held_clips or self.train_clips
        prompts = list(dict.fromkeys(self.latents.captions[c] for c in clips))[:6]
        settings = SampleConfig(steps=12)
        with autocast(self.device, self.dtype):
            count = len(prompts)
            given = [from_nothing(self.card, self.device)] * count
            generators = [clip_generator(i) for i in range(count)]
            steps = sample_clips(weights, given, prompts, [""] * count, generators, settings)
            latents = latents_of(steps)
        pictures = [to_frames(self.codec.decode(latent)) for latent in latents]
        (self.run / "samples").mkdir(exist_ok=True)
        labels = [prompt or "(no prompt)" for prompt in prompts]
        sheet = video.contact_sheets(pictures, labels, max_columns=32)
        video.save_image(sheet, self.run / "samples" / f"step_{self.step:06d}.png")

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "cursor": self.cursor,
            "hours": self.hours,
            "clips": self.latents.contents,
            "learner": self.learner.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["clips"] != self.latents.contents:
            raise ValueError("other clips")
        self.step, self.cursor, self.hours = state["step"], state["cursor"], state["hours"]
        self.learner.load_state_dict(state["learner"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        """The model file, which refuses weights that are not finite; then the state."""
        self.export()
        checkpoint.save_tree(self.state_dict(), self.run / "state.safetensors")

    def run_to_end(self, pause_at: int | None, quiet: bool, say: Console) -> None:
        """Steps until the run is over, with its reports; an interruption saves first."""
        config, first = self.config, self.team.first()
        log = self.run / "log.jsonl"
        if first:
            _forget_after(log, self.step)
        writer = _tensorboard(self.run) if first else None
        bar = tqdm(
            total=config.steps, initial=self.step, desc="training", unit="step", disable=quiet
        )
        clock, seen = time.monotonic(), Counter[str]()  # sums since the last line of the log
        try:
            last = config.steps if pause_at is None else min(config.steps, pause_at)
            while self.step < last and not self._late():
                with _uninterrupted():
                    losses = self.train_step()
                bar.update()
                now = time.monotonic()
                # One clock for all: rates and the end depend on it.
                self.hours = self.team.agreed(self.hours + (now - clock) / 3600)
                seen.update({**losses, "seconds": now - clock, "steps": 1})
                clock = now
                if not first:
                    continue
                if self.step % config.log_every == 0:
                    means = {name: seen[name] / seen["steps"] for name in losses}
                    means["clips_per_second"] = seen["clips"] / seen["seconds"]
                    means["tokens_per_second"] = seen["tokens"] / seen["seconds"]
                    seen.clear()
                    bar.set_postfix_str(f"loss {means['velocity']:.3f}", refresh=False)
                    self._log(log, writer, {**means, "hours": self.hours})
                if self.step % config.save_every == 0:
                    self.save()
                if self.step % config.eval_every == 0:
                    self._score(log, writer, say)
                if self.step == 100 or self.step % config.sample_every == 0:
                    self.sheet()
                clock = time.monotonic()
        except KeyboardInterrupt:
            if first:
                self.save()
            words = shlex.join(["train", str(self.folder), "-o", str(self.run), "--resume"])
            say(f"stopped at step {self.step}; to go on: flowcept {words}")
            raise
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        if first:
            self._finish(log, say)
            say(f"wrote {self.run / 'model.safetensors'} after {self.step} steps")
        self.team.wait()

    def _finish(self, log: Path, say: Console) -> None:
        """The model and the state, then the last reports."""
        self.save()
        self._score(log, None, say)
        self.sheet()

    def _score(self, log: Path, writer: Any, say: Console) -> None:  # noqa: ANN401
        held_out = self.held_out()
        if self.held_clips and not held_out:
            say("note: the held-out clips fit no context: they are not scored")
        self._log(log, writer, held_out)
        draw_losses(log, self.run / "loss.png")

    def _late(self) -> bool:
        return bool(self.config.max_hours) and self.hours >= self.config.max_hours

    def _log(self, path: Path, writer: Any, values: Mapping[str, float]) -> None:  # noqa: ANN401
        if values:
            _append(path, {"step": self.step, **values})
        if writer is not None:
            for name, value in values.items():
                writer.add_scalar(name, value, self.step)


def _count(batch: batches.Batch) -> Counts:
    """What the loss of a batch is a mean over."""
    scored = zip(batch.pairs, batch.prompts, strict=True)
    return sum((count_terms(state, [prompt]) for (state, _), prompt in scored), Counts())


def _pretrained_text(source: str) -> TextConfig:
    try:
        settings = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no prompt encoder in {source}: expected a folder with config.json"
        ) from error
    if not isinstance(settings, dict):
        settings = {}
    inner = settings.get("text_config")
    width = settings.get("d_model") or settings.get("hidden_size")
    width = width or (inner.get("hidden_size") if isinstance(inner, dict) else None)
    if not isinstance(width, int):
        raise UserError(f"{source}/config.json does not say the encoder's width")
    return TextConfig("pretrained", width=width, heads=1, source=source)


def _means(totals: Mapping[str, float], counts: Counts, team: Team) -> dict[str, float]:
    """Means of the loss terms; over the whole batch where several processes share it."""
    names = sorted(totals)
    sums = torch.tensor([totals[name] for name in names], dtype=torch.float64)
    if team.size > 1:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        sums = sums.float().to(device)
        dist.all_reduce(sums)
    over = {
        "velocity": counts.flowing,
        "missing": counts.gaps,
        "count": counts.clips,
        "image": counts.image,
    }
    return {
        name: value / max(over[name], 1) for name, value in zip(names, sums.tolist(), strict=True)
    }


def _forget_after(log: Path, step: int) -> None:
    """Drop lines of steps that a resumed run will take again."""
    if log.exists():
        kept = [record for record in _records(log) if record.get("step", 0) <= step]
        log.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


def _records(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, if there is one; a killed process may have left part of one."""
    records = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def _tensorboard(run: Path) -> Any:  # noqa: ANN401 - a writer, or None without the extra
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SummaryWriter(run / "tensorboard")


def draw_losses(log: Path, output: Path) -> None:
    """The loss curves of a run's log as a picture."""
    records = _records(log)
    names = ("velocity", "held_out_velocity", "count", "held_out_count")
    series = {
        name: [(float(r["step"]), float(r[name])) for r in records if name in r and "step" in r]
        for name in names
    }
    chart = charts.line_chart(
        {name: points for name, points in series.items() if points},
        title="loss",
        x_label="step",
        log_y=True,
    )
    video.save_image(chart, output)
