"""Files: what goes in comes out, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowcept.data import formats, video
from flowcept.data.timing import DEFAULT_FPS, Timing
from flowcept.data.video import Sound, probe, read_image, read_metadata, read_video, write_video
from flowcept.errors import UserError

CLIPS = Path(__file__).parents[2].parent / "shared" / "data" / "clips"
LOSSLESS = [".webp", ".apng", ""]  # "" is a folder of PNG frames
LOSSY = [".mp4", ".mov", ".webm", ".gif"]
AWKWARD = {"prompt": "é=;#\\\n\"'😀 [STREAM]\nx=1", "seed": 7, "list": [1.5, None], "ünï": True}


def moving(frames=9, height=48, width=64):
    """A smooth background, a square that moves, and frames 2, 3 and 4 equal."""
    y, x = np.mgrid[:height, :width]
    clip = np.empty((frames, height, width, 3), np.uint8)
    for number in range(frames):
        clip[number] = np.stack([y * 2 + 40, x * 2 + 60, (x + y) + 50], -1)
        clip[number, 10:26, 4 * number : 4 * number + 16] = (230, 40, 30)
    clip[3:5] = clip[2:3]
    return clip


def psnr(a_FHW3, b_FHW3):
    return -10 * np.log10(np.mean((a_FHW3 / 255.0 - b_FHW3 / 255.0) ** 2) + 1e-12)


def ffmpeg(*arguments, stdout=None):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=stdout).stdout


def sound_of(path):
    """Loudness (root mean square) of every tenth of a second."""
    raw = ffmpeg("-i", path, "-f", "s16le", "-ac", 1, "-ar", 8000, "-", stdout=subprocess.PIPE)
    samples = np.frombuffer(raw, np.int16).astype(float)
    return np.sqrt((samples[: len(samples) // 800 * 800].reshape(-1, 800) ** 2).mean(1))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    assert write_video(path, moving(), 12, metadata=AWKWARD | {"fps": 12}) == ""
    frames_FHW3, fps = read_video(path)
    assert frames_FHW3.shape == (9, 48, 64, 3)
    assert fps == 12
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(frames_FHW3, moving())
    else:
        assert psnr(frames_FHW3, moving()) > 30
    assert probe(path) == Timing(12.0, 9)
    assert read_metadata(path) == AWKWARD | {"fps": 12}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".apng"])
@pytest.mark.parametrize("fps", [7.5, 24000 / 1001, 29.97, 50])
def test_rates_are_kept(tmp_path, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    write_video(path, moving(31, 16, 160), fps)
    info = probe(path)
    assert info.num_frames == 31
    # GIF counts in hundredths of a second, WebP in thousandths: half of one over 31 frames.
    # 29.97 and 30000/1001, a millionth apart, need not be told from each other.
    rounding = {".gif": 0.005, ".webp": 0.0005}.get(suffix, 0.0)
    assert info.fps == pytest.approx(fps, rel=rounding * fps / 31 + 2e-6)


def test_a_round_rate_is_found_again_in_hundredths_of_a_second(tmp_path):
    write_video(tmp_path / "a.gif", moving(17), 12)  # 141.67 hundredths in all
    assert probe(tmp_path / "a.gif").fps == 12


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".apng"])
@pytest.mark.parametrize("pattern", ["aaaa", "aabb", "aaab", "abab", "a"])
def test_equal_frames_are_not_merged(tmp_path, suffix, pattern):
    path = tmp_path / f"clip{suffix}"
    pictures = {"a": moving()[0], "b": moving()[5]}
    write_video(path, np.stack([pictures[letter] for letter in pattern]), 10)
    frames_FHW3, fps = read_video(path)
    assert (len(frames_FHW3), fps) == (len(pattern), 10)
    for frame_HW3, letter in zip(frames_FHW3, pattern, strict=True):
        assert psnr(frame_HW3, pictures[letter]) > 30


@pytest.mark.parametrize(
    ("durations", "expected", "rate"),
    [
        ([100, 100, 300, 100], [0, 1, 2, 2, 2, 3], 10),  # equal frames merged by the writer
        ([80, 90, 80, 80, 90, 80], [0, 1, 2, 3, 4, 5], 12),  # 12 a second in hundredths
        ([20, 40], [0, 1, 1], 50),
        ([100, 260, 100, 60], [0, 1, 1, 1, 2], 10),  # no common beat: what is on show at its middle
        ([0, 0, 0], [0, 1, 2], 10),  # as browsers play it
    ],
)
def test_durations_of_a_gif_are_applied(tmp_path, durations, expected, rate):
    path = tmp_path / "clip.gif"
    greys = [Image.new("L", (8, 8), 40 * number) for number in range(len(durations))]
    greys[0].save(path, save_all=True, append_images=greys[1:], duration=durations)
    frames_FHW3, fps = read_video(path)
    assert frames_FHW3[:, 0, 0, 0].tolist() == [40 * number for number in expected]
    assert fps == pytest.approx(rate)
    assert probe(path).num_frames == len(expected)


def test_a_video_with_gaps_is_brought_to_its_constant_rate(tmp_path):
    path = tmp_path / "gaps.mp4"
    keep = "select='not(eq(n,3)+eq(n,4)+eq(n,8))'"
    source = "testsrc=s=64x48:r=30:d=0.5"
    ffmpeg("-f", "lavfi", "-i", source, "-vf", keep, "-fps_mode", "vfr", path)
    frames_FHW3, fps = read_video(path)
    assert (len(frames_FHW3), fps) == (15, 30)
    np.testing.assert_array_equal(frames_FHW3[3], frames_FHW3[2])
    np.testing.assert_array_equal(frames_FHW3[4], frames_FHW3[2])
    assert (frames_FHW3[5] != frames_FHW3[4]).any()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif", ".webp", ".apng", ""])
def test_no_metadata_means_none_and_the_same_bytes(tmp_path, suffix):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(first, moving(), 12)
    write_video(second, moving(), 12)
    assert read_metadata(first) is None
    if not suffix:
        first, second = first / "0001.png", second / "0001.png"
    data = first.read_bytes()
    assert data == second.read_bytes()
    for name in (b"x264", b"Lavc", b"libvpx", b"ffmpeg", b"comment", b"tEXt", b"EXIF", b"Software"):
        assert name not in data


def test_the_digest_is_of_the_frames_alone(tmp_path):
    clip = moving()
    found = set()
    for number, suffix in enumerate(LOSSLESS):
        write_video(tmp_path / f"{number}{suffix}", clip, 7 + number, metadata={"seed": number})
        found.add(video.digest(read_video(tmp_path / f"{number}{suffix}")[0]))
    assert found == {video.digest(clip)}
    assert video.digest(clip[:, ::-1]) == video.digest(np.ascontiguousarray(clip[:, ::-1]))
    other = clip.copy()
    other[-1, -1, -1, -1] ^= 1
    others = [other, clip[:-1], clip[:, ::-1], clip.reshape(9, 64, 48, 3)]
    assert video.digest(clip) not in {video.digest(o) for o in others}


def test_comments_of_others_are_no_metadata(tmp_path):
    png, mp4 = tmp_path / "a.png", tmp_path / "a.mp4"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "[1, 2]")
    Image.new("RGB", (4, 4)).save(png, pnginfo=text)
    write_video(tmp_path / "plain.mp4", moving(), 12)
    ffmpeg("-i", tmp_path / "plain.mp4", "-c", "copy", "-metadata", "comment=hello {", mp4)
    assert read_metadata(png) is None
    assert read_metadata(mp4) is None


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp", ".apng"])
def test_long_metadata(tmp_path, suffix):
    metadata = {"prompt": "surfing; " * 5000}
    write_video(tmp_path / f"a{suffix}", moving(), 12, metadata=metadata)
    assert read_metadata(tmp_path / f"a{suffix}") == metadata


def test_metadata_survives_encoding_again(tmp_path):
    write_video(tmp_path / "a.mp4", moving(), 12, metadata=AWKWARD)
    ffmpeg("-i", tmp_path / "a.mp4", "-crf", 30, tmp_path / "b.mp4")
    assert read_metadata(tmp_path / "b.mp4") == AWKWARD


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".apng", "", "_%04d.png"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_exception_leaves_the_old_target_and_nothing_else(tmp_path, suffix, error, monkeypatch):
    path = tmp_path / f"clip{suffix}"
    if suffix not in {"", "_%04d.png"}:
        path.write_bytes(b"old")

    class Failing(np.ndarray):
        """Frames that cannot be had to the end."""

        def __iter__(self):
            yield from (np.asarray(self[0]), np.asarray(self[1]))
            raise error

    monkeypatch.setattr(video, "probe", lambda *_, **__: pytest.fail("a broken file got here"))
    frames_FHW3 = np.random.default_rng(0).integers(0, 255, (4, 200, 200, 3), np.uint8)
    with pytest.raises(UserError if isinstance(error, OSError) else error) as caught:
        write_video(path, frames_FHW3.view(Failing), 12)
    if isinstance(error, OSError):
        assert "No space left" in one_line(caught)
        assert str(path) in str(caught.value)
    left = list(tmp_path.iterdir())
    assert all(file == path and file.read_bytes() == b"old" for file in left)
    assert len(left) == path.exists()


def test_a_file_with_the_wrong_number_of_frames_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "clip.apng"
    path.write_bytes(b"old")
    write = formats.write_apng
    monkeypatch.setitem(
        formats.ANIMATIONS, ".apng", lambda out, frames, *a: write(out, list(frames)[:1], *a)
    )
    with pytest.raises(UserError, match=r"clip\.apng"):
        write_video(path, moving(), 12)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_encoder_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.ENCODERS, ".mp4", "-c:v libx264 -crf nonsense")
    with pytest.raises(UserError, match=r"cannot write .*clip\.mp4: the encoder failed") as error:
        write_video(tmp_path / "clip.mp4", moving(40, 200, 300), 12)
    one_line(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("height", "width"), [(63, 65), (1, 1), (2, 5), (7, 16)])
def test_odd_sizes(tmp_path, height, width):
    frames_FHW3 = np.random.default_rng(1).integers(0, 255, (3, height, width, 3), np.uint8)
    for suffix in (".gif", ".webp", ".apng"):
        assert write_video(tmp_path / f"a{suffix}", frames_FHW3, 12) == ""
        assert read_video(tmp_path / f"a{suffix}")[0].shape == (3, height, width, 3)
    for suffix in (".mp4", ".webm"):
        note = write_video(tmp_path / f"a{suffix}", frames_FHW3, 12)
        even = height + height % 2, width + width % 2
        assert read_video(tmp_path / f"a{suffix}")[0].shape == (3, *even, 3)
        assert f"{width}x{height} to {even[1]}x{even[0]}" in note


def test_odd_sizes_are_padded_with_the_edge(tmp_path):
    frames_FHW3 = np.full((2, 33, 33, 3), 200, np.uint8)
    write_video(tmp_path / "a.mp4", frames_FHW3, 12)
    assert np.abs(read_video(tmp_path / "a.mp4")[0].astype(int) - 200).max() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
def test_sound_is_kept_where_it_belongs(tmp_path, suffix):
    source, path = tmp_path / "source.mp4", tmp_path / f"out{suffix}"
    lavfi = ["-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=1", "-f", "lavfi", "-i", "sine=d=1"]
    ffmpeg(*lavfi, "-metadata", "comment=private", source)
    assert video.has_sound(source)
    assert write_video(path, moving(30), 10, sound=Sound(source, 0.5)) == ""
    assert probe(path) == Timing(10.0, 30)
    assert video.has_sound(path)
    loudness = sound_of(path)
    assert loudness[:4].max() < 50
    assert loudness[6:14].min() > 1000
    assert loudness[17:].size == 0 or loudness[17:].max() < 50
    assert read_metadata(path) is None
    assert b"private" not in path.read_bytes()


def test_sound_that_cannot_be_kept_is_said(tmp_path):
    silent = tmp_path / "silent.mp4"
    write_video(silent, moving(), 12)
    assert "has no sound" in write_video(tmp_path / "a.mp4", moving(), 12, sound=Sound(silent, 0.0))
    assert not video.has_sound(tmp_path / "a.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "tone.wav")
    tone = Sound(tmp_path / "tone.wav", 0.0)
    assert "cannot hold sound" in write_video(tmp_path / "a.gif", moving(), 12, sound=tone)
    with pytest.raises(UserError, match=r"gone\.mp4"):
        write_video(tmp_path / "b.mp4", moving(), 12, sound=Sound(tmp_path / "gone.mp4", 0.0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just some text\n" * 200,
        b"#EXTM3U\n#EXTINF:1,\nfile:other.mp4\n#EXT-X-ENDLIST\n",
        np.random.default_rng(2).bytes(5000),
        None,
    ],
    ids=["empty", "text", "playlist", "noise", "missing"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.apng", "a.webp", "a.png"])
def test_what_is_no_clip_is_one_line(tmp_path, data, name, capfd):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    for read in (read_video, probe, read_metadata, read_image):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(path) in one_line(error)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov", ".gif", ".webp", ".apng", ".avi"])
def test_truncated_files_are_refused(tmp_path, suffix, part):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    noise_FHW3 = np.random.default_rng(3).integers(0, 255, (12, 64, 64, 3), np.uint8)
    write_video(tmp_path / "source.webp", noise_FHW3, 12)
    if suffix == ".avi":
        write_video(tmp_path / "source.mp4", noise_FHW3, 12)
        ffmpeg("-i", tmp_path / "source.mp4", "-q:v", 2, whole)
    else:
        write_video(whole, noise_FHW3, 12)
    assert probe(whole).num_frames == 12
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * part)])
    for read in (read_video, probe):
        with pytest.raises(UserError) as error:
            read(cut)
        one_line(error)


def test_unknown_files_and_pictures_that_are_clips(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"unknown kind"):
        read_video(tmp_path / "a.txt")
    for suffix in (".mp4", ".gif", ".webp", ""):
        write_video(tmp_path / f"clip{suffix}", moving(), 12)
        with pytest.raises(UserError, match=r"is a clip"):
            read_image(tmp_path / f"clip{suffix}")


def test_permission_is_a_user_error(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, moving(), 12)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"a\.mp4: Permission denied"):
        read_video(path)


def test_exif_rotation(tmp_path):
    upright_HW3 = moving()[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    stored = Image.fromarray(upright_HW3).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright_HW3)
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert psnr(read_image(tmp_path / "a.jpg"), upright_HW3) > 30


def test_rotation_of_a_video(tmp_path):
    write_video(tmp_path / "a.mp4", moving(), 12)
    turned = ["-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4"]
    ffmpeg(*turned)
    turned_FHW3, _ = read_video(tmp_path / "b.mp4")
    assert turned_FHW3.shape[1:3] == (64, 48)
    assert psnr(turned_FHW3, np.rot90(moving(), 1, (1, 2))) > 30


def test_square_pixels(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=1:r=5,setsar=2", tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4")[0].shape == (5, 48, 128, 3)


def test_transparency_becomes_white(tmp_path):
    rgba_HW4 = np.zeros((4, 3, 4), np.uint8)
    rgba_HW4[0] = (255, 0, 0, 255)
    rgba_HW4[1] = (255, 0, 0, 128)
    expected = [[255, 0, 0], [255, 127, 127], [255, 255, 255], [255, 255, 255]]
    Image.fromarray(rgba_HW4).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[:, 0].tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mov", ["-c:v", "qtrle"]), ("a.webm", ["-c:v", "libvpx-vp9"])]
)
def test_transparent_videos(tmp_path, name, codec):
    half = "color=red:s=32x32:r=5:d=1,format=rgba,colorchannelmixer=aa=0.5"
    pixels = ",format=yuva420p" if name == "a.webm" else ""
    ffmpeg("-f", "lavfi", "-i", half + pixels, *codec, tmp_path / name)
    frames_FHW3, _ = read_video(tmp_path / name)
    assert frames_FHW3.shape == (5, 32, 32, 3)
    assert np.abs(frames_FHW3.astype(int) - [255, 127, 127]).max() < 8


def test_grey_palette_and_wide_pictures(tmp_path):
    value_HW = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)
    Image.fromarray(value_HW).save(tmp_path / "grey16.png")
    eight_HW = np.rint(value_HW / 257).astype(np.uint8)
    grey_HW3 = np.repeat(eight_HW[..., None], 3, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "grey16.png"), grey_HW3)
    for mode, name in (("L", "grey.png"), ("P", "palette.png"), ("LA", "alpha.png")):
        Image.fromarray(eight_HW).convert(mode).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), grey_HW3)
    Image.fromarray(eight_HW).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - grey_HW3).max() < 10


def test_a_folder_of_pictures_in_natural_order(tmp_path):
    for number in (1, 2, 9, 10, 11, 100):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_bytes(b"not a frame")
    frames_FHW3, fps = read_video(tmp_path)
    assert frames_FHW3[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 11, 100]
    assert fps == DEFAULT_FPS
    assert probe(tmp_path).num_frames == 6
    Image.new("RGB", (4, 5)).save(tmp_path / "f3.png")
    with pytest.raises(UserError, match=r"f3\.png has another size"):
        read_video(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="without pictures"):
        read_video(tmp_path / "empty")


def test_still_pictures_are_clips_of_one_frame(tmp_path):
    Image.fromarray(moving()[0]).save(tmp_path / "a.png")
    frames_FHW3, fps = read_video(tmp_path / "a.png")
    np.testing.assert_array_equal(frames_FHW3, moving()[:1])
    assert fps == DEFAULT_FPS


def test_numbered_frames(tmp_path):
    path = tmp_path / "frame_%03d.png"
    write_video(path, moving(), 12, metadata={"seed": 1})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [f"frame_{number:03d}.png" for number in range(1, 10)]
    np.testing.assert_array_equal(read_video(tmp_path)[0], moving())
    assert read_metadata(tmp_path / "frame_001.png") == {"seed": 1}
    with pytest.raises(UserError, match="already"):
        write_video(path, moving(), 12)


@pytest.mark.parametrize(
    "name",
    [
        "a.avi", "a.jpg", "a.mp5", ".mp4", "a.png", "a_%s.png", "a_%4d.png", "a_%d_%d.png",
        "a_%.png", "a_%04d.mp4", "a_%04d", "a_%04D.png", "folder.mp4", "full", "file",
        "x" * 300 + ".mp4",
    ],
)  # fmt: skip
def test_check_output_refuses(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        video.check_output(tmp_path / name)
    one_line(error)


@pytest.mark.parametrize(
    "name",
    [
        "a.mp4", "A.MP4", "100%.gif", "a b.webp", "frame_%04d.png", "%d.PNG", "new", "empty",
        "none/a.mp4",
    ],
)  # fmt: skip
def test_check_output_accepts_what_can_be_written(tmp_path, name):
    (tmp_path / "empty").mkdir()
    video.check_output(tmp_path / name)
    assert write_video(tmp_path / name, moving(), 12) == ""


def test_check_output_sees_a_folder_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(video.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot write into"):
        video.check_output(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["-i.mp4", "file:x.mp4", "a'b [1], é % #;=.webm", "100%.gif"])
def test_strange_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(Path(name), moving(), 12, metadata=AWKWARD)
    assert probe(Path(name)).num_frames == 9
    assert read_metadata(Path(name)) == AWKWARD


def test_wrong_frames_are_our_mistake(tmp_path):
    for bad in (moving()[0], moving().astype(float), moving()[:0], moving()[..., :2]):
        with pytest.raises(ValueError, match=r"frame"):
            write_video(tmp_path / "a.mp4", bad, 12)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="frames a second"):
            write_video(tmp_path / "a.mp4", moving(), fps)


def test_gif_rates_that_no_viewer_plays(tmp_path):
    assert "at most 50" in write_video(tmp_path / "a.gif", moving(), 60)
    assert probe(tmp_path / "a.gif").fps == 50


def test_gif_colours_of_flat_pictures_are_exact(tmp_path):
    frames_FHW3 = np.zeros((3, 20, 20, 3), np.uint8)
    frames_FHW3[:, 5:9] = (200, 30, 120)
    frames_FHW3[1, 12:, 3:] = (10, 250, 90)
    write_video(tmp_path / "a.gif", frames_FHW3, 10)
    read_FHW3 = read_video(tmp_path / "a.gif")[0].astype(int)
    assert np.abs(read_FHW3 - frames_FHW3).max() <= 1  # palettegen rounds


def test_fit():
    frames_FHW3 = moving(2, 48, 96)
    same_FHW3, note = video.fit(frames_FHW3, (48, 96))
    assert same_FHW3 is frames_FHW3
    assert note == ""
    frames_FHW3[:, :, :24], frames_FHW3[:, :, 72:] = 255, 255  # what a crop must cut off
    frames_FHW3[:, :, 24:72] = (90, 20, 160)
    cropped_FHW3, note = video.fit(frames_FHW3, (24, 24), "crop")
    assert (cropped_FHW3[:, :, 3:-3] == [90, 20, 160]).all()  # Lanczos looks over the edge
    assert np.abs(cropped_FHW3.astype(int) - [90, 20, 160]).max() < 60
    assert "96x48 to 24x24" in note
    assert "48x48" in note
    padded_FHW3, note = video.fit(frames_FHW3, (24, 24), "pad")
    assert (padded_FHW3[:, :6] == 0).all()
    assert (padded_FHW3[:, 18:] == 0).all()
    assert (padded_FHW3[:, 6:18, :4] > 200).all()
    assert "black bars" in note
    stretched_FHW3, note = video.fit(frames_FHW3, (24, 24), "stretch")
    assert stretched_FHW3.shape == (2, 24, 24, 3)
    assert (stretched_FHW3[:, :, :4] > 200).all()
    assert "resized from 96x48 to 24x24" in note
    assert video.fit(frames_FHW3, (24, 48), "pad")[1] == "resized from 96x48 to 48x24"
    with pytest.raises(ValueError, match="how"):
        video.fit(frames_FHW3, (24, 24), "squeeze")


def test_scale():
    frames_FHW3 = np.full((2, 3, 5, 3), 77, np.uint8)
    assert (video.scale(frames_FHW3, 3) == 77).all()
    assert video.scale(frames_FHW3, 3).shape == (2, 9, 15, 3)
    assert video.scale(frames_FHW3, 1) is frames_FHW3
    with pytest.raises(ValueError, match="factor"):
        video.scale(frames_FHW3, 0)


def test_contact_sheets_hold_every_frame():
    clip_FHW3 = np.stack([np.full((10, 12, 3), 10 * n, np.uint8) for n in range(9)])
    sheet = np.asarray(video.contact_sheet(clip_FHW3))
    assert sheet.shape == (2 * 12 + 2, 5 * 14 + 2, 3)  # 9 frames: rows of 5 and 4
    for n in range(9):
        y, x = 2 + n // 5 * 12, 2 + n % 5 * 14
        assert (sheet[y : y + 10, x : x + 12] == 10 * n).all()
    assert (sheet[14:, -14:] == 255).all()
    clips = [clip_FHW3, clip_FHW3[:3, :, :6], np.repeat(clip_FHW3, 2, 0)]
    sheets = video.contact_sheets(clips, ["a dog", "a very long label\nof two lines 犬" * 9, "c"])
    assert sheets.height == 3 * 18 + 14 + 14 + 26
    assert sheets.width == 16 * 14 + 2
    pixels = np.asarray(sheets)
    assert (pixels[:18] < 128).any()
    np.testing.assert_array_equal(
        pixels[18:32, :128], np.asarray(video.contact_sheet(clip_FHW3, 9))
    )
    with pytest.raises(ValueError, match="zip"):
        video.contact_sheets(clips, ["one"])


def test_save_image_is_atomic(tmp_path):
    path = tmp_path / "a.png"
    video.save_image(Image.fromarray(moving()[0]), path)
    np.testing.assert_array_equal(read_image(path), moving()[0])

    class Broken(Image.Image):
        def save(self, fp, *_, **__):
            Path(fp).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.save_image(Broken(), path)
    np.testing.assert_array_equal(read_image(path), moving()[0])
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="suffix"):
        video.save_image(Image.new("RGB", (2, 2)), tmp_path / "a.xyz")


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
def test_what_is_put_together_here_is_read_by_others(tmp_path, suffix):
    write_video(tmp_path / f"a{suffix}", moving(), 12, metadata=AWKWARD)
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = ffmpeg("-i", tmp_path / f"a{suffix}", *raw, stdout=subprocess.PIPE)
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8), moving().ravel())


def test_a_clip_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    for suffix in (".mp4", ".webp"):
        write_video(tmp_path / f"a{suffix}", moving(), 12)
        monkeypatch.setattr(video, "_LARGEST", moving().nbytes - 1)
        with pytest.raises(UserError, match="memory"):
            read_video(tmp_path / f"a{suffix}")
        monkeypatch.setattr(video, "_LARGEST", moving().nbytes)
        assert len(read_video(tmp_path / f"a{suffix}")[0]) == 9


def test_memory_is_held_once(tmp_path):
    """A clip of 118 MB is read within 1.6 times its size, beside what was there before."""
    pytest.importorskip("resource")
    path = tmp_path / "long.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=512x256:r=30:d=10", "-preset", "ultrafast", path)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from flowcept.data.video import read_video, stream\n"
        "next(stream(Path(sys.argv[1])))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "frames, _ = read_video(Path(sys.argv[1]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(frames) == 300; print(after - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or kilobytes
    assert int(done.stdout) * unit < 1.6 * 300 * 512 * 256 * 3


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not there")
def test_real_clips_survive_every_format(tmp_path):
    files = sorted(CLIPS.glob("*.mp4"))
    assert files
    for number, file in enumerate(files):
        frames_FHW3, fps = read_video(file)
        assert frames_FHW3.shape == (17, 256, 256, 3)
        suffix = (".mp4", ".webm", ".gif", ".webp", ".apng", ".mov")[number % 6]
        path = tmp_path / f"{file.stem}{suffix}"
        assert write_video(path, frames_FHW3, fps, metadata={"n": number}) == ""
        again_FHW3, again_fps = read_video(path)
        assert again_FHW3.shape == frames_FHW3.shape
        assert again_fps == pytest.approx(fps, rel=0.02 if suffix == ".gif" else 2e-6)
        assert psnr(again_FHW3, frames_FHW3) > (60 if suffix in LOSSLESS else 30)
        assert read_metadata(path) == {"n": number}


@pytest.mark.parametrize("fps", [0.7, 1.7, 2.7, 4.3])
def test_slow_odd_rates_of_webm(tmp_path, fps):
    """ffmpeg guesses a multiple of the true rate of such a file."""
    path = tmp_path / "a.webm"
    write_video(path, moving(9), fps)
    assert probe(path).num_frames == 9
    assert probe(path).fps == pytest.approx(fps, rel=2e-3)


def test_a_folder_with_a_pattern_in_its_name(tmp_path):
    folder = tmp_path / "p%d q"
    folder.mkdir()
    write_video(folder / "a.gif", moving(3), 10)
    assert [path.name for path in folder.iterdir()] == ["a.gif"]


def test_pictures_of_other_sizes_are_seen_without_decoding(tmp_path):
    for number, size in enumerate([(8, 6), (8, 6), (6, 8)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"2\.png has another size"):
        probe(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "2.png", exif=turned)
    assert probe(tmp_path).num_frames == len(read_video(tmp_path)[0]) == 3


def test_a_picture_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="7x3: lower `scale`"):
        video.save_image(Image.new("RGB", (7, 3)), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [("f_%04d.png", "f_0001.png", True), ("f_%04d.png", "f_%d.png", True),
     ("f1%d.png", "f112.png", True), ("f_%04d.png", "f_%04d-1.png", False),
     ("f_%d.png", "f_1.gif", False), ("f_%d.png", "o/f_1.png", False), ("clip", "clip/p.gif", True),
     ("clip", "clip/a/b", True), ("clip", "clip-2", False), ("a.mp4", "sub/../a.mp4", True),
     ("o/a.mp4", "o/b.mp4", False), ("x-1.mp4", "x-2.mp4", False)],
)  # fmt: skip
def test_outputs_that_would_take_each_others_place(one, other, clash):
    (a, near_a), (b, near_b) = video.claims(Path(one)), video.claims(Path(other))
    assert bool(a & near_b or b & near_a) == clash
