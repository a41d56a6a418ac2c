"""The formats that a clip can be written in.

A clip comes back with the frames it had: encoders that merge equal neighbours are not used. No
function leaves a name of a tool in a file, and each raises OSError if it cannot be written.

Shape suffixes: F frames, H height, W width, C 3 colours or 4 with alpha.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from flowcept.data import ffmpeg
from flowcept.data.ffmpeg import Frames

T = TypeVar("T")

EXIF = 0x8769  # Exif tag: the sub-directory of
USER_COMMENT = 0x9286
EXIF_ASCII = b"ASCII\0\0\0"  # stands before the text of a comment

# remove_types=6 takes out the note in which libx264 lists its settings within the stream.
# One thread and a short look ahead take half of the memory, and the same file comes out everywhere.
_H264 = (
    "-c:v libx264 -crf 16 -x264-params threads=1:rc-lookahead=5 "
    "-bsf:v filter_units=remove_types=6 -movflags +faststart"
)
_VP9 = "-c:v libvpx-vp9 -crf 18 -b:v 0 -deadline good -cpu-used 2 -row-mt 1"
ENCODERS = {".mp4": _H264, ".mov": _H264, ".webm": _VP9}
_NAMELESS = (
    "-map_metadata -1 -map_chapters -1 -metadata:s encoder= "
    "-fflags +bitexact -flags:v +bitexact -flags:a +bitexact"
)
# Not libwebp_anim, which merges equal neighbouring frames; nor does this apng.
_LOSSLESS = "-pix_fmt bgra -lossless 1 -quality 0 -compression_level 1"
_WEBP = f"-c:v libwebp {_LOSSLESS} -loop 0 {_NAMELESS}"
_APNG = f"-f apng -plays 0 -vf setsar=1 -pix_fmt {{pixels}} {_NAMELESS}"
_LOSSLESS_FILM = f"-c:v ffv1 -pix_fmt bgr0 {_NAMELESS}"
_BT709 = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_FASTEST_GIF = 50  # frames a second; viewers play a frame of under 2/100 s for 10/100 s
_OPAQUE = {".mp4", ".mov", ".gif"}  # these hold no alpha channel here
# Codecs of sound that a file of this suffix takes as they are.
_SOUNDS = {".mp4": ("aac", "mp3"), ".mov": ("aac", "mp3"), ".webm": ("opus", "vorbis")}
_IN_STEP = 0.002  # seconds by which sound may begin early or late and still be copied
_KNOWN = "No space left on device|Permission denied|File too large|Disk quota exceeded"


@dataclass(frozen=True)
class Sound:
    """The sound of another file."""

    path: Path
    start: float  # where that file's clock begins in the output (s); under 0 some comes before it


def write(
    output: Path,
    frames_FHWC: Iterable[Frames],
    rate: Fraction,
    comment: str,
    name: str,
) -> str:
    """Write a clip in the format of a suffix, without one a folder of PNG frames of that name.

    Returns what had to be changed, "" if nothing.
    """
    first_HWC, frames = peeked(frames_FHWC)
    if output.suffix in ENCODERS:
        write_film(output, frames, rate, comment)
        height, width = first_HWC.shape[:2]
        if height % 2 or width % 2:
            even = f"{width + width % 2}x{height + height % 2}"
            return f"padded from {width}x{height} to {even}: this format needs even sizes"
    elif output.suffix in ANIMATIONS:
        again = isinstance(frames_FHWC, Recorded)  # a GIF reads its frames twice
        ANIMATIONS[output.suffix](output, frames_FHWC if again else frames, rate, comment)
        if output.suffix == ".gif" and rate > _FASTEST_GIF:
            return f"GIF plays at most {_FASTEST_GIF} frames a second: slowed down to that"
    else:
        write_pngs(output, frames, name, comment)
    return ""


def holds_alpha(suffix: str) -> bool:
    """Whether a clip of a suffix, "" for a folder of PNG frames, can be transparent."""
    return suffix not in _OPAQUE


def peeked(items: Iterable[T]) -> tuple[T, Iterator[T]]:
    """The first of one or more items, and all of them."""
    rest = iter(items)
    first = next(rest)
    return first, itertools.chain([first], rest)


def _pixels(frame_HWC: Frames) -> str:
    return "rgba" if frame_HWC.shape[2] == 4 else "rgb24"


def _encode(
    frames_FHWC: Iterable[Frames], rate: Fraction, arguments: Sequence[str], output: Path
) -> None:
    """Send frames to ffmpeg, one by one, odd ones padded for video."""
    first_HWC, frames = peeked(frames_FHWC)
    height, width = first_HWC.shape[:2]
    right, below = (width % 2, height % 2) if output.suffix in ENCODERS else (0, 0)
    edges = ((0, below), (0, right), (0, 0))
    raw = ["-y", "-f", "rawvideo", "-pix_fmt", _pixels(first_HWC), "-framerate", str(rate)]
    raw += ["-video_size", f"{width + right}x{height + below}", "-i", "-"]
    with ffmpeg.Run([*raw, *arguments, f"file:{output.absolute()}"], feed=True) as run:
        assert run.process.stdin is not None
        with suppress(BrokenPipeError):  # it stopped early: its complaints say why
            for frame_HWC in frames:
                run.process.stdin.write(np.pad(frame_HWC, edges, mode="edge").tobytes())
        with suppress(BrokenPipeError):
            run.process.stdin.close()
        if run.wait() != 0:
            raise OSError(_known_fault(run) or "the encoder failed")


def _known_fault(run: ffmpeg.Run) -> str:
    """What the system said to ffmpeg that failed, "" if nothing."""
    found = re.search(f"({_KNOWN})$", "\n".join(run.complaints), re.MULTILINE)
    return found[1].lower() if found else ""


def write_film(output: Path, frames_FHWC: Iterable[Frames], rate: Fraction, comment: str) -> None:
    """mp4 and mov (H.264) or webm (VP9), 4:2:0, BT.709."""
    first_HWC, frames = peeked(frames_FHWC)
    pixels = "yuva420p" if first_HWC.shape[2] == 4 else "yuv420p"
    colours = f"scale=out_color_matrix=bt709:out_range=tv:{ffmpeg.SCALE}"
    arguments = ["-map", "0:v:0", "-vf", f"{colours},format={pixels},setparams={_BT709}"]
    arguments += [*ENCODERS[output.suffix].split(), *_NAMELESS.split()]
    if comment:
        arguments += ["-metadata", f"comment={comment}"]
    _encode(frames, rate, arguments, output)


def add_sound(film: Path, sound: Sound, seconds: float, comment: str, output: Path) -> bool:
    """A film with the sound of another file, cut to its length: copied where the format takes it.

    Returns whether that sound can be kept. Raises OSError where the system is in the way.
    """
    suffix = output.suffix
    codec = ffmpeg.sound_codec(sound.path)
    arguments = ["-y", "-nostdin", *ffmpeg.source(film), "-itsoffset", f"{sound.start:.6f}"]
    arguments += [*ffmpeg.source(sound.path), "-map", "0:v:0", "-map", "1:a:0"]
    arguments += ["-c:v", "copy"]
    if suffix != ".webm":
        arguments += ["-movflags", "+faststart"]
    if codec in _SOUNDS[suffix] and abs(sound.start) < _IN_STEP:
        arguments += ["-c:a", "copy"]
    else:
        place = "aresample=async=1:first_pts=0,aformat=channel_layouts=mono|stereo"
        encoder = "libopus" if suffix == ".webm" else "aac"
        arguments += ["-af", place, "-c:a", encoder, "-b:a", "192k"]
    arguments += ["-t", f"{seconds:.6f}", *_NAMELESS.split()]
    if comment:
        arguments += ["-metadata", f"comment={comment}"]
    with ffmpeg.Run([*arguments, f"file:{output.absolute()}"]) as run:
        kept = run.wait() == 0
        if not kept and (fault := _known_fault(run)):
            raise OSError(fault)
        return kept


class Recorded:
    """Frames of one pass, kept in a lossless film so that they can be read again and again."""

    def __init__(self, file: Path, frames_FHW3: Iterable[Frames], rate: Fraction) -> None:
        self.file = file
        _encode(frames_FHW3, rate, _LOSSLESS_FILM.split(), file)

    def __iter__(self) -> Iterator[Frames]:
        return ffmpeg.Film(self.file).pictures()


def write_gif(output: Path, frames_FHW3: Iterable[Frames], rate: Fraction, comment: str) -> None:
    """One palette for the whole clip, found in a first pass, so that nothing has to be kept."""
    rate = min(rate, Fraction(_FASTEST_GIF))
    palette = output.with_name(f"{output.name}.palette.png")
    dithered = "[0][1]paletteuse=dither=sierra2_4a:diff_mode=rectangle"
    arguments = ["-f", "image2", "-pattern_type", "none", "-i", f"file:{palette.absolute()}"]
    arguments += ["-lavfi", dithered, "-fps_mode", "passthrough"]
    try:  # with -update a % in the name is no pattern
        one = ["-vf", "palettegen=reserve_transparent=0", "-update", "1"]
        _encode(frames_FHW3, rate, one, palette)
        _encode(frames_FHW3, rate, arguments, output)
    finally:
        palette.unlink(missing_ok=True)
    if comment:
        _add_gif_comment(output, comment.encode())


def _add_gif_comment(file: Path, text: bytes) -> None:
    """Put a comment after the palette (GIF89a, section 24)."""
    flags = file.read_bytes()[10]
    header = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)  # up to the palette's end
    blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
    extension = b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    _insert(file, header, extension)


def write_webp(output: Path, frames_FHWC: Iterable[Frames], rate: Fraction, comment: str) -> None:
    """An animated lossless WebP (RFC 9649, section 2.7.1), comment in an Exif chunk at its end."""
    first_HWC, frames = peeked(frames_FHWC)
    if max(first_HWC.shape[:2]) > 1 << 14:
        raise OSError("WebP pictures have at most 16384 pixels a side")
    start = list(itertools.islice(frames, 2))
    alone = len(start) == 1  # for one frame ffmpeg makes a still picture, without a rate
    frames = iter(start * 2) if alone else itertools.chain(start, frames)
    _encode(frames, rate, _WEBP.split(), output)

    data = bytearray(output.read_bytes())
    if alone:
        del data[52 + int.from_bytes(data[48:52], "little") :]  # after the head, 44, and a chunk
    if first_HWC.shape[2] == 4:
        _replace_each_other(data)
    if comment:
        exif = Image.Exif()
        exif.get_ifd(EXIF)[USER_COMMENT] = EXIF_ASCII + comment.encode()
        note = exif.tobytes().removeprefix(b"Exif\0\0")
        data[20] |= 8  # flag: there is an Exif chunk
        data += b"EXIF" + struct.pack("<I", len(note)) + note + b"\0" * (len(note) % 2)
    data[4:8] = struct.pack("<I", len(data) - 8)
    output.write_bytes(data)


def _replace_each_other(data: bytearray) -> None:
    """Let the frames of an animated WebP replace the one before, not shine through to it."""
    place = 12  # after the head of the file
    while place < len(data):
        if data[place : place + 4] == b"ANMF":
            data[place + 23] |= 2  # flag: do not blend
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2


def write_apng(output: Path, frames_FHWC: Iterable[Frames], rate: Fraction, comment: str) -> None:
    """An animated PNG (PNG third edition, section 11.3.6)."""
    first_HWC, frames = peeked(frames_FHWC)
    start = list(itertools.islice(frames, 2))
    arguments = _APNG.format(pixels=_pixels(first_HWC)).split()
    _encode(itertools.chain(start, frames), rate, arguments, output)
    chunks = []
    if len(start) == 1:  # of which ffmpeg makes a plain PNG, without a rate
        height, width = first_HWC.shape[:2]
        delay = (1 / rate).limit_denominator(65535)  # seconds, as two numbers of 16 bits
        fractions = delay.numerator, delay.denominator
        chunks = [b"acTL" + struct.pack(">II", 1, 0)]
        chunks += [b"fcTL" + struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, *fractions, 0, 0)]
    if comment:
        chunks.append(b"tEXtcomment\0" + comment.encode())
    framed = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    ]
    _insert(output, 33, b"".join(framed))  # after signature and header


def _insert(file: Path, place: int, data: bytes) -> None:
    old = file.read_bytes()
    file.write_bytes(old[:place] + data + old[place:])


ANIMATIONS = {".gif": write_gif, ".webp": write_webp, ".apng": write_apng}


def write_pngs(folder: Path, frames_FHWC: Iterable[Frames], name: str, comment: str) -> None:
    """A new folder of one PNG a frame, numbered from 1; the comment goes into the first."""
    folder.mkdir()
    for number, frame_HWC in enumerate(frames_FHWC, start=1):
        text = PngImagePlugin.PngInfo()
        if comment and number == 1:
            text.add_text("comment", comment)
        Image.fromarray(frame_HWC).save(folder / (name % number), pnginfo=text)
