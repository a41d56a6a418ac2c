"""Where clips and pictures go: names that nobody chose, folders of clips, files that must stay.

Everything is settled and checked before the work: a clip that took an hour always has a place.
"""

import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from flowcept.errors import UserError

SUFFIX = ".mp4"  # of clips whose format nobody chose
STDOUT = "-"
LONGEST_SLUG = 40  # letters of a prompt in a file's name
SLASHES = tuple(filter(None, (os.sep, os.altsep, "/")))


def is_folder(text: str) -> bool:
    """Whether ``--output`` names a folder for clips: one that exists, or ends with a slash."""
    return text.endswith(SLASHES) or Path(text).is_dir()


def check_output(text: str | None) -> None:
    """Raise ``UserError`` where no clip can be written to what ``--output`` says."""
    if text is None or text == STDOUT:
        return
    from flowcept.data import video

    path = Path(text)
    if is_folder(text):
        video.check_folder(path)
        return
    video.check_output(path)
    if not path.suffix:
        raise UserError(f"--output {text}: write {text}.mp4 for one clip, or {text}/ for a folder")


def check_format(kind: str | None, text: str | None) -> None:
    """Raise ``UserError`` where ``--format`` is not that of the name that ``--output`` gives."""
    if kind is None or text is None or text == STDOUT or is_folder(text):
        return
    if Path(text).suffix.lower() != f".{kind}":
        raise UserError(f"--format {kind} does not fit --output {text}: leave one of them out")


def slug(text: str) -> str:
    """The words of a prompt as a part of a file's name: ``a-dog-surfing``."""
    words = "-".join(re.findall(r"[^\W_]+", text.lower()))
    if len(words) <= LONGEST_SLUG:
        return words
    return words[: LONGEST_SLUG + 1].rpartition("-")[0] or words[:LONGEST_SLUG]


def numbered(path: Path, number: int) -> Path:
    """``out.mp4`` becomes ``out-1.mp4``."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def new_name(first: Path, taken: Collection[Path | None]) -> Path:
    """A name that nobody chose replaces nothing: it gets a number where one is there already."""
    later = (numbered(first, number) for number in itertools.count(2))
    names = itertools.chain([first], later)
    return next(name for name in names if name not in taken and not name.exists())


def check_apart(files: Iterable[Path | None], inputs: Sequence[Path]) -> None:
    """Raise ``UserError`` where a file to be written is an input, or holds two things."""
    from flowcept.data import video

    read = {path.resolve() for path in inputs}
    taken, touched = set[video.Claim](), set[video.Claim]()
    for path in filter(None, files):
        if path.resolve() in read:
            raise UserError(f"{path} is an input: give the output another name")
        takes, touches = video.claims(path)
        if takes & touched or touches & taken:
            raise UserError(f"{path} is named for two outputs: give each its own name")
        taken |= takes
        touched |= touches


def check_free(files: Iterable[Path | None], overwrite: bool) -> None:
    """Raise ``UserError`` where a file would be replaced that flowcept did not make.

    A file is ours if it says so itself; one that is empty has nothing to lose.
    """
    for path in filter(None, files):
        if not overwrite and path.exists() and path.stat().st_size and not _is_ours(path):
            told = "exists already and may not be flowcept's"
            raise UserError(f"{path} {told}: choose another name, or add --overwrite")


def _is_ours(path: Path) -> bool:
    from flowcept.data import video

    if path.suffix.lower() == ".safetensors":
        from flowcept import model_file

        return model_file.is_model(path)
    try:
        if path.suffix.lower() == ".json":
            return "flowcept" in json.loads(path.read_bytes())
        return "flowcept" in (video.read_metadata(path) or {})
    except (UserError, ValueError, TypeError, RecursionError):
        return False
