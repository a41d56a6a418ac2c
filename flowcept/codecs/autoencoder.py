"""A small autoencoder of pictures, and its training.

Shapes: F pictures or latents, C channels (3 of a picture), H height, W width. Pictures are in
[-1, 1].

What is unusual here:

* The autoencoder starts as a truncated cosine transform, which a linear shortcut holds, and learns
  only what convolutions add to it: it is a usable codec before the first step.
* `CodecTrainer` adds Gaussian noise of `latent_noise` *standard deviations of each channel* to the
  latents it decodes. That is noise in the units of the flow model, whose samples are never exact:
  decoding becomes smooth at the scale of its errors, and the encoder cannot escape by making its
  latents larger, as it can from noise of a fixed size. A tiny weight on the square of the latents
  keeps their raw scale from drifting.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowcept.codecs.base import CodecConfig, ImageCodec
from flowcept.errors import UserError


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(x))))`, the identity at first: it trains without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = _scale_weights(nn.Conv2d(channels, channels, 3, padding=1), 0)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        hidden_FCHW: Tensor = self.conv_2(F.silu(self.conv_1(F.silu(x_FCHW))))
        return x_FCHW + hidden_FCHW


class Autoencoder(ImageCodec):
    """A small convolutional autoencoder, a correction to a linear one; about a million weights.

    The linear one maps each `compression`-square of pixels to a latent cell and back; it starts as
    the cosine transform cut to the lowest frequencies. Convolutions run from half the picture's
    size down: at full size they would take most of the time and add little.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        compression, channels = config.compression, config.channels
        levels = compression.bit_length() - 1
        widths = [
            min(config.width + config.width // 2 * i, 2 * config.width) for i in range(levels)
        ]

        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                down.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            down.append(ResidualBlock(width))
        down.append(_scale_weights(nn.Conv2d(widths[-1], channels, 3, padding=1), 0.1))
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1)]
        up.append(ResidualBlock(widths[-1]))  # one more than in the encoder, where it is cheapest
        for i in reversed(range(levels)):
            up.append(ResidualBlock(widths[i]))
            if i:
                up += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*up)
        self.last = _scale_weights(nn.Conv2d(widths[0], 12, 3, padding=1), 0.1)

        basis = _cosine_basis(compression, channels)
        self.encoder_shortcut = nn.Conv2d(basis.shape[1], channels, 1)
        self.decoder_shortcut = nn.Conv2d(channels, basis.shape[1], 1)
        with torch.no_grad():  # the factor brings the mean of a flat [-1, 1] picture to about 1
            self.encoder_shortcut.weight.copy_(basis[:, :, None, None] * (2 / compression))
            self.decoder_shortcut.weight.copy_(basis.T[:, :, None, None] * (compression / 2))
            for shortcut in (self.encoder_shortcut, self.decoder_shortcut):
                nn.init.zeros_(shortcut.bias)  # type: ignore[arg-type]

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        super().check(config)
        if config.compression not in (4, 8, 16):
            raise UserError(f"codec compression {config.compression} is not 4, 8 or 16")

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        patch_FCHW = F.pixel_unshuffle(image_FCHW, self.config.compression)
        raw_FCHW: Tensor = self.encoder(image_FCHW) + self.encoder_shortcut(patch_FCHW)
        return raw_FCHW

    def decode_raw(self, latent_FCHW: Tensor) -> Tensor:
        fine_FCHW = F.pixel_shuffle(self.last(F.silu(self.decoder(latent_FCHW))), 2)
        patch_FCHW = self.decoder_shortcut(latent_FCHW)
        return fine_FCHW + F.pixel_shuffle(patch_FCHW, self.config.compression)


def _scale_weights(layer: nn.Conv2d, factor: float) -> nn.Conv2d:
    """The layer, its weights made smaller and its bias zero, so that what it adds starts small."""
    with torch.no_grad():
        layer.weight.mul_(factor)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _cosine_basis(side: int, count: int) -> Tensor:
    """`count` orthonormal pictures of `side` x `side`, rows of `[count, 3 * side**2]`.

    Products of the type-2 cosine transform with three colour axes (grey, red-blue, green-magenta),
    the lowest frequencies first; colour counts as a higher frequency, as the eye and most pictures
    have it. Columns are in the order of `pixel_unshuffle`: colour, row, column.
    """
    index = torch.arange(side, dtype=torch.float64)
    wave_UX = torch.cos(math.pi * (index + 0.5) * index[:, None] / side) * math.sqrt(2 / side)
    wave_UX[0] /= math.sqrt(2)
    colour_CC = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colour_CC /= colour_CC.norm(dim=1, keepdim=True)
    cost = (1, 5, 8)  # of each colour axis, multiplied by 1 + squared frequency
    order = sorted(
        (cost[c] * (1 + u * u + v * v), c, u, v)
        for c in range(3)
        for u in range(side)
        for v in range(side)
    )
    rows = [
        torch.einsum("c,y,x->cyx", colour_CC[c], wave_UX[u], wave_UX[v]).flatten()
        for _, c, u, v in order[:count]
    ]
    return torch.stack(rows).float()


@dataclass(frozen=True)
class CodecTraining:
    """Settings of the autoencoder's training. A value outside its range is a UserError."""

    steps: int = 8000  # steps of the optimiser; the learning rate reaches its end there
    batch: int = 4  # frames a step; the caller draws them
    crop: int = 0  # side in pixels of the random square trained on in each frame; 0: the whole
    learning_rate: float = 2e-3  # its peak, after the warm-up
    warmup: int = 50  # steps over which the learning rate rises
    final_rate: float = 0.01  # the last learning rate as a fraction of the peak
    l1: float = 0.2  # weight of the mean absolute error of pixels in [-1, 1]
    l2: float = 1.0  # weight of the mean squared error
    latent_noise: float = 0.05  # noise on latents in training, in standard deviations per channel
    latent_weight: float = 1e-4  # weight of the mean squared raw latent
    adversarial: float = 0.0  # its gradient against reconstruction's, at the last layer; 0: off
    adversarial_start: float = 0.5  # fraction of the steps after which the adversarial loss is on
    adversarial_largest: float = 10.0  # upper bound of the adaptive weight
    discriminator_width: int = 32  # channels of the patch discriminator's first level
    discriminator_rate: float = 5e-4  # peak learning rate of the discriminator
    ema: float = 0.998  # decay per step of the averaged weights
    weight_decay: float = 0.01  # of AdamW
    clip: float = 1.0  # bound on the norm of the gradient
    seed: int = 0  # of latent noise, crops and the discriminator's first weights

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "learning_rate", "clip", "discriminator_width")
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"codec training: {name} must be positive")
        weights = ("crop", "warmup", "l1", "l2", "latent_noise", "latent_weight", "adversarial")
        for name in (*weights, "adversarial_largest", "discriminator_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"codec training: {name} must not be negative")
        for name in ("final_rate", "adversarial_start", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"codec training: {name} must be between 0 and 1")
        if self.l1 + self.l2 == 0:
            raise UserError("codec training: l1 and l2 must not both be 0")


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, judged for overlapping patches of 26 x 26 pixels.

    `[F, 3, H, W]` -> scores `[F, 1, H/4, W/4]`, larger means real.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
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

    def forward(self, image_FCHW: Tensor) -> Tensor:
        score_FCHW: Tensor = self.layers(image_FCHW)
        return score_FCHW


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: scores of real patches above 1, of reconstructed ones below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last: Tensor, largest: float
) -> Tensor:
    """|d reconstruction / d last| / |d adversarial / d last|, at most `largest`; no gradient.

    With it the adversarial loss pulls at the decoder's last weights no harder than reconstruction,
    however sure of itself the discriminator is (Esser et al. 2021, arXiv 2012.09841, section 3.1).
    """
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (opposed,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    ratio = torch.linalg.vector_norm(wanted) / torch.linalg.vector_norm(opposed).clamp_min(1e-12)
    return torch.clamp(ratio, max=largest)


class CodecTrainer:
    """Trains an `Autoencoder` on images that the caller draws: one call of `step` per batch.

    `codec` is trained in place; `averaged` is the moving average of it, which is the one to keep:

        trainer = CodecTrainer(codec, settings, dtype=torch.bfloat16)
        for _ in range(settings.steps):
            trainer.step(next(batches))
        codec = trainer.averaged
        codec.fit_statistics(some_batches)

    The reconstruction loss is `l1 * |error| + l2 * error**2`. After `adversarial_start` of the
    steps, and only if `adversarial > 0`, a patch discriminator is trained by the hinge loss beside
    it, and its verdict joins the loss with the weight `adversarial * adaptive_weight(...)`.

    With `dtype` float32 nothing is cast; otherwise forward passes run under autocast to it. On a
    CPU, `load_state_dict` of a state continues exactly, bit for bit, given the same images.
    """

    def __init__(
        self,
        codec: Autoencoder,
        settings: CodecTraining,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if settings.crop % codec.config.compression:
            raise UserError(
                f"codec training: crop must be a multiple of {codec.config.compression}"
            )
        self.settings = settings
        self.dtype = dtype
        self.device = next(codec.parameters()).device
        self.codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_steps = 0  # taken so far
        self._averaged = AveragedModel(codec, multi_avg_fn=self._average)
        self._optimizer = self._adamw(codec)
        # On the CPU whatever the device, so that noise and crops are the same everywhere.
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._discriminator: PatchDiscriminator | None = None
        if settings.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                discriminator = PatchDiscriminator(settings.discriminator_width)
            self._discriminator = discriminator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._discriminator_optimizer = self._adamw(discriminator)

    @property
    def averaged(self) -> Autoencoder:
        """The codec with averaged weights; the same object at every step."""
        codec = self._averaged.module
        assert isinstance(codec, Autoencoder)
        return codec

    @property
    def adversarial_on(self) -> bool:
        """Whether the next step uses the discriminator."""
        start = self.settings.adversarial_start * self.settings.steps
        return self._discriminator is not None and self.num_steps >= start

    def learning_rate(self) -> float:
        """Of the next step, as a fraction of the peak: linear warm-up, then half a cosine."""
        rise = min(1.0, (self.num_steps + 1) / max(1, self.settings.warmup))
        progress = min(1.0, self.num_steps / self.settings.steps)
        fall = (1 + math.cos(math.pi * progress)) / 2
        return rise * (self.settings.final_rate + (1 - self.settings.final_rate) * fall)

    def step(self, image_FCHW: Tensor) -> dict[str, float]:
        """One step on float images in [-1, 1]; the losses by name, before the step.

        `loss` is what was minimised, `l1` and `l2` are unweighted; with the discriminator on also
        `adversarial`, `adversarial_weight` and `discriminator`. ValueError as for `encode`.
        """
        real_FCHW = self._prepare(image_FCHW)
        with self._autocast():
            raw_FCHW = self.codec.encode_raw(real_FCHW).float()
            image_hat_FCHW = self.codec.decode_raw(self._disturb(raw_FCHW)).float()
        error_FCHW = image_hat_FCHW - real_FCHW
        l1, l2 = error_FCHW.abs().mean(), error_FCHW.square().mean()
        reconstruction = self.settings.l1 * l1 + self.settings.l2 * l2
        loss = reconstruction + self.settings.latent_weight * raw_FCHW.square().mean()
        values = {"l1": l1, "l2": l2}

        judge = self._discriminator if self.adversarial_on else None
        if judge:
            judge.requires_grad_(False)
            with self._autocast():
                adversarial = -judge(image_hat_FCHW).float().mean()
            largest = self.settings.adversarial_largest
            last = self.codec.last.weight
            weight = adaptive_weight(reconstruction, adversarial, last, largest)
            weight = self.settings.adversarial * weight
            loss = loss + weight * adversarial
            values |= {"adversarial": adversarial, "adversarial_weight": weight}
        self._descend(self.codec, self._optimizer, loss, self.settings.learning_rate)

        if judge:
            judge.requires_grad_(True)
            with self._autocast():
                score_real, score_fake = judge(real_FCHW), judge(image_hat_FCHW.detach())
            verdict = hinge_loss(score_real.float(), score_fake.float())
            rate = self.settings.discriminator_rate
            self._descend(judge, self._discriminator_optimizer, verdict, rate)
            values["discriminator"] = verdict

        self._averaged.update_parameters(self.codec)
        self.num_steps += 1
        return {name: float(value.detach()) for name, value in {"loss": loss, **values}.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on: nested dicts of tensors and numbers.

        The tensors are the live ones: save or copy them before the next step.
        """
        state = {
            "num_steps": self.num_steps,
            "codec": self.codec.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }
        if self._discriminator:
            state["discriminator"] = self._discriminator.state_dict()
            state["discriminator_optimizer"] = self._discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ValueError if it was made with or without a discriminator."""
        if ("discriminator" in state) != (self._discriminator is not None):
            raise ValueError("the state and the settings disagree on the adversarial loss")
        self.num_steps = state["num_steps"]
        self.codec.load_state_dict(state["codec"])
        self._averaged.load_state_dict(state["averaged"])
        _load_optimizer(self._optimizer, state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        if self._discriminator:
            self._discriminator.load_state_dict(state["discriminator"])
            _load_optimizer(self._discriminator_optimizer, state["discriminator_optimizer"])

    def _adamw(self, module: nn.Module) -> torch.optim.AdamW:
        decay = self.settings.weight_decay
        return torch.optim.AdamW(
            module.parameters(), betas=(0.9, 0.99), weight_decay=decay, fused=True
        )

    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def _prepare(self, image_FCHW: Tensor) -> Tensor:
        """Crop, check, and bring to the device."""
        crop, multiple = self.settings.crop, self.codec.config.compression
        height, width = image_FCHW.shape[2:]
        if crop and (height, width) != (crop, crop):
            if min(height, width) < crop:
                raise ValueError(f"frames of {height} x {width} are smaller than a crop of {crop}")
            last_FY = torch.tensor([height - crop + 1, width - crop + 1])
            share_FY = torch.rand(len(image_FCHW), 2, generator=self._generator)
            offsets = (share_FY * last_FY).long().tolist()
            image_FCHW = torch.stack(
                [
                    image_CHW[:, y : y + crop, x : x + crop]
                    for image_CHW, (y, x) in zip(image_FCHW, offsets, strict=True)
                ]
            )
        elif height % multiple or width % multiple:
            raise ValueError(f"frames of {height} x {width} are not multiples of {multiple}")
        return image_FCHW.to(self.device, torch.float32, memory_format=torch.channels_last)

    def _disturb(self, raw_FCHW: Tensor) -> Tensor:
        """Latents with noise in proportion to the spread of each channel within this batch."""
        if not self.settings.latent_noise:
            return raw_FCHW
        spread_C11 = raw_FCHW.detach().std((0, 2, 3), keepdim=True)
        noise_FCHW = torch.randn(raw_FCHW.shape, generator=self._generator).to(self.device)
        return raw_FCHW + self.settings.latent_noise * spread_C11 * noise_FCHW

    def _descend(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, peak: float
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = peak * self.learning_rate()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.settings.clip)
        optimizer.step()

    @torch.no_grad()
    def _average(
        self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int
    ) -> None:
        """Exponential average whose memory grows with the steps, so that it forgets the start."""
        decay = min(self.settings.ema, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state whose tensors may have lost the layout of the weights, say in a file.

    The fused optimiser goes through weights and moments in the order of memory: moments that lie
    otherwise than their weights would silently belong to others.
    """
    optimizer.load_state_dict(dict(state))
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(moment)
