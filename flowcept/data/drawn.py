"""What both kinds of drawn clips share: word orders of captions, lengths, folders of clips.

Suffixes: F frames, H height, W width, 3 colours.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from flowcept.data.video import Frames, write_video
from flowcept.errors import UserError
from flowcept.files import replacing

Progress = Callable[[int], None]  # hears how many clips are done


def worded(subject: str, action: str, adverb: str, place: str, rng: np.random.Generator) -> str:
    """Parts of a scene as a caption, most often in the plain order; empty parts are left out."""
    orders = (
        [subject, action, adverb, place],
        [subject, "is", action, adverb, place],
        [subject, adverb, action, place],
        [place and f"{place},", subject, action, adverb],
    )
    words = orders[int(rng.choice(len(orders), p=[0.7, 0.1, 0.1, 0.1]))]
    return " ".join(word for word in words if word)


def lengths_around(mean: float, half: float) -> dict[int, float]:
    """P(number of frames): a triangle around a mean, `half` wide on each side, at most 3 frames."""
    weights = {n: half - abs(n - mean) for n in range(round(mean) - 3, round(mean) + 4)}
    weights = {n: weight for n, weight in weights.items() if weight > 1e-9}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def draw_length(law: Mapping[int, float], rng: np.random.Generator) -> int:
    """A number of frames drawn from a law of lengths."""
    return int(rng.choice(list(law), p=list(law.values())))


def check_folder(clips: int, size: int, seed: int) -> None:
    """Raise ``UserError`` for settings of a folder that make no sense."""
    if clips < 1:
        raise UserError(f"cannot write {clips} clips: ask for at least 1")
    if not 16 <= size <= 1024:
        raise UserError(f"cannot draw frames of {size} pixels: choose 16 to 1024")
    if seed < 0:
        raise UserError(f"seed {seed} is negative: choose 0 or more")


def write_clip(
    out: Path, index: int, line: Mapping[str, str], frames_FHW3: Frames, fps: float
) -> dict[str, str]:
    """Write a clip under its number; its line of metadata with the name in front.

    APNG because it is lossless, holds any rate exactly, where GIF and WebP round it, and is the
    quickest of the kind to write.
    """
    name = f"{index:06d}.apng"
    write_video(out / name, frames_FHW3, fps)
    return {"file_name": name, **line}


def write_folder(
    out: Path,
    kind: str,
    about: Mapping[str, object],
    lines: Iterable[Mapping[str, str]],
    progress: Progress | None = None,
) -> None:
    """Write ``KIND.json`` and, as clips are written by ``lines``, their lines in metadata.jsonl.

    A clip's line follows the clip, so an interrupted folder is a smaller valid one. ``progress``
    hears the number of clips done. ``UserError`` for a folder in use or one that cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not an empty folder: remove it or choose another name")
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / f"{kind}.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for done, line in enumerate(lines, start=1):
                metadata.write(json.dumps(line) + "\n")
                metadata.flush()
                if progress is not None:
                    progress(done)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
