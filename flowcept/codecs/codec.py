"""Frames <-> latents, one frame at a time: pixels, a small autoencoder, pretrained autoencoders.

Shapes: F frames, C channels (3 of an image, `config.channels` of a latent), H height, W width.
Images are in [-1, 1]. A latent is `compression` times smaller than its image along each side.

What is unusual here:

* Latents are normalised per channel by statistics that are buffers of the codec, so that a flow
  model sees about unit variance whatever the encoder makes.
* The autoencoder starts as a truncated cosine transform, which a linear shortcut holds, and learns
  only what convolutions add to it: it is a usable codec before the first step.
* `CodecTrainer` adds Gaussian noise of `latent_noise` *standard deviations of each channel* to the
  latents it decodes. That is noise in the units of the flow model, whose samples are never exact:
  decoding becomes smooth at the scale of its errors, and the encoder cannot escape by making its
  latents larger, as it can from noise of a fixed size. A tiny weight on the square of the latents
  keeps their raw scale from drifting.
* Encoding and decoding go by chunks of as many frames as fit a fixed number of pixels: memory does
  not grow with the length of a clip.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowcept.errors import UserError

KINDS = ("pixels", "autoencoder", "diffusers")
SOURCES = ("AutoencoderKL", "AutoencoderTiny")  # classes of diffusers that Pretrained can hold


@dataclass(frozen=True)
class CodecConfig:
    """What a codec is. With the weights it rebuilds the codec; values outside are a UserError."""

    kind: str = "autoencoder"  # pixels | autoencoder | diffusers
    compression: int = 8  # pixels per latent cell along each side: 4, 8 or 16 (pixels: 1)
    channels: int = 16  # latent channels (pixels: 3)
    width: int = 48  # channels of the autoencoder's first level
    source: str = ""  # kind diffusers: AutoencoderKL or AutoencoderTiny
    source_config: str = ""  # kind diffusers: the JSON text of that class's settings, no paths

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown codec {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.kind == "pixels" and (self.compression, self.channels) != (1, 3):
            raise UserError("the codec pixels has compression 1 and 3 channels; set them so")
        if self.kind == "autoencoder" and self.compression not in (4, 8, 16):
            raise UserError(f"codec compression {self.compression} is not 4, 8 or 16")
        if self.kind == "diffusers" and self.source not in SOURCES:
            raise UserError(f"unknown pretrained codec {self.source!r}; use {' or '.join(SOURCES)}")
        if min(self.compression, self.channels) < 1 or self.width < 2 or self.width % 2:
            raise UserError("codec compression and channels must be positive, its width even")


class Codec(nn.Module):
    """Images in [-1, 1] <-> latents of about unit variance.

    A subclass gives `encode_raw` and `decode_raw`: differentiable, not normalised, all frames at
    once. `encode` and `decode` are what the rest of the package calls: without gradients, chunked.
    They compute in the dtype of the weights (or of an autocast around them) and return float32.
    """

    chunk_pixels: ClassVar[int] = 2**20  # image pixels at once: 16 frames of 256 x 256
    memory_format: ClassVar[torch.memory_format] = torch.channels_last  # convolutions' fastest
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_C", torch.zeros(config.channels))
        self.register_buffer("std_C", torch.ones(config.channels))

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        """Latents before normalisation; differentiable, not chunked."""
        raise NotImplementedError

    def decode_raw(self, latent_FCHW: Tensor) -> Tensor:
        """Images of such latents; not clamped, differentiable, not chunked."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, image_FCHW: Tensor) -> Tensor:
        """`[F, 3, H, W]` in [-1, 1] -> `[F, C, H/compression, W/compression]`, float32.

        ValueError for another number of channels or a size that is no multiple of `compression`.
        """
        mean_C11, std_C11 = self._statistics()
        return (self._encode_chunks(image_FCHW) - mean_C11) / std_C11

    @torch.no_grad()
    def decode(self, latent_FCHW: Tensor) -> Tensor:
        """The inverse of `encode` up to the codec's loss, clamped to [-1, 1], float32.

        ValueError for another number of channels.
        """
        return torch.cat(list(self.decode_parts(latent_FCHW)))

    @torch.no_grad()
    def decode_parts(self, latent_FCHW: Tensor) -> Iterator[Tensor]:
        """The same, some frames at a time, so that a long clip is never whole in float32."""
        _, channels, height, width = latent_FCHW.shape
        if channels != self.config.channels:
            raise ValueError(f"latents have {channels} channels, not {self.config.channels}")
        mean_C11, std_C11 = self._statistics()
        for chunk_FCHW in self._chunks(latent_FCHW, height * width * self.config.compression**2):
            raw_FCHW = chunk_FCHW.to(std_C11) * std_C11 + mean_C11
            yield self.decode_raw(self._place(raw_FCHW)).float().clamp(-1, 1).contiguous()

    @torch.no_grad()
    def fit_statistics(self, images: Iterable[Tensor]) -> None:
        """Set mean and standard deviation per channel from batches of images, read one by one.

        ValueError if there is not one frame.
        """
        count = 0
        total_C = torch.zeros(self.config.channels, dtype=torch.float64)
        square_C = torch.zeros(self.config.channels, dtype=torch.float64)
        for image_FCHW in images:
            raw_FCHW = self._encode_chunks(image_FCHW).cpu().double()
            count += raw_FCHW.numel() // self.config.channels
            total_C += raw_FCHW.sum((0, 2, 3))
            square_C += raw_FCHW.square().sum((0, 2, 3))
        if not count:
            raise ValueError("latent statistics need at least one frame")
        mean_C = total_C / count
        variance_C = square_C / count - mean_C.square()
        self.mean_C.copy_(mean_C)
        # The floor keeps a channel that is constant on this data from being blown up by rounding.
        self.std_C.copy_(variance_C.clamp_min(0).sqrt().clamp_min(1e-4))

    def _encode_chunks(self, image_FCHW: Tensor) -> Tensor:
        """Raw latents, chunked, float32."""
        _, channels, height, width = image_FCHW.shape
        if channels != 3 or height % self.config.compression or width % self.config.compression:
            raise ValueError(
                f"frames of {channels} x {height} x {width} need 3 channels and sides that are"
                f" multiples of {self.config.compression}"
            )
        chunks = self._chunks(image_FCHW, height * width)
        raws = [self.encode_raw(self._place(chunk)).float().contiguous() for chunk in chunks]
        return torch.cat(raws)

    def _chunks(self, x_FCHW: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """Runs of as many frames, of so many image pixels each, as are computed at once."""
        return torch.split(x_FCHW, max(1, self.chunk_pixels // max(1, pixels)))

    def _place(self, x_FCHW: Tensor) -> Tensor:
        """To the weights' device and dtype."""
        like = next(self.parameters(), self.mean_C)
        return x_FCHW.to(like.device, like.dtype, memory_format=self.memory_format)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as float32 `[C, 1, 1]`."""
        return self.mean_C.float()[:, None, None], self.std_C.float()[:, None, None]


class Pixels(Codec):
    """No compression: a latent is the image itself, normalised."""

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        return image_FCHW

    def decode_raw(self, latent_FCHW: Tensor) -> Tensor:
        return latent_FCHW


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(x))))`, the identity at first: it trains without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = _scale_weights(nn.Conv2d(channels, channels, 3, padding=1), 0)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        hidden_FCHW: Tensor = self.conv_2(F.silu(self.conv_1(F.silu(x_FCHW))))
        return x_FCHW + hidden_FCHW


class Autoencoder(Codec):
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


class Pretrained(Codec):
    """An `AutoencoderKL` or `AutoencoderTiny` of diffusers; the posterior's mode, no sampling.

    UserError if diffusers is not installed, or the settings do not build such an autoencoder.
    """

    chunk_pixels = 2**18  # these have full-size activations of 64 to 128 channels
    # In channels_last the CPU's GroupNorm loses two digits: errors of 9e-5 instead of 1e-6.
    memory_format = torch.contiguous_format

    def __init__(self, config: CodecConfig, model: Any = None) -> None:  # noqa: ANN401
        super().__init__(config)
        self.model = model or _build_diffusers(config.source, config.source_config)

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        output = self.model.encode(image_FCHW)
        raw_FCHW: Tensor
        if self.config.source == "AutoencoderKL":
            raw_FCHW = output.latent_dist.mode()
        else:
            raw_FCHW = output.latents
        return raw_FCHW

    def decode_raw(self, latent_FCHW: Tensor) -> Tensor:
        image_FCHW: Tensor = self.model.decode(latent_FCHW).sample
        return image_FCHW


def build_codec(config: CodecConfig) -> Codec:
    """A codec with random weights; UserError if it needs diffusers and that is not installed."""
    kinds = {"pixels": Pixels, "autoencoder": Autoencoder, "diffusers": Pretrained}
    return kinds[config.kind](config)


def _build_diffusers(source: str, source_config: str) -> Any:  # noqa: ANN401 - an untyped library
    try:
        import diffusers
    except ImportError as error:
        message = 'a pretrained codec needs diffusers; install it by pip install ".[diffusers]"'
        raise UserError(message) from error
    try:
        settings = json.loads(source_config)
        return getattr(diffusers, source).from_config(settings).eval().requires_grad_(False)
    except Exception as error:  # the settings may come from any file and raise anything within
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the settings of the pretrained {source} are not usable: {reason}"
        ) from error


def load_pretrained(path: Path) -> Codec:
    """An image autoencoder from local files, its weights float32, its statistics not yet fitted.

    `path` is one of: a diffusers folder (`config.json` with `.safetensors` weights beside it, or
    below it in `vae/`); a `.safetensors` or `.pth` file of `AutoencoderKL` or `AutoencoderTiny`
    weights (a `config.json` beside it is used, else the settings are read off the shapes, with 32
    norm groups for `AutoencoderKL`); one of a pair `*_encoder.pth`, `*_decoder.pth` of TAESD, or
    the folder that holds the pair. Pickled files are read with `weights_only=True`: they cannot
    execute. UserError for everything else, in one line that names the file.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a local copy of the autoencoder")
    if path.is_dir() and not (path / "config.json").exists() and (path / "vae").is_dir():
        path = path / "vae"
    weights_path = _find_weights(path) if path.is_dir() else path
    half = next((h for h in ("encoder", "decoder") if weights_path.stem.endswith(h)), None)
    if half:
        weights = _read_tiny_pair(weights_path, half)
    else:
        weights = _modern_attention(_read_weights(weights_path))
    config_path = weights_path.parent / "config.json"
    settings = (
        _read_settings(config_path) if config_path.exists() else _guess(weights, weights_path)
    )

    source = str(settings.get("_class_name"))
    if source not in SOURCES:
        raise UserError(f"{config_path}: class {source} is not {' or '.join(SOURCES)}")
    # Names that begin with "_" hold the version and the path of the machine it came from.
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    model = _build_diffusers(source, json.dumps(settings))
    levels = "num_encoder_blocks" if source == "AutoencoderTiny" else "block_out_channels"
    config = CodecConfig(
        kind="diffusers",
        compression=2 ** (len(model.config[levels]) - 1),
        channels=model.config["latent_channels"],
        source=source,
        source_config=json.dumps(settings, sort_keys=True),
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{weights_path}: not the weights of its {source}: {reason}") from error
    return Pretrained(config, model)


def _find_weights(folder: Path) -> Path:
    """The weights in a folder: safetensors, full precision before a variant, or a TAESD pair."""
    found = sorted(folder.glob("*.safetensors"), key=lambda path: len(path.name))
    found += sorted(folder.glob("*encoder.pth"))
    if not found:
        raise UserError(f"{folder}: no .safetensors file and no *_encoder.pth in this folder")
    return found[0]


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, float32."""
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not readable as weights; is the file whole?") from error
    except Exception as error:  # pickle's own errors share no base class
        raise UserError(f"{path}: holds more than weights, or is damaged; not loaded") from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path}: is not a plain table of weights")
    return {str(name): weight.float() for name, weight in weights.items()}


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: is not the settings of an autoencoder")
    return settings


def _read_tiny_pair(path: Path, half: str) -> dict[str, Tensor]:
    """TAESD's own two files under the names of `AutoencoderTiny`.

    Its decoder counts a clamp as layer 0, which diffusers has outside of its layers.
    """
    weights = {}
    for part, first in (("encoder", 0), ("decoder", 1)):
        part_path = path.with_name(f"{path.stem.removesuffix(half)}{part}{path.suffix}")
        if not part_path.exists():
            raise UserError(f"{part_path}: missing; an encoder and a decoder go together")
        for name, weight in _read_weights(part_path).items():
            layer, _, rest = name.partition(".")
            if not layer.isdigit():
                raise UserError(f"{part_path}: {name} is not a layer of TAESD")
            weights[f"{part}.layers.{int(layer) - first}.{rest}"] = weight
    return weights


def _modern_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of before diffusers 0.17 (Stable Diffusion 1 and 2) under today's names."""
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for name, weight in weights.items():
        head, _, kind = name.rpartition(".")
        block, _, layer = head.rpartition(".")
        if "attentions" in block and layer in today:
            shape = weight.shape[:2] if kind == "weight" else weight.shape  # a 1x1 convolution
            renamed[f"{block}.{today[layer]}.{kind}"] = weight.reshape(shape)
        else:
            renamed[name] = weight
    return renamed


def _guess(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The settings of an autoencoder from the names and shapes of its weights."""
    if any(".pool." in name for name in weights):
        raise UserError(
            f"{path}: this TAESD has pooled middle blocks (TAEF2), which the AutoencoderTiny of"
            " diffusers does not have; use an AutoencoderKL or a TAESD, TAESDXL, TAESD3 or TAEF1"
        )
    if "encoder.layers.0.weight" in weights:
        return _guess_tiny(weights)
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in weights:
        return _guess_kl(weights)
    raise UserError(
        f"{path}: its weights are not named as diffusers names AutoencoderKL or AutoencoderTiny;"
        " give the diffusers folder of this autoencoder"
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, ... are there in a row."""
    number = 0
    while pattern.format(number) in weights:
        number += 1
    return number


def _guess_tiny(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A convolution alone starts a level of the encoder and ends one of the decoder."""
    blocks: dict[str, list[int]] = {}
    for part in ("encoder", "decoder"):
        numbers = {int(n.split(".")[2]) for n in weights if n.startswith(f"{part}.layers.")}
        counts = [0]
        for number in sorted(numbers)[1:]:
            if f"{part}.layers.{number}.conv.0.weight" in weights:
                counts[-1] += 1
            else:
                counts.append(0)
        blocks[part] = counts[:-1]  # the last convolution starts no level
    width = weights["encoder.layers.0.weight"].shape[0]
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": weights["decoder.layers.0.weight"].shape[1],
        "num_encoder_blocks": blocks["encoder"],
        "num_decoder_blocks": blocks["decoder"],
        "encoder_block_out_channels": [width] * len(blocks["encoder"]),
        "decoder_block_out_channels": [width] * len(blocks["decoder"]),
    }


def _guess_kl(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _count(weights, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [weights[name].shape[0] for name in names],
        "layers_per_block": _count(weights, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in weights,
    }


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
