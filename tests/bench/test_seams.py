"""The measure of seams: its ratio, and that the script runs to its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seams

from flowcept.data import shapes


def ramp(*levels: int) -> np.ndarray:
    """Grey pictures of these levels."""
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize(
    ("levels", "place", "at", "inside"),
    [((0, 2, 4, 6), 2, 2, 2), ((0, 2, 10, 12), 2, 8, 2), ((9, 9, 4, 5, 5), 1, 0, 2)],
)
def test_a_step_at_the_seam_and_those_inside(levels, place, at, inside):
    seam = seams.seam_of(ramp(*levels), place)
    assert (seam.at, seam.inside) == (at, inside)


def test_ratio_of_sums_and_its_interval():
    """A clip in which hardly anything moves cannot make the ratio large."""
    moving = [seams.Seam(3.0, 2.0)] * 9
    assert seams.ratio([*moving, seams.Seam(0.2, 0.001)]) == pytest.approx(27.2 / 18.001)
    assert seams.interval(moving, 0) == (1.5, 1.5)
    low, high = seams.interval([seams.Seam(1.0, 1.0), seams.Seam(3.0, 1.0)] * 8, 0)
    assert 1.4 < low < 2 < high < 2.6


def test_every_task_of_a_small_model(tiny_model: Path, tmp_path: Path) -> None:
    shapes.write_shapes(tmp_path / "clips", 2, size=32)
    command = [sys.executable, "seams.py", tmp_path / "clips", "--model", tiny_model]
    command += ["--clips", "2", "--sheet", tmp_path / "s.png", "--output", tmp_path / "o.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(seams.__file__).parent
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["| forward", "| backward", "| i2v"]
    assert all(row[1] == "2" and float(row[2]) > 0 and float(row[4]) > 0 for row in rows)
    assert {"s.png", "o.json"} <= {path.name for path in tmp_path.iterdir()}
