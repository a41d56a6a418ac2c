"""The settings of sampling and training: the one table of names, defaults and meanings.

The command line makes its flags from these records, and a Python caller uses the same words.
Nothing heavy is imported here, so that ``flowcept --help`` answers at once.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flowcept.errors import UserError

INSERTIONS = ("posterior", "systematic", "bernoulli", "poisson")
SOLVERS = ("euler", "multistep")
FITS = ("crop", "pad", "stretch")  # how a picture gets a model's size
ORDERS = ("learned", "random", "left-to-right", "bisection")
SLOWEST, FASTEST = 0.001, 1000  # frames a second that files can state
LARGEST = 1_000_000  # of any setting of the sampler: beyond it numbers overflow, not just patience


def random_seed() -> int:
    """Of a clip for which none was given."""
    return secrets.randbelow(2**31)


def setting(default: Any, meaning: str) -> Any:  # noqa: ANN401 - like dataclasses.field
    """A field whose meaning is the flag's help text."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class SampleConfig:
    """Controls of the sampler; the command line takes its defaults from here."""

    steps: int = setting(8, "denoising steps; twice as many evaluations at most")
    solver: str = setting(
        "euler", "of the flow: euler (a frame's last velocity) or multistep (its last two)"
    )
    guidance: float = setting(2.0, "strength of the prompt in the picture; 1: none")
    rate_guidance: float = setting(1.0, "strength of the prompt in length and place of new frames")
    rate_temperature: float = setting(
        1.0, "of the laws of length and places: 0 the most probable, over 1 more varied"
    )
    length_scale: float = setting(1.0, "multiplies the number of frames to come")
    frames: int | None = setting(None, "number of frames, or auto: the model chooses")
    min_length: int | None = setting(
        None, "least number of frames; by default the shortest trained"
    )
    max_length: int | None = setting(
        None, "largest number of frames; by default the longest trained"
    )
    cache: bool = setting(
        True, "evaluate finished frames no more after the last insertion: a third less work"
    )
    insertion: str = setting(
        "posterior", "how counts are drawn: posterior; systematic, bernoulli, poisson to compare"
    )
    order: str = setting(
        "learned", "where frames enter: learned; random, left-to-right, bisection to compare"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "frames", "min_length", "max_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                raise UserError(f"{_flag(name)} must be from 1 to {LARGEST}, not {value}")
        for name in ("guidance", "rate_guidance", "rate_temperature", "length_scale"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST or (name == "length_scale" and value == 0):
                bound = "over" if name == "length_scale" else "at least"
                raise UserError(
                    f"{_flag(name)} must be {bound} 0 and at most {LARGEST}, not {value}"
                )
        low, high = self.min_length or 1, self.max_length
        if high is not None and low > high:
            raise UserError(f"--min-length {low} is over --max-length {high}")
        if self.frames is not None and (self.frames < low or (high and self.frames > high)):
            raise UserError(f"--frames {self.frames} lies outside --min-length and --max-length")
        placed = self.order == "learned" and self.rate_temperature == 1
        if not placed and self.insertion != "posterior":
            raise UserError("--order and --rate-temperature need the posterior insertion rule")
        choices = (("solver", SOLVERS), ("insertion", INSERTIONS), ("order", ORDERS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UserError(f"{_flag(name)} must be one of {', '.join(known)}")
        bounded = self.frames is not None or self.min_length is not None
        if bounded and self.insertion != "posterior":
            raise UserError("a fixed or least length needs the posterior insertion rule")


def defaults(command: str) -> SampleConfig:
    """The controls that a command starts from.

    Between pictures words add little, and what is wanted is the likeliest course rather than one of
    many: without guidance, which halves the work, and in fewer steps, which end nearer to the mean.
    """
    return SampleConfig(steps=4, guidance=1.0) if command == "interp" else SampleConfig()


def check_keyframes(config: SampleConfig, count: int, multi: int) -> None:
    """UserError where ``count`` keyframes and ``multi`` frames per gap contradict the lengths."""
    if not 0 <= multi <= LARGEST:
        raise UserError(f"--multi must be from 1 to {LARGEST}, not {multi}")
    if multi and (config.frames or config.min_length or config.max_length):
        raise UserError("--multi fixes the length: leave out --frames and its bounds")
    for flag, value in (("--frames", config.frames), ("--max-length", config.max_length)):
        if value is not None and value < count:
            raise UserError(f"{flag} {value} is under the number of keyframes, {count}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class ContextMixture:
    """How often each kind of context is shown in training, as weights."""

    none: float = 0.45  # text-to-video
    first: float = 0.17  # image-to-video
    first_last: float = 0.13  # interpolation
    keyframes: float = 0.07  # both ends and one to three frames between
    alternate: float = 0.12  # every second frame (a clip's rate doubled); half the draws do not fit
    first_k: float = 0.05  # extension forward
    last_k: float = 0.05  # extension backward
    runs: float = 0.03  # scene completion: two or three runs anywhere

    def __post_init__(self) -> None:
        weights = [getattr(self, f.name) for f in fields(self)]
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
            raise UserError("context weights must be numbers, not negative and not all zero")


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training run."""

    # data
    size: str = setting("64", "pixels of a frame: the side of a square, or WIDTHxHEIGHT")
    fps: float = setting(0.0, "frames per second; 0: the folder's most common rate")
    min_frames: int = setting(1, "shorter clips are dropped")
    max_frames: int = setting(64, "longer clips are cut into pieces")
    fit: str = setting("crop", "how clips get the size: crop, pad or stretch")
    held_out: float = setting(0.02, "share of the clips that is never trained on")
    # codec
    codec: str = setting("autoencoder", "autoencoder, pixels, a model file, or a diffusers folder")
    compression: int = setting(4, "pixels per latent cell along each side: 4, 8 or 16")
    codec_channels: int = setting(6, "channels of a latent")
    codec_width: int = setting(64, "channels of the autoencoder's first level")
    codec_steps: int = setting(4000, "training steps of the autoencoder; 0: as it is")
    codec_batch: int = setting(16, "frames per step of the autoencoder")
    codec_rate: float = setting(2e-3, "peak learning rate of the autoencoder")
    adversarial: float = setting(
        0.0, "weight of the patch discriminator's loss, for sharpness; 0: off"
    )
    # network
    hidden: int = setting(256, "width of the network")
    depth: int = setting(8, "blocks of the network")
    heads: int = setting(4, "attention heads of the network")
    patch: int = setting(4, "latent cells along each side of a patch")
    cells: int = setting(64, "channels of the convolutions over latent cells")
    cell_depth: int = setting(2, "convolution blocks at each size of cells, down and up")
    between: int = setting(
        0, "convolution blocks that guess a frame between two finished ones; 0: none"
    )
    place: bool = setting(False, "frames are told their place; clips over the longest are then new")
    rotary_values: bool = setting(
        False, "what frames take from each other turns with their distance: for motions that repeat"
    )
    window: int = setting(0, "frames within this distance are seen; 0: all")
    causal: bool = setting(False, "frames see earlier ones only (autoregressive)")
    text_width: int = setting(192, "width of the prompt encoder")
    text_depth: int = setting(3, "blocks of the prompt encoder")
    text_source: str = setting(
        "", "folder of a frozen T5 or CLIP; empty: a byte transformer is trained"
    )
    # process
    process: str = setting("flowception", "flowception, full-sequence or autoregressive")
    schedule: str = setting("linear", "linear, cosine, power or power:EXPONENT")
    num_start: int = setting(1, "noise frames that a clip starts from")
    shift: float = setting(1.0, "over 1 spends more of the denoising on noise")
    block: int = setting(1, "frames that start together (autoregressive)")
    late: float = setting(
        0.5, "share of the training after the last frame appeared; less is less work a clip"
    )
    context: ContextMixture = field(default_factory=ContextMixture)  # how often each is shown
    # objective
    rate_weight: float = setting(0.1, "weight of the missing counts' likelihood")
    count_weight: float = setting(0.1, "weight of the total count's cross-entropy")
    prompt_dropout: float = setting(0.1, "share of clips without given frames shown without prompt")
    given_prompt_dropout: float = setting(
        0.5, "share of clips with given frames shown without prompt"
    )
    context_dropout: float = setting(0.1, "share of clips shown without context")
    # optimisation
    steps: int = setting(20000, "training steps of the network")
    tokens: int = setting(4096, "tokens per step, over all processes")
    micro_tokens: int = setting(8192, "tokens at once; a larger step is cut into parts")
    learning_rate: float = setting(1e-3, "peak learning rate")
    warmup: int = setting(200, "steps over which the learning rate rises")
    decay: float = setting(0.3, "last share of the run over which the rate falls to 0")
    weight_decay: float = setting(0.01, "of AdamW, on matrices only")
    ema: float = setting(0.999, "decay per step of the averaged weights")
    clip: float = setting(1.0, "bound on the gradient's norm")
    seed: int = setting(0, "seed of weights, data order and noise")
    dtype: str = setting("auto", "auto, float32, bfloat16")
    device: str = setting("auto", "auto, cpu, cuda, mps")
    checkpointing: bool = setting(
        False, "recompute blocks in the backward pass: less memory, more time"
    )
    compile: bool = setting(False, "torch.compile of the blocks")
    init: str = setting("", "a model file to continue from")
    max_hours: float = setting(0.0, "stop, with the rate at 0, after so many hours; 0: no bound")
    # reporting
    log_every: int = setting(20, "steps between lines of the log")
    eval_every: int = setting(500, "steps between held-out losses")
    sample_every: int = setting(1000, "steps between contact sheets; the first comes at step 100")
    save_every: int = setting(500, "steps between states")
    export_dtype: str = setting("bfloat16", "of the weights in the model file: float32 or bfloat16")

    def __post_init__(self) -> None:
        positive = ("steps", "tokens", "micro_tokens", "learning_rate", "clip", "max_frames")
        counts = ("min_frames", "codec_batch", "log_every", "eval_every", "sample_every")
        shape = ("hidden", "depth", "heads", "patch", "cells", "text_width", "text_depth")
        codec = ("codec_channels", "codec_rate")
        for name in (*positive, *counts, *shape, *codec, "save_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{_flag(name)} must be positive, not {getattr(self, name)}")
        dropouts = ("prompt_dropout", "given_prompt_dropout", "context_dropout")
        for name in (*dropouts, "held_out", "decay", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 0 and under 1")
        if self.fps and not SLOWEST <= self.fps <= FASTEST:
            raise UserError(f"--fps must be 0 or from {SLOWEST} to {FASTEST}, not {self.fps}")
        numbers = ("adversarial", "max_hours", "weight_decay", "rate_weight", "count_weight")
        for name in (*numbers, "warmup", "window", "cell_depth", "between", "codec_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{_flag(name)} must be a number and at least 0")
        if self.causal and self.process != "autoregressive":
            raise UserError("--causal is for --process autoregressive: others see all frames")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must be at least 0 and under 2**63, not {self.seed}")
        if self.min_frames > self.max_frames:
            raise UserError("--min-frames is over --max-frames")
        choices = (("export_dtype", ("float32", "bfloat16")), ("fit", FITS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UserError(f"{_flag(name)} must be one of {', '.join(known)}")
        self.frame_size  # noqa: B018 - raises for a size that cannot be read

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", self.size.strip())
        if not match or not int(match[1]) or not int(match[2] or 1):
            raise UserError(f"--size {self.size!r} is not a size: give 64 or WIDTHxHEIGHT")
        return int(match[2] or match[1]), int(match[1])


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden": 128,
        "depth": 4,
        "heads": 2,
        "cells": 32,
        "text_width": 96,
        "text_depth": 2,
        "codec_width": 32,
        "codec_steps": 1500,
        "steps": 5000,
        "tokens": 2048,
    },
    "small": {},
    "base": {
        "size": "128",
        "compression": 8,
        "codec_channels": 16,
        "patch": 2,
        "cells": 128,
        "hidden": 512,
        "depth": 16,
        "heads": 8,
        "text_width": 384,
        "text_depth": 4,
        "codec_width": 96,
        "codec_steps": 20000,
        "steps": 200000,
        "tokens": 32768,
        "micro_tokens": 32768,
        "learning_rate": 5e-4,
        "warmup": 1000,
        "ema": 0.9995,
    },
}

# What a resumed run may change: how long it goes on and what it reports, not what it computes.
RESUMABLE = ("max_hours", "log_every", "eval_every", "sample_every", "save_every", "export_dtype")

# What a model to go on from has settled.
OF_THE_MODEL = (
    *("codec", "compression", "codec_channels", "codec_width", "codec_steps", "codec_rate"),
    *("hidden", "depth", "heads", "patch", "cells", "cell_depth", "between", "place"),
    *("rotary_values", "window", "causal", "text_width", "text_depth", "text_source"),
)


T = TypeVar("T")


def from_mapping(kind: type[T], values: object, *, start: T | None = None) -> T:
    """A record of settings from plain values: of TOML, JSON, a model's card or flags.

    Fields that are records themselves are made from mappings in them. Fields that ``values`` lacks
    keep those of ``start``, or else their defaults. Raises ``UserError`` that names the field for
    an unknown name, a missing one without a default, and a value of another type; bounds are the
    record's own affair (``__post_init__``).
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{kind.__name__} must be a table of settings, not {values!r}")
    hints = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        raise UserError(f"unknown setting {min(unknown)!r}")
    made = {
        name: _converted(name, hints[name], value, getattr(start, name, None))
        for name, value in values.items()
    }
    if start is not None:
        return replace(start, **made)  # type: ignore[type-var]
    for name, one in known.items():
        if name not in made and one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"the setting {name!r} is missing")
    return kind(**made)


def _converted(name: str, kind: Any, value: Any, start: Any = None) -> Any:  # noqa: ANN401
    """A value as the type of its field: records, unions with None, tuples and tables go inside."""
    inside = get_args(kind)
    if kind is Any:
        return value
    if get_origin(kind) is tuple:
        several = isinstance(value, list | tuple)
        if several and len(inside) == 2 and inside[1] is Ellipsis:
            return tuple(_converted(name, inside[0], item) for item in value)
        if several and len(value) == len(inside):
            return tuple(_converted(name, *pair) for pair in zip(inside, value, strict=True))
    elif get_origin(kind) is dict:
        if isinstance(value, Mapping):
            return {_key(name, inside[0], key): _converted(name, inside[1], item)
                    for key, item in value.items()}  # fmt: skip
    elif inside:  # a union with None
        rest = next(one for one in inside if one is not NoneType)
        return None if value is None else _converted(name, rest, value)
    elif isinstance(kind, type) and is_dataclass(kind) and type(value) is not kind:
        return from_mapping(kind, value, start=start)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    told = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UserError(f"{name} must be of type {told}, not {value!r}")


def _key(name: str, kind: type, key: object) -> Any:  # noqa: ANN401
    """The key of a table; JSON writes whole numbers as text."""
    if kind is int and isinstance(key, str) and key.isascii() and key.isdigit():
        return int(key)
    return _converted(name, kind, key)


def mixed(*parts: object) -> int:
    """A seed made from others, such as ``mixed(seed, "count", 3)``: 62 bits of their SHA-256.

    Seeds of different purposes and numbers do not overlap, as sums of them would.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
