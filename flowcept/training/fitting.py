"""The codec's part of a run: the codec that the settings name, trained if it is an autoencoder.

It is trained on single frames of the training clips, once per run. Each step is a function of the
seed, the step's number and the state, like a step of the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flowcept import model_file
from flowcept.adapters import open_codec
from flowcept.codecs import Codec, CodecConfig, build_codec, to_images
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.data.shards import PictureStore
from flowcept.diffusers_folder import Stored
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.models import find
from flowcept.process.sampler import clip_generator
from flowcept.settings import CodecSettings, TrainConfig
from flowcept.stopping import whole
from flowcept.training.clock import CODEC, CODEC_SHARE, Part
from flowcept.training.parts import split
from flowcept.training.plan import codec_plan
from flowcept.training.state import Run

STATISTICS_CLIPS = 512  # whose latents give the mean and spread of each channel
REBUILT = 64  # clips, a picture of each of which tells how well the codec rebuilds them


def new_codec(config: TrainConfig, origin: Weights | None, stored: Stored | None = None) -> Codec:
    """The codec that the settings name, not fitted yet, or that of the model to start from.

    ``stored`` is that of shards.

    Raises ``UserError`` if the frame size is no multiple of its cells and the network's patches.
    """
    torch.manual_seed(config.machine.seed)
    if origin is not None:
        codec = origin.codec
    else:
        codec = _named(config.codec) if stored is None else stored.codec
    patch = config.network.patch if origin is None else origin.card.network.patch
    multiple = codec.config.compression * patch
    if any(side % multiple for side in config.data.frame_size):
        size = config.data.size
        raise UserError(f"--size {size} must be a multiple of {multiple} (codec and patch)")
    return codec


def _named(settings: CodecSettings) -> Codec:
    if settings.codec == "pixels":
        return build_codec(CodecConfig("pixels", compression=1, channels=3))
    if settings.codec == "autoencoder":
        shape = (settings.compression, settings.codec_channels, settings.codec_width)
        return build_codec(CodecConfig("autoencoder", *shape))
    found = find(settings.codec, part="vae")
    codec = open_codec(found)
    return codec if found.is_folder else codec.requires_grad_()


def fitted(codec: Codec, pictures: PictureStore, run: Run[TrainConfig]) -> Codec:
    """The codec, trained on the clips if it is an autoencoder, with statistics; once per run."""
    config, files, team = run.config, run.files, run.machine.team
    if team.first and not files.codec.exists():
        clips, _ = split(pictures, config)
        if isinstance(codec, Autoencoder) and config.codec.codec_steps:
            codec = _trained(codec, pictures, clips, run)
        codec.fit_statistics(_whole_clips(codec, pictures, clips, config.machine.seed))
        model_file.save_tree(codec.state_dict(), files.codec)
        files.codec_state.unlink(missing_ok=True)
    team.wait()
    codec.load_state_dict(model_file.load_tree(files.codec))
    return codec.eval().requires_grad_(requires_grad=False)


def rebuilt_psnr(codec: Codec, pictures: PictureStore, run: Run[TrainConfig]) -> float:
    """PSNR in dB that 19 of 20 training pictures reach when the codec rebuilds them."""
    clips, _ = split(pictures, run.config)
    order = torch.randperm(len(clips), generator=clip_generator(run.config.machine.seed)).tolist()
    found = []
    for place in order[:REBUILT]:
        frames_FHW3 = pictures.frames(clips[place])
        middle = len(frames_FHW3) // 2
        image_1CHW = to_images(frames_FHW3[middle : middle + 1]).to(run.machine.device)
        found.append(codec.psnr(image_1CHW))
    return float(torch.tensor(found).quantile(0.05))


def _whole_clips(
    codec: Codec, pictures: PictureStore, clips: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Some clips, cut so that they fill their latents."""
    order = torch.randperm(len(clips), generator=clip_generator(seed)).tolist()
    for place in order[:STATISTICS_CLIPS]:
        frames_FHW3 = pictures.frames(clips[place])
        most = codec.pictures_of(codec.latents_of(len(frames_FHW3)))
        yield to_images(frames_FHW3[:most])


def _trained(
    codec: Autoencoder, pictures: PictureStore, clips: Sequence[int], run: Run[TrainConfig]
) -> Autoencoder:
    """The autoencoder after all its steps; a stopped training continues from its state."""
    config, state = run.config, run.files.codec_state
    trainer = CodecTrainer(codec, config.codec, config.machine.seed, run.machine.dtype)
    if state.exists():
        trainer.load_state_dict(model_file.load_tree(state))
        run.console.say(f"continuing the codec from step {trainer.num_steps}")
    run.clock.tick()
    part = run.clock.part(CODEC, config.codec.codec_steps, CODEC_SHARE)
    if trainer.num_steps < part.steps:
        run.console.say(*codec_plan(trainer, part, pictures, run))
        run.clock.tick()
    part.begin()
    try:
        _take_steps(trainer, _batches(pictures, clips, config, trainer.num_steps), part, run)
    except KeyboardInterrupt:
        _save(trainer, run)
        run.console.say(f"stopped at step {trainer.num_steps} of the codec")
        raise
    _save(trainer, run)  # until the codec itself is written
    return trainer.averaged


def _take_steps(
    trainer: CodecTrainer, batches: Iterator[Tensor], part: Part, run: Run[TrainConfig]
) -> None:
    """Take steps until the codec's part of the run is over, with log, bar and states."""
    every = run.config.report
    with run.console.steps("codec", trainer.num_steps, part.steps) as bar:
        while (done := part.progress(trainer.num_steps)) < 1:
            image_FCHW = next(batches)
            with whole():
                losses = trainer.step(image_FCHW, done)
            run.clock.tick()
            bar.total = part.expected(trainer.num_steps)
            bar.update()
            if trainer.num_steps % every.log_every == 0:
                told = _told(losses)
                bar.set_postfix_str(f"PSNR {told['psnr']:.1f} dB", refresh=False)
                run.files.append({"codec_step": trainer.num_steps, **told})
            if trainer.num_steps % every.save_every == 0:
                _save(trainer, run)


def _save(trainer: CodecTrainer, run: Run[TrainConfig]) -> None:
    with whole():
        model_file.save_tree(trainer.state_dict(), run.files.codec_state)
        run.clock.keep()


def _batches(
    pictures: PictureStore, clips: Sequence[int], config: TrainConfig, step: int
) -> Iterator[Tensor]:
    """Random frames of the clips, for this step of the codec's training and all later ones."""
    seed, batch = config.machine.seed, config.codec.codec_batch
    starts, lengths = pictures.starts, pictures.lengths
    rows = torch.cat([torch.arange(starts[clip], starts[clip] + lengths[clip]) for clip in clips])
    for number in itertools.count(step):
        generator = clip_generator((seed * 1_000_003 + number) % 2**63)
        chosen = rows[torch.randint(len(rows), (batch,), generator=generator)]
        yield to_images(pictures.array[chosen.numpy()])


def _told(losses: dict[str, Tensor]) -> dict[str, float]:
    """Losses as in the log, with the PSNR in dB."""
    values = {name: float(loss) for name, loss in losses.items()}
    psnr = 10 * math.log10(4 / max(values["l2"], 1e-12))  # pictures reach from -1 to 1
    return {"psnr": psnr, **values}
