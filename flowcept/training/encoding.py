"""Encode clips and captions into shards, once, by one process or by several that share the work.

The index comes first. It depends only on clips, encoders and settings, so that all processes and
later calls make the same shards. Then captions are encoded, then clips, shard by shard; only one of
the two encoders is in memory at a time.

Shape suffixes: F pictures or latents, C H W a latent, 3 colours.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowcept import diffusers_folder, model_file
from flowcept.adapters import base_of, digest
from flowcept.codecs import Codec, to_images
from flowcept.codecs.pretrained import read_config
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.data.buckets import Size, cropped, family, nearest
from flowcept.data.claims import in_turn, shared_out
from flowcept.data.encoded import (
    INDEX,
    CodecRecord,
    DamagedError,
    EncodedClip,
    Index,
    TextRecord,
    digest_of_codec,
    header_of,
    keyframes_of,
    named,
    read_index,
    write_index,
    write_shard,
)
from flowcept.data.folder import ClipEntry, Finding, Scan
from flowcept.data.shards import trimmed
from flowcept.data.timing import Timing
from flowcept.data.video import Frames
from flowcept.device import autocast
from flowcept.errors import UserError, counted
from flowcept.models import find
from flowcept.networks.text import PromptEncoder, build_encoder
from flowcept.settings import (
    DataSettings,
    EncodeSettings,
    PlainMachineSettings,
    TextSettings,
)
from flowcept.training.console import Console
from flowcept.training.distributed import pick
from flowcept.training.parts import text_config
from flowcept.training.stored import codec_at

LOCK, SCAN = "index.lock", "scan.json"  # beside the index
PROMPTS_AT_ONCE = 8
REBUILT = 64  # clips, evenly spread, a picture of each of which tells how well the codec does
USUAL_FRAMES = 64  # of the longest clip where neither the settings nor the codec's model say
EXAMPLES = 5  # files that a summary names


@dataclass(frozen=True)
class Source:
    """The codec that makes latents, and the defaults for clips."""

    place: Path  # of the codec: a folder of diffusers or a model file
    files: str  # a digest that identifies its files, for a folder
    size: Size | None
    frames: int
    step: int  # pixels: sides are multiples of it
    several: bool  # whether clips get several sizes


def source_of(name: str) -> Source:
    """The codec that a user names; ``UserError`` if there is none."""
    found = find(name, part="vae")
    if not found.is_folder and model_file.read_card(found.path).base is not None:
        found = base_of(found.path)
    folder = found.path
    if (folder / "model_index.json").is_file():
        usual = diffusers_folder.usual(folder)
        place = (folder / "vae").resolve()
        size, frames, step = usual.size, usual.pictures, usual.step
        return Source(place, digest(folder, "vae"), size, frames, step, several=True)
    if found.is_folder:
        inside = folder / "vae" if (folder / "vae").is_dir() else folder
        place, step = inside.resolve(), read_config(inside).compression
        files = digest(place.parent, place.name)
        return Source(place, files, None, USUAL_FRAMES, step, several=True)
    path = folder.resolve()
    card = model_file.read_card(path)
    frames = card.codec.pictures_of(card.max_length)
    step = card.codec.compression * getattr(card.network, "patch", 1)
    return Source(path, "", None if card.any_size else card.size, frames, step, several=False)


def text_of(name: str) -> TextRecord | None:
    """The frozen prompt encoder that a user names; None if no name is given."""
    if not name:
        return None
    found = find(name, part="text_encoder")
    if not found.is_folder:
        card = model_file.read_card(found.path)
        if card.base is None:
            raise UserError(f"{name} has no pretrained prompt encoder: leave out --text")
        found = base_of(found.path)
    folder = found.path
    if not (folder / "model_index.json").is_file():
        return TextRecord(text_config(TextSettings(text_source=str(folder.resolve()))), "")
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no folder {part}: give a whole diffusers folder")
    config = replace(diffusers_folder.usual(folder).text, source=found.source)
    return TextRecord(config, digest(folder, "text_encoder"))


@dataclass(frozen=True)
class Job:
    """One call of ``encode``: what to encode, and on which device."""

    folder: Path  # of clips
    out: Path
    settings: EncodeSettings
    source: Source
    text: TextRecord | None
    device: torch.device
    dtype: torch.dtype
    console: Console


def encode(
    folder: Path,
    out: Path,
    settings: EncodeSettings,
    *,
    quiet: bool = False,
    console: Callable[[str], None] = print,
) -> Index:
    """Encode a folder of clips into a folder of shards; continue if an earlier call was stopped.

    Several processes may do so at once; each returns when all shards are finished. Raises
    ``UserError`` for unusable clips or settings, and for a folder that holds anything but shards of
    these clips by these encoders.
    """
    device, dtype = pick(PlainMachineSettings(device=settings.device, dtype=settings.dtype))
    source, text = source_of(settings.codec), text_of(settings.text)
    job = Job(folder, out, settings, source, text, device, dtype, Console(console, quiet))
    scan, index = _planned(job)
    if job.text is not None:
        _encode_prompts(job, index, job.text)
    _encode_clips(job, index, scan)
    job.console.say(*_result(job, index))
    return index


# ---- the index -------------------------------------------------------------------------------


def _planned(job: Job) -> tuple[Scan, Index]:
    """The clips, and the index of their shards, made if it is missing."""
    settings, out = _reading(job), job.out
    _check_folder(out)
    with in_turn(out / LOCK):
        try:
            scan = data.scan(job.folder, settings, job.console.progress("reading", "clip"), out)
            made_of = _made_of(job, scan)
            if not (out / INDEX).exists():
                write_index(_new_index(job, scan, made_of), out)
            index = read_index(out)
            _check_same(index, made_of, out)
        except UserError:
            _leave(out)
            raise
        _mend(job, index)
    return scan, index


def _reading(job: Job) -> DataSettings:
    """How clips are read: at the size or area of the settings, else of the codec."""
    own, source = job.settings, job.source
    asked = own.size or ("" if own.buckets == "none" else own.buckets)
    if not asked and source.size is None:
        raise UserError(
            f"{own.codec} has no default size: give --size WIDTHxHEIGHT or --buckets AREA"
        )
    size = asked or named(source.size or (0, 0))
    frames = max(own.max_frames or source.frames, own.min_frames)
    settings = DataSettings(size, own.fps, own.min_frames, frames, own.fit)
    if not _several(job):
        diffusers_folder.check_grid(settings.frame_size, source.step)
    return settings


def _several(job: Job) -> bool:
    """Whether clips get several sizes."""
    own = job.settings
    wanted = own.buckets != "none" and (job.source.several or own.buckets != "")
    return wanted and not own.size


def _buckets(job: Job, size: Size) -> tuple[Size, ...]:
    """The sizes that clips may get."""
    return family(size, job.source.step) if _several(job) else (size,)


def _check_folder(out: Path) -> None:
    """Make the folder; ``UserError`` if that fails or it holds something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in out.iterdir()}
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    if INDEX not in inside and inside - {LOCK, SCAN} and not _is_temporary(inside):
        raise UserError(f"{out} holds other files: give the shards a folder of their own")


def _is_temporary(names: set[str]) -> bool:
    """Whether a file is one that a process was still writing, perhaps when it was killed."""
    return all(name in (LOCK, SCAN) or name.startswith(".") for name in names)


def _leave(out: Path) -> None:
    """Remove the folder if it holds nothing of use."""
    if not (out / INDEX).exists():
        with suppress(OSError):
            for name in (LOCK, SCAN):
                (out / name).unlink(missing_ok=True)
            out.rmdir()


def _made_of(job: Job, scan: Scan) -> dict[str, str]:
    """Digests, by name, of all that decides the content of the shards, without paths."""
    pieces = [
        (_name(job, one), one.caption, one.start, one.num_frames, one.source)
        for one in scan.entries
    ]
    files = [data.fingerprint(path) for path in dict.fromkeys(one.path for one in scan.entries)]
    own, text = scan.settings, job.text
    parts: dict[str, object] = {
        "clips or captions": (pieces, files),
        "--codec": job.source.files or digest_of_codec(codec_at(job.source.place)),
        "--text": text and (replace(text.config, source=""), text.files),
        "sizes": _buckets(job, own.frame_size),
        "--fit": own.fit,
        "--shard-clips": job.settings.shard_clips,
        "--dtype": job.dtype,
    }
    return {name: data.digest_of(value) for name, value in parts.items()}


def _name(job: Job, entry: ClipEntry) -> str:
    return entry.path.relative_to(job.folder).as_posix()


def _check_same(index: Index, made_of: Mapping[str, str], out: Path) -> None:
    """``UserError`` if the shards are of other clips or were made with other settings."""
    differing = [name for name, value in made_of.items() if index.made_of.get(name) != value]
    if differing:
        raise UserError(
            f"{out} holds shards made with other {', '.join(differing)}: use the same, or another "
            "folder"
        )


def _new_index(job: Job, scan: Scan, made_of: dict[str, str]) -> Index:
    """The index of what is to be encoded; prints a summary of the clips."""
    codec, settings = codec_at(job.source.place), scan.settings
    config, sizes = codec.config, _sizes(job, scan)
    job.console.say(
        *scan.summary(), *_bucket_lines(sizes), *_examples(trimmed(scan.entries, config))
    )
    clips = [
        EncodedClip(
            _name(job, entry),
            entry.caption,
            entry.start,
            config.pictures_of(config.latents_of(entry.num_frames)),
            *sizes[entry.path].bucket,
        )
        for entry in scan.entries
    ]
    return Index(
        made_of=made_of,
        dataset=job.folder.resolve().name,
        dtype=str(job.dtype).removeprefix("torch."),
        fps=scan.fps,
        fit=settings.fit,
        max_frames=settings.max_frames,
        min_frames=settings.min_frames,
        shard_clips=job.settings.shard_clips,
        codec=CodecRecord(config, str(job.source.place), job.source.files, digest_of_codec(codec)),
        text=job.text,
        clips=tuple(clips),
    )


@dataclass(frozen=True)
class Chosen:
    """The size that a file's clips get, and the share of each picture that is cropped."""

    bucket: Size
    cropped: float


def _sizes(job: Job, scan: Scan) -> dict[Path, Chosen]:
    """The size of each file's clips."""
    buckets = _buckets(job, scan.settings.frame_size)
    files = {entry.path: entry.source for entry in scan.entries}
    if len(buckets) == 1:
        return dict.fromkeys(files, Chosen(buckets[0], 0.0))
    show, chosen = job.console.progress("sizes", "clip"), dict[Path, Chosen]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, own in zip(files, pool.map(size_of, files, files.values()), strict=True):
            bucket = nearest(own, buckets)
            chosen[path] = Chosen(bucket, cropped(own, bucket))
            show(len(chosen), len(files))
    return chosen


def size_of(path: Path, timing: Timing) -> Size:
    """Height and width of a clip; 1, 1 if it cannot be read, which is reported later."""
    with suppress(UserError):
        height, width = next(video.stream(path, timing)).shape[:2]
        return height, width
    return 1, 1


def _bucket_lines(sizes: Mapping[Path, Chosen]) -> Iterator[str]:
    """How many files each size got, and how much of them is cropped."""
    for bucket, number in Counter(one.bucket for one in sizes.values()).most_common():
        lost = [one.cropped for one in sizes.values() if one.bucket == bucket]
        crop = f"{sum(lost) / len(lost):.0%} cropped on average, {max(lost):.0%} at most"
        yield f"size {named(bucket)}: {counted(number, 'file')}, {crop}"


def _examples(findings: Sequence[Finding]) -> Iterator[str]:
    """The first of some findings, and how many more there are."""
    yield from (f"  {finding}" for finding in findings[:EXAMPLES])
    if len(findings) > EXAMPLES:
        yield f"  ... and {len(findings) - EXAMPLES} more clips whose last frames are cut off"


def _mend(job: Job, index: Index) -> None:
    """Delete damaged shards, which are then made again."""
    there = 0
    names = [*index.prompt_shards(), *index.clip_shards()]
    for path in [job.out / name for name in names if (job.out / name).exists()]:
        try:
            header_of(path, index)
            there += 1
        except DamagedError:
            job.console.say(f"note: {path} is damaged and is made again")
            path.unlink()
    if there:
        job.console.say(f"{there} of {len(names)} shards exist already")


# ---- the work --------------------------------------------------------------------------------


def _encode_prompts(job: Job, index: Index, text: TextRecord) -> None:
    """Write the missing shards of captions."""
    shards = index.prompt_shards()
    show = _bar(job, "prompts", "prompt", {name: len(part) for name, part in shards.items()})

    @cache
    def encoder() -> PromptEncoder:
        folder = find(text.config.source, part="text_encoder").path
        return build_encoder(text.config, folder).to(job.device, job.dtype)

    def make(path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        prompts = shards[path.name]
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            some = prompts[start : start + PROMPTS_AT_ONCE]
            said = encoder()(some)
            parts = said.token_SD.split(list(said.lengths))
            tensors |= {
                str(index.prompts[prompt]): _finite(part_RD.to(job.dtype), "the prompt encoder")
                for prompt, part_RD in zip(some, parts, strict=True)
            }
            show(len(tensors))
        write_shard(path, tensors, index)

    shared_out([job.out / name for name in shards], make)


def _encode_clips(job: Job, index: Index, scan: Scan) -> None:
    """Write the missing shards of clips."""
    shards = index.clip_shards()

    def frames(numbers: Iterable[int]) -> int:
        return sum(index.clips[number].num_frames for number in numbers)

    show = _bar(job, "clips", "frame", {name: frames(part) for name, part in shards.items()})

    @cache
    def codec() -> Codec:
        return codec_at(job.source.place).to(job.device)

    def make(path: Path) -> None:
        shard, passed = Shard(job, index, scan, codec()), list[int]()
        by_file = itertools.groupby(shards[path.name], lambda number: index.clips[number].path)
        for _, numbers in by_file:
            pieces = list(numbers)
            shard.add(pieces)
            passed += pieces
            show(frames(passed))
        write_shard(path, shard.tensors, index, psnr=shard.psnr, broken=shard.broken)

    shared_out([job.out / name for name in shards], make)


class Shard:
    """Encoded clips, collected for one file."""

    def __init__(self, job: Job, index: Index, scan: Scan, codec: Codec) -> None:
        self.job, self.index, self.scan, self.codec = job, index, scan, codec
        self.tensors: dict[str, Tensor] = {}  # latents by the clip's number
        self.psnr: dict[str, float] = {}  # of some clips, in decibels
        self.broken: dict[str, str] = {}  # files that cannot be read, and why

    def add(self, numbers: Sequence[int]) -> None:
        """Encode the pieces of one file; if one fails, none is kept."""
        entries = [self.scan.entries[number] for number in numbers]
        height, width = self.index.clips[numbers[0]].size
        sized = replace(self.scan.settings, size=f"{width}x{height}")
        pictures = data.read_pieces(replace(self.scan, settings=sized), entries)
        latents, psnr = dict[str, Tensor](), dict[str, float]()
        try:
            for number, entry in zip(numbers, entries, strict=True):
                frames_FHW3 = np.stack(list(itertools.islice(pictures, entry.num_frames)))
                latents[str(number)] = self._encoded(frames_FHW3, number)
                if self.codec.pictures_per_latent > 1:
                    latents[keyframes_of(number)] = self._alone(frames_FHW3, number)
                if number % self._every == 0:
                    psnr[str(number)] = self._rebuilt(frames_FHW3)
            next(pictures, None)  # at its end a file may turn out not to be whole
        except UserError as error:
            self.broken[self.index.clips[numbers[0]].path] = data.reason_of(entries[0].path, error)
        else:
            self.tensors |= latents
            self.psnr |= psnr

    @property
    def _every(self) -> int:
        """The codec's PSNR is measured on one of so many clips."""
        return -(-len(self.index.clips) // REBUILT)

    def _encoded(self, frames_FHW3: Frames, number: int) -> Tensor:
        image_FCHW = to_images(frames_FHW3[: self.index.clips[number].num_frames])
        with autocast(self.job.device, self.job.dtype):
            latent_FCHW = self.codec.encode_clip(image_FCHW)
        return _finite(latent_FCHW.half(), "the codec")

    def _alone(self, frames_FHW3: Frames, number: int) -> Tensor:
        """For each latent, the latent of its last picture alone, as for a given picture."""
        count = self.codec.latents_of(self.index.clips[number].num_frames)
        last = [self.codec.pictures_of(latents) - 1 for latents in range(1, count + 1)]
        with autocast(self.job.device, self.job.dtype):
            latent_FCHW = self.codec.encode_keyframes(to_images(frames_FHW3[last]))
        return _finite(latent_FCHW.half(), "the codec")

    def _rebuilt(self, frames_FHW3: Frames) -> float:
        middle = len(frames_FHW3) // 2
        image_1CHW = to_images(frames_FHW3[middle : middle + 1])
        return self.codec.psnr(image_1CHW.to(self.job.device))


def _finite(x: Tensor, maker: str) -> Tensor:
    """A tensor, on the CPU; ``UserError`` if a value is not finite."""
    if not bool(x.isfinite().all()):
        raise UserError(f"{maker} gave values that are not finite: try --dtype float32")
    return x.cpu().clone()


def _bar(job: Job, label: str, unit: str, amounts: Mapping[str, int]) -> Callable[[int], None]:
    """A bar over all shards, also of other processes; call it with what this process has done."""

    def there() -> int:
        return sum(amount for name, amount in amounts.items() if (job.out / name).exists())

    total = sum(amounts.values())
    bar = job.console.progress(label, unit, there())
    return lambda own: bar(min(there() + own, total), total)


def _result(job: Job, index: Index) -> Iterator[str]:
    """What was made, and which files could not be read."""
    names = list(index.clip_shards())
    headers = [header_of(job.out / name, index) for name in names]
    broken = {path: why for one in headers for path, why in one["broken"].items()}
    kept = sum(len(one["names"]) for one in headers)
    if not kept:
        path, why = next(iter(broken.items()))
        raise UserError(f"no clip could be encoded; the first was {path}: {why}")
    for path, why in list(broken.items())[:EXAMPLES]:
        yield f"dropped {path}: {why}"
    if len(broken) > EXAMPLES:
        yield f"  ... and {len(broken) - EXAMPLES} more dropped"
    prompts = f" and {counted(len(index.prompts), 'prompt')}" if index.text else ""
    size = sum(path.stat().st_size for path in job.out.glob("*.safetensors")) / 1e6
    clips, shards = counted(kept, "clip"), counted(len(names), "shard")
    yield f"{job.out}: {clips}{prompts} in {shards}, {size:.1f} MB"
