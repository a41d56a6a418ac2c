"""The tasks as given frames: what each command hands to the one sampler, and what it makes of it.

gen starts from nothing; i2v from one frame with the gap after it open; interp from keyframes with
the gaps between them open; extend from the last (first) frames of a clip with its end (start) open.

Users count pictures, the sampler counts latents; with an image codec these are the same. A latent
of a video codec stands for several pictures, so a keyframe in the middle of a clip has a latent of
its own *beside* those of the clip: right after the group of pictures that ends with it. The sampler
sees it; it is dropped before decoding, and the user's own picture is put back at its place.

Shape suffixes: F frames, H W 3 a picture, C H W channels and size of a latent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcept import __version__, settings
from flowcept.codecs import Codec, to_frames, to_images
from flowcept.data import video
from flowcept.data.video import Frames, Sound
from flowcept.device import PROGRAM, autocast, free_memory
from flowcept.errors import UserError
from flowcept.model_file import DEFAULT, WORDS, Card, Weights
from flowcept.networks.text import words_of
from flowcept.process.guidance import guided
from flowcept.process.sampler import Step, clip_generator, sample_steps
from flowcept.process.state import Given, changed
from flowcept.settings import SampleConfig, mixed

Growth = list[list[tuple[int, float, bool]]]  # per step: (name, flow time, new) of visible frames
Watch = Callable[[Step], None]

SHORT_SIDE = 256  # pixels that the short side of an output reaches by whole-number enlargement
CONTEXT = 4  # pictures of the user's clip that extend shows to the model
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
    order: list[int] = field(default_factory=list)  # names of the final latents, left to right
    ends: list[int] = field(default_factory=list)  # the picture that each of them ends with
    sound: Sound | None = None

    def __len__(self) -> int:
        return len(self.frames_FHW3)

    def save(self, path: str | Path, *, metadata: bool = True) -> str:
        """Write the clip; the suffix decides the format. What had to be changed, or ""."""
        told = self.settings if metadata else None
        frames_FHW3, sound = self.frames_FHW3, self.sound
        return video.write_video(Path(path), frames_FHW3, self.fps, metadata=told, sound=sound)


@dataclass(frozen=True)
class Request:
    """What is asked for, whatever the task."""

    command: str
    prompt: str
    config: SampleConfig  # lengths in pictures
    seed: int
    negative_prompt: str = ""
    fps: float | None = None  # of playback; None: the model's
    scale: int | None = None  # whole-number enlargement; None: to SHORT_SIDE
    watch: Watch | None = None  # called after every step of the sampler, with the clip's latents

    def __post_init__(self) -> None:
        settings.SEED.check("seed", self.seed)
        for text in (self.prompt, self.negative_prompt):
            if len(json.dumps(text)) > LONGEST_PROMPT:
                raise UserError(f"the prompt {text[:20]!r}... is too long for a file: shorten it")

    @staticmethod
    def of(command: str, prompt: str, options: Mapping[str, Any]) -> Request:
        """The request of a call; controls that it does not name are the command's own.

        Raises ``TypeError`` for an unknown keyword and ``UserError`` for a wrong value.
        """
        rest = dict(options)
        start = rest.pop("config", settings.defaults(command))
        names = [one.name for one in fields(SampleConfig) if one.name in rest]
        controls = {name: rest.pop(name) for name in names}
        if rest.get("seed") is None:
            rest["seed"] = settings.random_seed()
        config = settings.from_mapping(SampleConfig, controls, start=start)
        return Request(command, prompt, config, **rest)

    def window(self, number: int) -> Request:
        """The same for a window of the clip: the first has the clip's seed, others their own."""
        return replace(self, seed=mixed(self.seed, "window", number)) if number else self


@dataclass(frozen=True)
class Made:
    """What one call of the sampler made, at the model's own size."""

    frames_FHW3: Frames
    growth: Growth
    order: list[int]  # names of the clip's latents, left to right
    places: list[int]  # of the picture that each given latent is, or ends with


def check_size(card: Card, size: str | None) -> None:
    """Raise ``UserError`` for a size that a model of one size, or of given pictures', has not."""
    if size is None:
        return
    height, width = card.size
    own = "the pictures' own size" if card.any_size else f"{width}x{height}"
    if card.any_size or settings.sides(size) != card.size:
        raise UserError(f"this model makes frames of {own}: leave out --size")


def from_nothing(card: Card, device: torch.device | None = None) -> Given:
    """The start of a clip without any given frame, as in text-to-video."""
    return Given(torch.zeros(0, *card.codec.latent_shape(card.size), device=device), (True,))


def sample_clips(
    weights: Weights,
    given: Sequence[Given],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
) -> Iterator[Step]:
    """Sample a clip for each given start, step by step (``sampler.sample_steps``).

    Lengths are in latents, by default bounded by those trained. Where no prompt differs from its
    negative one there is nothing to lean to: the network is asked once, not twice, a step.
    """
    leans = list(prompts) != list(negative_prompts) and weights.card.text.kind != "none"
    guidance = config.guidance if leans else 1.0
    toward = [weights.text([prompt]) for prompt in prompts]
    away = [weights.text([prompt]) for prompt in negative_prompts]
    model = guided(weights.network, toward, away, guidance, cached=config.cache)
    least, most = weights.card.min_length, weights.card.max_length
    return sample_steps(
        model, given, generators, config, weights.process, min_length=least, max_length=most
    )


@dataclass(frozen=True)
class Grid:
    """Numbers of pictures that a codec can make, and the latents of which they come.

    A length may count new pictures only: ``known`` ones stand in the clip beside them.
    """

    codec: Codec
    known: int = 0

    @property
    def least(self) -> int:
        """Latents of the shortest clip with anything new."""
        return self.codec.latents_of(self.known) + 1

    def pictures(self, latents: int) -> int:
        """Pictures of a clip of so many latents that a length counts."""
        return self.codec.pictures_of(latents) - self.known

    def latents(self, pictures: int) -> int:
        """Latents of the longest clip of no more pictures than asked for, if there is one."""
        return max(self.codec.latents_of(self.known + pictures), self.least)

    def enough(self, pictures: int) -> int:
        """Latents of the shortest clip of no fewer pictures than asked for."""
        return self.codec.latents_of(self.known + pictures + self.codec.pictures_per_latent - 1)

    def told(self, flag: str, asked: int | None, latents: int | None) -> list[str]:
        """A note where a number that was asked for is not made."""
        if not asked or not latents or self.pictures(latents) == asked:
            return []
        first = ", ".join(str(self.pictures(self.least + more)) for more in range(3))
        made = self.pictures(latents)
        return [f"{flag} {asked}: this model makes {first}, ...; {asked} becomes {made}"]

    def in_latents(self, config: SampleConfig) -> tuple[SampleConfig, list[str]]:
        """The controls with lengths in latents of the whole clip, and notes on what was rounded.

        Raises ``UserError`` where no length that can be made lies within the bounds.
        """
        if config.frames:
            exact = self.latents(config.frames)
            notes = self.told("--frames", config.frames, exact)
            return replace(config, frames=exact, min_length=None, max_length=None), notes
        least = config.min_length and self.enough(config.min_length)
        most = config.max_length and self.latents(config.max_length)
        notes = self.told("--min-length", config.min_length, least)
        notes += self.told("--max-length", config.max_length, most)
        if least and most and least > most:
            raise UserError("no length lies within the bounds: " + "; ".join(notes))
        return replace(config, min_length=least, max_length=most), notes


@dataclass(frozen=True)
class Start:
    """What a clip starts from. Given latents are named by their number, which the sampler keeps."""

    given: Given
    beside: frozenset[int]  # those that stand beside the clip

    @staticmethod
    def of(given: Given, codec: Codec) -> Start:
        """With a video codec, keyframes stand beside the clip if frames may come before them."""
        opened = {number for number, gap in enumerate(given.open_gaps[:-1]) if gap}
        return Start(given, frozenset(opened if codec.pictures_per_latent > 1 else ()))

    @property
    def known(self) -> int:
        """Latents that are given or known to come."""
        return len(self.given.latent_FCHW) + sum(self.given.missing or ())

    def own(self, step: Step) -> Step:
        """A step of this one clip, without what stands beside it."""
        if not self.beside:
            return step
        rows = [row for row, name in enumerate(step.name_F.tolist()) if name not in self.beside]
        rows_F = torch.tensor(rows, dtype=torch.int64, device=step.state.time_F.device)

        def own(name: str, x: Tensor) -> Tensor:
            return x if name.endswith("_B") else x[rows_F]

        kept = changed(step.state, own, lengths=(len(rows),))
        return replace(step, state=kept, age_F=step.age_F[rows], name_F=step.name_F[rows])

    def places(self, names: Sequence[int], codec: Codec) -> list[int]:
        """The picture that each given latent is, or ends with, by all names from left to right."""
        own = itertools.accumulate(name not in self.beside for name in names)
        ends = dict(zip(names, map(codec.pictures_of, own), strict=True))
        return [ends[number] - 1 for number in range(len(self.given.latent_FCHW))]


@dataclass(frozen=True)
class Edge(Grid):
    """An end of a clip at which it grows, with the pictures that the model knows there."""

    backward: bool = False  # whether it is the first

    def seen(self, frames_FHW3: Frames) -> Frames:
        return frames_FHW3[: self.known] if self.backward else frames_FHW3[-self.known :]

    def new(self, frames_FHW3: Frames) -> Frames:
        """Pictures of a made clip beyond those that were seen."""
        return frames_FHW3[: -self.known] if self.backward else frames_FHW3[self.known :]


class Studio:
    """A model ready to make clips. Every method is one command; keywords are its flags.

    ``options`` of every method are the fields of ``Request`` from ``config`` on, without a seed a
    random one, and those of ``SampleConfig``, each in place of its own in ``config``.
    """

    def __init__(
        self, weights: Weights, name: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weights, self.name, self.device, self.dtype = weights, name, device, dtype
        self.card, self.codec = weights.card, weights.codec
        self.grid = Grid(self.codec)
        self.beside = self.codec.pictures_per_latent > 1  # whether keyframes stand beside the clip
        for module in (weights.network, weights.text, weights.codec):
            module.to(device)

    def check_task(self, command: str) -> None:
        """Raise ``UserError`` where the model is not for what a command makes."""
        tasks = self.weights.network.tasks
        if command not in tasks:
            does = f"{self.name} is a model for {', '.join(sorted(tasks))} only"
            raise UserError(f"{does}, not for {command}: take another one, such as {DEFAULT}")

    def generate(self, prompt: str, **options: object) -> Clip:
        """A clip of a prompt."""
        request = self._request("gen", prompt, options)
        config, rounded = self.grid.in_latents(request.config)
        made = self._sample(from_nothing(self.card, self.device), config, request)
        return self._finish(made, request, rounded)

    def i2v(
        self,
        image_HW3: Frames,
        prompt: str = "",
        *,
        fit: str = "crop",
        exact: bool | None = None,
        **options: object,
    ) -> Clip:
        """A clip that begins with a picture. ``exact`` puts the user's own pixels back."""
        request = self._request("i2v", prompt, options)
        config, rounded = self.grid.in_latents(request.config)
        picture_1HW3 = image_HW3[None]
        latent_1CHW = self._encoded(self.codec.encode_keyframes, picture_1HW3, fit)
        made = self._sample(Given(latent_1CHW, (False, True)), config, request)
        clip = self._finish(made, request, rounded)
        return self._keyed(clip, picture_1HW3, fit, exact, made.places)

    def interp(
        self,
        keyframes_FHW3: Frames,
        prompt: str = "",
        *,
        multi: int = 0,
        clip_fps: float | None = None,
        fit: str = "crop",
        exact: bool | None = None,
        sound: Path | None = None,
        **options: object,
    ) -> Clip:
        """Frames between keyframes, in order; ``multi`` puts exactly so many into every gap.

        ``clip_fps`` is the rate of the clip whose frames the keyframes are, and ``sound`` a file
        whose sound is kept where playing takes as long as before.
        """
        request, count = self._request("interp", prompt, options), len(keyframes_FHW3)
        if count < 2:
            raise UserError("interp needs two keyframes at least")
        settings.check_keyframes(request.config, count, multi)
        config, notes = self.grid.in_latents(request.config)
        fitted_FHW3, _ = video.fit(keyframes_FHW3, self._size(keyframes_FHW3), fit)
        if multi:
            between = Grid(self.codec, known=2)
            span = between.latents(multi) - 1  # latents from a keyframe to the next
            notes += between.told("--multi", multi, span + 1)
            multi = between.pictures(span + 1)
            made = self._multiplied(fitted_FHW3, span, request)
        else:
            notes += self._room(count, config)
            made = self._between(fitted_FHW3, self._reaching(config, count), request)
            if len(set(made.places)) < count:
                notes.append("two keyframes fell on one frame; --multi K puts K between them")
            if self.weights.network.gapwise and len(made.order) == count != config.frames:
                notes.append("no frame was drawn between the keyframes; --multi K puts K there")

        rate = None if clip_fps is None else clip_fps * (multi + 1)
        keeps = multi and request.fps in (None, rate)
        request = replace(request, fps=request.fps or rate)
        clip = self._finish(made, request, notes, keyframes=count, multi=multi)
        clip = _sounding(clip, sound, 0.0 if keeps else None)
        return self._keyed(clip, keyframes_FHW3, fit, exact, made.places)

    def extend(
        self,
        clip_FHW3: Frames,
        prompt: str = "",
        *,
        clip_fps: float,
        direction: str = "forward",
        context: int = CONTEXT,
        sound: Path | None = None,
        **options: object,
    ) -> Clip:
        """More frames after, before or around a clip, whose own frames stay as they are.

        Lengths (``frames``, ``min_length``, ``max_length``) count new frames in each direction.
        The new frames are brought to the clip's size. ``sound`` is a file whose sound is kept.
        """
        settings.check_extension(direction, context)
        request = self._request("extend", prompt, options)
        edges = self._edges(direction, context, len(clip_FHW3))
        made, before = self._extended(clip_FHW3, edges, request)

        rate, seen = request.fps or clip_fps, edges[-1].known
        request = replace(request, fps=rate, scale=1)
        _, notes = edges[0].in_latents(request.config)
        if abs(clip_fps / self.card.fps - 1) > 0.25:
            rates = f"{clip_fps:g} frames per second, the model learned from {self.card.fps:g}"
            notes.append(f"the clip has {rates}: new motion may look too slow or too fast")
        clip = self._finish(made, request, notes, direction=direction, context=seen)
        return _sounding(clip, sound, before / rate if rate == clip_fps else None)

    def estimate(
        self,
        config: SampleConfig,
        scale: int | None = None,
        least: int = 1,
        *,
        keyframes: int = 2,
        size: tuple[int, int] | None = None,
    ) -> float:
        """Bytes that the program takes at most while it makes a clip with these controls.

        ``least`` pictures are sampled together whatever the controls say: given ones, say. Frames
        may lie between so many ``keyframes`` of this ``size``.
        """
        controls, _ = self.grid.in_latents(self._reaching(config, keyframes))
        frames = max(self._longest(controls), self.codec.latents_of(least))
        weights = sum(weight.nbytes for weight in self.weights.modules().parameters())
        return PROGRAM + weights + self._work(frames, config, scale, size)

    def _request(self, command: str, prompt: str, options: Mapping[str, Any]) -> Request:
        """What is asked for, in the model's own number of steps where none is named."""
        self.check_task(command)
        if not {"steps", "config"} & options.keys():
            options = {**options, "config": self.usual(settings.defaults(command))}
        return Request.of(command, prompt, options)

    def usual(self, config: SampleConfig) -> SampleConfig:
        """The controls in the number of steps that the model has by itself."""
        return replace(config, steps=self.weights.network.steps or config.steps)

    def _size(self, frames_FHW3: Frames) -> tuple[int, int]:
        """Height and width of what is made of pictures."""
        height, width = frames_FHW3.shape[1:3]
        return (height, width) if self.card.any_size else self.card.size

    def _most(self, keyframes: int) -> int:
        """Latents of the longest clip that the model learned, between so many keyframes."""
        if not self.weights.network.gapwise:
            return self.card.max_length
        return (self.card.max_length - 1) * (keyframes - 1) + 1

    def _reaching(self, config: SampleConfig, keyframes: int) -> SampleConfig:
        """Without bounds of its own a clip has a new frame, and as many as its gaps can hold."""
        if config.frames or config.max_length or not self.weights.network.gapwise:
            return config
        least = config.min_length or keyframes + 1
        return replace(config, min_length=least, max_length=max(self._most(keyframes), least))

    def _sample(self, given: Given, config: SampleConfig, request: Request) -> Made:
        """One clip; the lengths of ``config`` are in latents of the clip's own."""
        start = Start.of(given, self.codec)
        controls = self._widened(config, len(start.beside))
        latents = max(self._longest(controls), start.known)
        rows, columns = given.latent_FCHW.shape[2:]
        size = rows * self.codec.config.compression, columns * self.codec.config.compression
        if not self.weights.network.gapwise:  # else what is drawn is looked at: it is seldom most
            self._check_memory(latents, request, size)
        try:
            with autocast(self.device, self.dtype), torch.inference_mode():
                return self._made(start, controls, request, size)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise self._out_of_memory(latents, request, size) from error

    def _check_memory(self, latents: int, request: Request, size: tuple[int, int]) -> None:
        """Raise ``UserError`` where so many latents do not fit into the memory."""
        need = self._work(latents, request.config, request.scale, size)
        if need > free_memory(self.device):
            raise self._out_of_memory(latents, request, size)

    def _made(
        self, start: Start, controls: SampleConfig, request: Request, size: tuple[int, int]
    ) -> Made:
        growth: Growth = []
        asked = [request.prompt], [request.negative_prompt], [clip_generator(request.seed)]
        for step in sample_clips(self.weights, [start.given], *asked, controls):
            own = start.own(step)
            if self.weights.network.gapwise and (not growth or len(own.name_F) > len(growth[-1])):
                self._check_memory(len(own.name_F), request, size)
            growth.append(_visible(own, controls.steps))
            if request.watch:
                request.watch(own)
        parts = [to_frames(part) for part in self.codec.decode_stream(own.done[0])]
        places = start.places(step.name_F.tolist(), self.codec)
        return Made(np.concatenate(parts), growth, own.name_F.tolist(), places)

    def _widened(self, config: SampleConfig, beside: int) -> SampleConfig:
        """Lengths of all that the sampler sees: of the clip and ``beside`` keyframes.

        Each of those needs a group of its own to its left.
        """
        if not beside:
            return config
        if config.frames is not None:
            return replace(config, frames=config.frames + beside)
        least = max(config.min_length or self.card.min_length, 1 + beside)
        most = max(config.max_length or self.card.max_length, least)
        return replace(config, min_length=least + beside, max_length=most + beside)

    def _between(
        self, fitted_FHW3: Frames, config: SampleConfig, request: Request, span: int = 0
    ) -> Made:
        """Keyframes and what is between them; ``span``, if set, latents from each to the next."""
        count = len(fitted_FHW3)
        open_gaps = (False, *[True] * (count - 1), False)
        new = span if self.beside else span - 1
        missing = tuple(new * gap for gap in open_gaps) if span else None
        latent_FCHW = self._encoded(self.codec.encode_keyframes, fitted_FHW3)
        return self._sample(Given(latent_FCHW, open_gaps, missing), config, request)

    def _multiplied(self, fitted_FHW3: Frames, span: int, request: Request) -> Made:
        """A clip in windows as long as the model's, so many latents from a keyframe to the next."""
        last = len(fitted_FHW3) - 1
        gaps = min(max((self.card.max_length - 1) // span, 1), last)  # in one window
        pieces = []
        for number, start in enumerate(range(0, last, gaps)):
            part_FHW3 = fitted_FHW3[start : start + gaps + 1]
            pieces.append(self._between(part_FHW3, request.config, request.window(number), span))
        frames = [pieces[0].frames_FHW3[:1], *(piece.frames_FHW3[1:] for piece in pieces)]
        step = self.codec.pictures_of(1 + span) - 1  # pictures from a keyframe to the next
        places = list(range(0, step * last + 1, step))
        return replace(pieces[0], frames_FHW3=np.concatenate(frames), places=places)

    def _edges(self, direction: str, context: int, available: int) -> list[Edge]:
        """Where a clip of so many pictures grows; they see ``context``, on the codec's grid."""
        longest = max(self.card.max_length - 1, 1)
        latents = min(self.grid.enough(context), self.codec.latents_of(available), longest)
        pictures = self.codec.pictures_of(latents)
        first = Edge(self.codec, 1 if self.beside else pictures, backward=True)
        last = Edge(self.codec, pictures)
        return {"forward": [last], "backward": [first], "both": [first, last]}[direction]

    def _extended(
        self, clip_FHW3: Frames, edges: Sequence[Edge], request: Request
    ) -> tuple[Made, int]:
        """The clip among its new pictures, and how many of these come before it."""
        grown = [self._grow(clip_FHW3, edge, request) for edge in edges]
        new = [made.frames_FHW3 for made in grown]
        first = 1 if edges[0].backward else 0  # of the new parts after the clip
        parts = [*new[:first], clip_FHW3, *new[first:]]
        return replace(grown[0], frames_FHW3=np.concatenate(parts)), sum(map(len, new[:first]))

    def _grow(self, clip_FHW3: Frames, edge: Edge, request: Request) -> Made:
        """The new pictures alone; where more are asked for than a clip can hold, in windows."""
        config, _ = edge.in_latents(request.config)
        if edge.backward:
            request = replace(request, seed=mixed(request.seed, "backward"))
        seen_FHW3, parts = edge.seen(clip_FHW3), []
        for number, frames in enumerate(self._windows(config.frames, edge)):
            given, lengths = self._seen(seen_FHW3, edge), replace(config, frames=frames)
            made = self._sample(given, lengths, request.window(number))
            parts.append(edge.new(made.frames_FHW3))
            seen_FHW3 = edge.seen(made.frames_FHW3)
        new_FHW3 = np.concatenate(parts[::-1] if edge.backward else parts)
        height, width = clip_FHW3.shape[1:3]
        new_FHW3, _ = video.fit(new_FHW3, (height, width), "stretch")
        return replace(made, frames_FHW3=new_FHW3)

    def _seen(self, seen_FHW3: Frames, edge: Edge) -> Given:
        """Pictures at the edge of a clip, with the gap beyond them open."""
        encode = self.codec.encode_keyframes if edge.backward else self.codec.encode_clip
        latent_FCHW = self._encoded(encode, seen_FHW3)
        closed = [False] * len(latent_FCHW)
        return Given(latent_FCHW, (True, *closed) if edge.backward else (*closed, True))

    def _windows(self, latents: int | None, edge: Edge) -> list[int | None]:
        """Latents of each window of an extended clip; None: one, whose length the model chooses."""
        if latents is None:
            return [None]
        held = edge.least - 1
        room = max(self.card.max_length - held, 1)
        return [held + min(room, left) for left in range(latents - held, 0, -room)]

    def _longest(self, config: SampleConfig) -> int:
        longest = config.frames or config.max_length or self.card.max_length
        return max(longest, config.min_length or 0)

    def _work(
        self,
        frames: int,
        config: SampleConfig,
        scale: int | None,
        size: tuple[int, int] | None = None,
    ) -> float:
        """Bytes beside the program and its weights, of a clip of so many latents."""
        evaluated = frames if config.guidance == 1 else 2 * frames
        if size is None or not self.card.any_size:
            size = self.card.size
        height, width = size
        shape = self.codec.latent_shape(size)
        activations = self.weights.network.sampling_bytes(evaluated, shape, self.dtype)
        copies = 2 + 2 * self._factor(scale) ** 2
        pixels = 3 * self.codec.pictures_of(frames) * height * width * copies
        return max(activations, pixels)  # one after the other

    def _factor(self, scale: int | None) -> int:
        """Whole-number enlargement of the made frames."""
        usual = 1 if self.card.any_size else -(-SHORT_SIDE // min(self.card.size))
        return scale or usual

    def _encoded(
        self, encode: Callable[[Tensor], Tensor], frames_FHW3: Frames, fit: str = "stretch"
    ) -> Tensor:
        """Latents of pictures, brought to the model's size."""
        frames_FHW3, _ = video.fit(frames_FHW3, self._size(frames_FHW3), fit)
        with autocast(self.device, self.dtype):
            return encode(to_images(frames_FHW3).to(self.device)).float()

    def _notes(self, request: Request, known: int | None, longest: int) -> Iterator[str]:
        """What the user should know of what is asked for; ``known`` latents are sampled at once.

        None where the model chooses how many; ``longest`` are those of the longest trained clip.
        """
        config, card = request.config, self.card
        familiar = COMMON_WORDS.union(card.words)
        unknown = [word for word in dict.fromkeys(words_of(request.prompt)) if word not in familiar]
        if unknown and card.words:
            never = "never saw" if len(card.words) < WORDS else "hardly saw, if ever,"
            examples = [word for word in card.words if word not in COMMON_WORDS][:40]
            told = f"the model {never} {', '.join(map(repr, unknown))}"
            yield f"{told}; it knows for example: {', '.join(examples)}"
        if card.text.kind == "none":
            if request.prompt or request.negative_prompt:
                yield "words mean nothing to this model: prompts have no effect"
        elif request.negative_prompt and config.guidance == 1:
            yield "the negative prompt has no effect without guidance: add --guidance 2"
        if known and known > 2 * longest:
            pictures, most = map(self.codec.pictures_of, (known, longest))
            yield f"{pictures} frames are far more than the longest trained clip, {most}"
        if not (self.weights.process.chooses or known or config.frames or config.max_length):
            told = f"it makes {self.codec.pictures_of(longest)} unless --frames says how many"
            yield f"this model does not choose a number of frames: {told}"
        if (known or config.frames) and config.length_scale != SampleConfig.length_scale:
            yield "--length-scale has no effect: the length is given"

    def _room(self, count: int, config: SampleConfig) -> list[str]:
        """Notes on what a length that the model chooses leaves between so many keyframes."""
        asked = config.frames or config.min_length or config.max_length
        longest = self._most(count)
        roomy = count if self.beside else 2 * count - 1  # latents with one in every gap
        if count > (config.frames or config.max_length or count):
            least = self.codec.pictures_of(count)
            raise UserError(f"{count} keyframes need {least} frames of this model at least")
        if asked or roomy <= longest:
            return []
        pictures = self.codec.pictures_of(longest)
        told = f"{count} keyframes, and the longest trained clip has {pictures} frames"
        if count >= longest:
            raise UserError(f"{told}: say --multi K for K in every gap, --frames or --max-length")
        return [f"{told}: not every gap gets one; --multi K puts K into every gap"]

    def _out_of_memory(self, frames: int, request: Request, size: tuple[int, int]) -> UserError:
        need = f"{self._work(frames, request.config, request.scale, size) / 2**30:.1f} GiB"
        (height, width), pictures = size, self.codec.pictures_of(frames)
        remedy = "take --guidance 1, or use a model of smaller frames"
        if self.card.any_size:
            remedy = "or give smaller pictures"
        return UserError(
            f"not enough memory: {pictures} frames of {width}x{height} take about {need}; lower "
            f"--frames or --max-length, {remedy}"
        )

    def _finish(
        self, made: Made, request: Request, notes: Sequence[str], **more: str | int
    ) -> Clip:
        """The clip, enlarged and at its playback rate, with the settings that made it."""
        frames_FHW3 = video.scale(made.frames_FHW3, self._factor(request.scale))
        known = len(made.order) if request.config.frames or more.get("multi") else None
        longest = self._most(int(more.get("keyframes", 2)))
        told = [*self._notes(request, known, longest), *notes]
        record = self._record(made, request) | more
        ends = [self.codec.pictures_of(number + 1) - 1 for number in range(len(made.order))]
        shown = ends if ends[-1] == len(made.frames_FHW3) - 1 else []
        rate, seed = record["fps"], request.seed
        return Clip(frames_FHW3, rate, seed, record, told, made.growth, made.order, shown)

    def _record(self, made: Made, request: Request) -> dict[str, Any]:
        """The settings that made a clip."""
        controls = asdict(request.config)
        return {
            "flowcept": __version__,
            "command": request.command,
            "model": self.name,
            "model_steps": self.card.steps,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "length": "exact" if request.config.frames else "auto",
            **{name: value for name, value in controls.items() if value is not None},
            "frames": len(made.frames_FHW3),
            "dtype": str(self.dtype).removeprefix("torch."),
            "fps": request.fps or self.card.fps,
            "scale": self._factor(request.scale),
        }

    def _keyed(
        self, clip: Clip, given_FHW3: Frames, fit: str, exact: bool | None, places: Sequence[int]
    ) -> Clip:
        """The user's own pixels in the places of the given frames, if asked for or if they fit."""
        _, height, width, _ = clip.frames_FHW3.shape
        matches = given_FHW3.shape[1:3] in ((height, width), self._size(given_FHW3))
        own_FHW3, said = given_FHW3, ""
        if not matches:
            own_FHW3, said = video.fit(given_FHW3, (height, width), fit)
        notes = [*clip.notes, said] if said else clip.notes
        frames_FHW3 = clip.frames_FHW3
        if exact or (exact is None and matches):
            frames_FHW3 = frames_FHW3.copy()
            frames_FHW3[list(places)] = video.scale(own_FHW3, height // own_FHW3.shape[1])
        return replace(clip, frames_FHW3=frames_FHW3, notes=notes)


def _visible(step: Step, num_steps: int) -> list[tuple[int, float, bool]]:
    frames = zip(step.name_F.tolist(), step.age_F.tolist(), strict=True)  # asks no device
    return [(name, age / num_steps, age == 0) for name, age in frames]


def _sounding(clip: Clip, sound: Path | None, start: float | None) -> Clip:
    """The clip with a file's sound from ``start`` on, in seconds; None: its pace is another."""
    if sound is None:
        return clip
    if start is None:
        note = "sound is left out: the clip plays at another pace"
        return replace(clip, notes=[*clip.notes, note])
    return replace(clip, sound=Sound(sound, start))
