"""Tiny pipelines with random weights, saved by diffusers itself.

A test file that needs them begins with ``require()``, which skips it where diffusers is not there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ["a", "dog", "surfing", "cat", "on", "the", "sea", "red", "wave"]
TEXT_WIDTH = 24


def require() -> None:
    """Skip the test file where the extra is not installed."""
    for module in ("diffusers", "transformers", "peft"):
        pytest.importorskip(module, reason='needs pip install ".[diffusers]"')


def tokenizer() -> object:
    """A word a token; T5's own class, its special tokens included."""
    import transformers

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)]
    vocab = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def text_encoder(kind: str) -> object:
    """A small T5, or UMT5 for Wan, whose padding is seen where nobody hides it."""
    import transformers

    name = {"ltx": "T5", "wan": "UMT5"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    encoder = getattr(transformers, f"{name}EncoderModel")(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
    return encoder


def ltx_transformer(**changes: object) -> object:
    import diffusers

    settings = {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "num_layers": 2, "caption_channels": TEXT_WIDTH,
    }  # fmt: skip
    return loud(diffusers.LTXVideoTransformer3DModel(**(settings | changes)))


def wan_transformer(**changes: object) -> object:
    import diffusers

    settings = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16,
        "in_channels": 8, "out_channels": 8, "text_dim": TEXT_WIDTH, "freq_dim": 32, "ffn_dim": 48,
        "num_layers": 2,
    }  # fmt: skip
    return loud(diffusers.WanTransformer3DModel(**(settings | changes)))


def skyreels_transformer(**changes: object) -> object:
    import diffusers

    settings = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16,
        "in_channels": 8, "out_channels": 8, "text_dim": TEXT_WIDTH, "freq_dim": 32, "ffn_dim": 48,
        "num_layers": 2, "inject_sample_info": True,
    }  # fmt: skip
    return loud(diffusers.SkyReelsV2Transformer3DModel(**(settings | changes)))


def loud(model: object) -> object:
    """The model with weights so large that every input changes what it says."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model.eval()


def ltx_vae(**changes: object) -> object:
    import diffusers

    settings = {
        "latent_channels": 8, "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8), "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1), "scaling_factor": 0.7,
    }  # fmt: skip
    model = diffusers.AutoencoderKLLTXVideo(**(settings | changes)).eval()
    model.latents_mean.copy_(torch.randn(8) * 0.1)
    model.latents_std.copy_(torch.rand(8) + 0.5)
    return model


def unscaled_ltx_vae() -> object:
    """As all released ones: pipelines forget the scale where they encode pictures."""
    return ltx_vae(scaling_factor=1.0)


def wan_vae(**changes: object) -> object:
    import diffusers

    settings = {
        "base_dim": 4, "z_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "latents_mean": [0.1 * c for c in range(8)],
        "latents_std": [0.5 + 0.1 * c for c in range(8)],
    }  # fmt: skip
    return diffusers.AutoencoderKLWan(**(settings | changes)).eval()


def wan_22_vae() -> object:
    """The kind of Wan 2.2: residual shortcuts and 2 x 2 patches of pixels."""
    return wan_vae(
        base_dim=8, decoder_base_dim=8, is_residual=True, patch_size=2, in_channels=12,
        out_channels=12, scale_factor_spatial=16,
    )  # fmt: skip


def euler_of_unipc(**changes: object) -> object:
    """UniPC of the first order without its corrector, which takes Euler's steps."""
    import diffusers

    settings = {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0,
        "solver_order": 1, "disable_corrector": list(range(1000)),
    }  # fmt: skip
    return diffusers.UniPCMultistepScheduler(**(settings | changes))


# kind: pipeline, text encoder, transformer, autoencoder, and settings of the pipeline itself
PIPELINES = {
    "ltx": ("LTXPipeline", "ltx", ltx_transformer, unscaled_ltx_vae, {}),
    "later-ltx": ("LTXConditionPipeline", "ltx", ltx_transformer, unscaled_ltx_vae, {}),
    "wan": ("WanPipeline", "wan", wan_transformer, wan_vae, {}),
    "wan-ti2v": ("WanPipeline", "wan", wan_transformer, wan_22_vae, {"expand_timesteps": True}),
    "skyreels": (
        "SkyReelsV2DiffusionForcingPipeline", "wan", skyreels_transformer, wan_vae, {}
    ),
}  # fmt: skip


def pipeline(kind: str, seed: int = 0, scheduler: object = None) -> object:
    """A whole pipeline of a kind; with a static shift of 3 unless a scheduler is given."""
    import diffusers

    name, reader, transformer, vae, settings = PIPELINES[kind]
    usual = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if kind == "skyreels":  # whose pipeline tells whole noise levels, which Euler's does not take
        usual = euler_of_unipc()
    if kind == "later-ltx":  # whose pipeline has noise levels of its own
        usual = diffusers.FlowMatchEulerDiscreteScheduler()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "scheduler": scheduler or usual,
            "tokenizer": tokenizer(),
            "text_encoder": text_encoder(reader),
            "transformer": transformer(),
            "vae": vae(),
        }
    made = getattr(diffusers, name)(**parts, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def save_pipeline(kind: str, folder: Path, **options: object) -> object:
    """The pipeline, saved there."""
    made = pipeline(kind, **options)
    made.save_pretrained(folder)
    return made


def as_pipeline(name: str, made: object, **settings: object) -> object:
    """Another pipeline of the same parts."""
    import diffusers

    kind = getattr(diffusers, name)
    other = kind(**made.components, **settings)
    other.set_progress_bar_config(disable=True)
    return other
