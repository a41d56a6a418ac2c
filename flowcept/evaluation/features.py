"""Feature networks for Fréchet distances, from a local file: what a clip looks like, in numbers.

A TorchScript network maps whole clips to features. The widely used ``i3d_torchscript.pt`` is one,
and only with it is the distance called FVD.

Shape suffixes: N clips, F T frames of a clip, C = 3, H W in pixels, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcept.errors import UserError

CLIP_FRAMES = 16  # frames that a network is given of every clip, evenly spread
CLIPS = 4  # at once


class FeatureNetwork:
    """A TorchScript network from clips ``[N, 3, T, H, W]`` in [-1, 1] to features ``[N, D]``.

    ``name`` is the name of a Fréchet distance of its features. Clips are brought to
    ``CLIP_FRAMES`` frames, evenly spread; short ones repeat some. A network whose call has the
    switches of ``i3d_torchscript.pt`` (rescale, resize, return_features) gets them: no rescaling,
    since pictures are in [-1, 1] already, its own resizing, features. ``UserError`` for a file or
    a network of another kind.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        if not path.is_file():
            raise UserError(f"no file {path}: --features must be a TorchScript network")
        if path.suffix == ".safetensors":
            raise UserError(f"{path} holds only weights: --features must be a TorchScript network")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are not
                self.network: Any = torch.jit.load(str(path), map_location=device).eval()
            words = {argument.name for argument in self.network.forward.schema.arguments}
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{path} is not a TorchScript network: {reason}") from error

        switches = {"rescale": False, "resize": True, "return_features": True}
        self.switches = switches if switches.keys() <= words else {}
        self.path, self.device = path, device
        self.name = "FVD" if self.switches else f"Fréchet distance of {path.stem}"

    @torch.no_grad()
    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """Features ``[N, D]`` in float64 of clips ``image_FCHW`` in [-1, 1], of any lengths."""
        starts = range(0, len(clips), CLIPS)
        feature_ND = torch.cat([self._features(clips[i : i + CLIPS]) for i in starts])
        if not bool(feature_ND.isfinite().all()):
            raise UserError(f"{self.path} returns features that are not finite")
        return feature_ND

    def _features(self, clips: Sequence[Tensor]) -> Tensor:
        clip_NCTHW = torch.stack([_spread(clip_FCHW).movedim(0, 1) for clip_FCHW in clips])
        try:
            found: object = self.network(clip_NCTHW.to(self.device), **self.switches)
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path} cannot read clips [N, 3, T, H, W]: {reason}") from error

        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(clips):
            raise UserError(f"{self.path} must return features [N, D] for clips [N, 3, T, H, W]")
        return found.flatten(1).cpu().double()


def _spread(clip_FCHW: Tensor) -> Tensor:
    return clip_FCHW[torch.linspace(0, len(clip_FCHW) - 1, CLIP_FRAMES).round().long()]
