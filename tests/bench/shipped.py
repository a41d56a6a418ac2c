"""What a stage model shows on prompts that nobody picked: the figures of its model card.

flowcept stage CLIPS --models MODELS --clips 192 --seed 800
flowcept stage RESERVED --models MODELS --clips 96 --seed 801 --reserved
python tests/bench/shipped.py CLIPS RESERVED --models MODELS --judge judge.safetensors \\
    --output figures.json --features i3d_torchscript.pt --rife FOLDER

CLIPS and RESERVED are drawn with the actors and actions of the model's training, and with seeds
that neither it nor the judge (judge.py) saw; --models is the folder that they were drawn from.
--rife is as in interpolation.py, --features as in comparison.py; what is not given is left out.

Every section can be run alone (`--only gen lengths`), and a run that is cut goes on with the
section at which it stopped: --output keeps what is done, and pictures of the first clips of each
section are beside it. --clips scales all sections; 96 take about an hour of one thread, of which
extend, gen with its features, lengths and interp take the most, and "processor_minutes" of the
output says how long each took. Settings of sampling are those of the command; --steps, --guidance
and --refine change them in all sections but interp and double.

Shape suffixes: F frames, B clips, G given frames, C H W, 3 colours.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import interpolation
import judge as judging
import machine
import mobilenet
import numpy as np
import torch
from interpolation import Peer
from interpolation_peers import processor_seconds
from judge import Frames, Real
from lexicon import read_prompts
from torch import Tensor
from tqdm import tqdm

import flowcept
from flowcept import models
from flowcept.codecs import to_frames, to_images
from flowcept.data import video
from flowcept.data.drawn import draw_length
from flowcept.data.stage.company import Stage
from flowcept.data.stage.scene import ADVERBS, Scene, caption
from flowcept.device import autocast
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import QUARTERS, quarter
from flowcept.files import replacing
from flowcept.process.sampler import Step, clip_generator, latents_of
from flowcept.process.state import Given
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import SampleConfig, defaults, mixed

BATCH = 12  # clips sampled together; each is the same as alone
SHOWN = 12  # clips of a sheet


@dataclass(frozen=True)
class Job:
    """One clip to make: a prompt, given frames ``[F, H, W, 3]`` with their gaps, a length."""

    prompt: str
    seed: int
    given_FHW3: Frames | None = None
    gaps: tuple[bool, ...] = (True,)
    missing: tuple[int, ...] | None = None


class Bench:
    """The model, the judge and real clips."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.studio = options, flowcept.load(options.model)
        self.settings = SampleConfig(
            steps=options.steps, guidance=options.guidance, refine=options.refine
        )
        self.judge = judging.load(options.judge)
        words = (",".join(names) for names in (self.judge.actors, self.judge.actions))
        self.stage = Stage(options.models, *words)
        self.networks = [mobilenet.network_of(path) for path in options.features]

    def count(self, share: float) -> int:
        """So many times ``--clips``."""
        return max(1, round(share * self.options.clips))

    def real(self, share: float = 1, *, reserved: bool = False) -> list[Real]:
        """The first clips of a folder; all of them must be what the judge knows."""
        folder = self.options.reserved if reserved else self.options.folder
        count = self.count(share)
        clips = judging.listed(folder)[:count]
        if len(clips) < count:
            raise SystemExit(f"{folder} has {len(clips)} clips, not {count}: draw more")
        wanted = self.stage.pairs(reserved=reserved)
        others = {(clip.scene.actor, clip.scene.action) for clip in clips} - {*wanted}
        if others:
            kind = "reserved" if reserved else "trained"
            raise SystemExit(f"{folder}: {' '.join(min(others))} is no {kind} pair of the judge's")
        return clips

    def frames(self, clips: Sequence[Real]) -> list[Frames]:
        """Of real clips, at the model's size."""
        size = self.studio.card.size
        return [video.fit(clip.frames(), size)[0] for clip in clips]

    def seed(self, label: str, number: int) -> int:
        return mixed(self.options.seed, label, number)

    def made(
        self, jobs: Sequence[Job], label: str, settings: SampleConfig | None = None
    ) -> list[Frames]:
        """The clips of the jobs; lengths are the model's unless ``missing`` says them."""
        codec, clips = self.studio.codec, list[Frames]()
        for steps in self.sampled(jobs, label, settings or self.settings):
            clips += [to_frames(codec.decode(latent)) for latent in latents_of(steps)]
        sheet = video.contact_sheets(clips[:SHOWN], [job.prompt for job in jobs[:SHOWN]])
        output = self.options.output
        video.save_image(sheet, output.with_name(f"{output.stem}-{label.replace(' ', '-')}.png"))
        return clips

    def sampled(
        self, jobs: Sequence[Job], label: str, settings: SampleConfig
    ) -> Iterator[Iterator[Step]]:
        """Steps of the clips of the jobs, some of which are sampled together."""
        studio = self.studio
        for start in tqdm(range(0, len(jobs), BATCH), desc=label, unit="batch"):
            part = jobs[start : start + BATCH]
            prompts = [studio.reading(job.prompt).text for job in part]
            generators = [clip_generator(job.seed) for job in part]
            with autocast(studio.device, studio.dtype), torch.inference_mode():
                given = [self.given(job) for job in part]
                none = [""] * len(part)
                yield sample_clips(studio.weights, given, prompts, none, generators, settings)

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
            "with prompt": self.made(jobs, f"{label} with prompt", settings),
            "without prompt": self.made(bare, f"{label} without prompt", settings),
        }

    def right(self, clips: Sequence[Frames], scenes: Sequence[Scene]) -> dict[str, float]:
        return judging.right(self.judge, clips, scenes)

    def actor_share(self, clips: Iterable[Frames], real: Sequence[Real]) -> float:
        """Share of clips in which the judge sees the actor of the real clip."""
        named = [self.judge.actor_of(clip) for clip in clips]
        return float(np.mean([a == r.scene.actor for a, r in zip(named, real, strict=True)]))


# ---- sections


def gen(bench: Bench) -> dict[str, Any]:
    """Captions of trained pairs, one clip each."""
    return compared(bench, "gen")


def reserved(bench: Bench) -> dict[str, Any]:
    """Captions of pairs that were never trained."""
    return compared(bench, "reserved", reserved=True)


def compared(bench: Bench, label: str, *, reserved: bool = False) -> dict[str, Any]:
    """The judge on generated clips and on real ones, and distances between them."""
    real = bench.real(reserved=reserved)
    scenes, frames = [clip.scene for clip in real], bench.frames(real)
    jobs = [Job(clip.caption, bench.seed(label, n)) for n, clip in enumerate(real)]
    made = bench.made(jobs, label)
    found = {
        "clips": len(real),
        "generated": bench.right(made, scenes),
        "real": bench.right(frames, scenes),
    }
    if reserved or not bench.networks:
        return found
    others = bench.frames(bench.real(2)[len(real) :])
    return found | {"distances": distances(bench, frames, {"generated": made, "real": others})}


def distances(
    bench: Bench, real: Sequence[Frames], sides: Mapping[str, Sequence[Frames]]
) -> dict[str, dict[str, float]]:
    """By feature network, how far clips are from real ones; real ones are not at 0 either."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for network in bench.networks:
        of_real = network([to_images(clip) for clip in real])
        for name, clips in sides.items():
            features = network([to_images(clip) for clip in clips])
            found[network.name][name] = metrics.frechet_of_samples(of_real, features)
    return dict(found)


def words(bench: Bench) -> dict[str, Any]:
    """Prompts in other words than the captions', read with the model's lexicon."""
    scenes, prompts, skipped = list[Scene](), list[str](), 0
    for row in read_prompts("fresh", "test"):
        scene = Scene(row["actor"], row["action"])
        known = judging.names(scene.actor) & {*bench.judge.actors}
        played = judging.names(scene.action) & {*bench.judge.actions}
        skipped += not (known and played)
        if known and played:
            scenes.append(scene)
            prompts.append(row["prompt"])
    kept = range(0, len(prompts), max(1, len(prompts) // bench.count(1)))
    jobs = [Job(prompts[n], bench.seed("words", n)) for n in kept]
    made = bench.made(jobs, "words")
    right = bench.right(made, [scenes[n] for n in kept])
    return {"clips": len(jobs), "of other classes": skipped, "generated": right}


def lengths(bench: Bench) -> dict[str, Any]:
    """Lengths of clips of every action with every adverb, against their exact law.

    They are known at ``tau = 1``, half of the way.
    """
    played = every_action(bench)
    rng = np.random.default_rng([bench.options.seed, 4])
    jobs = [Job(caption(scene, rng), bench.seed("lengths", n)) for n, scene in enumerate(played)]
    made = grown_lengths(bench, jobs)
    laws = [bench.stage.length_law(scene) for scene in played]
    truth: Counter[int] = Counter()
    for law in laws:
        truth.update(law)
    return {
        "clips": len(played),
        **of_cells(played, made, [sum(n * p for n, p in law.items()) for law in laws]),
        "total_variation": metrics.total_variation(coarse(Counter(made)), coarse(truth)),
        "floor": floor(laws, truth, bench.options.seed),
        "histogram": dict(sorted(Counter(made).items())),
        "truth": {n: round(w, 2) for n, w in sorted(truth.items())},
    }


def grown_lengths(bench: Bench, jobs: Sequence[Job]) -> list[int]:
    """Pictures of the clips of the jobs, which are not made to their end."""
    found: list[int] = []
    for steps in bench.sampled(jobs, "lengths", bench.settings):
        grown = next(step for step in steps if step.index == bench.settings.steps)
        found += map(bench.studio.codec.pictures_of, grown.state.lengths)
    return found


def every_action(bench: Bench) -> list[Scene]:
    """Scenes of trained pairs, about four times ``--clips``: each action with each adverb."""
    rng, players = np.random.default_rng([bench.options.seed, 3]), defaultdict(list)
    for actor, action in bench.stage.pairs():
        players[action].append(actor)
    times = max(1, bench.count(4) // (len(players) * len(ADVERBS)))

    def pick(names: Sequence[str]) -> str:
        return names[int(rng.integers(len(names)))]

    played = []
    for action, adverb in itertools.product(players, ADVERBS):
        for _ in range(times):
            actor = pick(players[action])
            place = pick(list(bench.stage.places(actor, action)))
            played.append(Scene(actor, action, place, adverb))
    return played


def of_cells(played: Sequence[Scene], made: Sequence[int], true: Sequence[float]) -> dict[str, Any]:
    """Mean lengths, made and true, of all actions, quickly, plain and slowly; and their errors."""
    found = defaultdict(list)
    for scene, *pair in zip(played, made, true, strict=True):
        found[scene.action, scene.adverb].append(pair)
    means = {cell: np.mean(pairs, axis=0) for cell, pairs in found.items()}
    actions = {a: [means[a, adverb] for adverb in ("quickly", "", "slowly")] for a, _ in means}
    return {
        "means": {action: np.round(of, 2).tolist() for action, of in actions.items()},
        "all": error(np.mean([made, true], axis=1)),
        "worst_action": max(error(np.mean(of, axis=0)) for of in actions.values()),
        "worst": max(map(error, means.values())),
        "ordered": sum(bool(a[0] < b[0] < c[0]) for a, b, c in actions.values()),
        "actions": len(actions),
    }


def error(pair: Sequence[float]) -> float:
    """By what share a made mean is off its true one."""
    made, true = pair
    return abs(float(made / true) - 1)


def coarse(law: Mapping[int, float]) -> dict[int, float]:
    """A law of lengths in bins of two frames."""
    bins: Counter[int] = Counter()
    for n, weight in law.items():
        bins[n // 2] += weight  # type: ignore[assignment]
    return dict(bins)


def floor(
    laws: Sequence[Mapping[int, float]], truth: Mapping[int, float], seed: int, repeats: int = 200
) -> list[float]:
    """Mean and 95 % point of the total variation of one exact draw for each scene."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        drawn = Counter(draw_length(law, rng) for law in laws)
        found.append(metrics.total_variation(coarse(drawn), coarse(truth)))
    return [float(np.mean(found)), float(np.quantile(found, 0.95))]


def codec(bench: Bench) -> dict[str, Any]:
    """The codec on real clips, and the judge on what it gives back."""
    real, network = bench.real(), bench.studio.codec
    values, decoded = [], []
    for frames_FHW3 in tqdm(bench.frames(real), desc="codec", unit="clip"):
        image_FCHW = to_images(frames_FHW3)
        with torch.inference_mode():
            decoded_FCHW = network.decode(network.encode(image_FCHW))
        values.append(metrics.psnr(decoded_FCHW, image_FCHW))
        decoded.append(to_frames(decoded_FCHW))
    return {
        "clips": len(real),
        "psnr": float(np.mean(values)),
        "least": float(np.min(values)),
        "judge": bench.right(decoded, [clip.scene for clip in real]),
    }


def interp(bench: Bench) -> dict[str, Any]:
    """First and last frame and the exact length given; PSNR of the frames between."""
    return filled(bench, "interp", lambda count: count - 1)


def double(bench: Bench) -> dict[str, Any]:
    """Every second frame given; PSNR of the others."""
    return filled(bench, "double", lambda _: 2)


def filled(bench: Bench, label: str, spacing: Callable[[int], int]) -> dict[str, Any]:
    """PSNR of the frames between given ones, which are so far apart in clips of a length."""
    real, jobs, truth = bench.real(0.5), list[Job](), list[Frames]()
    for number, clip in enumerate(real):
        frames_FHW3 = bench.frames([clip])[0]
        apart = spacing(len(frames_FHW3))
        given_GHW3 = frames_FHW3[::apart]
        gaps = (False, *[True] * (len(given_GHW3) - 1), False)
        missing = tuple((apart - 1) * gap for gap in gaps)
        jobs.append(Job(clip.caption, bench.seed(label, number), given_GHW3, gaps, missing))
        truth.append(frames_FHW3[interpolation.missing_places(len(given_GHW3), apart)])

    found: dict[str, Any] = {"clips": len(real)}
    for name, clips in bench.both(jobs, label, defaults("interp")).items():
        made = [clip[inner_of(job)] for clip, job in zip(clips, jobs, strict=True)]
        found[name] = mean_psnr(made, truth)
    for name, peer in peers_of(bench.options).items():
        with torch.no_grad():
            made = [to_frames(peer(*known_to(job))) for job in tqdm(jobs, desc=name, unit="clip")]
        found[name] = mean_psnr(made, truth)
    return found


def known_to(job: Job) -> tuple[Tensor, int]:
    """What a peer gets of a job: its given frames and how far they are apart."""
    assert job.given_FHW3 is not None and job.missing is not None
    return to_images(job.given_FHW3), job.missing[1] + 1


def inner_of(job: Job) -> list[int]:
    """Where the frames of a job lie that were not given."""
    given_GCHW, apart = known_to(job)
    return interpolation.missing_places(len(given_GCHW), apart)


def mean_psnr(made: Sequence[Frames], real: Sequence[Frames]) -> float:
    pairs = zip(made, real, strict=True)
    return float(np.mean([metrics.psnr(to_images(m), to_images(r)) for m, r in pairs]))


def peers_of(options: argparse.Namespace) -> dict[str, Peer]:
    """Other ways to make frames between two."""
    motion = interpolation.load_network(models.find("motion").path)
    found: dict[str, Peer] = {
        "linear": interpolation.blend,
        "minterpolate": interpolation.minterpolate,
        "motion": interpolation.Ours(motion, all_pictures=True),
    }
    if options.rife:
        found["RIFE"] = halving(interpolation.Rife(interpolation.load_rife(options.rife)))
    return found


def halving(peer: Peer) -> Peer:
    """A peer that knows the middle alone, at any spacing: the nearest of the frames it can make."""

    def nearest(given_GCHW: Tensor, spacing: int) -> Tensor:
        fine = 2 ** math.ceil(math.log2(spacing))
        made = peer(given_GCHW, fine).unflatten(0, (len(given_GCHW) - 1, fine - 1))
        rows = [round(m * fine / spacing) - 1 for m in range(1, spacing)]
        return made[:, rows].flatten(0, 1)

    return nearest


def i2v(bench: Bench) -> dict[str, Any]:
    """The actor of the given first frame, judged in the last quarter."""
    real = bench.real(0.5)
    frames = bench.frames(real)
    jobs = [
        Job(one.caption, bench.seed("i2v", n), clip[:1], (False, True))
        for n, (one, clip) in enumerate(zip(real, frames, strict=True))
    ]
    sides = {**bench.both(jobs, "i2v"), "real": frames}
    shares = {
        name: bench.actor_share(map(last_quarter, clips), real) for name, clips in sides.items()
    }
    return {"clips": len(real), **shares}


def last_quarter(frames_FHW3: Frames) -> Frames:
    return frames_FHW3[quarter(len(frames_FHW3), QUARTERS - 1)]


def sharpness(clips: Sequence[Frames]) -> float:
    return float(np.mean([float(metrics.sharpness(to_images(clip)).mean()) for clip in clips]))


def extend(bench: Bench) -> dict[str, Any]:
    """Real clips extended by 1, 2 and 4 times the mean trained length."""
    card, real = bench.studio.card, bench.real(0.25)
    frames = bench.frames(real)
    total = sum(card.lengths.values())
    trained = round(sum(n * count for n, count in card.lengths.items()) / total)
    result: dict[str, Any] = {"clips": len(real), "trained_length": trained}
    for times in (1, 2, 4):
        made = []
        for n, (one, clip) in enumerate(
            tqdm(list(zip(real, frames, strict=True)), desc=f"extend {times}x", unit="clip")
        ):
            whole = bench.studio.extend(
                clip, one.caption, clip_fps=card.fps, frames=times * trained, anyway=True,
                seed=bench.seed("extend", n), config=bench.settings
            ).frames_FHW3  # fmt: skip
            made.append(whole[len(clip) :])
        parts = {
            "first quarter": [clip[quarter(len(clip), 0)] for clip in made],
            "last quarter": [last_quarter(clip) for clip in made],
        }
        result[f"{times}x"] = {
            part: {"actor": bench.actor_share(clips, real), "sharpness": sharpness(clips)}
            for part, clips in parts.items()
        }
    return result


def speed(bench: Bench) -> dict[str, Any]:
    """`gen "a dog surfing"` as a process of its own, five times, and its peak memory."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(5):
            command = [sys.executable, "-m", "flowcept", "gen", "a dog surfing", "--quiet"]
            command += ["-m", bench.options.model, "-o", f"{folder}/{run}.mp4", "--seed", str(run)]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"median_s": statistics.median(seconds), "worst_s": max(seconds), "peak_GiB": peak}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    f.__name__: f
    for f in (speed, codec, gen, reserved, words, lengths, interp, double, i2v, extend)
}


# ---- the table

Rows = list[tuple[str, str, str]]  # figure, goal, measured


def _ratio(made: dict[str, float], real: dict[str, float], what: str) -> str:
    return f"ratio {made[what] / real[what]:.1%}" if real[what] else "no ratio"


def _gen_rows(part: dict[str, Any]) -> Rows:
    made, real, rows = part["generated"], part["real"], []
    for what, goal in (("actor", 95), ("action", 90)):
        measured = f"{made[what]:.1%}; real {real[what]:.1%}; {_ratio(made, real, what)}"
        figure = f"{what} right, {part['clips']} captions of trained pairs"
        rows.append((figure, f"{goal} % of the judge's on real clips", measured))
    for name, of in part.get("distances", {}).items():
        measured = f"{of['generated']:.4g}; other real clips {of['real']:.4g}"
        rows.append((f"{name}, {part['clips']} clips", "", measured))
    return rows


def _reserved_rows(part: dict[str, Any]) -> Rows:
    made, real = part["generated"], part["real"]
    measured = (
        f"{made['both']:.1%} (actor {made['actor']:.1%}, action {made['action']:.1%}); "
        f"real {real['both']:.1%}; {_ratio(made, real, 'both')}"
    )
    figure = f"actor and action right, {part['clips']} captions of reserved pairs"
    return [(figure, "70 % of the judge's on real clips", measured)]


def _words_rows(part: dict[str, Any]) -> Rows:
    made = part["generated"]
    measured = f"{made['both']:.1%} (actor {made['actor']:.1%}, action {made['action']:.1%})"
    return [(f"actor and action right, {part['clips']} prompts in other words", "85 %", measured)]


def _length_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['all']:.1%}; worst action {part['worst_action']:.1%}, with adverb "
        f"{part['worst']:.1%}"
    )
    fits = "{:.3f} (exact draws {:.3f}, 19 of 20 under {:.3f})".format(
        part["total_variation"], *part["floor"]
    )
    ordered = f"{part['ordered']} of {part['actions']}"
    return [
        (f"mean length against the truth, {part['clips']} clips", "5 %", measured),
        ("slowly longer than plain longer than quickly", "every action", ordered),
        ("law of lengths, total variation, bins of 2 frames", "", fits),
    ]


def _codec_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['psnr']:.2f} dB, worst clip {part['least']:.2f}; judge on its pictures: "
        f"actor {part['judge']['actor']:.1%}, action {part['judge']['action']:.1%}"
    )
    return [(f"codec, {part['clips']} real clips", "32 dB", measured)]


def _filled_rows(figure: str) -> Callable[[dict[str, Any]], Rows]:
    def rows(part: dict[str, Any]) -> Rows:
        ours, bare = part["with prompt"], part["without prompt"]
        return [
            (
                f"{figure} over {other}, {part['clips']} clips",
                "3 dB" if other == "RIFE" else "",
                f"{ours - part[other]:+.2f} dB "
                f"({ours:.2f}; without prompt {bare:.2f}; {other} {part[other]:.2f})",
            )
            for other in ("linear", "minterpolate", "motion", "RIFE")
            if other in part
        ]

    return rows


def _i2v_rows(part: dict[str, Any]) -> Rows:
    measured = (
        f"{part['with prompt']:.1%}; without prompt {part['without prompt']:.1%}; "
        f"real {part['real']:.1%}"
    )
    return [(f"i2v: actor kept to the last quarter, {part['clips']} clips", "90 %", measured)]


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
    return [('gen "a dog surfing", whole process', "6 s", measured)]


ROWS: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "gen": _gen_rows,
    "reserved": _reserved_rows,
    "words": _words_rows,
    "lengths": _length_rows,
    "codec": _codec_rows,
    "interp": _filled_rows("interp of first and last frame"),
    "double": _filled_rows("interp of every second frame"),
    "i2v": _i2v_rows,
    "extend": _extend_rows,
    "speed": _speed_rows,
}


def table(done: dict[str, Any], model: str) -> list[str]:
    """Rows of the model card: figure, goal, measured."""
    rows = [row for name, make in ROWS.items() if name in done for row in make(done[name])]
    size = models.find(model).path.stat().st_size
    rows.append(("file", "40 MB", f"{size / 1e6:.1f} MB"))
    return [f"| {figure} | {goal} | {measured} |" for figure, goal, measured in rows]


def told(bench: Bench) -> dict[str, Any]:
    """What the figures depend on, and where they were taken."""
    options, between = bench.options, defaults("interp")
    return {
        "machine": machine.described(),
        "seed": options.seed,
        "clips": options.clips,
        "folders": [folder.name for folder in (options.folder, options.reserved)],
        "sampling": {
            name: getattr(bench.settings, name) for name in ("steps", "guidance", "refine")
        },
        "interp": {"steps": between.steps, "guidance": between.guidance},
        "features": [network.name for network in bench.networks],
        "RIFE": options.rife is not None,
        "model_steps": bench.studio.card.steps,
        "sha256": hashlib.sha256(models.find(options.model).path.read_bytes()).hexdigest(),
        "judge": hashlib.sha256(options.judge.read_bytes()).hexdigest(),
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="CLIPS")
    parser.add_argument("reserved", type=Path, metavar="RESERVED")
    parser.add_argument("--model", default=models.DEFAULT)
    parser.add_argument("--models", type=Path, required=True, help="that were drawn")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON of what is done so far")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--features", type=Path, nargs="+", default=[])
    parser.add_argument("--rife", type=Path, help="folder of the unpacked wheel")
    parser.add_argument("--guidance", type=float, default=SampleConfig().guidance)
    parser.add_argument("--steps", type=int, default=SampleConfig().steps)
    parser.add_argument("--refine", type=float, default=SampleConfig().refine)
    parser.add_argument("--seed", type=int, default=4321)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    interpolation.use_one_thread()
    bench = Bench(options)
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    about = told(bench)
    kept = done.get("about", about)
    if any(kept.get(name) != about[name] for name in set(about) - {"machine"}):
        raise SystemExit(f"{options.output} holds figures of something else: give another --output")
    done["about"] = about
    for name in options.only:
        if name not in done:
            before = processor_seconds()
            done[name] = SECTIONS[name](bench)
            done[name]["processor_minutes"] = round((processor_seconds() - before) / 60, 1)
            with replacing(options.output) as temporary:
                temporary.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(done[name]), flush=True)
    print("\n" + ", ".join(f"{k} {v}" for k, v in about.items()))
    print("\n| figure | goal | measured |\n|---|---|---|")
    print("\n".join(table(done, options.model)))


if __name__ == "__main__":
    main()
