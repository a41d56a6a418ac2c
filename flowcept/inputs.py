"""What a caller gives, turned into frames: paths, PIL pictures, arrays, clips.

Shape suffixes: F frames, H W 3 a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flowcept.clip import Clip
from flowcept.data import pictures, video
from flowcept.data.video import Frames, Sound
from flowcept.errors import UserError
from flowcept.settings import FIT, SampleConfig

Picture = str | Path | Image.Image | Frames


@dataclass(frozen=True)
class Source:
    """Given pictures of one size; for a clip also its frame rate and sound."""

    frames_FHW3: Frames
    fps: float | None = None  # None: of no clip
    sound: Sound | None = None
    notes: tuple[str, ...] = ()  # what the user should know

    @staticmethod
    def of(given: Footage, fit: str = "crop") -> Source:
        """Pictures of other sizes than the first one's are brought to it by ``fit``.

        Raises ``UserError`` for what cannot be read or is of another kind.
        """
        if isinstance(given, Source):
            return given
        if isinstance(given, Clip):
            return Source(given[:], given.fps, given.sound)
        if isinstance(given, str | Path):
            return _read(Path(given).expanduser())
        if isinstance(given, np.ndarray):
            meant = "frames must be a list of pictures or an array [F, H, W, 3] of uint8"
            return Source(_checked(given, 4, meant))
        if isinstance(given, Sequence) and len(given):
            return _of_one_size(given, fit)
        kinds = "a path, a clip, a list of pictures or an array [F, H, W, 3]"
        raise UserError(f"frames must be {kinds}, not {_kind(given)}")

    def words(self) -> dict[str, object]:
        """Keywords that follow from the given pictures or clip."""
        return {"clip_fps": self.fps, "sound": self.sound}

    def usual(self, config: SampleConfig) -> int:
        """Default frames in every gap: 1 for a clip, unless a length is asked for."""
        chosen = config.frames or config.min_length or config.max_length
        return 0 if self.fps is None or chosen else 1


Footage = Source | str | Path | Clip | Frames | Sequence[Picture]


def picture(given: Picture) -> Frames:
    """One picture `[H, W, 3]`, upright and on white. ``UserError`` for anything else."""
    if isinstance(given, str | Path):
        return video.read_image(Path(given).expanduser())
    if isinstance(given, Image.Image):
        return pictures.upright(given)
    meant = "a picture must be a path, a PIL picture or an array [H, W, 3] of uint8"
    if isinstance(given, np.ndarray):
        return _checked(given, 3, meant)
    one = ": give one of its frames, such as clip[0]" if isinstance(given, Clip) else ""
    raise UserError(f"{meant}, not {_kind(given)}{one}")


def _read(path: Path) -> Source:
    """A clip's frames, rate and sound."""
    frames_FHW3, fps = video.read_video(path)
    lost = video.Footage.open(path).lost
    return Source(frames_FHW3, fps, video.sound_of(path), (lost,) if lost else ())


def _of_one_size(given: Sequence[Picture], fit: str) -> Source:
    """Pictures brought to the size of the first one, and notes on those that were not of it."""
    FIT.check("fit", fit)
    own = [picture(one) for one in given]
    height, width, _ = own[0].shape
    fitted, said = zip(*(video.fit(one[None], (height, width), fit) for one in own), strict=True)
    names = (one if isinstance(one, str | Path) else f"picture {n}" for n, one in enumerate(given))
    notes = tuple(f"{name} is {note}" for name, note in zip(names, said, strict=True) if note)
    return Source(np.concatenate(fitted), notes=notes)


def _checked(array: Frames, dimensions: int, meant: str) -> Frames:
    """An array as it can be used; ``UserError`` where it holds no pictures."""
    shape, kind = array.shape, array.dtype
    if kind == np.uint8 and len(shape) == dimensions and shape[-1] == 3 and array.size:
        return np.ascontiguousarray(array)  # strides of a mirrored one are negative
    raise UserError(f"{meant}, not of shape {list(shape)} and type {kind}")


def _kind(given: object) -> str:
    """What something else is: a number or a word itself, else its class."""
    simple = given is None or isinstance(given, int | float | str | Path)
    return repr(given)[:60] if simple or given == [] else f"a {type(given).__name__}"
