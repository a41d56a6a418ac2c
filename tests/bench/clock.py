"""How long work takes: told before it begins, by what was measured before."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowcept.files import replacing

# Seconds on one core, until they are measured.
GUESSED = {"step": 0.4, "clip": 0.3, "features": 1.0, "scores": 60.0}

Work = dict[Path, tuple[str, int]]  # kind and units, by the file that is made


class Clock:
    """Seconds that a unit of each kind of work takes: guessed, then as measured last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pace(self, kind: str) -> float:
        return float(known(self.path).get(kind, GUESSED[kind.partition(" ")[0]]))

    @contextmanager
    def timed(self, kind: str, units: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        pace = (time.perf_counter() - started) / max(units, 1)
        keep(self.path, known(self.path) | {kind: pace})

    def told(self, work: Work, *, short: bool = False) -> str:
        """When all of it will be done, and before that how many minutes each kind takes."""
        minutes: dict[str, float] = {}
        for kind, units in work.values():
            minutes[kind] = minutes.get(kind, 0) + self.pace(kind) * units / 60
        ends = time.localtime(time.time() + 60 * sum(minutes.values()))
        parts = "" if short else "".join(f"{kind}: {m:.0f} min, " for kind, m in minutes.items())
        return f"{parts}done about {time.strftime('%a %H:%M', ends)}"


def known(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(values) + "\n")
