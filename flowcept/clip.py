"""A made clip: its frames and how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowcept.data import video
from flowcept.data.video import Frames, Sound

Growth = list[list[tuple[int, float, bool]]]  # per step: (name, flow time, new) of visible frames


@dataclass(frozen=True)
class Clip:
    """One made clip and how it was made."""

    frames_FHW3: Frames
    fps: float
    seed: int
    settings: dict[str, Any]  # travels in the file's metadata
    notes: list[str] = field(default_factory=list)  # what the user should know
    growth: Growth = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # names of the final latents, left to right
    ends: list[int] = field(default_factory=list)  # the picture that each of them ends with
    sound: Sound | None = None
    before: int = 0  # frames in front of the clip that is extended
    whole: video.Joined | None = None  # what is written where memory does not hold it all

    @property
    def shown(self) -> Frames | video.Joined:
        """All frames, one after another."""
        return self.frames_FHW3 if self.whole is None else self.whole

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.frames_FHW3.shape[1:3]
        return (height, width) if self.whole is None else self.whole.size

    def __len__(self) -> int:
        return len(self.shown)

    def save(self, path: str | Path, *, metadata: bool = True) -> str:
        """Write the clip; the suffix decides the format. What had to be changed, or ""."""
        told = self.settings if metadata else None
        frames, sound = self.shown, self.sound
        return video.write_stream(Path(path), frames, self.fps, metadata=told, sound=sound)[1]
