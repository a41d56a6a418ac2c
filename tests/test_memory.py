"""What is said of memory beforehand, against what is counted and what is measured."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowcept import memory
from flowcept.networks.resting import Cache, Rest
from flowcept.networks.transformer import ModelConfig, Network
from flowcept.process.forward import ProcessConfig

SMALL = {"height": 8, "width": 8, "hidden": 64, "depth": 2, "heads": 2, "cells": 16}
LENGTHS = [5, 9, 12]


def kept(network: Network, lengths: list[int]) -> int:
    """Bytes that autograd really keeps for the backward pass, by its own hooks."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        said = network(*memory.blank(network.config, lengths, "cpu"))
    assert said.velocity_FCHW.requires_grad
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("changes", [{}, {"window": 2}, {"cell_depth": 1}, {"patch": 2}])
def test_training_is_counted_as_autograd_keeps_it(changes):
    """The peak is what the forward pass keeps (but for row numbers), and little more."""
    network = Network(ModelConfig(**SMALL | changes), ProcessConfig())
    real = kept(network, LENGTHS)
    counted = memory.training_bytes(network, LENGTHS)
    assert 0.98 * real < counted < 1.3 * real
    assert not any(p.grad is not None for p in network.parameters())


def test_checkpointing_is_seen():
    network = Network(ModelConfig(**SMALL | {"depth": 6, "cells": 4}), ProcessConfig())
    plain = memory.training_bytes(network, LENGTHS)
    network.checkpoint_blocks = True
    assert memory.training_bytes(network, LENGTHS) < 0.6 * plain


def test_counting_computes_nothing_and_leaves_the_network_as_it_is():
    network = Network(ModelConfig(**SMALL), ProcessConfig())
    before = [p.detach().clone() for p in network.parameters()]
    huge = memory.evaluation_bytes(network, [200_000])
    assert huge > 2**30
    for parameter, copy in zip(network.parameters(), before, strict=True):
        assert parameter.device.type == "cpu"
        assert torch.equal(parameter, copy)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cells": 16}, {"hidden": 512}, {"patch": 2}, {"patch": 1}, {"height": 32, "width": 32},
     {"window": 4}, {"depth": 16}, {"rotary_values": True}],
)  # fmt: skip
@pytest.mark.parametrize("clip", [20, 150, 1000])
def test_the_formula_for_sampling_agrees_with_the_count(changes, clip):
    config = ModelConfig(**changes)
    counted = memory.evaluation_bytes(Network(config, ProcessConfig()), [clip, clip])
    assert memory.sampling_bytes(config, 2 * clip) == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("changes", [{}, {"cell_depth": 1}, {"patch": 2}, {"depth": 3}])
def test_the_numbers_in_a_cache_are_counted(changes):
    network, cache = Network(ModelConfig(**SMALL | changes), ProcessConfig()), Cache()
    state, prompt = memory.blank(network.config, [9], "cpu")
    with torch.no_grad():
        network(state, prompt, Rest(cache, (0,), torch.zeros(9, dtype=torch.bool)))
    held = sum(kept.numel() for _, kept in cache._kept)
    own_row = memory.cached_numbers(replace(network.config, cell_depth=0), 1)
    assert held == memory.cached_numbers(network.config, 9) + own_row


MEASURED = """
import re, sys
from pathlib import Path
from flowcept.cli import main
try:
    main()
finally:
    found = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    print("peak", int(found[1]) / 2**20)
"""


def measured(*words: str) -> tuple[float, float]:
    """GiB that a command says it takes, and that it takes at its peak."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], check=True, capture_output=True, text=True
    )
    said = re.search(r"about ([\d.]+) GiB", run.stdout + run.stderr)
    peak = re.search(r"peak ([\d.]+)", run.stdout)
    assert said
    assert peak
    return float(said[1]), float(peak[1])


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' counters")


@linux
@pytest.mark.parametrize(("frames", "guidance"), [(160, "2"), (160, "1"), (400, "1")])
def test_generating_says_what_it_takes(tmp_path, frames, guidance):
    said, peak = measured(
        "gen", "a dog surfing", "--steps", "1", "--seed", "1", "--frames", str(frames),
        "--guidance", guidance, "-o", str(tmp_path / "out.mp4"),
    )  # fmt: skip
    assert said == pytest.approx(peak, rel=0.25)


@linux
@pytest.mark.parametrize("words", [(), ("--dtype", "float32")])
def test_training_says_what_it_takes(tmp_path, words):
    """The default preset's network and batch, on the real theatre, for three steps."""
    data, run = tmp_path / "data", tmp_path / "run"
    program = [sys.executable, "-m", "flowcept.cli"]
    subprocess.run(
        [*program, "theatre", str(data), "--clips", "40", "-q"], check=True, capture_output=True
    )
    said, peak = measured(
        "train", str(data), "-o", str(run), "--steps", "3", "--codec-steps", "1",
        "--save-every", "2", "--eval-every", "1000", "--sample-every", "1000", *words,
    )  # fmt: skip
    assert said == pytest.approx(peak, rel=0.25)
