"""Scores of a model against a folder of clips: ``flowcept evaluate MODEL DATA``.

Clips of the folder are drawn by a seed; for each one the model makes a clip of its caption, or of
caption and first frame, and one between its first and last frame. Every score stands beside its
number of samples; intervals are bootstraps over clips.

Shape suffixes: F frames, C H W, N clips or states, D features, K counts, R resamples.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcept import __version__, model_file
from flowcept.codecs import Codec, to_images
from flowcept.data import folder as data
from flowcept.device import autocast, pick_device, pick_dtype
from flowcept.errors import UserError
from flowcept.evaluation import metrics
from flowcept.evaluation.features import FeatureNetwork, load_features
from flowcept.generation import from_nothing, sample_clips
from flowcept.model_file import Card, Weights
from flowcept.process.forward import Target, concat, draw
from flowcept.process.posterior import BEYOND
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import FrameState, Given
from flowcept.settings import DataSettings, SampleConfig, defaults, mixed

BATCH = 16  # clips, or states, at once
RESAMPLES = 200  # of the bootstrap
QUARTERS = 4
STATES = 8  # of every clip, for the law of missing counts
NEIGHBOURS = 5  # of density and coverage
TASKS = ("gen", "i2v")

Progress = Callable[[str, int, int], None]  # what is being done, done, total


@dataclass(frozen=True)
class Scores:
    """What was measured; ``None`` where it could not be, with the reason in ``notes``."""

    about: dict[str, Any]
    features: dict[str, Any] | None
    lengths: dict[str, Any]
    interp: dict[str, Any] | None
    drift: dict[str, Any]
    motion: dict[str, float]
    counts: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Path,
    folder: Path,
    config: SampleConfig,
    *,
    between: SampleConfig | None = None,
    task: str = "gen",
    clips: int = 64,
    features: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda *_: None,
) -> Scores:
    """Score a model file against a folder of clips. Raises ``UserError`` for unusable input.

    ``task`` says what the model is given of each clip: ``gen`` its caption, ``i2v`` its first frame
    too. Missing frames are made between first and last in any case, with the controls ``between``,
    by default those of ``interp``.
    """
    if task not in TASKS:
        raise UserError(f"--task must be one of {', '.join(TASKS)}, not {task!r}")
    if clips < 2:
        raise UserError(f"--clips must be at least 2, not {clips}")
    between = between or defaults("interp")
    network = load_features(features, pick_device(device)) if features else None
    maker = load_maker(model, seed, device, dtype, progress)
    real = draw_clips(maker, folder, clips)
    if network:  # one that cannot read them is told of before clips are made
        network([real[0].image_FCHW])

    make = of_captions if task == "gen" else of_first_frames
    made = make(maker, real, config)
    pairs = between_ends(maker, real, between)
    notes = {
        f"the folder has {len(real)} usable clips, not {clips}": len(real) < clips,
        "no distances of features: give --features FILE": network is None,
        "no clip has a frame between its ends: nothing to interpolate": not pairs,
    }
    found = None
    if network:
        real_ND, made_ND = (network([c.image_FCHW for c in side]) for side in (real, made))
        found = feature_scores(network.name, real_ND, made_ND, seed)
    about = {"model": model.name, "data": folder.resolve().name, "task": task, "clips": len(real)}
    return Scores(
        about=about | _about(maker, config, between),
        features=found,
        lengths=length_scores(real, made),
        interp=interp_scores(pairs, seed) if pairs else None,
        drift=drift_scores(real, made, network),
        motion={
            side: fmean(metrics.motion(clip.image_FCHW) for clip in clips)
            for side, clips in (("real", real), ("made", made))
        },
        counts=count_scores(maker, real),
        notes=[note for note, holds in notes.items() if holds],
    )


def _about(maker: Maker, config: SampleConfig, between: SampleConfig) -> dict[str, Any]:
    """With which settings and on what machine the scores were made."""
    chosen, chosen_between = (
        {name: value for name, value in asdict(one).items() if value is not None}
        for one in (config, between)
    )
    return {
        "settings": chosen,
        "settings between frames": chosen_between,
        "model_steps": maker.card.steps,
        "seed": maker.seed,
        "device": maker.device.type,
        "dtype": str(maker.dtype).removeprefix("torch."),
        "flowcept": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


# --- clips --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A clip of the folder, or what the model made of its caption."""

    image_FCHW: Tensor  # in [-1, 1]
    caption: str


@dataclass(frozen=True)
class Maker:
    """A model on its device, and the seed of the clips that it makes."""

    weights: Weights
    device: torch.device
    dtype: torch.dtype
    seed: int
    progress: Progress

    @property
    def card(self) -> Card:
        return self.weights.card

    @property
    def codec(self) -> Codec:
        return self.weights.codec

    def latents(self, clip: Clip) -> int:
        """Number of latents of a clip."""
        return self.codec.latents_of(len(clip.image_FCHW))

    def encode(self, image_FCHW: Tensor) -> Tensor:
        """Latents of a whole clip."""
        with autocast(self.device, self.dtype):
            return self.codec.encode_clip(image_FCHW.to(self.device))

    def encode_keyframes(self, image_FCHW: Tensor) -> Tensor:
        """Latents of single pictures, one of each."""
        with autocast(self.device, self.dtype):
            return self.codec.encode_keyframes(image_FCHW.to(self.device))

    def make(
        self,
        what: str,
        given: Sequence[Given],
        real: Sequence[Clip],
        config: SampleConfig,
        beside: int = 0,
    ) -> list[Clip]:
        """A clip for each given start and the caption of its real clip, by the sampler.

        So many last latents stand ``beside`` those of the clip and are not decoded.
        """
        made: list[Clip] = []
        for start in range(0, len(given), BATCH):
            part = range(start, min(start + BATCH, len(given)))
            captions, nothing = [real[i].caption for i in part], [""] * len(part)
            generators = [clip_generator(mixed(self.seed, "clips", i)) for i in part]
            asked = given[start : part.stop], captions, nothing, generators
            with autocast(self.device, self.dtype), torch.no_grad():
                latents = latents_of(sample_clips(self.weights, *asked, config))
            for latent_FCHW, caption in zip(latents, captions, strict=True):
                own = len(latent_FCHW) - beside
                made.append(Clip(self.decode(latent_FCHW[:own]), caption))
            self.progress(what, len(made), len(given))
        return made

    @torch.no_grad()
    def decode(self, latent_FCHW: Tensor) -> Tensor:
        """Pictures of a clip, on the CPU."""
        with autocast(self.device, self.dtype):
            return self.codec.decode(latent_FCHW).cpu()


def load_maker(
    model: Path, seed: int, device: str, dtype: str, progress: Progress = lambda *_: None
) -> Maker:
    """A model file on a device; words of device and precision are those of the command."""
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    weights = model_file.load(model)
    for module in (weights.network, weights.text, weights.codec):
        module.to(place)
    return Maker(weights, place, precision, seed, progress)


def draw_clips(maker: Maker, folder: Path, count: int) -> list[Clip]:
    """Clips of a folder in an order drawn by the seed, cut to what the codec can encode."""
    card, codec = maker.card, maker.codec
    most = codec.pictures_of(card.max_length)
    size = f"{card.size[1]}x{card.size[0]}"
    wanted = DataSettings(size, card.fps, max_frames=most, fit=card.fit)
    scan = data.scan(folder, wanted)
    order = np.random.default_rng(maker.seed).permutation(len(scan.entries))[:count]
    if len(order) < 2:
        raise UserError(f"{folder} holds one usable clip: scores need two at least")
    clips = []
    for number in order:
        entry = scan.entries[number]
        image_FCHW = to_images(data.load_clip(scan, entry))
        on_grid = codec.pictures_of(codec.latents_of(len(image_FCHW)))
        clips.append(Clip(image_FCHW[:on_grid], entry.caption))
        maker.progress("reading", len(clips), len(order))
    return clips


def of_captions(
    maker: Maker, real: Sequence[Clip], config: SampleConfig, *, told: bool = False
) -> list[Clip]:
    """A clip for every caption; ``told``: as long as the real one."""
    nothing = from_nothing(maker.card, maker.device)
    given = [replace(nothing, missing=(maker.latents(clip),)) if told else nothing for clip in real]
    return maker.make("clips of captions", given, real, config)


def of_first_frames(
    maker: Maker, real: Sequence[Clip], config: SampleConfig, *, told: bool = False
) -> list[Clip]:
    """A clip for every caption and first frame; ``told``: as long as the real one."""
    given = []
    for clip in real:
        latent_1CHW = maker.encode_keyframes(clip.image_FCHW[:1])
        rest = maker.latents(clip) - 1
        told_start = Given(latent_1CHW, (False, rest > 0), (0, rest))
        given.append(told_start if told else Given(latent_1CHW, (False, True)))
    return maker.make("clips of first frames", given, real, config)


def between_ends(
    maker: Maker, real: Sequence[Clip], config: SampleConfig
) -> list[tuple[Clip, Clip]]:
    """Real clips of three frames or more, each with what is made between its ends.

    Where a latent stands for several pictures, the last picture's own is beside those of the clip:
    one more latent is missing, and the last one is no part of what is decoded.
    """
    beside = int(maker.codec.pictures_per_latent > 1)
    real = [clip for clip in real if len(clip.image_FCHW) > 2]
    given = []
    for clip in real:
        missing = maker.latents(clip) - 2 + beside
        ends_2CHW = maker.encode_keyframes(clip.image_FCHW[[0, -1]])
        given.append(Given(ends_2CHW, (False, True, False), (0, missing, 0)))
    made = maker.make("clips between two frames", given, real, config, beside)
    return list(zip(real, made, strict=True))


# --- scores -------------------------------------------------------------------------------------


def interval(
    score: Callable[[Sequence[int]], float], count: int, seed: int
) -> tuple[float, float, float]:
    """A score of all clips, and the 5 % and 95 % points of it over bootstraps of the clips.

    ``score`` gets the numbers of the clips to use, some of them more than once.
    """
    rng = np.random.default_rng(seed)
    drawn = [score(rng.integers(count, size=count).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return score(range(count)), float(low), float(high)


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """The mean of a value of each clip, and its interval."""
    return interval(lambda chosen: fmean(values[i] for i in chosen), len(values), seed)


def feature_scores(name: str, real_ND: Tensor, made_ND: Tensor, seed: int) -> dict[str, Any]:
    """Fréchet distance, called ``name``, density and coverage of equally many clips.

    A bootstrap of a Fréchet distance has fewer distinct clips than the sample, and the distance
    grows as samples get fewer; so its interval tells the spread and lies above the score.
    """

    def distance(chosen: Sequence[int]) -> float:
        rows = list(chosen)
        return metrics.frechet_of_samples(real_ND[rows], made_ND[rows])

    count = len(real_ND)
    scores = {"name": name, "clips": count, "distance": interval(distance, count, seed)}
    if count > NEIGHBOURS:
        density, coverage = metrics.density_and_coverage(real_ND, made_ND, NEIGHBOURS)
        scores |= {"density": density, "coverage": coverage, "neighbours": NEIGHBOURS}
    return scores


def length_scores(real: Sequence[Clip], made: Sequence[Clip]) -> dict[str, Any]:
    """Law of lengths of equally many clips, and mean and spread per caption, commonest first."""
    real_N, made_N = (np.array([len(clip.image_FCHW) for clip in clips]) for clips in (real, made))
    real_law, made_law = Counter(real_N.tolist()), Counter(made_N.tolist())
    captions: dict[str, Any] = {}
    counts = Counter(clip.caption for clip in real)
    for caption, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        captions[caption] = {"clips": count}
        rows = [clip.caption == caption for clip in real]
        for side, length_N in (("real", real_N[rows]), ("made", made_N[rows])):
            captions[caption][side] = [float(length_N.mean()), float(length_N.std())]
    return {
        "total_variation": metrics.total_variation(real_law, made_law),
        "by chance": chance_variation(real_law),
        "real": dict(sorted(real_law.items())),
        "made": dict(sorted(made_law.items())),
        "captions": captions,
    }


def chance_variation(law: Mapping[int, int]) -> float:
    """What chance alone gives: mean total variation of two samples of a law, as large as its own.

    ``law`` counts how often each length was seen.
    """
    rng = np.random.default_rng(0)
    count = sum(law.values())
    share = np.array(list(law.values())) / count
    drawn_2RK = rng.multinomial(count, share, size=(2, RESAMPLES))
    return float(np.abs(drawn_2RK[0] - drawn_2RK[1]).sum(1).mean() / (2 * count))


def interp_scores(pairs: Sequence[tuple[Clip, Clip]], seed: int) -> dict[str, Any]:
    """The missing frames by the model, by blending the two linearly, by repeating the first."""
    truth = [real.image_FCHW[1:-1] for real, _ in pairs]
    ways: dict[str, list[Tensor]] = {"model": [], "linear": [], "repeat": []}
    for (real, made), between in zip(pairs, truth, strict=True):
        first, last = real.image_FCHW[0], real.image_FCHW[-1]
        ways["model"].append(made.image_FCHW[1:-1])
        ways["linear"].append(metrics.linear_blend(first, last, len(between)))
        ways["repeat"].append(first.expand_as(between))

    scores: dict[str, Any] = {"clips": len(pairs), "frames": sum(map(len, truth))}
    for way, clips in ways.items():
        both = list(zip(clips, truth, strict=True))
        scores[way] = {"psnr": mean_interval([metrics.psnr(a, b) for a, b in both], seed)}
        if min(truth[0].shape[-2:]) >= metrics.WINDOW:
            scores[way]["ssim"] = fmean(float(metrics.ssim(a, b).mean()) for a, b in both)
    return scores


def drift_scores(
    real: Sequence[Clip], made: Sequence[Clip], network: FeatureNetwork | None = None
) -> dict[str, Any]:
    """Sharpness of both sides by quarter of the clip, and the distance of the quarters' features.

    The features are of the quarters as clips of their own.
    """
    sharpness: dict[str, list[float]] = {"real": [], "made": []}
    distance = []
    for number in range(QUARTERS):
        features = []
        for side, clips in (("real", real), ("made", made)):
            images = [clip.image_FCHW for clip in clips]
            parts = [image[quarter(len(image), number)] for image in images]
            sharpness[side].append(fmean(float(metrics.sharpness(part).mean()) for part in parts))
            if network:
                features.append(network(parts))
        if network:
            distance.append(metrics.frechet_of_samples(*features))
    return {"sharpness": sharpness} | ({"distance": distance} if network else {})


def quarter(num_frames: int, number: int) -> slice:
    """One of four parts, of equal duration, of a clip; one of fewer frames repeats some."""
    edges = [round(q * num_frames / QUARTERS) for q in range(QUARTERS + 1)]
    start = min(edges[number], num_frames - 1)
    return slice(start, max(edges[number + 1], start + 1))


# --- the law of missing counts ------------------------------------------------------------------


def count_scores(maker: Maker, real: Sequence[Clip]) -> dict[str, Any]:
    """How far the law of the number of missing frames can be trusted, on real clips.

    Its mean log score, in nats, beside those of two laws that look at no picture: what the lengths
    of all training clips and the number of visible frames say by Bayes' rule, and the constant law
    of these very counts. And pairs of (probability said, how often it came true) over all counts.
    """
    drawn = list(_states(maker, real))
    found = []
    for start in range(0, len(drawn), BATCH):
        part = drawn[start : start + BATCH]
        state, target = concat([(state, target) for state, target, _ in part])
        laws = _laws(maker, state, [caption for _, _, caption in part])
        found.append((*laws, target.total_B))
        maker.progress("missing counts", start + len(part), len(drawn))

    law_NK, blind_NK, came_N = map(torch.cat, zip(*found, strict=True))
    scores = posterior_scores(law_NK, came_N)
    return scores | {"lengths_log_score": log_score(blind_NK, came_N)}


def _states(maker: Maker, real: Sequence[Clip]) -> Iterator[tuple[FrameState, Target, str]]:
    """States of real clips without context before ``tau = 1``, with targets and captions."""
    generator = clip_generator(mixed(maker.seed, "states"))
    for clip in real:
        latent_FCHW = maker.encode(clip.image_FCHW).cpu()
        nothing = [False] * len(latent_FCHW)
        for _ in range(STATES):
            pair = draw(latent_FCHW, nothing, maker.card.process, generator)
            if pair is not None and float(pair[0].tau_B) < 1:
                yield *pair, clip.caption


def _laws(maker: Maker, state: FrameState, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Laws ``[N, K]`` of missing counts: the model's, and that of the training lengths alone."""
    card, weights = maker.card, maker.weights
    with autocast(maker.device, maker.dtype), torch.inference_mode():
        prediction = weights.network(state.to(maker.device), weights.text(captions))
    said_NK = prediction.size_logits_BK.float().cpu()

    blind_K = torch.full(said_NK.shape[1:], BEYOND)
    for length, count in card.lengths.items():
        blind_K[length] = math.log(count)
    laws = said_NK, blind_K.expand_as(said_NK)
    said, blind = (card.process.missing_logits(sizes_NK, state) for sizes_NK in laws)
    return said.double().softmax(-1), blind.double().softmax(-1)


def log_score(law_NK: Tensor, total_N: Tensor) -> float:
    """Mean log-probability, in nats, that laws ``[N, K]`` gave to what came, ``[N]``."""
    return float(law_NK.gather(1, total_N[:, None]).clamp(min=1e-12).log().mean())


def posterior_scores(law_NK: Tensor, total_N: Tensor, bins: int = 10) -> dict[str, Any]:
    """Log scores and reliability of laws ``[N, K]`` against what came, ``[N]``."""
    came_NK = torch.nn.functional.one_hot(total_N, law_NK.shape[1]).bool()
    constant_K = came_NK.double().mean(0)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_NK = torch.bucketize(law_NK.contiguous(), edges[1:-1], right=True)
    curve = []
    for number in range(bins):
        inside_NK = bin_NK == number
        if inside_NK.any():
            share = float(came_NK[inside_NK].double().mean())
            curve.append((float(law_NK[inside_NK].mean()), share, int(inside_NK.sum())))
    return {
        "states": len(total_N),
        "log_score": log_score(law_NK, total_N),
        "constant_log_score": log_score(constant_K.expand_as(law_NK), total_N),
        "reliability": curve,  # (mean probability said, share that came true, how many)
    }
