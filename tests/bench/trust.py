"""Fit how far a model trusts its in-between prior, and nothing else.

python tests/bench/trust.py start.safetensors theatre-folder --run run --steps 120

After ``between.py``: clips with every second frame given (a few with the first and the last), the
loss of training, 322 weights. About a minute a hundred steps on one thread.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path

from flowcept import model_file
from flowcept.settings import ContextMixture, TrainConfig
from flowcept.training import run, trainer

CONTEXT = ContextMixture(
    **dict.fromkeys((f.name for f in fields(ContextMixture)), 0.0)
    | {"first_last": 0.05, "alternate": 0.95}
)
FITTED = ("network.in_between.where.", "network.in_between.when.")


class Trust(trainer.Learner):
    """A learner of which only that may change."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(FITTED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    trainer.Learner = Trust  # type: ignore[assignment, misc]
    card = model_file.read_card(Path(options.model))
    config = TrainConfig.from_flat(
        {
            **asdict(card.process),
            "size": "x".join(map(str, reversed(card.size))),
            "init": options.model,
            "context": CONTEXT,
            "count_weight": 0.3,
            "tokens": 2048,
            "export_dtype": "float32",
            "ema": 0.98,
            "learning_rate": 2e-2,
            "warmup": 5,
            "decay": 0.6,
            "steps": options.steps,
            "seed": options.seed,
            "eval_every": 10**6,
            "sample_every": 10**6,
            "save_every": 10**6,
        }
    )
    run.train(options.data, options.run, config)


if __name__ == "__main__":
    main()
