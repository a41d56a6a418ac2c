"""How motion goes on where made pictures meet given ones: the step there beside those inside.

flowcept stage CLIPS --models MODELS --clips 100 --seed 820
python tests/bench/seams.py CLIPS --model stage --clips 100 --sheet seams.png

Half of a real clip is made longer by as many pictures as it had (forward from its first half,
backward from its second), or its first picture becomes a clip as long; with its caption. A step is
the mean absolute difference of two neighbouring pictures, of 255. The ratio is that of the step at
the seam, summed over clips, to the mean step inside them, given pictures and made ones alike; its
interval holds 90 % of resamplings of the clips. ``real`` is the same of the real clip's own
pictures at that place, those that were made anew rebuilt by the codec: what a model can reach.

Shape suffixes: F frames, H W 3 a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
import torch
from numpy.typing import NDArray

import flowcept
from flowcept import models
from flowcept.codecs import to_frames, to_images
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.generation import Studio
from flowcept.settings import DataSettings, mixed

Frames = NDArray[np.uint8]
RESAMPLES = 2000
AROUND = 4  # pictures shown on each side of a seam
TASKS = ("forward", "backward", "i2v")


@dataclass(frozen=True)
class Seam:
    """Steps of one clip: at the seam, and their mean elsewhere."""

    at: float
    inside: float


def seam_of(frames_FHW3: Frames, place: int) -> Seam:
    """The seam before the picture at ``place``."""
    difference = np.diff(frames_FHW3.astype(np.float64), axis=0)
    step_F = np.abs(difference).mean((1, 2, 3))
    return Seam(float(step_F[place - 1]), float(np.delete(step_F, place - 1).mean()))


def ratio(seams: Sequence[Seam]) -> float:
    """Of the steps at all seams to the mean steps inside."""
    return sum(one.at for one in seams) / sum(one.inside for one in seams)


def interval(seams: Sequence[Seam], seed: int) -> tuple[float, float]:
    """The 5 % and 95 % points of the ratio over resamplings of the clips."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(seams), size=(RESAMPLES, len(seams)))
    drawn = [ratio([seams[number] for number in row]) for row in rows]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)


def seam_place(task: str, count: int) -> int:
    """The picture before which given and made ones meet in a clip of so many."""
    return 1 if task == "i2v" else count // 2


def continued(
    studio: Studio, real_FHW3: Frames, caption: str, task: str, seed: int, context: int | None
) -> Frames:
    """The clip made anew on one side of its seam, as long as before."""
    place, count = seam_place(task, len(real_FHW3)), len(real_FHW3)
    if task == "i2v":
        return studio.i2v(real_FHW3[0], caption, seed=seed, scale=1, frames=count).frames_FHW3
    given_FHW3 = real_FHW3[:place] if task == "forward" else real_FHW3[place:]
    clip = studio.extend(
        given_FHW3,
        caption,
        clip_fps=studio.card.fps,
        direction=task,
        context=context,
        seed=seed,
        frames=count - len(given_FHW3),
    )
    return clip.frames_FHW3


def rebuilt(studio: Studio, real_FHW3: Frames, task: str) -> Frames:
    """The real clip, with the codec's pictures where others would be made."""
    place = seam_place(task, len(real_FHW3))
    image_FCHW = to_images(real_FHW3).to(studio.device)
    with torch.inference_mode():
        anew_FHW3 = to_frames(studio.codec.decode(studio.codec.encode_keyframes(image_FCHW)))
    parts = [real_FHW3[:place], anew_FHW3[place:]]
    if task == "backward":
        parts = [anew_FHW3[:place], real_FHW3[place:]]
    return np.concatenate(parts)


def read(folder: Path, studio: Studio, clips: int) -> list[tuple[Frames, str]]:
    """The first clips of a folder that have a seam in their middle, at the model's size."""
    height, width = studio.card.size
    scan = data.scan(folder, DataSettings(size=f"{width}x{height}"))
    found = []
    for entry in scan.entries:
        frames_FHW3, _ = video.read_video(entry.path)
        if len(frames_FHW3) >= 2 * AROUND and len(found) < clips:
            fitted_FHW3, _ = video.fit(frames_FHW3, studio.card.size, studio.card.fit)
            found.append((fitted_FHW3, entry.caption))
    return found


def around(frames_FHW3: Frames, place: int) -> Frames:
    """Pictures on both sides of a seam, with a white one between them."""
    blank_1HW3 = np.full_like(frames_FHW3[:1], 255)
    before_FHW3 = frames_FHW3[max(place - AROUND, 0) : place]
    return np.concatenate([before_FHW3, blank_1HW3, frames_FHW3[place : place + AROUND]])


def measured(
    studio: Studio, clips: Sequence[tuple[Frames, str]], task: str, arguments: argparse.Namespace
) -> tuple[list[Seam], list[Seam], list[Frames]]:
    """Seams of made clips and of real ones, and pictures around the made ones."""
    made, real, shown = [], [], []
    for number, (real_FHW3, caption) in enumerate(clips):
        seed, place = mixed(arguments.seed, task, number), seam_place(task, len(real_FHW3))
        made_FHW3 = continued(studio, real_FHW3, caption, task, seed, arguments.context)
        made.append(seam_of(made_FHW3, place))
        real.append(seam_of(rebuilt(studio, real_FHW3, task), place))
        shown.append(around(made_FHW3, place))
    return made, real, shown


def row_of(task: str, made: Sequence[Seam], real: Sequence[Seam], seed: int) -> dict[str, object]:
    """What the table says of a task."""
    return {
        "task": task,
        "clips": len(made),
        "ratio": ratio(made),
        "interval": interval(made, seed),
        "real": ratio(real),
        "over_1.5": sum(one.at > 1.5 * one.inside for one in made),
    }


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="CLIPS", help="real clips with captions")
    parser.add_argument("--model", default=models.DEFAULT)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--context", type=int, help="pictures that extend sees; default its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="figures as JSON")
    parser.add_argument("--sheet", type=Path, help="pictures around all seams, a .png file")
    arguments = parser.parse_args()

    studio = flowcept.load(arguments.model)
    clips = read(arguments.folder, studio, arguments.clips)
    say(f"{machine.described()}; {' '.join(sys.argv)}; context {arguments.context or 'usual'}")
    say("| task | clips | seam over inside | 90 % | real | over 1.5 |\n|---|---|---|---|---|---|")
    rows, sheets, labels = [], [], []
    for task in arguments.tasks:
        made, real, shown = measured(studio, clips, task, arguments)
        row = row_of(task, made, real, arguments.seed)
        low, high = interval(made, arguments.seed)
        say(
            f"| {task} | {len(made)} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {row['real']:.2f} | {row['over_1.5']} |"
        )
        rows.append(row)
        sheets += shown
        labels += [f"{task}: {caption}" for _, caption in clips]
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.sheet:
        video.save_image(video.contact_sheets(sheets, labels), arguments.sheet)


if __name__ == "__main__":
    main()
