"""Devices: what they have, what they can give, and what work takes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from live_bytes import peak

from flowcept import device
from flowcept.networks.transformer import Transformer, TransformerConfig

CUDA = torch.device("cuda")
NETWORKS = {
    "tiny": TransformerConfig(hidden=128, depth=4, heads=2, stem_channels=32),
    "small": TransformerConfig(),
    "base": TransformerConfig(
        channels=16, hidden=512, depth=16, heads=8, patch=2, stem_channels=128
    ),
}


def test_what_the_allocator_keeps_idle_is_free(monkeypatch):
    """Else the second of two clips would be refused for the memory that the first gave back."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * 2**30)
    assert device.free_memory(CUDA) == 68 * 2**30


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_is_bfloat16_only_where_hardware_has_it(monkeypatch, hardware):
    def supported(including_emulation=True):
        return including_emulation or hardware

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    wanted = torch.bfloat16 if hardware else torch.float32
    assert device.pick_dtype("auto", CUDA) == wanted
    assert device.pick_dtype("bfloat16", CUDA) == torch.bfloat16


def shape(config):
    """What the formulas are told of a network: tokens of a frame, width, depth, stem's numbers."""
    tokens = Transformer(config, 1.0).tokens_per_frame
    stem = config.height * config.width * config.stem_channels
    return tokens, config.hidden, config.depth, stem


@pytest.mark.parametrize("name", NETWORKS)
def test_the_formulas_agree_with_what_is_counted(name):
    config = NETWORKS[name]
    network = Transformer(config, 1.0)
    with torch.no_grad():
        sampling = peak(network, [160, 160])
    cached = 2 * 320 * config.depth * shape(config)[0] * config.hidden * 4
    told = device.sampling_bytes(320, *shape(config), torch.float32) - cached
    assert told == pytest.approx(sampling, rel=0.3)

    beside = device.training_bytes(0, *shape(config), weights=0, half=False)
    told = device.training_bytes(128, *shape(config), weights=0, half=False) - beside
    assert told / device.HELD == pytest.approx(peak(network, [16] * 8), rel=0.3)


MEASURED = """
import re
from pathlib import Path
from flowcept.cli import main
try:
    main()
finally:
    found = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    print("peak", int(found[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' counters")
def test_generating_says_what_it_takes(tmp_path):
    words = ["gen", "a dog surfing", "--steps", "1", "--seed", "1", "--frames", "160"]
    command = [sys.executable, "-c", MEASURED, *words, "-o", str(tmp_path / "out.mp4")]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    said = re.search(r"about ([\d.]+) GiB", run.stderr)
    peak_gib = re.search(r"peak ([\d.]+)", run.stdout)
    assert float(said[1]) == pytest.approx(float(peak_gib[1]), rel=0.25)
