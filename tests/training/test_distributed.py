"""Several processes train as one."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import (
    TINY,
    losses,
)

from flowcept.training import run as train
from flowcept.training.state import write_config

WORKER = """
import os, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.loop import Reports
from flowcept.training.state import make_config
Reports.sheet = lambda _: None
folder, run, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = make_config("small", run.parent / "config.toml", {})
end = train.run_to_end
def dump(trainer, state, *args):
    end(trainer, state, *args)
    name = f"{state.files.path.name}-{rank}.pt"
    torch.save([trainer.step, trainer.learner.state_dict()], run.parent / name)
train.run_to_end = dump
train.train(folder, run, config, quiet=True)
os.environ["MASTER_PORT"] = sys.argv[4]  # the first one may still be closing
# Clocks of different speed must not make the processes part.
monotonic = time.monotonic
time.monotonic = lambda: monotonic() * (1 + 1000 * rank)
hours = config.changed(max_hours=0.1, decay=0.9, steps=3)
train.train(folder, run.with_name("hours"), hours, quiet=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_train_as_one(folder: Path, whole: Path, run: Path):
    """The sums are the same in another order: losses agree to 1e-4 after six steps."""
    write_config(TINY, run.parent / "config.toml")
    shutil.copytree(run, run.with_name("hours"))
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    later = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(run), str(rank), later],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(train.__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:]
    for name in ("velocity", "missing", "count", "held_out_velocity"):
        alone, together = losses(whole, name), losses(run, name)
        assert alone.keys() == together.keys()
        assert list(together.values()) == pytest.approx(list(alone.values()), rel=1e-4)
    assert losses(run, "clips") == losses(whole, "clips")
    assert not [p for p in run.rglob(".*") if p.is_file()]
    for name in ("run", "hours"):
        states = [torch.load(run.with_name(f"{name}-{rank}.pt")) for rank in range(2)]
        assert states[0][0] == states[1][0]
        for key, tensor in states[0][1].items():
            assert torch.equal(tensor, states[1][1][key]), (name, key)
