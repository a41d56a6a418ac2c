"""A feature network of single frames for the tables of docs/: MobileNetV2, and what is made of it.

Its distances are taken of clips, of frames and of the differences between neighbouring frames, so
that motion counts. They are neither FID nor FVD.

Shape suffixes: N clips, F T frames, C = 3, H W in pixels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from flowcept.errors import UserError
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import QUARTERS, Clip, quarter
from flowcept.evaluation.features import FeatureNetwork

PART = 64  # frames at once
BLOCKS = 17
HALVING = frozenset({1, 3, 6, 13})  # blocks of stride 2


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

    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """Features ``[N, 2 D]`` of whole clips ``image_FCHW`` in [-1, 1]."""
        return of_clips(self.frames(clips))

    def frames_of(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Features ``[T, D]`` of each clip's frames."""
        return self.frames([clip.image_FCHW for clip in clips])

    @torch.no_grad()
    def frames(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Features ``[T, D]`` of each clip's frames, float64."""
        parts = [self.look(part.to(self.device)) for part in torch.cat(list(clips)).split(PART)]
        frame_FD = torch.cat(parts).cpu().double()
        if not bool(frame_FD.isfinite().all()):
            raise UserError(f"{self.path} gives features that are not finite")
        return list(frame_FD.split([len(clip) for clip in clips]))

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


def network_of(path: Path) -> FeatureNetwork | MobileNet:
    """A TorchScript network, or MobileNetV2 from a .safetensors file, on the CPU."""
    device = torch.device("cpu")
    return (MobileNet if path.suffix == ".safetensors" else FeatureNetwork)(path, device)


def _layer_names() -> set[str]:
    inner = {f"b{b}.{part}" for b in range(BLOCKS) for part in ("expand", "dw", "proj")}
    return {"stem", "head", *inner} - {"b0.expand"}


def of_clips(frames: Sequence[Tensor]) -> Tensor:
    """Of each clip the mean of its frames' features, then of the size of their changes."""
    rows = []
    for frame_TD in frames:
        changes_TD = frame_TD.diff(dim=0).abs()
        change_D = changes_TD.mean(0) if len(changes_TD) else torch.zeros_like(frame_TD[0])
        rows.append(torch.cat([frame_TD.mean(0), change_D]))
    return torch.stack(rows)


def changes(frames: Sequence[Tensor]) -> Tensor:
    """Differences between the features of neighbouring frames, of all clips, ``[F, D]``."""
    return torch.cat([frame_TD.diff(dim=0) for frame_TD in frames])


def by_quarter(real: Sequence[Tensor], made: Sequence[Tensor]) -> list[float]:
    """Distance of the frames' features in each quarter of the clips."""

    def frames(clips: Sequence[Tensor], number: int) -> Tensor:
        return torch.cat([frame_TD[quarter(len(frame_TD), number)] for frame_TD in clips])

    return [
        metrics.frechet_of_samples(frames(real, number), frames(made, number))
        for number in range(QUARTERS)
    ]
