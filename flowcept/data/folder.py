"""A folder of clips: what is found, what is kept, cut or dropped, and why.

``scan`` looks at every clip, as far as can be without decoding it, and finds its caption. What it
says of a file is kept between runs, as long as the file stays as it is.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
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
        """Refuse settings that no clip can meet."""
        if min(self.size) < 1:
            raise UserError(f"size {self.size} is not possible; give positive pixels")
        if not (math.isfinite(self.fps) and self.fps >= 0):
            raise UserError(f"fps {self.fps} is not possible; give a positive rate, or 0 for auto")
        if not 1 <= self.min_frames <= self.max_frames:
            raise UserError(
                f"min_frames {self.min_frames} and max_frames {self.max_frames} leave no length;"
                " they must satisfy 1 <= min_frames <= max_frames"
            )
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
        lines = [
            f"{len(self.findings)} clips found: {found['kept']} kept, {found['cut']} cut, "
            f"{found['dropped']} dropped",
            f"{len(self.entries)} training clips of {total} frames in all, "
            f"{uncaptioned} without a caption",
        ]
        for verdict in ("cut", "dropped"):
            some = [finding for finding in self.findings if finding.verdict == verdict]
            lines += [f"  {finding}" for finding in some[:examples]]
            if len(some) > examples:
                lines.append(f"  ... and {len(some) - examples} more {verdict}")
        rates = Counter(_rate(f.fps) for f in self.findings if f.num_frames > 1)
        found_rates = ", ".join(f"{rate:g} ({n} clips)" for rate, n in sorted(rates.items()))
        lines.append(
            f"training rate {self.fps:g} frames per second; rates found: {found_rates or 'none'}"
        )
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

    fps = config.fps or _common_rate([info for info, _ in looked if isinstance(info, VideoInfo)])
    if not SLOWEST <= fps <= FASTEST:
        raise UserError(f"{folder}: most clips have {fps:g} frames a second, which no file can say "
                        f"({SLOWEST} to {FASTEST}): give --fps")  # fmt: skip
    entries: list[ClipEntry] = []
    findings: list[Finding] = []
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
        if self.store is None:
            return
        text = json.dumps({name: (key, asdict(info)) for name, (key, info) in self.asked.items()})
        try:
            self.store.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self.store}: {error.strerror}") from error
        with video.replacing(self.store) as temporary:
            temporary.write_text(text, encoding="utf-8")


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

    # Threads are enough: the work is done by ffmpeg's processes and by Pillow.
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        looked = []
        for result in pool.map(look, sources):
            looked.append(result)
            if progress:
                progress(len(looked), len(sources))
        return looked
    finally:
        pool.shutdown(cancel_futures=True)


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
        return [_source_of_row(folder, where, row) for where, row in read(lists[0])]
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
    if suffix not in video.VIDEO_SUFFIXES:
        return suffix in video.IMAGE_SUFFIXES
    try:
        return suffix in video.IMAGE_SUFFIXES and probe(path).num_frames == 1
    except UserError:
        return False  # found again, and told, as a clip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


_Row = tuple[str, Mapping[str, object]]  # where it stands, for messages, and its values


def _json_rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: is not an object such as {{"file_name": ..., "text": ...}}')
        yield where, row


def _csv_rows(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        if not set(columns) & set(PATH_KEYS):
            raise UserError(f"{path}, line 1: no column is called {' or '.join(PATH_KEYS)}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: does not have {len(columns)} columns; quote any commas")
            yield where, row
    except csv.Error as error:  # the outer count lags behind
        raise UserError(f"{path}, line {reader.reader.line_num}: is not CSV ({error})") from error


def _paired_rows(path: Path) -> Iterator[_Row]:
    """Rows of videos.txt, each with the same line of prompts.txt beside it."""
    videos = _text(path).rstrip().split("\n")
    prompts = _text(path.with_name("prompts.txt")).removesuffix("\n").split("\n")
    while len(prompts) > len(videos) and not prompts[-1].strip():
        prompts.pop()  # blank lines at the end; within the list they are empty captions
    if len(videos) != len(prompts):
        raise UserError(
            f"{path}, line {min(len(videos), len(prompts)) + 1}: videos.txt has {len(videos)} "
            f"lines and prompts.txt {len(prompts)}; they must match line by line"
        )
    for number, (name, prompt) in enumerate(zip(videos, prompts, strict=True), start=1):
        yield f"{path}, line {number}", {"file_name": name.strip(), "text": prompt}


def _source_of_row(folder: Path, where: str, row: Mapping[str, object]) -> _Source:
    name = next((row[key] for key in PATH_KEYS if key in row), None)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: names no clip; {' or '.join(PATH_KEYS)} must hold a file name")
    caption = next((row[key] for key in CAPTION_KEYS if key in row), "")
    if not isinstance(caption, str | None):
        raise UserError(f"{where}: the caption is not text but {json.dumps(caption)[:40]}")
    path = folder / name.strip()
    if not _lies_in(path, folder):
        raise UserError(f"{where}: {name.strip()!r} leads out of the folder; copy the clip into it")
    return path, " ".join((caption or "").split())


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file, or what a link of that name stands for, is within a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle; a name that no file can have
        return False


# ---- rates and pieces ------------------------------------------------------------------------


def _rate(fps: float) -> float:
    return round(fps, 3)


def _same_rate(a: float, b: float) -> bool:
    return abs(a - b) <= SAME_RATE * max(a, b)


def _common_rate(infos: Iterable[VideoInfo]) -> float:
    """The rate of most moving clips; of two equally common ones the lower, which repeats none."""
    rates = Counter(_rate(info.fps) for info in infos if info.num_frames > 1)
    return max(rates, key=lambda rate: (rates[rate], -rate)) if rates else video.DEFAULT_FPS


def _cut(
    path: Path, caption: str, info: VideoInfo, config: DataConfig, fps: float
) -> tuple[list[ClipEntry], Finding]:
    """The training clips of one file: itself, or pieces that differ by at most one frame."""
    resampled = info.num_frames > 1 and not _same_rate(info.fps, fps)
    total = max(1, math.floor(info.num_frames * fps / info.fps + 0.5)) if resampled else 0
    total = total or info.num_frames
    reason = f"{total} frame{'s' * (total > 1)}"
    if resampled:
        reason += f" at {fps:g} per second, from {info.num_frames} at {info.fps:g}"
    number = -(-total // config.max_frames)
    bounds = [total * piece // number for piece in range(number + 1)]
    spans = [(a, b - a) for a, b in itertools.pairwise(bounds) if b - a >= config.min_frames]
    pieces = [ClipEntry(path, caption, start, length, info) for start, length in spans]
    verdict = "kept"
    if number > 1:
        verdict = "cut"
        shortest, longest = total // number, -(-total // number)
        each = f"{longest}" if shortest == longest else f"{shortest} or {longest}"
        reason += f", over the maximum of {config.max_frames}: {number} pieces of {each}"
    if len(pieces) < number:
        verdict = verdict if pieces else "dropped"
        lost = f"{number - len(pieces)} of them " if number > 1 else ""
        reason += f", {lost}under the minimum of {config.min_frames}"
    return pieces, Finding(path, verdict, reason, info.num_frames, info.fps)


def _histogram(counts: Mapping[int, int], rows: int = 16, width: int = 40) -> list[str]:
    """Bars of text, at most `rows` of them, over equal ranges of the keys."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // rows)
    bins = [sum(counts.get(n, 0) for n in range(a, a + step)) for a in range(low, high + 1, step)]
    lines = []
    for row, number in enumerate(bins):
        first = low + row * step
        label = f"{first}" if step == 1 else f"{first}-{min(first + step - 1, high)}"
        bar = "#" * math.ceil(width * number / max(bins))
        lines.append(f"  {label:>9} {bar} {number}".rstrip())
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
