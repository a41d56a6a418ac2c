"""A folder of clips becomes training data, in three steps that can each be repeated cheaply.

``scan`` looks at every clip without decoding it and decides what is kept, cut or dropped, and
why. ``FrameStore`` decodes each clip once into one memory-mapped file of frames of the training
size; ``LatentStore`` encodes those once into another. Both files may be larger than memory, carry
a key of everything they were made from, and appear under their names only when they are whole.

Shape suffixes: F frames, H height, W width, 3 colours, C channels.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import mimetypes
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept.codecs import to_images
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.process.forward import Process, Target, draw, draw_context
from flowcept.process.state import FrameState
from flowcept.settings import FASTEST, FITS, SLOWEST, ContextMixture

SAME_RATE = 0.002  # relative; 29.97 and 30 frames per second count as one rate (0.001 apart)
CACHE_FORMAT = 1  # part of every key: raise it when the same files would be decoded differently
ENCODE_CHUNK = 64  # frames encoded at once
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
    source_fps: float
    source_frames: int  # of the whole file, at its own rate


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
        lines.append(
            f"training rate {self.fps:g} frames per second; rates found: "
            + (", ".join(f"{r:g} ({n} clips)" for r, n in sorted(rates.items())) or "none")
        )
        return [*lines, "frames per training clip:", *_histogram(self.lengths())]


def scan(folder: Path, config: DataConfig, progress: Progress | None = None) -> Scan:
    """Find the clips and captions of `folder` and decide what can be trained on.

    A file that cannot be used becomes a finding. Raises UserError for a missing folder, for
    malformed lists of captions (with file and line), and if no clip is left.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {problem}; name a folder of clips")
    try:
        sources = _sources(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not sources:
        raise UserError(f"{folder}: no clips here; put videos, images or folders of images into it")
    looked = _look_at_all(sources, progress)
    fps = config.fps or _common_rate([info for info, _ in looked if isinstance(info, _Info)])
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


_Info = video.VideoInfo
_Source = tuple[Path, str | None]  # caption None: it stands in name.txt beside the clip, if at all


def _sources(folder: Path) -> list[_Source]:
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
    return [(path, None) for path in _walk(folder)]


def _walk(folder: Path) -> Iterator[Path]:
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
            yield from [path] if media and all(map(_is_still, media)) else _walk(path)
        elif _is_media(path):
            yield path


def _is_media(path: Path) -> bool:
    """Whether a file claims to be a picture or a video, of a kind that we read or not."""
    kind = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    known = path.suffix.lower() in video.VIDEO_SUFFIXES | video.IMAGE_SUFFIXES
    return not path.name.startswith(".") and (known or kind in {"video", "image"})


def _is_still(path: Path) -> bool:
    """Whether a file is a picture; one in .webp can also be a clip, or damaged and neither."""
    suffix = path.suffix.lower()
    if suffix not in video.VIDEO_SUFFIXES:
        return suffix in video.IMAGE_SUFFIXES
    try:
        return suffix in video.IMAGE_SUFFIXES and video.probe(path).num_frames == 1
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
    return folder / name.strip(), " ".join((caption or "").split())


def _look_at_all(
    sources: Sequence[_Source], progress: Progress | None
) -> list[tuple[_Info | str, str]]:
    """What `video.probe` says of each source, or why it cannot be used; and its caption."""

    def look(source: _Source) -> tuple[_Info | str, str]:
        path, caption = source
        try:
            if not path.exists():
                return "it is named in the list of clips but does not exist", ""
            if caption is None:
                beside = path.with_name(f"{path.name if path.is_dir() else path.stem}.txt")
                caption = " ".join(_text(beside).split()) if beside.is_file() else ""
            info = video.probe(path)
        except (UserError, OSError) as error:
            return _reason(path, error), ""
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


def _reason(path: Path, error: Exception) -> str:
    """An error about a file as one clause after its name."""
    return str(error).replace(f"cannot read {path}", "cannot be read").replace(str(path), "it")


def _rate(fps: float) -> float:
    return round(fps, 3)


def _same_rate(a: float, b: float) -> bool:
    return abs(a - b) <= SAME_RATE * max(a, b)


def _common_rate(infos: Iterable[_Info]) -> float:
    """The rate of most moving clips; of two equally common ones the lower, which repeats none."""
    rates = Counter(_rate(info.fps) for info in infos if info.num_frames > 1)
    return max(rates, key=lambda rate: (rates[rate], -rate)) if rates else video.DEFAULT_FPS


def _cut(
    path: Path, caption: str, info: _Info, config: DataConfig, fps: float
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
    pieces = [
        ClipEntry(path, caption, start, length, info.fps, info.num_frames)
        for start, length in spans
    ]
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


def load_clip(entry: ClipEntry, config: DataConfig, fps: float) -> NDArray[np.uint8]:
    """Decode one training clip: `frames_FHW3` at the training rate and size."""
    return next(_load_pieces([entry], config, fps))


def _load_pieces(
    entries: Sequence[ClipEntry], config: DataConfig, fps: float
) -> Iterator[NDArray[np.uint8]]:
    """Decode the pieces of one file, which is read once."""
    indices = [_source_frames(entry, fps) for entry in entries]
    path, expected = entries[0].path, entries[0].source_frames
    # The whole file, as `scan` saw it: the rate of a part may differ where frames come unevenly.
    source_FHW3, _ = video.read_video(path)
    if len(source_FHW3) != expected:
        raise UserError(f"{path} holds {len(source_FHW3)} frames, not {expected} as when scanned")
    for index in indices:
        yield video.fit(source_FHW3[index], config.size, config.fit)[0]


def _source_frames(entry: ClipEntry, fps: float) -> NDArray[np.int64]:
    """Which frame of the file is nearest in time to each frame of the clip, ties to the earlier."""
    index = np.arange(entry.start, entry.start + entry.num_frames)
    if not _same_rate(entry.source_fps, fps):
        # The small term keeps exact halves halves under rounding.
        index = np.ceil(index * (entry.source_fps / fps) - 0.5 - 1e-6).astype(np.int64)
    return np.minimum(index, entry.source_frames - 1)


class _Store:
    """Clips laid end to end in one memory-mapped array, of which clip i is a run of rows."""

    def __init__(self, array: NDArray[Any], entries: Sequence[ClipEntry], key: str) -> None:
        self.array = array
        self.entries = list(entries)
        self.key = key
        self.captions = [entry.caption for entry in entries]
        self.lengths = [entry.num_frames for entry in entries]
        self.starts = [0, *itertools.accumulate(self.lengths)]
        self.contents = _digest(self.captions, self.lengths)  # wherever the files lie

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.entries)

    def rows(self, i: int) -> NDArray[Any]:
        """A copy of clip i's part of the array."""
        i = range(len(self))[i]
        return np.array(self.array[self.starts[i] : self.starts[i + 1]])


class FrameStore(_Store):
    """The frames of all clips, uint8, decoded once into `cache`/frames.npy.

    A clip that turns out broken only now is left out; `findings` says so. Raises UserError if
    none is left, or if the disk is too small. One process at a time may build a cache.
    """

    def __init__(
        self,
        scan: Scan,
        config: DataConfig,
        cache: Path,
        progress: Progress | None = None,
    ) -> None:
        path = cache / "frames.npy"
        pieces = [
            (str(e.path.absolute()), e.start, e.num_frames, e.source_frames, e.source_fps)
            for e in scan.entries
        ]
        files = [_fingerprint(p) for p in dict.fromkeys(entry.path for entry in scan.entries)]
        key = _digest(CACHE_FORMAT, config, scan.fps, pieces, files)
        cached = _open_cache(path, key)
        if cached is None:
            rows = sum(entry.num_frames for entry in scan.entries)
            _check_space(cache, rows * config.size[0] * config.size[1] * 3)
            note: dict[str, Any] = {"kept": [], "broken": {}}
            _build_cache(path, key, self._decode(scan, config, note, progress), note)
            cached = _open_cache(path, key)
            assert cached is not None, "a cache that was just written can be read"
        array, note = cached
        super().__init__(array, [scan.entries[i] for i in note["kept"]], key)
        found = {str(finding.path): finding for finding in scan.findings}
        self.findings = [
            Finding(Path(name), "dropped", why, found[name].num_frames, found[name].fps)
            for name, why in note["broken"].items()
        ]

    def frames(self, i: int) -> NDArray[np.uint8]:
        """`frames_FHW3` of clip i."""
        return self.rows(i)

    @staticmethod
    def _decode(
        scan: Scan, config: DataConfig, note: dict[str, Any], progress: Progress | None
    ) -> Iterator[NDArray[np.uint8]]:
        total = sum(entry.num_frames for entry in scan.entries)
        done = 0
        numbered = enumerate(scan.entries)
        for path, group in itertools.groupby(numbered, key=lambda pair: pair[1].path):
            numbers, entries = zip(*group, strict=True)
            try:
                # All pieces before the first is stored: a file counts whole or not at all.
                clips = list(_load_pieces(entries, config, scan.fps))
            except UserError as error:
                note["broken"][str(path)] = _reason(path, error)
            else:
                note["kept"] += numbers
                yield from clips
            done += sum(entry.num_frames for entry in entries)
            if progress:
                progress(done, total)
        if not note["kept"]:
            name, why = next(iter(note["broken"].items()))
            raise UserError(f"no clip could be decoded; the first was {name}: {why}")


class Encoder(Protocol):
    """What a cache of latents needs of a codec."""

    @property
    def config(self) -> object:
        """Settings, whose repr tells two codecs apart."""

    def encode(self, image_FCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1], frame by frame."""

    def state_dict(self) -> Mapping[str, Any]:
        """All weights and statistics."""


class LatentStore(_Store):
    """The latents of all clips, float16, encoded once into `cache`/latents.npy.

    `codec` lies on `device`; `dtype` is that of the encoder's arithmetic.
    """

    def __init__(
        self,
        frames: FrameStore,
        codec: Encoder,
        cache: Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> None:
        path = cache / "latents.npy"
        weights = hashlib.sha256()
        for name, tensor in sorted(codec.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            weights.update(flat.view(torch.uint8).numpy().tobytes())
        key = _digest(frames.key, codec.config, weights.hexdigest(), dtype)
        cached = _open_cache(path, key)
        if cached is None:
            blocks = self._encode(frames, codec, torch.device(device), dtype, progress)
            _build_cache(path, key, blocks, {})
            cached = _open_cache(path, key)
            assert cached is not None, "a cache that was just written can be read"
        super().__init__(cached[0], frames.entries, key)

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""
        return torch.from_numpy(self.rows(i)).float()

    @staticmethod
    @torch.no_grad()
    def _encode(
        frames: FrameStore,
        codec: Encoder,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None,
    ) -> Iterator[NDArray[np.float16]]:
        total = len(frames.array)
        for start in range(0, total, ENCODE_CHUNK):
            images = to_images(frames.array[start : start + ENCODE_CHUNK]).to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                latent_FCHW = codec.encode(images).half()
            if not latent_FCHW.isfinite().all():
                raise UserError("the codec gave values that are not finite; train it again")
            yield latent_FCHW.cpu().numpy()
            if progress:
                progress(min(start + ENCODE_CHUNK, total), total)


def split_held_out(
    n: int, fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """Split `range(n)` into clips to train on and about `fraction` * n clips to hold out.

    Clips of one group, say the pieces of one file, stay together. Whatever the fraction above 0,
    at least one group is held out if there are two, and at least one is always trained on.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"a held-out share of {fraction} is not possible; give 0 to under 1")
    labels = list(range(n)) if groups is None else list(groups)
    assert len(labels) == n, "one group per clip"
    names = list(dict.fromkeys(labels))
    count = min(max(math.floor(len(names) * fraction + 0.5), fraction > 0), max(len(names) - 1, 0))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[:count]}
    return (
        [i for i, label in enumerate(labels) if label not in held],
        [i for i, label in enumerate(labels) if label in held],
    )


class Clips(Protocol):
    """What a training step draws from: latents with their captions."""

    captions: list[str]
    lengths: list[int]

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""


MOST_REFUSALS = 2000  # in a row; where one draw in 100 fits, as many happen once in 5e8


@dataclass(frozen=True)
class Batch:
    """Clips part of the way through, ready for one training step."""

    pairs: tuple[tuple[FrameState, Target], ...]  # one clip each
    prompts: tuple[str, ...]
    taken: int  # clips drawn from the data, those that taught nothing included


def draw_batch(
    clips: Clips,
    order: Sequence[int],
    *,
    seed: int,
    step: int,
    cursor: int,
    tokens: int,
    tokens_per_frame: int,
    least: int,
    process: Process,
    mixture: ContextMixture,
    prompt_dropout: float,
    given_prompt_dropout: float,
    context_dropout: float,
) -> Batch:
    """The batch of one step: clips in shuffled order until ``tokens`` are reached.

    A function of its arguments alone, so that training continues exactly. ``order`` are the clips
    to draw from, ``cursor`` is how many were drawn before; every pass over them is shuffled anew.
    At least ``least`` clips are in a batch. A clip with given frames has its own share without a
    prompt: where the words always say who is seen, nothing is learned from the frames. The tokens
    of a clip are those of its visible frames and of its own row.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, 1, step))
    pairs: list[tuple[FrameState, Target]] = []
    prompts: list[str] = []
    taken, size, epoch, shuffled = 0, 0, -1, torch.zeros(0)
    last = 0  # clips drawn when a pair was last found
    while size < tokens or len(pairs) < least:
        if taken - last == MOST_REFUSALS:
            raise UserError(
                f"{MOST_REFUSALS} clips in a row fit no context: give --context-dropout, or the "
                "context none, more weight"
            )
        position = cursor + taken
        if position // len(order) != epoch:
            epoch = position // len(order)
            shuffle = torch.Generator().manual_seed(_mixed(seed, 0, epoch))
            shuffled = torch.randperm(len(order), generator=shuffle)
        clip = order[int(shuffled[position % len(order)])]
        taken += 1
        drop_prompt, drop_context = torch.rand(2, generator=generator).tolist()
        length = clips.lengths[clip]
        context: list[bool] | None = [False] * length
        if drop_context >= context_dropout:
            context = draw_context(length, mixture, generator)
        if context is None:
            continue
        pair = draw(clips.latent(clip), context, process, generator)
        if pair is None:
            continue
        last = taken
        pairs.append(pair)
        dropout = given_prompt_dropout if any(context) else prompt_dropout
        prompts.append("" if drop_prompt < dropout else clips.captions[clip])
        size += (pair[0].lengths[0] + 1) * tokens_per_frame
    return Batch(tuple(pairs), tuple(prompts), taken)


def split_batch(batch: Batch, tokens: int, tokens_per_frame: int) -> list[list[int]]:
    """Clips of a batch in parts of at most ``tokens`` each (one clip at least)."""
    parts: list[list[int]] = []
    size = 0
    for clip, (state, _) in enumerate(batch.pairs):
        own = (state.lengths[0] + 1) * tokens_per_frame
        if not parts or size + own > tokens:
            parts.append([])
            size = 0
        parts[-1].append(clip)
        size += own
    return parts


def _mixed(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring ones have nothing in common."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _fingerprint(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of each file in a folder of images."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in inside if file.exists()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _check_space(cache: Path, needed: int) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise UserError(f"{cache}: cannot be written to ({error.strerror})") from error
    if needed > free:
        raise UserError(
            f"{cache}: the frames need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB;"
            " free some, or use fewer clips or a smaller size"
        )


def _open_cache(path: Path, key: str) -> tuple[NDArray[Any], dict[str, Any]] | None:
    """The array and its note, or None unless both are whole and belong to `key`."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if note["key"] != key:
            return None
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (array, note) if len(array) == note["rows"] else None


def _build_cache(
    path: Path, key: str, blocks: Iterable[NDArray[Any]], note: dict[str, Any]
) -> None:
    """Write blocks of rows one after another, then the note, which makes the array valid.

    Plain writes, not a writable memory map: a full disk is then an error, not a crash.
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.npy")
    rows = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.stem}-*.npy"):  # left by a killed process
            if time.time() - stale.stat().st_mtime > 3600:  # a living one writes all the time
                stale.unlink()
        with temporary.open("wb") as file:
            for block in blocks:
                if rows == 0:
                    _write_header(file, block, 0)
                file.write(np.ascontiguousarray(block).data)
                rows += len(block)
            file.seek(0)
            _write_header(file, block, rows)
        # The old note goes first: at no moment does a note stand beside an array of other origin.
        path.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(path)
        temporary.write_text(json.dumps({"key": key, "rows": rows, **note}), encoding="utf-8")
        temporary.replace(path.with_suffix(".json"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_header(file: BinaryIO, block: NDArray[Any], rows: int) -> None:
    """The head of an .npy file; numpy pads it so that its length does not depend on `rows`."""
    header = np.lib.format.header_data_from_array_1_0(block)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *block.shape[1:])})
