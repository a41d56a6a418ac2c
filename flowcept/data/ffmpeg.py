"""ffmpeg as a child process: decoding, asking, encoding. There is no ffprobe beside it.

Up to the line "Stream mapping:" ffmpeg quotes the file, and only errors and warnings are its own.
Its filter `showinfo` reports rate, time stamps and sizes of the frames that really are in a file;
the packets have the same time stamps, without the work of decoding.

Shape suffixes: F frames, H height, W width, 3 colours.
"""

import array
import functools
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flowcept.data.timing import Edges, Timing, durations, edges, from_stamps
from flowcept.errors import UserError
from flowcept.stopping import whole

Frames = NDArray[np.uint8]

SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_DEMUXERS = "mov,matroska,avi,wav,mp3,ogg,flac,aac"  # no playlists: they name other files
# Of every reading, after ffmpeg itself has turned the picture: square pixels, report of each frame.
_UPRIGHT = f"scale=w='max(1,round(iw*sar))':h=ih:{SCALE},setsar=1,showinfo=checksum=0"
_WHITE = "drawbox=c=white:t=fill:replace=1"
_ON_WHITE = f"format=rgba,split[a][b];[b]{_WHITE}[w];[w][a]overlay=format=gbrp"
# Brighter than white is possible: 203 cd/m2 become white (BT.2408), and what is near is pressed.
_TONE_MAPPED = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
    "tonemap=mobius:param=0.8:desat=0,zscale=t=iec61966-2-1,format=gbrp"
)
_BRIGHTER = re.compile(r"/(arib-std-b67|smpte2084)\b")  # transfer functions: HLG and PQ
# ffmpeg's own decoders of these see neither transparency nor most damage.
_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_TRANSPARENT = re.compile(r", (yuva|ya8|ya16|rgba|argb|abgr|bgra|gbrap|pal8)")
_INTERLACED = re.compile(r"\b(top|bottom) (coded )?first\b")
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp")  # codecs of covers, seldom of films

_LEVEL = re.compile(r"(?:\[[^\]]* @ \w+\] )*\[(\w+)\] (.*)", re.DOTALL)
_COMPLAINTS = {"panic", "fatal", "error", "warning"}
_TAGS = r"\n +Metadata:(?:\n {6,}.*)*"
_STREAM = re.compile(rf"^ {{2,4}}Stream #0:(\d+)[^:]*: (\w+): (.*)({_TAGS})?", re.MULTILINE)
_ALPHA = re.compile(r"^ {6,}alpha_mode +: 1$", re.MULTILINE | re.IGNORECASE)
_LASTS = re.compile(r"^ {6,}DURATION +: (\d+):(\d+):([\d.]+)$", re.MULTILINE | re.IGNORECASE)
_CLOCK = re.compile(r"config in time_base: (\d+/\d+), frame_rate: (\d+)/(\d+)")
_FRAME = re.compile(r"\bn: *\d+ pts: *(-?\d+) .*? s:(\d+)x(\d+) ")
_BROKEN = ": partial file|File ended prematurely|corrupt input packet|Error during demuxing"
_LOST = "Decoding error|Error submitting packet|corrupt decoded frame|concealing \\d"
_TORN = r"error while decoding MB|Error at MB|overread \d|error y=\d|slice CRC mismatch"
_DAMAGE = re.compile(f"{_BROKEN}|{_LOST}|{_TORN}")
# Flags of packets: 1 key frame, 2 corrupt, 4 not to be shown, 16 needed by no other.
_WHOLE = frozenset({0x0, 0x1, 0x10, 0x11})
_NO_STAMP = -(1 << 63)
# What files begin with that are not read: where, the bytes, what they are and what to do.
_FOREIGN = (
    (4, b"ftyphe", "a HEIC picture: save it as JPEG or PNG"),
    (4, b"ftypmif1", "a HEIC or AVIF picture: save it as JPEG or PNG"),
    (188, b"G", "MPEG-TS video: convert it with ffmpeg -i IN -c copy OUT.mp4"),
    (0, b"\0\0\1\xba", "MPEG-PS video: convert it with ffmpeg -i IN OUT.mp4"),
    (0, b"FLV", "Flash video: convert it with ffmpeg -i IN -c copy OUT.mp4"),
    (0, b"#EXTM3U", "a playlist: give the video itself"),
    (0, b"PK\3\4", "a ZIP archive: unpack it"),
)


@functools.cache
def _executable() -> str:
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UserError("ffmpeg is missing: reinstall imageio-ffmpeg with pip") from error


def source(path: Path) -> list[str]:
    """Arguments that read this one local file and nothing that it may point to."""
    guards = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
    return [*guards, "-i", f"file:{path.absolute()}"]


def unreadable(path: Path) -> UserError:
    """The error of a file that is not a whole clip."""
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(189)
    for place, sign, what in _FOREIGN:
        if head[place:].startswith(sign) and (place < 188 or head[:1] == sign):
            return UserError(f"cannot read {path}: it is {what}")
    return UserError(f"cannot read {path}: it is damaged, cut off, or not what its name says")


@functools.cache
def offers(name: str, listing: str) -> bool:
    """Whether this build of ffmpeg has one of the `-filters` or `-decoders`."""
    with Run([listing]) as run:
        return f" {name} ".encode() in run.output.read()


class Run:
    """One run of ffmpeg, which ends with its block at the latest.

    The size of the first frame is known once `begun` is set: at that frame, or at the end of a run
    that decodes none. What `described` says of the input is whole once it has ended.
    """

    def __init__(self, arguments: Sequence[str], *, feed: bool = False) -> None:
        own = ["-hide_banner", "-nostats", "-loglevel", "level+info"]
        self._command = [_executable(), *own, *arguments]
        self._stdin = subprocess.PIPE if feed else subprocess.DEVNULL
        self.described = ""
        self.height, self.width = 0, 0
        self.begun = threading.Event()
        self.complaints: deque[str] = deque(maxlen=200)
        self.failed = False  # whether a complaint is an error
        self.ticks = array.array("q")  # time stamps of decoded frames, some not yet in `output`
        self.tick = self.declared = 0.0  # seconds; frames per second, 0 if none is said
        self._damaged = self._resized = self._torn = self._mapped = False

    def __enter__(self) -> Self:
        """Start ffmpeg. What stops the program meanwhile does so once ffmpeg can be ended too."""
        try:
            with whole():
                self._start()
        except OSError:
            raise  # nothing was started
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stdin=self._stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0 if os.name == "posix" else None,  # a terminal's Ctrl-C is not for it
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __exit__(self, *_: object) -> None:
        with whole():
            self.process.kill()
            self.wait()
            with suppress(OSError):  # what was to be fed to it; this closes all pipes
                self.process.__exit__(None, None, None)

    def wait(self) -> int:
        """Exit status, once ffmpeg has ended and all its output was read."""
        self._listener.join()
        return self.process.wait()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            said = line.decode(errors="replace").rstrip("\r\n")
            found = _LEVEL.match(said)
            level, text = found.groups() if found else ("", said)
            if level in _COMPLAINTS:
                self.complaints.append(text)
                self.failed |= level != "warning"
                self._damaged |= _DAMAGE.search(text) is not None
            elif self._mapped:
                self._hear(said)
            elif text == "Stream mapping:":
                self._mapped = True
            elif level:
                self.described += f"{text}\n"
        self.begun.set()

    def _hear(self, text: str) -> None:
        # Threads speak at once: a complaint may end up in the middle of another's line.
        self._damaged |= _DAMAGE.search(text) is not None
        if found := _FRAME.search(text):
            self.ticks.append(int(found[1]))
            size = int(found[3]), int(found[2])
            if len(self.ticks) == 1:
                self.height, self.width = size
                self.begun.set()
            self._resized |= size != (self.height, self.width)
        elif not self.tick and (found := _CLOCK.search(text)):
            self.tick = float(Fraction(found[1]))
            self.declared = int(found[2]) / int(found[3]) if int(found[3]) else 0.0

    def pictures(self, channels: int = 3) -> Iterator[Frames]:
        """The frames `[H, W, channels]` that come out of ffmpeg, one at a time."""
        self.begun.wait()
        size = self.height * self.width * channels
        while size and (data := self.output.read(size)):
            if len(data) < size:
                self._torn = True
                return
            yield np.frombuffer(data, np.uint8).reshape(self.height, self.width, channels)

    def finish(self, path: Path) -> None:
        """Wait for the end; UserError if `path` was not read whole."""
        status = self.wait()
        if status or self._damaged or not self.ticks:
            raise unreadable(path)
        if self._resized:
            raise UserError(f"cannot read {path}: its frame size changes; re-encode it")
        if self._torn:
            raise unreadable(path)


@dataclass(frozen=True)
class Stream:
    """A stream of a file, as ffmpeg describes it."""

    number: int  # in the file
    about: str  # codec, pixel format and more
    tags: str  # one a line

    @property
    def codec(self) -> str:
        return re.split(r"\W", self.about, maxsplit=1)[0]

    @property
    def transparent(self) -> bool:
        """Whether its pictures have an alpha channel."""
        hidden = self.codec in _DECODERS and _ALPHA.search(self.tags)
        return bool(hidden or _TRANSPARENT.search(self.about))

    def rank(self) -> tuple[bool, bool, float]:
        """Of several streams of pictures the highest is the film; others are covers and extras."""
        lasts = _LASTS.search(self.tags)
        seconds = 0.0
        if lasts:
            seconds = int(lasts[1]) * 3600 + int(lasts[2]) * 60 + float(lasts[3])
        cover = self.codec in _PICTURES or "(attached pic)" in self.about
        return not cover, "(default)" in self.about, seconds


def streams(path: Path, kind: str) -> list[Stream]:
    """The streams of a file that are `Video` or `Audio`, from its headers.

    Raises UserError for a file that has neither.
    """
    with Run(["-nostdin", *source(path)]) as run:
        run.wait()
    found = _STREAM.findall(run.described)
    if not found:
        raise unreadable(path)
    return [Stream(int(n), about, tags) for n, own, about, tags in found if own == kind]


class Film:
    """The film in a file: of several streams of pictures the one that is no cover."""

    timing: Timing  # known at the end of `pictures`, or after `survey`
    edges: Edges  # when each stored frame begins, and the last one ends (s, the first at 0)
    fps: float  # of the edges: the constant rate, or that of the median duration

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def stream(self) -> Stream:
        """What is read. Raises UserError where a file has no pictures."""
        found = streams(self.path, "Video")
        if not found:
            raise UserError(f"cannot read {self.path}: it holds only sound: give a video")
        return max(found, key=Stream.rank)

    @property
    def transparent(self) -> bool:
        """Whether the file has an alpha channel."""
        return self.stream.transparent

    def pictures(self, alpha: bool = False) -> Iterator[Frames]:
        """The stored frames `[H, W, 3]`, upright, on white and in the colours of a usual screen.

        With `alpha` those of a file that has transparency are `[H, W, 4]`, colours as they are.
        Raises UserError at the end of a file that is not whole.
        """
        channels = 4 if alpha and self.transparent else 3
        count = 0
        with Run(self._decoding(channels)) as run:
            for frame_HWC in run.pictures(channels):
                yield frame_HWC
                count += 1
            run.finish(self.path)
        if len(run.ticks) < count:  # so much was complained about that the rest was not heard
            raise unreadable(self.path)
        self._clock(np.array(run.ticks[:count], np.int64), run)

    def _decoding(self, channels: int) -> list[str]:
        filters = [_UPRIGHT]
        if _BRIGHTER.search(self.stream.about):
            if not offers("zscale", "-filters"):
                what = "its colours are HDR, which this ffmpeg cannot convert"
                raise UserError(f"cannot read {self.path}: {what}; convert it to SDR first")
            filters.insert(0, _TONE_MAPPED)
        if self.transparent and channels == 3:
            filters.append(_ON_WHITE)
        filters.append("format=rgba" if channels == 4 else "format=rgb24")
        raw = ["-vf", ",".join(filters), "-fps_mode", "passthrough", "-f", "rawvideo", "-"]
        return [*self._input(), *self._only(), *raw]

    def _input(self) -> list[str]:
        """Arguments that read the file, with the decoder that sees most."""
        decoder = _DECODERS.get(self.stream.codec, "")
        known = decoder and offers(decoder, "-decoders")
        chosen = [f"-c:{self.stream.number}", decoder] if known else []
        return ["-nostdin", "-threads", "1", *chosen, *source(self.path)]

    def _only(self) -> list[str]:
        """Arguments that take the film and nothing else."""
        return ["-map", f"0:{self.stream.number}", "-map_metadata", "-1", "-map_chapters", "-1"]

    def _clock(self, ticks_F: NDArray[np.int64], run: Run) -> None:
        self.timing = from_stamps(ticks_F, run.tick, run.declared)
        shown_F = durations(ticks_F, run.tick, run.declared)
        self.edges, self.fps = edges(shown_F, run.tick, run.declared)

    def survey(self) -> bool:
        """Decode the first frame, and read the packets of the others.

        False where packets may not be frames, one for one: then the frames have to be read. Raises
        UserError for a file that is not whole.
        """
        packets = [*self._only(), "-c", "copy", "-copyinkf", "-f", "framecrc", "-"]
        one = [*self._only(), "-vf", _UPRIGHT, "-frames:v", "1", "-f", "null", "-"]
        with Run([*self._input(), *packets, *one]) as run:
            lines = [line.decode() for line in run.output]
            run.finish(self.path)
        ticks_F = _ticks_of_packets(lines, run.tick)
        if ticks_F is None or run.failed or _INTERLACED.search(self.stream.about):
            return False
        self._clock(ticks_F, run)
        return True

    def begins(self) -> float:
        """When the first frame is shown, on the file's clock (s)."""
        one = [*self._only(), "-vf", _UPRIGHT, "-frames:v", "1", "-f", "null", "-"]
        with Run([*self._input(), *one]) as run:
            run.finish(self.path)
        return run.ticks[0] * run.tick

    def comment(self) -> str:
        """The comment in the file's metadata, "" if there is none."""
        with Run(["-nostdin", *source(self.path), "-f", "ffmetadata", "-"]) as run:
            output = run.output.read().decode(errors="replace")
            if run.wait() != 0:
                raise unreadable(self.path)
        whole = output.split("\n[")[0]  # streams and chapters follow
        # A backslash stands before = ; # \ and the end of a line inside a value.
        found = re.search(r"^comment=((?:\\.|[^\\\n])*)", whole, re.MULTILINE | re.I | re.S)
        return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found else ""


def _ticks_of_packets(lines: Sequence[str], tick: float) -> NDArray[np.int64] | None:
    """Time stamps in a list of packets by ffmpeg's framecrc; None unless each is a frame's own."""
    clocks = {float(Fraction(line.split()[2])) for line in lines if line.startswith("#tb 0:")}
    packets = [line.split(",") for line in lines if not line.startswith("#")]
    ticks = sorted(int(packet[2]) for packet in packets)
    flags = [*map(_flags, packets)]

    starts = bool(flags) and flags[0] & 1  # what comes before a key frame may not be shown
    whole = set(flags) <= _WHOLE and all(int(packet[4]) for packet in packets)
    distinct = len(set(ticks)) == len(ticks) and _NO_STAMP not in ticks
    if not (starts and whole and distinct and clocks == {tick}):
        return None
    return np.array(ticks, np.int64)


def _flags(packet: Sequence[str]) -> int:
    """Flags of a packet; framecrc does not print those of a plain key frame."""
    found = re.search(r"F=0x(\w+)", ",".join(packet))
    return int(found[1], 16) if found else 1


def sound_codec(path: Path) -> str | None:
    """Codec of the first audio stream of a file, from its headers; None if there is none."""
    found = streams(path, "Audio")
    return found[0].codec if found else None
