"""Tiny drawn clips, and a training of motion on them in seconds."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flowcept.data.motion_windows import WindowsConfig
from flowcept.data.video import write_video
from flowcept.networks.flow import DisConfig, DisEstimator
from flowcept.networks.motion import MotionConfig
from flowcept.settings import MotionTrainConfig
from flowcept.training.motion_run import MotionParts

WINDOWS = WindowsConfig(
    held_out=0.5,
    spacings=(2, 4),
    spacing_weights=(0.5, 0.5),
    num_layered=2,
    sides=(96,),
    pixels=96 * 96,
    law_pairs=4,
)
NETWORK = MotionConfig(
    features=8, compared=4, coarse=(8, 8, 8), fine=(8, 8, 8), law_hidden=8, most_missing=40
)
TINY = MotionTrainConfig().changed(
    steps=6,
    warmup=2,
    law_steps=20,
    layers=2,
    held_out=0.5,
    log_every=1,
    eval_every=3,
    save_every=2,
    sample_every=4,
    dtype="float32",
    device="cpu",
)


class Quick(DisEstimator):
    """Flows good enough for drawn clips."""

    def __init__(self) -> None:
        super().__init__(DisConfig(finest_scale=1, match=False))


PARTS = MotionParts(WINDOWS, NETWORK, Quick())


def texture(seed: int) -> NDArray[np.uint8]:
    """A smooth picture of 160 px."""
    coarse = np.random.default_rng(seed).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    smooth: NDArray[np.uint8] = cv2.resize(coarse, (160, 160), interpolation=cv2.INTER_CUBIC)
    return smooth


def panned(
    whole: NDArray[np.uint8], down: int, right: int, count: int = 9
) -> list[NDArray[np.uint8]]:
    """Frames of 96 x 112 px along a way over a picture."""
    return [whole[n * down : n * down + 96, n * right : n * right + 112] for n in range(count)]


def drawn_clips(folder: Path) -> Path:
    """Four clips of 9 frames over a texture, and a picture of it."""
    folder.mkdir(parents=True)
    whole = texture(0)
    cv2.imwrite(str(folder / "one.png"), whole)
    for number in range(4):
        frames = panned(whole, number, 2)
        write_video(folder / f"take{number}_00.mp4", np.stack(frames), 12)
    return folder
