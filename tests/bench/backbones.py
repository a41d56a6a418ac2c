"""Memory of pretrained video models by use and by card: estimates, for docs/backbones.md.

Everything is counted on tensors without contents (PyTorch's ``meta`` device), for the shapes that
are named here: no weights are read and no card is needed. What a driver takes and what an
allocator leaves unused between tensors is not counted, so a card must have something to spare.

    python tests/bench/backbones.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[1])]

from blank import no_autocast  # noqa: E402
from live_bytes import Fused, Live  # noqa: E402
from machine import described  # noqa: E402

from flowcept.diffusers_pipelines import KINDS, Kind  # noqa: E402
from flowcept.networks.pretrained import Backbone, BackboneConfig  # noqa: E402
from flowcept.process.state import FrameState, PromptTokens, Role  # noqa: E402

GB = 1e9  # as cards are sold
CARDS = (12, 24, 48, 80)
SPARE = 1.0  # GB of a card that are left to the driver and the allocator
RANK = 32
TRAINED = 20  # bytes a weight that learns: itself, gradient, two moments, average, 4 bytes each
PROMPT = 128  # tokens

T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
WAN = {"attention_head_dim": 128, "num_layers": 30, "text_dim": 4096}
WAN_22_VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2,
    "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A released model as its shape is known; the defaults are those of diffusers' classes."""

    pipeline: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    vocabulary: int  # of the prompt encoder
    size: tuple[int, int] | None = None  # None: the pipeline's usual one
    pictures: int | None = None


SHAPES = {
    "LTX-Video 2B": Shape("LTXPipeline", {}, {}, 32128),
    "LTX-Video 13B": Shape(
        "LTXConditionPipeline",
        {"num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096,
         "num_layers": 48},
        {}, 32128,
    ),
    "Wan 2.1 1.3B": Shape(
        "WanPipeline", WAN | {"num_attention_heads": 12, "ffn_dim": 8960}, {}, 256384
    ),
    "Wan 2.2 5B": Shape(
        "WanPipeline",
        WAN | {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
        WAN_22_VAE, 256384, (704, 1280), 121,
    ),
    "Wan 2.1 14B": Shape(
        "WanPipeline",
        WAN | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}, {}, 256384,
    ),
    "SkyReels-V2 DF 1.3B": Shape(
        "SkyReelsV2DiffusionForcingPipeline",
        WAN | {"num_attention_heads": 12, "ffn_dim": 8960}, {}, 256384,
    ),
    "SkyReels-V2 DF 14B": Shape(
        "SkyReelsV2DiffusionForcingPipeline",
        WAN | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}, {}, 256384,
    ),
}  # fmt: skip


class Backend:
    """A shape's parts without contents, and what they take."""

    def __init__(self, shape: Shape) -> None:
        import diffusers

        self.kind: Kind = KINDS[shape.pipeline]
        self.size, self.pictures = (
            shape.size or self.kind.size,
            shape.pictures or self.kind.pictures,
        )
        self.shape = shape
        is_ltx = "LTX" in shape.pipeline
        codec = diffusers.AutoencoderKLLTXVideo if is_ltx else diffusers.AutoencoderKLWan
        with torch.device("meta"):
            self.vae = codec(**shape.vae)
        self.group = 8 if is_ltx else 4
        self.cell = 32 if is_ltx else self.vae.config.scale_factor_spatial
        self.channels = self.vae.config.get("latent_channels") or self.vae.config.z_dim

    @property
    def latents(self) -> int:
        return 1 + (self.pictures - 1) // self.group

    def network(self, dtype: torch.dtype, lora: int = 0, depth: int | None = None) -> Backbone:
        """The transformer, perhaps of less depth, with what is added to it."""
        import diffusers

        kind = getattr(diffusers, self.kind.transformer)
        height, width = (side // self.cell for side in self.size)
        with torch.device("meta"):
            layers = {} if depth is None else {"num_layers": depth}
            made = kind(**self.shape.transformer | layers).to(dtype)
            own = {name: value for name, value in made.config.items() if name[0] != "_"}
            config = BackboneConfig(
                self.kind.transformer, json.dumps(own), own["in_channels"], height, width,
                own.get("caption_channels") or own["text_dim"], self.group, self.cell,
                largest_size=self.latents, lora=lora,
            )  # fmt: skip
            return Backbone(config, 1.0, made)

    @cached_property
    def encoder(self) -> int:
        """Bytes of the prompt encoder in bfloat16."""
        import transformers

        config = transformers.T5Config(
            vocab_size=self.shape.vocabulary, feed_forward_proj="gated-gelu", **T5
        )
        with torch.device("meta"):
            return 2 * numbers(transformers.T5EncoderModel(config))

    def inputs(self, network: Backbone, clips: int) -> tuple[FrameState, PromptTokens]:
        """Clips of all frames, with prompts."""
        frames = clips * self.latents
        with torch.device("meta"):
            return FrameState(
                torch.zeros(frames, *network.latent_shape),
                torch.zeros(frames),
                torch.full((frames,), Role.GENERATED),
                torch.zeros(clips),
                torch.zeros(clips, dtype=torch.bool),
                (self.latents,) * clips,
            ), PromptTokens(
                torch.zeros(clips * PROMPT, network.config.text_width), (PROMPT,) * clips
            )

    def sampling(self) -> int:
        """Bytes at work in one evaluation with guidance, beside the weights."""
        network = self.network(torch.bfloat16).eval()
        state, prompt = self.inputs(network, 2)
        with torch.no_grad():
            return work(network, lambda: network(state, prompt))

    def decoding(self) -> int:
        """Bytes at work in decoding a clip, float32; Wan's latent by latent, LTX-Video's whole."""
        height, width = (side // self.cell for side in self.size)
        latents = self.latents if self.group == 8 else 3  # what Wan's keeps no longer grows then
        latent = torch.zeros(1, self.channels, latents, height, width, device="meta")
        with torch.no_grad():
            made = work(self.vae, lambda: self.vae.decode(latent).sample)
        return made

    def training(self) -> int:
        """Bytes at work in a step on one clip, and all that the adapter keeps.

        Every block is computed again in the backward pass (``--checkpointing``): of the others its
        input alone is kept. So a network of one block is counted, and the inputs of the others.
        """
        network = self.network(torch.bfloat16, RANK, depth=1).train()
        network.learn()
        state, prompt = self.inputs(network, 1)

        def step() -> None:
            said = network(state, prompt)
            heads = (said.velocity_FCHW, said.log_missing_F, said.size_logits_BK)
            sum(head.square().sum() for head in heads).backward()

        inputs = 2 * self.latents * network.tokens_per_frame * network.config.hidden
        whole = self.network(torch.bfloat16, RANK)
        whole.learn()
        learned = sum(weight.numel() for weight in whole.parameters() if weight.requires_grad)
        return work(network, step) + (whole.config.depth - 1) * inputs + (TRAINED - 4) * learned


def numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def nbytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def work(module: nn.Module, run: Callable[[], object]) -> int:
    """Most bytes alive at once, but for a module's weights."""
    live = Live([*module.parameters(), *module.buffers()])
    with no_autocast(), Fused(), live:
        run()
    return live.peak


def uses(backend: Backend) -> dict[str, float]:
    """GB that each use takes."""
    network = backend.network(torch.bfloat16)
    whole, codec, encoder = nbytes(network), nbytes(backend.vae), backend.encoder
    blocks = [nbytes(block) for block in network.blocks()]
    step, decoded = backend.sampling(), backend.decoding()
    lean = whole - sum(blocks) + 2 * max(blocks)
    at_work = backend.training()
    return {
        "gen": codec + encoder + whole + max(step, decoded),
        "gen --offload encoder": codec + max(encoder, whole + max(step, decoded)),
        "gen --offload blocks": codec + max(encoder, lean + max(step, decoded)),
        f"train --lora {RANK}": whole + at_work,
        "train, whole": TRAINED * numbers(network) + at_work,
    }


def main() -> None:
    import diffusers

    diffusers.logging.set_verbosity_error()  # of dtypes, which count for memory alone here
    print(f"{described()}; bfloat16, autoencoder float32; one clip, estimates\n")
    found = {name: (Backend(shape), shape) for name, shape in SHAPES.items()}
    print("| model | clip | transformer | prompt encoder | autoencoder |\n|---|---|---|---|---|")
    table = {}
    for name, (backend, _) in found.items():
        height, width = backend.size
        network = backend.network(torch.bfloat16)
        print(
            f"| {name} | {width}x{height}, {backend.pictures} frames | "
            f"{numbers(network.transformer) / 1e9:.2f} B, {nbytes(network) / GB:.1f} GB | "
            f"{backend.encoder / GB:.1f} GB | {nbytes(backend.vae) / GB:.1f} GB |"
        )
        table[name] = {use: size / GB for use, size in uses(backend).items()}
    names = list(next(iter(table.values())))
    print(f"\n| model | {' | '.join(map(spelled, names))} |")
    print("|---" * (len(names) + 1) + "|")
    for name, sizes in table.items():
        print(f"| {name} | {' | '.join(f'{size:.0f} GB' for size in sizes.values())} |")
    print(f"\n| card | {' | '.join(table)} |\n" + "|---" * (len(table) + 1) + "|")
    for card in CARDS:
        print(f"| {card} GB | {' | '.join(fitting(sizes, card) for sizes in table.values())} |")


def spelled(use: str) -> str:
    """The command as code, and what is said of it as words."""
    command, comma, more = use.partition(",")
    return f"`{command}`{comma}{more}"


def fitting(sizes: dict[str, float], card: int) -> str:
    """The first way to make clips that a card can hold, and all that it can train."""
    held = [use for use, size in sizes.items() if size <= card - SPARE]
    making = [use for use in held if use.startswith("gen")][:1]
    training = [use for use in held if use.startswith("train")]
    return ", ".join(map(spelled, making + training)) or "nothing"


if __name__ == "__main__":
    main()
