"""What is in a file is what is read, and damage is said: films, their colours, sound and times."""

from pathlib import Path

import numpy as np
import pytest
from fixtures_data import made, numbered, put, run

from flowcept.data import ffmpeg, video
from flowcept.data.folder import scan
from flowcept.data.shards import PictureStore
from flowcept.data.timing import Timing
from flowcept.data.video import Footage, Joined, Sound, read_video, sound_of
from flowcept.errors import UserError
from flowcept.settings import DataSettings

CODECS = {
    "h264.mp4": ["-c:v", "libx264"],
    "mpeg4.avi": ["-c:v", "mpeg4"],
    "mpeg4.mp4": ["-c:v", "mpeg4"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"],
    "mjpeg.avi": ["-c:v", "mjpeg"],
    "ffv1.mkv": ["-c:v", "ffv1", "-level", "3"],
}


def damaged(path: Path, place: float = 0.5) -> Path:
    """A copy in which a few bytes of the pictures are others."""
    data = bytearray(path.read_bytes())
    start = round(len(data) * place)
    data[start : start + 40] = bytes(byte ^ 0xFF for byte in data[start : start + 40])
    copy = path.with_name(f"damaged-{path.name}")
    copy.write_bytes(data)
    return copy


@pytest.mark.parametrize("name", CODECS)
def test_damage_within_a_film_is_said(tmp_path: Path, name: str):
    path = made(tmp_path / name, *CODECS[name], source="testsrc2=s=160x120:r=12:d=1")
    assert len(read_video(path)[0]) == 12
    with pytest.raises(UserError, match="it is damaged"):
        read_video(damaged(path))


def test_frames_of_which_nothing_was_heard_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A complaint may end up in the middle of a frame's line, so that its time is not known."""
    path = made(tmp_path / "a.mp4")
    assert len(read_video(path)[0]) == 25
    real = ffmpeg.Run._hear
    monkeypatch.setattr(
        ffmpeg.Run, "_hear", lambda run, text: real(run, text.replace("n:   7", ""))
    )
    with pytest.raises(UserError, match="it is damaged"):
        read_video(path)


def test_training_drops_a_damaged_clip(tmp_path: Path):
    path = made(tmp_path / "data" / "a.mp4", source="testsrc2=s=160x120:r=12:d=3")
    damaged(path, 0.7)
    found = scan(path.parent, DataSettings(size="16"))
    assert len(found.entries) == 2, "packets and the first frame say nothing of it"
    store = PictureStore(found, tmp_path)
    assert [entry.path.name for entry in store.entries] == ["a.mp4"]
    (finding,) = store.findings
    assert (finding.path.name, finding.verdict) == ("damaged-a.mp4", "dropped")
    assert "damaged, cut off" in finding.reason


def test_a_cover_is_not_the_film(tmp_path: Path):
    """Whether it is marked as a cover or a stream like others, and comes first."""
    film = made(tmp_path / "film.mp4", source="color=green:s=64x48:r=10:d=1")
    run("-f", "lavfi", "-i", "color=red:s=128x96", "-frames:v", 1, tmp_path / "c.png")
    both = ["-i", tmp_path / "c.png", "-i", film, "-map", "0:v", "-map", "1:v", "-c", "copy"]
    run(*both, "-disposition:v:0", 0, tmp_path / "plain.mkv")
    run(*both, "-disposition:v:0", "default", "-disposition:v:1", 0, tmp_path / "default.mkv")
    run(*both, "-disposition:v:0", "attached_pic", tmp_path / "cover.mp4")
    for name in ("plain.mkv", "default.mkv", "cover.mp4"):
        frames_FHW3, fps = read_video(tmp_path / name)
        assert (frames_FHW3.shape, fps) == ((10, 48, 64, 3), 10), name
        assert video.probe(tmp_path / name) == Timing(10.0, 10)


def test_of_two_films_the_default_one_is_read(tmp_path: Path):
    for number, colour in enumerate(("green", "blue")):
        made(tmp_path / f"{number}.mp4", source=f"color={colour}:s=32x32:r=10:d={1 + number}")
    both = ["-i", tmp_path / "0.mp4", "-i", tmp_path / "1.mp4", "-map", "0:v", "-map", "1:v"]
    for chosen in (0, 1):
        path = tmp_path / f"{chosen}.mkv"
        other = ["-disposition:v", 0, f"-disposition:v:{chosen}", "default"]
        run(*both, "-c", "copy", *other, path)
        assert video.probe(path).num_frames == 10 + 10 * chosen
    run(*both, "-c", "copy", "-disposition:v", 0, tmp_path / "longest.mkv")
    assert video.probe(tmp_path / "longest.mkv").num_frames == 20


def hdr(path: Path, transfer: str) -> Path:
    """White of 230 beside grey of 128 in BT.2020, as a television shows it."""
    grey = "color=0x808080:s=32x32:r=5:d=0.4,pad=64:32:color=0xE6E6E6,format=gbrp"
    meant = "setparams=colorspace=gbr:color_primaries=bt709:color_trc=iec61966-2-1"
    linear = f"{meant},zscale=t=linear:npl=203,format=gbrpf32le"
    wide = f"zscale=t={transfer}:p=bt2020:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    run(
        *["-f", "lavfi", "-i", f"{grey},{linear},{wide}", "-c:v", "libx265"],
        *["-x265-params", "log-level=error", "-color_trc", transfer],
        *["-color_primaries", "bt2020", "-colorspace", "bt2020nc", path],
    )
    return path


@pytest.mark.skipif(not ffmpeg.offers("zscale", "-filters"), reason="this ffmpeg has no zscale")
@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
def test_hdr_looks_as_it_was_meant(tmp_path: Path, transfer: str, monkeypatch: pytest.MonkeyPatch):
    path = hdr(tmp_path / "a.mp4", transfer)
    frame_HW3 = read_video(path)[0][0].astype(int)
    assert np.abs(frame_HW3[4:28, 4:28] - 128).max() <= 4
    assert np.abs(frame_HW3[4:28, 36:60] - 230).max() <= 4
    monkeypatch.setattr(ffmpeg, "offers", lambda *_: False)
    with pytest.raises(UserError, match=r"^[^\n]*HDR[^\n]*convert it"):
        read_video(path)


# ---- sound -----------------------------------------------------------------------------------

BEEP = "aevalsrc='if(between(t,1.5,1.7),sin(2*PI*880*t),0)':d=3:s=48000"


def flashing(path: Path, delay: float, *arguments: object) -> Path:
    """Black and silent, but white and loud from second 1.5 on; the film begins after a delay."""
    white = f"drawbox=c=white:t=fill:enable='between(t,{1.49 - delay},{1.69 - delay})'"
    black = f"color=black:s=64x48:r=25:d={3 - delay},format=yuv420p,{white}"
    inputs = ["-f", "lavfi", "-i", BEEP, "-itsoffset", delay, "-f", "lavfi", "-i", black]
    run(*inputs, "-map", "1:v", "-map", "0:a", "-g", 10, *arguments, path)
    return path


def out_of_step(path: Path) -> float:
    """Seconds from the flash to the beep."""
    frames_FHW3, fps = read_video(path)
    flash = int(np.argmax(frames_FHW3.mean((1, 2, 3)) > 128)) / fps
    raw = run("-i", path, "-f", "s16le", "-ac", 1, "-ar", 8000, "-")
    loud = np.abs(np.frombuffer(raw, np.int16).astype(int)) > 3000
    assert loud.any()
    return float(np.argmax(loud)) / 8000 - flash


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("delay", [0.0, 0.5])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("container", [".mp4", ".mkv"])
def test_sound_stays_in_step(tmp_path: Path, suffix: str, delay: float, cut: bool, container: str):
    """Of films that begin after their sound, and of those cut without encoding."""
    path = flashing(tmp_path / f"whole{container}", delay)
    if cut:
        run("-ss", 0.95, "-i", path, "-c", "copy", tmp_path / f"cut{container}")
        path = tmp_path / f"cut{container}"
    frames_FHW3, fps = read_video(path)
    first_FHW3 = np.zeros((15, *frames_FHW3.shape[1:]), np.uint8)  # what extend puts before
    sound = sound_of(path, 15 / fps)
    longer_FHW3 = np.concatenate([first_FHW3, frames_FHW3])
    assert video.write_video(tmp_path / f"o{suffix}", longer_FHW3, fps, sound=sound) == ""
    assert abs(out_of_step(tmp_path / f"o{suffix}")) <= 1 / 25


def test_sound_that_nobody_decodes_is_left_out_and_said(tmp_path: Path):
    path = flashing(tmp_path / "a.mp4", 0)
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"none"))
    sound = sound_of(path)
    frames_FHW3 = read_video(path)[0][:20]
    metadata = {"seed": 1}
    note = video.write_video(tmp_path / "o.mp4", frames_FHW3, 25, metadata=metadata, sound=sound)
    assert "cannot be decoded" in note
    assert video.probe(tmp_path / "o.mp4").num_frames == 20
    assert not video.has_sound(tmp_path / "o.mp4")
    assert video.read_metadata(tmp_path / "o.mp4") == metadata


# ---- kinds of files --------------------------------------------------------------------------


def test_what_a_file_is_and_what_to_do_is_said(tmp_path: Path):
    film = made(tmp_path / "film.mp4")
    run("-i", film, "-c", "copy", "-f", "mpegts", tmp_path / "stream.mp4")
    run("-f", "lavfi", "-i", "sine=d=1", tmp_path / "tone.mp4")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\nfilm.mp4\n")
    expected = {"stream.mp4": "MPEG-TS", "tone.mp4": "only sound", "list.mp4": "playlist"}
    for name, words in expected.items():
        with pytest.raises(UserError, match=words):
            read_video(tmp_path / name)
    with pytest.raises(UserError, match=r"HEIC picture: save it as JPEG"):
        video.read_image(tmp_path / "photo.heic")


# ---- clips of any length ---------------------------------------------------------------------


def test_footage_is_the_clip(tmp_path: Path):
    path = put(tmp_path / "a.apng", 9)
    file = Footage.open(path)
    assert len(file) == 9
    assert file.lost == ""
    np.testing.assert_array_equal(np.stack(list(file)), numbered(9))
    assert video.digest(file) == video.digest(numbered(9))
    for count, expected in ((2, [0, 1, 7, 8]), (5, [*range(9)]), (20, [*range(9)])):
        ends_FHW3, own = file.ends(count, (4, 6))
        assert own == (16, 16)
        assert ends_FHW3.shape[1:] == (4, 6, 3)
        assert (ends_FHW3[:, 0, 0, 0] // 10).tolist() == expected
    joined = Joined((numbered(2, (4, 4)), file), (16, 16))
    assert len(joined) == len(list(joined)) == 11
    np.testing.assert_array_equal(np.stack(list(joined))[2:], numbered(9))


def test_frames_that_fit_no_beat_are_told(tmp_path: Path):
    """Of ten frames the last five come much faster than the others."""
    uneven = "settb=1/90000,setpts='if(lt(N,6),N/25,0.24+(N-6)/71)/TB'"
    clock = ["-fps_mode", "vfr", "-enc_time_base", "1/90000"]
    path = made(tmp_path / "a.mp4", "-vf", uneven, *clock, "-frames:v", 10)
    file = Footage.open(path)
    lost = file.timing.times.count(0)
    assert lost > 0
    assert f"{lost} of 10 are left out" in file.lost
    assert len(file) == len(read_video(path)[0])


def test_reading_looks_at_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(tmp_path / "a.apng", 9)
    monkeypatch.setattr(video, "_LOOK", numbered(2).nbytes)
    monkeypatch.setattr("flowcept.device.free_memory", lambda _: 4 * numbered(2).nbytes)
    assert len(read_video(path)[0]) == 9
    monkeypatch.setattr("flowcept.device.free_memory", lambda _: numbered(2).nbytes)
    with pytest.raises(UserError, match="memory"):
        read_video(path)


def test_sound_of_nothing(tmp_path: Path):
    assert sound_of(put(tmp_path / "a.apng")) is None
    assert sound_of(made(tmp_path / "a.mp4")) is None
    path = flashing(tmp_path / "b.mkv", 0.5)
    found = sound_of(path, 2.0)
    assert isinstance(found, Sound)
    assert found.start == pytest.approx(1.5, abs=0.03)  # or what the encoder put before the sound
