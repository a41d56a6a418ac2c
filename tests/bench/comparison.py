"""The paper's claims on our own ground: docs/evidence.md's tables and pictures, one command.

flowcept theatre scenes --clips 3000 --seed 0 --actors dog,frog
flowcept theatre others --clips 256 --seed 1 --actors dog,frog
python tests/bench/comparison.py scenes others --run runs/theatre --features mobilenet.safetensors \
    --codec weights/theatre.safetensors --tables processes curve

Arms that are compared share data, codec, weights at the start and the tokens of a training step;
they differ in one setting. The start is a network that was trained on single frames alone: what
things look like is learned once, what is compared is how each process learns lengths and motion.
The learning rate is constant and weights are averaged, so that a run may be scored on its way, and
continued with more ``--steps``: twice as many keep all that was done. Every arm is scored on the
same real clips, which none was trained on, with their captions and the same seeds. What was trained
or scored is kept in ``--run`` and not done again: a run that is cut goes on where it stopped, and
two may share the work, with other ``--seeds`` or other tables, once the first has its start and its
cache and all networks that both tables have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import baselines
import flops
import intervals
import machine
import mobilenet
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flowcept
from flowcept import model_file as checkpoint
from flowcept.codecs import to_frames
from flowcept.data import video
from flowcept.evaluation import metrics, report
from flowcept.evaluation.evaluate import (
    QUARTERS,
    Clip,
    Maker,
    between_ends,
    clips_like,
    draw_clips,
    drift_scores,
    feature_scores,
    interp_scores,
    length_scores,
    mean_motion,
)
from flowcept.generation import Studio
from flowcept.networks import FAMILIES, build_network
from flowcept.process.forward import Process
from flowcept.settings import PRESETS, ContextMixture, SampleConfig, TrainConfig, defaults
from flowcept.training import run as train
from flowcept.training.parts import process_of
from flowcept.training.state import Files

Scored = dict[str, Any]
SHEET = 12  # clips of a contact sheet
OF_THE_NETWORK = ("window", "place")  # settings in which an arm's network differs
OF_BASELINES = ("process", "family")  # words of an arm's training that the package does not know


@dataclass(frozen=True)
class Arm:
    """One row: what is set in training and in sampling, and how long it is trained."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0  # of the steps
    equal_clips: bool = False  # trained until it saw as many clips as flowception, not tokens
    task: str = "gen"  # gen, i2v or interp
    told: bool = False  # flowception gets the real lengths, as the baselines always do

    @property
    def process(self) -> str:
        """The kind of its process."""
        return str(self.training.get("process", "flowception"))

    @property
    def family(self) -> str:
        """The kind of its network."""
        return str(self.training.get("family", "transformer"))

    @property
    def settings(self) -> dict[str, Any]:
        """What the package's own settings say of its training."""
        return {k: v for k, v in self.training.items() if k not in OF_BASELINES}

    @property
    def ruled(self) -> dict[str, str]:
        """Its draw rule and order of insertion, where they are not flowception's own."""
        return {k: v for k, v in self.sampling.items() if k in ("rule", "order")}


def _but(default: object, **setting: object) -> dict[str, Any]:
    """A setting, unless it is the default: so that equal runs have equal names."""
    return {name: value for name, value in setting.items() if value != default}


PROCESSES = [
    Arm("flowception"),
    Arm("full-sequence", {"process": "full-sequence"}),
    Arm("autoregressive", {"process": "autoregressive"}),
    Arm("autoregressive, causal", {"process": "autoregressive", "family": "causal"}),
]
EQUAL_CLIPS = [
    replace(arm, name=f"{arm.name}, equal clips", equal_clips=True) for arm in PROCESSES[1:]
]
SHARES = (0.25, 0.5, 1.0)  # of the steps, at which a process is scored
STEPS = (4, 8, 16, 32)
SCHEDULES = ("linear", "power:0.03", "power:0.1", "power:0.25", "power:0.5", "power:2")
FRAMES_EARLY = {"schedule": "power:0.1"}  # four of five by a tenth of the way
FRAMES_AT_ONCE = {"schedule": "power:0.03"}  # nineteen of twenty by a fifth
REMEDIES: dict[str, dict[str, Any]] = {  # for what flowception may want beside full-sequence
    "": {},
    ", told the place": {"place": True},
    ", rotary values": {"family": "rotary-values"},
    ", frames early": FRAMES_EARLY,
}
TABLES: dict[str, list[Arm]] = {
    "processes": [*PROCESSES, *EQUAL_CLIPS],
    "i2v": [replace(arm, task="i2v") for arm in (*PROCESSES, *EQUAL_CLIPS)],
    "gap": [  # between flowception and full-sequence, which is told the lengths, too
        *(
            Arm(f"{name}{', told the lengths' * told}", training, told=told)
            for name, training in (("flowception", {}), ("frames at once", FRAMES_AT_ONCE))
            for told in (False, True)
        ),
        *PROCESSES[1:2],
    ],
    "interp": [replace(arm, task="interp") for arm in PROCESSES],
    "curve": [
        replace(arm, name=f"{arm.name}, {share:g} of the steps", share=share)
        for arm in PROCESSES
        for share in SHARES
    ],
    "steps": [
        Arm(f"{arm.name}, {steps} steps", arm.training, {"steps": steps})
        for arm in PROCESSES[:2]
        for steps in STEPS
    ],
    "late": [
        *(Arm(f"late {late:g}", _but(0.5, late=late)) for late in (0.5, 0.75, 0.25, 0.1)),
        Arm("frames early, late 0.1", {"late": 0.1} | FRAMES_EARLY),
        *PROCESSES[1:2],
    ],
    "windows": [
        Arm(f"{arm.name}, window {window or 'all'}", arm.training | _but(0, window=window))
        for arm in PROCESSES[:2]
        for window in (0, 4, 2, 1)
    ],
    "remedies": [
        Arm(f"{arm.name}{name}, {share:g} of the steps", arm.training | remedy, share=share)
        for share in (1.0, 0.25)
        for arm in PROCESSES[:2]
        for name, remedy in REMEDIES.items()
        if not (arm.training and "schedule" in remedy)
    ],
    "orders": [
        Arm(order, sampling=_but("learned", order=order))
        for order in ("learned", "random", "bisection", "left-to-right")
    ],
    "rules": [
        Arm(f"{rule}, {steps} steps", {}, {"steps": steps} | _but("posterior", rule=rule))
        for rule in baselines.RULES
        for steps in STEPS
    ],
    "schedules": [
        *(Arm(name, _but("linear", schedule=name)) for name in SCHEDULES),
        *PROCESSES[1:2],
    ],
    "controls": [
        *(
            Arm(f"temperature {value:g}", sampling=_but(1.0, rate_temperature=value))
            for value in (0.0, 0.5, 1.0, 2.0)
        ),
        *(
            Arm(f"length scale {value:g}", sampling=_but(1.0, length_scale=value))
            for value in (0.5, 2.0)
        ),
    ],
}


class Comparison:
    """Trained arms and their scores, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.run = options, Path(options.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.features = mobilenet.MobileNet(options.features, torch.device("cpu"))
        self.of_real: list[torch.Tensor] | None = None  # features of the real clips' frames

    # --- training

    def config(self, arm: Arm, seed: int) -> TrainConfig:
        """A small network; the rate is constant, since where a run ends is not known yet."""
        settings = PRESETS["tiny"] | {
            "codec": self.options.codec or "autoencoder",
            "codec_steps": self.options.codec_steps,
            "stem_channels": 16,
            "stem_depth": 1,
            "warmup": 50,
            "decay": 0.0,
            "ema": 0.99,
            "held_out": 0.05,
            "steps": 10**6,
            "sample_every": 10**6,
            "eval_every": 10**6,
            "save_every": 200,
            "log_every": 1,
            "seed": seed,
        }
        return TrainConfig.from_flat(settings | arm.settings)

    def folder(self, arm: Arm, seed: int) -> Path:
        settings = ",".join(f"{k}={v}" for k, v in sorted(arm.training.items())) or "plain"
        return self.run / f"{settings.replace(':', '-')}-seed{seed}"

    def model(self, arm: Arm, seed: int) -> Path:
        """The arm's model file, trained so far if it is not there yet."""
        last = self.steps(arm, seed)
        for stop in self.stops(arm, seed):
            if stop <= last:
                self.trained(arm, seed, stop)
        return self.trained(arm, seed, last)

    def steps(self, arm: Arm, seed: int) -> int:
        """After how many steps the arm is scored."""
        steps: int = self.options.steps
        if not arm.equal_clips:
            return round(steps * arm.share)
        wanted, own = (self.clips_a_step(one, seed) for one in (PROCESSES[0], arm))
        return round(steps * wanted / own)

    def stops(self, arm: Arm, seed: int) -> list[int]:
        """After how many steps any table scores this run: they are kept in passing."""
        several = (*TABLES["curve"], *TABLES["remedies"], *EQUAL_CLIPS)
        same = [other for other in several if other.training == arm.training]
        return sorted({self.steps(other, seed) for other in (*same, arm)})

    def clips_a_step(self, arm: Arm, seed: int) -> float:
        """Mean over the first stop of the curve, which is reached before this is asked."""
        first = round(self.options.steps * SHARES[0])
        self.trained(arm, seed, first)
        log = Files(self.folder(arm, seed)).records()
        return fmean(r["clips"] for r in log if "clips" in r and r["step"] <= first)

    def trained(self, arm: Arm, seed: int, steps: int) -> Path:
        """The run's model file after exactly so many steps."""
        folder = self.folder(arm, seed)
        kept, newest = folder / f"model-{steps}.safetensors", folder / "model.safetensors"
        if kept.exists():
            return kept
        if not folder.exists():
            self._begin(arm, folder)
        config = self.config(arm, seed).changed(init=str(folder / "start.safetensors"))
        train.train(
            self.options.data, folder, config, process=self.process(arm, seed),
            resume=(folder / "config.toml").exists(), pause_at=steps, console=lambda _: None,
        )  # fmt: skip
        if checkpoint.read_card(newest).steps != steps:
            raise SystemExit(
                f"{folder} is past step {steps}: double --steps, or name another --run"
            )
        with video.replacing(kept) as scratch:
            shutil.copy(newest, scratch)
        return kept

    def process(self, arm: Arm, seed: int) -> Process:
        """The process that an arm is trained by."""
        return baselines.process_of(arm.process, process_of(self.config(arm, seed)))

    def _begin(self, arm: Arm, folder: Path) -> None:
        """The folder of a new run: the cache, and the common start with what the arm's network has.

        The layer that hears of the place says nothing at first, so that all arms start the same.
        """
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        start = checkpoint.load(self._start())
        own = {name: arm.training[name] for name in OF_THE_NETWORK if name in arm.training}
        config = FAMILIES[arm.family].config(**asdict(start.card.network) | own)
        network = build_network(config, start.card.process.shift)
        silent = {name: torch.zeros_like(w) for name, w in network.state_dict().items()}
        network.load_state_dict(silent | start.network.state_dict())
        card = replace(start.card, network=config)
        weights = replace(start, card=card, network=network)
        checkpoint.save(weights, scratch / "start.safetensors")
        (self.run / "cache").mkdir(exist_ok=True)
        (scratch / "cache").symlink_to((self.run / "cache").resolve())
        scratch.rename(folder)

    def _start(self) -> Path:
        """What every run goes on from: a model that knows single frames, no length, no motion."""
        start = self.run / "start"
        steps = self.options.image_steps
        if not (start / "done").exists():
            alone = Arm("", {"process": "full-sequence"})
            config = self.config(alone, 0).changed(
                steps=steps, max_frames=1, decay=0.3, ema=0.995, export_dtype="float32",
                context=ContextMixture(1, 0, 0, 0, 0, 0, 0, 0),
            )  # fmt: skip
            resume = (start / "config.toml").exists()
            process = self.process(alone, 0)
            train.train(self.options.data, start, config, process=process, resume=resume)
            (start / "done").touch()
        return start / "model.safetensors"

    # --- scores

    def scores(self, arm: Arm, seed: int) -> Scored:
        """What the arm's model makes of the real clips' captions, and of their frames."""
        options, path = self.options, self.model(arm, seed)
        between = arm.task == "interp"  # sampled as the command does
        plain = asdict(defaults("interp")) if between else {"steps": options.sampling_steps}
        made_with = plain | arm.sampling
        name = f"{path.parent.name}/{path.stem}"
        told = ["told"] if arm.told else []
        key = json.dumps([name, arm.task, made_with, options.clips, options.sample_seed, *told])
        kept = self.run / f"scores-seed{seed}.json"
        seen = (
            self.run / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        )
        config = SampleConfig(**{k: v for k, v in made_with.items() if k not in arm.ruled})
        if key not in _known(kept) or not (seen.exists() or between):
            scored = self._scored(path, config, arm, seen)
            with video.replacing(kept) as scratch:  # read anew: another program may have written
                scratch.write_text(json.dumps(_known(kept) | {key: scored}, indent=1) + "\n")
        found = _known(kept)[key]
        if between:
            return found
        return found | self._budget(arm, path, config, seed) | {"features": seen}

    def _scored(self, path: Path, config: SampleConfig, arm: Arm, seen: Path) -> Scored:
        options = self.options
        maker, real, config = self._sampled(arm, path, config)
        started = time.perf_counter()
        if arm.task == "interp":
            found = interp_scores(between_ends(maker, real, config), options.sample_seed)
            return {way: found[way]["psnr"] for way in ("model", "linear", "repeat")}
        chooses = arm.process == "flowception"
        made = clips_like(maker, real, config, arm.task, told=arm.told or not chooses)
        seconds = time.perf_counter() - started
        sheet = video.contact_sheets(
            [to_frames(clip.image_FCHW) for clip in made[:SHEET]],
            [clip.caption for clip in made[:SHEET]],
        )
        other = "-told" * arm.told + "-other" * (config != SampleConfig(config.steps))
        sheet_name = f"{path.stem}-{arm.task}-{config.steps}{other}.png"
        video.save_image(sheet, path.with_name(sheet_name))
        return self._of_made(real, made, seen) | {"sampling_s": seconds}

    def _sampled(
        self, arm: Arm, path: Path, config: SampleConfig
    ) -> tuple[Maker, list[Clip], SampleConfig]:
        """A model sampled as its arm says, the real clips, and the controls."""
        maker, real = self._maker(path)
        studio = maker.studio
        weights, rests = baselines.sampled_by(studio.weights, arm.process)
        if arm.ruled:
            plain = weights.card.process
            process = baselines.Ruled(plain.schedule, plain.shift, plain.late, **arm.ruled)
            weights = replace(weights, process=process)
        studio = Studio(weights, studio.name, studio.device, studio.dtype)
        return replace(maker, studio=studio), real, replace(config, cache=rests)

    def _maker(self, path: Path) -> tuple[Maker, list[Clip]]:
        """A model, and the real clips."""
        options = self.options
        maker = Maker(path.name, flowcept.load(str(path), device="cpu"), options.sample_seed)
        return maker, draw_clips(maker, options.real, options.clips)

    def _of_made(self, real: Sequence[Clip], made: Sequence[Clip], seen: Path | None) -> Scored:
        if self.of_real is None:
            self.of_real = self.features.frames_of(real)
        frames = self.of_real, self.features.frames_of(made)
        real_ND, made_ND = map(mobilenet.of_clips, frames)
        if seen is not None:
            seen.parent.mkdir(exist_ok=True)
            with video.replacing(seen) as scratch:
                save_file({"real": real_ND, "made": made_ND}, scratch)
        found = feature_scores(self.features.name, real_ND, made_ND, self.options.sample_seed)
        sharp, lengths = drift_scores(real, made)["sharpness"], length_scores(real, made)
        return {
            "distance": found["distance"],
            "changes": metrics.frechet_of_samples(*map(mobilenet.changes, frames)),
            "coverage": found.get("coverage"),
            "lengths": lengths["total_variation"],
            "law": {side: lengths[side] for side in ("real", "made")},
            "length": fmean(len(clip.image_FCHW) for clip in made),
            "drift": mobilenet.by_quarter(*frames),
            "sharpness": [m / r for m, r in zip(sharp["made"], sharp["real"], strict=True)],
            "motion": mean_motion(made) / mean_motion(real),
        }

    def _budget(self, arm: Arm, path: Path, config: SampleConfig, seed: int) -> Scored:
        """Work of training so far and of sampling a clip; operations in units of 10^12."""
        card = checkpoint.read_card(path)
        log = Files(path.parent).records()
        log = [r for r in log if "clips" in r and r["step"] <= card.steps]
        mixture, draws = self.config(PROCESSES[0], 0).context, self.options.draws
        process = self.process(arm, seed)
        rests = arm.process == "flowception" or arm.family == "causal"
        each, flowing = flops.per_clip(card, process, mixture, draws, seed=0)
        clips = card.steps * fmean(r["clips"] for r in log)
        sides = 1 if config.guidance == 1 else 2
        sampling = flops.of_sampling(card, process, config.steps, draws, seed=0, cached=rests)
        return {
            "training_steps": card.steps,
            "clips": clips,
            "tokens": card.steps * fmean(r["tokens"] for r in log),
            "flowing": clips * flowing / 1000,
            "training": clips * each / 1000,
            "sampling": sides * sampling / 1000,
            "hours": max(r["hours"] for r in log),
        }

    def codec_alone(self, seed: int) -> Scored:
        """The score of the real clips when they only went through the codec: the best one can."""
        maker, real = self._maker(self.model(PROCESSES[0], seed))
        made = [Clip(maker.decode(maker.encode(clip.image_FCHW)), clip.caption) for clip in real]
        return self._of_made(real, made, None)


def _known(scores: Path) -> dict[str, Scored]:
    return json.loads(scores.read_text()) if scores.exists() else {}


def difference(first: Path, other: Path, seed: int) -> tuple[float, float, float]:
    """By how much the other's distance is larger, and the 5 % and 95 % points of that.

    Both made a clip for each caption; bootstraps draw captions, so that what is hard for both
    counts for neither. Fewer distinct clips raise the distance of the arm that varies more: that
    bias is taken off.
    """
    both = [load_file(path) for path in (first, other)]

    def larger(rows: Sequence[int]) -> float:
        one, two = (metrics.frechet_of_samples(f["real"][rows], f["made"][rows]) for f in both)
        return two - one

    return intervals.centred_interval(larger, len(both[0]["real"]), seed)


def _pair(values: Sequence[float]) -> str:
    return "{:.0f} ({:.0f} to {:.0f})".format(*values)


Columns = dict[str, Callable[[Scored], str]]
COLUMNS: Columns = {
    "distance (5 % to 95 %)": lambda s: _pair(s["distance"]),
    "over the first row": lambda s: (
        "{:+.0f} ({:+.0f} to {:+.0f})".format(*s["over"]) if s["over"] else ""
    ),
    "of changes": lambda s: f"{s['changes']:.0f}",
    "coverage": lambda s: f"{s['coverage']:.2f}",
    "length": lambda s: f"{s['length']:.1f}",
    "lengths, total variation": lambda s: f"{s['lengths']:.2f}",
    "distance by quarter": lambda s: " ".join(f"{d:.0f}" for d in s["drift"]),
    "sharpness of real by quarter": lambda s: " ".join(f"{d:.2f}" for d in s["sharpness"]),
    "motion of real": lambda s: f"{s['motion']:.2f}",
}
BUDGET: Columns = {
    "steps": lambda s: f"{s['training_steps']}",
    "clips": lambda s: f"{s['clips']:.0f}",
    "10^3 flowing frames": lambda s: f"{s['flowing']:.0f}",
    "10^12 operations": lambda s: f"{s['training']:.0f}",
    "a sampled clip": lambda s: f"{s['sampling']:.3f}",
    "training, sampling s": lambda s: f"{s['hours'] * 3600:.0f}, {s['sampling_s']:.0f}",
}
INTERP: Columns = {
    way: lambda s, way=way: "{:.2f} ({:.2f} to {:.2f})".format(*s[way])  # type: ignore[misc]
    for way in ("model", "linear", "repeat")
}


def rows(work: Comparison, table: str, seeds: Sequence[int]) -> Iterator[str]:
    """A line of a table per arm and seed."""
    columns = INTERP if table == "interp" else COLUMNS | BUDGET
    yield f"| arm | seed | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for seed in seeds:
        first: Path | None = None
        for arm in TABLES[table]:
            scores = work.scores(arm, seed)
            if table != "interp":
                first = first or scores["features"]
                scores["over"] = difference(first, scores["features"], work.options.sample_seed)
            yield f"| {arm.name} | {seed} | {' | '.join(f(scores) for f in columns.values())} |"
    if table == "processes":
        scores = work.codec_alone(seeds[0]) | {"over": None}
        cells = [f(scores) for f in COLUMNS.values()] + [""] * len(BUDGET)
        yield f"| codec alone | | {' | '.join(cells)} |"


def picture(work: Comparison, table: str, seeds: Sequence[int]) -> Image.Image | None:
    """What a table shows best, as curves: means over the seeds."""
    found = {arm.name: [work.scores(arm, seed) for seed in seeds] for arm in TABLES[table]}

    def means(name: str, of: Callable[[Scored], float]) -> float:
        return fmean(map(of, found[name]))

    if table in ("curve", "steps"):
        work_of = "training" if table == "curve" else "sampling"
        curves: dict[str, list[tuple[float, float]]] = {}
        for name in found:
            point = means(name, lambda s: s[work_of]), means(name, lambda s: s["distance"][0])
            curves.setdefault(name.rsplit(",", 1)[0], []).append(point)
        return report.line_chart(
            curves, title=f"distance of features and the work of {work_of}",
            x_label="10^12 operations", y_label="distance",
        )  # fmt: skip
    if table in ("processes", "i2v"):
        curves = {
            arm.name: [
                (q + 1.0, means(arm.name, lambda s, q=q: s["drift"][q])) for q in range(QUARTERS)
            ]
            for arm in PROCESSES
        }
        return report.line_chart(
            curves, title="distance of features along the clip", x_label="quarter",
            y_label="distance",
        )  # fmt: skip
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="clips to train on")
    parser.add_argument("real", type=Path, help="other clips, to score against")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--codec", default="", help="a model file whose codec is taken")
    parser.add_argument("--codec-steps", type=int, default=0, help="that it is trained on")
    parser.add_argument("--image-steps", type=int, default=3000, help="on single frames, for all")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["processes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--sampling-steps", type=int, default=8)
    parser.add_argument("--clips", type=int, default=128, help="that are scored")
    parser.add_argument("--sample-seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=3000, help="that operations are averaged over")
    options = parser.parse_args()
    work = Comparison(options)
    print(machine.described())
    print(
        f"{options.image_steps} steps on single frames for all, then {options.steps} steps of "
        f"training; {options.clips} clips, {options.sampling_steps} "
        f"steps, seed {options.sample_seed}; {work.features.name}"
    )
    for table in options.tables:
        print(f"\n{table}\n")
        for line in rows(work, table, options.seeds):
            print(line, flush=True)
        drawn = picture(work, table, options.seeds)
        if drawn is not None:
            video.save_image(drawn, work.run / f"{table}.png")


if __name__ == "__main__":
    main()
