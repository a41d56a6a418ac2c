"""What is told of work, and how what was measured takes the place of guesses."""

from __future__ import annotations

import time
from pathlib import Path

import clock
import pytest


def test_measured_work_takes_the_place_of_guesses(tmp_path: Path, monkeypatch) -> None:
    told = clock.Clock(tmp_path / "pace.json")
    assert told.pace("step of full-sequence") == clock.GUESSED["step"]
    now = iter([100.0, 130.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    with told.timed("step of full-sequence", 10):
        pass
    assert clock.Clock(tmp_path / "pace.json").pace("step of full-sequence") == pytest.approx(3)
    assert told.pace("step of autoregressive") == clock.GUESSED["step"]
    work = {Path("a"): ("step of full-sequence", 40), Path("b"): ("step of full-sequence", 20)}
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert told.told(work).startswith("step of full-sequence: 3 min, done about ")
    assert told.told(work, short=True) == told.told(work).partition(", ")[2]
    assert told.told({}, short=True) != told.told(work, short=True), "three minutes later"
