"""What a run trains: hooks for other processes and networks, and cards that equal runs share."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_runs import TINY, prepared

from flowcept import model_file, networks
from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process.forward import Flowception
from flowcept.training import run as train

TABLES = """
import json
from types import SimpleNamespace
from flowcept.training.parts import Clips, tables
captions = ["a red dog runs", "a blue cat runs", "", "the cat sits", "a blue cat runs"]
latents = SimpleNamespace(captions=captions, lengths=[3, 5, 3, 4, 4])
print(json.dumps(tables(Clips(latents, [4, 2, 1, 0, 3], []))))
"""


def test_equal_runs_have_equal_cards():
    """The order of Python's sets, which a card must not show, depends on this variable."""
    outputs = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", TABLES]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    found = json.loads(outputs[0])
    assert list(found["words"]) == ["a", "cat", "runs", "blue", "dog", "red", "sits", "the"]
    assert list(found["prompts"]) == ["a blue cat runs", "a red dog runs", "the cat sits"]
    assert found["lengths"] == {"3": 2, "4": 2, "5": 1}


@dataclass(frozen=True)
class Late(Flowception):
    """Another process: only what comes after the last insertion."""

    def draw_tau(self, delay_F: torch.Tensor, generator: torch.Generator) -> float:  # noqa: ARG002
        return 1 + float(torch.rand((), generator=generator))


def test_another_process_takes_the_place_of_the_settings(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY, process=Late(shift=3.0))
    assert trainer.learner.network.shift == 3.0
    states = [state for state, _ in trainer.draw().pairs]
    assert all(bool((state.tau_B >= 1).all()) for state in states)
    trainer.train_step()
    assert trainer.weights().process == Late(shift=3.0)
    assert trainer.card.process == Flowception(first=True, fill=0.75), "the settings' own"


@dataclass(frozen=True)
class OtherConfig(TransformerConfig):
    pass


class Other(Transformer):
    pass


def test_another_family_takes_the_place_of_the_network(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(networks.FAMILIES, "other", networks.Family(OtherConfig, Other))
    train.train(folder, run, TINY, family="other", pause_at=1, quiet=True)
    weights = model_file.load(run / "model.safetensors")
    assert isinstance(weights.network, Other)
    assert weights.card.network.hidden == TINY.network.hidden
