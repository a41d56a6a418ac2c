"""A folder of clips, and perhaps of pictures, as shots to learn motion from.

A clip is read as a stream. Its frames are scaled to the size at which motion is estimated; frames
that repeat the one before are left out; a new scene begins a new shot. Shots and clips of moving
layers lie in a cache folder, which depends only on files and settings and may be deleted at any
time.

Shape suffixes: F frames, H W height and width, 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from flowcept.data import video
from flowcept.data.batches import split_held_out
from flowcept.data.folder import Finding, Seen, digest_of, fingerprint, look, reason_of, unusable
from flowcept.data.layers import LayersConfig, layered_clip
from flowcept.data.motion_windows import (
    INDEX,
    SMALL,
    Progress,
    Shot,
    WindowsConfig,
    add_shot,
    share_of,
    take_of,
    write_shots,
)
from flowcept.data.timing import Timing
from flowcept.data.video import Frames
from flowcept.errors import UserError, counted
from flowcept.networks.flow import MotionEstimator
from flowcept.networks.motion import WORKING_SIDE, working_size
from flowcept.retime import Given, Report, is_cut, paired, surrounded, without_repeats
from flowcept.training.clock import Clock
from flowcept.training.console import Console

SHOT_FRAMES = 64  # of the longest shot; longer scenes make several
LEAST_SIDE = 16  # pixels of a clip's shorter side
LEAST_PHOTO = 64  # pixels of a picture's shorter side, if layers are cut from it
LARGEST_PHOTO = 720  # pixels of that side in memory; larger pictures are reduced
MOST_PHOTOS = 200
SMALL_FACTOR = 4  # some shots are reduced and enlarged again by this factor
FORMAT = 1  # of the cache: raise it when the same files would give other shots


@dataclass(frozen=True)
class Footage:
    """The clips and pictures of a folder."""

    folder: Path
    clips: tuple[tuple[Path, Timing], ...]
    pictures: tuple[Path, ...]
    findings: tuple[Finding, ...]  # on files that cannot be used

    def summary(self, examples: int = 5) -> Iterator[str]:
        """Lines of text on what was found."""
        frames = sum(timing.num_frames for _, timing in self.clips)
        clips, pictures = counted(len(self.clips), "clip"), counted(len(self.pictures), "picture")
        yield f"{clips} of {frames} frames and {pictures} found"
        yield from (f"  {finding}" for finding in self.findings[:examples])
        if len(self.findings) > examples:
            yield f"  ... and {len(self.findings) - examples} more dropped"


def find(
    folder: Path,
    photos: str,
    least: int,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Footage:
    """The clips of at least so many frames in a folder, and the pictures there and in ``photos``.

    Raises ``UserError`` for a folder that is missing or has no such clip.
    """
    seen = look(folder, progress, cache)
    others = look(Path(photos)) if photos else []
    pictures = [one.path for one in [*seen, *others] if _is_picture(one)]
    findings = [_dropped(one, reason) for one in seen if (reason := _why_not(one, least))]
    bad = {finding.path for finding in findings}
    clips = [one for one in seen if one.path not in bad and not _is_picture(one)]
    if not clips:
        raise _no_clip(folder, findings, least)
    timed = [(one.path, one.found) for one in clips if isinstance(one.found, Timing)]
    return Footage(folder, tuple(timed), tuple(pictures), tuple(findings))


def _no_clip(folder: Path, findings: Sequence[Finding], least: int) -> UserError:
    if findings:
        return unusable(folder, findings)
    return UserError(f"{folder} holds only pictures: add clips of at least {least} frames")


def _is_picture(one: Seen) -> bool:
    """Whether a file is a still picture."""
    still = isinstance(one.found, Timing) and one.found.num_frames == 1
    return still and one.path.suffix.lower() in video.IMAGE_SUFFIXES and not one.path.is_dir()


def _why_not(one: Seen, least: int) -> str:
    """Why a file cannot be used as a clip or picture; empty if it can."""
    if isinstance(one.found, str):
        return one.found
    if _is_picture(one) or one.found.num_frames >= least:
        return ""
    return f"{one.found.num_frames} frames, at least {least} are needed"


def _dropped(one: Seen, reason: str) -> Finding:
    count = one.found.num_frames if isinstance(one.found, Timing) else 0
    return Finding(one.path, "dropped", reason, count, 0.0)


# ---- shots -----------------------------------------------------------------------------------


@dataclass
class Gathering:
    """Shots, collected in a cache folder."""

    footage: Footage
    folder: Path
    windows: WindowsConfig
    estimator: MotionEstimator
    report: Report = field(default_factory=Report)
    shots: list[Shot] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    number: int = 0  # of shots that came by, kept or not

    def add_clips(self, progress: Progress) -> None:
        """Add the shots of all clips; ``UserError`` if there are none to learn from."""
        takes = [take_of(path.stem) for path, _ in self.footage.clips]
        _, held = split_held_out(takes, self.windows.held_out, self.windows.seed)
        done, total = 0, sum(timing.num_frames for _, timing in self.footage.clips)
        for number, (path, timing) in enumerate(self.footage.clips):
            self._add_clip(path, timing, held_out=number in held)
            done += timing.num_frames
            progress(done, total)
        if all(shot.held_out for shot in self.shots):
            raise unusable(self.footage.folder, [*self.footage.findings, *self.findings])

    def _add_clip(self, path: Path, timing: Timing, held_out: bool) -> None:
        """Add the shots of one clip; if one fails, none is kept."""
        least, made, before = min(self.windows.spacings) + 1, list[Shot](), self.number
        try:
            for frames_FHW3 in scenes(path, timing, self.estimator, self.report):
                if len(frames_FHW3) >= least and self._is_kept():
                    made += self._added(frames_FHW3, held_out)
            if self.number == before:
                self.findings.append(
                    _dropped(Seen(path, "", timing), f"no {least} frames in a row without a cut")
                )
        except UserError as error:
            self.findings.append(_dropped(Seen(path, "", timing), reason_of(path, error)))
        else:
            self.shots += made

    def _is_kept(self) -> bool:
        """Whether the next shot is kept; at most ``most_shots`` are, evenly spread."""
        frames = [timing.num_frames for _, timing in self.footage.clips]
        expected = sum(-(-count // SHOT_FRAMES) for count in frames)
        share = min(1.0, self.windows.most_shots / expected)
        self.number += 1
        return int(self.number * share) > int((self.number - 1) * share)

    def _added(self, frames_FHW3: Frames, held_out: bool) -> Iterator[Shot]:
        """A shot, and perhaps a copy that was reduced and enlarged again."""
        name, spacings = f"{self.number:06d}", self.windows.spacings
        yield add_shot(self.folder, name, frames_FHW3, spacings, held_out=held_out)
        if not held_out and share_of(name, self.windows.seed) < self.windows.small_share:
            yield add_shot(self.folder, name + SMALL, as_if_small(frames_FHW3), spacings)

    def add_layers(self, progress: Progress) -> None:
        """Add clips of moving layers, cut from the pictures or else from the shots' frames."""
        count = self.windows.num_layered
        photos = list(self._photos()) if count else []
        for number in range(count):
            rng = np.random.default_rng([self.windows.seed, number])
            frames_FHW3 = layered_clip(photos, rng, LayersConfig())
            name = f"layers-{number:06d}"
            shot = add_shot(self.folder, name, frames_FHW3, self.windows.spacings, layered=True)
            self.shots.append(shot)
            progress(number + 1, count)

    def _photos(self) -> Iterator[NDArray[np.uint8]]:
        """Pictures large enough to cut layers from; else a frame of each shot to learn from."""
        found = False
        for path in self.footage.pictures[:: _step(self.footage.pictures)]:
            photo = video.read_image(path)
            if min(photo.shape[:2]) >= LEAST_PHOTO:
                found = True
                yield reduced(photo, LARGEST_PHOTO)
        learned = [shot for shot in self.shots if not shot.held_out]
        for shot in () if found else learned[:: _step(learned)]:
            frames_FHW3 = np.load(self.folder / f"{shot.name}.npy", mmap_mode="r")
            yield np.array(frames_FHW3[len(frames_FHW3) // 2])


def _step(photos: Sequence[object]) -> int:
    """The step between pictures at which at most ``MOST_PHOTOS`` are used."""
    return max(1, -(-len(photos) // MOST_PHOTOS))


def gathered(
    footage: Footage,
    cache: Path,
    windows: WindowsConfig,
    estimator: MotionEstimator,
    console: Console,
    clock: Clock,
) -> Path:
    """The cache folder of the shots, made if it is missing."""
    cutting = console.progress("splitting into shots", "frame")
    folder = cache / f"motion-{_digest(footage, windows)}"
    if not (folder / INDEX).exists():
        gathering = Gathering(footage, folder, windows, estimator)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            gathering.add_clips(clock.watched(cutting, "splitting the clips into shots"))
            gathering.add_layers(console.progress("moving layers", "clip"))
            write_shots(gathering.shots, folder)
        except OSError as error:
            raise UserError(f"cannot write shots to {folder}: {error.strerror}") from error
        console.say(*_told(gathering))
    return folder


def _digest(footage: Footage, windows: WindowsConfig) -> str:
    """A digest of the files and settings that a cache is made from."""
    paths = [*(path for path, _ in footage.clips), *footage.pictures]
    return digest_of(FORMAT, [fingerprint(path) for path in paths], asdict(windows))


def _told(gathering: Gathering) -> Iterator[str]:
    """Lines of text on clips that were dropped, cuts and repeated frames."""
    report = gathering.report
    yield from (f"  {finding}" for finding in gathering.findings)
    if report.cuts or report.repeats:
        cuts, repeats = counted(report.cuts, "scene cut"), counted(report.repeats, "repeated frame")
        yield f"split at {cuts}; {repeats} left out"


def scenes(
    path: Path, timing: Timing, estimator: MotionEstimator, report: Report
) -> Iterator[Frames]:
    """Runs of frames [F, H, W, 3] without a cut, at the size at which motion is estimated.

    Raises ``UserError``, perhaps only at the end, for a clip that is damaged or too small.
    """
    run: list[Frames] = []
    last: Given | None = None
    differing = without_repeats(_sized(path, timing), report, keep=False)
    for around in surrounded(paired(differing, estimator)):
        run.append(around.pair.left.picture_HWC)
        last = around.pair.right
        cut = is_cut(around)
        report.cuts += cut
        if cut or len(run) == SHOT_FRAMES:
            yield np.stack(run)
            run = []
    if last is not None:
        yield np.stack([*run, last.picture_HWC])


def _sized(path: Path, timing: Timing) -> Iterator[Given]:
    """The frames of a clip one after another."""
    for number, frame_HW3 in enumerate(video.stream(path, timing)):
        yield Given(float(number), shot_size(frame_HW3))


# ---- sizes -----------------------------------------------------------------------------------


def shot_size(frame_HW3: Frames) -> Frames:
    """A frame at the size at which motion is estimated: small ones enlarged, large ones reduced.

    Raises ``UserError`` for a frame with a side under ``LEAST_SIDE`` px.
    """
    side = min(frame_HW3.shape[:2])
    if side < LEAST_SIDE:
        raise UserError(f"{side} px are too small: each side needs at least {LEAST_SIDE} px")
    if side > WORKING_SIDE:
        return reduced(frame_HW3, WORKING_SIDE)
    unit_CHW = torch.from_numpy(frame_HW3.copy()).permute(2, 0, 1).float() / 127.5 - 1
    sized_CHW = ((working_size(unit_CHW[None])[0] + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(sized_CHW.permute(1, 2, 0).numpy())


def reduced(picture_HW3: Frames, side: int) -> Frames:
    """The picture, reduced so that its shorter side has at most ``side`` pixels."""
    scale = side / min(picture_HW3.shape[:2])
    if scale >= 1:
        return picture_HW3
    height, width = (max(1, round(scale * n)) for n in picture_HW3.shape[:2])
    smaller: Frames = cv2.resize(picture_HW3, (width, height), interpolation=cv2.INTER_AREA)
    return smaller


def as_if_small(frames_FHW3: Frames) -> Frames:
    """The frames, reduced and then enlarged again."""
    height, width = (n // SMALL_FACTOR * SMALL_FACTOR for n in frames_FHW3.shape[1:3])
    pictures = torch.from_numpy(frames_FHW3[:, :height, :width].copy()).permute(0, 3, 1, 2)
    again = []
    for one in pictures.split(8):
        small = F.avg_pool2d(one.float(), SMALL_FACTOR).round()
        large = F.interpolate(small, (height, width), mode="bicubic", align_corners=False)
        again.append(large.round().clamp(0, 255).to(torch.uint8))
    enlarged: Frames = torch.cat(again).permute(0, 2, 3, 1).contiguous().numpy()
    return enlarged
