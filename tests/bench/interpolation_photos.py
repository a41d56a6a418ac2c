"""Photographs that are panned, turned and zoomed by known amounts: the picture halfway, made anew.

apt-get download mate-backgrounds lomiri-wallpapers-16.04
for package in *.deb; do dpkg -x $package photos; done
python tests/bench/interpolation_photos.py photos --weights motion.safetensors --rife FOLDER \\
    --output photos.json

The 24 pictures are all photographs of these two Debian packages but one that is nearly blank; the
motion model never learned from them. Each is taken at three moments, at equal steps of the motion,
and the one in the middle is to be made from the others, by the peers of interpolation.py. Every
moment is cut from the large photograph by itself (Lanczos at three times the size, then the mean of
areas), so that none is a copy of another. Directions and signs are drawn from the photograph's
place in the list. The table has PSNR in dB and SSIM, means over photographs.

What is measured is kept in the file of ``--output`` and not measured again while its weights are
the same. Delete it when the code changes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import cv2
import interpolation
import numpy as np
import torch
from interpolation import Peer, peers_of, score
from interpolation_peers import row_names
from kept import Kept
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PHOTOS = [
    "Aqua", "Blinds", "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Dune",
    "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "Picture_0B_by_freespace",
    "Picture_1A_by_freespace", "RainDrops", "Storm", "TwoWings", "Wine_by_Jakkub_Mede",
    "YellowFlower", "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich",
    "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi",
    "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt",
    "sunset_by_Aitzol_Berasategi",
]  # fmt: skip
SIDE = 256  # pixels of a made picture
FINER = 3  # times as many along each side, before the mean of areas
LARGE = 1000  # pixels of a photograph's shorter side: 1.23 x FINER x SIDE, the widest view of all


@dataclass(frozen=True)
class Motion:
    """From the first moment to the last."""

    shift: float = 0.0  # pixels
    turn: float = 0.0  # degrees
    zoom: float = 1.0  # times


MOTIONS = {
    **{f"pan, {n} px": Motion(shift=n) for n in (2, 8, 24)},
    **{f"turn, {n} degrees": Motion(turn=n) for n in (2, 8, 20)},
    **{f"zoom, {n} times": Motion(zoom=n) for n in (1.05, 1.2, 1.5)},
}


def moments(large_HW3: NDArray[np.uint8], motion: Motion, number: int) -> Tensor:
    """A large photograph at the three moments: [3, 3, SIDE, SIDE] in [-1, 1]."""
    rng = np.random.default_rng(number)
    direction, sign = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    views = [view(large_HW3, motion, sign * place, direction) for place in (-0.5, 0.0, 0.5)]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1


def view(
    large_HW3: NDArray[np.uint8], motion: Motion, place: float, direction: float
) -> NDArray[np.uint8]:
    """What is seen of a photograph at a place of the motion, its middle being 0."""
    angle, zoom = np.deg2rad(motion.turn * place), motion.zoom**place
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    towards = np.array([np.cos(direction), np.sin(direction)])
    centre = (np.array(large_HW3.shape[1::-1]) - 1) / 2 + FINER * motion.shift * place * towards
    corner = centre - turned @ np.full(2, (FINER * SIDE - 1) / 2)
    to_source = np.column_stack([turned, corner])  # from pixels of the view to those of the photo
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(large_HW3, to_source, (FINER * SIDE, FINER * SIDE), flags=flags)
    return cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def large_photo(folder: Path, name: str) -> NDArray[np.uint8]:
    """A photograph, wherever in the folder it lies, with a shorter side of LARGE."""
    file = next(folder.rglob(f"{name}.jpg"), None)
    if file is None:
        raise SystemExit(f"{folder} has no {name}.jpg: unpack both packages into it")
    with Image.open(file) as photo:
        size = [round(LARGE / min(photo.size) * n) for n in photo.size]
        return np.asarray(photo.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def measured(peer: Peer, photo: NDArray[np.uint8], number: int) -> list[float]:
    """PSNR and SSIM of a peer on a photograph, motion by motion."""
    scores = [score(peer, moments(photo, motion, number), 2) for motion in MOTIONS.values()]
    return [value for one in scores for value in (one.psnr, one.ssim)]


def print_table(options: argparse.Namespace) -> None:
    """A row for each motion, a column for each peer."""
    kept, names, peers = Kept(options.output), row_names(options), peers_of(options, SIDE)
    peers = {name: peer for name, peer in peers.items() if not name.endswith("all")}
    scores = {name: list[list[float]]() for name in peers}
    for number, photo_name in enumerate(PHOTOS[: options.photos]):
        photo = large_photo(options.folder, photo_name)
        for name, peer in peers.items():
            key = f"{names[name]}, {photo_name}"
            scores[name].append(kept.get(key, measured, peer, photo, number))
    means = {
        name: [fmean(column) for column in zip(*rows, strict=True)] for name, rows in scores.items()
    }
    print(f"\n| {options.photos} photographs | {' | '.join(peers)} |\n|{'---|' * (len(peers) + 1)}")
    for row, motion in enumerate(MOTIONS):
        cells = [f"{mean[2 * row]:.2f}, {mean[2 * row + 1]:.4f}" for mean in means.values()]
        print(f"| {motion} | {' | '.join(cells)} |")


def main() -> None:
    parser = interpolation.parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="both packages, unpacked")
    parser.add_argument("--output", type=Path, help="a .json that keeps what is measured")
    parser.add_argument("--photos", type=int, default=len(PHOTOS), help="so many of the list")
    options = parser.parse_args()
    interpolation.use_one_thread()
    interpolation.announce(options)
    print_table(options)


if __name__ == "__main__":
    main()
