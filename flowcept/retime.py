"""A whole clip at another frame rate or speed: each frame at its time, from those around it.

A clip comes and goes as a stream. Of its own pictures about four are held, those around the gap at
work, with the motion between neighbours, which two gaps share; what is made goes to the encoder at
once. So memory does not grow with the clip. What is unusual:

* Times are real ones. A clip of uneven durations, or at 24 frames a second, comes out at 60 with
  every frame where it belongs; a given picture whose time falls on the new grid keeps its bits.
* Nothing is moved across a scene cut: the picture before it stays until its time is over.
* Where motion explains too little, the pictures on either side dissolve into each other.

Shape suffixes: N = 1 gap, C channels, H W height and width, 2 x and y of a flow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept import __version__
from flowcept.data import video
from flowcept.data.formats import peeked
from flowcept.data.video import Frames, Reel, Sound
from flowcept.errors import UserError, counted
from flowcept.networks.flow import DisEstimator, MotionEstimator, photometric_error
from flowcept.networks.motion import (
    Flows,
    Gap,
    MotionNetwork,
    Plan,
    acceleration,
    planned,
    shown,
    working_size,
)
from flowcept.settings import FASTEST, SLOWEST, RetimeConfig

SNAP = 1e-3  # of a gap: a time this near to a given picture's is that picture's
CUT_ERROR = 0.045  # of the range of colours: with less, two pictures show one scene
CUT_RATIO = 2.0  # a cut's error over those of the gaps beside it
CUT_COLOURS = 0.1  # share of the pixels that changes its colour
COLOUR_LEVELS = 8  # of red, green and blue, in counts of colours
DISSOLVE = 0.15  # expected mean absolute error, pictures in [-1, 1]
ALIKE = 6 / 255  # mean absolute difference of the most different cell of two alike pictures
CELL = 8  # pixels of a side of such a cell
LONGEST_RUN = 3  # repeats that stand for missing pictures, as in animation on fours; more: a rest


# ---- the new grid of times -------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The frames of the result, at times of the clip."""

    count: int
    fps: float  # at which they play
    pace: float  # seconds of the result for one of the clip

    def time(self, number: int) -> float:
        """Of a frame, on the clip's clock."""
        return number / (self.fps * self.pace)


def grid_of(reel: Reel, config: RetimeConfig, multi: int = 0, fps: float | None = None) -> Grid:
    """The frames that a clip gets: by default twice its rate, or its own rate when slowed down.

    ``multi`` puts so many frames between two at the clip's rate; ``fps`` plays all that at another
    rate, so at another pace.
    """
    usual = reel.fps if config.slow != 1 and not multi else reel.fps * ((multi or 1) + 1)
    rate = _stated(config.target_fps or usual)
    played = _stated(fps or rate)
    pace = config.slow * rate / played
    seconds = float(reel.edges[-1]) * pace
    return Grid(max(1, round(seconds * played)), played, pace)


def _stated(fps: float) -> float:
    """A rate as files state it."""
    if not SLOWEST <= fps <= FASTEST:
        raise UserError(f"{fps:g} frames a second cannot be written: give --target-fps")
    return float(Fraction(fps).limit_denominator(1001))


# ---- given pictures and the motion between two neighbours ------------------------------------


@dataclass(eq=False)
class Given:
    """A picture of the clip."""

    start: float  # s
    picture_HWC: Frames  # [H, W, 3], or [H, W, 4] with alpha

    @cached_property
    def work_1CHW(self) -> Tensor:
        """At the size at which motion is estimated, on white."""
        return working_size(self.colour_CHW()[None])

    def colour_CHW(self) -> Tensor:
        """In [-1, 1], on white."""
        unit_CHW = self._channels()
        if len(unit_CHW) == 4:
            unit_CHW = unit_CHW[:3] * unit_CHW[3:] + (1 - unit_CHW[3:])
        return unit_CHW.mul_(2).sub_(1)

    def alpha_1HW(self) -> Tensor:
        """In [-1, 1]: 1 where nothing shines through."""
        return self._channels()[3:] * 2 - 1

    def _channels(self) -> Tensor:
        return torch.from_numpy(self.picture_HWC.copy()).permute(2, 0, 1).float().div_(255)

    @property
    def transparent(self) -> bool:
        return self.picture_HWC.shape[2] == 4 and bool((self.picture_HWC[..., 3] < 255).any())


class Pair:
    """Two neighbouring pictures and the motion between them, which is found when it is needed."""

    def __init__(self, left: Given, right: Given, estimator: MotionEstimator) -> None:
        self.left, self.right, self.estimator = left, right, estimator

    @property
    def seconds(self) -> float:
        return self.right.start - self.left.start

    @cached_property
    def there_N2HW(self) -> Tensor:
        return self.estimator(self.left.work_1CHW[0], self.right.work_1CHW[0])[None]

    @cached_property
    def back_N2HW(self) -> Tensor:
        return self.estimator(self.right.work_1CHW[0], self.left.work_1CHW[0])[None]

    @cached_property
    def error(self) -> float:
        """What motion leaves unexplained: mean photometric error in [0, 1], both ways."""
        left, right = self.left.work_1CHW, self.right.work_1CHW
        there = photometric_error(left, right, self.there_N2HW)
        back = photometric_error(right, left, self.back_N2HW)
        return float(there.mean() + back.mean()) / 2

    @cached_property
    def colours(self) -> float:
        """Share of the pixels to change until both have as many of each colour."""
        left, right = (_colour_counts(one.work_1CHW[0]) for one in (self.left, self.right))
        return float((left - right).abs().sum()) / 2


def _colour_counts(picture_CHW: Tensor) -> Tensor:
    """Share of the pixels that has each colour."""
    level_CHW = ((picture_CHW + 1) / 2 * COLOUR_LEVELS).long().clamp(0, COLOUR_LEVELS - 1)
    red, green, blue = level_CHW.flatten(1)
    colour = (red * COLOUR_LEVELS + green) * COLOUR_LEVELS + blue
    counts = torch.bincount(colour, minlength=COLOUR_LEVELS**3)
    return counts / counts.sum()


def paired(pictures: Iterable[Given], estimator: MotionEstimator) -> Iterator[Pair]:
    """Each picture with the next one."""
    for left, right in itertools.pairwise(pictures):
        yield Pair(left, right, estimator)


@dataclass(frozen=True)
class Around:
    """A pair and the pairs beside it; None at an end of the clip."""

    before: Pair | None
    pair: Pair
    after: Pair | None

    @property
    def beside(self) -> list[Pair]:
        return [one for one in (self.before, self.after) if one is not None]


def surrounded(pairs: Iterable[Pair]) -> Iterator[Around]:
    """Each pair with its neighbours."""
    before, pair = None, None
    for after in pairs:
        if pair is not None:
            yield Around(before, pair, after)
        before, pair = pair, after
    if pair is not None:
        yield Around(before, pair, None)


def is_cut(around: Around) -> bool:
    """Whether a new scene begins between the pictures of a pair.

    Motion explains little, far less than beside it, and colours change.
    """
    pair = around.pair
    if pair.colours < CUT_COLOURS or pair.error < CUT_ERROR:
        return False
    return all(pair.error > CUT_RATIO * one.error for one in around.beside)


def gap_of(around: Around) -> Gap:
    """How things move between the two pictures, curved where the scene goes on beyond them."""
    pair = around.pair
    bends = [
        _bend(pair, pair.there_N2HW, around.before, "back_N2HW"),
        _bend(pair, pair.back_N2HW, around.after, "there_N2HW"),
    ]
    left, right = pair.left, pair.right
    flows = Flows(pair.there_N2HW, pair.back_N2HW, *bends)
    return Gap(left.colour_CHW(), right.colour_CHW(), left.work_1CHW, right.work_1CHW, flows)


def _bend(pair: Pair, flow_N2HW: Tensor, beyond: Pair | None, outward: str) -> Tensor:
    if beyond is None or beyond.error > max(CUT_ERROR, 2 * pair.error):
        return torch.zeros_like(flow_N2HW)
    return acceleration(flow_N2HW, getattr(beyond, outward), beyond.seconds / pair.seconds)


# ---- pictures that repeat the one before -----------------------------------------------------


def alike(first: Given, second: Given) -> bool:
    """Whether two pictures differ by no more than what encoding does."""
    apart_1CHW = (first.work_1CHW - second.work_1CHW).abs() / 2
    cells = F.avg_pool2d(apart_1CHW.mean(1, keepdim=True), CELL, ceil_mode=True)
    return float(cells.max()) < ALIKE


def without_repeats(pictures: Iterator[Given], report: Report, keep: bool) -> Iterator[Given]:
    """The pictures but those that repeat the one before; longer rests stay as they are.

    With ``keep`` all of them, and only the report learns of repeats.
    """
    last, run, resting = next(pictures), list[Given](), False
    yield last
    for given in pictures:
        if not alike(last, given):
            report.repeats += len(run)
            yield from run if keep else ()
            last, run, resting = given, [], False
            yield given
        elif resting:
            last = given
            yield given
        else:
            run.append(given)
            if len(run) > LONGEST_RUN:
                last, resting = given, True
                yield from run
                run = []
    report.repeats += len(run)
    yield from run if keep else ()


# ---- frames between two pictures -------------------------------------------------------------


@dataclass
class Report:
    """What happened on the way."""

    cuts: int = 0  # gaps with a scene cut
    dissolved: int = 0  # gaps whose pictures dissolve into each other
    repeats: int = 0  # given pictures that repeat the one before
    transparent: bool = False  # whether anything shines through a given picture

    def notes(self, config: RetimeConfig, keeps_alpha: bool) -> list[str]:
        """Sentences for the user."""
        told = []
        if self.cuts:
            told.append(f"{counted(self.cuts, 'scene cut')}: frames are repeated there")
        if self.dissolved:
            told.append(
                f"{counted(self.dissolved, 'gap')} with too much motion: frames are blended there"
            )
        if self.repeats and config.dedupe:
            told.append(f"{counted(self.repeats, 'repeated frame')} replaced")
        elif self.repeats:
            many = counted(self.repeats, "frame")
            told.append(f"{many} like the one before: --dedupe replaces them")
        if self.transparent and not keeps_alpha:
            told.append("transparency is lost: this format has none; webm, webp, apng and PNG do")
        return told


class Maker:
    """Makes the frames of each gap."""

    def __init__(self, network: MotionNetwork | None, alpha: bool, report: Report) -> None:
        self.network, self.alpha, self.report = network, alpha, report

    def given(self, one: Given) -> Frames:
        """A given picture as the result holds it."""
        self.report.transparent |= one.transparent
        if self.alpha or one.picture_HWC.shape[2] == 3:
            return one.picture_HWC
        return _bytes(one.colour_CHW())

    def frames(self, around: Around, places: list[float]) -> Iterator[Frames]:
        """The frames at places from 0 to 1 between the pictures of a pair."""
        left = self.given(around.pair.left)
        inner = [place for place in places if place > SNAP]
        yield from itertools.repeat(left, len(places) - len(inner))
        if not inner:
            return
        if is_cut(around):
            self.report.cuts += 1
            yield from itertools.repeat(left, len(inner))
        else:
            yield from self._between(around, inner)

    def _between(self, around: Around, places: list[float]) -> Iterator[Frames]:
        gap = gap_of(around)
        alpha = _alpha_gap(around.pair, gap) if self.alpha else None
        middle = min(places, key=lambda place: abs(place - 0.5))
        central = planned(self.network, gap, middle)
        far = self._expected_error(around.pair, central) > DISSOLVE
        self.report.dissolved += far
        for place in places:
            if far:
                yield _frame(gap, alpha, partial(_dissolved, place=place))
            else:
                plan = central if place == middle else planned(self.network, gap, place)
                yield _frame(gap, alpha, partial(_moved, plan=plan))

    def _expected_error(self, pair: Pair, plan: Plan) -> float:
        """Mean absolute error, as the network says; else what motion leaves unexplained."""
        if self.network is None:
            return 2 * pair.error  # of colours in [-1, 1]
        return float(plan.log_error_N1HW.exp().mean())


def _dissolved(gap: Gap, place: float) -> Tensor:
    return torch.lerp(gap.left_CHW, gap.right_CHW, place)


def _moved(gap: Gap, plan: Plan) -> Tensor:
    """The frame that a plan makes; of a single channel without the colour that the plan adds."""
    if len(gap.left_CHW) == 1:
        plan = replace(plan, colour_NCHW=torch.zeros_like(plan.colour_NCHW[:, :1]))
    return shown(gap, plan)


def _frame(gap: Gap, alpha: Gap | None, make: Callable[[Gap], Tensor]) -> Frames:
    """A frame as bytes, its alpha channel made as its colours are."""
    if alpha is None:
        return _bytes(make(gap))
    return _see_through(make(gap), make(alpha))


def _alpha_gap(pair: Pair, gap: Gap) -> Gap:
    """The alpha channels around a gap, which move as its colours do."""
    left, right = pair.left.alpha_1HW(), pair.right.alpha_1HW()
    return Gap(left, right, working_size(left[None]), working_size(right[None]), gap.flows)


def _bytes(picture_CHW: Tensor) -> Frames:
    """[-1, 1] to uint8 ``[H, W, C]``."""
    whole = ((picture_CHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(whole.permute(1, 2, 0).numpy())


def _see_through(colour_CHW: Tensor, alpha_1HW: Tensor) -> Frames:
    """Colours on white and alpha to straight colours with alpha, ``[H, W, 4]``."""
    alpha = (alpha_1HW + 1) / 2
    on_black = (colour_CHW + 1) / 2 - (1 - alpha)
    straight = torch.where(alpha > 0, on_black / alpha.clamp(min=1e-3), 0.0)
    return _bytes(torch.cat([straight, alpha]) * 2 - 1)


# ---- a whole clip ----------------------------------------------------------------------------


def retimed(
    reel: Reel, grid: Grid, maker: Maker, estimator: MotionEstimator, dedupe: bool = False
) -> Iterator[Frames]:
    """The frames ``[H, W, 3]``, or with alpha ``[H, W, 4]``, of a clip on another grid of times."""
    timed = zip(reel.pictures(), reel.edges, strict=False)  # the last edge is the end
    pictures = (Given(float(start), picture_HWC) for picture_HWC, start in timed)
    first, kept = peeked(without_repeats(pictures, maker.report, keep=not dedupe))
    number, last = 0, first
    for around in surrounded(paired(kept, estimator)):
        places = _places(around.pair, grid, number)
        yield from maker.frames(around, places)
        number, last = number + len(places), around.pair.right
    yield from itertools.repeat(maker.given(last), grid.count - number)


def _places(pair: Pair, grid: Grid, number: int) -> list[float]:
    """Where between the pictures of a pair the frames from ``number`` on lie, 0 at the left."""
    places = []
    for later in range(number, grid.count):
        place = (grid.time(later) - pair.left.start) / pair.seconds
        if place > 1 - SNAP:
            break
        places.append(place)
    return places


@dataclass(frozen=True)
class Retimed:
    """What became of a clip."""

    count: int  # frames written
    grid: Grid  # as planned: ``count`` is less where the work was stopped
    width: int
    height: int
    notes: list[str]

    @property
    def whole(self) -> bool:
        return self.count == self.grid.count


@dataclass(frozen=True)
class Retimer:
    """Makes clips of another rate or pace."""

    network: MotionNetwork | None = None  # None: nothing learned
    estimator: MotionEstimator = field(default_factory=DisEstimator)
    config: RetimeConfig = field(default_factory=RetimeConfig)
    multi: int = 0  # frames between two of the clip, at a multiple of its rate; 0: see ``grid_of``
    fps: float | None = None  # at which all that is played; default: as it is
    silent: bool = False  # whether sound is left out

    def retime(
        self,
        path: Path,
        output: Path,
        *,
        metadata: bool = True,
        watch: Callable[[int], object] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Retimed:
        """Write a clip at its new times; ``output`` is whole at the end, or absent.

        ``watch`` is told the number of all frames after each. Once ``stopped`` says so, what is
        finished is the whole result. Raises ``UserError`` for what cannot be read or written.
        """
        reel = video.open_reel(path)
        grid = grid_of(reel, self.config, self.multi, self.fps)
        alpha = reel.transparent and video.holds_alpha(output.suffix.lower())
        report = Report()
        maker = Maker(self.network, alpha, report)
        frames = retimed(reel, grid, maker, self.estimator, self.config.dedupe)
        size = _Size()
        watched = size.noted(_until(frames, grid.count, watch, stopped))
        sound, notes = (None, []) if self.silent else _sound(reel, grid)
        told = self._record(path, grid) if metadata else None
        count, changed = video.write_stream(output, watched, grid.fps, metadata=told, sound=sound)
        notes += report.notes(self.config, alpha)
        if count < grid.count:
            notes.append(f"stopped: {count} of {grid.count} frames are written")
        return Retimed(count, grid, size.width, size.height, [*notes, *filter(None, [changed])])

    def _record(self, path: Path, grid: Grid) -> dict[str, object]:
        """The settings that made a clip, for the file."""
        return {
            "flowcept": __version__,
            "command": "interp",
            "clip": path.name,
            "learned": self.network is not None,
            **asdict(self.config),
            "multi": self.multi,
            "fps": grid.fps,
        }


class _Size:
    """The size of frames that pass by."""

    height, width = 0, 0

    def noted(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        for frame_HWC in frames:
            self.height, self.width = frame_HWC.shape[:2]
            yield frame_HWC


def _until(
    frames: Iterable[Frames],
    total: int,
    watch: Callable[[int], object] | None,
    stopped: Callable[[], bool],
) -> Iterator[Frames]:
    """The frames, with word of each; after the first they end where ``stopped`` says so."""
    for frame_HWC in frames:
        yield frame_HWC
        if watch:
            watch(total)
        if stopped():
            return


def _sound(reel: Reel, grid: Grid) -> tuple[Sound | None, list[str]]:
    """The clip's sound where the pace is kept, else a note that it is left out."""
    sound = video.sound_of(reel.path)
    if sound and not math.isclose(grid.pace, 1, rel_tol=1e-4):
        return None, [f"sound is left out: the clip plays {grid.pace:g} times as long"]
    return sound, []
