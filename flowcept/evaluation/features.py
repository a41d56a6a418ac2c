"""Feature networks for Fréchet distances, from a local file: what a clip looks like, in numbers.

Two kinds. A TorchScript network maps whole clips to features; the widely used
``i3d_torchscript.pt`` is one, and only with it is the distance called FVD. A MobileNetV2 in a
safetensors file maps single frames; its distances are taken of frames and of the differences
between neighbouring frames, so that motion counts. They are neither FID nor FVD.

Shape suffixes: N clips, F frames, T frames of a clip, C = 3, H W in pixels, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from flowcept.errors import UserError

CLIP_FRAMES = 16  # frames that a TorchScript network is given of every clip, evenly spread
PART = 64  # frames, or clips of 16 frames / 16, at once
BLOCKS = 17  # of MobileNetV2
HALVING = frozenset({1, 3, 6, 13})  # blocks of stride 2


@dataclass(frozen=True)
class ClipFeatures:
    """Features of some clips."""

    clip_ND: Tensor  # of whole clips, float64
    frame_FD: Tensor | None = None  # of all their frames, clip after clip, where the network can
    lengths: tuple[int, ...] = ()

    def changes(self, clips: Sequence[int]) -> Tensor:
        """Differences between neighbouring frames of these clips, ``[F, D]``."""
        return torch.cat([self.frames(clip).diff(dim=0) for clip in clips])

    def frames(self, clip: int) -> Tensor:
        """Features of one clip's frames, ``[T, D]``."""
        assert self.frame_FD is not None
        start = sum(self.lengths[:clip])
        return self.frame_FD[start : start + self.lengths[clip]]


class FeatureNetwork(Protocol):
    """``name`` is what a Fréchet distance of its features is called."""

    name: str

    def __call__(self, clips: Sequence[Tensor]) -> ClipFeatures:
        """Features of clips ``image_FCHW`` in [-1, 1], of any lengths."""
        ...


def load_features(path: Path, device: torch.device) -> FeatureNetwork:
    """The feature network in a file. Raises ``UserError`` for a file that holds none."""
    if not path.is_file():
        raise UserError(f"no file {path}: give a TorchScript network or a MobileNetV2")
    if path.suffix == ".safetensors":
        return MobileNet(path, device)
    return Scripted(path, device)


class Scripted:
    """A TorchScript network from clips ``[N, 3, T, H, W]`` in [-1, 1] to features ``[N, D]``.

    Clips are brought to ``CLIP_FRAMES`` frames, evenly spread; short ones repeat some. A network
    whose call has the switches of ``i3d_torchscript.pt`` (rescale, resize, return_features) gets
    them: no rescaling, since pictures are in [-1, 1] already, its own resizing, features.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are not
                self.network: Any = torch.jit.load(str(path), map_location=device).eval()
            words = {argument.name for argument in self.network.forward.schema.arguments}
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{path} is not a TorchScript network: {reason}") from error
        switches = {"rescale": False, "resize": True, "return_features": True}
        self.path, self.device = path, device
        self.switches = switches if switches.keys() <= words else {}
        self.name = "FVD" if self.switches else f"Fréchet distance of {path.stem}"

    @torch.no_grad()
    def __call__(self, clips: Sequence[Tensor]) -> ClipFeatures:
        parts = []
        for start in range(0, len(clips), max(PART // CLIP_FRAMES, 1)):
            chosen = clips[start : start + max(PART // CLIP_FRAMES, 1)]
            video = torch.stack([_spread(clip).movedim(0, 1) for clip in chosen]).to(self.device)
            try:
                feature_ND = self.network(video, **self.switches)
            except (RuntimeError, torch.jit.Error) as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"{self.path} cannot read clips [N, 3, T, H, W]: {reason}"
                ) from error
            shape = feature_ND.shape if isinstance(feature_ND, Tensor) else ()
            if len(shape) < 2 or shape[0] != len(chosen):
                raise UserError(f"{self.path} gives no features [N, D] of clips [N, 3, T, H, W]")
            parts.append(feature_ND.flatten(1).cpu().double())
        return ClipFeatures(_finite(torch.cat(parts), self.path))


def _finite(features: Tensor, path: Path) -> Tensor:
    if not bool(features.isfinite().all()):
        raise UserError(f"{path} gives features that are not finite: its distances mean nothing")
    return features


def _spread(clip_FCHW: Tensor) -> Tensor:
    return clip_FCHW[torch.linspace(0, len(clip_FCHW) - 1, CLIP_FRAMES).round().long()]


class MobileNet:
    """MobileNetV2 1.0 for ImageNet, from a file of its folded weights.

    Names: ``stem``, blocks ``b0`` to ``b16`` of ``expand`` (not in ``b0``), ``dw`` and ``proj``,
    then ``head``, each with ``.weight`` and ``.bias``. Padding is TensorFlow's. A clip's features
    are the mean of its frames' and the mean size of their change from frame to frame.
    """

    name = "Fréchet MobileNet distance"

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not name.startswith("fc.")]  # noqa: SIM118
                self.weights = {n: file.get_tensor(n).float().to(device) for n in names}
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not readable as weights: {reason}") from error
        wanted = {f"{layer}.{part}" for layer in _layer_names() for part in ("weight", "bias")}
        missing = wanted - set(self.weights)
        if missing:
            raise UserError(f"{path} is not a MobileNetV2: no layer {min(missing)}")
        self.path, self.device = path, device
        try:
            self.look(torch.zeros(1, 3, 32, 32, device=device))
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{path} is not a MobileNetV2: its layers' shapes do not fit together"
            ) from error

    @torch.no_grad()
    def __call__(self, clips: Sequence[Tensor]) -> ClipFeatures:
        image_FCHW = torch.cat(list(clips))
        parts = [self.look(part.to(self.device)) for part in image_FCHW.split(PART)]
        frame_FD = _finite(torch.cat(parts).cpu().double(), self.path)
        lengths = tuple(len(clip) for clip in clips)
        rows = []
        for part in frame_FD.split(list(lengths)):
            change = part.diff(dim=0).abs().mean(0) if len(part) > 1 else torch.zeros_like(part[0])
            rows.append(torch.cat([part.mean(0), change]))
        return ClipFeatures(torch.stack(rows), frame_FD, lengths)

    def look(self, image_FCHW: Tensor) -> Tensor:
        """Features ``[F, 1280]`` of frames in [-1, 1]."""
        x = F.relu6(self._convolve("stem", image_FCHW, stride=2))
        for block in range(BLOCKS):
            y = x
            if block:
                y = F.relu6(self._convolve(f"b{block}.expand", y))
            stride = 2 if block in HALVING else 1
            y = F.relu6(self._convolve(f"b{block}.dw", y, stride=stride))
            y = self._convolve(f"b{block}.proj", y)
            x = x + y if x.shape == y.shape else y
        return F.relu6(self._convolve("head", x)).mean((2, 3))

    def _convolve(self, layer: str, x_FCHW: Tensor, stride: int = 1) -> Tensor:
        """A convolution with TensorFlow's "SAME" padding: the odd pixel goes below and right."""
        weight, bias = self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"]
        padding = []
        for size, kernel in zip(x_FCHW.shape[:1:-1], weight.shape[:1:-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        groups = x_FCHW.shape[1] // weight.shape[1]
        return F.conv2d(F.pad(x_FCHW, padding), weight, bias, stride, groups=groups)


def _layer_names() -> set[str]:
    inner = {f"b{b}.{part}" for b in range(BLOCKS) for part in ("expand", "dw", "proj")}
    return {"stem", "head", *inner} - {"b0.expand"}
