"""A folder of clips: what is found, what is kept, cut or dropped, and why.

Shape suffixes: F frames, H height, W width, 3 colours.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import mimetypes
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import multimode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowcept.data import video
from flowcept.data.video import Frames, VideoInfo
from flowcept.errors import UserError
from flowcept.settings import FASTEST, FITS, SLOWEST

SAME_RATE = 0.002  # relative; 29.97 and 30 frames per second count as one rate (0.001 apart)
PROBE_FORMAT = 1  # of what is kept of files: raise it when `probe` would say something else
PATH_KEYS = ("file_name", "video", "path")
CAPTION_KEYS = ("caption", "text", "prompt")

Progress = Callable[[int, int], None]  # called with (done, total)


@dataclass(frozen=True)
class DataConfig:
    """How the clips of a folder are brought to one form."""

    size: tuple[int, int]  # height and width of the training frames, in pixels
    fps: float = 0.0  # frames per second; 0: the most common rate of the folder
    min_frames: int = 1  # shorter clips, and shorter pieces of cut clips, are dropped
    max_frames: int = 64  # longer clips are cut into consecutive pieces
    fit: str = "crop"  # how a clip gets the training size: crop, pad or stretch

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"size {self.size} is not possible; give positive pixels")
        if not (math.isfinite(self.fps) and self.fps >= 0):
            raise UserError(f"fps {self.fps} is not possible; give a positive rate, or 0 for auto")
        if not 1 <= self.min_frames <= self.max_frames:
            both = f"min_frames {self.min_frames} and max_frames {self.max_frames}"
            raise UserError(f"{both} leave no length; give 1 <= min_frames <= max_frames")
        if self.fit not in FITS:
            raise UserError(f"fit {self.fit!r} is unknown; choose crop, pad or stretch")


@dataclass(frozen=True)
class ClipEntry:
    """One clip, or one piece of a cut clip, to train on."""

    path: Path
    caption: str
    start: int  # first frame, counted at the training rate
    num_frames: int  # at the training rate
    source: VideoInfo  # the whole file, at its own rate


@dataclass(frozen=True)
class Finding:
    """What became of one file, and why."""

    path: Path
    verdict: str  # kept, cut or dropped
    reason: str
    num_frames: int  # as found in the file; 0 if it could not be read
    fps: float  # likewise

    def __str__(self) -> str:
        """One line of a report."""
        return f"{self.verdict:<7} {self.path}: {self.reason}"


@dataclass(frozen=True)
class Scan:
    """The verdict on a folder."""

    entries: tuple[ClipEntry, ...]
    findings: tuple[Finding, ...]  # one per file that was looked at
    fps: float  # frames per second of every training clip

    def lengths(self) -> dict[int, int]:
        """How many training clips have each number of frames, shortest first."""
        return dict(sorted(Counter(entry.num_frames for entry in self.entries).items()))

    def summary(self, examples: int = 5) -> list[str]:
        """Lines for people: counts, reasons with some examples, rates, a histogram of lengths."""
        found = Counter(finding.verdict for finding in self.findings)
        total = sum(entry.num_frames for entry in self.entries)
        uncaptioned = sum(not entry.caption for entry in self.entries)
        became = ", ".join(f"{found[verdict]} {verdict}" for verdict in ("kept", "cut", "dropped"))
        clips = f"{len(self.entries)} training clips of {total} frames in all"
        lines = [f"{len(self.findings)} clips found: {became}"]
        lines += [f"{clips}, {uncaptioned} without a caption"]
        for verdict in ("cut", "dropped"):
            some = [finding for finding in self.findings if finding.verdict == verdict]
            lines += [f"  {finding}" for finding in some[:examples]]
            if len(some) > examples:
                lines.append(f"  ... and {len(some) - examples} more {verdict}")
        rates = Counter(round(f.fps, 3) for f in self.findings if f.num_frames > 1)
        listed = ", ".join(f"{rate:g} ({n} clips)" for rate, n in sorted(rates.items())) or "none"
        lines += [f"training rate {self.fps:g} frames per second; rates found: {listed}"]
        return [*lines, "frames per training clip:", *_histogram(self.lengths())]


def scan(
    folder: Path, config: DataConfig, progress: Progress | None = None, cache: Path | None = None
) -> Scan:
    """Find the clips and captions of `folder` and decide what can be trained on.

    A file that cannot be used becomes a finding. `cache` is a folder that keeps what was found in
    files for the next time. Raises UserError for a missing folder, for malformed lists of captions
    (with file and line), and if no clip is left.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {problem}; name a folder of clips")
    probe = _Probe(cache / "scan.json" if cache else None)
    try:
        sources = _sources(folder, probe)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not sources:
        raise UserError(f"{folder}: no clips here; put videos, images or folders of images into it")
    looked = _look_at_all(sources, probe, progress)
    probe.keep()

    moving = [info for info, _ in looked if isinstance(info, VideoInfo) and info.num_frames > 1]
    common = multimode(round(info.fps, 3) for info in moving)
    fps = config.fps or min(common, default=video.DEFAULT_FPS)  # the lower repeats no frame
    if not SLOWEST <= fps <= FASTEST:
        found = f"{folder}: most clips have {fps:g} frames a second"
        raise UserError(f"{found}, which no file can say ({SLOWEST} to {FASTEST}): give --fps")
    entries, findings = list[ClipEntry](), list[Finding]()
    for (path, _), (info, caption) in zip(sources, looked, strict=True):
        if isinstance(info, str):
            findings.append(Finding(path, "dropped", info, 0, 0.0))
        else:
            pieces, finding = _cut(path, caption, info, config, fps)
            entries += pieces
            findings.append(finding)
    if not entries:
        reasons = Counter(finding.reason for finding in findings).most_common(3)
        detail = "; ".join(f"{number} x {reason}" for reason, number in reasons)
        raise UserError(f"{folder}: none of its {len(findings)} clips can be used: {detail}")
    return Scan(tuple(entries), tuple(findings), fps)


# ---- probing ---------------------------------------------------------------------------------


def digest_of(*parts: object) -> str:
    """A key for what is made from `parts`, by their repr."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fingerprint(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of each file in a folder of images."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in inside if file.exists()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


class _Probe:
    """`video.probe`, whose answers may be kept in a small JSON file until a file changes."""

    def __init__(self, store: Path | None) -> None:
        self.store = store
        self.kept: dict[str, Any] = {}  # by the path of a file: its key and what was found
        self.asked: dict[str, tuple[str, VideoInfo]] = {}  # likewise, this time
        with suppress(OSError, ValueError):
            kept = json.loads(store.read_text(encoding="utf-8")) if store else {}
            self.kept = kept if isinstance(kept, dict) else {}

    def __call__(self, path: Path) -> VideoInfo:
        name, key = str(path.absolute()), digest_of(PROBE_FORMAT, fingerprint(path))
        before, found = self.kept.get(name, ("", {}))
        if before == key:
            info = VideoInfo(**{**found, "times": tuple(found["times"])})
        else:
            info = video.probe(path)
        self.asked[name] = key, info
        return info

    def keep(self) -> None:
        """Write down what was asked this time."""
        if self.store is not None:
            asked = {name: (key, asdict(info)) for name, (key, info) in self.asked.items()}
            with video.replacing(self.store) as temporary:
                self.store.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(asked), encoding="utf-8")


def _look_at_all(
    sources: Sequence["_Source"], probe: _Probe, progress: Progress | None
) -> list[tuple[VideoInfo | str, str]]:
    """What `probe` says of each source, or why it cannot be used; and its caption."""

    def look(source: _Source) -> tuple[VideoInfo | str, str]:
        path, caption = source
        try:
            if not path.exists():
                return "it is named in the list of clips but does not exist", ""
            if caption is None:
                beside = path.with_name(f"{path.name if path.is_dir() else path.stem}.txt")
                caption = " ".join(_text(beside).split()) if beside.is_file() else ""
            info = probe(path)
        except (UserError, OSError) as error:
            return reason_of(path, error), ""
        if info.num_frames < 1:
            return "it holds no frames", ""
        if info.num_frames > 1 and not (math.isfinite(info.fps) and info.fps > 0):
            return "it does not say how fast it plays", ""
        return info, caption

    looked = []
    # Threads are enough: the work is done by ffmpeg's processes and by Pillow.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(look, sources):
            looked.append(result)
            if progress:
                progress(len(looked), len(sources))
    return looked


def reason_of(path: Path, error: Exception) -> str:
    """An error about a file as one clause after its name."""
    return str(error).replace(f"cannot read {path}", "cannot be read").replace(str(path), "it")


# ---- clips and captions ----------------------------------------------------------------------

_Source = tuple[Path, str | None]  # caption None: it stands in name.txt beside the clip, if at all


def _sources(folder: Path, probe: _Probe) -> list[_Source]:
    """Every clip of `folder` with its caption; where a list names the clips, only those."""
    names = ("metadata.jsonl", "metadata.csv", "videos.txt")
    lists = [path for name in names if (path := folder / name).is_file()]
    if len(lists) > 1:
        raise UserError(f"{folder}: {lists[0].name} and {lists[1].name} both name clips; keep one")
    if lists:
        read = {".jsonl": _json_rows, ".csv": _csv_rows, ".txt": _paired_rows}[lists[0].suffix]
        rows = read(lists[0])
        return [_source_of_row(folder, f"{lists[0]}, line {line}", row) for line, row in rows]
    if (folder / "prompts.txt").is_file():
        raise UserError(f"{folder}: prompts.txt needs videos.txt beside it, one clip per line")
    return [(path, None) for path in _walk(folder, probe)]


def _walk(folder: Path, probe: _Probe) -> Iterator[Path]:
    """Clips of a folder: media files and sub-folders that hold nothing but images.

    The folder of a training run, which may lie among the clips, holds none.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():  # a link could lead round in circles
            if (path / "config.toml").is_file():
                continue
            media = [inner for inner in path.iterdir() if _is_media(inner)]
            stills = media and all(_is_still(inner, probe) for inner in media)
            yield from [path] if stills else _walk(path, probe)
        elif _is_media(path):
            yield path


def _is_media(path: Path) -> bool:
    """Whether a file claims to be a picture or a video, of a kind that we read or not."""
    kind = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    known = path.suffix.lower() in video.VIDEO_SUFFIXES | video.IMAGE_SUFFIXES
    return not path.name.startswith(".") and (known or kind in {"video", "image"})


def _is_still(path: Path, probe: _Probe) -> bool:
    """Whether a file is a picture; one in .webp can also be a clip, or damaged and neither."""
    suffix = path.suffix.lower()
    with suppress(UserError):  # found again, and told, as a clip
        moving = suffix in video.VIDEO_SUFFIXES and probe(path).num_frames > 1
        return suffix in video.IMAGE_SUFFIXES and not moving
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


_Row = tuple[int, Mapping[str, object]]  # its line and its values


def _json_rows(path: Path) -> Iterator[_Row]:
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            where = f"{path}, line {line}"
            raise UserError(f"{where}: is not JSON ({error}); write one object per line") from error
        yield line, row


def _csv_rows(path: Path) -> Iterator[_Row]:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(lines, [])]
        if not set(columns) & set(PATH_KEYS):
            raise UserError(f"{path}, line 1: no column is called {' or '.join(PATH_KEYS)}")
        for values in filter(None, lines):
            if len(values) != len(columns):
                where = f"{path}, line {lines.line_num}"
                raise UserError(f"{where}: does not have {len(columns)} columns; quote any commas")
            yield lines.line_num, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: is not CSV ({error})") from error


def _paired_rows(path: Path) -> Iterator[_Row]:
    """Rows of videos.txt, each with the same line of prompts.txt beside it."""
    videos = _text(path).rstrip().split("\n")
    prompts = _text(path.with_name("prompts.txt")).removesuffix("\n").split("\n")
    while len(prompts) > len(videos) and not prompts[-1].strip():
        prompts.pop()  # blank lines at the end; within the list they are empty captions
    if len(videos) != len(prompts):
        where = f"{path}, line {min(len(videos), len(prompts)) + 1}"
        found = f"videos.txt has {len(videos)} lines and prompts.txt {len(prompts)}"
        raise UserError(f"{where}: {found}; they must match line by line")
    for line, (name, prompt) in enumerate(zip(videos, prompts, strict=True), start=1):
        yield line, {"file_name": name, "text": prompt}


def _source_of_row(folder: Path, where: str, row: Mapping[str, object]) -> _Source:
    if not isinstance(row, dict):
        raise UserError(f'{where}: is not an object such as {{"file_name": ..., "text": ...}}')
    name = next((row[key] for key in PATH_KEYS if key in row), None)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: names no clip; {' or '.join(PATH_KEYS)} must hold a file name")
    caption = next((row[key] for key in CAPTION_KEYS if key in row), "")
    if not isinstance(caption, str | None):
        raise UserError(f"{where}: the caption is not text but {json.dumps(caption)[:40]}")
    path, inside = folder / name.strip(), False
    with suppress(OSError, RuntimeError, ValueError):  # links in a circle; a name that none can be
        inside = path.resolve().is_relative_to(folder.resolve())
    if not inside:
        raise UserError(f"{where}: {name.strip()!r} leads out of the folder; copy the clip into it")
    return path, " ".join((caption or "").split())


# ---- rates and pieces ------------------------------------------------------------------------


def _same_rate(a: float, b: float) -> bool:
    return abs(a - b) <= SAME_RATE * max(a, b)


def _cut(
    path: Path, caption: str, info: VideoInfo, config: DataConfig, fps: float
) -> tuple[list[ClipEntry], Finding]:
    """The training clips of one file: itself, or pieces that differ by at most one frame."""
    total = info.num_frames
    found = ""
    if total > 1 and not _same_rate(info.fps, fps):
        total = max(1, math.floor(info.num_frames * fps / info.fps + 0.5))
        found = f" at {fps:g} per second, from {info.num_frames} at {info.fps:g}"
    reason = f"{total} frame{'s' * (total > 1)}{found}"

    number = -(-total // config.max_frames)
    bounds = [total * piece // number for piece in range(number + 1)]
    spans = [(a, b - a) for a, b in itertools.pairwise(bounds) if b - a >= config.min_frames]
    pieces = [ClipEntry(path, caption, start, length, info) for start, length in spans]
    if number > 1:
        each = " or ".join(map(str, sorted({total // number, -(-total // number)})))
        reason += f", over the maximum of {config.max_frames}: {number} pieces of {each}"
    if len(pieces) < number:
        lost = f"{number - len(pieces)} of them " if number > 1 else ""
        reason += f", {lost}under the minimum of {config.min_frames}"
    verdict = "dropped" if not pieces else "cut" if number > 1 else "kept"
    return pieces, Finding(path, verdict, reason, info.num_frames, info.fps)


def _histogram(counts: Mapping[int, int], rows: int = 16, width: int = 40) -> list[str]:
    """Bars of text, at most `rows` of them, over equal ranges of the keys."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // rows)
    starts = range(low, high + 1, step)
    bins = [sum(counts.get(n, 0) for n in range(first, first + step)) for first in starts]
    lines = []
    for first, number in zip(starts, bins, strict=True):
        label = f"{first}" if step == 1 else f"{first}-{min(first + step - 1, high)}"
        lines.append(f"  {label:>9} {'#' * math.ceil(width * number / max(bins))} {number}")
    return lines


# ---- reading ---------------------------------------------------------------------------------


def load_clip(entry: ClipEntry, config: DataConfig, fps: float) -> Frames:
    """Decode one training clip: `frames_FHW3` at the training rate and size."""
    return np.stack(list(read_pieces([entry], config, fps)))


def read_pieces(entries: Sequence[ClipEntry], config: DataConfig, fps: float) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of consecutive pieces of one file, at the training rate and size.

    The file is read once and to its end. Raises UserError, perhaps after the last frame, if it is
    not whole or has changed since the scan.
    """
    path, source = entries[0].path, entries[0].source
    wanted = np.concatenate([_source_frames(entry, fps) for entry in entries])
    times = np.bincount(wanted, minlength=source.num_frames)
    for frame_HW3, count in zip(video.stream(path, source), times, strict=True):
        if count:
            fitted_FHW3, _ = video.fit(frame_HW3[None], config.size, config.fit)
            yield from itertools.repeat(fitted_FHW3[0], int(count))


def _source_frames(entry: ClipEntry, fps: float) -> NDArray[np.int64]:
    """Which frame of the file is nearest in time to each frame of the clip, ties to the earlier."""
    index = np.arange(entry.start, entry.start + entry.num_frames)
    if not _same_rate(entry.source.fps, fps):
        # The small term keeps exact halves halves under rounding.
        index = np.ceil(index * (entry.source.fps / fps) - 0.5 - 1e-6).astype(np.int64)
    return np.minimum(index, entry.source.num_frames - 1)
