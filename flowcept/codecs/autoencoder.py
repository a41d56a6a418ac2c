"""A small autoencoder of pictures, and its training.

Shapes: F pictures in [-1, 1] or latents, C channels (3 of a picture), H height, W width. Unusual:

* The autoencoder starts as a truncated cosine transform, which a linear shortcut holds, and learns
  only what convolutions add to it: it is a usable codec before the first step.
* `CodecTrainer` adds Gaussian noise of `LATENT_NOISE` *standard deviations of each channel* to the
  latents it decodes, for the flow model's samples are never exact: decoding becomes smooth at the
  scale of their errors, and larger latents do not help the encoder, as against noise of a fixed
  size. A tiny weight on the square of the latents keeps their raw scale from drifting.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowcept.codecs.base import CodecConfig, ImageCodec
from flowcept.device import autocast
from flowcept.errors import UserError
from flowcept.settings import CodecSettings


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(x))))`, the identity at first: it trains without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = _scaled(nn.Conv2d(channels, channels, 3, padding=1), 0)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        hidden_FCHW: Tensor = self.conv_2(F.silu(self.conv_1(F.silu(x_FCHW))))
        return x_FCHW + hidden_FCHW


class Autoencoder(ImageCodec):
    """A small convolutional autoencoder, a correction to a linear one; about a million weights.

    The linear one maps each `compression`-square of pixels to a latent cell and back. Convolutions
    run from half the picture's size down: at full size they would take most of the time.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        levels = config.compression.bit_length() - 1
        growth = config.width // 2
        widths = [min(config.width + growth * i, 2 * config.width) for i in range(levels)]
        self.encoder = _encoder(widths, config.channels)
        self.decoder = _decoder(widths, config.channels)
        self.last = _scaled(nn.Conv2d(widths[0], 12, 3, padding=1), 0.1)

        basis = _cosine_basis(config.compression, config.channels)[:, :, None, None]
        flat = config.compression / 2  # brings the mean of a flat [-1, 1] picture to about 1
        self.encoder_shortcut = _scaled(nn.Conv2d(basis.shape[1], config.channels, 1), 0)
        self.decoder_shortcut = _scaled(nn.Conv2d(config.channels, basis.shape[1], 1), 0)
        with torch.no_grad():
            self.encoder_shortcut.weight.copy_(basis / flat)
            self.decoder_shortcut.weight.copy_(basis.transpose(0, 1) * flat)

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        super().check(config)
        if config.compression not in (4, 8, 16):
            raise UserError(f"codec compression {config.compression} is not 4, 8 or 16")

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        patch_FCHW = F.pixel_unshuffle(image_FCHW, self.config.compression)
        raw_FCHW: Tensor = self.encoder(image_FCHW) + self.encoder_shortcut(patch_FCHW)
        return raw_FCHW

    def decode_raw(self, raw_FCHW: Tensor) -> Tensor:
        fine_FCHW = F.pixel_shuffle(self.last(F.silu(self.decoder(raw_FCHW))), 2)
        patch_FCHW = self.decoder_shortcut(raw_FCHW)
        return fine_FCHW + F.pixel_shuffle(patch_FCHW, self.config.compression)


def _encoder(widths: Sequence[int], channels: int) -> nn.Sequential:
    """Pictures to `channels`, at half their size by `widths[0]` and so on downwards."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
    layers.append(ResidualBlock(widths[0]))
    for previous, width in pairwise(widths):
        layers.append(nn.Conv2d(previous, width, 3, stride=2, padding=1))
        layers.append(ResidualBlock(width))
    layers.append(_scaled(nn.Conv2d(widths[-1], channels, 3, padding=1), 0.1))
    return nn.Sequential(*layers)


def _decoder(widths: Sequence[int], channels: int) -> nn.Sequential:
    """Back to `widths[0]` at half the pictures' size; a block more at the lowest, the cheapest."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1)]
    layers += [ResidualBlock(widths[-1]), ResidualBlock(widths[-1])]
    for width, narrower in pairwise(reversed(widths)):
        layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2), ResidualBlock(narrower)]
    return nn.Sequential(*layers)


def _scaled(layer: nn.Conv2d, factor: float) -> nn.Conv2d:
    """The layer, its weights made smaller and its bias zero, so that what it adds starts small."""
    with torch.no_grad():
        layer.weight.mul_(factor)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _cosine_basis(side: int, count: int) -> Tensor:
    """`count` orthonormal pictures of `side` x `side`, rows of `[count, 3 * side**2]`.

    Products of the type-2 cosine transform with three colour axes (grey, red-blue, green-magenta),
    the lowest frequencies first; colour counts as a higher one, as the eye and most pictures have
    it. Columns are in the order of `pixel_unshuffle`: colour, row, column.
    """
    frequency_U = torch.arange(side, dtype=torch.float64)
    angle_UX = math.pi * (frequency_U + 0.5) * frequency_U[:, None] / side
    wave_UX = F.normalize(torch.cos(angle_UX), dim=1)
    colour_AC = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colour_AC = F.normalize(colour_AC, dim=1)
    pictures = torch.einsum("ac,uy,vx->auvcyx", colour_AC, wave_UX, wave_UX)

    weight_A = torch.tensor([1, 5, 8])  # of each colour axis; times 1 + squared frequency
    square_U = frequency_U.square()
    cost_AUV = weight_A[:, None, None] * (1 + square_U[:, None] + square_U)
    order = cost_AUV.flatten().argsort(stable=True)[:count]
    return pictures.flatten(0, 2).flatten(1)[order].float()


# What every training of an autoencoder has in common.
WARMUP = 50  # steps over which the learning rate rises
FINAL_RATE = 0.01  # the last learning rate as a fraction of the peak
L1 = 0.2  # weight of the mean absolute error of pixels in [-1, 1]
L2 = 1.0  # weight of the mean squared error
LATENT_NOISE = 0.05  # on latents in training, in standard deviations of each channel
LATENT_WEIGHT = 1e-4  # of the mean squared raw latent
WEIGHT_DECAY = 0.01  # of AdamW
CLIP = 1.0  # bound on the norm of the gradient
EMA = 0.998  # decay per step of the averaged weights
ADVERSARIAL_START = 0.5  # share of the steps after which the adversarial loss is on
ADVERSARIAL_LARGEST = 10.0  # upper bound of `adaptive_weight`
DISCRIMINATOR_WIDTH = 32  # channels of its first level
DISCRIMINATOR_RATE = 5e-4  # its peak learning rate


def patch_discriminator(seed: int) -> nn.Sequential:
    """Real or reconstructed, judged for overlapping patches of 26 x 26 pixels.

    `[F, 3, H, W]` -> scores `[F, 1, H/4, W/4]`, larger means real.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = DISCRIMINATOR_WIDTH
        return nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(1, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.GroupNorm(1, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: scores of real patches above 1, of reconstructed ones below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last: Tensor, largest: float = ADVERSARIAL_LARGEST
) -> Tensor:
    """|d reconstruction / d last| / |d adversarial / d last|, at most `largest`; no gradient.

    With it the adversarial loss pulls no harder at the decoder's last weights than reconstruction
    (Esser et al. 2021, arXiv 2012.09841, section 3.1).
    """
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (opposed,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    ratio = torch.linalg.vector_norm(wanted) / torch.linalg.vector_norm(opposed).clamp_min(1e-12)
    return torch.clamp(ratio, max=largest)


class CodecTrainer:
    """Trains an `Autoencoder` on images that the caller draws: one call of `step` per batch.

    `codec` is trained in place; `averaged` is its moving average, which is the one to keep: after
    `settings.codec_steps` steps the learning rate has ended. The reconstruction loss is
    `L1 * |error| + L2 * error**2`. If `settings.adversarial > 0`, a patch discriminator is trained
    by the hinge loss after `ADVERSARIAL_START` of the steps, and its verdict joins the loss with
    the weight `adversarial * adaptive_weight(...)`. `seed` is that of latent noise and of the
    discriminator's first weights. Forward passes run under autocast to `dtype`. On a CPU,
    `load_state_dict` continues exactly, bit for bit.
    """

    def __init__(
        self,
        codec: Autoencoder,
        settings: CodecSettings,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.dtype = settings, dtype
        self.device = next(codec.parameters()).device
        self.num_steps = 0  # taken so far
        # On the CPU whatever the device, so that noise is the same everywhere.
        self._generator = torch.Generator().manual_seed(seed)
        self.codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._averaged = AveragedModel(codec, multi_avg_fn=_average)
        self._optimizer = _adamw(codec)
        self._parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "codec": self.codec, "averaged": self._averaged, "optimizer": self._optimizer
        }  # fmt: skip
        self._discriminator: nn.Sequential | None = None
        if settings.adversarial:
            judge = patch_discriminator(seed)
            judge.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._discriminator, self._judge_optimizer = judge, _adamw(judge)
            self._parts["discriminator"] = judge
            self._parts["discriminator_optimizer"] = self._judge_optimizer

    @property
    def averaged(self) -> Autoencoder:
        """The codec with averaged weights; the same object at every step."""
        codec = self._averaged.module
        assert isinstance(codec, Autoencoder)
        return codec

    def learning_rate(self, progress: float) -> float:
        """Of the next step, as a fraction of the peak: linear warm-up, then half a cosine."""
        rise = min(1.0, (self.num_steps + 1) / WARMUP)
        fall = (1 + math.cos(math.pi * progress)) / 2
        return rise * (FINAL_RATE + (1 - FINAL_RATE) * fall)

    def step(self, image_FCHW: Tensor, progress: float | None = None) -> dict[str, Tensor]:
        """One step on float images in [-1, 1]; the losses before it, left on the device.

        `progress` is the share of the training that lies behind, by default that of the steps.
        `loss` is what was minimised, `l1` and `l2` are unweighted; with the discriminator on also
        `adversarial`, `adversarial_weight` and `discriminator`. Raises ValueError as `encode` does.
        """
        self.codec.check_pictures(image_FCHW)
        if progress is None:
            progress = min(1.0, self.num_steps / self.settings.codec_steps)
        rate = self.settings.codec_rate * self.learning_rate(progress)
        real_FCHW = image_FCHW.to(self.device, torch.float32, memory_format=torch.channels_last)
        with autocast(self.device, self.dtype):
            raw_FCHW = self.codec.encode_raw(real_FCHW).float()
            made_FCHW = self.codec.decode_raw(self._disturb(raw_FCHW)).float()
        error_FCHW = made_FCHW - real_FCHW
        losses = {"l1": error_FCHW.abs().mean(), "l2": error_FCHW.square().mean()}
        reconstruction = L1 * losses["l1"] + L2 * losses["l2"]
        loss = reconstruction + LATENT_WEIGHT * raw_FCHW.square().mean()

        discriminator = self._discriminator if progress >= ADVERSARIAL_START else None
        if discriminator:
            losses |= self._fool(discriminator, made_FCHW, reconstruction)
            loss = loss + losses["adversarial_weight"] * losses["adversarial"]
        self._descend(self.codec, self._optimizer, loss, rate)
        if discriminator:
            losses["discriminator"] = self._judge(
                discriminator, real_FCHW, made_FCHW.detach(), self.learning_rate(progress)
            )

        self._averaged.update_parameters(self.codec)
        self.num_steps += 1
        return {name: value.detach() for name, value in {"loss": loss, **losses}.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on; its tensors change with the next step."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        return {"num_steps": self.num_steps, "generator": self._generator.get_state(), **state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ValueError if it was made with or without a discriminator."""
        if ("discriminator" in state) != (self._discriminator is not None):
            raise ValueError("the state and the settings disagree on the adversarial loss")
        self.num_steps = state["num_steps"]
        self._generator.set_state(state["generator"].cpu())
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
            if isinstance(part, torch.optim.Optimizer):
                _restore_layout(part)

    def _disturb(self, raw_FCHW: Tensor) -> Tensor:
        """Latents with noise in proportion to the spread of each channel within this batch."""
        spread_C11 = raw_FCHW.detach().std((0, 2, 3), keepdim=True)
        noise_FCHW = torch.randn(raw_FCHW.shape, generator=self._generator).to(self.device)
        return raw_FCHW + LATENT_NOISE * spread_C11 * noise_FCHW

    def _fool(
        self, discriminator: nn.Module, made_FCHW: Tensor, reconstruction: Tensor
    ) -> dict[str, Tensor]:
        """The adversarial loss of the codec, and its weight."""
        discriminator.requires_grad_(False)
        with autocast(self.device, self.dtype):
            loss = -discriminator(made_FCHW).float().mean()
        weight = adaptive_weight(reconstruction, loss, self.codec.last.weight)
        return {"adversarial": loss, "adversarial_weight": self.settings.adversarial * weight}

    def _judge(
        self, discriminator: nn.Module, real_FCHW: Tensor, made_FCHW: Tensor, rate: float
    ) -> Tensor:
        """One step of the discriminator; its loss."""
        discriminator.requires_grad_(True)
        with autocast(self.device, self.dtype):
            score_real, score_made = discriminator(real_FCHW), discriminator(made_FCHW)
        loss = hinge_loss(score_real.float(), score_made.float())
        self._descend(discriminator, self._judge_optimizer, loss, DISCRIMINATOR_RATE * rate)
        return loss

    def _descend(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()


def _adamw(module: nn.Module) -> torch.optim.AdamW:
    weights, betas = module.parameters(), (0.9, 0.99)
    return torch.optim.AdamW(weights, betas=betas, weight_decay=WEIGHT_DECAY, fused=True)


@torch.no_grad()
def _average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Exponential average whose memory grows with the steps, so that it forgets the start."""
    decay = min(EMA, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(list(averaged), list(current), 1 - decay)


def _restore_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments in memory as their weights, which a state from a file may have lost.

    The fused optimiser goes through both in that order: it would silently mix the moments up.
    """
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(moment)
