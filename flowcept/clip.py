"""A made clip: its frames and how it was made."""

from __future__ import annotations

import base64
import html
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowcept.data import video
from flowcept.data.video import Frames, Sound
from flowcept.errors import UserError, counted

Growth = list[list[tuple[int, float, bool]]]  # per step: (name, flow time, new) of visible frames


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """One made clip and how it was made.

    A clip is a sequence of ``len(clip)`` frames, each ``[H, W, 3]`` of uint8: ``clip[0]``,
    ``clip[2:5]``, ``for frame in clip``. A notebook plays it.
    """

    frames_FHW3: Frames  # uint8 [F, H, W, 3]; of a clip too long for memory only its ends
    fps: float  # frames per second
    seed: int  # that makes it again
    settings: dict[str, Any]  # that made it; saved files hold them
    notes: list[str] = field(default_factory=list)  # what the user should know
    growth: Growth = field(default_factory=list)  # each step's visible frames: name, time, new
    order: list[int] = field(default_factory=list)  # names of the final latents, left to right
    ends: list[int] = field(default_factory=list)  # the picture that each of them ends with
    sound: Sound | None = None  # saved with it
    before: int = 0  # frames in front of the clip that is extended
    whole: video.Joined | None = None  # what is written where memory does not hold it all

    @property
    def shown(self) -> Frames | video.Joined:
        """All frames, one after another."""
        return self.frames_FHW3 if self.whole is None else self.whole

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        height, width = self.frames_FHW3.shape[1:3]
        return (height, width) if self.whole is None else self.whole.size

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[Frames]:
        return iter(self.shown)

    def __getitem__(self, place: int | slice) -> Frames:
        """One frame ``[H, W, 3]``, or for a slice frames ``[F, H, W, 3]``."""
        if self.whole is None:
            return self.frames_FHW3[place]
        wanted = range(len(self))[place]
        if isinstance(wanted, int):
            return next(itertools.islice(self, wanted, None))
        kept = {number: frame for number, frame in enumerate(self) if number in wanted}
        frames = [kept[number] for number in wanted]
        return np.array(frames, np.uint8).reshape(-1, *self.size, 3)

    def __repr__(self) -> str:
        height, width = self.size
        frames = counted(len(self), "frame")
        made = f"{frames} of {width}x{height} at {self.fps:g} fps, seed {self.seed}"
        prompt = str(self.settings.get("prompt", ""))[:60]
        notes = f", {len(self.notes)} in .notes" if self.notes else ""
        return f"<Clip {prompt!r}: {made}{notes}>"

    def _repr_html_(self) -> str:
        """The clip as a notebook plays it, with what the user should know."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "clip.mp4"
            self.save(file, metadata=False)
            data = base64.b64encode(file.read_bytes()).decode()
        told = "".join(f"<div>{html.escape(line)}</div>" for line in [repr(self), *self.notes])
        source = f"data:video/mp4;base64,{data}"
        return f'<video controls autoplay loop muted src="{source}"></video>{told}'

    def save(self, path: str | Path, *, metadata: bool = True) -> str | None:
        """Write the clip. The suffix sets the format; missing folders are made.

        Returns a note if something had to be changed for the format, else None. Raises
        ``UserError`` for a name without a suffix; frames are written as ``folder/%04d.png``.
        """
        path = Path(path).expanduser()
        if not path.suffix:
            raise UserError(f"{path} has no suffix: write {path}.mp4, or {path}/%04d.png")
        told = self.settings if metadata else None
        frames, sound = self.shown, self.sound
        return video.write_stream(path, frames, self.fps, metadata=told, sound=sound)[1] or None
