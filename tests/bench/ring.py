"""The ring: the paper's toy for lengths, trained and sampled here, against the truth.

Frames of 3 x 3 pixels. Two random colours span a ramp of nine; eight of them sit on the border,
clockwise, the ninth in the centre. Every frame turns the border by one, two or three places, fixed
for the clip; the length is 15, 20, 25 or 30, uniformly. No prompt, codec `pixels`.

python tests/bench/ring.py --run run-ring --steps 415                  # clips seen as published
python tests/bench/ring.py --run run-ring --steps 2000 2500 --shift 1.5 5 --decay 0 0.7 \
    --clips 30000 --place --rotary-values --schedule power:0.03 --late 0.1  # until it is learned
python tests/bench/ring.py --run run-ring --steps 415 --first --fill 0.75 --refine 0 0.75 0.25

Training has as many parts as ``--steps`` has numbers; each goes on from the model of the one before
with a rate of its own. ``--schedule power:0.03``: nearly all frames appear at once, so that a
frame's index, of which ``--place`` tells, is its place long before what it shows is settled;
``--shift 5`` leaves them noise for longer. ``--rotary-values`` turns what frames take from each
other with their distance. ``--first``, ``--planned`` and ``--fill`` are those of ``flowcept
train``, here off by default; for each number after ``--refine`` clips are sampled. ``--late 0.1``
leaves out most draws past the last insertion, in which few frames still flow, and ``--hidden 128
--stem-channels 32`` makes a network of 1.9 million weights, of which an hour sees twice as many
clips. Beside the printed figures, ``ring.png`` has the lengths and ``rings.png`` twelve clips.

A run that is cut goes on where it stopped. Printed: total variation of 512 lengths, the share on
valid lengths, and the rule error (root mean square over pixels in 0..1, against the best of the
three rotations of the clip's own first frame; in brackets the 5 % and 95 % points over bootstraps
of the clips), sampled with 50 and with 10 steps, and the error by quarters of the frames, in the
order in which they appeared and in the clip. Then, where an error comes from: real clips with
all their frames at one noise level, cleaned by the network and by the posterior mean, which can be
written down for a ring; and what the sampler makes of 20 frames with that in the network's place.

Shape suffixes: F frames, H W = 3, 3 colours; p pixels of all frames, 2 ends of the ramp.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baselines
import machine
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from flowcept import model_file as checkpoint
from flowcept.codecs import to_frames
from flowcept.data import video
from flowcept.evaluation import evaluate, metrics, report
from flowcept.model_file import Weights
from flowcept.process import state as frames
from flowcept.process.forward import shifted
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator, latents_of, sample_steps
from flowcept.process.state import FrameState, Given, Prediction
from flowcept.sampling import from_nothing
from flowcept.settings import ContextMixture, SampleConfig, TrainConfig
from flowcept.training import run as train
from flowcept.training.state import Files

LENGTHS = (15, 20, 25, 30)
TURNS = (1, 2, 3)
BORDER = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # clockwise
FPS = 12
BATCH = 64  # clips sampled together
SPREAD = 60.0  # of a ring's pixels, about: their standard deviation
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)  # share of the clip in what is seen
OF_TRAINING = ("place", "first", "planned", "late", "fill")
CHOSEN = ("schedule", "hidden", "stem_channels", "pooled", *OF_TRAINING)  # in all parts
QUARTERS = 4
TRUTH = dict.fromkeys(LENGTHS, 1 / len(LENGTHS))


def turned(first_HW3: NDArray[np.float64], turn: int, frames: int) -> NDArray[np.float64]:
    """The clip that the rule makes of a first frame, ``[F, 3, 3, 3]``."""
    clip_FHW3 = np.repeat(first_HW3[None], frames, axis=0)
    rows, columns = zip(*BORDER, strict=True)
    border_83 = first_HW3[rows, columns]
    for frame in range(frames):
        clip_FHW3[frame][rows, columns] = np.roll(border_83, turn * frame, axis=0)
    return clip_FHW3


def first_frame(start_3: NDArray[np.float64], end_3: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ramp from one colour to the other, on the border and then in the centre."""
    ramp_93 = start_3 + np.linspace(0, 1, 9)[:, None] * (end_3 - start_3)
    first_HW3 = np.empty((3, 3, 3))
    for place, colour in zip((*BORDER, (1, 1)), ramp_93, strict=True):
        first_HW3[place] = colour
    return first_HW3


def draw(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One clip."""
    first_HW3 = first_frame(*rng.uniform(0, 255, (2, 3)))
    turn, frames = TURNS[int(rng.integers(3))], LENGTHS[int(rng.integers(4))]
    return turned(first_HW3, turn, frames).round().astype(np.uint8)


def squared_errors(clip_FHW3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of each frame, in 0..1, against the best rotation of the clip's own first frame."""
    clip = clip_FHW3 / 255
    by_turn = [(clip - turned(clip[0], turn, len(clip))) ** 2 for turn in TURNS]
    return min((x.mean((1, 2, 3)) for x in by_turn), key=lambda x_F: float(x_F.mean()))


def rule_error(clip_FHW3: NDArray[np.uint8]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(squared_errors(clip_FHW3).mean()))


def by_quarters(clips: Sequence[Made], *, born: bool) -> list[float]:
    """Root mean square of the frames, by quarters of their clip or of the order of their births."""
    errors: list[list[float]] = [[] for _ in range(QUARTERS)]
    for clip in clips:
        squares_F = squared_errors(clip.frames_FHW3).tolist()
        order_F = clip.born_F if born else range(len(squares_F))
        for number, square in zip(order_F, squares_F, strict=True):
            errors[QUARTERS * number // len(squares_F)].append(square)
    return [float(np.sqrt(np.mean(quarter))) if quarter else 0.0 for quarter in errors]


def posterior_mean(noisy_FHW3: NDArray[np.float64], progress: float) -> NDArray[np.float64]:
    """The best guess of a ring from ``progress`` of it and the rest noise, both of unit variance.

    Given its turn a ring is linear in its two colours, here taken for normal: a pixel has 2/3 of
    their variance. Each turn's guess is weighted by how likely it makes what is seen.
    """
    frames, precision = len(noisy_FHW3), progress / (1 - progress) ** 2
    seen_p3 = noisy_FHW3.reshape(-1, 3)
    white_3, black_3 = np.ones(3), np.zeros(3)
    parts = [first_frame(white_3, black_3), first_frame(black_3, white_3)]
    guesses, logs = [], []
    for turn in TURNS:
        weight_p2 = np.stack([turned(p, turn, frames)[..., 0].ravel() for p in parts], axis=1)
        inverse_22 = precision * progress * weight_p2.T @ weight_p2 + np.eye(2) / 1.5
        pull_23 = precision * weight_p2.T @ seen_p3
        colour_23 = np.linalg.solve(inverse_22, pull_23)
        logs.append((pull_23 * colour_23).sum() / 2 - 1.5 * np.linalg.slogdet(inverse_22)[1])
        guesses.append((weight_p2 @ colour_23).reshape(noisy_FHW3.shape))
    share = np.exp(np.array(logs) - max(logs))
    return np.tensordot(share / share.sum(), np.stack(guesses), 1)


def ideal_error(clips: int, steps: int, shift: float, seed: int) -> float:
    """The rule error of clips of 20 frames, there from the start, that the posterior mean makes.

    It takes the network's place in the sampler; nothing is inserted.
    """
    process = baselines.FullSequence(shift=shift)

    def guess(state: FrameState, _: Sequence[int], __: Tensor, ___: bool) -> Prediction:
        progress = shifted(state.time_F[0].double(), shift).item()
        x_FHW3 = state.latent_FCHW.permute(0, 2, 3, 1).double()
        best = [posterior_mean(clip.numpy(), progress) for clip in x_FHW3.split(state.lengths)]
        left_FHW3 = torch.from_numpy(np.concatenate(best)) - x_FHW3
        return Prediction(
            velocity_FCHW=(left_FHW3 / (1 - progress)).permute(0, 3, 1, 2).float(),
            log_missing_F=torch.zeros(len(x_FHW3)),
            log_missing_first_B=torch.zeros(len(state.lengths)),
            size_logits_BK=torch.zeros(len(state.lengths), 1),
        )

    steps_of = sample_steps(
        guess,
        [Given(torch.zeros(0, 3, 3, 3), (True,), (20,))] * clips,
        [clip_generator(seed + number) for number in range(clips)],
        SampleConfig(steps=steps),
        process,
        max_length=20,
    )
    pixels = [127.5 + SPREAD * latent.permute(0, 2, 3, 1) for latent in latents_of(steps_of)]
    whole = [x.clamp(0, 255).round().byte().numpy() for x in pixels]
    return float(np.mean([rule_error(clip) for clip in whole]))


def cleaned(weights: Weights, clips: int, seed: int) -> list[tuple[float, float, float]]:
    """Of real clips at each noise level: progress, error of the network and of the best guess.

    Mean squares over pixels of unit variance.
    """
    rng = np.random.default_rng([seed, 2])
    images = [torch.from_numpy(draw(rng)).permute(0, 3, 1, 2) / 127.5 - 1 for _ in range(clips)]
    lengths = tuple(map(len, images))
    rows = []
    with torch.inference_mode():
        prompt = frames.concat([weights.text([""])] * clips)
        clean_F3HW = torch.cat([weights.codec.encode(image) for image in images])
        noise_F3HW = torch.randn(clean_F3HW.shape, generator=clip_generator(seed))
        for progress in LEVELS:
            time = shifted(progress, 1 / weights.card.process.shift)
            noisy_F3HW = torch.lerp(noise_F3HW, clean_F3HW, progress)
            state = FrameState(
                latent_FCHW=noisy_F3HW,
                time_F=torch.full((len(noisy_F3HW),), time),
                role_F=torch.zeros(len(noisy_F3HW), dtype=torch.long),
                tau_B=torch.full((clips,), time),
                open_first_B=torch.ones(clips, dtype=torch.bool),
                lengths=lengths,
            )
            made_F3HW = noisy_F3HW + (1 - progress) * weights.network(state, prompt).velocity_FCHW
            seen = noisy_F3HW.permute(0, 2, 3, 1).double().split(lengths)
            best = np.concatenate([posterior_mean(clip.numpy(), progress) for clip in seen])
            best_F3HW = torch.from_numpy(best).permute(0, 3, 1, 2)
            errors = [(x - clean_F3HW).square().mean().item() for x in (made_F3HW, best_F3HW)]
            rows.append((progress, *errors))
    return rows


def shuffled_error(seed: int, clips: int = 200) -> float:
    """The rule error of real clips whose frames were shuffled."""
    rng = np.random.default_rng([seed, 1])
    return float(np.mean([rule_error(rng.permutation(draw(rng))) for _ in range(clips)]))


def write_data(folder: Path, clips: int, seed: int) -> None:
    if folder.exists():
        return
    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True)
    for number in tqdm(range(clips), desc="drawing", unit="clip"):
        clip = draw(np.random.default_rng([seed, number]))
        video.write_video(scratch / f"{number:05d}.apng", clip, FPS)
    scratch.rename(folder)


def config(steps: int, seed: int, init: Path | None, **chosen: Any) -> TrainConfig:
    """By default about as many weights as published (7.4 million); about 32 clips a step."""
    return TrainConfig.from_flat(
        chosen
        | {
            "init": str(init or ""),
            "size": "3",
            "codec": "pixels",
            "patch": 3,
            "depth": 6,
            "stem_depth": 1 if chosen["stem_channels"] < 64 else 2,
            "text_width": 96,
            "text_depth": 1,
            "context": ContextMixture(1, 0, 0, 0, 0, 0, 0, 0),
            "prompt_dropout": 0.0,
            "given_prompt_dropout": 0.0,
            "held_out": 0.01,
            "steps": steps,
            "tokens": 580 if chosen["pooled"] else 1160,  # one or two a frame
            "warmup": 100,
            "ema": 0.998 if steps > 1000 else 0.98,
            "seed": seed,
            "eval_every": 500,
            "save_every": 500,
            "sample_every": 10**6,
        }
    )


def trained(folder: Path, options: argparse.Namespace) -> tuple[Path, float]:
    """The model after all parts of the training, and how many clips it saw."""
    chosen = {name: getattr(options, name) for name in CHOSEN}
    model, seen = None, 0.0
    parts = zip(options.steps, options.shift, options.decay, strict=True)
    for number, (steps, shift, decay) in enumerate(parts, start=1):
        run = options.run / f"part-{number}"
        settings = config(steps, options.seed, model, shift=shift, decay=decay, **chosen)
        resume = (run / "config.toml").exists()
        family = "rotary-values" if options.rotary_values else "transformer"
        model = train.train(folder, run, settings, family=family, resume=resume)
        log = Files(run).records()
        seen += sum(r["clips"] for r in log if "clips" in r) * settings.report.log_every
    assert model is not None
    return model, seen


@dataclass(frozen=True)
class Made:
    """A sampled clip."""

    frames_FHW3: NDArray[np.uint8]
    born_F: tuple[int, ...]  # in which order its frames appeared, from 0


def made(weights: Weights, clips: int, config: SampleConfig) -> list[Made]:
    done: dict[int, Made] = {}
    with torch.inference_mode():
        prompt = weights.text([""])
        for start in tqdm(range(0, clips, BATCH), desc=f"{config.steps} steps", unit="batch"):
            part = range(start, min(start + BATCH, clips))
            prompts = [prompt] * len(part)
            steps_of = sample_steps(
                guided(weights.network, prompts, prompts, 1.0),
                [from_nothing(weights.card)] * len(part),
                [clip_generator(i) for i in part],
                config,
                weights.card.process,
                max_length=max(LENGTHS) + 10,
            )
            for step in steps_of:
                names = step.name_F.split(step.state.lengths)
                for clip, latent_FCHW in step.done.items():
                    born_F = tuple(names[step.clips.index(clip)].tolist())
                    pictures = to_frames(weights.codec.decode(latent_FCHW))
                    done[start + clip] = Made(pictures, born_F)
    return [done[clip] for clip in range(clips)]


def described(clips: Sequence[Made]) -> str:
    """Lengths and rule error of sampled clips, beside the truth."""
    law = Counter(len(clip.born_F) for clip in clips)
    valid = sum(law[n] for n in LENGTHS) / len(clips)
    error, *ends = evaluate.mean_interval([rule_error(clip.frames_FHW3) for clip in clips], 0)
    born, placed = (
        " ".join(f"{x:.3f}" for x in by_quarters(clips, born=born)) for born in (True, False)
    )
    return (
        f"total variation {metrics.total_variation(law, TRUTH):.3f}, on valid lengths {valid:.1%}, "
        f"rule error {error:.4f} ({ends[0]:.4f} to {ends[1]:.4f})\n"
        f"  by quarters as they appeared {born}, in the clip {placed}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[415], help="of each part")
    parser.add_argument("--clips", type=int, default=8000, help="of the training folder")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", default="linear", help="when frames appear")
    parser.add_argument(
        "--shift", type=float, nargs="+", default=[1.0], help="over 1: they stay noise longer"
    )
    parser.add_argument(
        "--decay", type=float, nargs="+", default=[0.3], help="last share, of a falling rate"
    )
    parser.add_argument("--place", action="store_true", help="frames are told their place")
    parser.add_argument("--first", action="store_true", help="clips start with their first frame")
    parser.add_argument("--planned", action="store_true", help="frames are told their indices")
    parser.add_argument(
        "--fill", type=float, default=0.0, help="share past tau = 1 whose frames flow again"
    )
    parser.add_argument(
        "--refine", type=float, nargs="+", default=[0.0], help="from which frames are cleaned again"
    )
    parser.add_argument("--rotary-values", action="store_true", help="of attention among frames")
    parser.add_argument("--pooled", action="store_true", help="frames have no tokens of their own")
    parser.add_argument("--late", type=float, default=0.5, help="share of draws past tau = 1")
    parser.add_argument("--hidden", type=int, default=256, help="width of the network")
    parser.add_argument("--stem-channels", type=int, default=64, help="of its convolutions")
    options = parser.parse_args()
    parts = {"--steps": options.steps, "--shift": options.shift, "--decay": options.decay}
    if len({len(values) for values in parts.values()}) > 1:
        parser.error(f"{', '.join(parts)} need a number for each part of the training")
    folder = options.run.with_name(options.run.name + "-data")
    write_data(folder, options.clips, options.seed)
    model, seen = trained(folder, options)
    weights = checkpoint.load(model)
    size = sum(p.numel() for p in weights.network.parameters()) / 1e6
    print(machine.described())
    print(f"network of {size:.1f} million weights, {options.steps} steps, about {seen:.0f} clips")
    shuffled = shuffled_error(options.seed)
    print(f"{vars(options)}; rule error of shuffled real clips {shuffled:.3f}")
    bars: dict[str, dict[int, float]] = {"truth": TRUTH}
    for steps in (50, 10):
        for refine in options.refine:
            clips = made(weights, options.samples, SampleConfig(steps, refine=refine))
            name = f"{steps} steps" + (f", refined from {refine:g}" if refine else "")
            law = Counter(len(clip.born_F) for clip in clips)
            bars[name] = {n: count / len(clips) for n, count in law.items()}
            print(f"{name}, {len(clips)} clips: {described(clips)}", flush=True)
        ideal = ideal_error(20, steps, options.shift[-1], options.seed)
        print(f"by the posterior mean, all frames from the start: rule error {ideal:.4f}")
    for progress, *errors in cleaned(weights, 64, options.seed):
        network, best = (f"{error:.4f}" for error in errors)
        print(f"real clips at {progress:g}: cleaned by the network {network}, best {best}")
    pictures = [clip.frames_FHW3 for clip in clips[:12]]
    shown = [np.kron(clip, np.ones((1, 10, 10, 1), np.uint8)) for clip in pictures]
    labels = [f"{len(clip)} frames, rule error {rule_error(clip):.3f}" for clip in pictures]
    video.save_image(video.contact_sheets(shown, labels, max_columns=32), options.run / "rings.png")
    chart = report.bar_chart(bars, title="ring: lengths", x_label="frames", y_label="share")
    video.save_image(chart, options.run / "ring.png")


if __name__ == "__main__":
    main()
