"""Scores of a model against a folder of clips: ``flowcept evaluate MODEL DATA``.

Clips of the folder are drawn by a seed; for each one the model makes a clip of its caption, or of
caption and first frame, and one between its first and last frame. What is compared: features
(Fréchet distance, density and coverage), lengths, missing frames (against repeating and blending),
the course of quality along the clip, motion, and whether the network's posterior of the number of
missing frames is to be trusted. Every score stands beside its number of samples; intervals are
bootstraps over clips.

Shape suffixes: F frames, C H W, N clips, D features, K counts.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowcept import __version__
from flowcept import model_file as checkpoint
from flowcept.codecs import to_images
from flowcept.data import folder as data
from flowcept.device import autocast, pick_device, pick_dtype
from flowcept.errors import UserError
from flowcept.evaluation import charts, metrics
from flowcept.evaluation.features import ClipFeatures, FeatureNetwork, load_features
from flowcept.generation import from_nothing, sample_clips
from flowcept.process import forward as process
from flowcept.process.forward import draw, draw_context
from flowcept.process.posterior import BEYOND
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import Given
from flowcept.settings import ContextMixture, SampleConfig, defaults

BATCH = 16  # clips sampled at once
RESAMPLES = 200  # of the bootstrap
QUARTERS = 4
STATES = 8  # of every clip, for the count posterior
NEIGHBOURS = 5  # of density and coverage
TASKS = ("gen", "i2v")
BEST = 100.0  # dB: frames equal to the last bit count as this

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
    counts: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Clip:
    """A clip of the folder, or what the model made of its caption."""

    image_FCHW: Tensor  # in [-1, 1]
    caption: str


class Evaluation:
    """A model, the drawn clips, and the means to make more."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        config: SampleConfig,
        *,
        clips: int,
        seed: int,
        device: str,
        dtype: str,
        progress: Progress,
        between: SampleConfig | None = None,
        told: bool = False,
    ) -> None:
        """``told``: the model gets the real clips' lengths, as baselines, which choose none, do.

        ``between`` are the controls for frames between given ones, by default those of ``interp``.
        """
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.weights = checkpoint.load(model)
        for module in (self.weights.network, self.weights.text, self.weights.codec):
            module.to(self.device)
        self.card, self.seed, self.progress = self.weights.card, seed, progress
        self.config, self.between = config, between or defaults("interp")
        self.told = told
        self.real = self._draw_clips(folder, clips)

    def _draw_clips(self, folder: Path, clips: int) -> list[Clip]:
        card = self.card
        wanted = data.DataConfig(card.size, card.fps, max_frames=card.max_length, fit=card.fit)
        scan = data.scan(folder, wanted)
        order = np.random.default_rng(self.seed).permutation(len(scan.entries))[:clips]
        if len(order) < 2:
            raise UserError(f"{folder} holds one usable clip: scores need two at least")
        found = []
        for number in order:
            entry = scan.entries[number]
            image_FCHW = to_images(data.load_clip(entry, wanted, scan.fps))
            found.append(Clip(image_FCHW, entry.caption))
            self.progress("reading", len(found), len(order))
        return found

    def make(
        self, given: Sequence[Given], real: Sequence[Clip], what: str, config: SampleConfig
    ) -> list[Clip]:
        """A clip for each given start and the caption of its real clip, by the sampler."""
        captions = [clip.caption for clip in real]
        made: list[Clip] = []
        for start in range(0, len(given), BATCH):
            part = range(start, min(start + BATCH, len(given)))
            with autocast(self.device, self.dtype), torch.inference_mode():
                steps = sample_clips(
                    self.weights,
                    [given[i] for i in part],
                    [captions[i] for i in part],
                    [""] * len(part),
                    [clip_generator(self.seed + i) for i in part],
                    config,
                )
                for i, latent_FCHW in zip(part, latents_of(steps), strict=True):
                    image_FCHW = self.weights.codec.decode(latent_FCHW).float().cpu()
                    made.append(Clip(image_FCHW.clone(), captions[i]))
            self.progress(what, len(made), len(given))
        return made

    def of_captions(self) -> list[Clip]:
        """A clip for every caption."""
        nothing = from_nothing(self.card, self.device)
        given = [
            replace(nothing, missing=(len(clip.image_FCHW),) if self.told else None)
            for clip in self.real
        ]
        return self.make(given, self.real, "clips of captions", self.config)

    def of_first_frames(self) -> list[Clip]:
        """A clip for every caption and first frame."""
        given = []
        for clip in self.real:
            missing = len(clip.image_FCHW) - 1
            latent_FCHW = self.encode(clip.image_FCHW[:1])
            gaps = (False, missing > 0 or not self.told)
            given.append(Given(latent_FCHW, gaps, (0, missing) if self.told else None))
        return self.make(given, self.real, "clips of first frames", self.config)

    def between_ends(self) -> list[tuple[Clip, Clip]]:
        """Real clips of three frames or more, each with what is made between its ends."""
        real = [clip for clip in self.real if len(clip.image_FCHW) > 2]
        given = [
            Given(
                self.encode(clip.image_FCHW[[0, -1]]),
                (False, True, False),
                (0, len(clip.image_FCHW) - 2, 0),
            )
            for clip in real
        ]
        made = self.make(given, real, "clips between two frames", self.between)
        return list(zip(real, made, strict=True))

    def encode(self, image_FCHW: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.weights.codec.encode(image_FCHW.to(self.device)).float()


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
    network = load_features(features, pick_device(device)) if features else None
    work = Evaluation(
        model, folder, config, between=between, clips=clips, seed=seed, device=device, dtype=dtype,
        progress=progress,
    )  # fmt: skip
    notes = []
    if len(work.real) < clips:
        notes.append(f"the folder has {len(work.real)} usable clips, not {clips}")
    if not network:
        notes.append("no distances of features: give --features FILE")
    # Of the real clips first: a network that cannot read them is told of before clips are made.
    of_real = features_of(network, work.real) if network else None
    made = work.of_captions() if task == "gen" else work.of_first_frames()
    pairs = work.between_ends()
    if not pairs:
        notes.append("no clip has a frame between its ends: nothing to interpolate")
    seen = (of_real, features_of(network, made)) if network and of_real else None
    return Scores(
        about={
            "model": model.name,
            "model_steps": work.card.steps,
            "data": folder.resolve().name,
            "task": task,
            "clips": len(work.real),
            "seed": seed,
            "settings": {k: v for k, v in asdict(config).items() if v is not None},
            "settings between frames": {
                k: v for k, v in asdict(work.between).items() if v is not None
            },
            "device": work.device.type,
            "dtype": str(work.dtype).removeprefix("torch."),
            "flowcept": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        features=feature_scores(network.name, *seen, seed) if network and seen else None,
        lengths=length_scores(work.real, made),
        interp=interp_scores(pairs, network, seed) if pairs else None,
        drift=drift_scores(work.real, made, network, seen),
        motion={
            "real": _mean([metrics.motion(clip.image_FCHW) for clip in work.real]),
            "made": _mean([metrics.motion(clip.image_FCHW) for clip in made]),
        },
        counts=count_scores(work),
        notes=notes,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def interval(
    score: Callable[[Sequence[int]], float], count: int, seed: int, *, centred: bool = False
) -> tuple[float, float, float]:
    """A score of all clips, and the 5 % and 95 % points of it over bootstraps of the clips.

    ``score`` gets the numbers of the clips to use, some of them more than once. ``centred``: less
    by how much bootstraps lie above the score on average, which is bias where fewer distinct clips
    make a score larger.
    """
    rng = np.random.default_rng(seed)
    drawn = [score(rng.integers(count, size=count).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    whole = score(range(count))
    bias = _mean(drawn) - whole if centred else 0.0
    return whole, float(low) - bias, float(high) - bias


def features_of(network: FeatureNetwork, clips: Sequence[Clip]) -> ClipFeatures:
    """What a feature network sees in clips."""
    return network([clip.image_FCHW for clip in clips])


def feature_scores(name: str, a: ClipFeatures, b: ClipFeatures, seed: int) -> dict[str, Any]:
    """Fréchet distances, density and coverage of equally many real clips (a) and made ones (b).

    ``name`` is what the distance is called.

    A bootstrap of a Fréchet distance has fewer distinct clips than the sample, and the distance
    grows as samples get fewer; so its interval tells the spread and lies above the score.
    """

    def clips(chosen: Sequence[int]) -> float:
        rows = list(chosen)
        return metrics.frechet_of_samples(a.clip_ND[rows], b.clip_ND[rows])

    scores: dict[str, Any] = {
        "name": name,
        "clips": [len(a.clip_ND), len(b.clip_ND)],
        "of clips": interval(clips, len(a.clip_ND), seed),
    }
    if a.frame_FD is not None and b.frame_FD is not None:
        every = range(len(a.clip_ND))
        scores["frames"] = [len(a.frame_FD), len(b.frame_FD)]
        scores["of frames"] = metrics.frechet_of_samples(a.frame_FD, b.frame_FD)
        changes = a.changes(every), b.changes(every)
        if min(map(len, changes)) > 1:
            scores["of changes"] = metrics.frechet_of_samples(*changes)
    if len(a.clip_ND) > NEIGHBOURS:
        density, coverage = metrics.density_and_coverage(a.clip_ND, b.clip_ND, NEIGHBOURS)
        scores |= {"density": density, "coverage": coverage, "neighbours": NEIGHBOURS}
    return scores


def length_scores(real: Sequence[Clip], made: Sequence[Clip]) -> dict[str, Any]:
    """Law of lengths, and mean and spread per caption, commonest first."""
    laws = [Counter(len(clip.image_FCHW) for clip in clips) for clips in (real, made)]
    per_caption: dict[str, tuple[list[int], list[int]]] = {}
    for side, clips in enumerate((real, made)):
        for clip in clips:
            both = per_caption.setdefault(clip.caption, ([], []))
            both[side].append(len(clip.image_FCHW))
    rows = sorted(per_caption.items(), key=lambda item: (-len(item[1][0]), item[0]))
    return {
        "total_variation": metrics.total_variation(laws[0], laws[1]),
        "by chance": chance_variation(laws[0]),
        "real": dict(sorted(laws[0].items())),
        "made": dict(sorted(laws[1].items())),
        "captions": {
            caption: {
                "clips": len(ours),
                "real": [float(np.mean(ours)), float(np.std(ours))],
                "made": [float(np.mean(theirs)), float(np.std(theirs))],
            }
            for caption, (ours, theirs) in rows
        },
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


def interp_scores(
    pairs: Sequence[tuple[Clip, Clip]], network: FeatureNetwork | None, seed: int
) -> dict[str, Any]:
    """The missing frames by the model, by repeating the first, by blending the two linearly."""
    ways: dict[str, list[Tensor]] = {"model": [], "repeat": [], "linear": []}
    truth = [real.image_FCHW[1:-1] for real, _ in pairs]
    for real, made in pairs:
        first, last = real.image_FCHW[0], real.image_FCHW[-1]
        count = len(real.image_FCHW) - 2
        ways["model"].append(made.image_FCHW[1:-1])
        ways["repeat"].append(first.expand(count, -1, -1, -1))
        ways["linear"].append(metrics.linear_blend(first, last, count))
    small = min(truth[0].shape[-2:]) < 2 * metrics.SSIM_RADIUS + 1
    wanted = network(truth) if network else None
    scores: dict[str, Any] = {"clips": len(pairs), "frames": sum(len(clip) for clip in truth)}
    for way, clips in ways.items():
        values = [psnr(a, b) for a, b in zip(clips, truth, strict=True)]
        scores[way] = {"psnr": interval(_mean_of(values), len(values), seed)}
        if not small:
            likeness = [float(metrics.ssim(a, b).mean()) for a, b in zip(clips, truth, strict=True)]
            scores[way]["ssim"] = _mean(likeness)
        if network and wanted and wanted.frame_FD is not None:
            found = network(clips).frame_FD
            assert found is not None
            scores[way]["features"] = float((found - wanted.frame_FD).norm(dim=1).mean())
    return scores


def psnr(made_FCHW: Tensor, real_FCHW: Tensor) -> float:
    """Mean over frames, dB; one equal to the last bit, as where nothing moves, counts as BEST."""
    return float(metrics.psnr_per_frame(made_FCHW, real_FCHW).clamp(max=BEST).mean())


def _mean_of(values: Sequence[float]) -> Callable[[Sequence[int]], float]:
    return lambda chosen: _mean([values[i] for i in chosen])


def drift_scores(
    real: Sequence[Clip],
    made: Sequence[Clip],
    network: FeatureNetwork | None,
    features: tuple[ClipFeatures, ClipFeatures] | None,
) -> dict[str, Any]:
    """Sharpness and distance of features by quarter of the clip; made against real.

    ``features`` are the network's of the real clips and of the made ones.
    """
    scores: dict[str, Any] = {"sharpness": {}}
    for name, clips in (("real", real), ("made", made)):
        scores["sharpness"][name] = [
            _mean([float(metrics.sharpness(part).mean()) for part in _parts(clips, number)])
            for number in range(QUARTERS)
        ]
    if network and features:
        distances = []
        for number in range(QUARTERS):
            a, b = (
                _features_of_parts(network, clips, seen, number)
                for clips, seen in zip((real, made), features, strict=True)
            )
            distances.append(metrics.frechet_of_samples(a, b))
        scores["distance"] = distances
    return scores


def _parts(clips: Sequence[Clip], number: int) -> list[Tensor]:
    images = [clip.image_FCHW for clip in clips]
    return [image_FCHW[quarter(len(image_FCHW), number)] for image_FCHW in images]


def _features_of_parts(
    network: FeatureNetwork, clips: Sequence[Clip], seen: ClipFeatures, number: int
) -> Tensor:
    """Of frames, which were looked at already, or else of the parts as clips of their own."""
    if seen.frame_FD is None:
        return network(_parts(clips, number)).clip_ND
    lengths = enumerate(seen.lengths)
    return torch.cat([seen.frames(clip)[quarter(length, number)] for clip, length in lengths])


def quarter(num_frames: int, number: int) -> slice:
    """One of four parts, of equal duration, of a clip; one of fewer frames repeats some."""
    edges = [round(q * num_frames / QUARTERS) for q in range(QUARTERS + 1)]
    start = min(edges[number], num_frames - 1)
    return slice(start, max(edges[number + 1], start + 1))


def count_scores(work: Evaluation) -> dict[str, Any]:
    """How far the posterior of the number of missing frames can be trusted, on real clips.

    Its mean log score, in nats, beside those of two laws that look at no picture: what the lengths
    of all training clips and the number of visible frames say by Bayes' rule, and the constant law
    of these very counts. And pairs of (probability said, how often it came true) over all counts.
    """
    generator = clip_generator(work.seed)
    nothing = ContextMixture(1, 0, 0, 0, 0, 0, 0, 0)
    drawn, captions = [], []
    for clip in work.real:
        latent_FCHW = work.encode(clip.image_FCHW).cpu()
        for _ in range(STATES):
            context = draw_context(len(latent_FCHW), nothing, generator)
            assert context is not None, "any clip can be shown without context"
            pair = draw(latent_FCHW, context, work.card.process, generator)
            if pair is not None and float(pair[0].tau_B) < 1:
                drawn.append(pair)
                captions.append(clip.caption)
    law_NK, blind_NK, total_N = [], [], []
    sizes_K = torch.full((work.weights.network.largest_size + 1,), BEYOND)
    for n, count in work.card.lengths.items():
        sizes_K[n] = math.log(count)
    for start in range(0, len(drawn), BATCH):
        state, target = process.concat(drawn[start : start + BATCH])
        with autocast(work.device, work.dtype), torch.inference_mode():
            prompt = work.weights.text(captions[start : start + BATCH])
            prediction = work.weights.network(state.to(work.device), prompt)
        law_BK = work.card.process.missing_logits(prediction.size_logits_BK.cpu(), state)
        law_NK.append(law_BK.double().softmax(-1))
        sizes_BK = sizes_K.expand(len(state.lengths), -1)
        blind_BK = work.card.process.missing_logits(sizes_BK, state)
        blind_NK.append(blind_BK.double().softmax(-1))
        total_N.append(target.total_B)
        work.progress("missing counts", min(start + BATCH, len(drawn)), len(drawn))
    came_N = torch.cat(total_N)
    blind = log_score(torch.cat(blind_NK), came_N)
    return posterior_scores(torch.cat(law_NK), came_N) | {"lengths_log_score": blind}


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
        inside = bin_NK == number
        if inside.any():
            share = float(came_NK[inside].double().mean())
            curve.append((float(law_NK[inside].mean()), share, int(inside.sum())))
    return {
        "states": len(total_N),
        "log_score": log_score(law_NK, total_N),
        "constant_log_score": log_score(constant_K.expand_as(law_NK), total_N),
        "reliability": curve,  # (mean probability said, share that came true, how many)
    }


# --- for people ---------------------------------------------------------------------------------


def table(scores: Scores) -> list[str]:
    """The scores as lines of text."""
    about = scores.about
    lines = [
        f"{about['model']} ({about['model_steps']} steps), {about['task']} on {about['data']}: "
        f"{about['clips']} clips, seed {about['seed']}, {about['dtype']} on {about['device']}"
    ]

    def row(name: str, value: str) -> None:
        lines.append(f"  {name:<52}{value}")

    found = scores.features
    if found:
        row(f"{found['name']}, {found['clips'][0]} clips each", _with_interval(found["of clips"]))
        if "of frames" in found:
            row(f"  the same of {found['frames'][1]} frames", f"{found['of frames']:.2f}")
        if "of changes" in found:
            row("  the same of changes between frames", f"{found['of changes']:.2f}")
        if "density" in found:
            row("density; coverage", f"{found['density']:.3f}; {found['coverage']:.3f}")
    lengths = scores.lengths
    row(
        "lengths: total variation (by chance alone)",
        f"{lengths['total_variation']:.3f} ({lengths['by chance']:.3f})",
    )
    if scores.interp:
        for way in ("model", "linear", "repeat"):
            part = scores.interp[way]
            more = "".join(f", {k} {part[k]:.3f}" for k in ("ssim", "features") if k in part)
            row(f"missing frames by {way}", f"PSNR {_with_interval(part['psnr'])} dB{more}")
    for name, values in scores.drift["sharpness"].items():
        row(f"sharpness by quarter, {name}", " ".join(f"{v:.4f}" for v in values))
    if "distance" in scores.drift:
        values = scores.drift["distance"]
        row("distance by quarter", " ".join(f"{v:.2f}" for v in values))
    row("motion: made; real", f"{scores.motion['made']:.4f}; {scores.motion['real']:.4f}")
    if scores.counts:
        row(
            f"log score of missing counts, {scores.counts['states']} states",
            "{log_score:.3f} (from lengths alone {lengths_log_score:.3f}, constant law "
            "{constant_log_score:.3f})".format(**scores.counts),
        )
    return [*lines, *(f"note: {note}" for note in scores.notes)]


def _with_interval(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def picture(scores: Scores) -> Image.Image:
    """Lengths, drift and reliability, one below the other."""
    total = scores.about["clips"]

    def shares(law: Mapping[int, int]) -> dict[int, float]:
        return {n: count / total for n, count in law.items()}

    parts = [
        charts.bar_chart(
            {side: shares(scores.lengths[side]) for side in ("real", "made")},
            title="lengths",
            x_label="frames",
            y_label="share of clips",
        ),
        charts.line_chart(
            {
                side: [(q + 1.0, value) for q, value in enumerate(values)]
                for side, values in scores.drift["sharpness"].items()
            },
            title="sharpness along the clip",
            x_label="quarter",
        ),
    ]
    if scores.counts:
        curve = [(said, came) for said, came, _ in scores.counts["reliability"]]
        parts.append(
            charts.line_chart(
                {"missing count": curve, "perfect": [(0.0, 0.0), (1.0, 1.0)]},
                title="how often a said probability came true",
                x_label="said",
                y_label="came true",
            )
        )
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole
