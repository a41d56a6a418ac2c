"""The paper's claims on our own ground: the tables of docs/archive/learning.md, one command.

flowcept shapes scenes --clips 3000 --seed 0
flowcept shapes others --clips 1024 --seed 1
python tests/bench/comparison.py scenes others --run runs/shapes --tables learning \
    --codec-steps 1500 --features i3d_torchscript.pt mobilenet.safetensors

Arms that are compared share data, codec, weights at the start and the tokens of a training step;
they differ in one setting. The start is a network that was trained on single frames alone: what
things look like is learned once, what is compared is how each process learns lengths and motion.
The learning rate is constant and weights are averaged, so that a run may be scored on its way, and
goes on with more ``--steps``. Every arm is scored on the same real clips, which none was trained
on, with their captions and the same seeds. What was trained, made, seen or scored is a file in
``--run`` and not done again: a run that is cut goes on where it stopped, and two may share the
work, with other ``--arms`` or ``--seeds``, once the first has its start and its cache.

Shape suffixes: N clips, M made and R real frames of one clip, F frames, C H W, D drawings of noise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import baselines
import clock
import flops
import framewise
import intervals
import machine
import mobilenet
import torch
from torch import Tensor
from tqdm import tqdm

import flowcept
from flowcept import model_file as checkpoint
from flowcept.codecs import to_frames, to_images
from flowcept.data import video
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import (
    Clip,
    Maker,
    draw_clips,
    length_scores,
)
from flowcept.files import replacing
from flowcept.generation import Studio
from flowcept.networks import FAMILIES, build_network
from flowcept.process.forward import Process
from flowcept.settings import PRESETS, ContextMixture, SampleConfig, TrainConfig
from flowcept.training import run as train
from flowcept.training.parts import process_of
from flowcept.training.state import Files

SHEET = 12  # clips of a contact sheet
OF_THE_NETWORK = ("window", "place")  # settings in which an arm's network differs
OF_BASELINES = ("process", "family")  # words of an arm's training that the package does not know


@dataclass(frozen=True)
class Arm:
    """One row: what is set in training and in sampling, and what is made."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    task: str = "gen"  # gen, i2v; or what needs no sampler: codec, other

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
    def samples(self) -> bool:
        """Whether noise is drawn for it."""
        return self.task in ("gen", "i2v")


def _but(default: object, **setting: object) -> dict[str, Any]:
    """A setting, unless it is the default: so that equal runs have equal names."""
    return {name: value for name, value in setting.items() if value != default}


PLAIN = {"first": False, "fill": 0.0}  # the paper's process: an arm's, unless it says otherwise
FILLED = {"first": True, "fill": 0.75}
LEARNING = [
    Arm("flowception"),
    Arm("first, fill", FILLED),
    Arm("planned, fill", {"planned": True, "place": True, "fill": 0.75}),
    Arm("full-sequence", {"process": "full-sequence"}),
    Arm("autoregressive", {"process": "autoregressive"}),
    Arm("autoregressive, causal", {"process": "autoregressive", "family": "causal"}),
]
TABLES: dict[str, list[Arm]] = {
    "learning": [
        replace(arm, name=f"{arm.name}{', refined' * bool(refine)}", sampling=refine)
        for arm in LEARNING
        for refine in ({}, {"refine": 0.75})
    ],
    "limits": [  # what the number of clips gives, and the best that one can
        Arm("other real clips", task="other"),
        Arm("codec alone", task="codec"),
    ],
    "i2v": [replace(arm, task="i2v") for arm in LEARNING],
    "orders": [
        Arm(order, sampling=_but("learned", order=order))
        for order in ("learned", "random", "bisection", "left-to-right")
    ],
    "windows": [
        Arm(f"{arm.name}, window {window or 'all'}", arm.training | _but(0, window=window))
        for arm in (LEARNING[0], LEARNING[4])
        for window in (0, 4, 2, 1)
    ],
    "late": [Arm(f"late {late:g}", _but(0.5, late=late)) for late in (0.5, 0.25)],
}


def measures(
    real: Sequence[Clip],
    takes: Sequence[Sequence[framewise.Made]],
    features: dict[str, Sequence[Tensor]],
) -> dict[str, intervals.Score]:
    """Scores of any choice of clips and drawings: what is printed with an interval.

    ``features`` are, by the network's name, those of the real clips and of each drawing's ones.
    Where a drawing's captions are not those of the real clips its frames have no errors.
    """
    found: dict[str, intervals.Score] = {}
    for name, (real_ND, *made) in features.items():
        made_DND = torch.stack(made)
        for title, score in (
            (name, metrics.frechet_of_samples),
            (f"kernel, {name}", metrics.kernel_distance),
        ):
            found[title] = lambda rows, which, score=score, a=real_ND, b=made_DND: score(
                a[rows], b[which, rows]
            )
    captions = [clip.caption for clip in real]
    if any([clip.caption for clip in take] != captions for take in takes):
        return found
    pairs = [zip(take, real, strict=True) for take in takes]
    errors = [[framewise.errors(clip, other.image_FCHW) for clip, other in pair] for pair in pairs]
    for name in framewise.SCORES:
        value_DN = torch.tensor([[clip[name] for clip in take] for take in errors])
        found[name] = lambda rows, which, value_DN=value_DN: float(value_DN[which, rows].nanmean())
    return found


def _words(settings: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(settings.items())).replace(":", "-")


class Comparison:
    """Trained arms, what they made and how it scored, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.run = options, Path(options.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.networks = {path.stem: mobilenet.network_of(path) for path in options.features}
        self.clock = clock.Clock(self.run / "pace.json")

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
        return TrainConfig.from_flat(settings | PLAIN | arm.settings)

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.run / f"{_words(arm.training) or 'plain'}-seed{seed}"

    def model(self, arm: Arm, seed: int, steps: int) -> Path:
        """The arm's model file after so many steps, trained so far if it is not there yet."""
        for stop in self.stops(steps):
            self.trained(arm, seed, stop)
        return self.trained(arm, seed, steps)

    def stops(self, steps: int) -> list[int]:
        """After how many steps, up to these, a run is scored: its model is kept in passing."""
        return sorted({stop for stop in self.options.steps if stop <= steps})

    def trained(self, arm: Arm, seed: int, steps: int) -> Path:
        """The run's model file after exactly so many steps."""
        folder = self.folder(arm, seed)
        kept, newest = folder / f"model-{steps}.safetensors", folder / "model.safetensors"
        if kept.exists():
            return kept
        if not folder.exists():
            self._begin(arm, folder)
        config = self.config(arm, seed).changed(init=str(folder / "start.safetensors"))
        resume, process = (folder / "config.toml").exists(), self.process(arm, seed)
        with self.clock.timed(f"step of {arm.process}", self._to_go(arm, seed, steps)):
            train.train(
                self.options.data, folder, config, process=process, resume=resume,
                pause_at=steps, console=lambda _: None,
            )  # fmt: skip
        if checkpoint.read_card(newest).steps != steps:
            raise SystemExit(f"{folder} is past step {steps}: name more --steps, or another --run")
        with replacing(kept) as scratch:
            shutil.copy(newest, scratch)
        return kept

    def _to_go(self, arm: Arm, seed: int, steps: int) -> int:
        """Steps of training from the last one that is written."""
        log = Files(self.folder(arm, seed)).records()
        return steps - max((r["step"] for r in log if "step" in r and r["step"] < steps), default=0)

    def process(self, arm: Arm, seed: int) -> Process:
        """The process that an arm is trained by."""
        return baselines.process_of(arm.process, process_of(self.config(arm, seed)))

    def _begin(self, arm: Arm, folder: Path) -> None:
        """The folder of a new run: the cache, and the common start in the arm's network."""
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        start = checkpoint.load(self._start())
        own = {name: arm.training[name] for name in OF_THE_NETWORK if name in arm.training}
        config = FAMILIES[arm.family].config(**asdict(start.card.network) | own)
        network = build_network(config, start.card.process.shift)
        network.load_state_dict(network.state_dict() | start.network.state_dict())
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
            with self.clock.timed("step of start", steps):
                train.train(self.options.data, start, config, process=process, resume=resume)
            (start / "done").touch()
        return start / "model.safetensors"

    # --- clips and what networks see in them

    def names(self, arm: Arm, seed: int, steps: int) -> list[str]:
        """What a row's files are called, by drawing of noise."""
        sampling = _words({"steps": self.options.sampling_steps} | arm.sampling)
        row = f"{self.folder(arm, seed).name}-{steps}-{arm.task}-{sampling}-{self.chosen}"
        return [f"{row}-noise{drawing}" for drawing in range(self.options.draws * arm.samples or 1)]

    @property
    def chosen(self) -> str:
        """Which real clips are scored against."""
        return f"{self.options.clips}clips-seed{self.options.sample_seed}"

    def file(self, kind: str, name: str) -> Path:
        """Where something is kept."""
        folder = self.run / kind
        folder.mkdir(exist_ok=True)
        return folder / name

    def clips(self, name: str, make: Callable[[], Sequence[Clip]]) -> list[framewise.Made]:
        """Clips from their file, or made and written."""
        path = self.file("made", f"{name}.safetensors")
        if not path.exists():
            clips = make()
            frames = [torch.from_numpy(to_frames(clip.image_FCHW)) for clip in clips]
            born = [getattr(clip, "born_F", torch.zeros(len(clip.image_FCHW))) for clip in clips]
            captions = [clip.caption for clip in clips]
            sheet = video.contact_sheets([one.numpy() for one in frames[:SHEET]], captions[:SHEET])
            video.save_image(sheet, self.file("sheets", f"{name}.png"))
            checkpoint.save_tree({"frames": frames, "captions": captions, "born": born}, path)
        kept = checkpoint.load_tree(path)
        images = [to_images(frames_FHW3.numpy()) for frames_FHW3 in kept["frames"]]
        return list(map(framewise.Made, images, kept["captions"], kept["born"]))

    def real(self, arm: Arm, seed: int, steps: int) -> list[framewise.Made]:
        """The clips that every arm is scored on."""
        count = self.options.clips
        return self.clips(
            f"real-{self.chosen}", lambda: self._drawn(self._maker(arm, seed, steps))[:count]
        )

    def made(self, arm: Arm, seed: int, steps: int, drawing: int) -> list[Clip]:
        """What an arm's model makes of the real clips' captions, or of their first frames."""
        maker, real = self._maker(arm, seed, steps, drawing), self.real(arm, seed, steps)
        if arm.task == "other":
            return self._drawn(maker)[self.options.clips :]
        if arm.task == "codec":
            return [Clip(maker.decode(maker.encode(c.image_FCHW)), c.caption) for c in real]

        studio = maker.studio
        weights, rests = baselines.sampled_by(studio.weights, arm.process)
        controls = {"steps": self.options.sampling_steps, "cache": rests} | arm.sampling
        order = controls.pop("order", None)
        if order:
            process = baselines.Ruled(**vars(weights.process), order=order)
            weights = replace(weights, process=process)
        studio = Studio(weights, studio.name, studio.device, studio.dtype)
        told = arm.process != "flowception"  # which chooses its lengths
        with self.clock.timed(_sampling(arm), len(real)):
            recorder = replace(maker, studio=studio)
            return recorder.clips(real, SampleConfig(**controls), arm.task, told=told)

    def _maker(self, arm: Arm, seed: int, steps: int, drawing: int = 0) -> framewise.Recorder:
        path, noise = self.model(arm, seed, steps), self.options.sample_seed + drawing
        return framewise.Recorder(path.name, flowcept.load(str(path), device="cpu"), noise)

    def _drawn(self, maker: Maker) -> list[Clip]:
        """Real clips, and as many others."""
        wanted = 2 * self.options.clips
        by_seed = replace(maker, seed=self.options.sample_seed)
        clips = draw_clips(by_seed, self.options.real, wanted)
        if len(clips) < wanted:
            raise SystemExit(f"{self.options.real} has {len(clips)} usable clips, not {wanted}")
        return clips

    def seen(self, stem: str, name: str, clips: Sequence[Clip]) -> list[Tensor]:
        """What a network sees in each clip, or in each of its frames, from its file or now."""
        path, network = self.file("features", f"{name}-{stem}.safetensors"), self.networks[stem]
        if not path.exists():
            look = getattr(network, "frames", network)
            found: list[Tensor] = []
            with self.clock.timed(f"features by {stem}", len(clips)):
                for part in framewise.parts(len(clips), stem):
                    found += look([clips[i].image_FCHW for i in part])
            checkpoint.save_tree([one.float() for one in found], path)  # as networks compute
        return [one.double() for one in checkpoint.load_tree(path)]

    # --- scores

    def scores(self, arm: Arm, seed: int, steps: int) -> intervals.Scored:
        """Scores of all clips, their bootstraps, and what else is told of the arm."""
        path = self.score_file(arm, seed, steps)
        if not path.exists():
            takes = {
                name: self.clips(name, lambda d=drawing: self.made(arm, seed, steps, d))
                for drawing, name in enumerate(self.names(arm, seed, steps))
            }
            scored = self._scored(self.real(arm, seed, steps), takes)
            scored["about"] |= self._budget(arm, seed, steps)
            clock.keep(path, scored)
        return clock.known(path)

    def score_file(self, arm: Arm, seed: int, steps: int) -> Path:
        names = self.names(arm, seed, steps)
        return self.file("scores", f"{names[0]}-of{len(names)}-{'-'.join(self.networks)}.json")

    def _scored(
        self, real: Sequence[framewise.Made], takes: dict[str, list[framewise.Made]]
    ) -> intervals.Scored:
        sides = [(f"real-{self.chosen}", real), *takes.items()]
        seen = {stem: [self.seen(stem, *side) for side in sides] for stem in self.networks}
        features = {self.networks[stem].name: list(map(_of_clips, of)) for stem, of in seen.items()}
        found = measures(real, list(takes.values()), features)

        count, drawings, seed = len(real), len(takes), self.options.sample_seed
        every = list(range(count))
        whole, drawn = {}, {}
        with self.clock.timed("scores", 1):
            for name, score in tqdm(found.items(), desc="bootstraps", unit="score"):
                whole[name] = fmean(score(every, [drawing] * count) for drawing in range(drawings))
                drawn[name] = intervals.bootstraps(score, count, drawings, seed)
            about = [_about(real, take) for take in takes.values()]
            for of_real, *of_takes in seen.values():
                if of_real[0].ndim > 1:  # frames
                    for told, of_take in zip(about, of_takes, strict=True):
                        told.update(_of_frames(of_real, of_take))
        means = {name: fmean(one[name] for one in about) for name in about[0]}
        return {"whole": whole, "drawn": drawn, "about": means}

    def _budget(self, arm: Arm, seed: int, steps: int) -> dict[str, float]:
        """Work of training so far, and the seconds that a clip takes."""
        path = self.model(arm, seed, steps)
        card, log = checkpoint.read_card(path), Files(path.parent).records()
        log = [r for r in log if "clips" in r and r["step"] <= steps]
        mixture, process = self.config(arm, seed).context, self.process(arm, seed)
        each, flowing = flops.per_clip(card, process, mixture, self.options.counted, seed=0)
        clips = steps * fmean(r["clips"] for r in log)
        return {
            "clips seen": clips,
            "10^3 flowing frames": clips * flowing / 1000,
            "10^12 operations": clips * each / 1000,
            "training s": steps * fmean(r["clips"] / r["clips_per_second"] for r in log),
            "s a clip": self.clock.pace(_sampling(arm)) * arm.samples,
        }

    # --- time

    def todo(self, arm: Arm, seed: int, steps: int) -> clock.Work:
        """Kind and units of work of every file of a row that is still to be made."""
        clips, names = self.options.clips, self.names(arm, seed, steps)
        work: clock.Work = {self.run / "start/done": ("step of start", self.options.image_steps)}
        before = 0
        for stop in self.stops(steps):
            file = self.folder(arm, seed) / f"model-{stop}.safetensors"
            work[file] = (f"step of {arm.process}", stop - before)
            before = stop
        for name in names * arm.samples:
            work[self.file("made", f"{name}.safetensors")] = (_sampling(arm), clips)
        for stem in self.networks:
            for name in (f"real-{self.chosen}", *names):
                file = self.file("features", f"{name}-{stem}.safetensors")
                work[file] = (f"features by {stem}", clips)
        work[self.score_file(arm, seed, steps)] = ("scores", 1)
        return {path: one for path, one in work.items() if not path.exists()}

    def plan(self, asked: Sequence[tuple[Arm, int, int]]) -> str:
        """How long the first row takes that is asked for, and all."""
        (arm, seed, steps), every = asked[0], [self.todo(*one) for one in asked]
        whole = {path: one for work in every for path, one in work.items()}
        own, all_of_it = self.clock.told(every[0]), self.clock.told(whole, short=True)
        return f"{arm.name}, seed {seed}, {steps} steps: {own}; all that is asked {all_of_it}"


def _sampling(arm: Arm) -> str:
    """The kind of work that making its clips is."""
    return f"clip of {arm.process} {arm.family} {_words(arm.sampling)}"


def _of_clips(seen: Sequence[Tensor]) -> Tensor:
    """Features ``[N, D]`` of clips, from those of their frames where a network sees frames."""
    return mobilenet.of_clips(seen) if seen[0].ndim > 1 else torch.stack(list(seen))


def _about(real: Sequence[Clip], made: Sequence[Clip]) -> dict[str, float]:
    """Lengths, and how much moves."""
    motion = [fmean(metrics.motion(clip.image_FCHW) for clip in side) for side in (made, real)]
    return {
        "length": fmean(len(clip.image_FCHW) for clip in made),
        "lengths, total variation": length_scores(real, made)["total_variation"],
        "motion of real": motion[0] / motion[1],
    }


def _of_frames(real: Sequence[Tensor], made: Sequence[Tensor]) -> dict[str, float]:
    """Distances of the changes from frame to frame, and along the clip, by features of frames."""
    changes = metrics.frechet_of_samples(*map(mobilenet.changes, (real, made)))
    quarters = enumerate(mobilenet.by_quarter(real, made), start=1)
    return {"of changes": changes} | {f"quarter {n}": distance for n, distance in quarters}


# --- tables


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def cells(scored: intervals.Scored, first: intervals.Scored) -> Iterator[str]:
    """Every score, and its difference to the first row's, with the interval of that."""
    for name, value in scored["whole"].items():
        told = f"{value:.4g}"
        if scored is not first and name in first["whole"]:
            told += "; {:+.3g} ({:+.3g} to {:+.3g})".format(
                *intervals.difference(first, scored, name)
            )
        yield told


def table(work: Comparison, arms: Sequence[Arm], seeds: Sequence[int], steps: int) -> Iterator[str]:
    """The rows of an arm and seed as they come, the means over the seeds, then what else is told.

    Arms that are asked for later are planned with the present one.
    """
    asked = [(arm, seed, steps) for seed in seeds for arm in arms]
    found: dict[int, dict[str, intervals.Scored]] = {seed: {} for seed in seeds}
    for number, (arm, seed, _) in enumerate(asked):
        print(work.plan(asked[number:]), file=sys.stderr, flush=True)
        scored = found[seed][arm.name] = work.scores(arm, seed, steps)
        if number == 0:
            titles = "steps", "seed", "arm", *scored["whole"]
            yield line(*titles) + "\n" + line(*["---"] * len(titles))
        yield line(steps, seed, arm.name, *cells(scored, found[seed][arms[0].name]))
    if len(seeds) > 1:
        mean = {
            arm.name: intervals.averaged([found[seed][arm.name] for seed in seeds]) for arm in arms
        }
        for name, scored in mean.items():
            yield line(steps, "mean", name, *cells(scored, mean[arms[0].name]))

    titles = "steps", "seed", "arm", *found[seeds[0]][arms[0].name]["about"]
    yield "\n" + line(*titles) + "\n" + line(*["---"] * len(titles))
    for arm, seed, _ in asked:
        about = found[seed][arm.name]["about"].values()
        yield line(steps, seed, arm.name, *(f"{value:.3g}" for value in about))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="clips to train on")
    parser.add_argument("real", type=Path, help="twice as many other clips as are scored against")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--features", type=Path, nargs="+", action="extend", required=True)
    parser.add_argument("--codec", default="", help="a model file whose codec is taken")
    parser.add_argument("--codec-steps", type=int, default=0, help="that it is trained on")
    parser.add_argument("--image-steps", type=int, default=3000, help="on single frames, for all")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["learning"])
    names = [arm.name for arms in TABLES.values() for arm in arms]
    parser.add_argument("--arms", nargs="+", choices=names, default=names, help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, nargs="+", default=[400], help="scored after each")
    parser.add_argument("--sampling-steps", type=int, default=8)
    parser.add_argument("--clips", type=int, default=512, help="that are scored")
    parser.add_argument("--draws", type=int, default=2, help="of noise, for every clip")
    parser.add_argument("--counted", type=int, default=3000, help="draws, for mean operations")
    parser.add_argument("--sample-seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Comparison(options)
    print(machine.described())
    print(
        f"{options.image_steps} steps on single frames for all; {options.clips} clips, "
        f"{options.draws} drawings of noise from seed {options.sample_seed}, "
        f"{options.sampling_steps} steps of sampling"
    )
    for name in options.tables:
        arms = [arm for arm in TABLES[name] if arm.name in options.arms]
        for steps in options.steps:
            print(f"\n{name}\n")
            for row in table(work, arms, options.seeds, steps):
                print(row, flush=True)


if __name__ == "__main__":
    main()
