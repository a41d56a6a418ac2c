"""The paper's claims on our own ground: docs/evidence.md's tables, one command.

flowcept theatre scenes --clips 2000 --seed 0 --actors dog,cat
flowcept theatre others --clips 128 --seed 1 --actors dog,cat
python tests/bench/comparison.py scenes others --run runs/compare --features mobilenet.safetensors

Arms that are compared share data, codec, network, weights at the start (by seed) and the tokens of
a training step; they differ in one setting. Every arm is scored on the same real clips, which none
was trained on, with their captions and the same seeds. ``processes`` is trained twice, for equally
many tokens and for equally many clips. What was trained or scored is kept in ``--run`` and not done
again: a run that is cut goes on where it stopped, and two may share the work by other ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import machine
import torch

from flowcept import checkpoint, metrics, train
from flowcept.evaluate import Evaluation, drift_scores, feature_scores, interp_scores, length_scores
from flowcept.features import FeatureNetwork, load_features
from flowcept.settings import PRESETS, SampleConfig, TrainConfig


@dataclass(frozen=True)
class Arm:
    """One row: what is set in training and in sampling."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    clips_of: str = ""  # trained until it saw as many clips as this process, not as many tokens


PROCESSES = [
    Arm("flowception"),
    Arm("full-sequence", {"process": "full-sequence"}),
    Arm("autoregressive", {"process": "autoregressive"}),
    Arm("autoregressive, causal", {"process": "autoregressive", "causal": True}),
]
TABLES: dict[str, list[Arm]] = {
    "processes": [
        *PROCESSES,
        *(
            replace(arm, name=f"{arm.name}, equal clips", clips_of="flowception")
            for arm in PROCESSES[1:]
        ),
    ],
    "windows": [
        Arm(f"{arm.name}, window {window or 'all'}", arm.training | {"window": window})
        for arm in PROCESSES[:2]
        for window in (1, 2, 4, 0)
    ],
    "orders": [
        Arm(order, sampling={"order": order})
        for order in ("learned", "random", "bisection", "left-to-right")
    ],
    "rules": [
        Arm(f"{rule}, {steps} steps", sampling={"insertion": rule, "steps": steps})
        for rule in ("posterior", "systematic", "bernoulli", "poisson")
        for steps in (4, 8, 16, 32)
    ],
    "starts": [Arm(f"{count} start frames", {"num_start": count}) for count in (1, 3, 5)],
    "schedules": [Arm(name, {"schedule": name}) for name in ("linear", "cosine", "power:2")],
    "controls": [
        *(
            Arm(f"temperature {t:g}", sampling={"rate_temperature": t})
            for t in (0.0, 0.5, 1.0, 2.0)
        ),
        *(Arm(f"length scale {s:g}", sampling={"length_scale": s}) for s in (0.5, 1.0, 2.0)),
        *(Arm(f"rate guidance {w:g}", sampling={"rate_guidance": w}) for w in (1.0, 2.0)),
    ],
}


class Comparison:
    """Trained arms and their scores, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.run = options, Path(options.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.features: FeatureNetwork = load_features(options.features, torch.device("cpu"))

    def config(self, arm: Arm, seed: int, steps: int) -> TrainConfig:
        settings = PRESETS["tiny"] | {
            "codec_steps": self.options.codec_steps,
            "warmup": 50,
            "ema": 0.99,
            "held_out": 0.05,
            "prompt_dropout": 0.1,
            "sample_every": 10**6,
            "eval_every": 10**6,
            "save_every": 200,
            "seed": seed,
        }
        return TrainConfig(**settings | arm.training | {"steps": steps})

    def model(self, arm: Arm, seed: int) -> Path:
        """The arm's model file, trained if it is not there yet."""
        steps = self.options.steps
        if arm.clips_of:
            wanted = self._clips_a_step(Arm(arm.clips_of), seed)
            steps = round(steps * wanted / self._clips_a_step(replace(arm, clips_of=""), seed))
        settings = ",".join(f"{k}={v}" for k, v in sorted(arm.training.items())) or "plain"
        folder = self.run / f"{settings.replace(':', '-')}-seed{seed}-steps{steps}"
        if not (folder / "done").exists():
            self._share(folder, seed)
            train.train(
                self.options.data, folder, self.config(arm, seed, steps),
                resume=(folder / "config.toml").exists(), console=lambda _: None,
            )  # fmt: skip
            self._keep(folder, seed)
            (folder / "state.safetensors").unlink(missing_ok=True)
            (folder / "done").touch()
        return folder / "model.safetensors"

    def _share(self, folder: Path, seed: int) -> None:
        """One codec and one cache of frames and latents per seed, from the first arm trained."""
        kept = self.run / f"shared-seed{seed}"
        if kept.exists() and not folder.exists():
            _copied(kept, folder, "cache", "codec.safetensors")

    def _keep(self, folder: Path, seed: int) -> None:
        kept = self.run / f"shared-seed{seed}"
        if not kept.exists():
            _copied(folder, kept, "cache", "codec.safetensors")

    def _clips_a_step(self, arm: Arm, seed: int) -> float:
        log = self.model(arm, seed).parent / "log.jsonl"
        return fmean(r["clips"] for r in train._records(log) if "clips" in r)

    def scores(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What the arm's model makes of the real clips' captions."""
        options, path = self.options, self.model(arm, seed)
        made_with = {"steps": options.sampling_steps} | arm.sampling
        key = json.dumps([path.parent.name, made_with, options.clips, options.sample_seed])
        kept = self.run / f"scores-seed{seed}.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if key not in known:
            known[key] = self._scored(path, SampleConfig(**made_with))
            kept.write_text(json.dumps(known, indent=1) + "\n")
        return known[key]

    def _scored(self, path: Path, config: SampleConfig) -> dict[str, Any]:
        options = self.options
        work = Evaluation(
            path, options.real, config, clips=options.clips, seed=options.sample_seed,
            device="cpu", dtype="auto", progress=lambda *_: None,
        )  # fmt: skip
        started = time.perf_counter()
        made = work.of_captions()
        seconds = time.perf_counter() - started
        found = feature_scores(self.features, work.real, made, options.sample_seed)
        drift = drift_scores(work.real, made, self.features)
        sharp = drift["sharpness"]
        records, steps = train._records(path.parent / "log.jsonl"), checkpoint.read_card(path).steps
        return {
            "distance": found["of clips"],
            "changes": found.get("of changes"),
            "coverage": found.get("coverage"),
            "lengths": length_scores(work.real, made)["total_variation"],
            "length": fmean(len(clip.image_FCHW) for clip in made),
            "real length": fmean(len(clip.image_FCHW) for clip in work.real),
            "drift": drift["distance"],
            "sharpness": [m / r for m, r in zip(sharp["made"], sharp["real"], strict=True)],
            "motion": fmean(metrics.motion(clip.image_FCHW) for clip in made)
            / fmean(metrics.motion(clip.image_FCHW) for clip in work.real),
            "interp": interp_scores(work.between_ends(), None, options.sample_seed)["model"][
                "psnr"
            ],
            "sampling_s": seconds,
            "steps": steps,
            "clips": steps * fmean(r["clips"] for r in records if "clips" in r),
            "tokens": steps * fmean(r["tokens"] for r in records if "tokens" in r),
            "hours": max(r["hours"] for r in records if "hours" in r),
        }


def _copied(source: Path, target: Path, *names: str) -> None:
    """Some of a folder as another one, which is whole or not there."""
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in names:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, scratch / name)
    scratch.rename(target)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "distance (5 % to 95 %)": lambda s: "{:.0f} ({:.0f} to {:.0f})".format(*s["distance"]),
    "of changes": lambda s: f"{s['changes']:.0f}",
    "coverage": lambda s: f"{s['coverage']:.2f}",
    "length, real": lambda s: f"{s['length']:.1f}, {s['real length']:.1f}",
    "lengths, total variation": lambda s: f"{s['lengths']:.2f}",
    "distance by quarter": lambda s: " ".join(f"{d:.0f}" for d in s["drift"]),
    "sharpness of real by quarter": lambda s: " ".join(f"{d:.2f}" for d in s["sharpness"]),
    "motion of real": lambda s: f"{s['motion']:.2f}",
    "interp, dB": lambda s: f"{s['interp'][0]:.2f}",
    "clips seen": lambda s: f"{s['clips']:.0f}",
    "10^6 tokens": lambda s: f"{s['tokens'] / 1e6:.2f}",
    "training, sampling s": lambda s: f"{s['hours'] * 3600:.0f}, {s['sampling_s']:.0f}",
}


def rows(work: Comparison, arms: Sequence[Arm], seeds: Sequence[int]) -> Iterator[str]:
    """A line of a table per arm and seed."""
    yield f"| arm | seed | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for arm in arms:
        for seed in seeds:
            scores = work.scores(arm, seed)
            yield f"| {arm.name} | {seed} | {' | '.join(f(scores) for f in COLUMNS.values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="clips to train on")
    parser.add_argument("real", type=Path, help="other clips, to score against")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["processes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--codec-steps", type=int, default=600)
    parser.add_argument("--sampling-steps", type=int, default=16)
    parser.add_argument("--clips", type=int, default=128, help="that are scored")
    parser.add_argument("--sample-seed", type=int, default=0)
    options = parser.parse_args()
    work = Comparison(options)
    print(machine.described())
    print(
        f"preset tiny, {options.steps} steps of training, codec {options.codec_steps}; "
        f"{options.clips} clips, {options.sampling_steps} steps, seed {options.sample_seed}; "
        f"{work.features.name}"
    )
    for table in options.tables:
        print(f"\n{table}\n")
        for line in rows(work, TABLES[table], options.seeds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
