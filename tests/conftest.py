"""Shared fixtures; pytest puts this folder on the path, so that tests import ``oracle``."""

from __future__ import annotations

import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from flowcept import cli

# One thread, of subprocesses too: threads that wait spin, and on a busy machine two are ten times
# slower than one.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Shells start background jobs with Ctrl-C ignored, and programs inherit that; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children inherit that it is ignored


@pytest.fixture
def shared_data() -> Path:
    """The folder of real clips and pictures beside the checkout, where there is one."""
    path = Path(__file__).parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data beside the checkout: {path} is absent")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights: 32 px, clips of 4 to 12 frames at 12 per second."""
    from fixtures_model import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of motion that has learned nothing: 0 to 6 frames in a gap, any size."""
    from fixtures_model import write_motion

    return write_motion(tmp_path_factory.mktemp("model") / "small-motion.safetensors")


@dataclass
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def flow(tmp_path, monkeypatch, capsys):
    """``flow("gen", "a dog")`` is that command in this process, in a folder of its own.

    An uncaught error shows.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWCEPT_MODEL", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["flowcept", *map(str, words)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        err = re.sub(r"^needs up to about \S+ GiB of memory\n", "", err)  # told before every clip
        return Result(status, out, re.sub(r"(?:\r[^\r\n]*)+\n", "", err))  # without whole bars

    return run
