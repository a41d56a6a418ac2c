"""MobileNetV2 as its description says, and what is made of its features of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mobilenet import BLOCKS, HALVING, MobileNet, by_quarter, changes, of_clips
from safetensors.torch import load_file, save_file

from flowcept.codecs import to_images
from flowcept.data.video import read_video
from flowcept.errors import UserError
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import QUARTERS, Clip, quarter

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
    network = MobileNet(tmp_path / "net.safetensors", CPU)
    image_1CHW = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    expected = mobilenet_by_hand(image_1CHW[0].double().numpy(), weights)
    assert network.look(image_1CHW)[0].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len(np.unique(expected.round(3))) > 4, "features that are all alike prove nothing"


@pytest.fixture
def network(tmp_path, generator):
    save_file(mobilenet_weights(generator), tmp_path / "net.safetensors")
    return MobileNet(tmp_path / "net.safetensors", CPU)


def test_mobilenet_features_of_clips(network, generator):
    clips = [torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1 for n in (3, 1, 70)]
    frames = network.frames(clips)
    clip_ND = network(clips)
    assert [tuple(frame_TD.shape) for frame_TD in frames] == [(3, 12), (1, 12), (70, 12)]
    assert clip_ND.shape == (3, 24)
    assert (of_clips(frames) == clip_ND).all()
    for clip, image_FCHW in enumerate(clips):
        own = network.look(image_FCHW).double()
        torch.testing.assert_close(frames[clip], own, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(clip_ND[clip, :12], own.mean(0), atol=1e-3, rtol=1e-3)
    change = frames[0].diff(dim=0)
    torch.testing.assert_close(clip_ND[0, 12:], change.abs().mean(0))
    assert not clip_ND[1, 12:].any(), "a clip of one frame does not change"
    torch.testing.assert_close(
        changes([frames[0], frames[1], frames[0]]), torch.cat([change, change])
    )


def test_distances_by_quarter_are_those_of_the_quarters(network, generator):
    """Taken from the features of whole clips, or of the quarters as clips: the same."""
    sides = [
        [torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1 for n in lengths]
        for lengths in ((3, 5, 8, 6), (4, 2, 9, 7))
    ]
    real, made = ([Clip(image, "a") for image in side] for side in sides)
    found = by_quarter(network.frames_of(real), network.frames_of(made))
    assert len(found) == QUARTERS
    for number, distance in enumerate(found):
        a, b = (
            torch.cat(network.frames([image[quarter(len(image), number)] for image in side]))
            for side in sides
        )
        assert distance == pytest.approx(metrics.frechet_of_samples(a, b), rel=1e-4)


def test_distances_of_frames_and_of_changes(network, generator):
    real = network.frames(
        [torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1 for n in (3, 5, 4)]
    )
    still = [frame_TD[:1].expand(4, -1) for frame_TD in real]
    assert metrics.frechet_of_samples(changes(real), changes(real)) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_of_samples(changes(real), changes(still)) > 0.05


def test_files_that_are_no_mobilenet(tmp_path, generator):
    (tmp_path / "text.safetensors").write_text("no weights")
    weights = mobilenet_weights(generator)
    save_file({k: v for k, v in weights.items() if "b7.dw" not in k}, tmp_path / "cut.safetensors")
    bare = {k: v for k, v in weights.items() if k != "stem.bias"}
    save_file(bare, tmp_path / "bare.safetensors")
    for name, words in (
        ("text.safetensors", "not readable as weights"),
        ("cut.safetensors", "no layer b7.dw"),
        ("bare.safetensors", "no layer stem.bias"),
    ):
        with pytest.raises(UserError, match=words) as error:
            MobileNet(tmp_path / name, CPU)
        assert "\n" not in str(error.value)
    for layer, shape in (
        ("b3.dw.weight", (7, 5, 3, 3)),
        ("stem.weight", (8, 99)),
        ("stem.bias", (0,)),
    ):
        save_file(weights | {layer: torch.zeros(shape)}, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match="shapes do not fit"):
            MobileNet(tmp_path / "odd.safetensors", CPU)
    weights["head.bias"][:] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="not finite"):
        MobileNet(tmp_path / "nan.safetensors", CPU)([torch.zeros(1, 3, 32, 32)])


def test_the_real_mobilenet_knows_a_dog(shared_data):
    path = shared_data / "features" / "mobilenet_v2_imagenet_fp16.safetensors"
    network = MobileNet(path, CPU)
    weights = load_file(path)
    labels = (path.parent / "imagenet_labels.txt").read_text().splitlines()
    frames_FHW3 = read_video(shared_data / "clips" / "vidtome_flamingo.mp4")[0][:4]
    scores = network.look(to_images(frames_FHW3)) @ weights["fc.weight"].float().flatten(1).T
    best = (scores + weights["fc.bias"]).mean(0).topk(5).indices.tolist()
    assert any("flamingo" in labels[i] for i in best), [labels[i] for i in best]
