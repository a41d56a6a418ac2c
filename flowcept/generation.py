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

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from flowcept import __version__, cards, inputs, memory, settings, sizes
from flowcept.clip import Clip, Growth
from flowcept.codecs import to_frames, to_images
from flowcept.data import video
from flowcept.data.contexts import LONGEST_RUN
from flowcept.data.video import Frames, Sound
from flowcept.device import PROGRAM, autocast, free_memory
from flowcept.errors import UserError
from flowcept.inputs import Footage, Picture, Source
from flowcept.keywords import (
    ExtendKeywords,
    InterpKeywords,
    Keywords,
    One,
    PictureKeywords,
    Prompts,
    check_known,
    documented,
)
from flowcept.lengths import Edge, Grid
from flowcept.lexicon import COMMON_WORDS, Reading
from flowcept.model_file import WORDS, Weights, about
from flowcept.models import check_task
from flowcept.networks.text import FROZEN, words_of
from flowcept.process.sampler import clip_generator
from flowcept.process.state import Given
from flowcept.request import Request
from flowcept.sampling import Made, Start, from_nothing, sample_clips, visible
from flowcept.settings import SampleConfig, mixed, short

SHORT_SIDE = 256  # pixels that the short side of an output reaches by whole-number enlargement
ENDS = 256  # frames at either end of a file that extend reads, more than any model sees
# Decibels at which an autoencoder rebuilds a given picture at least, where its card does not say
# how well it does its own: the shipped one's own lie over 30, six of ten photographs under 28.
USUAL_PSNR = 28.0
MARGIN = 2.0  # decibels by which a given picture may be worse than those of training
ALREADY_CLOSED = "the last frame equals the first: the loop needs no frames back"


class Studio:
    """A model ready to make clips: ``generate``, ``i2v``, ``interp``, ``extend``.

    Keywords are the flags of the commands; ``help(model.generate)`` explains each.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        digest: str | None = None,
    ) -> None:
        self.weights, self.name, self.device, self.dtype = weights, name, device, dtype
        self.digest = digest  # of the model's file
        self.card, self.codec = weights.card, weights.codec
        self.grid = Grid(self.codec)
        self.beside = self.codec.pictures_per_latent > 1  # whether keyframes stand beside the clip
        self.sized = False  # whether someone said of which size frames are
        self.size_notes: list[str] = []  # what that size became
        weights.text.to(device)
        weights.codec.to(device)
        if not getattr(weights.text, "let_go", False):  # else it comes when prompts are read
            weights.network.bring_to(device)

    def at(self, size: str) -> Studio:
        """The same model for frames of another size, WIDTHxHEIGHT, rounded to one that it can make.

        Raises ``UserError`` if the model cannot make frames of another size.
        """
        step = sizes.step_of(self.weights)
        if step:
            made, notes = sizes.rounded(size, self.card, step)
            return self._at(made, sized=True, notes=notes)
        if self.card.any_size or settings.sides(size) != self.card.size:
            own = sizes.own_words(self.card)
            raise UserError(f"this model only makes frames of {own}: leave out `size`")
        return self

    def like(self, given_FHW3: Frames) -> Studio:
        """The same model, for frames of a given aspect if it can and no size was set."""
        step = sizes.step_of(self.weights)
        if self.sized or not step:
            return self
        height, width = given_FHW3.shape[1:3]
        made = sizes.of_aspect((height, width), self.card, step)
        if made == self.card.size:
            return self
        told = f"frames of {sizes.words(made)}, to fit what is given; `size` sets another"
        return self._at(made, sized=False, notes=[told])

    def _at(self, size: tuple[int, int], *, sized: bool, notes: list[str]) -> Studio:
        other = copy.copy(self)
        other.weights = self.weights.at(size)
        other.card, other.sized, other.size_notes = other.weights.card, sized, notes
        return other

    def __repr__(self) -> str:
        return f"<Studio {self.name} on {self.device}: print it for its card>"

    def __str__(self) -> str:
        """The card of the model, for people."""
        return "\n".join(cards.lines({"name": self.name, **about(self.weights)}))

    @property
    def origin(self) -> dict[str, Any]:
        """What a clip's pixels depend on besides its settings: versions, model and device."""
        cpu = self.device.type == "cpu"
        return {
            "flowcept": __version__,
            "torch": torch.__version__,
            "model": self.name,
            "model_digest": self.digest,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"threads": torch.get_num_threads()} if cpu else {}),
        }

    def check_task(self, command: str) -> None:
        """Raise ``UserError`` where the model is not for what a command makes."""
        network = self.weights.network
        check_task(command, self.name, network.tasks, pretrained=network.grid > 0)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a count of 1 is the first
        self, prompt: str, *, count: One = 1, **words: Unpack[Keywords]
    ) -> Clip: ...
    @overload
    def generate(
        self, prompt: Prompts, *, count: int = 1, **words: Unpack[Keywords]
    ) -> list[Clip]: ...
    @documented("gen")
    def generate(
        self, prompt: Prompts, *, count: int = 1, **words: Unpack[Keywords]
    ) -> Clip | list[Clip]:
        """A clip from a prompt. Several prompts, or a ``count`` over 1, make a list of clips."""
        return self._each("gen", prompt, {"count": count, **words}, self._generated)

    @overload
    def i2v(
        self, image: Picture, prompt: str = "", *, count: One = 1, **words: Unpack[PictureKeywords]
    ) -> Clip: ...
    @overload
    def i2v(
        self,
        image: Picture,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[PictureKeywords],
    ) -> list[Clip]: ...
    @documented("i2v")
    def i2v(
        self,
        image: Picture,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[PictureKeywords],
    ) -> Clip | list[Clip]:
        """A clip that begins with a picture: a path, a PIL picture or an array ``[H, W, 3]``."""
        image_HW3 = inputs.picture(image)
        make = partial(self.like(image_HW3[None])._begun, image_HW3)
        return self._each("i2v", prompt, {"count": count, **words}, make)

    @overload
    def interp(
        self,
        keyframes: Footage,
        prompt: str = "",
        *,
        count: One = 1,
        **words: Unpack[InterpKeywords],
    ) -> Clip: ...
    @overload
    def interp(
        self,
        keyframes: Footage,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[InterpKeywords],
    ) -> list[Clip]: ...
    @documented("interp")
    def interp(
        self,
        keyframes: Footage,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[InterpKeywords],
    ) -> Clip | list[Clip]:
        """Frames between keyframes in order: a list of pictures, or the frames of a clip.

        In a loop the first keyframe follows the last one; lengths include the frames between them.
        """
        source = Source.of(keyframes, words.get("fit", "crop"))
        studio = self.like(source.frames_FHW3)
        asked = {"count": count, **source.words(), **words}
        return self._each("interp", prompt, asked, partial(studio._filled, source))

    @overload
    def extend(
        self, clip: Footage, prompt: str = "", *, count: One = 1, **words: Unpack[ExtendKeywords]
    ) -> Clip: ...
    @overload
    def extend(
        self,
        clip: Footage,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[ExtendKeywords],
    ) -> list[Clip]: ...
    @documented("extend")
    def extend(
        self,
        clip: Footage,
        prompt: Prompts = "",
        *,
        count: int = 1,
        **words: Unpack[ExtendKeywords],
    ) -> Clip | list[Clip]:
        """More frames after, before or around a clip. The clip's own frames stay as they are.

        Lengths (``frames``, ``min_length``, ``max_length``) count the new frames in each direction.
        The new frames get the clip's size.
        """
        source = Source.of(clip)
        studio = self.like(source.frames_FHW3)
        asked = {"count": count, **source.words(), **words}
        return self._each("extend", prompt, asked, partial(studio._continued, source))

    def _each(
        self,
        command: str,
        prompt: Prompts,
        words: Mapping[str, object],
        make: Callable[[Request], Clip],
    ) -> Clip | list[Clip]:
        """Clips of all prompts, each ``count`` times; of one request the clip itself.

        Raises ``TypeError`` for an unknown keyword, and ``UserError`` for what is wrong with any
        request before the first clip is made.
        """
        self.check_task(command)
        check_known(command, words)
        prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
        requests = [self._request(command, one, words) for one in prompts]
        if not requests:
            raise UserError("the list of prompts is empty: give at least one")
        clips = [make(one) for request in requests for one in request.repeated()]
        return clips[0] if len(clips) == 1 and prompts is not prompt else clips

    def _generated(self, request: Request) -> Clip:
        """A clip of a prompt."""
        made, notes = self._clip(from_nothing(self.card, self.device), request)
        return self._finish(made, request, notes)

    def _begun(self, image_HW3: Frames, request: Request) -> Clip:
        """A clip that begins with a picture."""
        picture_1HW3 = image_HW3[None]
        fitted_1HW3 = self._given(picture_1HW3, request.fit, request)
        latent_1CHW = self._encoded(self.codec.encode_keyframes, fitted_1HW3)
        made, notes = self._clip(Given(latent_1CHW, (False, True)), request)
        clip = self._finish(made, request, notes, fit=request.fit, exact=request.exact)
        return self._keyed(clip, picture_1HW3, request, made.places)

    def _filled(self, source: Source, request: Request) -> Clip:
        """A clip between keyframes."""
        keyframes_FHW3 = source.frames_FHW3
        multi = request.multi or source.usual(request.config)
        settings.check_keyframes(request.config, len(keyframes_FHW3), multi)
        fitted_FHW3 = self._given(keyframes_FHW3, request.fit, request)
        made, notes = self._through(fitted_FHW3, multi, request)

        between = Grid(self.codec, known=2)
        multi = multi and between.pictures(between.latents(multi))
        rate = request.clip_fps and request.clip_fps * (multi + 1)
        request = replace(request, fps=request.fps or rate)
        notes, count = [*source.notes, *notes], len(keyframes_FHW3)
        how = {"fit": request.fit, "exact": request.exact}
        clip = self._finish(made, request, notes, keyframes=count, multi=multi, **how)
        clip = _sounding(clip, request.sound, 0.0 if multi and request.fps == rate else None)
        return self._keyed(clip, keyframes_FHW3, request, made.places)

    def _continued(self, source: Source, request: Request) -> Clip:
        """A clip among new frames.

        It is seen in ``context`` frames: by default as many as training shows in a row, at most
        half of the longest trained clip, so that the rest of it is new.
        """
        if request.direction != "forward" and not self.weights.network.extends_backward:
            raise UserError(
                f"{self.name} can extend clips only at their end: use `direction=forward`"
            )
        clip_FHW3, own = source.frames_FHW3, request.clip_fps or self.card.fps
        edges = self._edges(request.direction, request.context, len(clip_FHW3))
        made, notes = self._extended(clip_FHW3, edges, request)
        rate = request.fps or own
        direction, seen = request.direction, edges[-1].known
        notes = [*source.notes, *notes, *self._other_rate(own)]
        if request.scale is not None:
            notes.append("`scale` has no effect: new frames get the clip's own size")
        request = replace(request, fps=rate, scale=1)
        clip = self._finish(made, request, notes, direction=direction, context=seen)
        clip = _sounding(clip, request.sound, made.before / rate if rate == own else None)
        return replace(clip, before=made.before)

    def extend_file(self, file: video.Footage, prompt: str = "", **options: Any) -> Clip:  # noqa: ANN401
        """``extend`` for a file that may not fit into memory: saving the clip reads the file again.

        The clip's ``frames_FHW3`` hold only both ends of the file, at the model's size.
        """
        held = ENDS + 2 * (options.get("context") or 0)
        studio = self.like(next(iter(file))[None]) if self.weights.network.grid else self
        ends_FHW3, own = file.ends(held, studio.card.size)
        clip: Clip = studio.extend(ends_FHW3, prompt, clip_fps=file.timing.fps, **options)

        before, after = np.split(clip.frames_FHW3, [clip.before, clip.before + len(ends_FHW3)])[::2]
        whole = video.Joined((before, file, after), own)
        settings = clip.settings | {"frames": len(whole)}
        notes = [*clip.notes, file.lost] if file.lost else clip.notes
        ends = clip.ends if len(ends_FHW3) == len(file) else []
        return replace(clip, whole=whole, settings=settings, notes=notes, ends=ends)

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
        work = self._work(frames, config, scale, size)
        return PROGRAM + memory.peak(self.weights, work, self.device)

    def _request(self, command: str, prompt: str, words: Mapping[str, object]) -> Request:
        """The request, by default with the model's own number of steps."""
        if not {"steps", "config"} & words.keys():
            words = {**words, "config": self.usual(settings.defaults(command))}
        request = Request.of(command, prompt, words)
        if request.loop and "interp" not in self.weights.network.tasks:
            raise UserError(f"{self.name} cannot make frames between two others: leave out `loop`")
        return request

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

    def _fitted(self, frames_FHW3: Frames) -> Frames:
        """Pictures brought to the model's size, whatever becomes of their aspect."""
        return video.fit(frames_FHW3, self._size(frames_FHW3), "stretch")[0]

    def _given(self, frames_FHW3: Frames, fit: str, request: Request) -> Frames:
        """Pictures that the user gives, brought to the model's size.

        Raises ``UserError`` where the codec loses one of them, unless that was said not to matter.
        """
        fitted_FHW3, _ = video.fit(frames_FHW3, self._size(frames_FHW3), fit)
        least = self._least_psnr()
        if request.anyway or least is None:
            return fitted_FHW3
        image_FCHW = to_images(fitted_FHW3).to(self.device)
        with autocast(self.device, self.dtype):
            worst = min(self.codec.psnr(image_1CHW) for image_1CHW in image_FCHW.split(1))
        if worst < least:
            raise UserError(
                f"{self.name} cannot show the given pictures well: its codec rebuilds "
                f"them at {worst:.1f} dB, less than {least:.1f}; train on such pictures, use a "
                "pretrained model, or continue with `anyway=True`"
            )
        return fitted_FHW3

    def _least_psnr(self) -> float | None:
        """Decibels at which given pictures must be rebuilt; None: the codec is made for any."""
        card = self.card
        if card.codec.kind == "pixels":
            return None
        if card.codec_psnr is not None:
            return card.codec_psnr - MARGIN
        return USUAL_PSNR if card.codec.kind == "autoencoder" else None

    def _clip(self, given: Given, request: Request) -> tuple[Made, list[str]]:
        """A clip, with a way back if asked for, and notes on its length."""
        there = request.way_there() if request.loop else request
        config, notes = self.grid.in_latents(there.config)
        made = self._sample(given, config, request)
        if not request.loop:
            return made, notes
        return self._closed(made, request, len(made))

    def _closed(self, made: Made, request: Request, counted: int) -> tuple[Made, list[str]]:
        """A clip with frames from its last picture back to its first, and what there is to say.

        ``counted`` of its pictures belong to the lengths that are asked for.
        """
        ends_2HW3 = made.frames_FHW3[[-1, 0]]
        if np.array_equal(*ends_2HW3):
            return made, [ALREADY_CLOSED]
        lengths = self._left(request.config, counted)
        if lengths is None:
            return made, [
                "the length leaves no frame for the way back, so the loop jumps: raise it"
            ]

        request = replace(request, seed=mixed(request.seed, "loop"))
        back = self._between(self._fitted(ends_2HW3), lengths, request)
        closed = made.followed(back)
        asked, total = request.config.frames, counted + len(closed) - len(made)
        rounded = asked and total != asked
        notes = [f"`frames={asked}`: this model makes {total} of a loop"] if rounded else []
        return closed, notes

    def _left(self, config: SampleConfig, counted: int) -> SampleConfig | None:
        """Lengths of the way back, in latents with both ends, once so many pictures are there.

        None where nothing is left.
        """
        between = Grid(self.codec, known=2)
        room = config.frames or config.max_length
        if room is not None and room <= counted:
            return None
        most = room and between.latents(room - counted)
        if config.frames:
            return replace(config, frames=most, min_length=None, max_length=None)
        asked = between.enough(max((config.min_length or 0) - counted, 0))
        least = max(asked, self.card.min_length, between.least)
        return replace(config, min_length=min(least, most or least), max_length=most)

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
        texts = request.prompt, request.negative_prompt
        prompt, negative = (self.reading(text, request.literal).text for text in texts)
        asked = [prompt], [negative], [clip_generator(request.seed)]
        for step in sample_clips(self.weights, [start.given], *asked, controls):
            own = start.own(step)
            if self.weights.network.gapwise and (not growth or len(own.name_F) > len(growth[-1])):
                self._check_memory(len(own.name_F), request, size)
            growth.append(visible(own, controls.steps))
            if request.watch:
                request.watch(own)
        parts = [to_frames(part) for part in self.codec.decode_stream(own.done[0])]
        places = start.places(step.name_F.tolist(), self.codec)
        order = own.name_F.tolist()
        return Made(np.concatenate(parts), growth, order, places, len(order))

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

    def _through(self, fitted_FHW3: Frames, multi: int, request: Request) -> tuple[Made, list[str]]:
        """Keyframes and what is between them, in a loop up to the first one again; and notes."""
        if not request.loop:
            return self._course(fitted_FHW3, multi, request, self.grid)
        if np.array_equal(fitted_FHW3[0], fitted_FHW3[-1]):
            made, notes = self._course(fitted_FHW3, multi, request, self.grid)
            return made, [*notes, ALREADY_CLOSED]
        closed_FHW3 = np.concatenate([fitted_FHW3, fitted_FHW3[:1]])
        made, notes = self._course(closed_FHW3, multi, request, Grid(self.codec, known=1))
        return made.without_last(), notes

    def _course(
        self, fitted_FHW3: Frames, multi: int, request: Request, grid: Grid
    ) -> tuple[Made, list[str]]:
        """Keyframes and what is between them, and notes; on ``grid`` lengths are counted."""
        if multi:
            between = Grid(self.codec, known=2)
            latents = between.latents(multi)
            notes = between.told("multi", multi, latents)
            return self._multiplied(fitted_FHW3, latents - 1, request), notes
        count = len(fitted_FHW3)
        config, notes = grid.in_latents(request.config)
        notes += self._room(count, config)
        made = self._between(fitted_FHW3, self._reaching(config, count), request)
        if len(set(made.places)) < count:
            notes.append("two keyframes became one frame; `multi=K` puts K frames between them")
        if self.weights.network.gapwise and len(made.order) == count != config.frames:
            notes.append("the model put no frame between the keyframes; `multi=K` puts K there")
        return made, notes

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

    def _edges(self, direction: str, context: int | None, available: int) -> list[Edge]:
        """Where a clip of so many pictures grows; they see ``context``, on the codec's grid."""
        longest = max(self.card.max_length - 1, 1)
        usual = min(LONGEST_RUN, max(self.card.max_length // 2, 1))
        held = self.grid.enough(context) if context else usual
        latents = min(held, self.codec.latents_of(available), longest)
        pictures = self.codec.pictures_of(latents)
        first = Edge(self.codec, 1 if self.beside else pictures, backward=True)
        last = Edge(self.codec, pictures)
        return {"forward": [last], "backward": [first], "both": [first, last]}[direction]

    def _extended(
        self, clip_FHW3: Frames, edges: Sequence[Edge], request: Request
    ) -> tuple[Made, list[str]]:
        """The clip among its new pictures, and notes on their number.

        A way back takes its share from the new pictures of the last edge.
        """
        self._given(np.concatenate([edge.seen(clip_FHW3) for edge in edges]), "stretch", request)
        _, notes = edges[0].in_latents(request.config)
        there = request.way_there() if request.loop else request
        asked = [*[request] * (len(edges) - 1), there]
        grown = [self._grow(clip_FHW3, *each) for each in zip(edges, asked, strict=True)]
        made = _around(clip_FHW3, grown, edges[0].backward)
        return self._closed(made, request, len(grown[-1])) if request.loop else (made, notes)

    def _other_rate(self, clip_fps: float) -> list[str]:
        """A note where a clip to go on from does not play as those that were learned."""
        if abs(clip_fps / self.card.fps - 1) <= 0.25:
            return []
        rates = f"{clip_fps:g} frames per second, the training clips {self.card.fps:g}"
        return [f"the clip has {rates}: new motion may look too slow or too fast"]

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
        pictures = self.codec.pictures_of(frames)
        pixels = 3 * pictures * height * width * copies
        decoding = self.codec.decoding_bytes(pictures, size)
        return max(activations, pixels + decoding)  # one after the other

    def _factor(self, scale: int | None) -> int:
        """Whole-number enlargement of the made frames."""
        usual = 1 if self.card.any_size else -(-SHORT_SIDE // min(self.card.size))
        return scale or usual

    def _encoded(self, encode: Callable[[Tensor], Tensor], frames_FHW3: Frames) -> Tensor:
        """Latents of pictures, brought to the model's size."""
        image_FCHW = to_images(self._fitted(frames_FHW3)).to(self.device)
        with autocast(self.device, self.dtype):
            return encode(image_FCHW).float()

    def _notes(self, request: Request, known: int | None, longest: int) -> Iterator[str]:
        """Notes for the user on a request; ``known`` latents are sampled at once.

        None where the model chooses how many; ``longest`` are those of the longest trained clip.
        """
        config, card = request.config, self.card
        yield from self.word_notes(request.prompt, request.negative_prompt, request.literal)
        if card.text.kind == "none":
            if request.prompt or request.negative_prompt:
                yield "this model does not read prompts: they have no effect"
        elif request.negative_prompt and config.guidance == 1:
            yield "the negative prompt has no effect without guidance: add `guidance=2`"
        if known and known > 2 * longest:
            pictures, most = map(self.codec.pictures_of, (known, longest))
            yield f"{pictures} frames are far more than the longest trained clip, {most}"
        if not (self.weights.process.chooses or known or config.frames or config.max_length):
            told = f"it makes {self.codec.pictures_of(longest)} unless you give `frames`"
            yield f"this model does not choose the length: {told}"
        if (known or config.frames) and config.length_scale != SampleConfig.length_scale:
            yield "`length_scale` has no effect: the length is given"

    def reading(self, prompt: str, literal: bool = False) -> Reading:
        """The prompt, with words of the model in place of others where its lexicon has them."""
        if literal or self.card.lexicon is None:
            return Reading(prompt)
        return self.card.lexicon.read(prompt, self.card.words)

    def word_notes(self, prompt: str, negative: str = "", literal: bool = False) -> Iterator[str]:
        """Notes for the user on the words of a prompt and a negative prompt."""
        readings = [self.reading(text, literal) for text in (prompt, negative)]
        for reading in readings:
            if reading.changes:
                yield f"read as words that the model knows: {reading}; `literal=True` keeps yours"

        known = self.card.words
        if self.card.text.kind in FROZEN:  # an encoder that knows far more words
            return
        familiar = COMMON_WORDS.union(known)
        read = dict.fromkeys(word for reading in readings for word in words_of(reading.text))
        unknown = [word for word in read if word not in familiar]
        if unknown and known:
            never = "never saw" if len(known) < WORDS else "rarely or never saw"
            examples = [word for word in known if word not in COMMON_WORDS][:40]
            told = f"the model {never} {short(', '.join(map(repr, unknown)))}"
            yield f"{told}; it knows for example: {', '.join(examples)}"

    def _room(self, count: int, config: SampleConfig) -> list[str]:
        """Notes on what a length that the model chooses leaves between so many keyframes."""
        asked = config.frames or config.min_length or config.max_length
        longest = self._most(count)
        roomy = count if self.beside else 2 * count - 1  # latents with one in every gap
        if count > (config.frames or config.max_length or count):
            least = self.codec.pictures_of(count)
            raise UserError(f"{count} keyframes need at least {least} frames with this model")
        if asked or roomy <= longest:
            return []
        pictures = self.codec.pictures_of(longest)
        told = f"{count} keyframes, but the longest training clip has {pictures} frames"
        if count >= longest:
            raise UserError(f"{told}: give `multi=K` for K in every gap, `frames` or `max_length`")
        return [f"{told}: some gaps get no frame; `multi=K` puts K into each"]

    def _out_of_memory(self, frames: int, request: Request, size: tuple[int, int]) -> UserError:
        need = f"{self._work(frames, request.config, request.scale, size) / 2**30:.1f} GiB"
        (height, width), pictures = size, self.codec.pictures_of(frames)
        remedy = "take `guidance=1`, or use a model of smaller frames"
        if self.card.any_size:
            remedy = "or give smaller pictures"
        return UserError(
            f"not enough memory: {pictures} frames of {width}x{height} take about {need}; lower "
            f"`frames` or `max_length`, {remedy}"
        )

    def _finish(
        self, made: Made, request: Request, notes: Sequence[str], **more: str | int | None
    ) -> Clip:
        """The clip, enlarged and at its playback rate, with the settings that made it."""
        frames_FHW3 = video.scale(made.frames_FHW3, self._factor(request.scale))
        known = made.together if request.config.frames or more.get("multi") else None
        longest = self._most(int(more.get("keyframes") or 2))
        told = [*self.size_notes, *self._notes(request, known, longest), *notes]
        record = self._record(made, request)
        record |= {name: value for name, value in more.items() if value is not None}
        ends = [self.codec.pictures_of(number + 1) - 1 for number in range(len(made.order))]
        shown = ends if ends[-1] == len(made.frames_FHW3) - 1 else []
        rate, seed = record["fps"], request.seed
        return Clip(frames_FHW3, rate, seed, record, told, made.growth, made.order, shown)

    def _record(self, made: Made, request: Request) -> dict[str, Any]:
        """The settings that made a clip."""
        controls = asdict(request.config)
        read = self.reading(request.prompt, request.literal).text
        return {
            **self.origin,
            "command": request.command,
            "model_steps": self.card.steps,
            "prompt": request.prompt,
            **({} if read == request.prompt else {"read_as": read}),
            **({"literal": True} if request.literal else {}),
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "length": request.config.frames or "auto",  # as asked for
            **{name: value for name, value in controls.items() if value is not None},
            "frames": len(made.frames_FHW3),
            "fps": request.fps or self.card.fps,
            "scale": self._factor(request.scale),
            **({"loop": True} if request.loop else {}),
            **({"anyway": True} if request.anyway else {}),
        }

    def _keyed(
        self, clip: Clip, given_FHW3: Frames, request: Request, places: Sequence[int]
    ) -> Clip:
        """The user's own pixels in the places of the given frames, if asked for or if they fit."""
        _, height, width, _ = clip.frames_FHW3.shape
        matches = given_FHW3.shape[1:3] in ((height, width), self._size(given_FHW3))
        own_FHW3, said = given_FHW3, ""
        if not matches:
            own_FHW3, said = video.fit(given_FHW3, (height, width), request.fit)
        notes = [*clip.notes, said] if said else clip.notes
        frames_FHW3 = clip.frames_FHW3
        if request.exact or (request.exact is None and matches):
            frames_FHW3 = frames_FHW3.copy()
            frames_FHW3[list(places)] = video.scale(own_FHW3, height // own_FHW3.shape[1])
        return replace(clip, frames_FHW3=frames_FHW3, notes=notes)


def _around(clip_FHW3: Frames, new: Sequence[Made], backward: bool) -> Made:
    """A clip with new pictures after it, or the first part of them before it."""
    parts = [made.frames_FHW3 for made in new]
    parts.insert(1 if backward else 0, clip_FHW3)
    before = len(new[0]) if backward else 0
    return replace(new[0], frames_FHW3=np.concatenate(parts), before=before)


def _sounding(clip: Clip, sound: Sound | None, start: float | None) -> Clip:
    """The clip with a sound that begins at ``start``, in seconds; None: its pace is another."""
    if sound is None:
        return clip
    if start is None:
        note = "sound is left out: the clip plays at another speed"
        return replace(clip, notes=[*clip.notes, note])
    return replace(clip, sound=replace(sound, start=sound.start + start))
