"""A run's output on the console: lines of text and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Console:
    """Where lines go, and whether anything is printed."""

    write: Callable[[str], None] = print
    quiet: bool = False
    bars: list[Any] = field(default_factory=list)  # of progress, perhaps not at their end

    def say(self, *lines: str) -> None:
        """Write lines above the progress bars."""
        with tqdm.external_write_mode(sys.stdout):
            for line in () if self.quiet else lines:
                self.write(line)

    def steps(self, label: str, done: int, total: int) -> Any:  # noqa: ANN401 - tqdm has no types
        """A progress bar of training steps, ``done`` of them done already."""
        return tqdm(total=total, initial=done, desc=label, unit="step", disable=self.quiet)

    def progress(self, label: str, unit: str, start: int = 0) -> Callable[[int, int], None]:
        """A progress bar, as a function of ``(done, total)``; ``start`` were done before."""
        bar: Any = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                more: dict[str, Any] = {"disable": self.quiet, "delay": 1, "initial": start}
                bar = tqdm(total=total, desc=label, unit=unit, **more)
                self.bars.append(bar)
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return show

    def close(self) -> None:
        """Close the bars as they are, so that later output begins on a new line."""
        for bar in self.bars:
            bar.close()
