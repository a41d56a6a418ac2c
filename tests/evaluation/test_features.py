"""Feature networks from files: the right network, called the right way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowcept.errors import UserError
from flowcept.evaluation.features import CLIP_FRAMES, FeatureNetwork

CPU = torch.device("cpu")


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


class Infinite(nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.flatten(1) / 0


@pytest.mark.parametrize("lengths", [(5, 16, 40, 1, 20)])
def test_i3d_is_called_as_it_wants(tmp_path, generator, lengths):
    torch.jit.script(Inflated()).save(str(tmp_path / "i3d_torchscript.pt"))
    network = FeatureNetwork(tmp_path / "i3d_torchscript.pt", CPU)
    assert network.name == "FVD"
    clips = [torch.rand(n, 3, 8, 8, generator=generator) * 2 - 1 for n in lengths]
    found_ND = network(clips)
    assert found_ND.dtype == torch.float64
    assert found_ND.shape == (5, 3)
    assert (found_ND[:, 2] == CLIP_FRAMES).all()
    whole = torch.tensor([[float(clips[i].max()), float(clips[i].min())] for i in (0, 1, 3)])
    torch.testing.assert_close(found_ND[[0, 1, 3], :2].float(), whole)


def test_any_other_script_is_not_called_fvd(tmp_path):
    torch.jit.script(Plain()).save(str(tmp_path / "mine.pt"))
    network = FeatureNetwork(tmp_path / "mine.pt", CPU)
    assert network.name == "Fréchet distance of mine"
    ramp = torch.arange(31.0)[:, None, None, None].expand(-1, 3, 4, 4)
    found = network([ramp]).view(3, CLIP_FRAMES)
    assert found[0].tolist() == [*range(0, 31, 2)], "evenly spread, both ends among them"


def test_files_that_are_no_feature_network(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "net.safetensors").write_text("weights")
    for name, words in (
        ("absent.pt", "no file"),
        ("text.pt", "not a TorchScript network"),
        ("net.safetensors", "holds only weights: --features must be a TorchScript network"),
    ):
        with pytest.raises(UserError, match=words) as error:
            FeatureNetwork(tmp_path / name, CPU)
        assert "\n" not in str(error.value)
    for network, words in (
        (NoFeatures(), "must return features"),
        (OneNumber(), "must return features"),
        (Refuses(), "cannot read clips .* grey clips only"),
        (Infinite(), "not finite"),
    ):
        torch.jit.script(network).save(str(tmp_path / "mine.pt"))
        with pytest.raises(UserError, match=words):
            FeatureNetwork(tmp_path / "mine.pt", CPU)([torch.zeros(4, 3, 8, 8)])
