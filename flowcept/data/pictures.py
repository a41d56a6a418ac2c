"""Pictures and animations that Pillow opens: whole frames, upright, in 8 bits and in sRGB.

Frames of animated GIF and PNG files are laid over each other here, as their specifications say:
Pillow fills disposed places of a GIF with a colour of its palette, and mixes half-transparent
pixels of a PNG with the colour of transparent ones.

Shape suffixes: N colours, H height, W width, 3 channels.
"""

import functools
import io
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageCms, ImageOps, PngImagePlugin

from flowcept.data.ffmpeg import unreadable
from flowcept.errors import UserError

KEEP, CLEAR, RESTORE = range(3)  # what becomes of a frame's place before the next one


class Layer(NamedTuple):
    """What an animation stores for one frame."""

    part: Image.Image  # RGBA
    box: tuple[int, int, int, int]  # left, top, right, bottom
    over: bool  # over what is there, or in its place
    disposal: int
    seconds: float  # for which the frame is shown


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture file opened by Pillow, whose many errors become one."""
    try:
        with Image.open(path) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {path}: its pictures are too large") from error
    except Exception as error:  # Pillow raises whatever a damaged file leads to, asserts too
        raise unreadable(path) from error


def count(image: Image.Image) -> int:
    """Stored frames of an open file; a .tif or .jpg may hold pages, which are not frames."""
    return getattr(image, "n_frames", 1) if image.format in {"GIF", "WEBP", "PNG"} else 1


def played(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    """The frames of an open file, and for how many seconds each is shown, 0 if it does not say."""
    if isinstance(image, GifImagePlugin.GifImageFile):
        yield from _laid_over(image, _gif_layers(image))
    elif isinstance(image, PngImagePlugin.PngImageFile) and image.is_animated:
        yield from _laid_over(image, _png_layers(image))
    else:
        for number in range(count(image)):
            image.seek(number)
            _decode(image)
            yield image, float(image.info.get("duration", 0)) / 1000


def _laid_over(image: Image.Image, layers: Iterable[Layer]) -> Iterator[tuple[Image.Image, float]]:
    """Whole frames, of layers on a canvas that is transparent at first."""
    canvas = Image.new("RGBA", image.size)
    before = canvas
    for part, box, over, disposal, seconds in layers:
        if disposal == RESTORE:
            before = canvas.copy()
        if over:
            canvas.alpha_composite(part, box[:2])
        else:
            canvas.paste(part, box)

        opaque = canvas.getchannel("A").getextrema() == (255, 255)
        frame = canvas.convert("RGB" if opaque else "RGBA")
        frame.info = {name: value for name, value in image.info.items() if name != "transparency"}
        yield frame, seconds

        if disposal == RESTORE:
            canvas = before
        elif disposal == CLEAR:
            canvas.paste((0, 0, 0, 0), box)


def _png_layers(image: PngImagePlugin.PngImageFile) -> Iterator[Layer]:
    """Of an animated PNG (third edition, section 11.3.6)."""
    first = 1 if image.info.get("default_image") else 0  # for viewers that know no animation
    for number in range(first, image.n_frames):
        image.seek(number)
        over = image.blend_op == PngImagePlugin.Blend.OP_OVER
        image.blend_op = PngImagePlugin.Blend.OP_SOURCE  # the part as it is stored
        image.load()
        box = image.info["bbox"]
        part = eight_bits(image.crop(box)).convert("RGBA")
        disposal = {1: CLEAR, 2: RESTORE}.get(int(image.info["disposal"]), KEEP)
        yield Layer(part, box, over, disposal, float(image.info["duration"]) / 1000)


def _gif_layers(image: GifImagePlugin.GifImageFile) -> Iterator[Layer]:
    """Of an animated GIF (GIF89a): each frame is read as a file of its own."""
    assert image.fp is not None
    image.fp.seek(0)
    data = image.fp.read()
    place = 13 + _table(data[10])  # after the head and the colours of the whole file
    head, control = data[:place], b""
    while data[place : place + 1] not in (b"", b";"):
        end = _after_blocks(data, place + 2)
        if data[place] == 0x2C:
            left, top, width, height = struct.unpack_from("<4H", data, place + 1)
            end = _after_blocks(data, place + 11 + _table(data[place + 9]))
            size = struct.pack("<2H", width, height)
            corner = b"\x2c\0\0\0\0" + size
            alone = head[:6] + size + head[10:] + control + corner + data[place + 9 : end] + b";"
            with Image.open(io.BytesIO(alone)) as one:
                part = one.convert("RGBA")
            flags, ticks = struct.unpack_from("<BH", control, 3) if control else (0, 0)
            disposal = {2: CLEAR, 3: RESTORE}.get(flags >> 2 & 7, KEEP)
            seconds = ticks / 100 if ticks > 1 else 0.1  # as every browser plays it
            box = (left, top, left + width, top + height)
            yield Layer(part, box, True, disposal, seconds)
            control = b""
        elif data[place + 1] == 0xF9:
            control = data[place:end]
        place = end


def _table(flags: int) -> int:
    """Bytes of a GIF's table of colours, of which these flags speak."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    """Where a GIF goes on after its blocks of data, each of which begins with its length."""
    while data[place]:
        place += data[place] + 1
    return place + 1


def upright(image: Image.Image, alpha: bool = False) -> NDArray[np.uint8]:
    """The current frame of an open file as uint8 sRGB `[H, W, 3]`, with `alpha` `[H, W, 4]`."""
    _decode(image)
    image = _in_srgb(eight_bits(ImageOps.exif_transpose(image)))
    if alpha:
        return np.array(image.convert("RGBA"))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(image.convert("RGB"))


_STDERR = threading.Lock()  # which belongs to the whole process


def _decode(image: Image.Image) -> None:
    """Read the pixels. Of a TIFF without what its library prints of errors, which Pillow raises."""
    if image.format != "TIFF":
        image.load()
        return
    with _STDERR, ExitStack() as stack:
        with suppress(OSError):  # there may be no stderr
            shown = os.dup(2)
            stack.callback(os.close, shown)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            stack.callback(os.dup2, shown, 2)
            os.dup2(nowhere, 2)
        image.load()


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of wide numbers in 8 bits: integers of 16 bits, floats up to 1, 255 or 65535."""
    if image.mode[0] not in "IF":
        return image
    with np.errstate(invalid="ignore"):  # floats may say that nothing is known
        value_HW = np.nan_to_num(np.asarray(image, np.float64))
    brightest = float(value_HW.max(initial=0))
    factor = 1 / 257
    if image.mode == "F" and brightest <= 255:
        factor = 255 if brightest <= 1 else 1
    return Image.fromarray(np.rint(value_HW * factor).clip(0, 255).astype(np.uint8))


def _in_srgb(image: Image.Image) -> Image.Image:
    """A picture in the colours of sRGB, by its embedded profile.

    It stays as it is where that is missing, broken or sRGB itself.
    """
    embedded = image.info.get("icc_profile")
    if not embedded:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    opaque = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        transform = _to_srgb(embedded, opaque.mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if transform is None:
        return image
    converted = transform.apply(opaque)
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


@functools.lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a colour profile to sRGB; None where that moves no colour by more than a rounding."""
    of_file = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(of_file, srgb, mode, "RGB", flags=flags)
    if mode != "RGB":
        return transform
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    colour_N13 = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3)
    moved_N13 = np.asarray(transform.apply(Image.fromarray(colour_N13)), np.int16)
    return transform if np.abs(moved_N13 - colour_N13).max() > 1 else None
