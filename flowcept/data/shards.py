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
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept.codecs import Codec, to_images
from flowcept.data import folder as data
from flowcept.data.folder import ClipEntry, Finding, Progress, Scan
from flowcept.data.video import replacing
from flowcept.errors import UserError

CACHE_FORMAT = 3  # part of every key: raise it when the same files would be decoded differently
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
        self.contents = data.digest_of(self.captions, self.lengths)  # wherever the files lie

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
        size, entries = scan.settings.frame_size, scan.entries
        pieces = [(str(e.path.absolute()), e.start, e.num_frames, e.source) for e in entries]
        files = [data.fingerprint(path) for path in dict.fromkeys(entry.path for entry in entries)]
        key = data.digest_of(CACHE_FORMAT, size, scan.settings.fit, scan.fps, pieces, files)

        def fill(file: BinaryIO) -> dict[str, Any]:
            _check_space(cache, sum(e.num_frames for e in entries) * 3 * math.prod(size))
            return _decode(file, scan, progress)

        array, note = _cached(cache / "pictures.bin", key, np.uint8, (*size, 3), fill)
        kept = [entries[i] for i in note["kept"]]
        super().__init__(array, kept, [entry.num_frames for entry in kept], key)
        found = {str(finding.path): finding for finding in scan.findings}
        broken = note["broken"].items()
        self.findings = [replace(found[n], verdict="dropped", reason=why) for n, why in broken]

    def frames(self, i: int) -> NDArray[np.uint8]:
        """`frames_FHW3` of clip i."""
        return self.rows(i)


def _decode(file: BinaryIO, scan: Scan, progress: Progress | None) -> dict[str, Any]:
    """Write the pictures of all clips, file by file; which were kept, and why others were not."""
    kept: list[int] = []
    broken: dict[str, str] = {}
    done, total = 0, sum(entry.num_frames for entry in scan.entries)
    for path, group in itertools.groupby(enumerate(scan.entries), lambda pair: pair[1].path):
        numbers, entries = zip(*group, strict=True)
        before = file.tell()
        try:
            for picture_HW3 in data.read_pieces(scan, entries):
                file.write(np.ascontiguousarray(picture_HW3).data)
            kept += numbers
        except UserError as error:  # a file counts whole or not at all
            file.truncate(file.seek(before))
            broken[str(path)] = data.reason_of(path, error)
        done += sum(entry.num_frames for entry in entries)
        if progress:
            progress(done, total)
    if not kept:
        name, why = next(iter(broken.items()))
        raise UserError(f"no clip could be decoded; the first was {name}: {why}")
    return {"kept": kept, "broken": broken}


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

        shape = codec.latent_shape(pictures.array.shape[1:3])

        def fill(file: BinaryIO) -> dict[str, Any]:
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                _encode(file, pictures, codec, progress)
            return {}

        array, _ = _cached(cache / "latents.bin", key, np.float16, shape, fill)
        super().__init__(array, pictures.entries, lengths, key)
        self.findings = [finding for e in self.entries if (finding := _trimmed(e, codec))]

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""
        return torch.from_numpy(self.rows(i)).float()


@torch.no_grad()
def _encode(
    file: BinaryIO, pictures: PictureStore, codec: Codec, progress: Progress | None
) -> None:
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


def _trimmed(entry: ClipEntry, codec: Codec) -> Finding | None:
    """What a clip loses whose pictures do not fill its latents."""
    count = entry.num_frames
    lost = count - codec.pictures_of(codec.latents_of(count))
    if not lost:
        return None
    left_out = f"the last {lost} of {count} pictures from {entry.start} on left out"
    reason = f"{left_out}: a latent takes {codec.pictures_per_latent}"
    return Finding(entry.path, "cut", reason, entry.source.num_frames, entry.source.fps)


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
    """Rows of a shape in a file and their note, made by `fill` unless whole and of `key`."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        valid = (note["key"], note["bytes"]) == (key, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        note = _build(path, key, fill)
    return np.memmap(path, dtype, "r").reshape(-1, *shape), note


def _build(path: Path, key: str, fill: _Fill) -> dict[str, Any]:
    """Write the rows, then the note, which makes them valid."""
    note_path = path.with_suffix(".json")
    with replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".*{path.suffix}"):  # left by a killed process
            if time.time() - stale.stat().st_mtime > 3600:  # a living one writes all the time
                stale.unlink()
        with temporary.open("wb") as file:
            note = fill(file)
            note |= {"key": key, "bytes": file.tell()}
        note_path.unlink(missing_ok=True)  # no note ever stands beside rows of other origin
    with replacing(note_path) as temporary:
        temporary.write_text(json.dumps(note), encoding="utf-8")
    return note


def _check_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        sizes = f"the pictures need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
        raise UserError(f"{cache}: {sizes}; free some, or use fewer clips or a smaller size")
