"""Files on one side, uint8 RGB frames on the other; nothing here knows of models.

Shape suffixes: F frames, H height, W width, C = 3 colours. What is unusual here:

* Whatever is written goes to a hidden temporary name in the target's folder, is opened again, its
  frames are counted, and only then takes its name. A target is whole or absent.
* A clip has one constant rate. Files that give each frame its own duration (GIF, WebP, APNG, many
  videos) are brought to one by `_constant_rate`, in a single place.
* WebP and APNG files are put together here, because the usual encoders merge equal neighbouring
  frames; a clip must come back with the frames it had.
* ffmpeg comes with imageio-ffmpeg, without ffprobe: the `showinfo` filter reports exact rates,
  time stamps and sizes of the frames that really are in the file.
"""

import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from flowcept.errors import UserError
from flowcept.settings import FASTEST, FITS, SLOWEST

Frames = NDArray[np.uint8]

DEFAULT_FPS = 12.0  # of a still picture or a folder of pictures, which carry no rate
_FFMPEG_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
_PILLOW_SUFFIXES = frozenset({".gif", ".webp", ".apng"})
VIDEO_SUFFIXES = _FFMPEG_SUFFIXES | _PILLOW_SUFFIXES
# A .webp is in both sets: it may be a clip or a picture.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
OUTPUT_SUFFIXES = frozenset({".mp4", ".mov", ".webm", ".gif", ".webp", ".apng", ".png"})

_LARGEST = 32 << 30  # bytes of one clip in memory: above it a file is refused, not the machine lost
_FASTEST_MIXED = 120  # frames a second, the most that unequal durations are brought to
_FASTEST_GIF = 50  # frames a second; viewers play a frame of under 2/100 s for 10/100 s
_USER_COMMENT = 0x9286  # Exif tag, in the sub-directory _EXIF
_EXIF = 0x8769
_ORIENTATION = 0x0112  # EXIF: from 5 on, rows and columns change places
_DEMUXERS = "mov,matroska,avi,wav,mp3,ogg,flac,aac"  # no playlists: they name other files
_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
# Of every reading, after ffmpeg itself has turned the picture: square pixels, report of each frame.
_FILTERS = f"scale=w='max(1,round(iw*sar))':h=ih:{_SCALE},setsar=1,showinfo=checksum=0"
_ON_WHITE = (
    "format=rgba,split[a][b];[b]drawbox=c=white:t=fill:replace=1[w];[w][a]overlay=format=gbrp"
)
_DAMAGE = re.compile(
    r"partial file|ended prematurely|corrupt input packet|Decoding error|Error during demuxing"
)
_TRANSPARENT = re.compile(  # in ffmpeg's description of the input
    r"^ +Stream #0:\d+.*: Video: .*?, (yuva|ya8|ya16|rgba|argb|abgr|bgra|gbrap|pal8)"
    r"|^ +Stream #0:\d+.*: Video: (vp[89]) .*\n(?: {4}.*\n)*? +alpha_mode +: 1$",
    re.MULTILINE,
)
# remove_types=6 takes out the note in which libx264 lists its settings within the stream.
_H264 = "-c:v libx264 -crf 16 -bsf:v filter_units=remove_types=6 -movflags +faststart -c:a aac"
_VP9 = "-c:v libvpx-vp9 -crf 18 -b:v 0 -deadline good -cpu-used 2 -row-mt 1 -c:a libopus"
_ENCODERS = {".mp4": _H264, ".mov": _H264, ".webm": _VP9}
_NAMELESS = "-map_metadata -1 -map_chapters -1 -metadata:s encoder= -fflags +bitexact"
_NAMELESS += " -flags:v +bitexact -flags:a +bitexact"
_PATTERN = re.compile(r"[^%]*%(0[0-9]+)?d[^%]*\.(?i:png)")  # frame_%04d.png


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is when read: at its constant rate, upright, with square pixels."""

    width: int
    height: int
    fps: float
    num_frames: int  # counted, not taken from a header
    has_audio: bool


@dataclass(frozen=True)
class Sound:
    """The sound of another file, for its own length."""

    path: Path
    start: float  # where it begins in the output, seconds >= 0


# ---- ffmpeg ----------------------------------------------------------------------------------


@functools.cache
def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UserError("ffmpeg is missing: reinstall imageio-ffmpeg with pip") from error


def _input(path: Path) -> list[str]:
    """Arguments that read this one local file and nothing that it may point to."""
    guards = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
    return [*guards, "-i", f"file:{path.absolute()}"]


@dataclass(frozen=True)
class _Report:
    """What ffmpeg's messages say of a file that it has read."""

    path: Path
    log: str

    @functools.cached_property
    def frames(self) -> list[re.Match[str]]:
        """One match a frame: time stamp, width, height."""
        pattern = r" n: *\d+ pts: *(-?\d+) .*? s:(\d+)x(\d+) "
        frames = list(re.finditer(pattern, self.log))
        if not frames or _DAMAGE.search(self.log):
            raise _unreadable(self.path)
        return frames

    def has_audio(self) -> bool:
        return re.search(r"^ +Stream #0:\d+.*: Audio: ", self.log, re.MULTILINE) is not None

    def size(self) -> tuple[int, int]:
        """Height and width, the same for all frames."""
        sizes = {(int(frame[3]), int(frame[2])) for frame in self.frames}
        if len(sizes) > 1:
            raise UserError(f"cannot read {self.path}: its frame size changes; re-encode it")
        return sizes.pop()

    def timing(self, count: int) -> tuple[NDArray[np.intp], float]:
        """`_constant_rate` of the first `count` frames."""
        config = re.search(r"config in time_base: (\d+)/(\d+), frame_rate: (\d+)/(\d+)", self.log)
        assert config is not None
        tick = int(config[1]) / int(config[2])
        declared = int(config[3]) / int(config[4]) if int(config[4]) else 0.0
        steps = np.diff(np.array([int(frame[1]) for frame in self.frames[:count]], np.float64))
        # Nothing follows the last frame to time it, and its stored duration is often wrong.
        if declared:
            # A rate that ffmpeg had to guess can be a multiple of the true one.
            last = max(1 / declared / tick, float(steps.min()) if len(steps) else 0.0)
        else:
            last = float(np.median(steps)) if len(steps) else 1 / DEFAULT_FPS / tick
        return _constant_rate(np.append(steps, last) * tick, tick, declared)


def _constant_rate(
    durations: NDArray[np.float64], tick: float, declared: float = 0.0
) -> tuple[NDArray[np.intp], float]:
    """Which frame to show at each beat of a constant rate, and the rate, for given durations (s).

    Tried in order: every frame once; frames repeated because equal neighbours had been merged
    (durations are whole multiples of the shortest). The `declared` rate or a round one is preferred
    when it explains every time stamp to the `tick` (s) that the file counts in; else the mean rate,
    with up to a quarter frame of jitter. Where nothing fits, the frame on show in the middle of
    each beat is taken, at the rate of the median duration.
    """
    frame = np.arange(len(durations))
    durations = np.maximum(durations, max(tick, 1e-6))
    ends = np.cumsum(durations)
    spare = np.zeros_like(ends)
    spare[-1] = tick / 2  # the last duration is rounded by itself, not to fit the next stamp
    multiples = np.maximum(1, np.rint(durations / durations.min())).astype(np.intp)
    for repeats in (np.ones_like(frame), multiples):
        beats = np.cumsum(repeats)
        mean = float(beats[-1] / ends[-1])
        if beats[-1] > len(frame) and mean > _FASTEST_MIXED:
            continue
        for rate, slack in (
            (declared, 1.01 * tick),  # the first stamp is rounded too
            (float(round(mean)), 0.51 * tick + 1e-6),
            (round(mean) * 1000 / 1001, 0.51 * tick + 1e-6),
            (mean, max(0.99 * tick, 0.25 / mean)),
        ):
            if rate > 0 and np.all(np.abs(beats / rate - ends) <= slack + spare):
                return np.repeat(frame, repeats), rate
    rate = min(float(1 / np.median(durations)), _FASTEST_MIXED)
    middles = (np.arange(max(1, round(ends[-1] * rate))) + 0.5) / rate
    return np.minimum(np.searchsorted(ends, middles, side="right"), len(frame) - 1), rate


def _decode(
    path: Path, arguments: list[str], *, keep: bool, decoder: Sequence[str] = ()
) -> tuple[bytearray, _Report]:
    """Run ffmpeg over the first video stream; returns its output, if kept, and its report."""
    command = [_ffmpeg(), "-hide_banner", "-nostats", "-nostdin", *decoder, *_input(path)]
    command += [
        "-map",
        "0:v:0",
        *arguments,
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo" if keep else "null",
        "-",
    ]
    frames = bytearray()  # grows in place, unlike a list of frames that is stacked at the end
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(4 << 20):
                frames += chunk
                _check_memory(path, len(frames))
        except BaseException:
            process.kill()
            raise
        process.wait()
        log.seek(0)
        report = _Report(path, log.read().decode(errors="replace"))
    if process.returncode != 0:
        raise _unreadable(path)
    return frames, report


def _unreadable(path: Path) -> UserError:
    return UserError(f"cannot read {path}: it is damaged, cut off, or not what its name says")


def _check_memory(path: Path, size: int) -> None:
    if size > _LARGEST:
        raise UserError(f"{path} is over {_LARGEST >> 30} GiB in memory: cut it or make it smaller")


# ---- reading ---------------------------------------------------------------------------------


def probe(path: Path) -> VideoInfo:
    """What `read_video` would return, without keeping the frames."""
    _check_readable(path)
    if path.is_dir():
        files = _pictures(path)
        sizes = [_stored_size(file) for file in files]
        for file, size in zip(files, sizes, strict=True):
            if size != sizes[0]:
                raise _another_size(path, file)
        height, width = read_image(files[0]).shape[:2]
        return VideoInfo(width, height, _folder_fps(path), len(files), has_audio=False)
    if _by_pillow(path):
        with _opened(path) as image:
            durations = [duration for _, duration in _animation(image)]
            index, fps = _pillow_timing(image.format, durations)
            height, width = _upright_picture(image).shape[:2]
        return VideoInfo(width, height, fps, len(index), has_audio=False)
    _, report = _decode(path, ["-vf", _FILTERS], keep=False)
    height, width = report.size()
    index, fps = report.timing(len(report.frames))
    return VideoInfo(width, height, fps, len(index), report.has_audio())


def read_video(path: Path, *, max_frames: int | None = None) -> tuple[Frames, float]:
    """Read a video, an animation, a picture or a folder of pictures.

    Returns uint8 RGB `[F, H, W, 3]` and frames per second, upright and on white. The clip is held
    in memory once (twice only while a variable rate is made constant). `max_frames` (>= 1) reads
    no further than that. Raises UserError for anything that is not a whole clip.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError("max_frames must be at least 1")
    _check_readable(path)
    if path.is_dir():
        return _read_folder(path, max_frames), _folder_fps(path)
    try:
        if _by_pillow(path):
            frames_FHW3, index, fps = _read_pillow(path, max_frames)
        else:
            frames_FHW3, index, fps = _read_ffmpeg(path, max_frames)
        index = index[:max_frames]
        if not np.array_equal(index, np.arange(len(frames_FHW3))):
            _check_memory(path, len(index) * frames_FHW3[0].nbytes)
            frames_FHW3 = frames_FHW3[index]
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory: cut it or make it smaller") from error
    return frames_FHW3, fps


def read_image(path: Path) -> Frames:
    """Read a picture: uint8 RGB `[H, W, 3]`, turned as its EXIF says, transparency on white."""
    _check_readable(path)
    if path.is_dir() or path.suffix.lower() in _FFMPEG_SUFFIXES:
        raise UserError(f"{path} is a clip, a still picture is needed here: give one of its frames")
    with _opened(path) as image:
        if _num_pictures(image) > 1:
            raise UserError(f"{path} is a clip, a still picture is needed here: save one frame")
        return _upright_picture(image)


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            os.scandir(path).close()
            return
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if empty:
        raise UserError(f"cannot read {path}: the file is empty")


def _by_pillow(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"cannot read {path}: unknown kind of file; known are {known}")
    return suffix not in _FFMPEG_SUFFIXES


def _read_ffmpeg(path: Path, most: int | None) -> tuple[Frames, NDArray[np.intp], float]:
    limit = [] if most is None else ["-frames:v", str(most)]
    data, report = _decode(path, ["-vf", f"{_FILTERS},format=rgb24", *limit], keep=True)
    if found := _TRANSPARENT.search(report.log):
        # Only libvpx, not ffmpeg's own decoder, sees the transparency of VP8 and VP9.
        decoder = {"vp8": ["-c:v", "libvpx"], "vp9": ["-c:v", "libvpx-vp9"]}.get(found[2], [])
        del data  # before the second reading, so that the clip is in memory once
        arguments = ["-vf", f"{_FILTERS},{_ON_WHITE},format=rgb24", *limit]
        data, report = _decode(path, arguments, keep=True, decoder=decoder)
    frames_FHW3 = np.frombuffer(data, np.uint8).reshape(-1, *report.size(), 3)
    return frames_FHW3, *report.timing(len(frames_FHW3))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file opened by Pillow, whose many errors become one."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise _unreadable(path) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {path}: its pictures are too large") from error


def _upright_picture(image: Image.Image) -> Frames:
    """The current frame of an open file as uint8 RGB `[H, W, 3]`."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 bits a pixel, kept by Pillow in one of several wide modes
        value_HW = np.asarray(image, np.float64) * (255 if image.mode == "F" else 1 / 257)
        image = Image.fromarray(np.rint(value_HW).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(image.convert("RGB"))


def _num_pictures(image: Image.Image) -> int:
    """Stored frames of an open file; a .tif or .jpg may hold pages, which are not frames."""
    return getattr(image, "n_frames", 1) if image.format in {"GIF", "WEBP", "PNG"} else 1


def _animation(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    """Every frame of an open file and its duration in seconds, 0 where it has none."""
    first = 1 if image.info.get("default_image") else 0  # an APNG's picture for other viewers
    for number in range(first, _num_pictures(image)):
        image.seek(number)
        image.load()
        duration = float(image.info.get("duration", 0)) / 1000
        if image.format == "GIF" and duration <= 0.01:
            duration = 0.1  # as every browser plays it
        yield image, duration


def _pillow_timing(kind: str | None, durations: list[float]) -> tuple[NDArray[np.intp], float]:
    if not any(durations):
        return np.arange(len(durations)), DEFAULT_FPS
    tick = {"GIF": 0.01, "WEBP": 0.001}.get(kind or "", 1e-6)  # seconds; APNG stores fractions
    return _constant_rate(np.array(durations), tick)


def _read_pillow(path: Path, most: int | None) -> tuple[Frames, NDArray[np.intp], float]:
    with _opened(path) as image:
        count = _num_pictures(image) if most is None else min(_num_pictures(image), most)
        frames_FHW3 = np.empty((0, 0, 0, 3), np.uint8)
        durations = []
        for number, (frame, duration) in enumerate(itertools.islice(_animation(image), count)):
            picture_HW3 = _upright_picture(frame)
            if number == 0:
                _check_memory(path, count * picture_HW3.nbytes)
                frames_FHW3 = np.empty((count, *picture_HW3.shape), np.uint8)
            frames_FHW3[number] = picture_HW3
            durations.append(duration)
        return frames_FHW3[: len(durations)], *_pillow_timing(image.format, durations)


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


def _stored_size(file: Path) -> tuple[int, int]:
    """Width and height of a picture once it is upright, from its header alone."""
    with _opened(file) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)


def _another_size(folder: Path, file: Path) -> UserError:
    return UserError(f"cannot read {folder}: {file.name} has another size than the first")


def _read_folder(folder: Path, most: int | None) -> Frames:
    files = _pictures(folder)[:most]
    first_HW3 = read_image(files[0])
    _check_memory(folder, len(files) * first_HW3.nbytes)
    frames_FHW3 = np.empty((len(files), *first_HW3.shape), np.uint8)
    for number, file in enumerate(files):
        picture_HW3 = read_image(file)
        if picture_HW3.shape != first_HW3.shape:
            raise _another_size(folder, file)
        frames_FHW3[number] = picture_HW3
    return frames_FHW3


def _folder_fps(folder: Path) -> float:
    """The rate noted in the first picture by `write_video`, if its metadata has one."""
    fps = (read_metadata(folder) or {}).get("fps")
    return float(fps) if isinstance(fps, int | float) and 0 < fps < 1e6 else DEFAULT_FPS


def read_metadata(path: Path) -> dict[str, object] | None:
    """What `write_video` stored in a file, or in the first picture of a folder; None if nothing.

    Raises UserError if the file cannot be read at all.
    """
    _check_readable(path)
    if path.is_dir():
        path = _pictures(path)[0]
    text: object = ""
    if _by_pillow(path):
        with _opened(path) as image:
            text = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
            if isinstance(text, bytes):
                text = text.removeprefix(b"ASCII\0\0\0")
            text = image.info.get("comment", text)
    else:
        command = [_ffmpeg(), "-nostdin", *_input(path), "-f", "ffmetadata", "-"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise _unreadable(path)
        output = done.stdout.decode(errors="replace").split("\n[")[0]  # streams, chapters follow
        # A backslash stands before = ; # \ and the end of a line inside a value.
        found = re.search(r"^comment=((?:\\.|[^\\\n])*)", output, re.MULTILINE | re.I | re.S)
        text = re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found else ""
    try:
        value = json.loads(text if isinstance(text, str | bytes) else "")
    except (ValueError, RecursionError):  # somebody else's comment
        return None
    return value if isinstance(value, dict) else None


def digest(frames_FHW3: Frames) -> str:
    """SHA-256 of the frames as they are shown, whatever file holds them; sizes count too."""
    sizes = ",".join(map(str, frames_FHW3.shape)).encode()
    return hashlib.sha256(sizes + np.ascontiguousarray(frames_FHW3).tobytes()).hexdigest()


# ---- writing ---------------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Raise UserError if `write_video` could not write there; to be called before any work."""
    suffix, name = path.suffix.lower(), path.name
    if not _possible(path):
        raise UserError(f"the output name {str(path)!r} holds a null character or half a letter")
    if name.lower() in OUTPUT_SUFFIXES:
        raise UserError(f"the output {path} has no name before its suffix: call it clip{name}")
    if suffix and suffix not in OUTPUT_SUFFIXES:
        known = " ".join(sorted(OUTPUT_SUFFIXES))
        raise UserError(f"unknown suffix {suffix} of {path}: use one of {known}, or a folder")
    if len(os.fsencode(name)) > 255:
        raise UserError(f"the output name {name[:40]}... is too long: use at most 255 bytes")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of the output does not exist: create it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write into {path.parent}: choose a folder that is yours")
    if suffix == ".png" or re.search(r"%\d*d", name):
        if suffix != ".png" or not _PATTERN.fullmatch(name):
            raise UserError(f"PNG frames need one number, as in frame_%04d.png, not {name}")
        if any(re.fullmatch(_numbered(name), file.name) for file in path.parent.iterdir()):
            raise UserError(f"there are frames named {name} in {path.parent} already: remove them")
    elif suffix and path.is_dir():
        raise UserError(f"the output {path} is a folder: give it another name")
    elif not suffix and path.exists():
        _check_folder(path)


def _check_folder(path: Path) -> None:
    """Raise UserError if a folder of frames could not take the place of what is there."""
    if not path.is_dir():
        raise UserError(f"the output {path} is a file without a suffix: give a suffix or a folder")
    if any(path.iterdir()):
        raise UserError(f"the output folder {path} is not empty: choose another or empty it")
    if path.is_symlink() or path.resolve() == Path.cwd():
        raise UserError(f"the output {path} is where you are, or a link: name another folder")


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
    elif _PATTERN.fullmatch(name):
        takes |= {("frames", parent, *re.split(r"%\d*d", name))}
    return takes, touches | takes


def _possible(path: Path) -> bool:
    """Whether a file can be called so: not with half a surrogate pair, nor with a zero byte."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _numbered(name: str) -> str:
    """A regular expression for the files of frame_%04d.png."""
    before, after = re.split(r"%\d*d", name)
    return re.escape(before) + r"\d+" + re.escape(after)


@contextmanager
def replacing(path: Path, *, numbered: bool = False) -> Iterator[Path]:
    """A hidden temporary name beside `path`, renamed over `path` if the block ends well.

    With `numbered` it is to become a folder, whose files are then moved out beside it.
    """
    temporary = path.parent / f".{secrets.token_hex(6)}{'' if numbered else path.suffix.lower()}"
    try:
        yield temporary
        if numbered:
            for file in sorted(temporary.iterdir()):
                file.rename(path.parent / file.name)
        else:
            if temporary.is_dir() and path.is_dir():
                path.rmdir()  # empty, as `check_output` found
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


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
    check_output(path)
    if frames_FHW3.dtype != np.uint8 or frames_FHW3.ndim != 4 or frames_FHW3.shape[3] != 3:
        raise ValueError("frames must be uint8 of shape [F, H, W, 3]")
    if frames_FHW3.size == 0 or not SLOWEST <= fps <= FASTEST:
        raise ValueError(f"a clip needs a frame, and {SLOWEST} to {FASTEST} frames a second")
    rate = Fraction(fps).limit_denominator(1001)  # holds 29.97 and 30000/1001 alike
    comment = "" if metadata is None else json.dumps(dict(metadata), default=str)  # ASCII
    suffix, notes = path.suffix.lower(), []
    if sound is not None and not has_sound(sound.path):
        notes, sound = [f"{sound.path} has no sound"], None
    if sound is not None and suffix not in _ENCODERS:
        notes, sound = [f"{suffix or 'a folder of frames'} holds no sound"], None
    if suffix == ".gif" and rate > _FASTEST_GIF:
        notes.append(f"GIF plays at most {_FASTEST_GIF} frames a second: slowed down to that")
        rate = Fraction(_FASTEST_GIF)
    height, width = frames_FHW3.shape[1:3]
    if suffix in _ENCODERS and (height % 2 or width % 2):
        even = f"{width + width % 2}x{height + height % 2}"
        notes.append(f"padded from {width}x{height} to {even}: this format needs even sizes")
    with replacing(path, numbered=suffix == ".png") as temporary:
        if suffix in _ENCODERS:
            _write_ffmpeg(temporary, frames_FHW3, rate, comment, sound)
        elif suffix in _PILLOW_SUFFIXES:
            write = {".gif": _write_gif, ".webp": _write_webp, ".apng": _write_apng}[suffix]
            write(temporary, frames_FHW3, rate, comment)
        else:
            _write_pngs(temporary, frames_FHW3, path.name if suffix else "%04d.png", comment)
        try:
            written = probe(temporary).num_frames
        except UserError as error:
            raise UserError(f"cannot write {path}: it came out unreadable") from error
        if written != len(frames_FHW3):
            raise UserError(f"cannot write {path}: {written} of {len(frames_FHW3)} frames came out")
    return "; ".join(notes)


def has_sound(path: Path) -> bool:
    """Whether a file has an audio stream; read from its headers."""
    if path.is_dir() or path.suffix.lower() in _PILLOW_SUFFIXES | IMAGE_SUFFIXES:
        return False
    _check_readable(path)
    command = [_ffmpeg(), "-hide_banner", "-nostdin", *_input(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return _Report(path, done.stderr.decode(errors="replace")).has_audio()


def _encode(frames_FHW3: Frames, rate: Fraction, arguments: Sequence[str], output: Path) -> None:
    """Send frames to ffmpeg, one by one, odd ones padded for video; OSError if it fails."""
    height, width = frames_FHW3.shape[1:3]
    right, below = (width % 2, height % 2) if output.suffix in _ENCODERS else (0, 0)
    size = f"{width + right}x{height + below}"
    command = [_ffmpeg(), "-hide_banner", "-nostats", "-loglevel", "error", "-y", "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(rate), "-i", "-"]
    command += [*arguments, f"file:{output.absolute()}"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
        ) as process,
    ):
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it stopped early: its messages say why
                for frame_HW3 in frames_FHW3:
                    padded_HW3 = np.pad(frame_HW3, ((0, below), (0, right), (0, 0)), mode="edge")
                    process.stdin.write(padded_HW3.tobytes())
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
        if process.wait() != 0:
            log.seek(0)
            known = "No space left on device|Permission denied|File too large|Disk quota exceeded"
            found = re.search(known, log.read().decode(errors="replace"))
            raise OSError(found[0].lower() if found else "the encoder failed")


def _write_ffmpeg(
    output: Path, frames_FHW3: Frames, rate: Fraction, comment: str, sound: Sound | None
) -> None:
    """mp4 and mov (H.264) or webm (VP9), 4:2:0, BT.709, sound in AAC or Opus."""
    bt709 = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
    filters = f"scale=out_color_matrix=bt709:out_range=tv:{_SCALE},format=yuv420p,setparams={bt709}"
    arguments = ["-map", "0:v:0", "-vf", filters]
    if sound is not None:
        place = f"aresample=async=1:first_pts=0,adelay=delays={round(sound.start * 1000)}:all=1"
        place += ",aformat=channel_layouts=mono|stereo"
        arguments = [*_input(sound.path), *arguments, "-map", "1:a:0", "-af", place, "-b:a", "192k"]
    arguments += [*_ENCODERS[output.suffix].split(), *_NAMELESS.split()]
    if comment:
        arguments += ["-metadata", f"comment={comment}"]
    _encode(frames_FHW3, rate, arguments, output)


def _write_gif(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
    """One palette for the whole clip, found in a first pass, so that nothing has to be kept."""
    palette = output.with_name(f"{output.name}.palette.png")
    try:
        one = ["-vf", "palettegen=reserve_transparent=0", "-update", "1"]  # a % is no pattern
        _encode(frames_FHW3, rate, one, palette)
        dithered = "[0][1]paletteuse=dither=sierra2_4a:diff_mode=rectangle"
        arguments = ["-f", "image2", "-pattern_type", "none", "-i", f"file:{palette.absolute()}"]
        arguments += ["-lavfi", dithered]
        _encode(frames_FHW3, rate, [*arguments, "-fps_mode", "passthrough"], output)
    finally:
        palette.unlink(missing_ok=True)
    if comment:
        data = output.read_bytes()
        header = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)  # up to the palette's end
        text = comment.encode()
        blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
        extension = b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
        output.write_bytes(data[:header] + extension + data[header:])


def _patches(frames_FHW3: Frames) -> Iterator[tuple[int, int, Frames]]:
    """What each frame changes: (top, left, picture), both even; one pixel if it changes nothing."""
    yield 0, 0, frames_FHW3[0]
    for before_HW3, after_HW3 in itertools.pairwise(frames_FHW3):
        changed_HW = (before_HW3 != after_HW3).any(axis=2)
        rows, columns = (np.flatnonzero(changed_HW.any(axis)) for axis in (1, 0))
        top, bottom = (int(rows[0]) & ~1, int(rows[-1]) + 1) if len(rows) else (0, 1)
        left, right = (int(columns[0]) & ~1, int(columns[-1]) + 1) if len(columns) else (0, 1)
        yield top, left, after_HW3[top:bottom, left:right]


def _write_webp(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
    """An animated lossless WebP of exactly these frames (RFC 9649, section 2.7.1)."""
    height, width = frames_FHW3.shape[1:3]
    if max(height, width) > 1 << 14:
        raise OSError("WebP pictures have at most 16384 pixels a side")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def uint24(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    with output.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")  # the size follows at the end
        flags = 2 | (8 if comment else 0)  # animation, Exif
        file.write(chunk(b"VP8X", bytes([flags, 0, 0, 0]) + uint24(width - 1, height - 1)))
        file.write(chunk(b"ANIM", b"\xff\xff\xff\xff\0\0"))  # white behind, repeated for ever
        for number, (top, left, patch_HW3) in enumerate(_patches(frames_FHW3)):
            start, end = (round(1000 * beat / rate) for beat in (number, number + 1))
            picture = io.BytesIO()
            Image.fromarray(patch_HW3).save(picture, "WEBP", lossless=True, quality=0, method=1)
            place = uint24(left // 2, top // 2, patch_HW3.shape[1] - 1, patch_HW3.shape[0] - 1)
            place += uint24(end - start) + b"\2"  # opaque
            file.write(chunk(b"ANMF", place + picture.getvalue()[12:]))  # its VP8L chunk
        if comment:
            exif = Image.Exif()
            exif.get_ifd(_EXIF)[_USER_COMMENT] = b"ASCII\0\0\0" + comment.encode()
            file.write(chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0")))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _write_apng(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
    """An animated PNG of exactly these frames (PNG third edition, section 11.3.6)."""
    height, width = frames_FHW3.shape[1:3]
    delay = (1 / rate).limit_denominator(65535)  # seconds, as two numbers of 16 bits
    sequence = itertools.count()
    with output.open("wb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            check = zlib.crc32(kind + data)
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        chunk(b"acTL", struct.pack(">II", len(frames_FHW3), 0))
        if comment:
            chunk(b"tEXt", b"comment\0" + comment.encode())
        for number, (top, left, patch_HW3) in enumerate(_patches(frames_FHW3)):
            size = patch_HW3.shape[1], patch_HW3.shape[0], left, top
            fractions = delay.numerator, delay.denominator, 0, 0  # stays, replaces
            chunk(b"fcTL", struct.pack(">IIIIIHHBB", next(sequence), *size, *fractions))
            picture = io.BytesIO()
            Image.fromarray(patch_HW3).save(picture, "PNG")
            for data in _idat(picture.getvalue()):
                if number == 0:
                    chunk(b"IDAT", data)
                else:
                    chunk(b"fdAT", struct.pack(">I", next(sequence)) + data)
        chunk(b"IEND", b"")


def _idat(png: bytes) -> Iterator[bytes]:
    """The compressed pixels of a PNG file, chunk by chunk."""
    position = 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        if kind == b"IDAT":
            yield png[position + 8 : position + 8 + length]
        position += 12 + length


def _write_pngs(folder: Path, frames_FHW3: Frames, name: str, comment: str) -> None:
    """A folder of one PNG a frame, numbered from 1; the comment goes into the first."""
    folder.mkdir()
    for number, frame_HW3 in enumerate(frames_FHW3, start=1):
        text = PngImagePlugin.PngInfo()
        if comment and number == 1:
            text.add_text("comment", comment)
        Image.fromarray(frame_HW3).save(folder / (name % number), pnginfo=text)


def save_image(image: Image.Image, path: Path) -> None:
    """Write one picture in the format of its suffix; UserError if that fails."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"cannot write the picture {path}: its suffix must be one of {known}")
    if image.width * image.height > 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize):
        raise UserError(f"{path} would be {image.width}x{image.height}: lower --scale or --frames")
    with replacing(path) as temporary:
        image.save(temporary)
        with _opened(temporary) as written:
            written.load()


# ---- sizes -----------------------------------------------------------------------------------


_LANCZOS = Image.Resampling.LANCZOS


def _resize(
    frames_FHW3: Frames, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Frames:
    """Resize the part `box` (left, top, right, bottom) of every frame to (height, width)."""
    resized_FHW3 = np.empty((len(frames_FHW3), *size, 3), np.uint8)
    for number, frame_HW3 in enumerate(frames_FHW3):
        picture = Image.fromarray(frame_HW3)
        resized_FHW3[number] = np.asarray(picture.resize(size[::-1], _LANCZOS, box))
    return resized_FHW3


def fit(frames_FHW3: Frames, size: tuple[int, int], how: str = "crop") -> tuple[Frames, str]:
    """Bring frames to `size` (height, width); returns them and a sentence, "" if nothing was done.

    `crop` keeps the middle and fills the size, `pad` keeps everything with black bars, `stretch`
    ignores the aspect.
    """
    old_height, old_width = frames_FHW3.shape[1:3]
    height, width = size
    if how not in FITS:
        raise ValueError(f"how must be crop, pad or stretch, not {how}")
    if (old_height, old_width) == size:
        return frames_FHW3, ""
    change = f"{old_width}x{old_height} to {width}x{height}"
    box = (0.0, 0.0, float(old_width), float(old_height))
    if how == "stretch" or old_height * width == old_width * height:
        return _resize(frames_FHW3, size, box), f"resized from {change}"
    if how == "crop":
        factor = max(height / old_height, width / old_width)
        kept_height, kept_width = height / factor, width / factor
        left, top = (old_width - kept_width) / 2, (old_height - kept_height) / 2
        box = (left, top, min(left + kept_width, old_width), min(top + kept_height, old_height))
        part = f"the middle {round(kept_width)}x{round(kept_height)}"
        return _resize(frames_FHW3, size, box), f"cropped from {change}, keeping {part}"
    factor = min(height / old_height, width / old_width)
    inner = max(1, round(old_height * factor)), max(1, round(old_width * factor))
    padded_FHW3 = np.zeros((len(frames_FHW3), height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    inner_FHW3 = padded_FHW3[:, top : top + inner[0], left : left + inner[1]]
    inner_FHW3[...] = _resize(frames_FHW3, inner, box)
    return padded_FHW3, f"resized from {change} with black bars"


def scale(frames_FHW3: Frames, factor: int) -> Frames:
    """Enlarge frames by a whole number >= 1, by Lanczos resampling."""
    if factor < 1:
        raise ValueError("the factor must be at least 1")
    height, width = frames_FHW3.shape[1:3]
    return fit(frames_FHW3, (height * factor, width * factor))[0]


# ---- contact sheets --------------------------------------------------------------------------

_TEXT = 12  # height of a label's letters, pixels
_LINE = 18  # height of a label's line, pixels


def contact_sheet(
    frames_FHW3: Frames,
    *,
    columns: int = 0,
    labels: Sequence[str] | None = None,
    gap: int = 2,
) -> Image.Image:
    """All frames on one white picture, row by row, each under its label.

    `columns` 0 chooses rows of equal length of at most 8. `gap` in pixels.
    """
    count, height, width = frames_FHW3.shape[:3]
    if labels is not None and len(labels) != count:
        raise ValueError("there must be one label for each frame")
    columns = columns or math.ceil(count / math.ceil(count / 8))
    line = _LINE if labels is not None else 0
    step_y, step_x = height + line + gap, width + gap
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    for number, frame_HW3 in enumerate(frames_FHW3):
        x, y = gap + number % columns * step_x, gap + number // columns * step_y
        if labels is not None:
            _label(sheet, (x, y), labels[number], width)
        sheet.paste(Image.fromarray(frame_HW3), (x, y + line))
    return sheet


def contact_sheets(
    clips: Sequence[Frames], labels: Sequence[str] | None = None, max_columns: int = 16
) -> Image.Image:
    """Several clips under each other, of any sizes, each in one row or more under its label."""
    if not clips or (labels is not None and len(labels) != len(clips)):
        raise ValueError("there must be a clip, and one label for each")
    sheets = [contact_sheet(clip, columns=min(len(clip), max_columns)) for clip in clips]
    line = _LINE if labels is not None else 0
    width, height = max(s.width for s in sheets), sum(s.height + line for s in sheets)
    whole = Image.new("RGB", (width, height), "white")
    y = 0
    for number, sheet in enumerate(sheets):
        if labels is not None:
            _label(whole, (2, y), labels[number], width - 4)
        whole.paste(sheet, (0, y + line))
        y += sheet.height + line
    return whole


def legible(text: str) -> str:
    """The text on one line; Pillow's own font has no accents, so letters lose theirs."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _label(sheet: Image.Image, corner: tuple[int, int], text: str, width: int) -> None:
    """Draw one line of text, cut to a width in pixels."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    text = legible(text)
    cut = text
    while cut and draw.textlength(cut + "…" * (cut != text), font) > width:
        cut = cut[:-1]
    draw.text(corner, cut + "…" * (cut != text), "black", font)
