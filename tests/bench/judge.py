"""An independent judge of stage clips: which actor, and which action by motion alone.

Two small convolutional classifiers, trained here on drawn clips, never on generated ones. The actor
is read off single frames and the verdict averaged over a clip's frames; the action off the
differences between frames alone, so that a surfboard that stands still is not surfing. Pictures are
reduced to 64 pixels a side.

flowcept stage CLIPS --models MODELS --clips 5000 --seed 700
flowcept stage RESERVED --models MODELS --clips 200 --seed 701 --reserved
flowcept stage OTHERS --models MODELS --clips 400 --seed 702
python tests/bench/judge.py CLIPS RESERVED --others OTHERS --output judge.safetensors

The judge tells apart the actors and actions of CLIPS and RESERVED: pairs that are reserved are
among what it learns. OTHERS, which it has not seen, say how often it is right. Nine minutes of one
thread beside the drawing.

Shape suffixes: B clips, T frames taken of each clip, N pictures, C H W, A actors, K actions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import machine
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from flowcept.data import video
from flowcept.data.stage.scene import Scene
from flowcept.errors import UserError
from flowcept.model_file import load_tree, save_tree

Frames = NDArray[np.uint8]
SIDE = 64
TAKEN = 9  # frames of a clip that are looked at, evenly spread
BATCH, WORN = 32, 12  # clips of a step of training, and those of them that are worn
WOBBLE = 2.0  # pixels by which pictures are pushed about in training


# ---- real clips


@dataclass(frozen=True)
class Real:
    """A clip of a folder drawn by ``flowcept stage``."""

    path: Path
    caption: str
    scene: Scene

    def frames(self) -> Frames:
        frames_FHW3, _ = video.read_video(self.path)
        return frames_FHW3


def listed(folder: Path) -> list[Real]:
    """The clips of a folder drawn by ``flowcept stage``, in their order."""
    try:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        names = [field.name for field in fields(Scene)]
        return [
            Real(folder / one["file_name"], one["caption"], Scene(*(one[name] for name in names)))
            for one in found
        ]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} was not drawn by flowcept stage: {error!r}") from error


def taken(frames_FHW3: Frames) -> Frames:
    """``TAKEN`` frames of a clip, evenly spread, reduced; short clips repeat some."""
    rows = np.linspace(0, len(frames_FHW3) - 1, TAKEN).round().astype(int)
    return reduced(frames_FHW3[rows])


def reduced(frames_FHW3: Frames) -> Frames:
    """At ``SIDE`` pixels, by the mean of areas."""
    image_FCHW = torch.from_numpy(frames_FHW3).movedim(-1, -3).float()
    small_FCHW = F.interpolate(image_FCHW, (SIDE, SIDE), mode="area")
    return small_FCHW.round().to(torch.uint8).movedim(-3, -1).numpy()


@dataclass(frozen=True)
class Clips:
    """Frames ``[B, T, H, W, 3]``, and numbers of the actors and actions that they show."""

    frames: Frames
    actor_B: Tensor
    action_B: Tensor


def read(clips: Sequence[Real], actors: Sequence[str], actions: Sequence[str]) -> Clips:
    frames = np.empty((len(clips), TAKEN, SIDE, SIDE, 3), dtype=np.uint8)
    for number, clip in enumerate(tqdm(clips, desc="reading", unit="clip")):
        frames[number] = taken(clip.frames())
    actor_B = torch.tensor([actors.index(clip.scene.actor) for clip in clips])
    action_B = torch.tensor([actions.index(clip.scene.action) for clip in clips])
    return Clips(frames, actor_B, action_B)


# ---- the judge


def _layer(wide: int, narrow: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), nn.GroupNorm(8, narrow), nn.ReLU()]


class Judge(nn.Module):
    """Log-probabilities of actors ``[B, A]`` and actions ``[B, K]`` from ``uint8`` frames."""

    def __init__(self, actors: Sequence[str], actions: Sequence[str]) -> None:
        super().__init__()
        self.actors, self.actions = tuple(actors), tuple(actions)
        self.look = nn.Sequential(*_layer(3, 32), *_layer(32, 64), *_layer(64, 128))
        self.actor = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(512, len(actors)),
        )  # fmt: skip
        self.move = nn.Sequential(
            *_layer(3, 32), *_layer(32, 64), *_layer(64, 64), nn.Flatten(),
            nn.Linear(64 * 16, 128), nn.ReLU(),
        )  # fmt: skip
        self.action = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * (TAKEN - 1), 256), nn.ReLU(),
            nn.Linear(256, len(actions)),
        )  # fmt: skip

    def actor_logits(self, image_NCHW: Tensor) -> Tensor:
        return self.actor(self.look(image_NCHW))

    def action_logits(self, image_BTCHW: Tensor) -> Tensor:
        small = F.avg_pool2d(image_BTCHW.flatten(0, 1), 2).unflatten(0, image_BTCHW.shape[:2])
        change = small.diff(dim=1)
        return self.action(self.move(change.flatten(0, 1)).unflatten(0, change.shape[:2]))

    @torch.no_grad()
    def verdict(self, frames_FHW3: Frames) -> tuple[str, str]:
        """Actor and action of one clip of any length and size."""
        frames_THW3 = taken(frames_FHW3)
        action = self.action_logits(_images(frames_THW3)[None])[0].argmax()
        return self.actor_of(frames_THW3), self.actions[int(action)]

    @torch.no_grad()
    def actor_of(self, frames_FHW3: Frames) -> str:
        """Actor in some frames."""
        logits_FA = self.actor_logits(_images(reduced(frames_FHW3))).log_softmax(-1)
        return self.actors[int(logits_FA.mean(0).argmax())]


def _images(frames: Frames) -> Tensor:
    """``[..., H, W, 3]`` -> ``[..., 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def _worn(image_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Clips blurred, noisy and wobbling, each by its share: loss of detail is not another action.

    What wobbles, wobbles anew in every frame, by up to ``WOBBLE`` pixels, so that it moves nowhere.
    """
    share_B = torch.rand(len(image_BTCHW), generator=generator)
    share_N111 = share_B.repeat_interleave(TAKEN)[:, None, None, None]
    image_NCHW = image_BTCHW.flatten(0, 1)
    blurred = F.avg_pool2d(F.pad(image_NCHW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.randn(image_NCHW.shape, generator=generator)
    mixed = torch.lerp(image_NCHW, blurred, share_N111) + 0.06 * share_N111 * noise

    push = torch.rand(len(mixed), 2, 6, 6, generator=generator).mul(2).sub(1) * WOBBLE * share_N111
    push_N2HW = F.interpolate(push, (SIDE, SIDE), mode="bicubic", align_corners=True)
    still_N23 = torch.eye(2, 3).expand(len(mixed), -1, -1)
    place_NHW2 = F.affine_grid(still_N23, list(mixed.shape), align_corners=False)
    place_NHW2 = place_NHW2 + push_N2HW.movedim(1, -1) * 2 / SIDE
    pushed = F.grid_sample(mixed, place_NHW2, padding_mode="border", align_corners=False)
    return pushed.view_as(image_BTCHW)


def train(judge: Judge, clips: Clips, *, steps: int, seed: int) -> Judge:
    """The same seed gives the same judge on the same machine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in tqdm(range(steps), desc="judge", unit="step"):
        chosen = torch.randint(len(clips.frames), (BATCH,), generator=generator)
        image_BTCHW = _images(clips.frames[chosen.numpy()])
        image_BTCHW[:WORN] = _worn(image_BTCHW[:WORN], generator)
        seen = torch.randint(TAKEN, (3,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            actor_NA = judge.actor_logits(image_BTCHW[:, seen].flatten(0, 1)).float()
            action_BK = judge.action_logits(image_BTCHW).float()
        loss = F.cross_entropy(actor_NA, clips.actor_B[chosen].repeat_interleave(3))
        loss = loss + F.cross_entropy(action_BK, clips.action_B[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def right(judge: Judge, clips: Sequence[Frames], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of clips in which the judge sees the actor, the action, and both.

    A scene may name several, any of which is right.
    """
    hits = []
    for frames_FHW3, scene in zip(clips, scenes, strict=True):
        actor, action = judge.verdict(frames_FHW3)
        hits.append((actor in names(scene.actor), action in names(scene.action)))
    both = [actor and action for actor, action in hits]
    shares = [*np.mean(hits, axis=0), np.mean(both)]
    return dict(zip(("actor", "action", "both"), map(float, shares), strict=True))


def names(words: str) -> set[str]:
    """Those that stand in a word with / between them."""
    return {*words.split("/")}


def save(judge: Judge, path: Path) -> None:
    known = {"actors": list(judge.actors), "actions": list(judge.actions)}
    save_tree({**known, "weights": judge.state_dict()}, path)


def load(path: Path) -> Judge:
    tree = load_tree(path)
    judge = Judge(tree["actors"], tree["actions"])
    judge.load_state_dict(tree["weights"])
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="CLIPS")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="that it is tried on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, help="of each folder; default all")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=777)
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    known = [clip for folder in options.folders for clip in listed(folder)[: options.clips]]
    actors = sorted({clip.scene.actor for clip in known})
    actions = sorted({clip.scene.action for clip in known})
    judge = Judge(actors, actions)
    clips = read(known, actors, actions)
    train(judge, clips, steps=options.steps, seed=options.seed)
    save(judge, options.output)
    print(machine.described())
    print(
        f"{len(actors)} actors, {len(actions)} actions; {len(known)} clips, {options.steps} steps, "
        f"seed {options.seed}"
    )
    for folder in options.others:
        others = listed(folder)[: options.clips]
        hits = right(judge, [clip.frames() for clip in others], [clip.scene for clip in others])
        told = ", ".join(f"{what} {share:.3f}" for what, share in hits.items())
        print(f"{folder.name}, {len(others)} other clips: {told}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
