"""Files on one side, uint8 RGB frames on the other, at one constant rate.

Whatever is written goes to a hidden name, is opened again and counted, and only then takes its own:
a target is whole or absent. Shape suffixes: F frames, H height, W width, 3 colours.
"""

import hashlib
import itertools
import json
import math
import os
import re
import stat
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from flowcept.data import ffmpeg, formats, pictures
from flowcept.data.timing import DEFAULT_FPS, Edges, Timing, constant_rate, edges
from flowcept.errors import UserError
from flowcept.files import replacing
from flowcept.settings import FASTEST, SLOWEST

Frames = ffmpeg.Frames
Sound = formats.Sound
holds_alpha = formats.holds_alpha

_FFMPEG_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
_PILLOW_SUFFIXES = frozenset({".gif", ".webp", ".apng"})
VIDEO_SUFFIXES = _FFMPEG_SUFFIXES | _PILLOW_SUFFIXES
# A .webp is in both sets: it may be a clip or a picture.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
OUTPUT_SUFFIXES = frozenset({".mp4", ".mov", ".webm", ".gif", ".webp", ".apng", ".png"})

_LARGEST = 32 << 30  # bytes of one clip in memory: above it a file is refused, not the machine lost
_LOOK = 1 << 28  # bytes after which it is looked how much memory is free
_ORIENTATION = 0x0112  # EXIF: from 5 on, rows and columns change places
_PATTERN = re.compile(r"([^%]*)%(?:0[0-9]+)?d([^%]*\.(?i:png))")  # frame_%04d.png
_GAP = 2  # pixels around the frames of a contact sheet
_LINE = 18  # pixels of a line of text


# ---- sources: Animation, PictureFolder and ffmpeg.Film ----------------------------------------
#
# `pictures` gives the stored frames `[H, W, 3]`. Their `timing` is known at its end, or after
# `survey`, which is less work, unless that says False. `comment` is what a file says of itself.


class Animation:
    """The frames of a file that Pillow reads; a still picture has one."""

    timing: Timing
    edges: Edges  # these, as of ffmpeg.Film
    fps: float
    transparent = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def survey(self) -> bool:
        return False

    def pictures(self, alpha: bool = False) -> Iterator[Frames]:
        durations = []  # seconds, 0 where there is none
        with pictures.opened(self.path) as image:
            for frame, seconds in pictures.played(image):
                self.transparent |= frame.has_transparency_data
                durations.append(seconds)
                yield pictures.upright(frame, alpha)
            tick = {"GIF": 0.01, "WEBP": 0.001}.get(image.format or "", 1e-6)  # s; APNG: fractions
        if any(durations):
            self.timing = constant_rate(np.array(durations), tick)
            self.edges, self.fps = edges(np.array(durations), tick)
        else:
            self.timing = Timing(DEFAULT_FPS, len(durations))
            self.edges, self.fps = np.arange(len(durations) + 1) / DEFAULT_FPS, DEFAULT_FPS

    def comment(self) -> object:
        with pictures.opened(self.path) as image:
            text = image.getexif().get_ifd(formats.EXIF).get(formats.USER_COMMENT, b"")
            if isinstance(text, bytes):
                text = text.removeprefix(formats.EXIF_ASCII)
            return image.info.get("comment", text)


class PictureFolder:
    """A folder of pictures of one size, at the rate that `write_video` noted in the first one."""

    transparent = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _pictures(path)
        fps = (read_metadata(self.files[0]) or {}).get("fps")
        rate = float(fps) if isinstance(fps, int | float) and 0 < fps < 1e6 else DEFAULT_FPS
        self.timing = Timing(rate, len(self.files))
        self.edges, self.fps = np.arange(len(self.files) + 1) / rate, rate

    def survey(self) -> bool:
        """Read all headers, which may not differ in size, and the first picture."""
        sizes = []
        for file in self.files:
            with pictures.opened(file) as image:
                self.transparent |= image.has_transparency_data
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
                sizes.append(image.size[::-1] if turned else image.size)
            if sizes[-1] != sizes[0]:
                text = f"{file.name} has another size than the first"
                raise UserError(f"cannot read {self.path}: {text}")
        read_image(self.files[0])
        return True

    def pictures(self, alpha: bool = False) -> Iterator[Frames]:
        self.survey()
        for file in self.files:
            yield read_image(file, alpha)

    def comment(self) -> object:
        return Animation(self.files[0]).comment()


def _source(path: Path) -> ffmpeg.Film | Animation | PictureFolder:
    _check_readable(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return PictureFolder(path)
    if suffix in _FFMPEG_SUFFIXES:
        return ffmpeg.Film(path)
    if suffix in _PILLOW_SUFFIXES | IMAGE_SUFFIXES:
        return Animation(path)
    known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
    raise UserError(f"cannot read {path}: unknown kind of file; known are {known}")


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order: 2.png before 10.png."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise UserError(f"cannot read {folder}: a folder without pictures")

    def natural(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", file.name.lower())
        return [(int(part) if part.isdigit() else -1, part) for part in parts]

    return sorted(files, key=natural)


# ---- reading ---------------------------------------------------------------------------------


def probe(path: Path, *, decode: bool = False) -> Timing:
    """How `read_video` would say that a clip plays, without keeping the frames.

    A video is decoded only where its packets do not tell how many frames it has, or with `decode`.
    Raises UserError for what is seen not to be a whole clip.
    """
    source = _source(path)
    if decode or not source.survey():
        for _ in source.pictures():
            pass
    return source.timing


def stream(path: Path, expected: Timing | None = None) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of `read_video`, one at a time: memory holds one, whatever the clip.

    `expected` is what `probe` said of the file. Raises UserError, perhaps at the end only, for a
    file that is not a whole clip or has another number of frames than it had then.
    """
    expected = expected or probe(path)
    times = expected.times or (1,) * expected.num_frames
    count = 0
    for frame_HW3 in _source(path).pictures():
        if count < len(times):
            yield from itertools.repeat(frame_HW3, times[count])
        count += 1
    if count != len(times):
        raise UserError(f"{path} holds {count} frames, not {len(times)} as when scanned")


@dataclass(frozen=True)
class Footage:
    """A clip of frames `[H, W, 3]` at one rate, read anew each time: memory holds one of them."""

    path: Path
    timing: Timing

    @staticmethod
    def open(path: Path) -> "Footage":
        """Raises UserError for what is seen not to be a whole clip."""
        return Footage(path, probe(path))

    def __len__(self) -> int:
        return self.timing.num_frames

    def __iter__(self) -> Iterator[Frames]:
        return stream(self.path, self.timing)

    @property
    def lost(self) -> str:
        """A note where frames do not fit the rate, "" if all are there."""
        lost, stored = self.timing.times.count(0), len(self.timing.times)
        if not lost:
            return ""
        rate = f"{self.timing.fps:g} a second"
        return (
            f"frames of {self.path} differ in duration: at {rate} {lost} of {stored} are left out"
        )

    def ends(self, count: int, size: tuple[int, int]) -> tuple[Frames, tuple[int, int]]:
        """The first and last `count` frames brought to a size, all if these are all; own size."""
        first, last = list[Frames](), deque[Frames](maxlen=count)
        for frame_HW3 in self:
            own = frame_HW3.shape[:2]
            (first if len(first) < count else last).append(fit(frame_HW3[None], size, "stretch")[0])
        return np.concatenate([*first, *last]), own


@dataclass(frozen=True)
class Joined:
    """Clips one after another, each frame brought to one size when it is read."""

    parts: tuple[Frames | Footage, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Frames]:
        for frame_HW3 in itertools.chain(*self.parts):
            yield fit(frame_HW3[None], self.size, "stretch")[0][0]


def read_video(path: Path) -> tuple[Frames, float]:
    """Read a video, an animation, a picture or a folder of pictures.

    Returns uint8 RGB `[F, H, W, 3]` and frames per second, upright, with square pixels and on
    white. The clip is held in memory once (twice only while a variable rate is made constant).
    Raises UserError for anything that is not a whole clip.
    """
    source = _source(path)
    data = bytearray()  # grows in place, unlike a list of frames that is stacked at the end
    shape: tuple[int, ...] = ()
    looked = 0
    try:
        for frame_HW3 in source.pictures():
            shape = frame_HW3.shape
            data += frame_HW3.data
            if len(data) - looked > _LOOK:
                looked = len(data)
                _check_memory()
            if len(data) > _LARGEST:
                raise MemoryError
        frames_FHW3 = np.frombuffer(data, np.uint8).reshape(-1, *shape)
        if source.timing.num_frames * math.prod(shape) > _LARGEST:
            raise MemoryError
        if source.timing.times:
            frames_FHW3 = np.repeat(frames_FHW3, source.timing.times, axis=0)
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory: cut it or make it smaller") from error
    return frames_FHW3, source.timing.fps


def _check_memory() -> None:
    """MemoryError where the machine has no room for what is read until the next look."""
    import torch

    from flowcept import device

    if device.free_memory(torch.device("cpu")) < 2 * _LOOK:
        raise MemoryError


@dataclass(frozen=True)
class Reel:
    """A clip to be read frame by frame, with the real times of its frames."""

    path: Path
    edges: Edges  # when each frame begins, and the last one ends (s, the first at 0)
    fps: float  # the constant rate; of unequal durations that of the median
    transparent: bool  # whether the file has an alpha channel

    @property
    def num_frames(self) -> int:
        """As the file stores them: those of a variable rate once each."""
        return len(self.edges) - 1

    def pictures(self) -> Iterator[Frames]:
        """The frames `[H, W, 3]`, or `[H, W, 4]` where the file has an alpha channel.

        Raises UserError, perhaps at the end only, for a file that is not a whole clip or has
        another number of frames than it had.
        """
        count = 0
        for frame_HWC in _source(self.path).pictures(alpha=self.transparent):
            count += 1
            if count > self.num_frames:
                break
            yield frame_HWC
        if count != self.num_frames:
            raise UserError(f"{self.path} no longer holds {self.num_frames} frames")


def open_reel(path: Path) -> Reel:
    """A clip's frames and times; a film is decoded for them only where packets do not tell.

    Raises UserError for what is seen not to be a whole clip, and for a single picture.
    """
    source = _source(path)
    if not source.survey():
        for _ in source.pictures():
            pass
    if len(source.edges) < 3:
        raise UserError(f"{path} is a picture: give a clip")
    return Reel(path, source.edges, source.fps, source.transparent)


def read_image(path: Path, alpha: bool = False) -> Frames:
    """Read a picture: uint8 RGB `[H, W, 3]`, turned as its EXIF says, transparency on white.

    With `alpha` it is `[H, W, 4]`, colours as they are.
    """
    _check_readable(path)
    if path.is_dir() or path.suffix.lower() in _FFMPEG_SUFFIXES:
        raise UserError(f"{path} is a clip, but a picture is needed: give one of its frames")
    with pictures.opened(path) as image:
        if pictures.count(image) > 1:
            raise UserError(f"{path} is a clip, but a picture is needed: save one frame")
        return pictures.upright(image, alpha)


def is_moving(path: Path) -> bool:
    """Whether a file holds a clip rather than a picture, by its name or its header."""
    if path.suffix.lower() in _FFMPEG_SUFFIXES or path.is_dir():
        return True
    _check_readable(path)
    with pictures.opened(path) as image:
        return pictures.count(image) > 1


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            os.scandir(path).close()
            return
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe may wait for ever
            raise UserError(f"cannot read {path}: it is not a regular file")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if empty:
        raise UserError(f"cannot read {path}: the file is empty")


def read_metadata(path: Path) -> dict[str, object] | None:
    """What `write_video` stored in a file, or in the first picture of a folder; None if nothing.

    Raises UserError if the file cannot be read at all.
    """
    text = _source(path).comment()
    try:
        value = json.loads(text if isinstance(text, str | bytes) else "")
    except (ValueError, RecursionError):  # somebody else's comment
        return None
    return value if isinstance(value, dict) else None


def digest(frames_FHW3: Frames | Footage) -> str:
    """SHA-256 of the frames as they are shown, whatever file holds them; sizes count too."""
    first_HW3, frames = formats.peeked(frames_FHW3)
    sizes = ",".join(map(str, (len(frames_FHW3), *first_HW3.shape)))
    made = hashlib.sha256(sizes.encode())
    for frame_HW3 in frames:
        made.update(frame_HW3.tobytes())
    return made.hexdigest()


# ---- writing ---------------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Raise UserError if `write_video` could not write there; to be called before any work."""
    _check_name(path)
    suffix, name, parent = path.suffix.lower(), path.name, path.parent
    check_folder(parent)
    if not parent.exists():
        return
    if numbered := _PATTERN.fullmatch(name):
        frame = r"\d+".join(map(re.escape, numbered.groups()))
        if any(re.fullmatch(frame, file.name) for file in parent.iterdir()):
            raise UserError(f"there are frames named {name} in {parent} already: remove them")
    elif suffix and path.is_dir():
        raise UserError(f"the output {path} is a folder: give it another name")
    elif not suffix and path.exists():
        if not path.is_dir():
            raise UserError(f"the output {path} has no suffix and is a file: give it a suffix")
        if any(path.iterdir()):
            raise UserError(f"the output folder {path} is not empty: choose another or empty it")
        if path.is_symlink() or path.resolve() == Path.cwd():
            raise UserError(
                f"the output {path} is the current folder, or a link: choose another folder"
            )


def check_folder(folder: Path) -> None:
    """Raise UserError if nothing can be written into a folder, which is made where it is absent."""
    there = next(one for one in (folder, *folder.parents, Path()) if one.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file: choose another folder for the output")
    if not os.access(there, os.W_OK):
        raise UserError(f"cannot write into {there}: choose one where you may write")


def _check_name(path: Path) -> None:
    suffix, name = path.suffix.lower(), path.name
    try:
        length = len(os.fsencode(name))
        possible = "\0" not in str(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        length, possible = 0, False
    if not possible:
        raise UserError(f"the output name {str(path)!r} has characters that no name can have")
    if name.lower() in OUTPUT_SUFFIXES:
        raise UserError(f"the output {path} has no name before its suffix: call it clip{name}")
    if suffix and suffix not in OUTPUT_SUFFIXES:
        known = " ".join(sorted(OUTPUT_SUFFIXES))
        raise UserError(f"unknown suffix {suffix} of {path}: use one of {known}, or a folder")
    if length > 255:
        raise UserError(f"the output name {name[:40]}... is too long: use at most 255 bytes")
    if suffix != ".png" and re.search(r"%\d*d(?![a-z])", name):
        raise UserError(f"%d numbers PNG frames, not clips as {name}: give a folder for those")
    if suffix == ".png" and not _PATTERN.fullmatch(name):
        raise UserError(f"PNG frames need one number, as in frame_%04d.png, not {name}")


Claim = tuple[str, ...]


def claims(path: Path) -> tuple[set[Claim], set[Claim]]:
    """What writing a clip or picture to `path` takes for itself, and what it touches.

    Two outputs clash where one takes what the other touches: a folder takes all below it, and
    frame_%04d.png every file that its numbers may name.
    """
    path = path.resolve()
    parent, name = str(path.parent), path.name
    takes: set[Claim] = {("file", str(path))}
    touches = takes | {("below", str(folder)) for folder in path.parents}
    touches |= {
        ("frames", parent, name[:start], name[end:])
        for run in re.finditer(r"\d+", name)
        for start in range(*run.span())
        for end in range(start + 1, run.end() + 1)
    }
    if not path.suffix:
        takes |= {("below", str(path))}
    elif numbered := _PATTERN.fullmatch(name):
        takes |= {("frames", parent, *numbered.groups())}
    return takes, touches | takes


def write_video(
    path: Path,
    frames_FHW3: Frames,
    fps: float,
    *,
    metadata: Mapping[str, object] | None = None,
    sound: Sound | None = None,
) -> str:
    """Write a clip in the format of its suffix; a folder or name_%04d.png takes one PNG a frame.

    `metadata` is stored as JSON in the file's comment; None stores nothing at all, nor do the
    encoders leave their names. Returns what the user should know ("" if nothing): odd sizes padded
    for 4:2:0 video, a rate too high for GIF, sound that could not be kept. GIF loses colours, video
    is lossy; WebP, APNG and PNG are exact. Raises UserError if the clip cannot be written.
    """
    if frames_FHW3.dtype != np.uint8 or frames_FHW3.ndim != 4 or frames_FHW3.shape[3] != 3:
        raise ValueError("frames must be uint8 of shape [F, H, W, 3]")
    if frames_FHW3.size == 0:
        raise ValueError("a clip needs a frame")
    return write_stream(path, frames_FHW3, fps, metadata=metadata, sound=sound)[1]


def write_stream(
    path: Path,
    frames_FHWC: Iterable[Frames],
    fps: float,
    *,
    metadata: Mapping[str, object] | None = None,
    sound: Sound | None = None,
) -> tuple[int, str]:
    """As `write_video`, of one frame after another: memory holds none of them for long.

    Frames are `[H, W, 3]`, or `[H, W, 4]` where the format `holds_alpha`. `sound` is cut where the
    frames end, and copied where the format takes it. Returns how many frames there were, too. The
    file is whole however many frames came; none is an error.
    """
    check_output(path)
    if not SLOWEST <= fps <= FASTEST:
        raise ValueError(f"a clip needs {SLOWEST} to {FASTEST} frames a second")
    how = _Writing.of(path, fps, metadata, sound)
    counted = _Counted(frames_FHWC)
    with replacing(path, numbered=how.suffix == ".png") as temporary, _beside(temporary) as apart:
        frames: Iterable[Frames] = counted
        if how.suffix == ".gif":
            frames = formats.Recorded(apart.with_suffix(".mkv"), counted, how.rate)
        note = formats.write(temporary, frames, how.rate, how.comment, how.name)
        lost = how.lost
        if how.sound is not None:
            temporary.rename(apart)
            seconds = float(counted.count / how.rate)
            if not formats.add_sound(apart, how.sound, seconds, how.comment, temporary):
                apart.replace(temporary)
                lost = f"the sound of {how.sound.path} cannot be decoded: it is left out"
        _check_written(path, temporary, counted.count)
    return counted.count, "; ".join(filter(None, [lost, note]))


@dataclass(frozen=True)
class _Writing:
    """How a clip is written."""

    suffix: str
    name: str  # of PNG frames
    rate: Fraction
    comment: str
    sound: Sound | None  # where it can be kept
    lost: str  # why it cannot, "" if it can

    @staticmethod
    def of(
        path: Path, fps: float, metadata: Mapping[str, object] | None, sound: Sound | None
    ) -> "_Writing":
        """In the format of the suffix of ``path``."""
        suffix = path.suffix.lower()
        lost = _lost_sound(sound, suffix)
        return _Writing(
            suffix,
            path.name if suffix else "%04d.png",
            Fraction(fps).limit_denominator(1001),  # holds 29.97 and 30000/1001 alike
            "" if metadata is None else json.dumps(dict(metadata), default=str),  # ASCII
            None if lost else sound,
            lost,
        )


class _Counted:
    """Frames that pass by, and how many did."""

    def __init__(self, frames_FHWC: Iterable[Frames]) -> None:
        self.frames, self.count = frames_FHWC, 0

    def __iter__(self) -> Iterator[Frames]:
        for frame_HWC in self.frames:
            self.count += 1
            yield frame_HWC


@contextmanager
def _beside(temporary: Path) -> Iterator[Path]:
    """A second hidden name, whose files, of any suffix, are gone after the block."""
    apart = temporary.with_name(f"{temporary.stem}-apart{temporary.suffix}")
    try:
        yield apart
    finally:
        for suffix in (apart.suffix, ".mkv"):
            apart.with_suffix(suffix).unlink(missing_ok=True)


def _check_written(path: Path, temporary: Path, count: int) -> None:
    """UserError about `path` unless what was written for it has so many frames."""
    try:
        written = probe(temporary, decode=path.suffix.lower() in formats.ENCODERS).num_frames
    except UserError as error:
        raise UserError(f"cannot write {path}: the written file cannot be read") from error
    if written != count:
        raise UserError(f"cannot write {path}: only {written} of {count} frames were written")


def _lost_sound(sound: Sound | None, suffix: str) -> str:
    """Why sound cannot be kept, "" if it can."""
    if sound is None:
        return ""
    if not has_sound(sound.path):
        return f"{sound.path} has no sound"
    return (
        "" if suffix in formats.ENCODERS else f"{suffix or 'a folder of frames'} cannot hold sound"
    )


def has_sound(path: Path) -> bool:
    """Whether a file has an audio stream; read from its headers."""
    if path.is_dir() or path.suffix.lower() in _PILLOW_SUFFIXES | IMAGE_SUFFIXES:
        return False
    _check_readable(path)
    return ffmpeg.sound_codec(path) is not None


def sound_of(path: Path, shown: float = 0.0) -> Sound | None:
    """The sound of a clip whose first frame is shown after so many seconds; None if silent."""
    return Sound(path, shown - ffmpeg.Film(path).begins()) if has_sound(path) else None


def save_image(
    image: Image.Image, path: Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Write one picture in the format of its suffix; UserError if that fails.

    `metadata` is stored as JSON in the comment of PNG and JPEG, up to 64 KB.
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"cannot write the picture {path}: its suffix must be one of {known}")
    _check_drawable(path, image.width, image.height)
    comment = "" if metadata is None else json.dumps(dict(metadata))
    told: dict[str, Any] = {}
    if comment and suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", comment)
        told = {"pnginfo": text}
    elif comment and suffix in (".jpg", ".jpeg"):
        told = {"comment": comment}
    with replacing(path) as temporary:
        image.save(temporary, **told)
        with pictures.opened(temporary) as written:
            written.load()


# ---- sizes and contact sheets -----------------------------------------------------------------


_RESIZERS: Mapping[str, Callable[..., Image.Image]] = {
    "crop": ImageOps.fit,
    "pad": ImageOps.pad,
    "stretch": Image.Image.resize,
}


def fit(frames_FHW3: Frames, size: tuple[int, int], how: str = "crop") -> tuple[Frames, str]:
    """Bring frames to `size` (height, width); returns them and a sentence, "" if nothing was done.

    `crop` keeps the middle and fills the size, `pad` keeps everything with black bars, `stretch`
    ignores the aspect. All by Lanczos resampling.
    """
    if how not in _RESIZERS:
        raise ValueError(f"how must be crop, pad or stretch, not {how}")
    if frames_FHW3.shape[1:3] == size:
        return frames_FHW3, ""
    fitted_FHW3 = np.empty((len(frames_FHW3), *size, 3), np.uint8)
    for number, frame_HW3 in enumerate(frames_FHW3):
        picture = Image.fromarray(frame_HW3)
        resized = _RESIZERS[how](picture, size[::-1], Image.Resampling.LANCZOS)
        fitted_FHW3[number] = np.asarray(resized)
    return fitted_FHW3, _change(frames_FHW3.shape[1:3], size, how)


def _change(old: tuple[int, ...], new: tuple[int, int], how: str) -> str:
    """What `fit` did to another size, in words."""
    (old_height, old_width), (height, width) = old, new
    change = f"{old_width}x{old_height} to {width}x{height}"
    if how == "stretch" or old_height * width == old_width * height:
        return f"resized from {change}"
    if how == "pad":
        return f"resized from {change} with black bars"
    factor = max(height / old_height, width / old_width)
    middle = f"{round(width / factor)}x{round(height / factor)}"
    return f"cropped from {change}, keeping the middle {middle}"


def scale(frames_FHW3: Frames, factor: int) -> Frames:
    """Enlarge frames by a whole number >= 1, by Lanczos resampling."""
    if factor < 1:
        raise ValueError("the factor must be at least 1")
    height, width = frames_FHW3.shape[1:3]
    return fit(frames_FHW3, (height * factor, width * factor))[0]


def contact_sheet(frames_FHW3: Frames | Joined, columns: int = 0) -> Image.Image:
    """All frames on one white picture, row by row, of equal length of at most 8 by default."""
    first_HW3, frames = formats.peeked(frames_FHW3)
    count, (height, width) = len(frames_FHW3), first_HW3.shape[:2]
    columns = columns or math.ceil(count / math.ceil(count / 8))
    down, right = height + _GAP, width + _GAP
    size = columns * right + _GAP, math.ceil(count / columns) * down + _GAP
    _check_drawable("the contact sheet", *size)
    sheet = Image.new("RGB", size, "white")
    for number, frame_HW3 in enumerate(frames):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(frame_HW3), (_GAP + column * right, _GAP + row * down))
    return sheet


def _check_drawable(name: object, width: int, height: int) -> None:
    """Raise UserError for a picture that could not be read again."""
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize):
        raise UserError(f"{name} would be {width}x{height}: lower `scale` or `frames`")


def contact_sheets(
    clips: Sequence[Frames], labels: Sequence[str], max_columns: int = 16
) -> Image.Image:
    """Clips of any sizes under each other, each in one row or more under its label."""
    sheets = [contact_sheet(clip, min(len(clip), max_columns)) for clip in clips]
    width = max(sheet.width for sheet in sheets)
    whole = Image.new("RGB", (width, sum(_LINE + sheet.height for sheet in sheets)), "white")
    y = 0
    for sheet, label in zip(sheets, labels, strict=True):
        _write_line(whole, y, label)
        whole.paste(sheet, (0, y + _LINE))
        y += _LINE + sheet.height
    return whole


def _write_line(picture: Image.Image, y: int, label: str) -> None:
    """Write as much of a label as fits on one line."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    text = cut = legible(label)
    while cut and draw.textlength(cut + "…" * (cut != text), font) > picture.width:
        cut = cut[:-1]
    draw.text((0, y), cut + "…" * (cut != text), "black", font)


def legible(text: str) -> str:
    """The text on one line; Pillow's own font has no accents, so letters lose theirs."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
