"""Feature networks from files: the right network, called the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flowcept.codecs import to_images
from flowcept.data.video import read_video
from flowcept.errors import UserError
from flowcept.evaluation.features import BLOCKS, CLIP_FRAMES, HALVING, MobileNet, load_features

CPU = torch.device("cpu")
WIDTHS = [4, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9]  # stem, then each block's output


def mobilenet_weights(generator):
    """Random weights of narrow layers; expansion by two."""
    shapes = {"stem": (WIDTHS[0], 3, 3, 3)}
    for block in range(BLOCKS):
        wide, narrow = WIDTHS[block], WIDTHS[block + 1]
        inner = wide if block == 0 else 2 * wide
        if block:
            shapes[f"b{block}.expand"] = (inner, wide, 1, 1)
        shapes[f"b{block}.dw"] = (inner, 1, 3, 3)
        shapes[f"b{block}.proj"] = (narrow, inner, 1, 1)
    shapes["head"] = (12, WIDTHS[-1], 1, 1)
    weights = {}
    for name, shape in shapes.items():
        scale = 2 / np.sqrt(np.prod(shape[1:]))
        weights[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)
    return weights


def same_convolution(image, weight, bias, stride, depthwise):
    """TensorFlow's "SAME" convolution, one output pixel at a time."""
    channels, height, width = image.shape
    kernel = weight.shape[-1]
    rows, columns = -(-height // stride), -(-width // stride)
    above = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    out = np.zeros((len(weight), rows, columns))
    for y in range(rows):
        for x in range(columns):
            patch = np.zeros((channels, kernel, kernel))
            for i in range(kernel):
                for j in range(kernel):
                    v, u = y * stride + i - above, x * stride + j - left
                    if 0 <= v < height and 0 <= u < width:
                        patch[:, i, j] = image[:, v, u]
            if depthwise:
                out[:, y, x] = (weight[:, 0] * patch).sum((1, 2)) + bias
            else:
                out[:, y, x] = (weight * patch).sum((1, 2, 3)) + bias
    return out


def mobilenet_by_hand(image, weights):
    def layer(name, x, stride=1):
        weight, bias = (weights[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
        return same_convolution(x, weight, bias, stride, name.endswith("dw"))

    x = np.clip(layer("stem", image, 2), 0, 6)
    for block in range(BLOCKS):
        y = x if block == 0 else np.clip(layer(f"b{block}.expand", x), 0, 6)
        y = np.clip(layer(f"b{block}.dw", y, 2 if block in HALVING else 1), 0, 6)
        y = layer(f"b{block}.proj", y)
        x = x + y if y.shape == x.shape else y
    return np.clip(layer("head", x), 0, 6).mean((1, 2))


@pytest.mark.parametrize("size", [(32, 32), (33, 20)])
def test_mobilenet_is_what_its_description_says(tmp_path, generator, size):
    weights = mobilenet_weights(generator)
    save_file(weights, tmp_path / "net.safetensors")
    network = load_features(tmp_path / "net.safetensors", CPU)
    image_1CHW = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    expected = mobilenet_by_hand(image_1CHW[0].double().numpy(), weights)
    assert network.look(image_1CHW)[0].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len(np.unique(expected.round(3))) > 4, "features that are all alike prove nothing"


def test_mobilenet_features_of_clips(tmp_path, generator):
    save_file(mobilenet_weights(generator), tmp_path / "net.safetensors")
    network = MobileNet(tmp_path / "net.safetensors", CPU)
    clips = [torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1 for n in (3, 1, 70)]
    found = network(clips)
    assert found.frame_FD.shape == (74, 12)
    assert found.clip_ND.shape == (3, 24)
    for clip, image_FCHW in enumerate(clips):
        own = network.look(image_FCHW).double()
        torch.testing.assert_close(found.frames(clip), own, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.clip_ND[clip, :12], own.mean(0), atol=1e-3, rtol=1e-3)
    changes = found.frames(0).diff(dim=0)
    torch.testing.assert_close(found.clip_ND[0, 12:], changes.abs().mean(0))
    assert not found.clip_ND[1, 12:].any(), "a clip of one frame does not change"
    torch.testing.assert_close(found.changes([0, 1, 0]), torch.cat([changes, changes]))


def test_the_real_mobilenet_knows_a_dog(shared_data):
    path = shared_data / "features" / "mobilenet_v2_imagenet_fp16.safetensors"
    network = MobileNet(path, CPU)
    from safetensors.torch import load_file

    weights = load_file(path)
    labels = (path.parent / "imagenet_labels.txt").read_text().splitlines()
    frames_FHW3, _ = read_video(shared_data / "clips" / "vidtome_flamingo.mp4", max_frames=4)
    scores = network.look(to_images(frames_FHW3)) @ weights["fc.weight"].float().flatten(1).T
    best = (scores + weights["fc.bias"]).mean(0).topk(5).indices.tolist()
    assert any("flamingo" in labels[i] for i in best), [labels[i] for i in best]


class Inflated(nn.Module):
    """The call of ``i3d_torchscript.pt``; tells what it was given."""

    def forward(
        self,
        img: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:
        if rescale or not resize or not return_features:
            return torch.zeros(1)
        frames = torch.full((img.shape[0],), float(img.shape[2]))
        return torch.stack([img.amax((1, 2, 3, 4)), img.amin((1, 2, 3, 4)), frames], dim=1)


class Plain(nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.mean((3, 4)).flatten(1)


class NoFeatures(nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.mean()


class OneNumber(nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.mean((1, 2, 3, 4))


class Refuses(nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        assert clip.shape[1] == 1, "grey clips only"
        return clip.flatten(1)


@pytest.mark.parametrize("lengths", [(5, 16, 40, 1, 20)])
def test_i3d_is_called_as_it_wants(tmp_path, generator, lengths):
    torch.jit.script(Inflated()).save(str(tmp_path / "i3d_torchscript.pt"))
    network = load_features(tmp_path / "i3d_torchscript.pt", CPU)
    assert network.name == "FVD"
    clips = [torch.rand(n, 3, 8, 8, generator=generator) * 2 - 1 for n in lengths]
    found = network(clips)
    assert found.frame_FD is None
    assert found.clip_ND.shape == (5, 3)
    assert (found.clip_ND[:, 2] == CLIP_FRAMES).all()
    whole = torch.tensor([[float(clips[i].max()), float(clips[i].min())] for i in (0, 1, 3)])
    torch.testing.assert_close(found.clip_ND[[0, 1, 3], :2].float(), whole)


def test_any_other_script_is_not_called_fvd(tmp_path):
    torch.jit.script(Plain()).save(str(tmp_path / "mine.pt"))
    network = load_features(tmp_path / "mine.pt", CPU)
    assert network.name == "Fréchet distance of mine"
    ramp = torch.arange(31.0)[:, None, None, None].expand(-1, 3, 4, 4)
    found = network([ramp]).clip_ND.view(3, CLIP_FRAMES)
    assert found[0].tolist() == [*range(0, 31, 2)], "evenly spread, both ends among them"


def test_files_that_are_no_feature_network(tmp_path, generator):
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "text.safetensors").write_text("no weights")
    weights = mobilenet_weights(generator)
    save_file({k: v for k, v in weights.items() if "b7.dw" not in k}, tmp_path / "cut.safetensors")
    bare = {k: v for k, v in weights.items() if k != "stem.bias"}
    save_file(bare, tmp_path / "bare.safetensors")
    for name, words in (
        ("absent.pt", "no file"),
        ("text.pt", "not a TorchScript network"),
        ("text.safetensors", "not readable as weights"),
        ("cut.safetensors", "no layer b7.dw"),
        ("bare.safetensors", "no layer stem.bias"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load_features(tmp_path / name, CPU)
        assert "\n" not in str(error.value)
    for network, words in (
        (NoFeatures(), "gives no features"),
        (OneNumber(), "gives no features"),
        (Refuses(), "cannot read clips .* grey clips only"),
    ):
        torch.jit.script(network).save(str(tmp_path / "mine.pt"))
        with pytest.raises(UserError, match=words):
            load_features(tmp_path / "mine.pt", CPU)([torch.zeros(4, 3, 8, 8)])
    for layer, shape in (
        ("b3.dw.weight", (7, 5, 3, 3)),
        ("stem.weight", (8, 99)),
        ("stem.bias", (0,)),
    ):
        save_file(weights | {layer: torch.zeros(shape)}, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match="shapes do not fit"):
            load_features(tmp_path / "odd.safetensors", CPU)
    weights["head.bias"][:] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="not finite"):
        load_features(tmp_path / "nan.safetensors", CPU)([torch.zeros(1, 3, 32, 32)])
