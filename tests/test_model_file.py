"""Model files: what was saved comes back, and nothing else is believed.

The file under test is that of a tiny model. Most tests take it apart into header and tensors,
change one thing, and put it together again.
"""

import copy
import hashlib
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowcept import files
from flowcept import model_file as checkpoint
from flowcept.codecs import CodecConfig
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.model_file import Card, Weights, describe, load, read_card, save
from flowcept.networks.text import TextConfig
from flowcept.networks.transformer import TransformerConfig
from flowcept.process.forward import Flowception
from flowcept.process.state import FrameState

CARD = Card(
    network=TransformerConfig(
        channels=4,
        height=4,
        width=6,
        largest_size=5,
        text_width=12,
        hidden=16,
        depth=2,
        heads=2,
        patch=2,
    ),
    process=Flowception(schedule="power:2"),
    text=TextConfig(width=12, depth=1, heads=2, tokens=3, max_bytes=20),
    codec=CodecConfig("autoencoder", 4, 4, 4),
    size=(16, 24),
    fps=12.5,
    lengths={3: 7, 5: 1},
    steps=11,
    dataset="a folder",
    prompts={"ein Hund 🐕": 4},
    words={"hund": 4},
)


def stirred(card: Card = CARD) -> Weights:
    """A model none of whose weights is at a value that a fresh one has."""
    torch.manual_seed(3)
    weights = checkpoint.build(card)
    for module in weights.modules().values():
        for tensor in module.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.1)
        module.eval().requires_grad_(requires_grad=False)  # as loaded: PyTorch takes other kernels
    return weights


def outputs(weights: Weights) -> list[torch.Tensor]:
    """What network, prompt encoder and codec make of fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    image_FCHW = torch.rand(5, 3, 16, 24, generator=generator) * 2 - 1
    latent_FCHW = weights.codec.encode(image_FCHW)
    state = FrameState(
        latent_FCHW=latent_FCHW,
        time_F=torch.tensor([0.1, 1.0, 0.5, 0.0, 0.9]),
        role_F=torch.tensor([0, 1, 0, 0, 2]),
        tau_B=torch.tensor([0.4, 1.2]),
        open_first_B=torch.tensor([True, False]),
        lengths=(2, 3),
    )
    with torch.no_grad():
        prompt = weights.text(["a dog", "ünder"])
        prediction = weights.network(state, prompt)
    return [
        prompt.token_SD,
        weights.codec.decode(latent_FCHW),
        *(x for x in vars(prediction).values() if isinstance(x, torch.Tensor)),
        *(vars(prediction.tables).values() if prediction.tables else ()),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(stirred(), path)
    return path


def card_of(path: Path) -> dict[str, Any]:
    """The JSON of a file, raw."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["flowcept"])


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the model with a change to its card or to its tensors."""

    def change(
        card: Callable[[dict[str, Any]], None] | None = None,
        tensors: Callable[[dict[str, torch.Tensor]], None] | None = None,
        text: str | None = None,
    ) -> Path:
        info, weights = card_of(model), load_file(model)
        if card:
            card(info)
        if tensors:
            tensors(weights)
        path = tmp_path / "changed.safetensors"
        header = json.dumps(info) if text is None else text
        save_file(weights, path, metadata={"flowcept": header})
        return path

    return change


def refused(path: Path, read: Callable[[Path], object] = load) -> str:
    """The one line that says why a file is not read."""
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text
    assert text.splitlines() == [text], text
    assert text.isprintable(), text
    return text


def test_what_is_saved_comes_back_bit_for_bit(model: Path):
    before, weights = stirred(), load(model)
    assert weights.card == CARD
    for a, b in zip(outputs(before), outputs(weights), strict=True):
        assert torch.equal(a, b)
    for part, module in weights.modules().items():
        wanted = before.modules()[part].state_dict()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
            assert tensor.device.type == "cpu"
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_a_lexicon_comes_back(tmp_path: Path):
    path = tmp_path / "words.safetensors"
    words = Lexicon({"actor": {"dog": ("puppy", "little hound")}}, {"ran": "run"})
    checkpoint.save(checkpoint.build(replace(CARD, lexicon=words)), path)
    assert read_card(path).lexicon == words
    assert describe(path)["lexicon"] == "2 words and phrases for 1 classes"


@pytest.mark.parametrize("wrong", [{"classes": {"actor": {"!": []}}}, {"classes": []}, 3])
def test_a_lexicon_that_is_none_is_one_line(model: Path, tmp_path: Path, wrong):
    path = tmp_path / "wrong.safetensors"
    header = {"flowcept": json.dumps(card_of(model) | {"lexicon": wrong})}
    save_file(load_file(model), path, metadata=header)
    with pytest.raises(UserError, match="of no usable model") as error:
        read_card(path)
    assert "\n" not in str(error.value)


def test_a_loaded_model_writes_the_same_file(model: Path, tmp_path: Path):
    save(load(model), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()


def test_bfloat16_halves_the_file_and_loads_as_float32(model: Path, tmp_path: Path):
    path = tmp_path / "half.safetensors"
    save(stirred(), path, torch.bfloat16)
    header = 20_000
    assert path.stat().st_size < (model.stat().st_size + header) / 2
    weights, whole = load(path), load(model)
    for part, module in weights.modules().items():
        for name, tensor in module.state_dict().items():
            assert tensor.dtype == torch.float32
            wanted = whole.modules()[part].state_dict()[name]
            assert torch.equal(tensor, wanted.bfloat16().float()), name
    outputs(weights)


def test_a_loaded_model_does_not_lean_on_its_file(model: Path, tmp_path: Path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(model.read_bytes())
    weights = load(path)
    before = outputs(weights)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(map(torch.equal, before, outputs(weights)))


def test_loading_leaves_the_generators_alone(model: Path):
    """A loaded model must not depend on, and a seeded caller not notice, fresh weights."""
    torch.manual_seed(1)
    first = outputs(load(model))
    torch.manual_seed(2)
    assert all(map(torch.equal, first, outputs(load(model))))


def test_read_card_needs_no_weights(model: Path, tmp_path: Path):
    assert read_card(model) == CARD
    head = tmp_path / "head.safetensors"
    head.write_bytes(model.read_bytes()[:-1])
    assert read_card(head) == CARD
    assert CARD.max_length == 5


def test_the_file_holds_no_paths_and_only_known_parts(model: Path):
    assert {name.split(".")[0] for name in load_file(model)} == {"network", "text", "codec"}
    card = {"format": 3, **asdict(CARD)}
    del card["lexicon"], card["sizes"]  # it has none
    card["network"] = {"family": "transformer", **card["network"]}
    assert card_of(model) == json.loads(json.dumps(card))


# Writing


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch, error):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old one")

    def half(_tensors, name, **_):
        Path(name).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
        save(stirred(), path)
    assert path.read_bytes() == b"the old one"
    assert leftovers(tmp_path) == ["model.safetensors"]


def test_a_full_disk_is_one_line(tmp_path: Path):
    """Stood in for by a bound on the size of files, which the system enforces alike."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old one")
    weights = stirred()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        message = refused(path, lambda path: save(weights, path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "write" in message
    assert path.read_bytes() == b"the old one"
    assert leftovers(tmp_path) == ["model.safetensors"]


def test_what_the_library_writes_beside_a_file_goes_with_a_killed_process(tmp_path, monkeypatch):
    """Its own temporary file lies in a hidden folder, as the next writer of a file finds them."""
    seen = []

    def killed(_, path, **__):
        (Path(path).parent / ".tmpABCDEF").write_text("half")
        seen.append(Path(path).parent.name)
        shutil.copytree(Path(path).parent, tmp_path / "kept")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save(stirred(), tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    left = seen[0].replace(f"-{os.getpid()}-", f"-{dead.stdout.strip()}-")
    (tmp_path / "kept").rename(tmp_path / left)
    monkeypatch.undo()
    monkeypatch.setattr(files, "_swept", set())
    save(stirred(), tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_not_replaced(tmp_path: Path):
    save(stirred(), tmp_path / "new" / "model.safetensors")
    assert load(tmp_path / "new" / "model.safetensors").card == stirred().card
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file" / "model.safetensors", lambda path: save(stirred(), path))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value):
    weights = stirred()
    with torch.no_grad():
        weights.network.layers[1].qkv.weight[0, 0] = value
    with pytest.raises(UserError, match=r"network\.layers\.1\.qkv\.weight"):
        save(weights, tmp_path / "model.safetensors")
    assert leftovers(tmp_path) == []


# Tensors

NAMES = ["network.layers.1.qkv.weight", "text.byte.weight", "codec.std_C", "codec.last.bias"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_is_named(changed, name):
    assert name in refused(changed(tensors=lambda t: t.pop(name)))


def test_all_tensors_are_needed(changed, model: Path):
    for name in list(load_file(model))[::15]:
        assert name in refused(changed(tensors=lambda t, name=name: t.pop(name)))


@pytest.mark.parametrize(
    "name", ["network.layers.2.qkv.weight", "other.weight", "codec", "network.", ""]
)
def test_an_unknown_tensor_is_named(changed, name):
    assert name in refused(changed(tensors=lambda t: t.update({name: torch.zeros(2)})))


def test_a_name_cannot_write_on_the_terminal(changed):
    refused(changed(tensors=lambda t: t.update({"codec.\n\x1b[2Jx": torch.zeros(2)})))


@pytest.mark.parametrize("name", NAMES)
def test_a_misshapen_tensor_is_named(changed, name):
    for shape in ([*torch.ones(2).shape, 1, 1, 1], [0], []):
        message = refused(changed(tensors=lambda t, s=shape: t.update({name: torch.zeros(s)})))
        assert name in message
    assert name in refused(
        changed(tensors=lambda t: t.update({name: t[name].mT[:-1].contiguous()}))
        if name.endswith("weight")
        else changed(tensors=lambda t: t.update({name: t[name][:-1].clone()}))
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
)
def test_a_tensor_of_another_type_is_named(changed, name, dtype):
    path = changed(tensors=lambda t: t.update({name: t[name].to(dtype)}))
    assert name in refused(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_named(changed, name, value, dtype):
    def spoil(tensors):
        tensor = tensors[name].to(dtype)
        tensor.view(-1)[-1] = value
        tensors[name] = tensor

    message = refused(changed(tensors=spoil))
    assert name in message
    assert "not finite" in message


def test_half_precision_of_either_kind_is_read(changed):
    def halve(tensors):
        for number, name in enumerate(tensors):
            tensors[name] = tensors[name].to((torch.float16, torch.bfloat16)[number % 2])

    outputs(load(changed(tensors=halve)))


# Files that are something else


def test_a_file_cut_short_anywhere_is_refused(model: Path, tmp_path: Path):
    data = model.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    edges = [*range(10), length, length + 7, length + 8, length + 9, len(data) - 1]
    path = tmp_path / "cut.safetensors"
    for size in [*edges, *range(10, len(data), len(data) // 12)]:
        path.write_bytes(data[:size])
        refused(path)
        if size < length + 8:
            refused(path, read_card)
    path.write_bytes(data + b"more")
    refused(path)


def test_bytes_changed_in_the_header_are_refused_or_harmless(model: Path, tmp_path: Path):
    """60 single bytes of the header, each at random; whatever is read must be a whole model."""
    data = bytearray(model.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    path = tmp_path / "flipped.safetensors"
    rng = np.random.default_rng(0)
    refusals = 0
    for place in rng.choice(8 + length, 60, replace=False):
        flipped = data.copy()
        flipped[place] = rng.integers(256)
        path.write_bytes(flipped)
        try:
            outputs(load(path))
        except UserError as error:
            refusals += 1
            assert str(path) in str(error)
            assert str(error).splitlines() == [str(error)]
    assert refusals > 30


@pytest.fixture(params=["empty", "text", "zeros", "png", "mp4", "zip", "json", "noise"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "foreign.safetensors"
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    if request.param == "mp4":
        video.write_video(tmp_path / "clip.mp4", clip, 12)
        path.write_bytes((tmp_path / "clip.mp4").read_bytes())
    elif request.param == "png":
        video.write_video(tmp_path / "clip.apng", clip, 12)
        path.write_bytes((tmp_path / "clip.apng").read_bytes())
    elif request.param == "zip":
        torch.save({"a": torch.zeros(3)}, path)
    else:
        noise = np.random.default_rng(0).bytes(5000)
        texts = {"text": b"hello\n" * 100, "zeros": bytes(1000), "json": b"{}", "noise": noise}
        path.write_bytes(texts.get(request.param, b""))
    return path


def test_files_of_other_kinds_are_refused(foreign: Path):
    refused(foreign)
    refused(foreign, read_card)


def test_missing_and_unreadable(tmp_path: Path):
    refused(tmp_path / "absent.safetensors")
    refused(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_is_refused(tmp_path: Path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    assert "not a model of flowcept" in refused(path)


def put_header(path: Path, header: bytes, length: int | None = None, tail: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + tail)
    return path


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**12, 3, 0])
def test_a_wrong_header_length_is_refused_at_once(tmp_path: Path, length):
    refused(put_header(tmp_path / "a.safetensors", b"{}", length))


def test_a_huge_header_is_not_read(tmp_path: Path):
    """200 MB of which nothing is on the disk: reading them would take this long at least."""
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(200_000_100)
    start = time.perf_counter()
    assert "header" in refused(path)
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"3",
        b"null",
        b'{"a": ',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"__metadata__": []}',
        b'{"__metadata__": {"flowcept": null}}',
        b'{"__metadata__": {"flowcept": {"format": 1}}}',
        b'{"__metadata__": {"flowcept": "[]"}}',
        b'{"__metadata__": {"flowcept": "{}"}}',
        b'{"__metadata__": {"flowcept": "{"}}',
        b'{"__metadata__": {"flowcept": "{\\"format\\": \\"1\\\\n2\\"}"}}',
        b'{"__metadata__": {"flowcept": "{\\"format\\": 1}"}}',
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header):
    path = put_header(tmp_path / "a.safetensors", header)
    refused(path)
    refused(path, read_card)


def test_tensors_that_lie_outside_the_file(model: Path, tmp_path: Path):
    data = model.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for offsets in ([0, 10**15], [10**15, 0], [-8, 0], [0, 8]):
        bad = copy.deepcopy(header)
        bad["codec.std_C"]["data_offsets"] = offsets
        text = json.dumps(bad).encode()
        refused(put_header(tmp_path / "a.safetensors", text, tail=data[8 + length :]))


# The card


def test_a_newer_format_asks_for_an_upgrade(changed):
    message = refused(changed(card=lambda c: c.update(format=checkpoint.FORMAT + 1)))
    assert "upgrade" in message
    assert str(checkpoint.FORMAT + 1) in message


def test_an_older_format_is_named(changed):
    """Its weights have the same shapes and another meaning."""
    message = refused(changed(card=lambda c: c.update(format=1)))
    assert "format 1" in message
    assert "train it again" in message


@pytest.mark.parametrize("version", [True, 2.0, "3", None, [3]])
def test_a_format_is_a_whole_number(changed, version):
    assert "format" in refused(changed(card=lambda c: c.update(format=version)))


# Format 2

NAMES_THEN = {  # of tensors of the network, by what they are called now
    "stem": "cells",
    "in_between": "between",
    "layers": "blocks",
    "image_read": "look",
    "image_token": "seen",
    "size": "count",
}


def as_of_2(info: dict[str, Any]) -> None:
    """Turn a card of today into one as format 2 had it."""
    network, process = info["network"], info["process"]
    assert network.pop("family") == "transformer"
    network["max_count"] = network.pop("largest_size")
    network["cells"] = network.pop("stem_channels")
    network["cell_depth"] = network.pop("stem_depth")
    info["network"] = network | {"rotary_values": False, "causal": False}
    info["process"] = process | {"kind": "flowception", "num_start": 1, "block": 1}
    del info["codec"]["pictures_per_latent"]
    info["format"] = 2


def renamed_as_of_2(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        part, _, rest = name.partition(".")
        first, dot, rest = rest.partition(".")
        if part == "network" and first in NAMES_THEN:
            tensors[f"network.{NAMES_THEN[first]}{dot}{rest}"] = tensors.pop(name)


@pytest.mark.parametrize("version", ["as it was last", "before rotary values and fit"])
def test_a_file_of_format_2_is_the_same_model(changed, model: Path, tmp_path: Path, version):
    """Bit for bit; what is saved of it is a file of today."""

    def older(info):
        as_of_2(info)
        if version != "as it was last":
            del info["network"]["rotary_values"], info["fit"]

    path = changed(card=older, tensors=renamed_as_of_2)
    assert set(load_file(path)) != set(load_file(model))
    assert read_card(path) == CARD
    weights = load(path)
    for a, b in zip(outputs(stirred()), outputs(weights), strict=True):
        assert torch.equal(a, b)
    save(weights, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("process", "kind", "full-sequence"),
        ("process", "kind", "autoregressive"),
        ("process", "num_start", 2),
        ("process", "num_start", 0),
        ("process", "schedule", "cosine"),
        ("network", "causal", True),
        ("network", "rotary_values", True),
    ],
)
def test_a_kind_of_format_2_that_has_left_is_named(changed, part, name, value):
    def older(info):
        as_of_2(info)
        info[part][name] = value

    path = changed(card=older, tensors=renamed_as_of_2)
    message = refused(path)
    assert str(value) in message
    assert name in message
    refused(path, read_card)


@pytest.mark.parametrize("name", ["network.cells.first.weight", "network.count.bias"])
def test_a_missing_tensor_of_format_2_is_named_as_today(changed, name):
    def without(tensors):
        renamed_as_of_2(tensors)
        del tensors[name]

    then = name.split(".")[1]
    today = next(now for now, old in NAMES_THEN.items() if old == then)
    message = refused(changed(card=as_of_2, tensors=without))
    assert name.replace(f".{then}.", f".{today}.") in message


def test_one_tensor_under_two_names_is_refused(changed):
    """Then's and today's, in a file of format 2; today's alone are those of format 3."""

    def twice(tensors):
        tensors["network.count.bias"] = tensors["network.size.bias"] + 1

    assert "twice" in refused(changed(card=as_of_2, tensors=twice))
    assert "network.count.bias" in refused(changed(tensors=twice))
    refused(changed(tensors=renamed_as_of_2))


def test_settings_that_format_2_needs(changed):
    def without(info):
        as_of_2(info)
        del info["network"]["cells"]

    assert "cells" in refused(changed(card=without, tensors=renamed_as_of_2))
    for part in ("network", "process"):
        for value in (None, 3, "x", [1]):
            refused(changed(card=lambda c, p=part, v=value: (as_of_2(c), c.update({p: v}))))


# Settings that came and went


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_setting_of_training_that_is_gone_is_left_out(changed, model: Path, tmp_path, value):
    """Bit for bit the model without it."""
    path = changed(card=lambda info: info["process"].update(context_noise=value))
    assert read_card(path) == CARD
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()


def test_what_a_card_does_not_say_of_its_process_is_off(changed):
    """Models of before these settings are sampled as they were, whatever training does today."""

    def older(info):
        assert info["process"] == {
            "schedule": "power:2", "shift": 1.0, "first": False, "planned": False, "late": 0.5,
            "fill": 0.0,
        }  # fmt: skip
        info["process"] = {"schedule": "power:2"}

    assert read_card(changed(card=older)) == CARD


# The card's own words


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "nonsense", "[" * 100_000])
def test_a_description_that_is_no_json(changed, text):
    refused(changed(text=text))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (None, "size", [64]),
        (None, "size", 64),
        (None, "size", [16, 1e400]),
        (None, "size", [-16, -24]),
        (None, "size", [16, 32]),
        (None, "fit", "squeeze"),
        (None, "fps", "fast"),
        (None, "fps", 0),
        (None, "fps", math.nan),
        (None, "fps", 1e400),
        (None, "lengths", {}),
        (None, "lengths", {"0": 3}),
        (None, "lengths", {"-1": 3}),
        (None, "lengths", {"three": 3}),
        (None, "lengths", {"3": "x"}),
        (None, "lengths", {"3": 0}),
        (None, "lengths", {"3": -2}),
        (None, "lengths", [3]),
        (None, "steps", "many"),
        (None, "steps", 1e400),
        (None, "prompts", ["a dog"]),
        (None, "prompts", {"a dog": None}),
        (None, "words", 3),
        (None, "network", None),
        (None, "codec", []),
        ("network", "heads", 0),
        ("network", "heads", -2),
        ("network", "patch", 0),
        ("network", "hidden", 16.0),
        ("network", "hidden", "16"),
        ("network", "hidden", True),
        ("network", "hidden", -16),
        ("network", "hidden", 17),
        ("network", "depth", 0),
        ("network", "window", -1),
        ("network", "largest_size", -1),
        ("network", "channels", 5),
        ("network", "colour", 5),
        ("network", "text_width", 13),
        ("network", "family", "magic"),
        ("process", "schedule", "power:nan"),
        ("process", "schedule", "sideways"),
        ("process", "shift", math.nan),
        ("process", "shift", 1e400),
        ("process", "late", 1.0),
        ("process", "kind", "flowception"),
        ("text", "kind", "magic"),
        ("text", "heads", 0),
        ("text", "width", 13),
        ("text", "tokens", -1),
        ("text", "max_bytes", -1),
        ("text", "max_bytes", 0),
        ("codec", "kind", "magic"),
        ("codec", "kind", ["pixels"]),
        ("codec", "compression", 4.0),
        ("codec", "compression", "4"),
        ("codec", "channels", 4.0),
        ("codec", "channels", 0),
        ("codec", "channels", True),
        ("codec", "width", 4.0),
        ("codec", "width", 5),
        ("codec", "source", 7),
        ("codec", "mystery\n\x1b[2J", 7),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, part, name, value):
    def change(card):
        (card[part] if part else card)[name] = value

    refused(changed(card=change))


@pytest.mark.parametrize("name", ["network", "process", "text", "codec", "size", "fps", "lengths"])
def test_a_missing_part_of_the_card_is_named(changed, name):
    assert name in refused(changed(card=lambda c: c.pop(name)))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("network", "hidden", 10**9),
        ("network", "hidden", 2**62),
        ("network", "hidden", 10**40),
        ("network", "largest_size", 10**12),
        ("network", "mlp_ratio", 10**9),
        ("network", "depth", 10**9),
        ("network", "stem_channels", 10**6),
        ("network", "stem_depth", 10**9),
        ("network", "between", 10**9),
        ("text", "tokens", 10**10),
        ("text", "max_bytes", 10**11),
        ("text", "width", 12 * 10**8),
        ("text", "depth", 10**9),
        ("codec", "width", 10**9),
        ("codec", "channels", 10**9),
        ("network", "largest_size", 10**7),  # what follows would fit into a large memory
        ("network", "stem_channels", 10**4),
        ("text", "buckets", 10**8),
        ("text", "max_bytes", 10**7),
        ("codec", "width", 10**4),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(changed, model, part, name, value):
    """Seconds and gigabytes would show here; 256 MiB more address space are allowed."""

    def change(card):
        card[part][name] = value
        if name in ("width", "channels"):  # as far as the parts must agree, let them agree
            other = {"text": "text_width", "codec": "channels"}[part]
            card["network"][other] = value

    path = changed(card=change)
    load(model)  # imports what the first load imports
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    start = time.process_time()
    try:
        refused(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < 5


# For people


def test_describe(model: Path):
    about = checkpoint.describe(model)
    weights = load(model)
    parameters = about["parameters"]
    assert parameters["network"] == sum(p.numel() for p in weights.network.parameters())
    assert parameters["total"] == sum(parameters[part] for part in ("network", "text", "codec"))
    assert about["bytes"] == model.stat().st_size
    assert about["frames"].startswith("24x16 ")
    assert about["lengths"] == "3 to 5 frames, 3.2 on average"
    assert about["dataset"] == "a folder: 8 clips"
    assert about["steps"] == 11
    assert "Hund" in about["prompts"]
    json.dumps(about)


# Trees of training state


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_tree_comes_back(tmp_path: Path):
    shared = torch.arange(12.0).reshape(3, 4)
    tree = {
        "step": 3,
        "rate": 1e-300,
        "third": 1 / 3,
        "huge": 2**70,
        "none": None,
        "yes": True,
        "text": "ü\n🐕",
        "empty": {},
        "nothing": [],
        0: {1: torch.tensor(5), 2: [torch.zeros(0, 3), (1, None, "x")]},
        "part": shared[:, 1],
        "whole": shared,
        "transposed": shared.mT,
        "bytes": torch.arange(256).to(torch.uint8),
        "half": torch.tensor([1.5, math.inf]).bfloat16(),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    checkpoint.save_tree(tree, tmp_path / "state.safetensors")
    back = checkpoint.load_tree(tmp_path / "state.safetensors")
    assert same(tree, back)
    assert same([1], checkpoint_round_trip([1], tmp_path))
    assert leftovers(tmp_path) == ["state.safetensors", "tree.safetensors"]


def checkpoint_round_trip(tree: object, folder: Path) -> object:
    checkpoint.save_tree(tree, folder / "tree.safetensors")
    return checkpoint.load_tree(folder / "tree.safetensors")


def test_an_optimizer_goes_on_from_a_tree(tmp_path: Path):
    def fresh() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.ones(3))
        return weight, torch.optim.AdamW([{"params": [weight], "weight_decay": 0.1}], fused=True)

    def step(weight: torch.nn.Parameter, optimizer: torch.optim.AdamW) -> None:
        weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    weight, optimizer = fresh()
    step(weight, optimizer)
    again, other = fresh()
    again.data.copy_(weight.data)
    other.load_state_dict(checkpoint_round_trip(optimizer.state_dict(), tmp_path))
    step(weight, optimizer)
    step(again, other)
    assert torch.equal(weight, again)


def test_a_file_that_is_no_state_is_refused(model: Path, tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    whole = tmp_path / "state.safetensors"
    checkpoint.save_tree({"a": torch.ones(100)}, whole)
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-50])
    for path in (model, tmp_path / "absent", tmp_path / "text", tmp_path / "cut"):
        refused(path, checkpoint.load_tree)


def test_the_card_describes_the_file_beside_it():
    """Size and checksum in the card are those of the shipped model."""
    folder = Path(__file__).parents[1] / "weights"
    model = (folder / "theatre.safetensors").read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{len(model):,} bytes" in card
    assert hashlib.sha256(model).hexdigest() in card
