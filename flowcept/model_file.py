"""One ``.safetensors`` file is one model: network, prompt encoder, codec, and what they are.

The header holds a versioned JSON under the key ``flowcept``; tensors are named ``network.*``,
``text.*`` and ``codec.*``. Nothing in the file can execute. Reading trusts nothing: what is wrong
with a file is said in one line before anything of its claimed size is allocated.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowcept import __version__
from flowcept.codecs import Codec, CodecConfig, build_codec
from flowcept.errors import UserError
from flowcept.networks.text import PromptEncoder, TextConfig, build_encoder
from flowcept.networks.transformer import ModelConfig, Network
from flowcept.process.forward import ProcessConfig
from flowcept.settings import FASTEST, FITS, SLOWEST

FORMAT = 2  # of the file; of 1 the logits of counts meant something else
LARGEST_DEPTH = 1000  # blocks; building more would take minutes even without memory
SIZE_ALLOWANCE = 2**24  # bytes that a card may call for beyond what its file holds
LARGEST_HEADER = 10_000_000  # bytes; ours have some tens of thousands
WORDS = 2000  # of the training prompts at most are listed in a card, the most frequent
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Card:
    """What a model is and what it was trained on."""

    network: ModelConfig
    process: ProcessConfig
    text: TextConfig
    codec: CodecConfig
    size: tuple[int, int]  # height and width of a frame, in pixels
    fps: float  # frames per second of the training clips
    lengths: dict[int, int]  # trained clips by number of frames
    fit: str = "crop"  # how training clips got the size: crop, pad or stretch
    steps: int = 0  # training steps of the network
    dataset: str = ""  # name of the training folder
    prompts: dict[str, int] = field(default_factory=dict)  # commonest training prompts, clips each
    words: dict[str, int] = field(default_factory=dict)  # words of the training prompts, clips each
    version: str = __version__  # of the package that wrote the file

    @property
    def min_length(self) -> int:
        """Frames of the shortest trained clip."""
        return min(self.lengths)

    @property
    def max_length(self) -> int:
        """Frames of the longest trained clip."""
        return max(self.lengths)

    @property
    def rests(self) -> bool:
        """Whether finished frames may rest (``cache.Cache``).

        Not in baselines whose frames see later ones: they would rest as of when those were noise.
        """
        return self.process.kind == "flowception" or self.network.causal


@dataclass(frozen=True)
class Weights:
    """The three modules of a model and its card."""

    network: Network
    text: PromptEncoder
    codec: Codec
    card: Card

    def modules(self) -> dict[str, nn.Module]:
        """By the first part of their tensors' names; a frozen encoder stays outside the file."""
        modules: dict[str, nn.Module] = {"network": self.network, "codec": self.codec}
        if self.card.text.kind == "bytes":
            modules["text"] = self.text
        return modules


def build(card: Card) -> Weights:
    """The modules that a card describes, with fresh weights."""
    return Weights(
        Network(card.network, card.process),
        build_encoder(card.text),
        build_codec(card.codec),
        card,
    )


def save(weights: Weights, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model whole or not at all; floating-point tensors are stored as ``dtype``.

    Raises ``UserError`` where the file cannot be written or a weight is not finite.
    """
    tensors = {
        f"{part}.{name}": _stored(tensor, dtype)
        for part, module in weights.modules().items()
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"the model is not written: {name} is not finite; train with a lower rate"
            )
    header = {"flowcept": json.dumps({"format": FORMAT, **asdict(weights.card)})}
    _write(path, tensors, header)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Under a temporary name first, then renamed."""
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".safetensors", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(tensors, temporary, metadata=header)
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # a full disk comes as either
        reason = getattr(error, "strerror", None) or _line(error)
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def is_model(path: Path) -> bool:
    """Whether a file says that it is a model of ours; of which format, and whole, is not asked."""
    try:
        with safe_open(path, framework="pt") as file:
            return "flowcept" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_card(path: Path) -> Card:
    """The card of a model file, without its weights."""
    return _card(_header(path), path)


def load(path: Path) -> Weights:
    """Read a model; weights become float32 on the CPU.

    Raises ``UserError``, one line, for a file that is missing, not a model of ours, of another
    format, truncated, or whose tensors are not those that its card calls for, or not finite.
    """
    card = _card(_header(path), path)
    _check_size(card, path)
    try:
        weights = build(card)
    except UserError:
        raise
    except Exception as error:  # modules raise what they like for sizes out of all reason
        raise UserError(f"{path}: its settings make no model ({_line(error)})") from error
    expected = {
        f"{part}.{name}": tensor
        for part, module in weights.modules().items()
        for name, tensor in module.state_dict().items()
    }
    try:
        with safe_open(path, framework="pt") as file:
            _compare_names(path, set(file.keys()), set(expected))
            for name, tensor in expected.items():
                tensor.copy_(_checked(file, name, tensor, path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({_line(error)}); get the file again") from error
    for module in (weights.network, weights.text, weights.codec):
        module.eval().requires_grad_(requires_grad=False)
    return weights


def _check_size(card: Card, path: Path) -> None:
    """Refuse settings that call for more weights than the file can hold, before they are made.

    A lower bound: two bytes for each weight of the largest matrices. What passes by the allowance
    costs little to make, and what is wrong with it is then said more exactly.
    """
    network, text, codec = card.network, card.text, card.codec
    places = network.height // network.patch + network.width // network.patch + network.patches
    least = network.hidden * (12 * network.depth * network.hidden + network.max_count + places)
    channels = network.cell_channels
    least += 18 * network.cells * network.channels
    least += 40 * network.cell_depth * sum(c**2 for c in channels)
    least += 18 * network.between * network.cells**2
    larger = [*channels[1:], network.hidden]
    merges = zip(network.merges, channels, larger, strict=True)
    least += sum(2 * side**2 * c * merged for side, c, merged in merges)
    if text.kind == "bytes":
        per_token = text.buckets + text.tokens + text.max_bytes
        least += text.width * (12 * text.depth * text.width + per_token)
    if codec.kind == "autoencoder":
        least += 9 * codec.width * (codec.width + codec.channels)
    if 2 * least > path.stat().st_size + SIZE_ALLOWANCE:
        raise UserError(f"{path}: its settings make no model (it is too small for them)")


def _compare_names(path: Path, found: set[str], expected: set[str]) -> None:
    for names, what in ((expected - found, "lacks"), (found - expected, "has an unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} {what} tensor {min(names)!r}{more}; get the file again")


def _checked(file: Any, name: str, like: Tensor, path: Path) -> Tensor:  # noqa: ANN401
    part = file.get_slice(name)
    if tuple(part.get_shape()) != tuple(like.shape):
        raise UserError(
            f"{path}: tensor {name} has shape {list(part.get_shape())}, not {list(like.shape)}; "
            "get the file again"
        )
    kinds = tuple(FLOATS) if like.is_floating_point() else ("I64",)
    if part.get_dtype() not in kinds:
        raise UserError(
            f"{path}: tensor {name} has type {part.get_dtype()}, not {' or '.join(kinds)}"
        )
    tensor: Tensor = file.get_tensor(name)
    if not bool(tensor.isfinite().all()):
        raise UserError(
            f"{path}: tensor {name} holds values that are not finite; get the file again"
        )
    return tensor.float() if tensor.is_floating_point() else tensor


def _header(path: Path) -> dict[str, Any]:
    """The JSON of a model file; the size of the header is checked before it is read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if size < 8 or not 2 <= length <= size - 8:
                raise UserError(f"{path} is not a model file of flowcept, or is cut short")
            if length > LARGEST_HEADER:
                raise UserError(f"{path} has a header of {length} bytes: not a model of flowcept")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a model file of flowcept") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "flowcept" not in metadata:
        raise UserError(f"{path} is a safetensors file but not a model of flowcept")
    try:
        info = json.loads(metadata["flowcept"])
        version = info["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: its description cannot be read; get the file again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"{path} has format {version!r}, this flowcept reads up to {FORMAT}: upgrade flowcept"
        )
    if version < FORMAT:
        raise UserError(
            f"{path} has format {version}, which an older flowcept wrote: this one reads {FORMAT}; "
            "train it again"
        )
    return dict(info)


T = TypeVar("T")


def _record(kind: type[T], values: object) -> T:
    """A dataclass from JSON: unknown and missing names are errors, and so are wrong types."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__} is not a record")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - set(known)
    if unknown:
        raise TypeError(f"unknown setting {min(unknown)!r}")
    for name, value in values.items():
        kind_of = known[name].type  # a string where annotations are not evaluated
        wanted = kind_of if isinstance(kind_of, str) else kind_of.__name__
        kinds = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}.get(wanted)
        if kinds and (
            not isinstance(value, kinds) or (isinstance(value, bool) and wanted != "bool")
        ):
            raise TypeError(f"{name} is {value!r}, not {wanted}")
    return kind(**values)


def _counts(values: object) -> dict[str, int]:
    if not isinstance(values, Mapping) or not all(isinstance(v, int) for v in values.values()):
        raise TypeError("counts are not a record of whole numbers")
    return dict(values)


def _card(info: dict[str, Any], path: Path) -> Card:
    try:
        height, width = info["size"]
        lengths = {int(n): count for n, count in _counts(info["lengths"]).items()}
        card = Card(
            network=_record(ModelConfig, info["network"]),
            process=_record(ProcessConfig, info["process"]),
            text=_record(TextConfig, info["text"]),
            codec=_record(CodecConfig, info["codec"]),
            size=(int(height), int(width)),
            fps=float(info["fps"]),
            lengths=lengths,
            fit=str(info.get("fit", "crop")),  # files of before it was recorded were cropped
            steps=int(info["steps"]),
            dataset=str(info["dataset"]),
            prompts=_counts(info["prompts"]),
            words=_counts(info["words"]),
            version=str(info["version"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, UserError) as error:
        raise UserError(f"{path}: its description makes no sense ({_line(error)})") from error
    if not lengths or min(*lengths, *lengths.values()) < 1:
        raise UserError(f"{path}: its description makes no sense (lengths)")
    if not SLOWEST <= card.fps <= FASTEST or min(card.size) < 1 or card.fit not in FITS:
        raise UserError(f"{path}: its description makes no sense (fps, size or fit)")
    if max(card.network.depth, card.text.depth) > LARGEST_DEPTH:
        raise UserError(f"{path}: its description makes no sense (over {LARGEST_DEPTH} blocks)")
    if (card.codec.channels, card.text.width) != (card.network.channels, card.network.text_width):
        raise UserError(f"{path}: its description makes no sense (its parts do not fit together)")
    latent = (card.size[0] // card.codec.compression, card.size[1] // card.codec.compression)
    if latent != (card.network.height, card.network.width):
        raise UserError(f"{path}: its description makes no sense (frame size and codec disagree)")
    return card


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"missing {error}"
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in first)  # it may quote the file


def find(name: str | None) -> Path:
    """The file of a model: a path, or the name of a shipped model; None is the default one."""
    wanted = name or os.environ.get("FLOWCEPT_MODEL") or "theatre"
    if Path(wanted).suffix or "/" in wanted or os.sep in wanted:
        try:
            return Path(wanted).expanduser()
        except RuntimeError as error:
            raise UserError(f"no model {wanted!r}: there is no such user") from error
    shipped = shipped_models()
    if wanted in shipped:
        return shipped[wanted]
    if Path(wanted).is_file():
        return Path(wanted)
    names = ", ".join(sorted(shipped)) or "none"
    raise UserError(f"no model {wanted!r}: give a .safetensors file or a shipped name ({names})")


def shipped_models() -> dict[str, Path]:
    """Models that came with the package, by name: in the wheel, or beside a source checkout."""
    here = Path(__file__).parent
    files = [
        f
        for folder in (here / "weights", here.parent / "weights")
        for f in folder.glob("*.safetensors")
    ]
    return {file.stem: file for file in reversed(files)}


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
    _write(path, tensors, header)


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


def describe(path: Path) -> dict[str, Any]:
    """What a model file is, by name, for people."""
    weights = load(path)
    card = weights.card
    counts = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in weights.modules().items()
    }
    total = sum(card.lengths.values())
    mean = sum(n * count for n, count in card.lengths.items()) / total
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "flowcept": card.version,
        "process": asdict(card.process),
        "parameters": {**counts, "total": sum(counts.values())},
        "frames": f"{card.size[1]}x{card.size[0]} pixels at {card.fps:g} per second",
        "lengths": f"{min(card.lengths)} to {card.max_length} frames, {mean:.1f} on average",
        "dataset": f"{card.dataset}: {total} clips",
        "steps": card.steps,
        "network": asdict(card.network),
        "text": asdict(card.text),
        "codec": asdict(card.codec),
        "prompts": "; ".join(list(card.prompts)[:8]),
        "words": " ".join(list(card.words)[:80]),
    }
