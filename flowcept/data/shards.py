"""The clips of a folder on disk, as pictures and as latents: decoded once, encoded once.

Both are memory-mapped arrays, perhaps larger than memory, each with a note of its form and a key of
all that it was made from.

Shape suffixes: F pictures or latents, H height, W width, 3 colours, C channels.
"""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept.codecs import Codec, CodecConfig, to_images
from flowcept.data import folder as data
from flowcept.data.batches import Keyframe
from flowcept.data.folder import ClipEntry, Finding, Progress, Scan
from flowcept.device import autocast
from flowcept.errors import UserError
from flowcept.files import replacing

CACHE_FORMAT = 4  # part of every key: raise it when the same files would be decoded differently
ENCODE_CHUNK = 64  # pictures encoded at once, of all clips alike, where each is encoded alone


class _Store:
    """Clips laid end to end in one memory-mapped array, of which clip i is a run of rows."""

    def __init__(
        self, array: NDArray[Any], entries: Sequence[ClipEntry], lengths: Sequence[int], key: str
    ) -> None:
        self.array = array
        self.entries = list(entries)
        self.lengths = list(lengths)  # in rows
        self.key = key
        self.captions = [entry.caption for entry in entries]
        self.starts = [0, *itertools.accumulate(self.lengths)]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.entries)

    def rows(self, i: int) -> NDArray[Any]:
        """A copy of clip i's part of the array."""
        i = range(len(self))[i]
        return np.array(self.array[self.starts[i] : self.starts[i + 1]])


class PictureStore(_Store):
    """The pictures of all clips, uint8, decoded once into `cache`/pictures.bin.

    A clip that turns out broken only now is left out; `findings` says so. Raises UserError if
    none is left, or if the disk is too small. One process at a time may build a cache.
    """

    def __init__(self, scan: Scan, cache: Path, progress: Progress | None = None) -> None:
        key = _key_of_pictures(scan)
        shape = (scan.num_frames, *scan.settings.frame_size, 3)
        decode = partial(_decode, scan=scan, progress=progress)
        array, note = _cached(cache / "pictures.bin", key, np.uint8, shape, decode)
        kept = [scan.entries[i] for i in note["kept"]]
        super().__init__(array, kept, [entry.num_frames for entry in kept], key)
        found = [(one, note["broken"].get(str(one.path))) for one in scan.findings]
        self.findings = [replace(one, verdict="dropped", reason=why) for one, why in found if why]

    def frames(self, i: int) -> NDArray[np.uint8]:
        """`frames_FHW3` of clip i."""
        return self.rows(i)


def _key_of_pictures(scan: Scan) -> str:
    entries, settings = scan.entries, scan.settings
    pieces = [(str(e.path.absolute()), e.start, e.num_frames, e.source) for e in entries]
    files = [data.fingerprint(path) for path in dict.fromkeys(entry.path for entry in entries)]
    form = settings.frame_size, settings.fit, scan.fps
    return data.digest_of(CACHE_FORMAT, form, pieces, files)


def _decode(file: BinaryIO, scan: Scan, progress: Progress | None) -> dict[str, Any]:
    """Write the pictures of all clips, file by file; which were kept, and why others were not."""
    note: dict[str, Any] = {"kept": [], "broken": {}}
    done = 0
    for path, group in itertools.groupby(enumerate(scan.entries), lambda pair: pair[1].path):
        numbers, entries = zip(*group, strict=True)
        if why := _decode_file(file, scan, entries):
            note["broken"][str(path)] = why
        else:
            note["kept"] += numbers
        done += sum(entry.num_frames for entry in entries)
        if progress:
            progress(done, scan.num_frames)
    if not note["kept"]:
        name, why = next(iter(note["broken"].items()))
        raise UserError(f"no clip could be decoded; the first was {name}: {why}")
    return note


def _decode_file(file: BinaryIO, scan: Scan, entries: Sequence[ClipEntry]) -> str:
    """Write the clips of one video file, all or none; why none, or ""."""
    before = file.tell()
    try:
        for picture_HW3 in data.read_pieces(scan, entries):
            file.write(np.ascontiguousarray(picture_HW3).data)
    except UserError as error:
        file.truncate(file.seek(before))
        return data.reason_of(entries[0].path, error)
    return ""


class LatentStore(_Store):
    """The latents of all clips, float16, encoded once into `cache`/latents.bin.

    Lengths are of latents. The pictures at the end of a clip that do not fill a latent are left
    out; `findings` says so. `codec` lies on `device`; `dtype` is that of the encoder's arithmetic.
    """

    def __init__(
        self,
        pictures: PictureStore,
        codec: Codec,
        cache: Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> None:
        lengths = [codec.latents_of(length) for length in pictures.lengths]
        key = data.digest_of(pictures.key, codec.config, _digest_of_weights(codec), dtype)
        shape = (sum(lengths), *codec.latent_shape(pictures.array.shape[1:3]))
        encode = partial(_encode, pictures=pictures, codec=codec, progress=progress)
        encode = autocast(torch.device(device), dtype)(encode)
        array, _ = _cached(cache / "latents.bin", key, np.float16, shape, encode)
        super().__init__(array, pictures.entries, lengths, key)
        self.sizes = [shape[2:]] * len(self)
        self.findings = trimmed(self.entries, codec.config)
        self.keyframe: Keyframe | None = None
        if codec.pictures_per_latent > 1:
            alone = partial(_encode_keyframes, pictures=pictures, codec=codec, progress=progress)
            alone = autocast(torch.device(device), dtype)(alone)
            rows, _ = _cached(cache / "keyframes.bin", key, np.float16, shape, alone)
            self.keyframe = partial(_row, rows, self.starts)

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""
        return torch.from_numpy(self.rows(i)).float()


def _row(rows: NDArray[np.float16], starts: Sequence[int], i: int, f: int) -> Tensor:
    """Row f of clip i, float32."""
    return torch.from_numpy(np.array(rows[starts[i] + f])).float()


@torch.no_grad()
def _encode_keyframes(
    file: BinaryIO, pictures: PictureStore, codec: Codec, progress: Progress | None
) -> dict[str, Any]:
    """Write, for every latent, that of the last of its pictures alone, float16."""
    for start, end in itertools.pairwise(pictures.starts):
        latents = codec.latents_of(end - start)
        last = [start + codec.pictures_of(number) - 1 for number in range(1, latents + 1)]
        latent_FCHW = codec.encode_keyframes(to_images(pictures.array[last])).half()
        file.write(latent_FCHW.cpu().numpy().tobytes())
        if progress:
            progress(end, len(pictures.array))
    return {}


@torch.no_grad()
def _encode(
    file: BinaryIO, pictures: PictureStore, codec: Codec, progress: Progress | None
) -> dict[str, Any]:
    """Write the latents of all clips, float16: clip by clip, or by chunks of all clips alike."""
    total = len(pictures.array)
    alone = codec.pictures_per_latent == 1
    bounds = [*range(0, total, ENCODE_CHUNK), total] if alone else pictures.starts
    for start, end in itertools.pairwise(bounds):
        on_grid = codec.pictures_of(codec.latents_of(end - start))
        image_FCHW = to_images(pictures.array[start : start + on_grid])
        latent_FCHW = codec.encode_clip(image_FCHW).half()
        if not latent_FCHW.isfinite().all():
            raise UserError("the codec gave values that are not finite; train it again")
        file.write(latent_FCHW.cpu().numpy().tobytes())
        if progress:
            progress(end, total)
    return {}


def trimmed(entries: Sequence[ClipEntry], codec: CodecConfig) -> list[Finding]:
    """What clips lose whose pictures do not fill their latents."""
    findings = []
    for entry in entries:
        count, source = entry.num_frames, entry.source
        if lost := count - codec.pictures_of(codec.latents_of(count)):
            left_out = f"the last {lost} of {count} frames from {entry.start} on are left out"
            reason = f"{left_out}: a latent holds {codec.pictures_per_latent} frames"
            findings.append(Finding(entry.path, "cut", reason, source.num_frames, source.fps))
    return findings


def _digest_of_weights(codec: Codec) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- files -----------------------------------------------------------------------------------

# Writes the rows and returns the note beside them. Plain writes, not a writable memory map: a full
# disk is then an error, not a crash.
_Fill = Callable[[BinaryIO], dict[str, Any]]


def _cached(
    path: Path, key: str, dtype: type, shape: Sequence[int], fill: _Fill
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Rows in a file, at most as many as a shape has, and their note.

    They are made by `fill` unless the file is whole and of `key`.
    """
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        valid = (note["key"], note["bytes"]) == (key, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        note = _build(path, key, math.prod(shape) * np.dtype(dtype).itemsize, fill)
    return np.memmap(path, dtype, "r").reshape(-1, *shape[1:]), note


def _build(path: Path, key: str, needed: int, fill: _Fill) -> dict[str, Any]:
    """Write the rows, of so many bytes at most, then the note, which makes them valid."""
    note_path = path.with_suffix(".json")
    with replacing(path) as temporary:
        _check_space(path, needed)
        with temporary.open("wb") as file:
            note = fill(file)
            note |= {"key": key, "bytes": file.tell()}
        note_path.unlink(missing_ok=True)  # no note ever stands beside rows of other origin
    with replacing(note_path) as temporary:
        temporary.write_text(json.dumps(note), encoding="utf-8")
    return note


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        sizes = f"the {path.stem} need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
        raise UserError(
            f"{path.parent}: {sizes}; free some space, or use fewer clips or a smaller size"
        )
