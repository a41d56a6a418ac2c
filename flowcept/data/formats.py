"""The formats that a clip can be written in: one function each, which writes one file.

WebP and APNG files are put together here, because the usual encoders merge equal neighbouring
frames; a clip must come back with the frames it had. No function leaves a name of a tool in a file.
A function raises OSError if the file cannot be written.

Shape suffixes: F frames, H height, W width, 3 colours.
"""

import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from flowcept.data import ffmpeg
from flowcept.data.ffmpeg import Frames

EXIF = 0x8769  # Exif tag: the sub-directory of
USER_COMMENT = 0x9286
EXIF_ASCII = b"ASCII\0\0\0"  # stands before the text of a comment

# remove_types=6 takes out the note in which libx264 lists its settings within the stream.
_H264 = "-c:v libx264 -crf 16 -bsf:v filter_units=remove_types=6 -movflags +faststart -c:a aac"
_VP9 = "-c:v libvpx-vp9 -crf 18 -b:v 0 -deadline good -cpu-used 2 -row-mt 1 -c:a libopus"
ENCODERS = {".mp4": _H264, ".mov": _H264, ".webm": _VP9}
_NAMELESS = (
    "-map_metadata -1 -map_chapters -1 -metadata:s encoder= "
    "-fflags +bitexact -flags:v +bitexact -flags:a +bitexact"
)
_BT709 = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_KNOWN = "No space left on device|Permission denied|File too large|Disk quota exceeded"


@dataclass(frozen=True)
class Sound:
    """The sound of another file, for its own length."""

    path: Path
    start: float  # where it begins in the output, seconds >= 0


def _encode(frames_FHW3: Frames, rate: Fraction, arguments: Sequence[str], output: Path) -> None:
    """Send frames to ffmpeg, one by one, odd ones padded for video."""
    height, width = frames_FHW3.shape[1:3]
    right, below = (width % 2, height % 2) if output.suffix in ENCODERS else (0, 0)
    edges = ((0, below), (0, right), (0, 0))
    raw = ["-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-framerate", str(rate)]
    raw += ["-video_size", f"{width + right}x{height + below}", "-i", "-"]
    with ffmpeg.Run([*raw, *arguments, f"file:{output.absolute()}"], feed=True) as run:
        assert run.process.stdin is not None
        with suppress(BrokenPipeError):  # it stopped early: its complaints say why
            for frame_HW3 in frames_FHW3:
                run.process.stdin.write(np.pad(frame_HW3, edges, mode="edge").tobytes())
        with suppress(BrokenPipeError):
            run.process.stdin.close()
        if run.wait() != 0:
            found = re.search(f"({_KNOWN})$", "\n".join(run.complaints), re.MULTILINE)
            raise OSError(found[1].lower() if found else "the encoder failed")


def write_film(
    output: Path, frames_FHW3: Frames, rate: Fraction, comment: str, sound: Sound | None
) -> None:
    """mp4 and mov (H.264) or webm (VP9), 4:2:0, BT.709, sound in AAC or Opus."""
    colours = f"scale=out_color_matrix=bt709:out_range=tv:{ffmpeg.SCALE}"
    arguments = ["-map", "0:v:0", "-vf", f"{colours},format=yuv420p,setparams={_BT709}"]
    if sound is not None:
        place = f"aresample=async=1:first_pts=0,adelay=delays={round(sound.start * 1000)}:all=1"
        place += ",aformat=channel_layouts=mono|stereo"
        arguments = [*ffmpeg.source(sound.path), *arguments]
        arguments += ["-map", "1:a:0", "-af", place, "-b:a", "192k"]
    arguments += [*ENCODERS[output.suffix].split(), *_NAMELESS.split()]
    if comment:
        arguments += ["-metadata", f"comment={comment}"]
    _encode(frames_FHW3, rate, arguments, output)


def write_gif(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
    """One palette for the whole clip, found in a first pass, so that nothing has to be kept."""
    palette = output.with_name(f"{output.name}.palette.png")
    try:
        one = ["-vf", "palettegen=reserve_transparent=0", "-update", "1"]  # a % is no pattern
        _encode(frames_FHW3, rate, one, palette)
        dithered = "[0][1]paletteuse=dither=sierra2_4a:diff_mode=rectangle"
        arguments = ["-f", "image2", "-pattern_type", "none", "-i", f"file:{palette.absolute()}"]
        arguments += ["-lavfi", dithered, "-fps_mode", "passthrough"]
        _encode(frames_FHW3, rate, arguments, output)
    finally:
        palette.unlink(missing_ok=True)
    if comment:
        data = output.read_bytes()
        header = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)  # up to the palette's end
        text = comment.encode()
        blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
        extension = b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
        output.write_bytes(data[:header] + extension + data[header:])


def patches(frames_FHW3: Frames) -> Iterator[tuple[int, int, Frames]]:
    """What each frame changes: (top, left, picture), both even; one pixel if it changes nothing."""
    yield 0, 0, frames_FHW3[0]
    for before_HW3, after_HW3 in itertools.pairwise(frames_FHW3):
        changed_HW = (before_HW3 != after_HW3).any(axis=2)
        top, bottom = _extent(changed_HW.any(axis=1))
        left, right = _extent(changed_HW.any(axis=0))
        yield top, left, after_HW3[top:bottom, left:right]


def _extent(changed: NDArray[np.bool_]) -> tuple[int, int]:
    """First, made even, and end of what is true."""
    places = np.flatnonzero(changed)
    return (int(places[0]) & ~1, int(places[-1]) + 1) if len(places) else (0, 1)


def write_webp(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
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
        for number, (top, left, patch_HW3) in enumerate(patches(frames_FHW3)):
            start, end = (round(1000 * beat / rate) for beat in (number, number + 1))
            picture = io.BytesIO()
            Image.fromarray(patch_HW3).save(picture, "WEBP", lossless=True, quality=0, method=1)
            place = uint24(left // 2, top // 2, patch_HW3.shape[1] - 1, patch_HW3.shape[0] - 1)
            place += uint24(end - start) + b"\2"  # opaque
            file.write(chunk(b"ANMF", place + picture.getvalue()[12:]))  # its VP8L chunk
        if comment:
            exif = Image.Exif()
            exif.get_ifd(EXIF)[USER_COMMENT] = EXIF_ASCII + comment.encode()
            file.write(chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0")))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def write_apng(output: Path, frames_FHW3: Frames, rate: Fraction, comment: str) -> None:
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
        for number, (top, left, patch_HW3) in enumerate(patches(frames_FHW3)):
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


ANIMATIONS = {".gif": write_gif, ".webp": write_webp, ".apng": write_apng}


def write_pngs(folder: Path, frames_FHW3: Frames, name: str, comment: str) -> None:
    """A new folder of one PNG a frame, numbered from 1; the comment goes into the first."""
    folder.mkdir()
    for number, frame_HW3 in enumerate(frames_FHW3, start=1):
        text = PngImagePlugin.PngInfo()
        if comment and number == 1:
            text.add_text("comment", comment)
        Image.fromarray(frame_HW3).save(folder / (name % number), pnginfo=text)
