"""Scores of a model against a folder of clips: ``flowcept evaluate MODEL DATA``.

Clips of the folder are drawn by a seed; for each one the model makes a clip from its caption, or
from caption and first frame, and one between its first and last frame. Every score comes with its
number of samples; intervals are bootstraps over clips.

Shape suffixes: F frames, C H W, N clips or states, D features, K counts, R resamples.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcept import __version__
from flowcept.codecs import Codec, to_images
from flowcept.data import folder as data
from flowcept.device import autocast
from flowcept.errors import UserError
from flowcept.evaluation import metrics
from flowcept.evaluation.features import FeatureNetwork
from flowcept.generation import Studio
from flowcept.model_file import Card
from flowcept.process.forward import Target, draw
from flowcept.process.posterior import BEYOND
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import FrameState, Given, concat
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import DataSettings, SampleConfig, mixed

BATCH = 16  # clips, or states, at once
RESAMPLES = 200  # of the bootstrap
QUARTERS = 4
STATES = 8  # of every clip, for the law of missing counts
NEIGHBOURS = 5  # of density and coverage
TASKS = {"gen": "clips from captions", "i2v": "clips from first frames"}  # labels of progress

Progress = Callable[[str, int, int], None]  # label, done, total
Pairs = list[tuple[Tensor, Tensor]]  # pictures of a real clip, and what was made between its ends
Show = Callable[[list["Clip"], list["Clip"], Pairs], None]


@dataclass(frozen=True)
class Scores:
    """The scores; ``None`` for those that could not be measured, with the reason in ``notes``."""

    about: dict[str, Any]
    features: dict[str, Any] | None
    lengths: dict[str, Any]
    interp: dict[str, Any] | None
    drift: dict[str, Any]
    motion: dict[str, float]
    counts: dict[str, Any]
    notes: list[str]


def evaluate(
    maker: Maker,
    folder: Path,
    config: SampleConfig,
    between: SampleConfig,
    *,
    task: str = "gen",
    clips: int = 64,
    network: FeatureNetwork | None = None,
    show: Show = lambda *_: None,
) -> Scores:
    """Score a model against a folder of clips. Raises ``UserError`` for unusable input.

    ``task`` sets what the model gets of each clip: its caption for ``gen``, caption and first frame
    for ``i2v``. For both, missing frames are also made between first and last, with the controls
    ``between``. ``show`` gets the scored clips: real, made, and made between ends.
    """
    if task not in TASKS:
        raise UserError(f"`task` must be {' or '.join(TASKS)}, not {task!r}")
    maker.studio.check_task(task)
    scan = _scanned(maker, folder, clips)
    real = _drawn(maker, scan, clips)
    if network:  # fail before clips are made if it cannot read them
        network([real[0].image_FCHW])

    notes = [*_known(maker.studio.card, scan)]
    if len(real) < clips:
        notes.append(f"the folder has {len(real)} usable clips, not {clips}")
    made, pairs = clips_like(maker, real, config, task), between_ends(maker, real, between)
    show(real, made, pairs)
    about = {"model": maker.name, "data": folder.resolve().name, "task": task, "clips": len(real)}
    return _scores(
        about | _circumstances(maker, config, between),
        notes,
        maker,
        real,
        made,
        pairs,
        network,
    )


def _known(card: Card, scan: data.Scan) -> Iterator[str]:
    """A warning if the model was trained on this folder."""
    files = data.digest_of_files(finding.path for finding in scan.findings)
    if any(training.files == files for training in card.trainings):
        yield (
            "the model was trained on most of these clips (same names and sizes of files): the "
            "scores show how well it remembers them, not how it does on new clips"
        )


def _circumstances(maker: Maker, config: SampleConfig, between: SampleConfig) -> dict[str, Any]:
    """The settings and the machine behind the scores."""
    settings, settings_between = (
        {name: value for name, value in asdict(one).items() if value is not None}
        for one in (config, between)
    )
    return {
        "settings": settings,
        "settings between frames": settings_between,
        "model_steps": maker.studio.card.steps,
        "seed": maker.seed,
        "device": maker.studio.device.type,
        "dtype": str(maker.studio.dtype).removeprefix("torch."),
        "flowcept": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _scores(
    about: dict[str, Any],
    notes: list[str],
    maker: Maker,
    real: list[Clip],
    made: list[Clip],
    pairs: Pairs,
    network: FeatureNetwork | None,
) -> Scores:
    """All scores of the made clips; the given ``notes`` come first."""
    features = interp = None
    if network:
        features = feature_scores(
            network.name, network(images_of(real)), network(images_of(made)), maker.seed
        )
    else:
        notes = [*notes, "no feature distance: it needs --features FILE"]
    if pairs:
        interp = interp_scores(pairs, maker.seed)
    else:
        notes = [*notes, "no clip is longer than two frames: nothing to interpolate"]
    return Scores(
        about=about,
        features=features,
        lengths=length_scores(real, made),
        interp=interp,
        drift=drift_scores(real, made, network),
        motion={"real": mean_motion(real), "made": mean_motion(made)},
        counts=count_scores(maker, real),
        notes=notes,
    )


# --- clips --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A clip of the folder, or one that the model made from its caption."""

    image_FCHW: Tensor  # in [-1, 1]
    caption: str


def images_of(clips: Iterable[Clip]) -> list[Tensor]:
    """The pictures of each clip."""
    return [clip.image_FCHW for clip in clips]


@dataclass(frozen=True)
class Maker:
    """A model, and the seed of the clips that it makes."""

    name: str  # of its file
    studio: Studio
    seed: int = 0
    progress: Progress = lambda *_: None

    @property
    def codec(self) -> Codec:
        return self.studio.codec

    def latents(self, clip: Clip) -> int:
        """Number of latents of a clip."""
        return self.codec.latents_of(len(clip.image_FCHW))

    def autocast(self) -> torch.autocast:
        """The context of precision for all work of the model."""
        return autocast(self.studio.device, self.studio.dtype)

    def encode(self, image_FCHW: Tensor) -> Tensor:
        """Latents of a whole clip."""
        with self.autocast():
            return self.codec.encode_clip(image_FCHW.to(self.studio.device))

    def encode_keyframes(self, image_FCHW: Tensor) -> Tensor:
        """Latents of single pictures, one for each."""
        with self.autocast():
            return self.codec.encode_keyframes(image_FCHW.to(self.studio.device))

    def decode(self, latent_FCHW: Tensor) -> Tensor:
        """Pictures of a clip, on the CPU."""
        with self.autocast():
            return self.codec.decode(latent_FCHW).cpu()

    @torch.no_grad()
    def sample(
        self, what: str, given: list[Given], real: list[Clip], config: SampleConfig
    ) -> list[Tensor]:
        """Latents of a made clip for each given start and its real clip's caption."""
        latents: list[Tensor] = []
        for first in range(0, len(given), BATCH):
            part = range(len(given))[first : first + BATCH]
            with self.autocast():
                steps = sample_clips(
                    self.studio.weights,
                    [given[i] for i in part],
                    [real[i].caption for i in part],
                    [""] * len(part),
                    [clip_generator(mixed(self.seed, "clips", i)) for i in part],
                    config,
                )
                latents += latents_of(steps)
            self.progress(what, len(latents), len(given))
        return latents


def draw_clips(maker: Maker, folder: Path, count: int) -> list[Clip]:
    """Clips of a folder in an order drawn by the seed, cut to what the codec can encode."""
    return _drawn(maker, _scanned(maker, folder, count), count)


def _scanned(maker: Maker, folder: Path, count: int) -> data.Scan:
    """The clips of a folder at the model's size and rate, at least two."""
    if count < 2:
        raise UserError(f"--clips must be at least 2, not {count}")
    card, codec = maker.studio.card, maker.codec
    most = codec.pictures_of(card.max_length)
    size = f"{card.size[1]}x{card.size[0]}"
    wanted = DataSettings(size, card.fps, max_frames=most, fit=card.fit)
    scan = data.scan(folder, wanted)
    if len(scan.entries) < 2:
        raise UserError(f"{folder} holds one usable clip: scores need at least two")
    return scan


def _drawn(maker: Maker, scan: data.Scan, count: int) -> list[Clip]:
    codec, clips = maker.codec, list[Clip]()
    order = np.random.default_rng(maker.seed).permutation(len(scan.entries))[:count]
    for number in order:
        entry = scan.entries[number]
        image_FCHW = to_images(data.load_clip(scan, entry))
        on_grid = codec.pictures_of(codec.latents_of(len(image_FCHW)))
        clips.append(Clip(image_FCHW[:on_grid], entry.caption))
        maker.progress("reading", len(clips), len(order))
    return clips


def clips_like(
    maker: Maker, real: list[Clip], config: SampleConfig, task: str, *, told: bool = False
) -> list[Clip]:
    """A clip for every caption, or caption and first frame; ``told``: with the real length."""
    given = []
    for clip in real:
        start = from_nothing(maker.studio.card, maker.studio.device)
        if task == "i2v":
            start = Given(maker.encode_keyframes(clip.image_FCHW[:1]), (False, True))
        given.append(_told(start, maker.latents(clip)) if told else start)
    latents = maker.sample(TASKS[task], given, real, config)
    return [Clip(maker.decode(x), clip.caption) for x, clip in zip(latents, real, strict=True)]


def _told(start: Given, length: int) -> Given:
    """The start of a clip of ``length`` latents; all missing ones come after those given."""
    *shut, _ = start.open_gaps
    rest = length - len(shut)
    return Given(start.latent_FCHW, (*shut, rest > 0), (*[0] * len(shut), rest))


def between_ends(maker: Maker, real: list[Clip], config: SampleConfig) -> Pairs:
    """Real clips of three pictures or more, each with a clip made between its ends.

    If a latent holds several pictures, the last picture's own latent is added to those of the clip:
    one more latent is missing, and the last one is not decoded.
    """
    beside = int(maker.codec.pictures_per_latent > 1)
    real = [clip for clip in real if len(clip.image_FCHW) > 2]
    given = []
    for clip in real:
        missing = maker.latents(clip) - 2 + beside
        ends_2CHW = maker.encode_keyframes(clip.image_FCHW[[0, -1]])
        given.append(Given(ends_2CHW, (False, True, False), (0, missing, 0)))
    latents = maker.sample("clips between two frames", given, real, config)
    made = [maker.decode(latent_FCHW[: len(latent_FCHW) - beside]) for latent_FCHW in latents]
    return list(zip(images_of(real), made, strict=True))


# --- scores -------------------------------------------------------------------------------------


def interval(
    score: Callable[[list[int]], float], count: int, seed: int
) -> tuple[float, float, float]:
    """A score of all clips, and the 5 % and 95 % points of it over bootstraps of the clips.

    ``score`` gets the numbers of the clips to use, some of them more than once.
    """
    rng = np.random.default_rng(seed)
    drawn = [score(rng.integers(count, size=count).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return score([*range(count)]), float(low), float(high)


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """The mean of one value per clip, and its interval."""
    return interval(lambda chosen: fmean(values[i] for i in chosen), len(values), seed)


def feature_scores(name: str, real_ND: Tensor, made_ND: Tensor, seed: int) -> dict[str, Any]:
    """Fréchet distance, called ``name``, density and coverage of equally many clips.

    A bootstrap of a Fréchet distance has fewer distinct clips than the sample, and fewer samples
    give a larger distance; so the interval shows the spread but lies above the score.
    """
    count = len(real_ND)
    distance = interval(
        lambda rows: metrics.frechet_of_samples(real_ND[rows], made_ND[rows]), count, seed
    )
    scores: dict[str, Any] = {"name": name, "clips": count, "distance": distance}
    if count > NEIGHBOURS:
        density, coverage = metrics.density_and_coverage(real_ND, made_ND, NEIGHBOURS)
        scores |= {"density": density, "coverage": coverage, "neighbours": NEIGHBOURS}
    return scores


def length_scores(real: Sequence[Clip], made: Sequence[Clip]) -> dict[str, Any]:
    """Law of lengths of equally many clips, and mean and spread per caption, commonest first."""
    lengths_2N = np.array([[*map(len, images_of(clips))] for clips in (real, made)])
    real_law, made_law = (Counter(length_N.tolist()) for length_N in lengths_2N)
    return {
        "total_variation": metrics.total_variation(real_law, made_law),
        "by chance": chance_variation(real_law),
        "real": dict(sorted(real_law.items())),
        "made": dict(sorted(made_law.items())),
        "captions": _by_caption(real, lengths_2N),
    }


def _by_caption(real: Sequence[Clip], lengths_2N: NDArray[np.int64]) -> dict[str, Any]:
    """Mean and spread of real and of made lengths for every caption."""
    captions = np.array([clip.caption for clip in real])
    scores = {}
    for caption, count in Counter(sorted(captions.tolist())).most_common():
        own_2N = lengths_2N[:, captions == caption]
        spread = [[float(length_N.mean()), float(length_N.std())] for length_N in own_2N]
        scores[caption] = {"clips": count, "real": spread[0], "made": spread[1]}
    return scores


def chance_variation(law: Mapping[int, int]) -> float:
    """The total variation that chance gives: the mean over pairs of samples of the same law.

    ``law`` counts how often each length was seen.
    """
    rng = np.random.default_rng(0)
    count = sum(law.values())
    share = np.array(list(law.values())) / count
    drawn_2RK = rng.multinomial(count, share, size=(2, RESAMPLES))
    return float(np.abs(drawn_2RK[0] - drawn_2RK[1]).sum(1).mean() / (2 * count))


def interp_scores(pairs: Pairs, seed: int) -> dict[str, Any]:
    """Scores of the missing frames by the model, by a linear blend and by repeating the first."""
    images = [real_FCHW for real_FCHW, _ in pairs]
    truth = [x[1:-1] for x in images]
    ways = {
        "model": [made_FCHW[1:-1] for _, made_FCHW in pairs],
        "linear": [metrics.linear_blend(x[0], x[-1], len(x) - 2) for x in images],
        "repeat": [x[:1].expand_as(x[1:-1]) for x in images],
    }
    scores = {way: _likeness(guesses, truth, seed) for way, guesses in ways.items()}
    return {"clips": len(pairs), "frames": sum(map(len, truth)), **scores}


def _likeness(guesses: Sequence[Tensor], truth: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """How near clips come to the true ones; SSIM only if its window fits."""
    both = list(zip(guesses, truth, strict=True))
    scores: dict[str, Any] = {"psnr": mean_interval([metrics.psnr(a, b) for a, b in both], seed)}
    if min(truth[0].shape[-2:]) >= metrics.WINDOW:
        scores["ssim"] = fmean(float(metrics.ssim(a, b).mean()) for a, b in both)
    return scores


def mean_motion(clips: Sequence[Clip]) -> float:
    """Mean over clips of how much a frame differs from the next."""
    return fmean(map(metrics.motion, images_of(clips)))


def drift_scores(
    real: Sequence[Clip], made: Sequence[Clip], network: FeatureNetwork | None = None
) -> dict[str, Any]:
    """Sharpness of real and made clips by quarter, and the distance of the quarters' features.

    For features, each quarter is a clip of its own.
    """
    sides = {"real": _quarters(real), "made": _quarters(made)}
    sharpness = {side: [*map(_mean_sharpness, parts)] for side, parts in sides.items()}
    if not network:
        return {"sharpness": sharpness}
    features = [map(network, parts) for parts in sides.values()]
    return {"sharpness": sharpness, "distance": [*map(metrics.frechet_of_samples, *features)]}


def _quarters(clips: Sequence[Clip]) -> list[list[Tensor]]:
    """The first quarter of every clip, the second, and so on."""
    whole = images_of(clips)
    return [[image[quarter(len(image), q)] for image in whole] for q in range(QUARTERS)]


def _mean_sharpness(images: Sequence[Tensor]) -> float:
    return fmean(float(metrics.sharpness(image_FCHW).mean()) for image_FCHW in images)


def quarter(num_frames: int, number: int) -> slice:
    """One of four parts of a clip, of equal duration; very short clips repeat frames."""
    edges = [round(q * num_frames / QUARTERS) for q in range(QUARTERS + 1)]
    start = min(edges[number], num_frames - 1)
    return slice(start, max(edges[number + 1], start + 1))


# --- the law of missing counts ------------------------------------------------------------------


def count_scores(maker: Maker, real: list[Clip]) -> dict[str, Any]:
    """How far the law of the number of missing frames can be trusted, on real clips.

    Its mean log score, in nats, beside those of two laws that see no picture: the one that follows
    from the lengths of all training clips and the number of visible frames by Bayes' rule, and the
    constant law of these counts. Also pairs of (predicted probability, share that came true).
    """
    drawn = list(_states(maker, real))
    found = []
    for first in range(0, len(drawn), BATCH):
        found.append(_laws(maker, drawn[first : first + BATCH]))
        maker.progress("missing frames", min(first + BATCH, len(drawn)), len(drawn))
    law_NK, blind_NK, came_N = map(torch.cat, zip(*found, strict=True))
    return posterior_scores(law_NK, came_N) | {"lengths_log_score": log_score(blind_NK, came_N)}


def _states(maker: Maker, real: Sequence[Clip]) -> Iterator[tuple[FrameState, Target, str]]:
    """States of real clips without context before ``tau = 1``, with targets and captions."""
    generator = clip_generator(mixed(maker.seed, "states"))
    for clip in real:
        latent_FCHW = maker.encode(clip.image_FCHW).cpu()
        nothing = [False] * len(latent_FCHW)
        for _ in range(STATES):
            pair = draw(latent_FCHW, nothing, maker.studio.card.process, generator)
            if pair is not None and float(pair[0].tau_B) < 1:
                yield *pair, clip.caption


def _laws(
    maker: Maker, drawn: Sequence[tuple[FrameState, Target, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Laws ``[N, K]`` of missing counts, by the model and by lengths alone; and the true counts."""
    weights, card = maker.studio.weights, maker.studio.card
    states, targets, captions = zip(*drawn, strict=True)
    state = concat(states)
    with maker.autocast(), torch.inference_mode():
        prediction = weights.network(state.to(maker.studio.device), weights.text(captions))
    size_logits_NK = prediction.size_logits_BK.float().cpu()
    blind_1K = length_logits(card.lengths, size_logits_NK.shape[1])
    said, blind = (
        card.process.missing_logits(logits_NK, state).double().softmax(-1)
        for logits_NK in (size_logits_NK, blind_1K.expand_as(size_logits_NK))
    )
    return said, blind, concat(targets).total_B


def length_logits(weights: Mapping[int, float], size: int) -> Tensor:
    """A law of lengths as logits ``[1, K]``, like a network's."""
    logits_1K = torch.full((1, size), BEYOND)
    for length, weight in weights.items():
        logits_1K[0, length] = math.log(weight)
    return logits_1K


def log_score(law_NK: Tensor, total_N: Tensor) -> float:
    """Mean log-probability, in nats, that laws ``[N, K]`` gave to the true counts ``[N]``."""
    return float(law_NK.gather(1, total_N[:, None]).clamp(min=1e-12).log().mean())


def posterior_scores(law_NK: Tensor, total_N: Tensor, bins: int = 10) -> dict[str, Any]:
    """Log scores and reliability of laws ``[N, K]`` against the true counts ``[N]``."""
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
        "reliability": curve,  # (mean predicted probability, share that came true, how many)
    }
