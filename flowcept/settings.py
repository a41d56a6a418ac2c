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
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from flowcept.errors import UserError, suggestion

MODEL = "a shipped name, a file, a run's folder, a diffusers folder, or owner/model on a hub"
DIRECTIONS = ("forward", "backward", "both")  # in which a clip is extended
FITS = ("crop", "pad", "stretch")  # how a picture gets a model's size
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FORMATS = ("mp4", "webm", "mov", "gif", "webp", "apng")  # of clips that are files
SLOWEST, FASTEST = 0.001, 1000  # frames a second that files can state
KEYWORD = re.compile(r'`([a-z]\w*)(?:="?([^`"]*)"?)?`')  # in a line for the user
LONGEST_QUOTE = 80  # characters of a wrong value in a message
LARGEST = 1_000_000  # of any setting of the sampler: beyond it numbers overflow, not just patience


def random_seed() -> int:
    """The seed of a clip for which none was given."""
    return secrets.randbelow(2**31)


def seeds(first: int | None, count: int) -> list[int]:
    """Seeds of several clips: the first is given or random, the others are made from it."""
    if first is None:
        first = random_seed()
    return [first, *(mixed(first, "count", number) for number in range(1, count))]


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
    range: str = ""  # in words for the help, where that is not too obvious to be said
    choices: tuple[str, ...] = ()  # all values, where they are few

    def check(self, name: str, value: object) -> None:
        """UserError about a value that breaks the rule; None was not given."""
        if value is not None and not self.holds(value):
            meant = suggestion(str(value), self.choices)
            raise UserError(f"`{name}` must be {self.words}, not {shown(value)}{meant}")


def within(low: float, high: float, shown: str | None = None) -> Rule:
    """A range with both ends; ``shown`` are other words for it in the help."""
    words = f"from {low} to {high}"
    range_ = words.removeprefix("from ") if shown is None else shown
    return Rule(words, lambda value: low <= value <= high, range_)


def one_of(*choices: str) -> Rule:
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Rule(words, choices.__contains__, choices=choices)


POSITIVE = Rule("over 0", lambda value: 0 < value < math.inf)
NUMBER = Rule("0 or more", lambda value: 0 <= value < math.inf)
SHARE = Rule("at least 0 and under 1", lambda value: 0 <= value < 1, "0 to under 1")
INSIDE = Rule("between 0 and 1", lambda value: 0 < value < 1, "between 0 and 1")
COUNT = within(1, LARGEST, "")
BETWEEN = within(0, LARGEST)
STRENGTH = within(0, LARGEST, "0 or more")
SCALE = Rule(f"over 0 and at most {LARGEST}", lambda value: 0 < value <= LARGEST, "over 0")
SEED = Rule("at least 0 and under 2**63", lambda value: 0 <= value < 2**63)
RATE = Rule(f"0 or from {SLOWEST} to {FASTEST}", lambda fps: not fps or SLOWEST <= fps <= FASTEST)
STATED = within(SLOWEST, FASTEST)
SLOWNESS = within(0.01, 1000)
SIZE_PATTERN = re.compile(r"\s*0*([1-9]\d*)(?:[xX]0*([1-9]\d*))?\s*")
SIZE = Rule("a size, 64 or WIDTHxHEIGHT", lambda value: SIZE_PATTERN.fullmatch(value) is not None)

ONE_SIZE = Rule(SIZE.words, lambda value: not value or SIZE.holds(value))
AREA = Rule("an area as WIDTHxHEIGHT, or none", SIZE.holds)


def sides(size: str) -> tuple[int, int]:
    """Height and width, in pixels, of a size as people write it; UserError for anything else."""
    SIZE.check("size", size)
    match = SIZE_PATTERN.fullmatch(size)
    assert match, "the rule above"
    return int(match[2] or match[1]), int(match[1])


DEVICE = one_of(*DEVICES)
DTYPE = one_of(*DTYPES)
FIT = one_of(*FITS)
DIRECTION = one_of(*DIRECTIONS)
FORMAT = one_of(*FORMATS)
EXPORT = one_of("float32", "bfloat16")
OFFLOAD = one_of("none", "encoder", "blocks")

# Panels of the help, in which flags stand together
INPUT, OUTPUT, LENGTH, SAMPLING = "Input", "Output", "Length", "Sampling"
TRAINING, COMPUTER = "Training", "Device"
RETIMING = "Whole clips at another frame rate or speed"


def setting(
    default: Any,  # noqa: ANN401 - of the field's type
    meaning: str,
    rule: Rule | None = None,
    names: str = "",
    panel: str = "",
) -> Any:  # noqa: ANN401
    """A field: the flag's help text, what its value must be, its names and panel if not usual."""
    told = {"help": meaning, "rule": rule, "names": names, "panel": panel}
    return field(default=default, metadata=told)


class Settings:
    """What all records of settings share: values that break a field's rule are a ``UserError``."""

    panel: ClassVar[str] = ""  # of the help, in which the flags stand

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            rule: Rule | None = one.metadata.get("rule")
            if rule is not None:
                rule.check(one.name, getattr(self, one.name))


def flag(name: str) -> str:
    """The command line's word for a setting."""
    return "--" + name.replace("_", "-")


def as_flags(name: str, value: object) -> list[str]:
    """A setting as words of the command line: ``--steps 8``, ``--first`` or ``--no-first``."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), str(value)]


def with_flags(line: str) -> str:
    """A line for the user in the words of the command line: `guidance=2` is --guidance 2."""

    def said(keyword: re.Match[str]) -> str:
        name, value = keyword.groups()
        alone = value is None or value == "True"
        return flag(name) if alone else f"{flag(name)} {value}"

    return KEYWORD.sub(said, line)


# Sampling


LONGEST_PROMPT = 60_000  # bytes of JSON: two such fit the 128 KiB that an encoder can be told


def check_prompt(text: str) -> None:
    """Raise ``UserError`` for a prompt that is too long to be kept in a clip's file."""
    if len(json.dumps(text)) > LONGEST_PROMPT:
        raise UserError(f"the prompt {text[:20]!r}... is too long for a file: shorten it")


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Settings of the sampler, with their defaults."""

    panel = SAMPLING

    steps: int = setting(8, "denoising steps; more steps take longer and show more detail", COUNT)
    guidance: float = setting(2.0, "how closely clips follow the prompt; 1: no guidance", STRENGTH)
    rate_temperature: float = setting(
        1.0,
        "how much the number and places of new frames vary; 0: the likeliest, over 1: more varied",
        STRENGTH,
    )
    refine: float = setting(
        0.0, "when all frames are made, denoise them again from this flow time; 0: off", SHARE
    )
    frames: int | None = setting(
        None, "frames of the clip; auto: the model chooses", COUNT, panel=LENGTH
    )
    min_length: int | None = setting(
        None, "fewest frames; default as in the training clips", COUNT, panel=LENGTH
    )
    max_length: int | None = setting(
        None, "most frames; default as in the training clips", COUNT, panel=LENGTH
    )
    length_scale: float = setting(
        1.0, "multiplies the number of frames that the model would add", SCALE, panel=LENGTH
    )
    cache: bool = setting(True, "compute finished frames only once: a third less work, more memory")

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
            raise UserError(f"`min_length={low}` is over `max_length={high}`")
        if self.frames is not None and (self.frames < low or (high and self.frames > high)):
            told = f"`frames={self.frames}` lies outside `min_length` and `max_length`"
            raise UserError(told)


@dataclass(frozen=True)
class ClipConfig(Settings):
    """Settings of a clip besides those of the sampler; each task takes some."""

    negative_prompt: str = setting("", "what the clip should not show")
    seed: int | None = setting(
        None, "the same seed makes the same clip; default a random one", SEED
    )
    count: int = setting(1, "clips for each prompt, each with its own seed", within(1, 10_000))
    fps: float | None = setting(
        None, "frames per second; default the model's, or those of the given clip", STATED
    )
    scale: int | None = setting(
        None,
        "enlarge frames this many times; default to a short side of at least 256 pixels",
        within(1, 64),
    )
    loop: bool = setting(
        False, "add frames that lead from the last one back to the first; lengths include them"
    )
    literal: bool = setting(False, "keep your words: replace none by words that the model knows")
    fit: str = setting("crop", "how a picture gets the model's size: crop, pad or stretch", FIT)
    exact: bool | None = setting(
        None, "keep the exact pixels of given frames; default where sizes match"
    )
    anyway: bool = setting(False, "continue even if the model cannot show the given pictures well")
    multi: int = setting(
        0,
        "new frames in each gap between keyframes; 0: one for a clip, else the model chooses",
        BETWEEN,
    )
    direction: str = setting(
        "forward",
        "where new frames go: forward (after the clip), backward (before it) or both",
        DIRECTION,
    )
    context: int | None = setting(
        None, "frames of the clip that the model sees; default at most 8", COUNT
    )


@dataclass(frozen=True)
class RetimeConfig(Settings):
    """How a whole clip gets another frame rate or speed."""

    panel = RETIMING

    target_fps: float | None = setting(
        None, "frames per second of the result; default twice the clip's", STATED
    )
    slow: float = setting(1.0, "play this many times slower, at the clip's frame rate", SLOWNESS)
    dedupe: bool = setting(
        False, "replace frames that only repeat the one before", names="--dedupe"
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
        raise UserError("interp needs two keyframes at least: give two pictures, or a clip")
    BETWEEN.check("multi", multi)
    if multi and (config.frames or config.min_length or config.max_length):
        raise UserError(
            "`multi` sets the length: leave out `frames`, `min_length` and `max_length`"
        )
    for name, value in (("frames", config.frames), ("max_length", config.max_length)):
        if value is not None and value < count:
            raise UserError(f"`{name}={value}` is under the number of keyframes, {count}")


def check_extension(direction: str, context: int | None) -> None:
    """UserError for an unknown direction, or where nothing of a clip would be seen."""
    ClipConfig(direction=direction, context=context)


# Training: a table of settings for each part. No name occurs in two tables, so that flags need none


@dataclass(frozen=True)
class DataSettings(Settings):
    """How clips are read."""

    panel = INPUT

    size: str = setting("64", "pixels of a frame: 64 for a square, or WIDTHxHEIGHT", SIZE)
    fps: float = setting(
        0.0, "frames per second of the clips; 0: the folder's most common rate", RATE
    )
    min_frames: int = setting(1, "clips of fewer frames are left out", POSITIVE)
    max_frames: int = setting(64, "clips of more frames are cut into pieces", POSITIVE)
    fit: str = setting("crop", "how frames get the size", FIT)
    held_out: float = setting(
        0.02,
        "share of the clips kept out of training, to score the model on",
        SHARE,
        panel=TRAINING,
    )
    lexicon: str = setting(
        "", "file of words that people use in place of the captions' words; kept in the model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_frames > self.max_frames:
            raise UserError("`min_frames` is over `max_frames`")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        return sides(self.size)


@dataclass(frozen=True)
class EncodeSettings(Settings):
    """How clips become shards."""

    panel = TRAINING

    codec: str = setting(
        "", "what makes the latents: a diffusers folder, a model file or a shipped name, theatre"
    )
    text: str = setting(
        "", "folder whose prompt encoder encodes the captions; without it they stay text"
    )
    buckets: str = setting(
        "", "an area as WIDTHxHEIGHT: of several sizes of it each clip gets the one that crops it "
        "least; none: one size for all; default the area of the diffusers folder's own size"
    )  # fmt: skip
    size: str = setting("", "one size for all frames, WIDTHxHEIGHT; default the model's", ONE_SIZE)
    fps: float = setting(0.0, "frames per second; 0: the folder's most common rate", RATE)
    min_frames: int = setting(1, "clips of fewer frames are left out", POSITIVE)
    max_frames: int = setting(
        0, "longer clips are cut into pieces; 0: as many frames as the model usually makes", NUMBER
    )
    fit: str = setting("crop", "how frames get their size", FIT)
    shard_clips: int = setting(
        32,
        "clips in a shard; with fewer, a stop loses less and more processes can share the work",
        COUNT,
    )
    device: str = setting("auto", "where to compute", DEVICE, panel=COMPUTER)
    dtype: str = setting(
        "auto", "precision of matrix products", one_of("auto", *EXPORT.choices), panel=COMPUTER
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames and self.min_frames > self.max_frames:
            raise UserError("`min_frames` is over `max_frames`")
        if self.buckets not in ("", "none"):
            AREA.check("buckets", self.buckets)
            if self.size:
                raise UserError("`size` is one size for all clips: leave out `buckets`")


@dataclass(frozen=True)
class CodecSettings(Settings):
    """What turns pictures into latents, and how it is trained."""

    panel = "Codec"

    codec: str = setting("autoencoder", f"autoencoder, pixels, or that of a model: {MODEL}")
    compression: int = setting(4, "pixels per latent cell along each side: 4, 8 or 16", POSITIVE)
    codec_channels: int = setting(6, "channels of a latent", POSITIVE)
    codec_width: int = setting(64, "channels of the autoencoder's first level", POSITIVE)
    codec_steps: int = setting(4000, "training steps of the autoencoder; 0: no training", NUMBER)
    codec_batch: int = setting(16, "frames per training step of the autoencoder", POSITIVE)
    codec_rate: float = setting(2e-3, "peak learning rate of the autoencoder", POSITIVE)
    adversarial: float = setting(0.0, "weight of a discriminator, for sharpness; 0: off", NUMBER)


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """Shape of the network."""

    panel = "Network"

    hidden: int = setting(256, "width of the network, in channels", POSITIVE)
    depth: int = setting(8, "blocks of the network", POSITIVE)
    heads: int = setting(4, "attention heads of the network", POSITIVE)
    patch: int = setting(4, "latent cells along each side of a patch", POSITIVE)
    stem_channels: int = setting(64, "channels of the convolutions over latent cells", POSITIVE)
    stem_depth: int = setting(2, "convolution blocks at each size of cells, down and up", NUMBER)
    between: int = setting(
        0, "blocks that guess a frame from its finished neighbours; 0: none", NUMBER
    )
    place: bool = setting(
        False, "give frames their place in the clip; worse on clips longer than the training clips"
    )
    window: int = setting(0, "how many frames on each side a frame sees; 0: all", NUMBER)
    compositions: int = setting(
        64, "features that predict how many frames go into which gap; 0: only their means", NUMBER
    )
    pooled: bool = setting(False, "predict gaps from the patches' mean: one token less per frame")


@dataclass(frozen=True)
class TextSettings(Settings):
    """What reads prompts."""

    panel = "Network"

    text_width: int = setting(192, "width of the prompt encoder, in channels", POSITIVE)
    text_depth: int = setting(3, "blocks of the prompt encoder", POSITIVE)
    text_source: str = setting(
        "", "folder of a frozen T5 or CLIP encoder; without it a new one is trained"
    )


@dataclass(frozen=True)
class ProcessSettings(Settings):
    """When frames appear and how they become clean."""

    panel = "Process"

    schedule: str = setting(
        "linear", "when frames appear: linear, or power:EXPONENT; an exponent under 1 is earlier"
    )
    shift: float = setting(1.0, "over 1: more of the steps at high noise", POSITIVE)
    first: bool = setting(True, "a clip without given frames starts with its first frame")
    planned: bool = setting(
        False, "choose the length and all places at the start; frames then know their place"
    )
    late: float = setting(
        0.5, "share of training on complete clips; a smaller share is less work", INSIDE
    )
    fill: float = setting(
        0.75, "share of complete clips whose finished frames are made noisy again", SHARE
    )


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

    panel = TRAINING

    rate_weight: float = setting(0.1, "weight of the loss on how many frames a gap lacks", NUMBER)
    count_weight: float = setting(0.1, "weight of the loss on how many frames a clip lacks", NUMBER)
    prompt_dropout: float = setting(
        0.1, "share of clips without given frames that are shown without prompt", SHARE
    )
    given_prompt_dropout: float = setting(
        0.5, "share of clips with given frames that are shown without prompt", SHARE
    )
    context_dropout: float = setting(0.1, "share of clips shown without given frames", SHARE)
    paraphrase: float = setting(
        0.1, "share of the captions' words replaced by other words of the lexicon", SHARE
    )


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """How the network is trained."""

    panel = TRAINING

    init: str = setting("", f"a model to start from: {MODEL}")
    lora: int = setting(
        0, "rank of an adapter for a diffusers folder; 0: train the folder's own weights", NUMBER
    )
    freeze: bool = setting(
        False,
        "do not train a diffusers folder's own weights; without LoRA only lengths are learned",
    )
    steps: int = setting(20000, "training steps of the network", POSITIVE)
    max_hours: float = setting(
        0.0, "hours of the whole run, reading and codec included; 0: no limit", NUMBER
    )
    tokens: int = setting(4096, "tokens per step, of all processes together", POSITIVE)
    micro_tokens: int = setting(
        8192, "tokens at once; a larger step is computed in parts, in less memory", POSITIVE
    )
    learning_rate: float = setting(1e-3, "peak learning rate", POSITIVE)
    warmup: int = setting(200, "steps over which the learning rate rises", NUMBER)
    decay: float = setting(0.3, "share of the run, at its end, in which the rate falls to 0", SHARE)
    weight_decay: float = setting(
        0.01, "weight decay of AdamW; transformer: of matrices only", NUMBER
    )
    ema: float = setting(0.999, "decay per step of the averaged weights", SHARE)
    clip: float = setting(1.0, "largest norm of the gradient", POSITIVE)
    muon: bool = setting(
        False,
        "Muon for hidden matrices that are not pretrained, AdamW for the rest: fewer steps, which "
        "take about a seventh longer; pays where steps hold many clips",
    )
    stills: float = setting(
        0.0,
        "share of the run, at its start, that sees one frame of each clip alone, so many more "
        "clips: what things look like is learned sooner",
        SHARE,
    )


@dataclass(frozen=True)
class PlainMachineSettings(Settings):
    """Where and how exactly any network is computed."""

    panel = COMPUTER

    seed: int = setting(
        0, "of weights, order and noise; the same seed trains the same model", SEED,
        panel=TRAINING,
    )  # fmt: skip
    dtype: str = setting("auto", "precision of matrix products", one_of("auto", *EXPORT.choices))
    device: str = setting("auto", "where to compute; auto: a GPU if there is one", DEVICE)


@dataclass(frozen=True)
class MachineSettings(PlainMachineSettings):
    """Where and how exactly it is computed."""

    checkpointing: bool = setting(
        False,
        "recompute blocks in the backward pass: less memory, one more forward pass per step",
        panel=TRAINING,
    )
    compile: bool = setting(False, "use torch.compile: a slow start, then faster", panel=TRAINING)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What a run writes, and how often."""

    panel = OUTPUT

    sample_every: int = setting(
        1000, "steps between contact sheets; the first at step 100", POSITIVE
    )
    save_every: int = setting(500, "steps between saved states to resume from", POSITIVE)
    eval_every: int = setting(500, "steps between scores on held-out clips", POSITIVE)
    log_every: int = setting(20, "steps between lines of the log", POSITIVE)
    export_dtype: str = setting("bfloat16", "how the model file stores weights", EXPORT)


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
                raise UserError(f"unknown setting {shown(name)}{suggestion(name, groups)}")
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

    panel = TRAINING

    photos: str = setting("", "folder of pictures from which moving layers are cut")
    layers: int = setting(200, "clips of moving layers to draw", NUMBER)
    layered_share: float = setting(0.3, "share of these clips in training", SHARE)
    max_shots: int = setting(400, "most shots to keep, each of at most 64 frames", POSITIVE)
    held_out: float = setting(
        0.1, "share of the clips kept out of training, to score the model on", SHARE
    )


@dataclass(frozen=True)
class MotionOptimizerSettings(Settings):
    """How a network of motion is trained."""

    panel = TRAINING

    init: str = setting("", "a model to start from: a shipped name, a file, or a run's folder")
    steps: int = setting(20000, "training steps of the network", POSITIVE)
    max_hours: float = setting(
        0.0, "hours of the whole run, reading and codec included; 0: no limit", NUMBER
    )
    learning_rate: float = setting(3e-4, "peak learning rate", POSITIVE)
    warmup: int = setting(300, "steps over which the learning rate rises", NUMBER)
    weight_decay: float = setting(1e-3, "weight decay of AdamW", NUMBER)
    ema: float = setting(0.999, "decay per step of the averaged weights", SHARE)
    clip: float = setting(0.5, "largest norm of the gradient", POSITIVE)
    law_steps: int = setting(
        1500, "training steps of the part that predicts how long gaps are", NUMBER
    )


@dataclass(frozen=True)
class MotionReportSettings(ReportSettings):
    """What a run writes, and how often: as any run, in full precision."""

    export_dtype: str = setting("float32", "how the model file stores weights", EXPORT)


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
        "codec_width": 96, "codec_steps": 20000, "codec_rate": 5e-4, "steps": 200000,
        "tokens": 32768, "micro_tokens": 32768,
        "learning_rate": 5e-4, "warmup": 1000, "ema": 0.9995,
    },
}  # fmt: skip

# What a resumed run may change: how long it goes on and what it reports, not what it computes.
RESUMABLE = ("max_hours", *(one.name for one in fields(ReportSettings)))

# What a folder of shards has settled.
OF_THE_SHARDS = ("size", "fps", "min_frames", "max_frames", "fit")

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
        meant = suggestion(min(unknown), hints)
        raise UserError(f"unknown setting {shown(path + min(unknown))}{meant}")

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
    """A wrong value as a message quotes it: the beginning of a long one."""
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
