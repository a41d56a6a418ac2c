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
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import multimode
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowcept.data import video
from flowcept.data.timing import DEFAULT_FPS, Timing
from flowcept.data.video import Frames
from flowcept.errors import UserError, counted
from flowcept.files import replacing
from flowcept.settings import FASTEST, SLOWEST, DataSettings, from_mapping, shown

SAME_RATE = 0.002  # relative; 29.97 and 30 frames per second count as one rate (0.001 apart)
PROBE_FORMAT = 2  # of what is kept of files: raise it when `probe` would say something else
PATH_KEYS = ("file_name", "video", "path")
CAPTION_KEYS = ("caption", "text", "prompt")
CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # of other programs; only .txt is read

Progress = Callable[[int, int], None]  # called with (done, total)


@dataclass(frozen=True)
class ClipEntry:
    """One clip, or one piece of a cut clip, to train on."""

    path: Path
    caption: str
    start: int  # first frame, counted at the training rate
    num_frames: int  # at the training rate
    source: Timing  # the whole file, at its own rate


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
    settings: DataSettings

    @property
    def num_frames(self) -> int:
        """Of all training clips."""
        return sum(entry.num_frames for entry in self.entries)

    def lengths(self) -> dict[int, int]:
        """How many training clips have each number of frames, shortest first."""
        return dict(sorted(Counter(entry.num_frames for entry in self.entries).items()))

    def summary(self, examples: int = 5) -> list[str]:
        """Lines for people: counts, reasons with some examples, rates, a histogram of lengths."""
        verdicts = Counter(finding.verdict for finding in self.findings)
        became = ", ".join(f"{verdicts[one]} {one}" for one in ("kept", "cut", "dropped"))
        clips = f"{len(self.entries)} training clips of {self.num_frames} frames in all"
        uncaptioned = sum(not entry.caption for entry in self.entries)
        lines = [f"{len(self.findings)} clips found: {became}"]
        lines += [f"{clips}, {uncaptioned} without a caption"]
        for verdict in ("cut", "dropped"):
            some = [f"  {finding}" for finding in self.findings if finding.verdict == verdict]
            lines += some[:examples]
            if len(some) > examples:
                lines.append(f"  ... and {len(some) - examples} more {verdict}")
        rates = Counter(round(f.fps, 3) for f in self.findings if f.num_frames > 1)
        listed = ", ".join(f"{rate:g} ({n} clips)" for rate, n in sorted(rates.items())) or "none"
        lines += [f"training rate {self.fps:g} frames per second; rates found: {listed}"]
        return [*lines, "frames per training clip:", *_histogram(self.lengths())]


def scan(
    folder: Path,
    settings: DataSettings,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Scan:
    """Find the clips and captions of `folder` and decide what can be trained on.

    A file that cannot be used becomes a finding. `cache` is a folder that keeps what was found in
    files for the next time. Raises UserError for a missing folder, for malformed lists of captions
    (with file and line), and if no clip is left.
    """
    seen = look(folder, progress, cache)
    fps = settings.fps or _common_rate(folder, seen)
    pieces, findings = zip(*(_cut(one, settings, fps) for one in seen), strict=True)
    entries = tuple(itertools.chain(*pieces))
    if not entries:
        raise unusable(folder, findings)
    return Scan(entries, findings, fps, settings)


def caption_notes(folder: Path, scan: Scan) -> list[str]:
    """Lines that name the clips without a caption, and files that look like captions, unread."""
    clips = {finding.path for finding in scan.findings}
    bare = dict.fromkeys(entry.path for entry in scan.entries if not entry.caption)
    lines = [f"no caption: {path}" for path in bare]
    read = set() if _list_in(folder) else {_beside(path) for path in clips}
    for parent in sorted({path.parent for path in clips}):
        stems = tuple(f"{path.stem}.".lower() for path in clips if path.parent == parent)
        for file in sorted(set(parent.iterdir()) - read):
            if file.suffix.lower() in CAPTION_SUFFIXES and file.name.lower().startswith(stems):
                lines.append(f"not read: {file}: the caption of NAME.mp4 must be in NAME.txt")
    return lines


def look(folder: Path, progress: Progress | None = None, cache: Path | None = None) -> list["Seen"]:
    """What each file of a folder is, in the order in which they are found; as for ``scan``."""
    probe = _Probe(cache / "scan.json" if cache else None)
    seen = _look_at_all(_sources(folder, probe), probe, progress)
    probe.keep()
    return seen


def unusable(folder: Path, findings: Sequence[Finding]) -> UserError:
    """That no clip is left, and the commonest reasons."""
    reasons = Counter(finding.reason for finding in findings).most_common(3)
    detail = "; ".join(f"{number} x {reason}" for reason, number in reasons)
    return UserError(f"{folder}: none of its {len(findings)} clips can be used: {detail}")


def digest_of(*parts: object) -> str:
    """A key for what is made from `parts`, by their repr."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fingerprint(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of each file in a folder of images."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in inside if file.exists()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def digest_of_files(paths: Iterable[Path]) -> str:
    """Names files by their names and sizes, wherever they lie and whenever they were copied."""
    found = [(name, size) for path in set(paths) for name, size, _ in fingerprint(path)]
    return digest_of(sorted(found))


class _Probe:
    """`video.probe`, whose answers may be kept in a small JSON file until a file changes."""

    def __init__(self, store: Path | None) -> None:
        self.store = store
        self.known: dict[str, Any] = {}  # by a digest of path and file
        with suppress(OSError, ValueError):
            kept = json.loads(store.read_text(encoding="utf-8")) if store else {}
            self.known = kept if isinstance(kept, dict) else {}

    def __call__(self, path: Path) -> Timing:
        key = digest_of(PROBE_FORMAT, str(path.absolute()), fingerprint(path))
        if key not in self.known:
            self.known[key] = asdict(video.probe(path))
        return from_mapping(Timing, self.known[key])

    def keep(self) -> None:
        if self.store is not None:
            with replacing(self.store) as temporary:
                self.store.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(self.known), encoding="utf-8")


class Seen(NamedTuple):
    """A file, its caption, and how it plays or why it cannot be used."""

    path: Path
    caption: str
    found: Timing | str


def _look_at_all(
    sources: Sequence["_Source"], probe: _Probe, progress: Progress | None
) -> list[Seen]:
    seen = []
    # Threads are enough: the work is done by ffmpeg's processes and by Pillow.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(lambda source: _look(probe, *source), sources):
            seen.append(one)
            if progress:
                progress(len(seen), len(sources))
    return seen


def _look(probe: _Probe, path: Path, caption: str | None) -> Seen:
    try:
        if not path.exists():
            return Seen(path, "", "it is named in the list of clips but does not exist")
        if caption is None:
            beside = _beside(path)
            caption = " ".join(_text(beside).split()) if beside.is_file() else ""
        return Seen(path, caption, probe(path))
    except (UserError, OSError) as error:
        return Seen(path, "", reason_of(path, error))


def _beside(path: Path) -> Path:
    """Where the caption of a clip stands that no list names."""
    return _existing(path.parent, f"{path.name if path.is_dir() else path.stem}.txt")


def _existing(folder: Path, name: str) -> Path:
    """A file in a folder, whether letters with accents are one character or two on the disk."""
    path = folder
    for part in Path(name).parts:
        inner = path / part
        if not inner.exists() and not part.isascii() and path.is_dir():
            composed = unicodedata.normalize("NFC", part)
            named = (one for one in path.iterdir() if _composed(one) == composed)
            inner = next(named, inner)
        path = inner
    return path


def _composed(path: Path) -> str:
    """The last part of a path, each letter with its accents as one character."""
    return unicodedata.normalize("NFC", path.name)


def reason_of(path: Path, error: Exception) -> str:
    """An error about a file as one clause after its name."""
    return str(error).replace(f"cannot read {path}", "cannot be read").replace(str(path), "it")


_Source = tuple[Path, str | None]  # caption None: it stands in name.txt beside the clip, if at all


def _sources(folder: Path, probe: _Probe) -> list[_Source]:
    """Every clip of `folder` with its caption; where a list names the clips, only those."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {problem}; name a folder of clips")
    sources: list[_Source]
    try:
        if listed := _list_in(folder):
            sources = [_source_of_row(listed, *row) for row in _READERS[listed.name](listed)]
        else:
            sources = [(path, None) for path in _walk(folder, probe, set())]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not sources:
        raise UserError(f"{folder}: no clips here; put videos, images or folders of images into it")
    return sources


def _list_in(folder: Path) -> Path | None:
    """The file that names the clips of a folder, if there is one."""
    lists = [path for name in _READERS if (path := folder / name).is_file()]
    if len(lists) > 1:
        raise UserError(f"{folder}: {lists[0].name} and {lists[1].name} both name clips; keep one")
    if not lists and (folder / "prompts.txt").is_file():
        raise UserError(f"{folder}: prompts.txt needs videos.txt beside it, one clip per line")
    return lists[0] if lists else None


def _walk(folder: Path, probe: _Probe, seen: set[Path]) -> Iterator[Path]:
    """Clips of a folder: media files and sub-folders of numbered frames.

    Links are followed, each real folder once: they could lead round in circles. The folder of a
    training run, which may lie among the clips, holds none.
    """
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if _is_frames(path, probe):
            yield path
        elif path.is_dir():
            if not (path / "config.toml").is_file():
                yield from _walk(path, probe, seen)
        elif _is_media(path):
            yield path


def _is_frames(path: Path, probe: _Probe) -> bool:
    """Whether a folder is one clip: pictures whose names differ in numbers, without captions."""
    media = [inner for inner in path.iterdir() if _is_media(inner)] if path.is_dir() else []
    names = {re.sub(r"\d+", "0", inner.name.lower()) for inner in media}
    if (
        len(names) != 1
        or "0" not in names.pop()
        or any(_beside(inner).is_file() for inner in media)
    ):
        return False
    return all(_is_still(inner, probe) for inner in media)


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


def _fault(path: Path, line: int, text: str) -> UserError:
    return UserError(f"{path}, line {line}: {text}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _fault(path, line, "is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


_Rows = Iterator[tuple[int, object]]  # lines and their values


def _json_rows(path: Path) -> _Rows:
    for line, text in enumerate(_text(path).split("\n"), start=1):
        try:
            if text.strip():
                yield line, json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _fault(path, line, f"is not JSON ({error}); write one object per line") from error


def _csv_rows(path: Path) -> _Rows:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(lines, [])]
        if not set(columns) & set(PATH_KEYS):
            raise _fault(path, 1, f"no column is called {' or '.join(PATH_KEYS)}")
        for values in filter(None, lines):
            if len(values) != len(columns):
                text = f"does not have {len(columns)} columns; quote any commas"
                raise _fault(path, lines.line_num, text)
            yield lines.line_num, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise _fault(path, lines.line_num, f"is not CSV ({error})") from error


def _paired_rows(path: Path) -> _Rows:
    """Rows of videos.txt, each with the same line of prompts.txt beside it."""
    videos = _text(path).rstrip().split("\n")
    prompts = _text(path.with_name("prompts.txt")).removesuffix("\n").split("\n")
    while len(prompts) > len(videos) and not prompts[-1].strip():
        prompts.pop()  # blank lines at the end; within the list they are empty captions
    if len(videos) != len(prompts):
        found = f"videos.txt has {len(videos)} lines and prompts.txt {len(prompts)}"
        line = min(len(videos), len(prompts)) + 1
        raise _fault(path, line, f"{found}; they must match line by line")
    for line, (name, prompt) in enumerate(zip(videos, prompts, strict=True), start=1):
        yield line, {"file_name": name, "text": prompt}


_READERS = {"metadata.jsonl": _json_rows, "metadata.csv": _csv_rows, "videos.txt": _paired_rows}


def _source_of_row(path: Path, line: int, row: object) -> _Source:
    """The clip that a line of a list names, which must lie in the list's folder."""
    if not isinstance(row, dict):
        raise _fault(path, line, 'is not an object such as {"file_name": ..., "text": ...}')
    name = next((row[key] for key in PATH_KEYS if key in row), None)
    if not isinstance(name, str) or not name.strip():
        raise _fault(path, line, f"names no clip; {' or '.join(PATH_KEYS)} must hold a file name")
    caption = next((row[key] for key in CAPTION_KEYS if key in row), "")
    if not isinstance(caption, str | None):
        raise _fault(path, line, f"the caption is not text but {json.dumps(caption)[:40]}")
    clip, inside = path.parent / name.strip(), False
    with suppress(OSError, RuntimeError, ValueError):  # links in a circle; a name that none can be
        clip = _existing(path.parent, name.strip())
        inside = clip.resolve().is_relative_to(path.parent.resolve())
    if not inside:
        text = f"{shown(name.strip())} leads out of the folder; copy the clip into it"
        raise _fault(path, line, text)
    return clip, " ".join((caption or "").split())


def _same_rate(a: float, b: float) -> bool:
    return abs(a - b) <= SAME_RATE * max(a, b)


def _common_rate(folder: Path, seen: Sequence[Seen]) -> float:
    """The most common rate of moving clips; of several the lowest, which repeats no frame."""
    clips = [one.found for one in seen if isinstance(one.found, Timing)]
    common = multimode(round(clip.fps, 3) for clip in clips if clip.num_frames > 1)
    fps = min(common, default=DEFAULT_FPS)
    if not SLOWEST <= fps <= FASTEST:
        found = f"{folder}: most clips have {fps:g} frames a second"
        raise UserError(f"{found}, which no file can have ({SLOWEST} to {FASTEST}): give --fps")
    return fps


def _cut(seen: Seen, settings: DataSettings, fps: float) -> tuple[list[ClipEntry], Finding]:
    """The training clips of one file: itself, or pieces that differ by at most one frame."""
    path, caption, found = seen
    if isinstance(found, str):
        return [], Finding(path, "dropped", found, 0, 0.0)
    total, said = found.num_frames, ""
    if total > 1 and not _same_rate(found.fps, fps):
        total = math.floor(total * fps / found.fps + 0.5) or 1
        said = f" at {fps:g} per second, from {found.num_frames} at {found.fps:g}"
    spans, reason = _spans(total, settings, said)
    pieces = [ClipEntry(path, caption, *span, found) for span in spans]
    verdict = "dropped" if not spans else "cut" if total > settings.max_frames else "kept"
    return pieces, Finding(path, verdict, reason, found.num_frames, found.fps)


def _spans(total: int, settings: DataSettings, said: str) -> tuple[list[tuple[int, int]], str]:
    """First frame and length of the pieces of so many frames, and how they came about."""
    number = -(-total // settings.max_frames)
    bounds = [total * piece // number for piece in range(number + 1)]
    spans = [(a, b - a) for a, b in itertools.pairwise(bounds) if b - a >= settings.min_frames]
    reason = f"{counted(total, 'frame')}{said}"
    if number > 1:
        each = " or ".join(map(str, sorted({total // number, -(-total // number)})))
        reason += f", over the maximum of {settings.max_frames}: {number} pieces of {each}"
    if len(spans) < number:
        lost = f"{number - len(spans)} of them " if number > 1 else ""
        reason += f", {lost}under the minimum of {settings.min_frames}"
    return spans, reason


def _histogram(counts: Mapping[int, int], rows: int = 16, width: int = 40) -> list[str]:
    """Bars of text, at most `rows` of them, over equal ranges of the keys."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // rows)
    bins = dict.fromkeys(range(low, high + 1, step), 0)
    for key, count in counts.items():
        bins[key - (key - low) % step] += count
    lines = []
    for first, count in bins.items():
        label = f"{first}" if step == 1 else f"{first}-{min(first + step - 1, high)}"
        bar = "#" * math.ceil(width * count / max(bins.values()))
        lines.append(f"  {label:>9} {bar} {count}")
    return lines


def load_clip(scan: Scan, entry: ClipEntry) -> Frames:
    """One training clip `[F, H, W, 3]` at the training rate and size."""
    return np.stack(list(read_pieces(scan, [entry])))


def read_pieces(scan: Scan, entries: Sequence[ClipEntry]) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of consecutive pieces of one file, at the training rate and size.

    The file is read once and to its end. Raises UserError, perhaps after the last frame, if it is
    not whole or has changed since the scan.
    """
    source, settings = entries[0].source, scan.settings
    wanted = np.concatenate([_source_frames(entry, scan.fps) for entry in entries])
    times = np.bincount(wanted, minlength=source.num_frames)
    for frame_HW3, count in zip(video.stream(entries[0].path, source), times, strict=True):
        if count:
            fitted_FHW3, _ = video.fit(frame_HW3[None], settings.frame_size, settings.fit)
            yield from itertools.repeat(fitted_FHW3[0], int(count))


def _source_frames(entry: ClipEntry, fps: float) -> NDArray[np.int64]:
    """Which frame of the file is nearest in time to each frame of the clip, ties to the earlier."""
    index = np.arange(entry.start, entry.start + entry.num_frames)
    if not _same_rate(entry.source.fps, fps):
        # The small term keeps exact halves halves under rounding.
        index = np.ceil(index * (entry.source.fps / fps) - 0.5 - 1e-6).astype(np.int64)
    return np.minimum(index, entry.source.num_frames - 1)
