"""What is made of given pictures by folders of diffusers: the latents of diffusers' own pipelines.

Each test hands our first state to theirs as noise, lets theirs encode the pictures itself, and
compares what both end with.
"""

from __future__ import annotations

import fixtures_diffusers as fixtures
import numpy as np
import pytest
import torch
from PIL import Image

import flowcept
from flowcept.errors import UserError

fixtures.require()

SIZES = {
    "ltx": (64, 96),
    "later-ltx": (64, 96),
    "wan": (32, 48),
    "wan-ti2v": (64, 96),
    "skyreels": (32, 48),
}
PROMPT, AGAINST = "a dog surfing on the red sea", "cat"
STEPS, GUIDANCE = 5, 2.5
OPTIONS = {
    "negative_prompt": AGAINST,
    "guidance": GUIDANCE,
    "steps": STEPS,
    "seed": 4,
    "scale": 1,
}
CLOSE = {"atol": 5e-5, "rtol": 0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline of a kind and its folder, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / kind
            made[kind] = fixtures.save_pipeline(kind, folder), folder
        return made[kind]

    return of


def opened(kind, folder, size=None):
    height, width = SIZES[kind]
    size = size or f"{width}x{height}"
    return flowcept.load(str(folder), device="cpu", dtype="float32", size=size)


def pictures(kind, count, seed=0):
    """Smooth ones, so that nothing is lost on the way to latents but what both lose."""
    height, width = SIZES[kind]
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in coarse])


@pytest.fixture
def plain(monkeypatch):
    """Makes pipelines take the posterior's mode, and given noise in place of their own."""

    def patch(module, latent_FCHW):
        noise_1CFHW = latent_FCHW.transpose(0, 1)[None]

        def drawn(shape, **_):
            return noise_1CFHW.clone() if tuple(shape) == noise_1CFHW.shape else torch.zeros(shape)

        monkeypatch.setattr(module, "randn_tensor", drawn)
        if "ltx" in module.__name__:
            monkeypatch.setattr(module, "retrieve_latents", lambda said, *_, **__: mode_of(said))

    return patch


def mode_of(said):
    return said.latent_dist.mode()


def asked(kind, latents, **more):
    """What every pipeline is asked."""
    height, width = SIZES[kind]
    group = 8 if "ltx" in kind else 4
    return {
        "prompt": PROMPT, "negative_prompt": AGAINST, "height": height, "width": width,
        "num_frames": 1 + group * (latents - 1), "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE, "output_type": "latent", **more,
    }  # fmt: skip


def ends(steps):
    """Our first and last latents, without keyframes that stand beside the clip."""
    return steps[0].state.latent_FCHW, steps[-1].done[0]


def same(ours_FCHW, theirs_1CFHW, given=1):
    theirs_FCHW = theirs_1CFHW[0].transpose(0, 1)
    assert ours_FCHW.shape == theirs_FCHW.shape
    torch.testing.assert_close(ours_FCHW, theirs_FCHW, **CLOSE)
    assert float(theirs_FCHW[given:].std()) > 0.3


def test_i2v_is_that_of_ltx_image_to_video(saved, plain):
    from diffusers.pipelines.ltx import pipeline_ltx_image2video as module

    made, folder = saved("ltx")
    steps = []
    (picture,) = pictures("ltx", 1)
    clip = opened("ltx", folder).i2v(picture, PROMPT, frames=17, watch=steps.append, **OPTIONS)
    first, last = ends(steps)
    plain(module, first)
    other = fixtures.as_pipeline("LTXImageToVideoPipeline", made)
    packed = other(image=Image.fromarray(picture), **asked("ltx", 3)).frames
    same(last, other._unpack_latents(packed, 3, 2, 3))
    assert len(clip) == 17
    np.testing.assert_array_equal(clip.frames_FHW3[0], picture)


CONDITIONS = {  # our call, and the pictures that theirs is given with the index of each
    "first": (lambda s, f, **o: s.i2v(f[0], PROMPT, frames=17, **o), [(slice(0, 1), 0)]),
    "between": (
        lambda s, f, **o: s.interp(f[:2], PROMPT, frames=17, **o),
        [(slice(0, 1), 0), (slice(1, 2), 16)],
    ),
    "three": (
        lambda s, f, **o: s.interp(f[:3], PROMPT, frames=33, **o),
        [(slice(0, 1), 0), (slice(1, 2), 16), (slice(2, 3), 32)],
    ),
    "after": (
        lambda s, f, **o: s.extend(f[:9], PROMPT, clip_fps=25, context=9, frames=8, **o),
        [(slice(0, 9), 0)],
    ),
    "before": (
        lambda s, f, **o: s.extend(
            f[:2], PROMPT, clip_fps=25, direction="backward", frames=16, **o
        ),
        [(slice(0, 1), 16)],
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_later_ltx_video_takes_pictures_anywhere(saved, plain, name):
    """Those at the start are latents of the clip; others stand beside it, at their own pictures."""
    from diffusers.pipelines.ltx import pipeline_ltx_condition as module

    made, folder = saved("later-ltx")
    call, given = CONDITIONS[name]
    frames, steps = pictures("later-ltx", 9), []
    options = OPTIONS if name not in ("after", "before") else OPTIONS | {"anyway": True}
    call(opened("later-ltx", folder), frames, watch=steps.append, **options)
    first, last = ends(steps)
    plain(module, first)
    conditions = []
    for part, index in given:
        shown = [Image.fromarray(frame) for frame in frames[part]]
        what = {"video": shown} if len(shown) > 1 else {"image": shown[0]}
        conditions.append(module.LTXVideoCondition(frame_index=index, **what))
    latents = len(first)
    theirs = made(
        conditions=conditions, frame_rate=25, image_cond_noise_scale=0.0,
        **asked("later-ltx", latents),
    ).frames  # fmt: skip
    same(last, theirs, given=0 if name == "before" else 1)


def test_i2v_is_that_of_wan_2_2_with_clean_first_tokens(saved, plain):
    from diffusers.pipelines.wan import pipeline_wan_i2v as module

    made, folder = saved("wan-ti2v")
    steps = []
    (picture,) = pictures("wan-ti2v", 1)
    opened("wan-ti2v", folder).i2v(picture, PROMPT, frames=9, watch=steps.append, **OPTIONS)
    first, last = ends(steps)
    plain(module, first)
    parts = {"image_encoder": None, "image_processor": None, "expand_timesteps": True}
    made = fixtures.as_pipeline("WanImageToVideoPipeline", made, **parts)
    same(last, made(image=Image.fromarray(picture), **asked("wan-ti2v", 3)).frames)


def test_gen_is_that_of_skyreels(saved, plain):
    from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_diffusion_forcing as module

    made, folder = saved("skyreels")
    steps = []
    opened("skyreels", folder).generate(PROMPT, frames=9, watch=steps.append, **OPTIONS)
    first, last = ends(steps)
    plain(module, first)
    same(last, made(**asked("skyreels", 3)).frames, given=0)


def test_i2v_is_that_of_skyreels(saved, plain):
    from diffusers.pipelines.skyreels_v2 import (
        pipeline_skyreels_v2_diffusion_forcing_i2v as module,
    )

    made, folder = saved("skyreels")
    steps = []
    (picture,) = pictures("skyreels", 1)
    opened("skyreels", folder).i2v(picture, PROMPT, frames=9, watch=steps.append, **OPTIONS)
    first, last = ends(steps)
    plain(module, first)
    other = fixtures.as_pipeline("SkyReelsV2DiffusionForcingImageToVideoPipeline", made)
    same(last, other(image=Image.fromarray(picture), **asked("skyreels", 3)).frames)


def test_extend_is_that_of_skyreels(saved, plain):
    from diffusers.pipelines.skyreels_v2 import (
        pipeline_skyreels_v2_diffusion_forcing_v2v as module,
    )

    made, folder = saved("skyreels")
    steps, frames = [], pictures("skyreels", 5)
    opened("skyreels", folder).extend(
        frames, PROMPT, clip_fps=24, context=5, frames=8, anyway=True, watch=steps.append, **OPTIONS
    )
    first, last = ends(steps)
    plain(module, first)
    other = fixtures.as_pipeline("SkyReelsV2DiffusionForcingVideoToVideoPipeline", made)
    theirs = other(
        video=[Image.fromarray(frame) for frame in frames], overlap_history=5, base_num_frames=13,
        **asked("skyreels", 4),
    ).frames  # fmt: skip
    same(last, theirs, given=2)


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("ltx", {"gen", "i2v"}),
        ("later-ltx", {"gen", "i2v", "interp", "extend"}),
        ("wan", {"gen"}),
        ("wan-ti2v", {"gen", "i2v"}),
        ("skyreels", {"gen", "i2v", "extend"}),
    ],
)
def test_a_folder_is_asked_for_what_it_was_trained_for_alone(saved, kind, tasks):
    _, folder = saved(kind)
    studio = opened(kind, folder)
    assert studio.weights.network.tasks == tasks
    frames = pictures(kind, 5)
    calls = {
        "i2v": lambda **o: studio.i2v(frames[0], **o),
        "interp": lambda **o: studio.interp(frames[:2], **o),
        "extend": lambda **o: studio.extend(frames, clip_fps=16, **o),
        "backward": lambda **o: studio.extend(frames, clip_fps=16, direction="backward", **o),
    }
    for name in calls.keys() - tasks - ({"backward"} if kind == "later-ltx" else set()):
        with pytest.raises(UserError, match=r"only for|only at their end") as error:
            calls[name](frames=17, **OPTIONS)
        assert "\n" not in str(error.value)
    if "i2v" in tasks and "interp" not in tasks:
        with pytest.raises(UserError, match="leave out `loop`"):
            calls["i2v"](frames=17, loop=True, **OPTIONS)
