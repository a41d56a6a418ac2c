"""The benchmark of frames between given ones, in small."""

from __future__ import annotations

import sys
from pathlib import Path

import interpolation_gaps as gaps
import interpolation_photos as photos
import numpy as np
import pytest
from interpolation_memory import watched
from kept import Kept
from numpy.typing import NDArray
from PIL import Image
from test_scripts import printed

from flowcept.data.video import write_video

MEGABYTE = 1 << 20


def texture(height: int, width: int) -> NDArray[np.uint8]:
    """Soft colours without a grain that resampling would lose."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def panned(frames: int, step: int, side: int = 64) -> NDArray[np.uint8]:
    wide = texture(side, side + frames * step)
    return np.stack([wide[:, n * step : n * step + side] for n in range(frames)])


# ---- photographs -----------------------------------------------------------------------------


def close(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    return bool(np.abs(first.astype(int) - second.astype(int)).mean() < 1)


def test_a_pan_is_as_long_as_its_name_says() -> None:
    large = texture(photos.LARGE, photos.LARGE)
    still, moved = (photos.view(large, photos.Motion(shift=24), x, 0.0) for x in (0.0, 0.5))
    assert close(moved[:, :-12], still[:, 12:])
    assert not close(moved[:, :-11], still[:, 11:])


def test_a_turn_and_a_zoom_are_about_the_middle() -> None:
    large = texture(photos.LARGE, photos.LARGE)
    still = photos.view(large, photos.Motion(), 0.0, 0.0)
    quarter = photos.view(large, photos.Motion(turn=180), 0.5, 0.0)
    assert close(quarter, np.rot90(still, 1)) or close(quarter, np.rot90(still, -1))
    twice = photos.view(large, photos.Motion(zoom=4), 0.5, 0.0)
    middle = Image.fromarray(twice).resize((128, 128), Image.Resampling.BOX)
    assert close(np.asarray(middle)[8:-8, 8:-8], still[72:-72, 72:-72])


def test_the_largest_motion_stays_within_the_photograph() -> None:
    large = np.full((photos.LARGE, photos.LARGE, 3), 255, np.uint8)  # beyond its edges: black
    for number, motion in enumerate(photos.MOTIONS.values()):
        assert photos.moments(large, motion, number).min() == 1


def test_photographs_are_scored_and_missing_ones_named(tmp_path: Path) -> None:
    Image.fromarray(texture(160, 240)).save(tmp_path / f"{photos.PHOTOS[0]}.jpg")
    words = ["interpolation_photos.py", tmp_path, "--photos", 1, "--output", tmp_path / "kept.json"]
    out = printed(*words, "--only", "DIS")
    rows = [line.split("|") for line in out.splitlines() if line.startswith(("| pan", "| zoom"))]
    assert [row[1].strip() for row in rows] == [
        name for name in photos.MOTIONS if "turn" not in name
    ]
    decibels = [float(row[2].split(",")[0]) for row in rows[:3]]
    assert decibels[0] > decibels[2] > 25
    with pytest.raises(SystemExit, match="has no Blinds"):
        photos.large_photo(tmp_path, "Blinds")


# ---- peers -----------------------------------------------------------------------------------


def test_what_is_kept_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    assert Kept(file).get("one", lambda x: [x], 1.0) == [1.0]
    assert Kept(file).get("one", lambda x: [x], 2.0) == [1.0]
    assert Kept(file).get("another", lambda x: [x], 2.0) == [2.0]


def test_peers_have_quality_seconds_and_memory(tmp_path: Path) -> None:
    write_video(tmp_path / "pan.mp4", panned(13, 2), 10)
    out = printed("interpolation_peers.py", tmp_path, "--sizes", "256 px", "--only", "minter")
    assert "RIFE is left out" in out
    name, second, fourth, cost = (cell.strip() for cell in out.splitlines()[-1].split("|")[1:-1])
    assert name == "minterpolate"
    assert float(second.split(",")[0]) > float(fourth.split(",")[0]) > 15
    seconds, gibibytes = (float(part.split()[0]) for part in cost.split(","))
    assert 0 < seconds < 10
    assert 0.02 < gibibytes < 0.2, "ffmpeg's alone: Python with torch takes more"


# ---- memory ----------------------------------------------------------------------------------

BOTH = """
import subprocess, sys
sleepy = "x = b'1' * (150 << 20); import time; time.sleep(2)"
child = subprocess.Popen([sys.executable, "-c", sleepy])
x = b"1" * (100 << 20)
child.wait()
subprocess.run([sys.executable, "-c", "x = b'1' * (120 << 20)"])
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_command_and_its_children_is_summed() -> None:
    seen = watched([sys.executable, "-c", BOTH])
    assert seen.out == "done\n"
    assert 250 * MEGABYTE < max(seen.sums) < 350 * MEGABYTE
    assert 250 * MEGABYTE < seen.peak("python") < 350 * MEGABYTE


# ---- the sheet of gaps -----------------------------------------------------------------------


def test_a_gap_is_filled_as_the_command_fills_it() -> None:
    clip = panned(9, 3, 128)
    gap = gaps.HardGap("pan", 4, 2, "", "", "")
    made = gaps.ours(None, clip, gap)
    blend = ((clip[2].astype(int) + clip[6]) // 2).astype(np.uint8)
    assert gaps.decibels(made, clip[4]) > gaps.decibels(blend, clip[4]) + 5
    cut = np.concatenate([clip[:5], 255 - panned(4, 3, 128)[:, ::-1]])
    assert np.array_equal(gaps.ours(None, cut, gap), cut[2]), "nothing moves across a cut"


def test_a_row_shows_the_gap_and_what_was_written() -> None:
    clip = panned(9, 3, 128)
    row = gaps.row(None, None, clip, gaps.HardGap("pan", 4, 2, "a pan", "nothing", "not there"))
    assert row.width == 4 * (gaps.SIDE + gaps.MARGIN), "left, ours, truth, right"
    assert np.asarray(row)[-2 * gaps.LINE : -gaps.LINE].min() < 100, "the last line of text"
    assert gaps.stacked([row, row]).height == 2 * row.height
