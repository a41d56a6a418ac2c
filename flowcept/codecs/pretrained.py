"""Autoencoders of pictures and of videos that others trained, as diffusers saves them in a folder.

Those of videos have their own statistics, which `fit_statistics` leaves alone. Wan's decodes a clip
latent by latent, in bounded memory, and makes the same pictures as all at once. LTX-Video's cannot:
each of its latents changes every picture.

Shapes: F pictures or latents, C channels, H height, W width; diffusers has clips as `1CFHW`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from flowcept.codecs.base import Codec, CodecConfig, ImageCodec
from flowcept.errors import UserError

# Classes of diffusers that `Pretrained` can hold, each with its setting of one entry a level.
SOURCES = {"AutoencoderKL": "block_out_channels", "AutoencoderTiny": "num_encoder_blocks"}
LTX, WAN = "AutoencoderKLLTXVideo", "AutoencoderKLWan"  # those that `PretrainedVideo` can hold
# Later decoders of LTX-Video are told that latents are not quite clean, as their makers do:
DECODE_TIME = 0.05  # of noise, as the decoder is told
DECODE_NOISE = 0.025  # share of noise that is mixed in, always the same


class Pretrained(ImageCodec):
    """An `AutoencoderKL` or `AutoencoderTiny` of diffusers; the posterior's mode, no sampling.

    UserError if diffusers is not installed, or the settings do not build such an autoencoder.
    """

    chunk_pixels = 2**18  # these have full-size activations of 64 to 128 channels
    # In channels_last the CPU's GroupNorm loses two digits: errors of 9e-5 instead of 1e-6.
    memory_format = torch.contiguous_format

    def __init__(self, config: CodecConfig, model: Any = None) -> None:  # noqa: ANN401
        super().__init__(config)
        self.model = model or _build(config.source, config.source_config)

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        super().check(config)
        if config.source not in SOURCES:
            known = " or ".join(SOURCES)
            raise UserError(f"unknown pretrained codec {config.source!r}; use {known}")

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        output, sampled = self.model.encode(image_FCHW), self.config.source == "AutoencoderKL"
        raw_FCHW: Tensor = output.latent_dist.mode() if sampled else output.latents
        return raw_FCHW

    def decode_raw(self, raw_FCHW: Tensor) -> Tensor:
        image_FCHW: Tensor = self.model.decode(raw_FCHW).sample
        return image_FCHW


class PretrainedVideo(Codec):
    """An `AutoencoderKLLTXVideo` or `AutoencoderKLWan` of diffusers; the posterior's mode.

    UserError if diffusers is not installed, or the settings do not build such an autoencoder.
    """

    def __init__(self, config: CodecConfig, model: Any = None) -> None:  # noqa: ANN401
        super().__init__(config)
        self.model = model or _build(config.source, config.source_config)
        mean_C, std_C = _own_statistics(self.model)
        self.mean_C.copy_(mean_C)
        self.std_C.copy_(std_C)

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        if config.source not in (LTX, WAN):
            raise UserError(f"unknown pretrained codec {config.source!r}; use {LTX} or {WAN}")

    def fit_statistics(self, clips: Iterable[Tensor]) -> None:
        """Nothing is read: the statistics are those that the autoencoder came with."""
        del clips

    def encode_clip_raw(self, image_FCHW: Tensor) -> Tensor:
        posterior = self.model.encode(self._clip(image_FCHW)).latent_dist
        raw_FCHW: Tensor = posterior.mode()[0].transpose(0, 1).contiguous()
        return raw_FCHW

    def decode_stream_raw(self, raw_FCHW: Tensor) -> Iterator[Tensor]:
        raw_1CFHW = self._clip(raw_FCHW)
        stream = self._wan_stream if self.config.source == WAN else self._ltx_whole
        for image_1CFHW in stream(raw_1CFHW):
            yield image_1CFHW[0].transpose(0, 1)

    def _clip(self, x_FCHW: Tensor) -> Tensor:
        """`1CFHW` on the weights' device and in their dtype."""
        like = next(self.model.parameters())
        return x_FCHW.transpose(0, 1)[None].to(like.device, like.dtype)

    def _ltx_whole(self, raw_1CFHW: Tensor) -> Iterator[Tensor]:
        if not self.model.config.timestep_conditioning:
            yield self.model.decode(raw_1CFHW).sample
            return
        noise = torch.randn(raw_1CFHW.shape, generator=torch.Generator().manual_seed(0))
        noisy_1CFHW = torch.lerp(raw_1CFHW, noise.to(raw_1CFHW), DECODE_NOISE)
        time_1 = torch.full((1,), DECODE_TIME).to(raw_1CFHW)
        yield self.model.decode(noisy_1CFHW, time_1).sample

    def _wan_stream(self, raw_1CFHW: Tensor) -> Iterator[Tensor]:
        """One latent after another; what later ones need of earlier ones is kept by the layer."""
        model = self.model
        kept: list[Tensor | None] = [None] * _causal_layers(model.decoder)
        patch = model.config.patch_size or 1
        for number, one_1C1HW in enumerate(model.post_quant_conv(raw_1CFHW).split(1, dim=2)):
            image_1CFHW = model.decoder(
                one_1C1HW, feat_cache=kept, feat_idx=[0], first_chunk=number == 0
            )
            yield _unpatched(image_1CFHW, patch)


def _own_statistics(model: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Mean and standard deviation of each channel of a video autoencoder's latents."""
    if "scaling_factor" in model.config:  # LTX-Video's, whose statistics are among its weights
        return model.latents_mean, model.latents_std / model.config.scaling_factor
    return torch.tensor(model.config.latents_mean), torch.tensor(model.config.latents_std)


def _causal_layers(decoder: torch.nn.Module) -> int:
    """How many layers of Wan's decoder keep something of the latents before."""
    return sum(type(module).__name__ == "WanCausalConv3d" for module in decoder.modules())


def _unpatched(image_1CFHW: Tensor, patch: int) -> Tensor:
    """Pixels out of channels, which Wan 2.2 has by column, then by row of a patch."""
    if patch == 1:
        return image_1CFHW
    by_row_1CFHW = image_1CFHW.unflatten(1, (-1, patch, patch)).transpose(2, 3).flatten(1, 3)
    image_F3HW = F.pixel_shuffle(by_row_1CFHW[0].transpose(0, 1), patch)
    return image_F3HW.transpose(0, 1)[None]


def load_pretrained(path: Path) -> Pretrained | PretrainedVideo:
    """An autoencoder of diffusers, its weights float32.

    The statistics of one of videos are its own; those of one of pictures are not yet fitted.
    `path` is a diffusers folder: `config.json` with `.safetensors` weights beside it, or a folder
    `vae` that holds them. UserError, in one line, for everything else.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a local copy of the autoencoder")
    inside = (path / "vae" / "config.json").is_file() and not (path / "config.json").is_file()
    folder = path / "vae" if inside else path
    weights_paths = sorted(folder.glob("*.safetensors"), key=lambda file: len(file.name))
    if not weights_paths or not (folder / "config.json").is_file():
        files = "config.json and .safetensors weights"
        raise UserError(f"{path}: is not a diffusers folder, of {files}; give one")

    source, settings = _read_settings(folder / "config.json")
    model = _build(source, settings)
    _load_weights(model, weights_paths[0])  # the shortest name: full precision, no variant
    config = _config(model, source, settings)
    return Pretrained(config, model) if source in SOURCES else PretrainedVideo(config, model)


def read_config(folder: Path) -> CodecConfig:
    """What the autoencoder in a folder is, without its weights; errors as for the weights."""
    source, settings = _read_settings(folder / "config.json")
    with torch.device("meta"):
        return _config(_build(source, settings), source, settings)


def _config(model: Any, source: str, settings: str) -> CodecConfig:  # noqa: ANN401
    """What an autoencoder is."""
    if source not in SOURCES:
        return _video_config(model, source, settings)
    cell = 2 ** (len(model.config[SOURCES[source]]) - 1)
    channels = model.config["latent_channels"]
    return CodecConfig("diffusers", cell, channels, source=source, source_config=settings)


def _video_config(model: Any, source: str, settings: str) -> CodecConfig:  # noqa: ANN401
    """What a video autoencoder is."""
    if source == LTX:
        cell, pictures = model.spatial_compression_ratio, model.temporal_compression_ratio
        channels = model.config.latent_channels
    else:
        cell, pictures = model.config.scale_factor_spatial, model.config.scale_factor_temporal
        channels = model.config.z_dim
    return CodecConfig(
        "diffusers-video", cell, channels, source=source, source_config=settings,
        pictures_per_latent=pictures,
    )  # fmt: skip


def _read_settings(path: Path) -> tuple[str, str]:
    """The class of an autoencoder, and its settings as JSON."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON; get the folder again") from error
    source = str(settings.get("_class_name")) if isinstance(settings, dict) else "none"
    if source not in (*SOURCES, LTX, WAN):
        raise UserError(f"{path}: class {source} is not one of {', '.join((*SOURCES, LTX, WAN))}")
    # Names that begin with "_" hold the version and the path of the machine it came from.
    settings = {name: value for name, value in settings.items() if not name.startswith("_")}
    return source, json.dumps(settings, sort_keys=True)


def _build(source: str, settings: str) -> Any:  # noqa: ANN401 - an untyped library
    try:
        import diffusers
    except ImportError as error:
        message = 'a pretrained codec needs diffusers; install it by pip install ".[diffusers]"'
        raise UserError(message) from error
    try:
        model = getattr(diffusers, source).from_config(json.loads(settings))
    except Exception as error:  # the settings may come from any file and raise anything within
        why = str(error).partition("\n")[0]
        raise UserError(f"the settings of the pretrained {source} are not usable: {why}") from error
    return model.eval().requires_grad_(False)


def _load_weights(model: Any, path: Path) -> None:  # noqa: ANN401
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as weights; is the file whole?") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of its {type(model).__name__}: {reason}; "
                        "get the folder again") from error  # fmt: skip
