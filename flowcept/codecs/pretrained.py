"""Image autoencoders that others trained, from a folder as diffusers saves them.

Shapes: F pictures or latents, C channels, H height, W width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowcept.codecs.base import CodecConfig, ImageCodec
from flowcept.errors import UserError

# Classes of diffusers that `Pretrained` can hold, each with its setting of one entry a level.
SOURCES = {"AutoencoderKL": "block_out_channels", "AutoencoderTiny": "num_encoder_blocks"}


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


def load_pretrained(path: Path) -> Pretrained:
    """An image autoencoder of diffusers, its weights float32, its statistics not yet fitted.

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
    cell, channels = 2 ** (len(model.config[SOURCES[source]]) - 1), model.config["latent_channels"]
    config = CodecConfig("diffusers", cell, channels, source=source, source_config=settings)
    return Pretrained(config, model)


def _read_settings(path: Path) -> tuple[str, str]:
    """The class of an autoencoder, and its settings as JSON."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON; get the folder again") from error
    source = str(settings.get("_class_name")) if isinstance(settings, dict) else "none"
    if source not in SOURCES:
        raise UserError(f"{path}: class {source} is not {' or '.join(SOURCES)}")
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
