"""Pictures look as browsers show them: profiles of colours, layers of animations, wide numbers."""

import os
import struct
import zlib
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageCms, PngImagePlugin

from flowcept.data.video import open_reel, read_image, read_video
from flowcept.errors import UserError

SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))


def profile(colourants: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    """A colour profile (ICC.1, version 2) of three colourants under D50, all of one gamma."""

    def fixed(*numbers: float) -> bytes:
        return struct.pack(f">{len(numbers)}i", *(round(65536 * number) for number in numbers))

    xyz = b"XYZ \0\0\0\0"
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz + fixed(0.9642, 1, 0.8249)}
    for letter, colourant in zip((b"r", b"g", b"b"), colourants, strict=True):
        tags |= {letter + b"XYZ": xyz + fixed(*colourant), letter + b"TRC": curve}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value
    head = bytearray(128)
    head[:4] = struct.pack(">I", place + len(body))
    head[8:12], head[12:24], head[36:40] = b"\2\x10\0\0", b"mntrRGB XYZ ", b"acsp"
    head[68:80] = fixed(0.9642, 1, 0.8249)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def in_srgb(colour: tuple[int, ...]) -> np.ndarray:
    """What a colour of the wide profile is in sRGB, computed by hand."""
    linear = np.array(colour) / 255
    xyz = np.array(DISPLAY_P3).T @ linear**2.2
    linear = np.linalg.solve(np.array(SRGB).T, xyz).clip(0, 1)
    curved = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return curved * 255


@pytest.mark.parametrize("colour", [(60, 200, 60), (200, 90, 90), (128, 128, 128), (40, 90, 180)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_colours_of_a_wide_profile_become_srgb(tmp_path: Path, colour: tuple[int, ...], name: str):
    picture = Image.new("RGB", (16, 16), colour)
    exact = {"a.jpg": {"quality": 100, "subsampling": 0}, "a.webp": {"lossless": True}}
    picture.save(tmp_path / name, icc_profile=profile(DISPLAY_P3), **exact.get(name, {}))
    assert np.abs(read_image(tmp_path / name) - in_srgb(colour)).max() <= 2
    assert np.abs(read_video(tmp_path / name)[0][0] - in_srgb(colour)).max() <= 2
    if colour == (60, 200, 60):
        assert np.abs(in_srgb(colour) - colour).max() > 20, "this test could not fail"


def test_a_profile_keeps_what_is_transparent(tmp_path: Path):
    picture = Image.new("RGBA", (2, 1), (60, 200, 60, 255))
    picture.putpixel((1, 0), (60, 200, 60, 0))
    picture.save(tmp_path / "a.png", icc_profile=profile(DISPLAY_P3))
    own, clear = read_image(tmp_path / "a.png")[0]
    assert np.abs(own - in_srgb((60, 200, 60))).max() <= 2
    assert clear.tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["sRGB", "broken", "of grey"])
def test_pictures_in_srgb_keep_their_bits(tmp_path: Path, kind: str):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = profile(DISPLAY_P3).replace(b"mntrRGB ", b"mntrGRAY")
    colour_HW3 = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    kept = {"sRGB": srgb, "broken": b"no profile" * 30, "of grey": grey}[kind]
    Image.fromarray(colour_HW3).save(tmp_path / "a.png", icc_profile=kept)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colour_HW3)


def test_floats_up_to_255_and_up_to_1(tmp_path: Path):
    value_HW = np.linspace(0, 255, 48, dtype=np.float32).reshape(6, 8).round()
    for name, factor in (("bytes.tif", 1), ("unit.tif", 1 / 255), ("words.tif", 257)):
        Image.fromarray(value_HW * np.float32(factor)).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 1], value_HW)


# ---- animations ------------------------------------------------------------------------------

RED, BLUE, CLEAR = (255, 0, 0, 255), (0, 0, 255, 128), (0, 0, 0, 0)


def apng(path: Path, blend: int, disposal: int) -> Path:
    """Red left half on nothing; then half-transparent blue over all; then a red dot at the left."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    def control(number: int, width: int, disposal: int, blend: int) -> bytes:
        box = width, 1, 0, 0
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *box, 1, 10, disposal, blend))

    rows = [RED, RED, CLEAR, CLEAR], [BLUE] * 4, [RED]
    first, second, third = (zlib.compress(b"\0" + bytes(sum(row, ()))) for row in rows)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 6, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", 3, 0))
    data += control(0, 4, 0, 0) + chunk(b"IDAT", first)
    data += control(1, 4, disposal, blend) + chunk(b"fdAT", b"\0\0\0\2" + second)
    data += control(3, 1, 0, 1) + chunk(b"fdAT", b"\0\0\0\4" + third) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


ON_WHITE, ON_RED = (127, 127, 255), (127, 0, 128)
SECOND = {0: [ON_WHITE] * 4, 1: [ON_RED] * 2 + [ON_WHITE] * 2}  # by blending


@pytest.mark.parametrize(("blend", "disposal"), [*product((0, 1), (0, 1, 2))])
def test_frames_of_a_png_are_laid_over_each_other(tmp_path: Path, blend: int, disposal: int):
    path = apng(tmp_path / "a.png", blend, disposal)
    frames_FHW3, fps = read_video(path)
    assert fps == 10
    white, red = (255, 255, 255), RED[:3]
    left = {0: SECOND[blend], 1: [white] * 4, 2: [red, red, white, white]}[disposal]
    expected = [[red, red, white, white], SECOND[blend], [red, *left[1:]]]
    assert np.abs(frames_FHW3[:, 0].astype(int) - expected).max() <= 1
    assert open_reel(path).transparent


@pytest.mark.parametrize("disposal", [1, 2, 3])
@pytest.mark.parametrize("clear", [False, True])
def test_disposed_places_of_a_gif_are_as_browsers_show_them(
    tmp_path: Path, disposal: int, clear: bool
):
    """Red, then a green box, then a blue box elsewhere: what is left of the green one?"""
    base = Image.new("P", (8, 4), 0)
    base.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    boxes = [Image.new("P", (2, 2), number) for number in (1, 2)]
    data = b"".join(GifImagePlugin.getheader(base)[0])
    data += b"".join(GifImagePlugin.getdata(base, duration=100))
    for box, left in zip(boxes, (1, 5), strict=True):
        box.putpalette(base.getpalette())
        hidden = {"transparency": 3} if clear else {}
        words = {"duration": 100, "disposal": disposal, "include_color_table": True}
        data += b"".join(GifImagePlugin.getdata(box, (left, 1), **words, **hidden))
    (tmp_path / "a.gif").write_bytes(data + b";")
    frames_FHW3, fps = read_video(tmp_path / "a.gif")
    assert (len(frames_FHW3), fps) == (3, 10)
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    left = {1: green, 2: white, 3: red}[disposal]
    assert (frames_FHW3[1, 1:3, 1:3] == green).all()
    assert (frames_FHW3[2, 1:3, 1:3] == left).all()
    assert (frames_FHW3[2, 1:3, 5:7] == blue).all()
    assert (frames_FHW3[:, 0] == red).all()


def test_an_animation_of_another_program(tmp_path: Path):
    """What Pillow stores as differences comes out as it went in."""
    rng = np.random.default_rng(1)
    rgba_FHW4 = np.zeros((5, 12, 16, 4), np.uint8)
    rgba_FHW4[...] = (40, 80, 120, 255)
    for number in range(5):
        rgba_FHW4[number, 2:6, number : number + 5] = (*rng.integers(0, 256, 3), 255)
    pictures = [Image.fromarray(frame_HW4) for frame_HW4 in rgba_FHW4]
    for suffix, options in ((".png", {}), (".webp", {"lossless": True})):
        stored = BytesIO()
        kind = {".png": "PNG", ".webp": "WEBP"}[suffix]
        pictures[0].save(
            stored, kind, save_all=True, append_images=pictures[1:], duration=100, **options
        )
        (tmp_path / f"a{suffix}").write_bytes(stored.getvalue())
        np.testing.assert_array_equal(read_video(tmp_path / f"a{suffix}")[0], rgba_FHW4[..., :3])


def test_libtiff_does_not_talk_to_the_user(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Of a broken strip its library prints a line of its own; what is wrong is our one line."""
    path = tmp_path / "a.tif"
    Image.effect_noise((64, 64), 50).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(range(64, 256))
    path.write_bytes(content)
    with Image.open(path) as image, pytest.raises(OSError, match="decoder error"):
        image.load()
    assert "table" in capfd.readouterr().err, "the library talks: this test can fail"
    with pytest.raises(UserError, match="it is damaged"):
        read_image(path)
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard", "and what is said later is heard"


@pytest.mark.parametrize("kind", [AssertionError, ZeroDivisionError, TypeError])
def test_whatever_pillow_raises_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)

    def load(_: Image.Image) -> None:
        raise kind

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(UserError, match="it is damaged"):
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_floats_that_say_nothing_are_black(tmp_path: Path):
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)[0]
    values = np.array([[0, 255, np.nan, signalling, np.inf, -np.inf]], np.float32)
    Image.fromarray(np.array([[0, 255, np.nan, signalling]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 0, 0]
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert read_image(tmp_path / "b.tif").shape == (1, 6, 3)
