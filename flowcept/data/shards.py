"""The clips of a folder on disk, as pictures and as latents: decoded once, encoded once.

``PictureStore`` decodes each clip into one memory-mapped array of pictures of the training size;
``LatentStore`` encodes those into another. Both may be larger than memory, carry a key of all that
they were made from, and appear under their names only when they are whole.

Shape suffixes: F pictures or latents, H height, W width, 3 colours, C channels.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept.codecs import Codec, to_images
from flowcept.data.folder import (
    ClipEntry,
    DataConfig,
    Finding,
    Progress,
    Scan,
    digest_of,
    fingerprint,
    read_pieces,
    reason_of,
)
from flowcept.errors import UserError

CACHE_FORMAT = 2  # part of every key: raise it when the same files would be decoded differently
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
        self.contents = digest_of(self.captions, self.lengths)  # wherever the files lie

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.entries)

    def rows(self, i: int) -> NDArray[Any]:
        """A copy of clip i's part of the array."""
        i = range(len(self))[i]
        return np.array(self.array[self.starts[i] : self.starts[i + 1]])


class PictureStore(_Store):
    """The pictures of all clips, uint8, decoded once into `cache`/pictures.npy.

    A clip that turns out broken only now is left out; `findings` says so. Raises UserError if
    none is left, or if the disk is too small. One process at a time may build a cache.
    """

    def __init__(
        self, scan: Scan, config: DataConfig, cache: Path, progress: Progress | None = None
    ) -> None:
        entries = scan.entries
        pieces = [(str(e.path.absolute()), e.start, e.num_frames, e.source) for e in entries]
        files = [fingerprint(path) for path in dict.fromkeys(entry.path for entry in entries)]
        key = digest_of(CACHE_FORMAT, config, scan.fps, pieces, files)

        def fill(rows: _Rows) -> dict[str, Any]:
            _check_space(cache, sum(e.num_frames for e in entries) * 3 * math.prod(config.size))
            return _decode(rows, scan, config, progress)

        array, note = _cached(cache / "pictures.npy", key, fill)
        kept = [entries[i] for i in note["kept"]]
        super().__init__(array, kept, [entry.num_frames for entry in kept], key)
        found = {str(finding.path): finding for finding in scan.findings}
        self.findings = [
            Finding(Path(name), "dropped", why, found[name].num_frames, found[name].fps)
            for name, why in note["broken"].items()
        ]

    def frames(self, i: int) -> NDArray[np.uint8]:
        """`frames_FHW3` of clip i."""
        return self.rows(i)


def _decode(
    rows: "_Rows", scan: Scan, config: DataConfig, progress: Progress | None
) -> dict[str, Any]:
    """Append the pictures of all clips, file by file; which were kept, and why others were not."""
    kept: list[int] = []
    broken: dict[str, str] = {}
    total = sum(entry.num_frames for entry in scan.entries)
    done = 0
    numbered = enumerate(scan.entries)
    for path, group in itertools.groupby(numbered, key=lambda pair: pair[1].path):
        numbers, entries = zip(*group, strict=True)
        before = rows.count
        try:
            for picture_HW3 in read_pieces(entries, config, scan.fps):
                rows.append(picture_HW3[None])
            kept += numbers
        except UserError as error:  # a file counts whole or not at all
            rows.cut(before)
            broken[str(path)] = reason_of(path, error)
        done += sum(entry.num_frames for entry in entries)
        if progress:
            progress(done, total)
    if not kept:
        name, why = next(iter(broken.items()))
        raise UserError(f"no clip could be decoded; the first was {name}: {why}")
    return {"kept": kept, "broken": broken}


class LatentStore(_Store):
    """The latents of all clips, float16, encoded once into `cache`/latents.npy.

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
        key = digest_of(pictures.key, codec.config, _digest_of_weights(codec), dtype)

        def fill(rows: _Rows) -> dict[str, Any]:
            _encode(rows, pictures, codec, torch.device(device).type, dtype, progress)
            return {}

        array, _ = _cached(cache / "latents.npy", key, fill)
        super().__init__(array, pictures.entries, lengths, key)
        self.findings = [finding for e in self.entries if (finding := _trimmed(e, codec))]

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""
        return torch.from_numpy(self.rows(i)).float()


@torch.no_grad()
def _encode(
    rows: "_Rows",
    pictures: PictureStore,
    codec: Codec,
    device: str,
    dtype: torch.dtype,
    progress: Progress | None,
) -> None:
    """Append the latents of all clips, float16: clip by clip, or by chunks of all clips alike."""
    total = len(pictures.array)
    alone = codec.pictures_per_latent == 1
    bounds = [*range(0, total, ENCODE_CHUNK), total] if alone else pictures.starts
    for start, end in itertools.pairwise(bounds):
        on_grid = codec.pictures_of(codec.latents_of(end - start))
        image_FCHW = to_images(pictures.array[start : start + on_grid])
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            latent_FCHW = codec.encode_clip(image_FCHW).half()
        if not latent_FCHW.isfinite().all():
            raise UserError("the codec gave values that are not finite; train it again")
        rows.append(latent_FCHW.cpu().numpy())
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


class _Rows:
    """An .npy file that grows by blocks of rows.

    Plain writes, not a writable memory map: a full disk is then an error, not a crash.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0
        self._first: NDArray[Any] | None = None  # of which every row has the form
        self._start = 0  # of the rows in the file

    def append(self, block: NDArray[Any]) -> None:
        if self._first is None:
            self._first = block[:1]
            self.write_header()
            self._start = self.file.tell()
        self.file.write(np.ascontiguousarray(block).data)
        self.count += len(block)

    def cut(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        if self._first is not None:
            self.file.seek(self._start + count * self._first.nbytes)
            self.file.truncate()
            self.count = count

    def write_header(self) -> None:
        """The head of the file; numpy pads it so that its length does not depend on `count`."""
        assert self._first is not None, "there is a row"
        self.file.seek(0)
        header = np.lib.format.header_data_from_array_1_0(self._first)
        shape = (self.count, *self._first.shape[1:])
        np.lib.format.write_array_header_1_0(self.file, {**header, "shape": shape})


def _cached(
    path: Path, key: str, fill: Callable[[_Rows], dict[str, Any]]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The array in a file and its note, made by `fill` unless they are there and of `key`."""
    cached = _open(path, key)
    if cached is None:
        _build(path, key, fill)
        cached = _open(path, key)
        assert cached is not None, "a cache that was just written can be read"
    return cached


def _open(path: Path, key: str) -> tuple[NDArray[Any], dict[str, Any]] | None:
    """The array and its note, or None unless both are whole and belong to `key`."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if note["key"] != key:
            return None
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (array, note) if len(array) == note["rows"] else None


def _build(path: Path, key: str, fill: Callable[[_Rows], dict[str, Any]]) -> None:
    """Write the rows, then the note, which makes the array valid."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.stem}-*.npy"):  # left by a killed process
            if time.time() - stale.stat().st_mtime > 3600:  # a living one writes all the time
                stale.unlink()
        with temporary.open("wb") as file:
            rows = _Rows(file)
            note = fill(rows)
            rows.write_header()
        # The old note goes first: at no moment does a note stand beside an array of other origin.
        path.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(path)
        text = json.dumps({"key": key, "rows": rows.count, **note})
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path.with_suffix(".json"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _check_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"{cache}: the pictures need {needed / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB; free some, or use fewer clips or a smaller size"
        )
