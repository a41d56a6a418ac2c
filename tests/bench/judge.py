"""An independent judge of theatre clips: which actor, and which action by motion alone.

Two small convolutional classifiers, trained here on freshly drawn clips, never on generated ones.
The actor is read off single frames and the verdict averaged over a clip's frames; the action off
the differences between frames alone, so that a surfboard that stands still is not surfing.

python tests/bench/judge.py --output judge.safetensors --seed 777      # about six minutes

Shape suffixes: B clips, T frames taken of each clip, N pictures, C H W, A actors, K actions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from flowcept import model_file, models
from flowcept.data import theatre
from flowcept.model_file import Card, load_tree, save_tree

SIDE = 64
TAKEN = 9  # frames of a clip that are looked at, evenly spread
WOBBLE = 2.0  # pixels by which pictures are pushed about in training


def taken(frames_FHW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``TAKEN`` frames of a clip, evenly spread; short clips repeat some."""
    return frames_FHW3[np.linspace(0, len(frames_FHW3) - 1, TAKEN).round().astype(int)]


def _layer(wide: int, narrow: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), nn.GroupNorm(8, narrow), nn.ReLU()]


class Judge(nn.Module):
    """Log-probabilities of actors ``[B, A]`` and actions ``[B, K]`` from ``uint8`` frames."""

    def __init__(self, actors: Sequence[str]) -> None:
        super().__init__()
        self.actors, self.actions = tuple(actors), theatre.ACTIONS
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
            nn.Linear(256, len(self.actions)),
        )  # fmt: skip

    def actor_logits(self, image_NCHW: Tensor) -> Tensor:
        return self.actor(self.look(image_NCHW))

    def action_logits(self, image_BTCHW: Tensor) -> Tensor:
        small = F.avg_pool2d(image_BTCHW.flatten(0, 1), 2).unflatten(0, image_BTCHW.shape[:2])
        change = small.diff(dim=1)
        return self.action(self.move(change.flatten(0, 1)).unflatten(0, change.shape[:2]))

    @torch.no_grad()
    def verdict(self, frames_FHW3: NDArray[np.uint8]) -> tuple[str, str]:
        """Actor and action of one clip of any length."""
        frames_THW3 = taken(frames_FHW3)
        action = self.action_logits(_images(frames_THW3)[None])[0].argmax()
        return self.actor_of(frames_THW3), self.actions[int(action)]

    @torch.no_grad()
    def actor_of(self, frames_FHW3: NDArray[np.uint8]) -> str:
        """Actor in some frames."""
        logits_FA = self.actor_logits(_images(frames_FHW3)).log_softmax(-1)
        return self.actors[int(logits_FA.mean(0).argmax())]


def _images(frames: NDArray[np.uint8]) -> Tensor:
    """``[..., H, W, 3]`` -> ``[..., 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


EVERYONE = theatre.ACTORS + theatre.SHAPES


def cast_of(card: Card) -> tuple[str, ...]:
    """The actors that a model's training prompts named."""
    return tuple(name for name in EVERYONE if all(word in card.words for word in name.split()))


def draw(actors: Sequence[str], clips: int, seed: int) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    """Fresh clips: frames ``[B, T, H, W, 3]``, actors, actions. All pairs, reserved ones too."""
    frames = np.empty((clips, TAKEN, SIDE, SIDE, 3), dtype=np.uint8)
    actor_B, action_B = torch.empty(clips, dtype=torch.long), torch.empty(clips, dtype=torch.long)
    for clip in tqdm(range(clips), desc="drawing", unit="clip"):
        rng = np.random.default_rng([seed, clip])
        actor_B[clip] = int(rng.integers(len(actors)))
        action_B[clip] = int(rng.integers(len(theatre.ACTIONS)))
        scene = theatre.sample_scene(rng, actors=actors)
        scene = theatre.Scene(
            actors[int(actor_B[clip])],
            theatre.ACTIONS[int(action_B[clip])],
            scene.place,
            scene.adverb,
        )
        frames[clip] = taken(theatre.draw_clip(scene, SIDE, rng))
    return frames, actor_B, action_B


def _worn(image_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the clips blurred, noisy and wobbling a little: loss of detail is not another action.

    What wobbles, wobbles anew in every frame, by up to ``WOBBLE`` pixels, so that it moves nowhere.
    """
    flat = image_BTCHW.flatten(0, 1)
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share_B = torch.rand(len(image_BTCHW), 1, 1, 1, 1, generator=generator).mul(2).sub(1).clamp(0)
    mixed = torch.lerp(image_BTCHW, blurred.view_as(image_BTCHW), share_B)
    mixed = mixed + 0.06 * share_B * torch.randn(mixed.shape, generator=generator)

    height, width = image_BTCHW.shape[-2:]
    share_N = share_B.expand(-1, TAKEN, -1, -1, -1).reshape(-1, 1, 1, 1)
    push = torch.rand(len(share_N), 2, 6, 6, generator=generator).mul(2).sub(1) * WOBBLE * share_N
    push_N2HW = F.interpolate(push, (height, width), mode="bicubic", align_corners=True)
    still_N23 = torch.eye(2, 3).expand(len(push), -1, -1)
    place_NHW2 = F.affine_grid(still_N23, [len(push), 1, height, width], align_corners=False)
    place_NHW2 = place_NHW2 + push_N2HW.movedim(1, -1) * 2 / width
    pushed = F.grid_sample(
        mixed.flatten(0, 1), place_NHW2, padding_mode="border", align_corners=False
    )
    return pushed.view_as(image_BTCHW)


def train(actors: Sequence[str], *, clips: int, steps: int, seed: int) -> Judge:
    """A judge of these actors; the same seed gives the same one on the same machine."""
    frames, actor_B, action_B = draw(actors, clips, seed)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(actors)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in tqdm(range(steps), desc="judge", unit="step"):
        chosen = torch.randint(clips, (48,), generator=generator)
        image_BTCHW = _worn(_images(frames[chosen.numpy()]), generator)
        seen = torch.randint(TAKEN, (3,), generator=generator)
        actor_NA = judge.actor_logits(image_BTCHW[:, seen].flatten(0, 1))
        loss = F.cross_entropy(actor_NA, actor_B[chosen].repeat_interleave(3))
        loss = loss + F.cross_entropy(judge.action_logits(image_BTCHW), action_B[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def save(judge: Judge, path: Path) -> None:
    save_tree({"actors": list(judge.actors), "weights": judge.state_dict()}, path)


def load(path: Path) -> Judge:
    tree = load_tree(path)
    judge = Judge(tree["actors"])
    judge.load_state_dict(tree["weights"])
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="theatre", help="whose actors are judged")
    parser.add_argument("--actors", help="these are told apart instead: dog,cat,...")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=777)
    options = parser.parse_args()
    started = time.perf_counter()
    if options.actors:
        actors = tuple(name for name in EVERYONE if name in options.actors.split(","))
    else:
        actors = cast_of(model_file.read_card(models.find(options.model).path))
    judge = train(actors, clips=options.clips, steps=options.steps, seed=options.seed)
    save(judge, options.output)
    frames, actor_B, action_B = draw(actors, 500, options.seed + 1)
    verdicts = [judge.verdict(clip) for clip in frames]
    hits = [
        (actor == actors[a], action == theatre.ACTIONS[k])
        for (actor, action), a, k in zip(verdicts, actor_B.tolist(), action_B.tolist(), strict=True)
    ]
    print(machine.described())
    print(
        f"{len(actors)} actors; {options.clips} clips, {options.steps} steps, seed {options.seed}"
    )
    actor, action, both = np.mean([(a, k, a and k) for a, k in hits], axis=0)
    print(f"on 500 other fresh clips: actor {actor:.3f}, action {action:.3f}, both {both:.3f}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
