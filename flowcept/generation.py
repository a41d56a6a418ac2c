"""The tasks as given frames: what each command hands to the one sampler, and what it makes of it.

gen starts from nothing; i2v from one frame with the gap after it open; interp from keyframes with
the gaps between them open; extend from the last (first) frames of a clip with its end (start) open.

Shape suffixes: F frames, H W 3 a picture, C H W channels and size of a latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from flowcept import __version__, memory
from flowcept import model_file as checkpoint
from flowcept.codecs import to_frames, to_images
from flowcept.data import video
from flowcept.data.video import Sound
from flowcept.device import autocast, pick_device, pick_dtype
from flowcept.errors import UserError
from flowcept.model_file import WORDS, Card, Weights
from flowcept.networks.text import words_of
from flowcept.process.sampler import Given, Step, clip_generator, inverse_cdf
from flowcept.request import from_nothing, request
from flowcept.settings import SampleConfig, check_keyframes, defaults, random_seed

Frames = NDArray[np.uint8]  # [F, H, W, 3]
Growth = list[list[tuple[int, float, bool]]]  # per step: (name, flow time, new) of visible frames
Watch = Callable[[Step], None]

SHORT_SIDE = 256  # pixels that the short side of an output reaches by whole-number enlargement
CONTEXT = 4  # frames of the user's clip that extend shows to the model
LONGEST_PROMPT = 60_000  # bytes of JSON: two such fit the 128 KiB that an encoder can be told
COMMON_WORDS = frozenset(
    ["a", "an", "the", "in", "on", "at", "of", "and", "with", "to", "is", "are", "by", "from"]
)


@dataclass(frozen=True)
class Clip:
    """One made clip and how it was made."""

    frames_FHW3: Frames
    fps: float
    seed: int
    settings: dict[str, Any]  # travels in the file's metadata
    notes: list[str] = field(default_factory=list)  # what the user should know
    growth: Growth = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # names of the final frames, left to right
    sound: Sound | None = None

    def __len__(self) -> int:
        return len(self.frames_FHW3)

    def save(self, path: str | Path, *, metadata: bool = True) -> str:
        """Write the clip; the suffix decides the format. What had to be changed, or ""."""
        video.check_output(Path(path))
        stored = self.settings if metadata else None
        return video.write_video(
            Path(path), self.frames_FHW3, self.fps, metadata=stored, sound=self.sound
        )


def load(
    model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,  # noqa: A002 - the word of the flag
) -> Studio:
    """Open a model file, or a shipped model by name, on a device; ``compile`` its blocks."""
    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    path = checkpoint.find(model)
    weights = checkpoint.load(path)
    if compile:
        weights.network.compile_blocks()
    return Studio(weights, path.stem, where, precision)


class Studio:
    """A model ready to make clips. Every method is one command; keywords are its flags.

    The keywords that all share are those of ``Words``. ``seed`` None is a random one, told in the
    result. ``watch`` is called after every step of the sampler.
    """

    def __init__(
        self, weights: Weights, name: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weights, self.name, self.device, self.dtype = weights, name, device, dtype
        for module in (weights.network, weights.text, weights.codec):
            module.to(device)

    @property
    def card(self) -> Card:
        return self.weights.card

    def generate(self, prompt: str, **words: Unpack[Words]) -> Clip:
        """A clip of a prompt."""
        ask = _ask(prompt, words)
        made = self._make(self._given(None, (True,)), ask)
        return self._finish(made, self._record("gen", ask, made), ask)

    def i2v(
        self,
        image_HW3: Frames,
        prompt: str = "",
        *,
        fit: str = "crop",
        exact: bool | None = None,
        **words: Unpack[Words],
    ) -> Clip:
        """A clip that begins with a picture. ``exact`` puts the user's own pixels back."""
        ask = _ask(prompt, words)
        picture_1HW3 = image_HW3[None]
        made = self._make(self._given(self._fitted(picture_1HW3, fit), (False, True)), ask)
        clip = self._finish(made, self._record("i2v", ask, made), ask)
        return self._keyed(clip, picture_1HW3, fit, exact, _places(made, 1))

    def interp(
        self,
        keyframes_FHW3: Frames,
        prompt: str = "",
        *,
        multi: int = 0,
        fit: str = "crop",
        exact: bool | None = None,
        sound: Path | None = None,
        **words: Unpack[Words],
    ) -> Clip:
        """Frames between keyframes, in order; ``multi`` puts exactly so many into every gap.

        ``sound`` is a file whose sound is kept, which fits where playing takes as long as before.
        """
        ask, count = _ask(prompt, words, defaults("interp")), len(keyframes_FHW3)
        if count < 2:
            raise UserError("interp needs two keyframes at least")
        check_keyframes(ask.config, count, multi)
        fitted = self._fitted(keyframes_FHW3, fit)
        if multi:
            made = self._multiplied(fitted, multi, ask)
            places = list(range(0, len(made), multi + 1))
        else:
            notes = self._room(count, ask.config)
            made = self._make(self._given(fitted, _between(count)), ask)
            made = replace(made, notes=[*notes, *made.notes])
            places = _places(made, count)
        record = self._record("interp", ask, made) | {"keyframes": count, "multi": multi}
        clip = self._finish(made, record, ask)
        clip = replace(clip, sound=None if sound is None else Sound(sound, 0.0))
        return self._keyed(clip, keyframes_FHW3, fit, exact, places)

    def _room(self, count: int, config: SampleConfig) -> list[str]:
        """Notes on what a length that the model chooses leaves between so many keyframes."""
        asked = config.frames or config.min_length or config.max_length
        longest = self.card.max_length
        if asked or 2 * count - 1 <= longest:
            return []
        told = f"{count} keyframes, and the longest trained clip has {longest} frames"
        if count >= longest:
            raise UserError(f"{told}: say --multi K for K in every gap, --frames or --max-length")
        return [f"{told}: not every gap gets one; --multi K puts K into every gap"]

    def _multiplied(self, fitted_FHW3: Frames, multi: int, ask: Ask) -> Clip:
        """``multi`` frames between all neighbours, in windows as long as the model's clips."""
        window = max((self.card.max_length - 1) // (multi + 1), 1) + 1  # keyframes at once
        pieces: list[Clip] = []
        for start in range(0, len(fitted_FHW3) - 1, window - 1):
            part = fitted_FHW3[start : start + window]
            gaps = _between(len(part))
            given = replace(self._given(part, gaps), missing=tuple(multi * gap for gap in gaps))
            pieces.append(self._make(given, replace(ask, seed=ask.seed + start)))
        frames = [piece.frames_FHW3[1 if number else 0 :] for number, piece in enumerate(pieces)]
        return replace(pieces[0], frames_FHW3=np.concatenate(frames))

    def extend(
        self,
        clip_FHW3: Frames,
        prompt: str = "",
        *,
        clip_fps: float,
        direction: str = "forward",
        context: int = CONTEXT,
        sound: Path | None = None,
        **words: Unpack[Words],
    ) -> Clip:
        """More frames after, before or around a clip, whose own frames stay as they are.

        Lengths (``frames``, ``min_length``, ``max_length``) count new frames in each direction.
        The new frames are brought to the clip's size. ``sound`` is a file whose sound is kept.
        """
        if direction not in ("forward", "backward", "both"):
            raise UserError("--direction must be forward, backward or both")
        if context < 1:
            raise UserError(f"--context must be at least 1, not {context}")
        ask = _ask(prompt, words)
        context = min(context, len(clip_FHW3), max(self.card.max_length - 1, 1))
        parts = []
        for backward in (True, False):
            if direction == ("forward" if backward else "backward"):
                continue
            known = clip_FHW3[:context] if backward else clip_FHW3[-context:]
            seed = ask.seed if backward else ask.seed + 1
            parts.append((backward, self._grow(known, backward, replace(ask, seed=seed))))
        size = (clip_FHW3.shape[1], clip_FHW3.shape[2])
        new = {back: video.fit(made.frames_FHW3, size, "stretch")[0] for back, made in parts}
        before, after = ([new[back]] if back in new else [] for back in (True, False))
        made = replace(
            parts[0][1], frames_FHW3=np.concatenate([*before, clip_FHW3, *after]), seed=ask.seed
        )
        notes = list(made.notes)
        if abs(clip_fps / self.card.fps - 1) > 0.25:
            notes.append(
                f"the clip has {clip_fps:g} frames per second, the model learned from "
                f"{self.card.fps:g}: new motion may look too slow or too fast"
            )
        rate = ask.fps or clip_fps
        placed = None
        if sound is not None and rate == clip_fps:
            placed = Sound(sound, sum(len(part) for part in before) / rate)
        elif sound is not None:
            notes.append("sound is left out, since --fps changes the playback rate")
        record = self._record("extend", ask, made)
        record |= {"direction": direction, "context": context, "fps": rate}
        return replace(made, fps=rate, settings=record, notes=notes, sound=placed)

    def _grow(self, known_FHW3: Frames, backward: bool, ask: Ask) -> Clip:
        """The new frames alone; where more are asked for than a clip can hold, in windows."""
        fitted, config = self._fitted(known_FHW3, "stretch"), ask.config
        count, wanted = len(fitted), config.frames
        room = max(self.card.max_length - count, 1)
        gaps = (True, *[False] * count) if backward else (*[False] * count, True)
        new: Frames = fitted[:0]
        while True:
            if wanted is None:  # bounds count new frames, the sampler's count all
                bounds = {
                    name: value + count
                    for name in ("min_length", "max_length")
                    if (value := getattr(config, name)) is not None
                }
            else:
                bounds = {"frames": count + min(wanted - len(new), room)}
            free = replace(config, frames=None, min_length=None, max_length=None)
            made = self._make(
                self._given(fitted, gaps), replace(ask, config=replace(free, **bounds))
            )
            frames_FHW3 = made.frames_FHW3
            added = frames_FHW3[: len(made) - count] if backward else frames_FHW3[count:]
            new = np.concatenate([added, new] if backward else [new, added])
            if wanted is None or len(new) >= wanted:
                return replace(made, frames_FHW3=new)
            fitted = frames_FHW3[:count] if backward else frames_FHW3[-count:]
            ask = replace(ask, seed=ask.seed + 2)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that no training prompt had, or none of the ``WORDS`` most frequent."""
        known = self.card.words
        words = dict.fromkeys(words_of(prompt))
        return [w for w in words if w not in known and w not in COMMON_WORDS] if known else []

    def estimate(self, config: SampleConfig, scale: int | None = None, least: int = 1) -> float:
        """Bytes that the program takes at most while it makes a clip with these controls.

        ``least`` frames are sampled together whatever the controls say: given ones, for example.
        """
        weights = memory.parameter_bytes(*self.weights.modules().values())
        frames = max(self._longest(config), least)
        return memory.PROGRAM + weights + self._work(frames, config, scale)

    def _longest(self, config: SampleConfig) -> int:
        longest = config.frames or config.max_length or self.card.max_length
        return max(longest, config.min_length or 0)

    def _work(self, frames: int, config: SampleConfig, scale: int | None) -> float:
        """Bytes beside the program and its weights."""
        sides = 1 if config.guidance == config.rate_guidance == 1 else 2
        activations = memory.sampling_bytes(self.card.network, sides * frames)
        if config.cache and self.card.rests:
            numbers = memory.cached_numbers(self.card.network, sides * frames)
            activations += numbers * self.dtype.itemsize
        height, width = self.card.size
        pixels = frames * height * width * 3 * (2 + 2 * self._factor(scale) ** 2)
        return max(activations, pixels)  # one after the other

    def _factor(self, scale: int | None) -> int:
        """Whole-number enlargement of the made frames."""
        return scale or -(-SHORT_SIDE // min(self.card.size))

    def _given(self, frames_FHW3: Frames | None, gaps: Sequence[bool]) -> Given:
        """Given frames of the model's size as latents."""
        if frames_FHW3 is None:
            return from_nothing(self.card, self.device)
        with autocast(self.device, self.dtype):
            latent_FCHW = self.weights.codec.encode(to_images(frames_FHW3).to(self.device))
        return Given(latent_FCHW.float(), tuple(gaps))

    def _fitted(self, frames_FHW3: Frames, fit: str) -> Frames:
        return video.fit(frames_FHW3, self.card.size, fit)[0]

    def _make(self, given: Given, ask: Ask) -> Clip:
        """Sample one clip at the model's own size."""
        generator = clip_generator(ask.seed)
        known = ask.config.frames
        if given.missing is not None:
            known = len(given.latent_FCHW) + sum(given.missing)
        notes = self._notes(ask, known)
        config = self._with_length(given, ask.config, generator)
        need = max(self._longest(config), len(given.latent_FCHW), known or 0)
        self._check_memory(need, ask)
        growth: Growth = []
        done = order = None
        try:
            with autocast(self.device, self.dtype), torch.inference_mode():
                asked = ([given], [ask.prompt], [ask.negative_prompt], [generator])
                for step in request(self.weights, *asked, config):
                    growth.append(_visible(step, config.steps))
                    if ask.watch:
                        ask.watch(step)
                    if step.done:
                        done, order = step.done[0], list(step.ids[0])
                assert done is not None
                assert order is not None
                parts = self.weights.codec.decode_stream(done)
                frames_FHW3 = np.concatenate([to_frames(part) for part in parts])
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            raise self._out_of_memory(need, ask) from error
        return Clip(frames_FHW3, self.card.fps, ask.seed, {}, notes, growth, order)

    def _with_length(
        self, given: Given, config: SampleConfig, generator: torch.Generator
    ) -> SampleConfig:
        """A length from the training clips for the processes that choose none themselves."""
        if self.card.process.kind == "flowception" or config.frames or given.missing is not None:
            return config
        low = max(config.min_length or 1, len(given.latent_FCHW) + any(given.open_gaps))
        high = config.max_length or self.card.max_length
        law = {n: count for n, count in self.card.lengths.items() if low <= n <= high}
        if not law:
            return replace(config, frames=min(low, config.max_length or low))
        weights = torch.tensor([float(count) for count in law.values()])
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        return replace(config, frames=list(law)[inverse_cdf(weights, uniform)])

    def _notes(self, ask: Ask, known: int | None) -> list[str]:
        """What the user should know of a clip that is asked for, of a ``known`` length or none."""
        notes, config = [], ask.config
        unknown = self.unknown_words(ask.prompt)
        if unknown:
            words = [word for word in self.card.words if word not in COMMON_WORDS]
            never = "never saw" if len(self.card.words) < WORDS else "hardly saw, if ever,"
            notes.append(
                f"the model {never} {', '.join(map(repr, unknown))}; it knows for example: "
                + ", ".join(words[:40])
            )
        if ask.negative_prompt and config.guidance == config.rate_guidance == 1:
            notes.append("the negative prompt has no effect without guidance: add --guidance 2")
        if known and known > 2 * self.card.max_length:
            notes.append(
                f"{known} frames are far more than the longest trained clip, {self.card.max_length}"
            )
        chooses = self.card.process.kind == "flowception"
        why = "the length is given" if known else "this model does not choose its length"
        idle = ["length_scale"] if known or not chooses else []
        idle += [] if chooses else ["rate_temperature", "rate_guidance", "order"]
        for name in idle:
            if getattr(config, name) != getattr(SampleConfig, name):
                notes.append(f"--{name.replace('_', '-')} has no effect: {why}")
        return notes

    def _check_memory(self, frames: int, ask: Ask) -> None:
        free = _free_memory(self.device)
        if free is not None and self._work(frames, ask.config, ask.scale) > free:
            raise self._out_of_memory(frames, ask)

    def _out_of_memory(self, frames: int, ask: Ask) -> UserError:
        need = self._work(frames, ask.config, ask.scale) / 2**30
        return UserError(
            f"not enough memory: {frames} frames of {self.card.size[1]}x{self.card.size[0]} take "
            f"about {need:.1f} GiB; lower --frames or --max-length, take --guidance 1, or use a "
            "model of smaller frames"
        )

    def _record(self, command: str, ask: Ask, made: Clip) -> dict[str, Any]:
        """The settings that travel in the file."""
        config = ask.config
        chosen = {k: v for k, v in asdict(config).items() if v is not None and k != "frames"}
        return {
            "flowcept": __version__,
            "command": command,
            "model": self.name,
            "model_steps": self.card.steps,
            "prompt": ask.prompt,
            "negative_prompt": ask.negative_prompt,
            "seed": ask.seed,
            "frames": len(made),
            "length": "exact" if config.frames else "auto",
            **chosen,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _finish(self, made: Clip, record: dict[str, Any], ask: Ask) -> Clip:
        """Enlarged, at the playback rate, with its record."""
        factor = self._factor(ask.scale)
        rate = ask.fps or made.fps
        record = record | {"fps": rate, "scale": factor}
        frames_FHW3 = video.scale(made.frames_FHW3, factor)
        return replace(made, frames_FHW3=frames_FHW3, fps=rate, settings=record)

    def _keyed(
        self,
        clip: Clip,
        given_FHW3: Frames,
        fit: str,
        exact: bool | None,
        places: Sequence[int],
    ) -> Clip:
        """The user's own pixels in the places of the given frames, if asked for or if they fit."""
        size = (clip.frames_FHW3.shape[1], clip.frames_FHW3.shape[2])
        matches = given_FHW3.shape[1:3] in (size, self.card.size)
        own, said = video.fit(given_FHW3, given_FHW3.shape[1:3] if matches else size, fit)
        notes = [*clip.notes, *([said] if said else [])]
        if exact or (exact is None and matches):
            pixels = clip.frames_FHW3.copy()
            if own.shape[1:3] != size:
                own = video.scale(own, size[0] // own.shape[1])
            pixels[list(places)] = own
            clip = replace(clip, frames_FHW3=pixels)
        return replace(clip, notes=notes)


class Words(TypedDict, total=False):
    """The keywords that all tasks share; the controls are the fields of ``SampleConfig``."""

    negative_prompt: str
    seed: int | None
    fps: float | None
    scale: int | None
    watch: Watch | None
    steps: int
    solver: str
    guidance: float
    rate_guidance: float
    rate_temperature: float
    length_scale: float
    frames: int | None
    min_length: int | None
    max_length: int | None
    insertion: str
    order: str
    cache: bool


@dataclass(frozen=True)
class Ask:
    """What is asked for, whatever the task."""

    prompt: str
    config: SampleConfig
    seed: int
    negative_prompt: str = ""
    fps: float | None = None  # of playback; None: the model's
    scale: int | None = None  # whole-number enlargement; None: to SHORT_SIDE
    watch: Watch | None = None  # called after every step of the sampler


def _ask(prompt: str, words: Words, start: SampleConfig | None = None) -> Ask:
    """The shared keywords of a call, checked; a random seed without one, the rest as ``start``."""
    for text in (prompt, words.get("negative_prompt", "")):
        if len(json.dumps(text)) > LONGEST_PROMPT:
            raise UserError(f"the prompt {text[:20]!r}... is too long for a file: shorten it")
    values: dict[str, Any] = dict(words)
    known = {f.name for f in fields(SampleConfig)}
    controls = {name: values.pop(name) for name in list(values) if name in known}
    config = replace(start or SampleConfig(), **controls)
    seed = _seed(values.pop("seed", None))
    unknown = set(values) - {f.name for f in fields(Ask)}
    if unknown:
        raise TypeError(f"unknown keyword {min(unknown)!r}")
    return Ask(prompt, config, seed, **values)


def _between(count: int) -> tuple[bool, ...]:
    """Gaps of ``count`` keyframes: open between them, closed outside."""
    return (False, *[True] * (count - 1), False)


def _places(made: Clip, count: int) -> list[int]:
    """Where the given frames ended up; they are named first, in order."""
    return [made.order.index(name) for name in range(count)]


def _seed(seed: int | None) -> int:
    if seed is None:
        return random_seed()
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be at least 0 and under 2**63, not {seed}")
    return seed


def _visible(step: Step, num_steps: int) -> list[tuple[int, float, bool]]:
    new = set(step.new[0])
    times = (step.age_F / num_steps).tolist()  # known on the CPU: asks no device
    return [(name, time, name in new) for name, time in zip(step.ids[0], times, strict=True)]


def _free_memory(device: torch.device) -> float | None:
    """Bytes free on a device, where the system says so."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        return None
    return None
