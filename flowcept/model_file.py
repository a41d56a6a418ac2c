"""One ``.safetensors`` file is one model: network, prompt encoder, codec, and what they are.

The header holds a versioned JSON under the key ``flowcept``; tensors are named ``network.*``,
``text.*`` and ``codec.*``. Nothing in the file can execute. Reading trusts nothing: what is wrong
with a file is said in one line before anything of its claimed size is allocated.
"""

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowcept import __version__
from flowcept.codecs import Codec, CodecConfig, build_codec
from flowcept.errors import UserError, counted
from flowcept.files import replacing, scratch
from flowcept.lexicon import Lexicon
from flowcept.networks import FAMILIES, VideoNetwork, build_network, family_of
from flowcept.networks.text import FROZEN, PromptEncoder, TextConfig, build_encoder
from flowcept.process.forward import Flowception, Process
from flowcept.process.full_sequence import FullSequence
from flowcept.settings import FASTEST, FITS, SLOWEST, from_mapping, short, shown

FORMAT = 3  # of the file; of 1 the logits of counts meant something else
LARGEST_HEADER = 10_000_000  # bytes; ours have some tens of thousands
WORDS = 2000  # of the training prompts at most are listed in a card, the most frequent
FLOATS = ("F32", "BF16", "F16")  # what weights may be stored as


@dataclass(frozen=True)
class Base:
    """The pretrained model that an adapter file belongs to."""

    source: str  # the folder of diffusers where it was, or its name on a hub with the commit
    digest: str  # of its transformer's files, ``adapters.digest``


@dataclass(frozen=True)
class Training:
    """One of the trainings that a model went through; nothing in it depends on the clock."""

    command: str  # that does it again, with names in place of paths
    dataset: str  # name of the folder of clips
    files: str  # a digest of the names and sizes of its files
    steps: int = 0
    seen: int = 0  # clips in these steps, or windows of clips


@dataclass(frozen=True)
class Card:
    """What a model is and what it was trained on."""

    network: Any  # settings of one of ``networks.FAMILIES``
    process: Flowception
    text: TextConfig
    codec: CodecConfig
    size: tuple[int, int]  # height and width of a picture, in pixels; (0, 0): any
    fps: float  # pictures per second of the training clips
    lengths: dict[int, int]  # trained clips by number of latents
    fit: str = "crop"  # how training clips got the size: crop, pad or stretch
    codec_psnr: float | None = None  # decibels of 19 in 20 training pictures at least, rebuilt
    steps: int = 0  # training steps of the network
    dataset: str = ""  # name of the training folder
    hours: float = 0.0  # of training, in files of before trainings were listed
    prompts: dict[str, int] = field(default_factory=dict)  # commonest training prompts, clips each
    words: dict[str, int] = field(default_factory=dict)  # words of the training prompts, clips each
    version: str = __version__  # of the package that wrote the file
    base: Base | None = None  # of an adapter, whose file holds only what was learned beside it
    lexicon: Lexicon | None = None  # what people say for words of the training prompts
    sizes: dict[str, int] = field(default_factory=dict)  # trained clips by WIDTHxHEIGHT, if several
    trainings: tuple[Training, ...] = ()  # that the model went through, the last one last

    @property
    def any_size(self) -> bool:
        """Whether clips have the size of the pictures that are given."""
        return self.size == (0, 0)

    @property
    def min_length(self) -> int:
        """Latents of the shortest trained clip."""
        return min(self.lengths)

    @property
    def max_length(self) -> int:
        """Latents of the longest trained clip."""
        return max(self.lengths)


@dataclass(frozen=True)
class Weights:
    """The three modules of a model, its card, and the process by which it is sampled."""

    network: VideoNetwork
    text: PromptEncoder
    codec: Codec
    card: Card
    process: Process

    def modules(self) -> nn.ModuleDict:
        """What the file holds, named as there; a frozen encoder stays outside."""
        modules: dict[str, nn.Module] = {"network": self.network, "codec": self.codec}
        if self.card.text.kind == "bytes":
            modules["text"] = self.text
        return nn.ModuleDict(modules)

    def at(self, size: tuple[int, int]) -> Self:
        """The same modules for frames of another height and width, on the network's grid."""
        _, height, width = self.codec.latent_shape(size)
        network = replace(self.card.network, height=height, width=width)
        return replace(self, card=replace(self.card, network=network, size=size))

    def state(self) -> dict[str, Tensor]:
        """The tensors of the file by their names there; of an adapter those of its base are not."""
        tensors: dict[str, Tensor] = self.modules().state_dict()
        if self.card.base is None:
            return tensors
        inside = "network.transformer."
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith("network.") and ("lora_" in name or not name.startswith(inside))
        }


def build(card: Card, frozen: PromptEncoder | None = None) -> Weights:
    """The modules that a card describes, with fresh weights, but for an encoder that is there."""
    network = build_network(card.network, card.process.shift)
    text = frozen or build_encoder(card.text)
    return Weights(network, text, build_codec(card.codec), card, card.process)


def save(weights: Weights, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model whole or not at all; floating-point tensors are stored as ``dtype``.

    Raises ``UserError`` where the file cannot be written or a weight is not finite.
    """
    tensors = {}
    for name, tensor in weights.state().items():
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().to("cpu", kind).contiguous()
        if not bool(tensors[name].isfinite().all()):
            raise UserError(f"not written: {name} is not finite; train with a lower learning rate")
    network = {"family": family_of(weights.card.network), **asdict(weights.card.network)}
    record = {"format": FORMAT, **asdict(weights.card), "network": network}
    for name in ("lexicon", "sizes"):  # without them the file is as it always was
        if not record[name]:
            del record[name]
    write(path, tensors, {"flowcept": json.dumps(record, separators=(",", ":"))})


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    The library writes under a name of its own beside the file. So it gets a hidden folder, with
    which that goes too if the process is killed meanwhile.
    """
    with replacing(path) as temporary, scratch(path.parent) as folder:
        try:
            save_file(tensors, folder / path.name, metadata=header)
        except SafetensorError as error:  # as which a full disk may come
            raise UserError(f"cannot write {path}: {_line(error)}") from error
        (folder / path.name).chmod(0o644)
        (folder / path.name).replace(temporary)


def is_model(path: Path) -> bool:
    """Whether a file is marked as a model of ours; format and completeness are not checked."""
    try:
        return "flowcept" in _metadata(path)
    except UserError:
        return False


def read_card(path: Path) -> Card:
    """The card of a model file, without its weights."""
    return _card(_description(path), path)


def load(
    path: Path, text: PromptEncoder | None = None, dtype: torch.dtype = torch.float32
) -> Weights:
    """Read a model, on the CPU. ``text`` replaces a frozen prompt encoder.

    Weights become float32, those of a pretrained transformer ``dtype``, without a copy between.
    Raises ``UserError``, one line, for a file that is missing, not a model of ours, of another
    format, truncated, or whose tensors are not those that its card calls for, or not finite.
    """
    info = _description(path)
    card = _card(info, path)
    if card.base is not None:
        raise UserError(f"{path} is an adapter, not a whole model: merge it first (flowcept merge)")
    frozen = (text or build_encoder(card.text)) if card.text.kind in FROZEN else None
    try:
        with torch.device("meta"):  # where no size that a card claims takes memory
            weights = build(card, frozen)
            weights.network.hold_in(dtype)
    except UserError:
        raise
    except Exception as error:  # modules raise what they like for sizes out of all reason
        raise UserError(
            f"{path}: its settings describe no usable model ({_line(error)})"
        ) from error
    fill(weights, path, info["format"])
    for module in (weights.network, weights.text, weights.codec):
        module.eval().requires_grad_(requires_grad=False)
    return weights


def load_codec(path: Path) -> Codec:
    """The codec of a model file alone, float32 on the CPU; errors as for ``load``."""
    card = read_card(path)
    if card.base is not None:
        raise UserError(f"{path} is an adapter, which has no codec: name the folder of its base")
    with torch.device("meta"):
        codec = build_codec(card.codec)
    try:
        with safe_open(path, framework="pt") as file:
            like = codec.state_dict().items()
            found = {name: _checked(file, f"codec.{name}", one, path) for name, one in like}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({_line(error)}); get the file again") from error
    codec.load_state_dict(found, assign=True)
    return codec.eval().requires_grad_(requires_grad=False)


def fill(weights: Weights, path: Path, version: int = FORMAT) -> None:
    """Give modules the contents of the file, every tensor of it and no other.

    An adapter's base has its own already.
    """
    modules, expected = weights.modules(), weights.state()
    try:
        with safe_open(path, framework="pt") as file:
            stored = _stored(list(file.keys()), expected.keys(), path, version)
            found = {
                name: _checked(file, stored[name], like, path) for name, like in expected.items()
            }
            modules.load_state_dict(found, assign=True, strict=weights.card.base is None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({_line(error)}); get the file again") from error


# Files of format 2, in which the network had other names and kinds that have left the package.
NAMES_OF_2 = {
    "network.cells.": "network.stem.",
    "network.between.": "network.in_between.",
    "network.blocks.": "network.layers.",
    "network.look.": "network.image_read.",
    "network.seen.": "network.image_token.",
    "network.count.": "network.size.",
}
SETTINGS_OF_2 = {"max_count": "largest_size", "cells": "stem_channels", "cell_depth": "stem_depth"}
# Settings that are gone, with the one value that still has a meaning; a block had none elsewhere.
GONE_SINCE_2: dict[str, dict[str, object]] = {
    "network": {"rotary_values": False, "causal": False},
    "process": {"kind": "flowception", "num_start": 1},
}


def _name_today(name: str, version: int) -> str:
    """What a tensor is called now."""
    for then, now in NAMES_OF_2.items():
        if version == 2 and name.startswith(then):
            return now + name.removeprefix(then)
    return name


def _settings_of_2(info: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a file of format 2 as it would be now; ``UserError`` for lost kinds."""
    parts: dict[str, dict[str, Any]] = {part: dict(info[part]) for part in GONE_SINCE_2}
    for part, gone in GONE_SINCE_2.items():
        for name, only in gone.items():
            found = parts[part].pop(name, only)
            if found != only:
                raise UserError(
                    f"{name} {shown(found)} is no longer supported: train the model again"
                )
    parts["process"].pop("block", None)
    for then, now in SETTINGS_OF_2.items():
        parts["network"][now] = parts["network"].pop(then)
    return {**info, **parts, "network": {"family": "transformer", **parts["network"]}}


def _stored(names: list[str], expected: Set[str], path: Path, version: int) -> dict[str, str]:
    """A file's own names of its tensors by those of today, which must be all that are expected."""
    stored = {_name_today(name, version): name for name in names}
    if len(stored) < len(names):
        raise UserError(f"{path} has a tensor twice; get the file again")
    lacking, unknown = expected - stored.keys(), stored.keys() - expected
    for wrong, what in ((lacking, "lacks"), (unknown, "has an unknown")):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(f"{path} {what} tensor {shown(min(wrong))}{more}; get the file again")
    return stored


def _checked(file: Any, name: str, like: Tensor, path: Path) -> Tensor:  # noqa: ANN401
    """A copy of a tensor of the file, of the dtype that it is to have.

    A copy, since the tensor itself would stay mapped to the file, wherever it lies there.
    """
    part = file.get_slice(name)
    shape, kind = list(part.get_shape()), part.get_dtype()
    kinds = FLOATS if like.is_floating_point() else ("I64",)
    if shape != list(like.shape):
        wrong = f"has shape {shape}, not {list(like.shape)}"
    elif kind not in kinds:
        wrong = f"has type {kind}, not {' or '.join(kinds)}"
    else:
        tensor: Tensor = file.get_tensor(name)
        if bool(tensor.isfinite().all()):
            return tensor.to(like.dtype, copy=True)
        wrong = "holds values that are not finite"
    raise UserError(f"{path}: tensor {name} {wrong}; get the file again")


def _metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself; the size of its header is checked before reading."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                raise UserError(f"{path} is not a model file of flowcept, or is cut short")
            if length > LARGEST_HEADER:
                raise UserError(f"{path} has a header of {length} bytes: not a model of flowcept")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a model file of flowcept") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _description(path: Path) -> dict[str, Any]:
    """The JSON of a model file, of a format that is known."""
    metadata = _metadata(path)
    if "flowcept" not in metadata:
        raise UserError(f"{path} is a safetensors file but not a model of flowcept")
    try:
        info = json.loads(metadata["flowcept"])
        version = info["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: its description cannot be read; get the file again") from error
    if type(version) is not int or version > FORMAT:
        known = f"this flowcept reads up to {FORMAT}"
        raise UserError(f"{path} has format {shown(version)}, {known}: upgrade flowcept")
    if version < 2:
        raise UserError(f"{path} has format {version} of an older flowcept: train it again")
    return dict(info)


def _card(info: Mapping[str, Any], path: Path) -> Card:
    """The card of a description; ``UserError`` where it makes no sense."""
    try:
        settings = _settings_of_2(info) if info["format"] == 2 else dict(info)
        settings.pop("format")
        network, process = dict(settings["network"]), dict(settings["process"])
        process.pop("context_noise", None)  # of training alone, and gone
        config = FAMILIES[network.pop("family")].config
        settings["network"] = from_mapping(config, network, inside="network")
        settings["process"] = process
        card = from_mapping(Card, settings)
        problems = list(_contradictions(card))
    except (KeyError, TypeError, ValueError, ArithmeticError, UserError) as error:
        problems = [_line(error)]
    if problems:
        raise UserError(f"{path}: its description is of no usable model ({problems[0]})")
    return card


def _contradictions(card: Card) -> Iterable[str]:
    """What in a card cannot be, or does not fit together."""
    network = card.network
    if not card.lengths or min(*card.lengths, *card.lengths.values()) < 1:
        yield "lengths"
    sized = card.any_size or min(card.size) >= 1
    if not SLOWEST <= card.fps <= FASTEST or not sized or card.fit not in FITS:
        yield "fps, size or fit"
    if card.text.width != network.text_width:
        yield "prompt encoder and network disagree"
    if card.codec.latent_shape(card.size) != network.latent_shape:
        yield "picture size, codec and network disagree"
    if card.any_size and card.codec.kind != "pixels":
        yield "a model of pictures of any size takes them as pixels"


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"missing {error}"
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    plain = "".join(c if c.isprintable() else "?" for c in first)  # it may quote the file
    return short(plain)


def save_tree(tree: object, path: Path) -> None:
    """Write nested dicts and lists of tensors and plain values, whole or not at all."""
    tensors: dict[str, Tensor] = {}

    def pack(value: object) -> object:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):
            return {"items": [[key, pack(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [pack(item) for item in value]}
        assert value is None or isinstance(value, bool | int | float | str), type(value)
        return {"value": value}

    header = {"state": json.dumps(pack(tree))}
    write(path, tensors, header)


def load_tree(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """What ``save_tree`` wrote. Raises ``UserError`` for a file that is not such a state."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"cannot continue from {path} ({_line(error)})") from error

    def unpack(node: Any) -> Any:  # noqa: ANN401
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "items" in node:
            return {key: unpack(item) for key, item in node["items"]}
        return [unpack(item) for item in node["list"]] if "list" in node else node["value"]

    return unpack(header)


def describe(path: Path, weights: Weights | None = None) -> dict[str, Any]:
    """What a model file is, by name, for people; ``weights`` are its own, if loaded already."""
    files = [one for one in [path, *path.rglob("*")] if one.is_file()]
    file = {"file": str(path), "bytes": sum(one.stat().st_size for one in files)}
    return file | about(weights or load(path))


def about(weights: Weights) -> dict[str, Any]:
    """What a model is, by name, for people."""
    card, pictures_of = weights.card, weights.codec.pictures_of
    modules = weights.modules().items()
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules}
    total = sum(card.lengths.values())
    shortest, longest = pictures_of(card.min_length), pictures_of(card.max_length)
    mean = sum(pictures_of(n) * count for n, count in card.lengths.items()) / total
    learned = ", ".join(card.sizes) or f"{card.size[1]}x{card.size[0]}"
    size = "any size" if card.any_size else f"{learned} pixels"
    frames = f"{shortest} to {counted(longest, 'frame')}, {mean:.1f} on average"
    dataset = f"{card.dataset}: {counted(total, 'clip')}"
    if weights.network.gapwise:
        frames = f"{shortest} to {counted(longest, 'frame')}, from a given picture to the next"
        dataset = card.dataset
    if isinstance(weights.process, FullSequence):  # another program trained it, on what is unknown
        frames, dataset = counted(longest, "frame"), card.dataset
    return {
        "flowcept": card.version,
        "process": {
            name: value for name, value in vars(card.process).items() if not callable(value)
        },
        "parameters": {**counts, "total": sum(counts.values())},
        "tasks": ", ".join(sorted(weights.network.tasks)),
        "frames": f"{size} at {card.fps:g} per second",
        "lengths": frames,
        "dataset": dataset,
        "steps": card.steps,
        **({"base": asdict(card.base)} if card.base else {}),
        **({"hours": round(card.hours, 2)} if card.hours else {}),
        "trainings": [asdict(training) for training in card.trainings],
        "codec_psnr": card.codec_psnr,
        "network": _settings(card.network),
        "text": _settings(card.text),
        "codec": _settings(card.codec),
        **({"prompts": "; ".join(list(card.prompts)[:8])} if card.prompts else {}),
        **({"words": " ".join(list(card.words)[:80])} if card.words else {}),
        **({} if card.lexicon is None else {"lexicon": str(card.lexicon)}),
    }


def _settings(config: Any) -> dict[str, Any]:  # noqa: ANN401 - of any part
    """A part's settings, those of diffusers too, which the file holds as JSON text."""
    found = asdict(config)
    if found.get("source_config"):
        found["source_config"] = json.loads(found["source_config"])
    return found
