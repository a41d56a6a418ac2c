"""What a theatre model shows on prompts that nobody picked: the figures of its model card.

python tests/bench/judge.py --output judge.safetensors
python tests/bench/shipped.py --judge judge.safetensors --output figures.json

Every section can be run alone (`--only gen lengths`), and a run that is cut goes on where it
stopped: `--output` keeps what is done. Real clips come fresh from the theatre, with seeds that no
training used. Default settings of the command: ``--steps``, ``--guidance`` and ``--refine`` change
those of all sections but ``interp`` and ``double``.

Shape suffixes: F frames, B clips, C H W, 3 colours.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import judge as judging
import machine
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import flowcept
from flowcept import models
from flowcept.codecs import to_frames, to_images
from flowcept.data import theatre
from flowcept.data.theatre import Scene
from flowcept.device import autocast
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import QUARTERS, quarter
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import Given
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import SampleConfig, defaults

Frames = NDArray[np.uint8]
BATCH = 12  # clips sampled together; each is the same as alone


@dataclass(frozen=True)
class Job:
    """One clip to make: a prompt, given frames ``[F, H, W, 3]`` with their gaps, a length."""

    prompt: str
    seed: int
    given_FHW3: Frames | None = None
    gaps: tuple[bool, ...] = (True,)
    missing: tuple[int, ...] | None = None


class Bench:
    """The model, the judge and fresh real clips."""

    def __init__(self, model: str, judge: judging.Judge, seed: int, settings: SampleConfig) -> None:
        self.model, self.studio = model, flowcept.load(model)
        self.judge, self.seed, self.settings = judge, seed, settings
        self.cast = judging.cast_of(self.studio.card)
        self.size = self.studio.card.size[0]

    def scenes(self, count: int, stream: int, *, reserved: bool = False) -> list[Scene]:
        rng = np.random.default_rng([self.seed, stream])
        return [
            theatre.sample_scene(rng, actors=self.cast, reserved=reserved) for _ in range(count)
        ]

    def prompt(self, scene: Scene, number: int) -> str:
        return theatre.caption(scene, np.random.default_rng([self.seed, 91, number]))

    def real(self, scene: Scene, number: int) -> Frames:
        return theatre.draw_clip(scene, self.size, np.random.default_rng([self.seed, 92, number]))

    def make(
        self, jobs: Sequence[Job], label: str, settings: SampleConfig | None = None
    ) -> list[Frames]:
        """The clips of the jobs; lengths are the model's unless ``missing`` says them."""
        studio, done, settings = self.studio, [], settings or self.settings
        with tqdm(total=len(jobs), desc=label, unit="clip") as bar:
            for start in range(0, len(jobs), BATCH):
                part = jobs[start : start + BATCH]
                with autocast(studio.device, studio.dtype), torch.inference_mode():
                    given = [self.given(job) for job in part]
                    steps = sample_clips(
                        studio.weights,
                        given,
                        [job.prompt for job in part],
                        [""] * len(part),
                        [clip_generator(job.seed) for job in part],
                        settings,
                    )
                    codec = studio.weights.codec
                    done += [to_frames(codec.decode(latent)) for latent in latents_of(steps)]
                bar.update(len(part))
        return done

    def given(self, job: Job) -> Given:
        """What the clip of a job starts from."""
        if job.given_FHW3 is None:
            return replace(from_nothing(self.studio.card, self.studio.device), missing=job.missing)
        image_FCHW = to_images(job.given_FHW3).to(self.studio.device)
        latent_FCHW = self.studio.codec.encode_keyframes(image_FCHW).float()
        return Given(latent_FCHW, job.gaps, job.missing)

    def both(
        self, jobs: Sequence[Job], label: str, settings: SampleConfig | None = None
    ) -> dict[str, list[Frames]]:
        """The clips of the jobs, and those of the same jobs without their prompts."""
        bare = [replace(job, prompt="") for job in jobs]
        return {
            "with prompt": self.make(jobs, f"{label} with prompt", settings),
            "without prompt": self.make(bare, f"{label} without prompt", settings),
        }

    def hits(self, clips: Sequence[Frames], scenes: Sequence[Scene]) -> dict[str, float]:
        """Shares of clips in which the judge sees the actor, the action, and both."""
        verdicts = [self.judge.verdict(clip) for clip in clips]
        right = [
            (actor == scene.actor, action == scene.action)
            for (actor, action), scene in zip(verdicts, scenes, strict=True)
        ]
        return {
            "actor": float(np.mean([a for a, _ in right])),
            "action": float(np.mean([k for _, k in right])),
            "both": float(np.mean([a and k for a, k in right])),
        }

    def compare(self, scenes: Sequence[Scene], label: str, stream: int) -> dict[str, Any]:
        """The judge on generated clips, and on real ones of the same scenes."""
        prompts = [self.prompt(scene, stream + n) for n, scene in enumerate(scenes)]
        made = self.make([Job(p, stream + n) for n, p in enumerate(prompts)], label)
        real = [self.real(scene, stream + n) for n, scene in enumerate(scenes)]
        return {
            "clips": len(scenes),
            "generated": self.hits(made, scenes),
            "real": self.hits(real, scenes),
            "lengths": [len(clip) for clip in made],
        }


def gen(bench: Bench) -> dict[str, Any]:
    """96 prompts of trained pairs, one clip each."""
    return bench.compare(bench.scenes(96, 1), "gen", 1000)


def reserved(bench: Bench) -> dict[str, Any]:
    """96 prompts of pairs that were never trained."""
    return bench.compare(bench.scenes(96, 2, reserved=True), "reserved pairs", 2000)


def lengths(bench: Bench) -> dict[str, Any]:
    """15 clips of every action with every adverb, against the law of their lengths."""
    played = _every_action(bench.cast, bench.seed)
    result = bench.compare(played, "lengths", 3000)
    cells: dict[str, dict[str, list[float]]] = {}
    truth: Counter[int] = Counter()
    for scene, length in zip(played, result["lengths"], strict=True):
        law = theatre.length_law(scene)
        for n, p in law.items():
            truth[n] += p
        cell = cells.setdefault(scene.action, {}).setdefault(scene.adverb or "plain", [])
        cell.append(length - sum(n * p for n, p in law.items()))
    plain = {a: sum(n * p for n, p in theatre.length_law(Scene("", a)).items()) for a in cells}
    means = {}
    for action, adverbs in cells.items():
        for adverb, errors in adverbs.items():
            scene = Scene("", action, "", "" if adverb == "plain" else adverb)
            true = sum(n * p for n, p in theatre.length_law(scene).items())
            means[f"{action} {adverb}"] = {"made": true + float(np.mean(errors)), "true": true}
    made = Counter(result["lengths"])
    coarse = [_coarse(made), _coarse(truth)]
    result |= {
        "means": means,
        "worst": max(abs(m["made"] / m["true"] - 1) for m in means.values()),
        "worst_action": max(
            abs(
                np.mean([means[f"{a} {v}"]["made"] for v in cells[a]])
                / np.mean([means[f"{a} {v}"]["true"] for v in cells[a]])
                - 1
            )
            for a in plain
        ),
        "ordered": sum(
            means[f"{a} slowly"]["made"]
            > means[f"{a} plain"]["made"]
            > means[f"{a} quickly"]["made"]
            for a in plain
        ),
        "actions": len(plain),
        "total_variation": metrics.total_variation(*coarse),
        "floor": _floor(played, bench.seed),
        "histogram": dict(sorted(made.items())),
        "truth": {n: round(w, 2) for n, w in sorted(truth.items())},
    }
    return result


def _every_action(cast: Sequence[str], seed: int) -> list[Scene]:
    """15 scenes of trained pairs for every action with every adverb."""
    rng = np.random.default_rng([seed, 3])

    def pick(names: Sequence[str]) -> str:
        return names[int(rng.integers(len(names)))]

    played = []
    for action, adverb in itertools.product(theatre.ACTIONS, theatre.ADVERBS):
        trained = [a for a in cast if (a, action) not in theatre.RESERVED]
        played += [Scene(pick(trained), action, pick(theatre.PLACES), adverb) for _ in range(15)]
    return played


def _coarse(law: Mapping[int, float]) -> dict[int, float]:
    """A law of lengths in bins of two frames."""
    bins: Counter[int] = Counter()
    for n, weight in law.items():
        bins[n // 2] += weight
    return bins


def _floor(played: Sequence[Scene], seed: int, repeats: int = 200) -> list[float]:
    """Mean and 95 % point of the total variation of one exact draw for each scene."""
    rng = np.random.default_rng(seed)
    laws = [theatre.length_law(scene) for scene in played]
    truth: Counter[int] = Counter()
    for law in laws:
        truth.update(law)
    found = []
    for _ in range(repeats):
        drawn = Counter(int(rng.choice(list(law), p=list(law.values()))) for law in laws)
        found.append(metrics.total_variation(_coarse(drawn), _coarse(truth)))
    return [float(np.mean(found)), float(np.quantile(found, 0.95))]


def codec(bench: Bench) -> dict[str, Any]:
    """The codec on 100 fresh clips, and the judge on what it gives back."""
    scenes = bench.scenes(100, 4)
    values, decoded = [], []
    for number, scene in enumerate(tqdm(scenes, desc="codec", unit="clip")):
        image_FCHW = to_images(bench.real(scene, 4000 + number))
        network = bench.studio.weights.codec
        decoded_FCHW = network.decode(network.encode(image_FCHW))
        values.append(metrics.psnr(decoded_FCHW, image_FCHW))
        decoded.append(to_frames(decoded_FCHW))
    return {
        "psnr": float(np.mean(values)),
        "least": float(np.min(values)),
        "judge": bench.hits(decoded, scenes),
    }


def _psnr(made_FHW3: Frames, real_FHW3: Frames) -> float:
    return metrics.psnr(to_images(made_FHW3), to_images(real_FHW3))


def interp(bench: Bench) -> dict[str, Any]:
    """First and last frame and the exact length given; PSNR of the missing frames, 48 clips."""
    scenes = bench.scenes(48, 5)
    real = [bench.real(scene, 5000 + n) for n, scene in enumerate(scenes)]
    jobs = [
        Job(
            bench.prompt(scene, 5000 + n),
            5000 + n,
            clip[[0, -1]],
            (False, True, False),
            (0, len(clip) - 2, 0),
        )
        for n, (scene, clip) in enumerate(zip(scenes, real, strict=True))
    ]
    result: dict[str, Any] = {
        name: float(np.mean([_psnr(m[1:-1], r[1:-1]) for m, r in zip(made, real, strict=True)]))
        for name, made in bench.both(jobs, "interp", defaults("interp")).items()
    }
    result["linear"] = float(np.mean([_psnr(_linear(r, len(r) - 1), r[1:-1]) for r in real]))
    return result


def _linear(real_FHW3: Frames, stride: int) -> Frames:
    """The frames between every ``stride``-th one, blended."""
    image_FCHW = to_images(real_FHW3)
    kept = image_FCHW[::stride]
    parts = [metrics.linear_blend(a, b, stride - 1) for a, b in itertools.pairwise(kept)]
    return to_frames(torch.cat(parts))


def double(bench: Bench) -> dict[str, Any]:
    """Every second frame given; PSNR of the others, 48 clips."""
    scenes = bench.scenes(48, 6)
    real = []
    for number, scene in enumerate(scenes):
        clip = bench.real(scene, 6000 + number)
        real.append(clip[: len(clip) - 1 + len(clip) % 2])
    jobs = []
    for n, (scene, clip) in enumerate(zip(scenes, real, strict=True)):
        between = (False, *[True] * (len(clip) // 2), False)
        missing = tuple(int(gap) for gap in between)
        jobs.append(Job(bench.prompt(scene, 6000 + n), 6000 + n, clip[::2], between, missing))
    result: dict[str, Any] = {
        name: float(np.mean([_psnr(m[1::2], r[1::2]) for m, r in zip(made, real, strict=True)]))
        for name, made in bench.both(jobs, "double", defaults("interp")).items()
    }
    result["linear"] = float(np.mean([_psnr(_linear(r, 2), r[1::2]) for r in real]))
    for name, blocks in MOTION.items():
        made = [_minterpolate(r[::2], blocks)[1 : len(r) : 2] for r in real]
        result[name] = float(np.mean([_psnr(m, r[1::2]) for m, r in zip(made, real, strict=True)]))
    return result


# ffmpeg's motion compensation as it comes, in blocks of 16 pixels, and in finer ones, which suit
# frames of 64 pixels better.
MOTION = {"minterpolate": "", "minterpolate, blocks of 8": ":me_mode=bidir:mb_size=8"}


def _minterpolate(half_FHW3: Frames, blocks: str) -> Frames:
    """Twice the rate by ffmpeg's motion compensation, `2 F - 1` frames at least.

    The filter keeps back what lies before its second and after its last-but-one picture, so the
    ends are repeated before and dropped after.
    """
    pad = 3
    padded = np.concatenate(
        [half_FHW3[:1].repeat(pad, 0), half_FHW3, half_FHW3[-1:].repeat(pad, 0)]
    )
    height, width = half_FHW3.shape[1:3]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{width}x{height}", "-r", "6", "-i", "-", "-vf",
        f"minterpolate=fps=12:mi_mode=mci{blocks}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-",
    ]  # fmt: skip
    out = subprocess.run(command, input=padded.tobytes(), capture_output=True, check=True).stdout
    made = np.frombuffer(out, np.uint8).reshape(-1, height, width, 3)
    # Where the first own frame landed: the place after which the given frames fit best.
    num = 2 * len(half_FHW3) - 1
    errors = {
        at: float(np.abs(made[at : at + num : 2].astype(float) - half_FHW3.astype(float)).mean())
        for at in range(len(made) - num + 1)
    }
    best = min(errors, key=errors.__getitem__)
    return made[best : best + num]


def i2v(bench: Bench) -> dict[str, Any]:
    """The actor of the given first frame, judged in the last quarter, 48 clips."""
    scenes = bench.scenes(48, 7)
    real = [bench.real(scene, 7000 + n) for n, scene in enumerate(scenes)]
    jobs = [
        Job(bench.prompt(scene, 7000 + n), 7000 + n, clip[:1], (False, True))
        for n, (scene, clip) in enumerate(zip(scenes, real, strict=True))
    ]
    result: dict[str, Any] = {
        name: _actor_share(bench, [last_quarter(clip) for clip in made], scenes)
        for name, made in bench.both(jobs, "i2v").items()
    }
    result["real"] = _actor_share(bench, [last_quarter(clip) for clip in real], scenes)
    return result


def last_quarter(frames_FHW3: Frames) -> Frames:
    return frames_FHW3[quarter(len(frames_FHW3), QUARTERS - 1)]


def _actor_share(bench: Bench, clips: Sequence[Frames], scenes: Sequence[Scene]) -> float:
    right = [bench.judge.actor_of(c) == s.actor for c, s in zip(clips, scenes, strict=True)]
    return float(np.mean(right))


def _sharpness(clips: Sequence[Frames]) -> float:
    return float(np.mean([float(metrics.sharpness(to_images(clip)).mean()) for clip in clips]))


def extend(bench: Bench) -> dict[str, Any]:
    """Real clips extended by 1, 2 and 4 times the mean trained length, 24 clips each."""
    card = bench.studio.card
    total = sum(card.lengths.values())
    trained = round(sum(n * count for n, count in card.lengths.items()) / total)
    scenes = bench.scenes(24, 8)
    real = [bench.real(scene, 8000 + n) for n, scene in enumerate(scenes)]
    result: dict[str, Any] = {"trained_length": trained}
    for times in (1, 2, 4):
        made = []
        for n, (scene, clip) in enumerate(
            tqdm(list(zip(scenes, real, strict=True)), desc=f"extend {times}x", unit="clip")
        ):
            whole = bench.studio.extend(
                clip, bench.prompt(scene, 8000 + n), clip_fps=card.fps, frames=times * trained,
                seed=8000 + n,
            ).frames_FHW3  # fmt: skip
            made.append(whole[len(clip) :])
        parts = {
            "first quarter": [clip[quarter(len(clip), 0)] for clip in made],
            "last quarter": [last_quarter(clip) for clip in made],
        }
        result[f"{times}x"] = {
            part: {"actor": _actor_share(bench, clips, scenes), "sharpness": _sharpness(clips)}
            for part, clips in parts.items()
        }
    result["real"] = {
        "actor": _actor_share(bench, [last_quarter(clip) for clip in real], scenes),
        "sharpness": _sharpness(real),
    }
    return result


def speed(bench: Bench) -> dict[str, Any]:
    """`gen "a dog surfing"` as a process of its own, five times, and its peak memory."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(5):
            command = [sys.executable, "-m", "flowcept", "gen", "a dog surfing", "--quiet"]
            command += ["-m", bench.model, "-o", f"{folder}/{run}.mp4", "--seed", str(run)]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"median_s": statistics.median(seconds), "worst_s": max(seconds), "peak_GiB": peak}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    f.__name__: f for f in (speed, codec, gen, reserved, lengths, interp, double, i2v, extend)
}


Rows = list[tuple[str, str, str]]  # figure, asked, measured


def _judged(figure: str) -> Callable[[dict[str, Any]], Rows]:
    def rows(part: dict[str, Any]) -> Rows:
        made, real = part["generated"], part["real"]
        return [
            (
                f"{what} right, {figure}",
                "90 % of the judge's on real clips",
                f"{made[what]:.1%}; real {real[what]:.1%}; ratio {made[what] / real[what]:.1%}",
            )
            for what in ("actor", "action")
        ]

    return rows


def _reserved_rows(part: dict[str, Any]) -> Rows:
    made, real = part["generated"], part["real"]
    measured = (
        f"{made['both']:.1%} (actor {made['actor']:.1%}, action {made['action']:.1%}); "
        f"real {real['both']:.1%}"
    )
    return [("actor and action right, 96 prompts of reserved pairs", "60 %", measured)]


def _length_rows(part: dict[str, Any]) -> Rows:
    return [
        *_judged("540 trained prompts")(part),
        (
            "mean length against the truth: worst action; worst action with adverb",
            "10 %",
            f"{part['worst_action']:.1%}; {part['worst']:.1%}",
        ),
        (
            "slowly longer than plain longer than quickly",
            "every action",
            f"{part['ordered']} of {part['actions']}",
        ),
        (
            "law of lengths, total variation, 540 clips, bins of 2 frames",
            ".10",
            "{:.3f} (exact draws {:.3f}, 19 of 20 under {:.3f})".format(
                part["total_variation"], *part["floor"]
            ),
        ),
    ]


def _codec_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['psnr']:.2f} dB, worst clip {part['least']:.2f}; judge on its pictures: "
        f"actor {part['judge']['actor']:.1%}, action {part['judge']['action']:.1%}"
    )
    return [("codec, 100 fresh clips", "30 dB", measured)]


def _psnr_rows(figure: str) -> Callable[[dict[str, Any]], Rows]:
    def rows(part: dict[str, Any]) -> Rows:
        ours, bare = part["with prompt"], part["without prompt"]
        return [
            (
                f"{figure} over {other}",
                "3 dB",
                f"{ours - part[other]:+.2f} dB "
                f"({ours:.2f}; without prompt {bare:.2f}; {other} {part[other]:.2f})",
            )
            for other in ("linear", *MOTION)
            if other in part
        ]

    return rows


def _i2v_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['with prompt']:.1%}; without prompt {part['without prompt']:.1%}; "
        f"real {part['real']:.1%}"
    )
    return [("i2v: actor kept to the last quarter", "90 %", measured)]


def _extend_rows(part: dict[str, Any]) -> Rows:
    rows = []
    for times in ("1x", "2x", "4x"):
        first, last = part[times]["first quarter"], part[times]["last quarter"]
        measured = (
            f"actor {first['actor']:.1%} to {last['actor']:.1%}, sharpness "
            f"{last['sharpness'] / first['sharpness'] - 1:+.1%}"
        )
        figure = f"extend by {times} ({part['trained_length']} frames): last quarter against first"
        rows.append((figure, "drop under 10 % at 2x", measured))
    return rows


def _speed_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['median_s']:.1f} s (worst of 5: {part['worst_s']:.1f}), "
        f"{part['peak_GiB'] * 1.0737:.2f} GB"
    )
    return [('gen "a dog surfing", whole process', "12 s, 1.5 GB", measured)]


ROWS: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "gen": _judged("96 trained prompts"),
    "reserved": _reserved_rows,
    "lengths": _length_rows,
    "codec": _codec_rows,
    "interp": _psnr_rows("interp of first and last frame"),
    "double": _psnr_rows("interp of every second frame"),
    "i2v": _i2v_rows,
    "extend": _extend_rows,
    "speed": _speed_rows,
}


def table(done: dict[str, Any], model: str) -> list[str]:
    """Rows of the model card: figure, asked, measured."""
    rows = [row for name, make in ROWS.items() if name in done for row in make(done[name])]
    size = models.find(model).path.stat().st_size
    rows.append(("file", "30 MB", f"{size / 1e6:.1f} MB"))
    return [f"| {figure} | {asked} | {measured} |" for figure, asked, measured in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON of what is done so far")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--guidance", type=float, default=SampleConfig().guidance)
    parser.add_argument("--steps", type=int, default=SampleConfig().steps)
    parser.add_argument("--refine", type=float, default=SampleConfig().refine)
    parser.add_argument("--seed", type=int, default=4321)
    options = parser.parse_args()
    settings = SampleConfig(steps=options.steps, guidance=options.guidance, refine=options.refine)
    judge = judging.load(options.judge)
    bench = Bench(options.model, judge, options.seed, settings)
    if not set(bench.cast) <= set(judge.actors):
        parser.error("the judge does not know the model's actors: train it with --model")
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    between = defaults("interp")
    about = {
        "machine": machine.described(),
        "seed": options.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "refine": settings.refine,
        "interp": {"steps": between.steps, "guidance": between.guidance},
        "model_steps": bench.studio.card.steps,
        "sha256": hashlib.sha256(models.find(options.model).path.read_bytes()).hexdigest(),
        "judge": hashlib.sha256(options.judge.read_bytes()).hexdigest(),
    }
    before = done.get("about", about)
    if any(before.get(name) != about[name] for name in set(about) - {"machine"}):
        parser.error(f"{options.output} holds figures of something else: give another --output")
    done["about"] = about
    for name in options.only:
        if name not in done:
            done[name] = SECTIONS[name](bench)
            options.output.write_text(json.dumps(done, indent=1) + "\n")
            print(name, json.dumps({k: v for k, v in done[name].items() if k != "lengths"}))
    print("\n" + ", ".join(f"{k} {v}" for k, v in about.items()))
    print("\n| figure | goal | measured |\n|---|---|---|")
    print("\n".join(table(done, options.model)))


if __name__ == "__main__":
    main()
