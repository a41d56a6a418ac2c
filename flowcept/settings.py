"""The settings of sampling and training: the one table of names, defaults, meanings and bounds.

The command line makes its flags from these records, and a Python caller uses the same words.
Nothing heavy is imported here, so that ``flowcept --help`` answers at once.
"""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from flowcept.errors import UserError

DIRECTIONS = ("forward", "backward", "both")  # in which a clip is extended
FITS = ("crop", "pad", "stretch")  # how a picture gets a model's size
SLOWEST, FASTEST = 0.001, 1000  # frames a second that files can state
LONGEST_QUOTE = 80  # characters of a wrong value in a message
LARGEST = 1_000_000  # of any setting of the sampler: beyond it numbers overflow, not just patience


def random_seed() -> int:
    """Of a clip for which none was given."""
    return secrets.randbelow(2**31)


def mixed(seed: int, *names: object) -> int:
    """A seed of 63 bits for one purpose: seeds of neighbouring numbers have nothing in common.

    ``names`` say what it is for and which one it is: ``mixed(seed, "clip", 3)``.
    """
    text = ",".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


# What a setting may be


@dataclass(frozen=True)
class Rule:
    """What a value must be: in words, and as a check."""

    words: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: object) -> None:
        """UserError that names the flag of a value that breaks the rule; None was not given."""
        if value is not None and not self.holds(value):
            raise UserError(f"{flag(name)} must be {self.words}, not {shown(value)}")


def within(low: float, high: float) -> Rule:
    return Rule(f"from {low} to {high}", lambda value: low <= value <= high)


POSITIVE = Rule("positive", lambda value: 0 < value < math.inf)
NUMBER = Rule("a number and at least 0", lambda value: 0 <= value < math.inf)
SHARE = Rule("at least 0 and under 1", lambda value: 0 <= value < 1)
INSIDE = Rule("between 0 and 1", lambda value: 0 < value < 1)
COUNT = within(1, LARGEST)
STRENGTH = within(0, LARGEST)
SCALE = Rule(f"over 0 and at most {LARGEST}", lambda value: 0 < value <= LARGEST)
SEED = Rule("at least 0 and under 2**63", lambda value: 0 <= value < 2**63)
RATE = Rule(f"0 or from {SLOWEST} to {FASTEST}", lambda fps: not fps or SLOWEST <= fps <= FASTEST)
STATED = within(SLOWEST, FASTEST)
SLOWNESS = within(0.01, 1000)
SIZE_PATTERN = re.compile(r"\s*0*([1-9]\d*)(?:[xX]0*([1-9]\d*))?\s*")
SIZE = Rule("a size, 64 or WIDTHxHEIGHT", lambda value: SIZE_PATTERN.fullmatch(value) is not None)


def sides(size: str) -> tuple[int, int]:
    """Height and width, in pixels, of a size as people write it; UserError for anything else."""
    SIZE.check("size", size)
    match = SIZE_PATTERN.fullmatch(size)
    assert match, "the rule above"
    return int(match[2] or match[1]), int(match[1])


FIT = Rule(f"one of {', '.join(FITS)}", FITS.__contains__)
EXPORT = Rule("float32 or bfloat16", ("float32", "bfloat16").__contains__)


def setting(default: Any, meaning: str, rule: Rule | None = None, names: str = "") -> Any:  # noqa: ANN401
    """A field: the flag's help text, what its value must be, the flag's names if not its own."""
    return field(default=default, metadata={"help": meaning, "rule": rule, "names": names})


class Settings:
    """What all records of settings share: values that break a field's rule are a ``UserError``."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            rule: Rule | None = one.metadata.get("rule")
            if rule is not None:
                rule.check(one.name, getattr(self, one.name))


def flag(name: str) -> str:
    """The command line's word for a setting."""
    return "--" + name.replace("_", "-")


# Sampling


LONGEST_PROMPT = 60_000  # bytes of JSON: two such fit the 128 KiB that an encoder can be told


def check_prompt(text: str) -> None:
    """Raise ``UserError`` for a prompt that is too long to be kept in a clip's file."""
    if len(json.dumps(text)) > LONGEST_PROMPT:
        raise UserError(f"the prompt {text[:20]!r}... is too long for a file: shorten it")


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Controls of the sampler; the command line takes its defaults from here."""

    steps: int = setting(8, "denoising steps; twice as many evaluations at most", COUNT)
    guidance: float = setting(2.0, "strength of the prompt in the picture; 1: none", STRENGTH)
    rate_temperature: float = setting(
        1.0, "of the laws of length and places: 0 the most probable, over 1 more varied", STRENGTH
    )
    refine: float = setting(
        0.0, "clean all frames once more together, from this flow time on; 0: off", SHARE
    )
    length_scale: float = setting(1.0, "multiplies the number of frames to come", SCALE)
    frames: int | None = setting(None, "number of frames, or auto: the model chooses", COUNT)
    min_length: int | None = setting(None, "least number of frames; default as trained", COUNT)
    max_length: int | None = setting(None, "largest number of frames; default as trained", COUNT)
    cache: bool = setting(
        True, "evaluate finished frames no more after the last insertion: a third less work"
    )

    @property
    def refine_age(self) -> int:
        """Steps after birth to which ``refine`` sends frames back; ``steps``: to none."""
        return math.ceil(self.refine * self.steps) or self.steps

    @property
    def most_steps(self) -> int:
        """Steps that a clip takes at most."""
        return 3 * self.steps - self.refine_age

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_length or 1, self.max_length
        if high is not None and low > high:
            raise UserError(f"--min-length {low} is over --max-length {high}")
        if self.frames is not None and (self.frames < low or (high and self.frames > high)):
            raise UserError(f"--frames {self.frames} lies outside --min-length and --max-length")


@dataclass(frozen=True)
class RetimeConfig(Settings):
    """How a whole clip is brought to another rate or pace."""

    target_fps: float | None = setting(
        None, "of a clip: frames a second of the result; default twice its rate", STATED
    )
    slow: float = setting(1.0, "of a clip: so many times longer, at its rate", SLOWNESS)
    dedupe: bool = setting(
        False, "of a clip: make frames anew that repeat the one before", names="--dedupe"
    )

    @property
    def asked(self) -> bool:
        """Whether any of it was asked for."""
        return self != RetimeConfig()


def defaults(command: str) -> SampleConfig:
    """The controls that a command starts from.

    Between pictures words add little, and what is wanted is the likeliest course rather than one of
    many: without guidance, which halves the work, and in fewer steps, which end nearer to the mean.
    """
    return SampleConfig(steps=4, guidance=1.0) if command == "interp" else SampleConfig()


def check_keyframes(config: SampleConfig, count: int, multi: int) -> None:
    """UserError where ``count`` keyframes and ``multi`` frames per gap contradict the lengths."""
    if count < 2:
        raise UserError("interp needs two keyframes at least")
    if not 0 <= multi <= LARGEST:
        raise UserError(f"--multi must be from 1 to {LARGEST}, not {multi}")
    if multi and (config.frames or config.min_length or config.max_length):
        raise UserError("--multi fixes the length: leave out --frames and its bounds")
    for name, value in (("--frames", config.frames), ("--max-length", config.max_length)):
        if value is not None and value < count:
            raise UserError(f"{name} {value} is under the number of keyframes, {count}")


def check_extension(direction: str, context: int | None) -> None:
    """UserError for an unknown direction, or where nothing of a clip would be seen."""
    if direction not in DIRECTIONS:
        raise UserError(f"--direction must be {', '.join(DIRECTIONS)}, not {direction!r}")
    if context is not None and context < 1:
        raise UserError(f"--context must be at least 1, not {context}")


# Training: a table of settings for each part. No name occurs in two tables, so that flags need none


@dataclass(frozen=True)
class DataSettings(Settings):
    """How clips are read."""

    size: str = setting("64", "pixels of a frame: the side of a square, or WIDTHxHEIGHT", SIZE)
    fps: float = setting(0.0, "frames per second; 0: the folder's most common rate", RATE)
    min_frames: int = setting(1, "clips of fewer frames are left out", POSITIVE)
    max_frames: int = setting(64, "clips of more frames are cut into pieces", POSITIVE)
    fit: str = setting("crop", "how frames get the size: crop, pad or stretch", FIT)
    held_out: float = setting(0.02, "share of the clips kept out of training, to score it", SHARE)
    lexicon: str = setting(
        "", "file of words that people use for those of captions; stays in the model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_frames > self.max_frames:
            raise UserError("--min-frames is over --max-frames")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        return sides(self.size)


@dataclass(frozen=True)
class CodecSettings(Settings):
    """What turns pictures into latents, and how it is trained."""

    codec: str = setting("autoencoder", "autoencoder, pixels, a model file, or a diffusers folder")
    compression: int = setting(4, "pixels per latent cell along each side: 4, 8 or 16", POSITIVE)
    codec_channels: int = setting(6, "channels of a latent", POSITIVE)
    codec_width: int = setting(64, "channels of the autoencoder's first level", POSITIVE)
    codec_steps: int = setting(4000, "training steps of the autoencoder; 0: as it is", NUMBER)
    codec_batch: int = setting(16, "frames per training step of the autoencoder", POSITIVE)
    codec_rate: float = setting(2e-3, "peak learning rate of the autoencoder", POSITIVE)
    adversarial: float = setting(0.0, "weight of a discriminator, for sharpness; 0: off", NUMBER)


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """Shape of the network."""

    hidden: int = setting(256, "width of the network", POSITIVE)
    depth: int = setting(8, "blocks of the network", POSITIVE)
    heads: int = setting(4, "attention heads of the network", POSITIVE)
    patch: int = setting(4, "latent cells along each side of a patch", POSITIVE)
    stem_channels: int = setting(64, "channels of the convolutions over latent cells", POSITIVE)
    stem_depth: int = setting(2, "convolution blocks at each size of cells, down and up", NUMBER)
    between: int = setting(0, "blocks that guess a frame between finished ones; 0: none", NUMBER)
    place: bool = setting(False, "frames are told their place; longer clips are then new")
    window: int = setting(0, "a frame sees frames within this distance only; 0: all", NUMBER)
    compositions: int = setting(
        64, "features of the law that tells how many frames lie in which gap; 0: means", NUMBER
    )
    pooled: bool = setting(False, "gaps are read from pooled patches: a token less for every frame")


@dataclass(frozen=True)
class TextSettings(Settings):
    """What reads prompts."""

    text_width: int = setting(192, "width of the prompt encoder", POSITIVE)
    text_depth: int = setting(3, "blocks of the prompt encoder", POSITIVE)
    text_source: str = setting("", "folder of a frozen T5 or CLIP; without it one is trained")


@dataclass(frozen=True)
class ProcessSettings(Settings):
    """When frames appear and how they become clean."""

    schedule: str = setting("linear", "linear, or power:EXPONENT: under 1 frames appear early")
    shift: float = setting(1.0, "over 1 spends more of the denoising on noise", POSITIVE)
    first: bool = setting(False, "without given frames a clip starts with its first frame")
    planned: bool = setting(False, "length and places are drawn at first, and frames told them")
    late: float = setting(
        0.5, "share of training after the last frame came; less is less work", INSIDE
    )
    fill: float = setting(
        0.0, "share of clips after the last frame came whose finished frames flow again", SHARE
    )
    context_noise: float = setting(0.0, "largest share of noise on finished frames", SHARE)


@dataclass(frozen=True)
class ContextMixture:
    """How often each kind of given frames is shown in training, as weights."""

    none: float = 0.45  # text-to-video
    first: float = 0.09  # image-to-video
    first_last: float = 0.13  # interpolation
    keyframes: float = 0.07  # both ends and one to three frames between
    alternate: float = 0.12  # every second frame (a clip's rate doubled); half the draws do not fit
    first_k: float = 0.12  # extension forward, one frame in eight draws: as many of one as of more
    last_k: float = 0.06  # extension backward
    runs: float = 0.03  # scene completion: two or three runs anywhere

    def __post_init__(self) -> None:
        weights = list(vars(self).values())
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
            raise UserError("context weights must be numbers, not negative and not all zero")


@dataclass(frozen=True)
class ObjectiveSettings(Settings):
    """What is learned."""

    rate_weight: float = setting(0.1, "weight of the loss on frames that a gap lacks", NUMBER)
    count_weight: float = setting(0.1, "weight of the loss on frames that a clip lacks", NUMBER)
    prompt_dropout: float = setting(
        0.1, "share of clips without given frames shown without prompt", SHARE
    )
    given_prompt_dropout: float = setting(
        0.5, "share of clips with given frames shown without prompt", SHARE
    )
    context_dropout: float = setting(0.1, "share of clips shown without given frames", SHARE)
    paraphrase: float = setting(
        0.1, "share of captions' words shown as others of the lexicon", SHARE
    )


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """How the network is trained."""

    init: str = setting(
        "", "a model to go on from: a file, a run's or diffusers folder or a shipped name"
    )
    lora: int = setting(
        0, "rank of an adapter of a diffusers folder, whose own weights stay; 0: they learn", NUMBER
    )
    steps: int = setting(20000, "training steps of the network", POSITIVE)
    max_hours: float = setting(0.0, "hours after which to end, with the rate at 0; 0: none", NUMBER)
    tokens: int = setting(4096, "tokens per step, over all processes", POSITIVE)
    micro_tokens: int = setting(8192, "tokens at once; a larger step is cut into parts", POSITIVE)
    learning_rate: float = setting(1e-3, "peak learning rate", POSITIVE)
    warmup: int = setting(200, "steps over which the learning rate rises", NUMBER)
    decay: float = setting(0.3, "last share of the run over which the rate falls to 0", SHARE)
    weight_decay: float = setting(0.01, "of AdamW; transformer: on matrices only", NUMBER)
    ema: float = setting(0.999, "decay per step of the averaged weights", SHARE)
    clip: float = setting(1.0, "bound on the gradient's norm", POSITIVE)


@dataclass(frozen=True)
class PlainMachineSettings(Settings):
    """Where and how exactly any network is computed."""

    seed: int = setting(0, "seed of weights, data order and noise", SEED)
    dtype: str = setting("auto", "precision of matrix products: auto, float32 or bfloat16")
    device: str = setting("auto", "auto, cpu, cuda or mps")


@dataclass(frozen=True)
class MachineSettings(PlainMachineSettings):
    """Where and how exactly it is computed."""

    checkpointing: bool = setting(False, "recompute blocks in the backward pass: less memory")
    compile: bool = setting(False, "torch.compile of the blocks")


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What a run writes, and how often."""

    log_every: int = setting(20, "steps between lines of the log", POSITIVE)
    eval_every: int = setting(500, "steps between losses of the clips held out", POSITIVE)
    sample_every: int = setting(1000, "steps between contact sheets; one at step 100", POSITIVE)
    save_every: int = setting(500, "steps between states to resume from", POSITIVE)
    export_dtype: str = setting(
        "bfloat16", "weights of the model file: float32 or bfloat16", EXPORT
    )


class Tables:
    """What the settings of a whole run share: records of settings, each a table of its part.

    No name occurs in two of them, so that each can be told by its name alone.
    """

    family = "transformer"  # the network that is trained

    @classmethod
    def from_flat(cls, values: Mapping[str, object], start: Self | None = None) -> Self:
        """From settings by name alone, as flags and presets give them; ``context`` is a table.

        What ``values`` lacks is as in ``start``, or else the default.
        """
        groups = {one.name: group for group, one in leaf_fields(cls)}
        tables: dict[str, Any] = {}
        for name, value in values.items():
            if name in groups:
                tables.setdefault(groups[name], {})[name] = value
            elif name == "context":
                tables[name] = value
            else:
                raise UserError(f"unknown setting {shown(name)}")
        return from_mapping(cls, tables, start=start)

    def changed(self, **values: object) -> Self:
        """These settings but for some, by name alone: ``config.changed(hidden=96)``."""
        return self.from_flat(values, self)

    def flat(self) -> dict[str, Any]:
        """All settings by name alone, and ``context`` where there is one."""
        leaves = leaf_fields(type(self))
        values = {one.name: getattr(getattr(self, group), one.name) for group, one in leaves}
        return {**values, **{name: one for name, one in vars(self).items() if name == "context"}}


@dataclass(frozen=True)
class TrainConfig(Tables):
    """Every setting of a training run: a table for each part of it."""

    data: DataSettings = DataSettings()
    codec: CodecSettings = CodecSettings()
    network: NetworkSettings = NetworkSettings()
    text: TextSettings = TextSettings()
    process: ProcessSettings = ProcessSettings()
    context: ContextMixture = ContextMixture()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    machine: MachineSettings = MachineSettings()
    report: ReportSettings = ReportSettings()


# Training of motion. Names that both kinds of training have are one flag, with two defaults


@dataclass(frozen=True)
class MotionSettings(Settings):
    """What motion is learned from."""

    photos: str = setting("", "folder of pictures that moving layers are cut from, too")
    layers: int = setting(200, "clips of moving layers that are drawn", NUMBER)
    layered_share: float = setting(0.3, "share of these among what is learned from", SHARE)
    max_shots: int = setting(400, "shots kept of all clips, of at most 64 frames each", POSITIVE)
    held_out: float = setting(0.1, "share of the clips kept out of training, to score it", SHARE)


@dataclass(frozen=True)
class MotionOptimizerSettings(Settings):
    """How a network of motion is trained."""

    init: str = setting("", "a model to go on from: a file, a run's folder or a shipped name")
    steps: int = setting(20000, "training steps of the network", POSITIVE)
    max_hours: float = setting(0.0, "hours after which to end, with the rate at 0; 0: none", NUMBER)
    learning_rate: float = setting(3e-4, "peak learning rate", POSITIVE)
    warmup: int = setting(300, "steps over which the learning rate rises", NUMBER)
    weight_decay: float = setting(1e-3, "of AdamW", NUMBER)
    ema: float = setting(0.999, "decay per step of the averaged weights", SHARE)
    clip: float = setting(0.5, "bound on the gradient's norm", POSITIVE)
    law_steps: int = setting(1500, "training steps of the law of how long gaps are", NUMBER)


@dataclass(frozen=True)
class MotionReportSettings(ReportSettings):
    """What a run writes, and how often: as any run, in full precision."""

    export_dtype: str = setting("float32", "weights of the model file: float32 or bfloat16", EXPORT)


@dataclass(frozen=True)
class MotionTrainConfig(Tables):
    """Every setting of a training of motion."""

    family = "motion"

    motion: MotionSettings = MotionSettings()
    optimizer: MotionOptimizerSettings = MotionOptimizerSettings()
    machine: PlainMachineSettings = PlainMachineSettings()
    report: MotionReportSettings = MotionReportSettings()


CONFIGS: dict[str, type[TrainConfig] | type[MotionTrainConfig]] = {
    kind.family: kind for kind in (TrainConfig, MotionTrainConfig)
}


def leaf_fields(kind: type) -> Iterator[tuple[str, Field[Any]]]:
    """The group and the field of every setting that has a flag; the context weights have none."""
    for group, inside in get_type_hints(kind).items():
        for one in fields(inside):
            if "help" in one.metadata:
                yield group, one


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden": 128, "depth": 4, "heads": 2, "stem_channels": 32,
        "text_width": 96, "text_depth": 2, "codec_width": 32, "codec_steps": 1500,
        "steps": 5000, "tokens": 2048,
    },
    "small": {},
    "base": {
        "size": "128", "compression": 8, "codec_channels": 16, "patch": 2, "stem_channels": 128,
        "hidden": 512, "depth": 16, "heads": 8, "text_width": 384, "text_depth": 4,
        "codec_width": 96, "codec_steps": 20000, "steps": 200000,
        "tokens": 32768, "micro_tokens": 32768,
        "learning_rate": 5e-4, "warmup": 1000, "ema": 0.9995,
    },
}  # fmt: skip

# What a resumed run may change: how long it goes on and what it reports, not what it computes.
RESUMABLE = ("max_hours", *(one.name for one in fields(ReportSettings)))

# What a model to go on from has settled.
OF_THE_MODEL = tuple(
    one.name for kind in (CodecSettings, NetworkSettings, TextSettings) for one in fields(kind)
)


# Plain values

T = TypeVar("T")


def from_mapping(kind: type[T], values: object, *, start: T | None = None, inside: str = "") -> T:
    """A record of settings from plain values: of TOML, JSON, a model's card or flags.

    Fields that are records themselves are made from mappings in them. Fields that ``values`` lacks
    keep those of ``start``, or else their defaults. Raises ``UserError`` that names the field, and
    with it the record ``inside`` which it stands, for an unknown name, a missing one without a
    default, and a value of another type; bounds are the record's own affair (``__post_init__``).
    """
    if not isinstance(values, Mapping):
        told = shown(values)
        raise UserError(f"{inside or kind.__name__} must be a table of settings, not {told}")
    hints, path = get_type_hints(kind), inside and inside + "."
    unknown = [str(name) for name in values if name not in hints]
    if unknown:
        raise UserError(f"unknown setting {shown(path + min(unknown))}")

    made = {
        name: _converted(path + name, hints[name], value, getattr(start, name, None))
        for name, value in values.items()
    }
    if start is not None:
        return replace(start, **made)  # type: ignore[type-var]
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name not in made and one.default is one.default_factory is MISSING:
            raise UserError(f"the setting {path + one.name!r} is missing")
    return kind(**made)


def _converted(name: str, kind: Any, value: Any, start: Any = None) -> Any:  # noqa: ANN401
    """A value as the type of its field: records, unions with None, tuples and tables go inside."""
    inside = get_args(kind)
    if NoneType in inside:
        return None if value is None else _converted(name, inside[0], value)
    if isinstance(kind, type) and is_dataclass(kind) and type(value) is not kind:
        return from_mapping(kind, value, start=start, inside=name)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        if len(kinds) == len(value):
            return tuple(_converted(name, *pair) for pair in zip(kinds, value, strict=True))
    if get_origin(kind) is dict and isinstance(value, Mapping):
        return dict(_item(name, inside, pair) for pair in value.items())
    return _plain(name, kind, value)


def _plain(name: str, kind: Any, value: object) -> object:  # noqa: ANN401
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of hundreds of digits
            return float(value)
    if kind is Any or type(value) is kind:
        return value
    told = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UserError(f"{name} must be of type {told}, not {shown(value)}")


def shown(value: object) -> str:
    """A value that is wrong as a message quotes it: of a long one the beginning."""
    return short(repr(value), LONGEST_QUOTE)


def short(text: str, most: int = 200) -> str:
    """The first characters of a text, which may quote a file."""
    return text if len(text) <= most else f"{text[:most]}..."


def _item(name: str, kinds: tuple[type, ...], pair: tuple[object, object]) -> tuple[Any, Any]:
    """A key and a value of a table; JSON writes whole numbers as text."""
    key, value = pair
    if kinds[0] is int and isinstance(key, str) and key.isascii() and key.isdigit():
        key = int(key)
    return _converted(name, kinds[0], key), _converted(name, kinds[1], value)
