"""A folder of shards: clips as latents and captions as embeddings, encoded once to train on.

``index.json`` says what was encoded and how, and in which shard each clip and each distinct caption
lies. A shard is a safetensors file of tensors, named by their numbers in the index, latents as
float16, prompts as the encoder computed them; its header names the index that it belongs to. Each
file is whole or not there.

Shape suffixes: F latents, C H W a latent, R tokens of a prompt, D their width.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowcept import model_file
from flowcept.codecs import Codec, CodecConfig, build_codec
from flowcept.data.batches import Keyframe
from flowcept.data.buckets import Size
from flowcept.data.folder import digest_of
from flowcept.errors import UserError
from flowcept.files import replacing
from flowcept.networks.text import TextConfig
from flowcept.settings import from_mapping

FORMAT = 1  # of index and shards
INDEX = "index.json"
HEADER = "flowcept_shard"  # key of a shard's own words in its safetensors header
PROMPTS = 256  # in a shard


class EncodedClip(NamedTuple):
    """A clip as the index has it."""

    path: str  # of its file within the folder of clips
    caption: str
    start: int  # first frame, counted at the training rate
    num_frames: int  # that fill latents
    height: int
    width: int

    @property
    def size(self) -> Size:
        return self.height, self.width


@dataclass(frozen=True)
class CodecRecord:
    """The codec that made the latents."""

    config: CodecConfig
    place: str  # the folder or the model file that it was read from
    files: str  # what tells its files from others, where it lay in a folder
    weights: str  # ``digest_of_codec``


@dataclass(frozen=True)
class TextRecord:
    """The frozen encoder that read the captions."""

    config: TextConfig
    files: str  # what tells its files from others


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds."""

    made_of: dict[str, str]  # digests of all that decides what is encoded, by name
    dataset: str  # name of the folder of clips
    dtype: str  # of the encoders' arithmetic
    fps: float  # of every clip
    fit: str  # how frames got their size
    max_frames: int
    min_frames: int
    shard_clips: int  # in a shard at least, but for the last one
    codec: CodecRecord
    text: TextRecord | None  # None: captions are words only
    clips: tuple[EncodedClip, ...]

    @property
    def key(self) -> str:
        """A digest that identifies its shards."""
        return digest_of(sorted(self.made_of.items()))

    @cached_property
    def prompts(self) -> dict[str, int]:
        """The number of each distinct caption, the empty one among them."""
        if self.text is None:
            return {}
        distinct = sorted({"", *(clip.caption for clip in self.clips)})
        return {prompt: number for number, prompt in enumerate(distinct)}

    @property
    def sizes(self) -> Counter[Size]:
        """How many clips have each size."""
        return Counter(clip.size for clip in self.clips)

    @property
    def size(self) -> Size:
        """The commonest size."""
        return self.sizes.most_common(1)[0][0]

    def latents(self, clip: EncodedClip) -> int:
        return self.codec.config.latents_of(clip.num_frames)

    def prompt_shards(self) -> dict[str, list[str]]:
        """Captions by the name of their shard."""
        prompts = list(self.prompts)
        starts = range(0, len(prompts), PROMPTS)
        return {prompt_shard(start): prompts[start : start + PROMPTS] for start in starts}

    def clip_shards(self) -> dict[str, list[int]]:
        """Numbers of clips by the name of their shard; the pieces of a file stay together."""
        shards: list[list[int]] = []
        by_file = itertools.groupby(range(len(self.clips)), lambda number: self.clips[number].path)
        for _, pieces in by_file:
            if not shards or len(shards[-1]) >= self.shard_clips:
                shards.append([])
            shards[-1] += pieces
        return {f"clips-{number:05d}.safetensors": part for number, part in enumerate(shards)}

    def summary(self) -> Iterator[str]:
        """Lines for people."""
        frames = sum(clip.num_frames for clip in self.clips)
        kinds = f"{len(self.clips)} clips of {frames} frames at {self.fps:g} per second"
        prompts = f"{len(self.prompts)} prompts" if self.text else "captions as text"
        yield f"shards of {self.dataset}: {kinds}, {prompts}"
        yield from (f"  {named(size)}: {n} clips" for size, n in self.sizes.most_common())


def prompt_shard(number: int) -> str:
    """The name of the shard that a prompt's number stands in."""
    return f"prompts-{number // PROMPTS:05d}.safetensors"


def named(size: Size) -> str:
    """WIDTHxHEIGHT of a size."""
    return f"{size[1]}x{size[0]}"


def digest_of_codec(codec: Codec) -> str:
    """A digest that identifies a codec, the same for weights kept as float32 or bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        half = tensor.detach().cpu().bfloat16().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(half.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def absent(config: CodecConfig) -> Codec:
    """A codec that takes no memory: it knows its shapes and lengths, and has no weights."""
    with torch.device("meta"):
        return build_codec(config)


# ---- the index -------------------------------------------------------------------------------


def is_encoded(folder: Path) -> bool:
    """Whether a folder holds shards, or is to hold some."""
    return (folder / INDEX).is_file()


def write_index(index: Index, folder: Path) -> None:
    record = {"format": FORMAT, **asdict(index)}
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


def read_index(folder: Path) -> Index:
    """Raises ``UserError``, one line, for what is no index, or one of another format."""
    path = folder / INDEX
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.pop("format")
        rows = [EncodedClip(*row) for row in record.pop("clips")]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of shards; get the folder again") from error
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version!r}, this flowcept reads {FORMAT}: encode again"
        )
    try:
        index = from_mapping(Index, {**record, "clips": []})
        kinds = [int, int, int, int]
        whole = rows and all([*map(type, row)] == [str, str, *kinds] for row in rows)
    except (UserError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the folder again") from error
    if not whole:
        raise UserError(f"{path} lists no clips; get the folder again")
    return Index(**{**vars(index), "clips": tuple(rows)})


# ---- shards ----------------------------------------------------------------------------------


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], index: Index, **more: dict[str, Any]
) -> None:
    """Write a shard whole or not at all; ``more`` goes into its header."""
    header = json.dumps({"format": FORMAT, "key": index.key, **more})
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    model_file.write(path, whole, {HEADER: header})


def header_of(path: Path, index: Index) -> dict[str, Any]:
    """A shard's header; ``UserError`` if the shard is damaged or of another folder."""
    again = "delete it and run flowcept encode again"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            header["names"] = [name for name in file.keys() if name.isdigit()]  # noqa: SIM118
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {again}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise DamagedError(f"{path} is damaged, or not a shard: {again}") from error
    if header.get("key") != index.key:
        raise UserError(f"{path} belongs to other shards: {again}")
    return dict(header)


class DamagedError(UserError):
    """A shard that is not whole."""


def tensor_of(path: Path, name: str) -> Tensor:
    """A tensor of a shard, float32; ``UserError`` where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.float()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {name} in {path}: {error}") from error


def row_of(path: Path, name: str, row: int) -> Tensor:
    """A row of a tensor of a shard, float32; ``UserError`` where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_slice(name)[row]
            return tensor.float()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {name} in {path}: {error}") from error


def keyframes_of(number: int) -> str:
    """The name, in a shard, of the latents of single pictures of a clip."""
    return f"{number}.keyframes"


class EncodedClips:
    """The clips of a folder of shards, to train on; lengths are of latents.

    ``open_codec`` reads the codec, which training itself does without. Raises ``UserError`` where
    a shard is missing, damaged or of another folder.
    """

    def __init__(self, folder: Path, index: Index, open_codec: Callable[[], Codec]) -> None:
        self.folder, self.index, self.open_codec = folder, index, open_codec
        headers = _headers(folder, index)
        self.places = {
            int(name): folder / shard for shard, one in headers.items() for name in one["names"]
        }
        self.numbers = sorted(self.places)
        self.entries = [index.clips[number] for number in self.numbers]
        self.captions = [clip.caption for clip in self.entries]
        self.lengths = [index.latents(clip) for clip in self.entries]
        self.sizes = [clip.size for clip in self.entries]
        group = index.codec.config.pictures_per_latent
        self.keyframe: Keyframe | None = self._keyframe if group > 1 else None
        if not self.numbers:
            raise UserError(f"{folder}: no clip could be encoded")
        psnr = [one["psnr"] for one in headers.values()]
        self.psnr = {int(number): value for one in psnr for number, value in one.items()}

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""
        number = self.numbers[i]
        return tensor_of(self.places[number], str(number))

    def _keyframe(self, i: int, f: int) -> Tensor:
        """The latent of the last picture of latent f of clip i alone, float32."""
        number = self.numbers[i]
        return row_of(self.places[number], keyframes_of(number), f)

    def token_of(self, prompt: str) -> Tensor:
        """The tokens `[R, D]` of a caption; ``UserError`` for one that no clip has."""
        number = self.index.prompts.get(prompt)
        if number is None:
            raise UserError(f"the shards hold no embedding of the prompt {prompt[:40]!r}")
        return tensor_of(self.folder / prompt_shard(number), str(number))

    def psnr_of(self, clips: Sequence[int]) -> list[float]:
        """Decibels at which the codec rebuilds pictures of some of these clips."""
        numbers = [self.numbers[clip] for clip in clips]
        return [self.psnr[number] for number in numbers if number in self.psnr]


def _headers(folder: Path, index: Index) -> dict[str, dict[str, Any]]:
    """What all shards of clips say of themselves; those of prompts must be there as well."""
    clips, prompts = index.clip_shards(), index.prompt_shards()
    names = [*clips, *prompts]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its {len(names)} shards ({missing[0]}): run "
            "the same flowcept encode again to make them"
        )
    headers = {name: header_of(folder / name, index) for name in names}
    return {name: headers[name] for name in clips}
