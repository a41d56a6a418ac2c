"""Frames between given ones: quality, seconds and memory of our motion and its peers, one table.

python tests/bench/interpolation_peers.py CLIPS --weights motion.safetensors --rife FOLDER \\
    --output peers.json

CLIPS and FOLDER are those of interpolation.py, whose peers these are. PSNR and SSIM are means over
the clips at 256 px. Costs are of a frame halfway between two, one thread, each peer and size in a
process of its own: the first clip is enlarged, frames are made between six given ones and between
three, and the difference is what three more frames cost, in seconds of the processor, so that
starting does not count. Memory is the most that the process held (resident), the frames as floats
among it; of ``minterpolate``, what ffmpeg held.

What is measured is kept in the file of ``--output`` and not measured again while its weights are
the same: a run that was cut off goes on. Delete it when the code changes.

Shape suffixes: F frames, G given frames, C H W channels, height and width.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import fmean

import interpolation
import torch
from interpolation import Peer
from interpolation_memory import GIBIBYTE, watched
from kept import Kept, digest
from torch import Tensor
from torch.nn import functional as F

SIZES = {"256 px": (256, 256), "720p": (720, 1280), "1080p": (1080, 1920)}
SIDE = 256  # pixels, at which quality is measured
SPACINGS = (2, 4)
LESS, MORE = 3, 6  # given frames


def row_names(options: argparse.Namespace) -> dict[str, str]:
    """The peers that are there, and the name of all that their results depend on."""
    file = f" {digest(options.weights)}" if options.weights else ""
    peers = interpolation.peers_of(options, SIDE)
    return {name: name + file * (", learned" in name) for name in peers}


# ---- quality ---------------------------------------------------------------------------------


def quality(peer: Peer, kept_name: str, clips: dict[str, Tensor], kept: Kept) -> list[str]:
    """PSNR and SSIM of a peer at each spacing, means over clips."""
    cells = []
    for spacing in SPACINGS:
        scores = [
            kept.get(f"{kept_name}, {one}, 1 of {spacing}", scored, peer, clip, spacing)
            for one, clip in clips.items()
        ]
        psnr, ssim = (fmean(column) for column in zip(*scores, strict=True))
        cells.append(f"{psnr:.2f}, {ssim:.4f}")
    return cells


def scored(peer: Peer, clip_FCHW: Tensor, spacing: int) -> list[float]:
    score = interpolation.score(peer, clip_FCHW, spacing)
    return [score.psnr, score.ssim]


# ---- costs -----------------------------------------------------------------------------------


def enlarged(clip_FCHW: Tensor, height: int, width: int) -> Tensor:
    """The middle of a clip, of that shape, at that size."""
    rows = clip_FCHW.shape[-1] * height // width
    top = (clip_FCHW.shape[-2] - rows) // 2
    middle = clip_FCHW[..., top : top + rows, :]
    return F.interpolate(middle, (height, width), mode="bicubic", align_corners=False).clamp(-1, 1)


def processor_seconds() -> float:
    """Of this process and of those that it has started and seen ending."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def frame_seconds(peer: Peer, clip_FCHW: Tensor) -> float:
    """What one more frame costs, halfway between two."""
    given_GCHW = clip_FCHW[: 2 * MORE - 1 : 2]
    seconds = []
    with torch.no_grad():
        peer(given_GCHW[:2], 2)  # what is only done the first time
        for number in (LESS, MORE):
            begun = processor_seconds()
            peer(given_GCHW[:number], 2)
            seconds.append(processor_seconds() - begun)
    return (seconds[1] - seconds[0]) / (MORE - LESS)


def cost(name: str, size: str, options: argparse.Namespace) -> list[float]:
    """Seconds and bytes, measured by this script in a process of its own."""
    words = [sys.executable, __file__, str(options.clips), "--cost", name, size]
    for flag in ("weights", "rife"):
        value = getattr(options, flag)
        words += [f"--{flag}", str(value)] if value else []
    seen = watched(words)
    program = "ffmpeg" if name == "minterpolate" else "python"
    return [float(seen.out), float(seen.peak(program))]


def measure_cost(options: argparse.Namespace) -> None:
    """In that process: print the seconds of a frame."""
    name, size = options.cost
    clip = next(iter(interpolation.read_clips(options.clips).values()))
    peer = interpolation.peers_of(options, SIDE)[name]
    print(frame_seconds(peer, enlarged(clip, *SIZES[size])))


def main() -> None:
    parser = interpolation.parser_of(__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--output", type=Path, help="a .json that keeps what is measured")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--cost", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    interpolation.use_one_thread()
    if options.cost:
        measure_cost(options)
        return
    interpolation.announce(options)
    clips, kept = interpolation.read_clips(options.clips), Kept(options.output)
    peers, kept_names = interpolation.peers_of(options, SIDE), row_names(options)
    titles = ["every second missing", "three of four missing", *options.sizes]
    print(f"\n| {len(clips)} clips | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
    for name, kept_name in kept_names.items():
        cells = quality(peers[name], kept_name, clips, kept)
        for size in options.sizes:
            words = f"{kept_name}, cost at {size}"
            seconds, peak = kept.get(words, cost, name, size, options)
            cells.append(f"{seconds:.2f} s, {peak / GIBIBYTE:.2f} GiB")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
