"""Windows of shots to learn motion from, real ones and moving layers of photographs.

A *window* is a gap between two given frames of a shot, one of the missing frames within, and the
given frames before and after the gap where there are any. All given frames of a shot lie evenly,
``spacing`` frames apart.

Shots lie in a cache folder as plain arrays of frames. Flows are estimated once for whole frames,
when they are first asked for, and kept there too: from then on a crop of a window costs nearly
nothing.

Shape suffixes: F frames, N windows, H W height and width, 2 x and y of a flow in pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept.errors import UserError
from flowcept.files import replacing
from flowcept.networks.flow import MotionEstimator
from flowcept.networks.motion import Flows, acceleration, measured_cues

FLOW_STEPS = 64  # a flow is kept in whole 64ths of a pixel, int16: up to 511 pixels
TAKE = 4  # shots of one source with neighbouring numbers, held out together
SMALL = "-small"  # ends the name of a shot that is another one, made small and enlarged again
INDEX = "shots.json"
MOST_OPEN = 256  # files of shots; systems allow about a thousand of all kinds
LEAST_MOTION = 0.4  # of 255: mean change over a spacing under which a gap counts as still

Progress = Callable[[int, int], None]  # called with (done, total)


@dataclass(frozen=True)
class WindowsConfig:
    """Which windows are made."""

    held_out: float = 0.1  # share of takes that is never learned from
    most_shots: int = 400  # of real clips
    spacings: tuple[int, ...] = (2, 3, 4, 6, 8)  # frames from one given frame to the next
    spacing_weights: tuple[float, ...] = (0.4, 0.1, 0.35, 0.1, 0.05)
    most_gaps: int = 8  # of each shot and spacing
    small_share: float = 0.3  # of shots that are also shown as enlarged small pictures
    num_layered: int = 400  # clips of moving layers
    layered_share: float = 0.3  # of the windows that are drawn
    sides: tuple[int, ...] = (96, 128, 128, 176)  # pixels along a crop
    pixels: int = 6 * 128 * 128  # of all crops of a batch
    alone: float = 0.3  # share of windows whose pictures beyond the gap are not told
    law_pairs: int = 32  # pictures pairs of each shot from which the law of gaps learns
    law_longest: int = 41  # frames: the widest of these
    seed: int = 0  # of the takes held out, the moving layers and the law's pairs

    def __post_init__(self) -> None:
        if len(self.spacings) != len(self.spacing_weights) or min(self.spacings) < 2:
            raise ValueError("each spacing is at least 2 and has one weight")


@dataclass(frozen=True)
class Shot:
    """Frames of one take without cuts, in the cache."""

    name: str
    num_frames: int
    height: int
    width: int
    held_out: bool
    layered: bool
    change: tuple[float, ...]  # mean absolute change over each spacing, of 255


@dataclass(frozen=True)
class Gap:
    """The frames from one given frame to the next, ``spacing`` later."""

    shot: Shot
    start: int
    spacing: int


@dataclass(frozen=True)
class Batch:
    """Crops of windows of one size. Pictures are in [-1, 1]."""

    left_N3HW: Tensor
    right_N3HW: Tensor
    truth_N3HW: Tensor  # the missing frame
    flows: Flows
    t_N: Tensor  # place of the missing frame in (0, 1)

    def to(self, device: torch.device) -> Batch:
        """The same batch there."""
        flows = Flows(*(flow.to(device) for flow in vars(self.flows).values()))
        pictures = (self.left_N3HW, self.right_N3HW, self.truth_N3HW)
        left, right, truth = (one.to(device) for one in pictures)
        return Batch(left, right, truth, flows, self.t_N.to(device))


def flow_name(shot: Shot, start: int, spacing: int) -> str:
    """The file of the flows between a frame and the one ``spacing`` later."""
    return f"{shot.name}_{start}_{spacing}.npy"


def take_of(name: str) -> str:
    """What shots that belong together share: ``city_05`` and ``city_06`` are of ``city/1``."""
    source, _, number = name.rpartition("_")
    return f"{source}/{int(number) // TAKE}" if source and number.isdecimal() else name


def share_of(text: str, salt: int) -> float:
    """A number in [0, 1) that follows from the text alone."""
    return int(hashlib.sha256(f"{salt} {text}".encode()).hexdigest()[:12], 16) / 16**12


# ---- the cache -------------------------------------------------------------------------------


class MotionData:
    """Shots in a cache folder, and flows, made when first asked for."""

    def __init__(self, folder: Path, config: WindowsConfig, estimator: MotionEstimator) -> None:
        self.folder, self.config, self.estimator = folder, config, estimator
        self.shots = read_shots(folder)
        (folder / "flows").mkdir(exist_ok=True)
        self._frames: dict[str, NDArray[np.uint8]] = {}

    def frames(self, shot: Shot) -> NDArray[np.uint8]:
        """uint8 [F, H, W, 3], read from the file as needed."""
        if shot.name not in self._frames:
            if len(self._frames) == MOST_OPEN:
                self._frames.clear()
            self._frames[shot.name] = np.load(self.folder / f"{shot.name}.npy", mmap_mode="r")
        return self._frames[shot.name]

    def flow(self, shot: Shot, start: int, spacing: int) -> NDArray[np.int16]:
        """Flow from a frame to the one ``spacing`` later, and back: int16 [2, 2, H, W]."""
        file = self.folder / "flows" / flow_name(shot, start, spacing)
        if not file.exists():
            steps = self.estimated(shot, start, spacing)
            try:
                with replacing(file) as temporary:
                    np.save(temporary, steps)
            except UserError:  # a full disk: it will be estimated again
                return steps
        flow: NDArray[np.int16] = np.load(file, mmap_mode="r")
        return flow

    def estimated(self, shot: Shot, start: int, spacing: int) -> NDArray[np.int16]:
        """The same, newly estimated."""
        frames = self.frames(shot)
        first, second = (picture(frames[i]) for i in (start, start + spacing))
        both = torch.stack([self.estimator(first, second), self.estimator(second, first)])
        steps: NDArray[np.int16] = (
            (both * FLOW_STEPS).round().clamp(-32767, 32767).to(torch.int16).numpy()
        )
        return steps

    def gaps(self, shot: Shot, spacing: int) -> list[Gap]:
        """The gaps that are drawn from, in the middle of the shot."""
        count = (shot.num_frames - 1) // spacing
        chosen = min(count, self.config.most_gaps)
        first = (count - chosen) // 2
        return [Gap(shot, g * spacing, spacing) for g in range(first, first + chosen)]

    def law_examples(self, progress: Progress | None = None) -> dict[str, Tensor]:
        """Cues of pairs of real frames, the number of frames between, and whether held out."""
        file = self.folder / "law.npz"
        if not file.exists():
            cues, between, held = self._measured(progress or (lambda *_: None))
            with replacing(file) as temporary:
                np.savez(temporary, cues=np.stack(cues), between=between, held=held)
        return read_law_table(file)

    def _measured(
        self, progress: Progress
    ) -> tuple[list[NDArray[np.float32]], list[int], list[bool]]:
        cues, between, held = [], [], []
        real = [shot for shot in self.shots if not shot.layered and not shot.name.endswith(SMALL)]
        for number, shot in enumerate(real, start=1):
            for start, spacing in _pairs(shot, self.config):
                cues.append(self._cues(shot, start, spacing))
                between.append(spacing - 1)
                held.append(shot.held_out)
            progress(number, len(real))
        return cues, between, held

    def _cues(self, shot: Shot, start: int, spacing: int) -> NDArray[np.float32]:
        ends = (self.frames(shot)[index] for index in (start, start + spacing))
        left, right = (picture(frame_HW3).float() / 127.5 - 1 for frame_HW3 in ends)
        cue_D: NDArray[np.float32] = measured_cues(self.estimator, left, right).numpy()
        return cue_D


def read_law_table(file: Path) -> dict[str, Tensor]:
    """What ``MotionData.law_examples`` keeps in a file."""
    with np.load(file) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in ("cues", "between", "held")}


def _pairs(shot: Shot, config: WindowsConfig) -> list[tuple[int, int]]:
    """First frames and spacings; spacing n is drawn with a weight of 1 / (n + 6)."""
    rng = np.random.default_rng([config.seed, int(share_of(shot.name, 0) * 2**32)])
    spacings = np.arange(1, min(config.law_longest, shot.num_frames - 1) + 1)
    weights = 1 / (spacings + 6)
    drawn = rng.choice(spacings, config.law_pairs, p=weights / weights.sum())
    return [(int(rng.integers(shot.num_frames - n)), int(n)) for n in drawn]


def picture(frame_HW3: NDArray[np.uint8]) -> Tensor:
    """A frame as a uint8 tensor [3, H, W]."""
    return torch.from_numpy(np.array(frame_HW3)).permute(2, 0, 1).contiguous()


def add_shot(
    folder: Path,
    name: str,
    frames_FHW3: NDArray[np.uint8],
    spacings: Sequence[int],
    *,
    held_out: bool = False,
    layered: bool = False,
) -> Shot:
    """Keep frames in a cache folder, in which ``write_shots`` then lists them."""
    np.save(folder / f"{name}.npy", frames_FHW3)
    small = frames_FHW3[:, ::4, ::4].astype(np.float32)
    change = [
        float(np.abs(small[n:] - small[:-n]).mean()) if len(small) > n else 0.0 for n in spacings
    ]
    count, height, width = frames_FHW3.shape[:3]
    return Shot(name, count, height, width, held_out, layered, tuple(change))


def write_shots(shots: Sequence[Shot], folder: Path) -> None:
    """List all shots of a cache folder, which is whole from now on."""
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps([vars(shot) for shot in shots]), encoding="utf-8")


def read_shots(folder: Path) -> list[Shot]:
    """The shots of a whole cache folder."""
    listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [Shot(**{**shot, "change": tuple(shot["change"])}) for shot in listed]


# ---- drawing ---------------------------------------------------------------------------------


class WindowDrawer:
    """Draws batches of crops of the windows that are not held out; ``rng`` is all its state."""

    def __init__(self, data: MotionData, rng: np.random.Generator) -> None:
        self.data, self.rng = data, rng
        self._choices = {
            (spacing, layered): self._weighed(number, spacing, layered)
            for number, spacing in enumerate(data.config.spacings)
            for layered in (False, True)
        }
        if not any(gaps for (_, layered), (gaps, _) in self._choices.items() if not layered):
            raise UserError("nothing moves in the training clips: give others")
        self.sides = _fitting(data)

    @property
    def num_gaps(self) -> int:
        """Gaps that may be drawn."""
        return sum(len(gaps) for gaps, _ in self._choices.values())

    @property
    def num_windows(self) -> int:
        """Missing frames of real shots that may be asked for."""
        return sum(
            (spacing - 1) * len(gaps)
            for (spacing, layered), (gaps, _) in self._choices.items()
            if not layered
        )

    def _weighed(
        self, number: int, spacing: int, layered: bool
    ) -> tuple[list[Gap], NDArray[np.float64]]:
        """All gaps of a kind, and how often each is drawn: more where more happens."""
        gaps, weights = [], []
        for shot in self.data.shots:
            if shot.held_out or shot.layered != layered or shot.change[number] < LEAST_MOTION:
                continue
            some = self.data.gaps(shot, spacing)
            gaps += some
            weights += [min(1.0, shot.change[number] / 8)] * len(some)
        total = np.array(weights, np.float64)
        return gaps, total / max(total.sum(), 1e-9)

    def batch(self) -> Batch:
        """The next batch."""
        config, rng = self.data.config, self.rng
        side = int(rng.choice(self.sides))
        count = max(1, config.pixels // side**2)
        return joined([self._window(side) for _ in range(count)])

    def _window(self, side: int) -> Batch:
        config, rng = self.data.config, self.rng
        weights = np.array(config.spacing_weights)
        spacing = int(rng.choice(config.spacings, p=weights / weights.sum()))
        layered = rng.random() < config.layered_share
        gaps, chances = self._choices[spacing, layered]
        if not gaps:
            gaps, chances = max(self._choices.values(), key=lambda pair: len(pair[0]))
        gap = gaps[int(rng.choice(len(gaps), p=chances))]
        missing = int(rng.integers(1, gap.spacing))
        known = self._known(gap)
        corner = self._corner(gap, side)
        window = cropped(self.data, gap, missing, corner, side, *known)
        return varied(window, rng)

    def _known(self, gap: Gap) -> tuple[bool, bool]:
        """Whether the pictures before and after the gap are given."""
        alone = self.rng.random(3)
        if alone[0] < self.data.config.alone:
            return False, False
        before = gap.start >= gap.spacing and alone[1] > 0.1
        after = gap.start + 2 * gap.spacing < gap.shot.num_frames and alone[2] > 0.1
        return before, after

    def _corner(self, gap: Gap, side: int) -> tuple[int, int]:
        """Top and left of a crop: mostly that of two in which more changes."""
        rng, frames = self.rng, self.data.frames(gap.shot)
        tries = [
            (
                int(rng.integers(gap.shot.height - side + 1)),
                int(rng.integers(gap.shot.width - side + 1)),
            )
            for _ in range(2)
        ]
        if rng.random() < 0.3:
            return tries[0]

        def change(corner: tuple[int, int]) -> float:
            rows, columns = (slice(start, start + side, 4) for start in corner)
            left, right = (
                frames[i, rows, columns].astype(np.int16)
                for i in (gap.start, gap.start + gap.spacing)
            )
            return float(np.abs(left - right).mean())

        return max(tries, key=change)


def _fitting(data: MotionData) -> list[int]:
    """Sides of crops that every shot to learn from is large enough for."""
    learned = [shot for shot in data.shots if not shot.held_out]
    smallest = min(min(shot.height, shot.width) for shot in learned)
    return [side for side in data.config.sides if side <= smallest] or [smallest // 16 * 16]


def cropped(
    data: MotionData,
    gap: Gap,
    missing: int,
    corner: tuple[int, int],
    side: int | tuple[int, int],
    before: bool,
    after: bool,
) -> Batch:
    """The window whose ``missing``-th frame is asked for, cut out of the shot: a batch of one."""
    shot, start, spacing = gap.shot, gap.start, gap.spacing
    height, width = (side, side) if isinstance(side, int) else side
    rows, columns = slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)
    frames = data.frames(shot)
    left, right, truth = (
        picture(frames[i, rows, columns])[None].float() / 127.5 - 1
        for i in (start, start + spacing, start + missing)
    )

    def flows(first: int) -> Tensor:
        steps = np.array(data.flow(shot, first, spacing)[..., rows, columns])
        return torch.from_numpy(steps).float() / FLOW_STEPS

    there, back = flows(start)[:, None]
    zero = torch.zeros_like(there)
    bend_left = acceleration(there, flows(start - spacing)[1][None]) if before else zero
    bend_right = acceleration(back, flows(start + spacing)[0][None]) if after else zero
    bent = Flows(there, back, bend_left, bend_right)
    return Batch(left, right, truth, bent, torch.tensor([missing / spacing]))


def joined(windows: Sequence[Batch]) -> Batch:
    """Windows of one size as one batch."""
    return Batch(
        torch.cat([w.left_N3HW for w in windows]),
        torch.cat([w.right_N3HW for w in windows]),
        torch.cat([w.truth_N3HW for w in windows]),
        Flows(
            torch.cat([w.flows.there_N2HW for w in windows]),
            torch.cat([w.flows.back_N2HW for w in windows]),
            torch.cat([w.flows.bend_left_N2HW for w in windows]),
            torch.cat([w.flows.bend_right_N2HW for w in windows]),
        ),
        torch.cat([w.t_N for w in windows]),
    )


def varied(window: Batch, rng: np.random.Generator) -> Batch:
    """The window mirrored, turned on its diagonal, reversed in time, its colours changed."""
    if rng.random() < 0.5:
        window = _reversed(window)
    if rng.random() < 0.5:
        window = _turned(window, lambda x: x.flip(-1), torch.tensor([-1.0, 1.0]))
    if rng.random() < 0.5:
        window = _turned(window, lambda x: x.flip(-2), torch.tensor([1.0, -1.0]))
    if rng.random() < 0.5:
        window = _turned(window, lambda x: x.transpose(-1, -2), torch.ones(2), swap=True)
    order = torch.from_numpy(rng.permutation(3))
    gain, shift = rng.uniform(0.7, 1.2), rng.uniform(-0.15, 0.15)
    sign = rng.choice([-1.0, 1.0], p=[0.2, 0.8])

    def coloured(picture_N3HW: Tensor) -> Tensor:
        return (picture_N3HW[:, order] * float(gain * sign) + float(shift)).clamp(-1, 1)

    pictures = (window.left_N3HW, window.right_N3HW, window.truth_N3HW)
    left, right, truth = (coloured(one) for one in pictures)
    return Batch(left, right, truth, window.flows, window.t_N)


def _reversed(window: Batch) -> Batch:
    flows = window.flows
    return Batch(
        window.right_N3HW,
        window.left_N3HW,
        window.truth_N3HW,
        Flows(flows.back_N2HW, flows.there_N2HW, flows.bend_right_N2HW, flows.bend_left_N2HW),
        1 - window.t_N,
    )


def _turned(
    window: Batch, turn: Callable[[Tensor], Tensor], sign_2: Tensor, *, swap: bool = False
) -> Batch:
    """All pictures turned; flows turned with them, and their x and y."""

    def flow(flow_N2HW: Tensor) -> Tensor:
        turned = turn(flow_N2HW) * sign_2.view(1, 2, 1, 1)
        return turned.flip(1) if swap else turned

    flows = window.flows
    return Batch(
        turn(window.left_N3HW),
        turn(window.right_N3HW),
        turn(window.truth_N3HW),
        Flows(
            flow(flows.there_N2HW),
            flow(flows.back_N2HW),
            flow(flows.bend_left_N2HW),
            flow(flows.bend_right_N2HW),
        ),
        window.t_N,
    )


def held_windows(
    data: MotionData, most: int = 32, largest: int = 256, *, learned: bool = False
) -> list[Batch]:
    """Windows of held-out shots, always the same: spacings 2 and 4, the middle of the picture.

    With ``learned``, of the shots that are learned from.
    """
    windows: list[Batch] = []
    shots = [shot for shot in data.shots if shot.held_out != learned and not shot.layered]
    for spacing, missing in itertools.product((2, 4), (1, 2)):
        for shot in shots:
            gaps = [gap for gap in data.gaps(shot, spacing) if spacing in data.config.spacings]
            if missing >= spacing or not gaps:
                continue
            gap = gaps[len(gaps) * missing // 3]
            height, width = (min(largest, n // 16 * 16) for n in (shot.height, shot.width))
            corner = (shot.height - height) // 2, (shot.width - width) // 2
            before = gap.start >= spacing
            after = gap.start + 2 * spacing < shot.num_frames
            windows.append(cropped(data, gap, missing, corner, (height, width), before, after))
    step = max(1, -(-len(windows) // most))
    return windows[::step]
