"""The scripts of tests/bench run; those that take hours or a GPU to the end, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_mobilenet import mobilenet_weights

from flowcept import model_file
from flowcept.data import theatre

BENCH = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("test_"))
IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"


def printed(*words: str | int | Path) -> str:
    """What Python prints, called in the folder of the scripts."""
    command = [sys.executable, *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCH)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_script_finds_what_it_imports() -> None:
    assert printed("-c", IMPORT, *SCRIPTS) == "", "what a script does stands in its main"


def test_every_section_of_the_gpu_script_runs_and_routes_agree(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    out = printed("gpu.py", "--device", "cpu", "--tiny", "--pairs", 1, "--output", output)
    done = json.loads(output.read_text())
    routes = done["attention"]["routes"]
    assert {"SDPA per segment", "padded SDPA"} <= set(routes)
    assert all(0 < route["error"] < 0.03 for route in routes.values()), "within bf16 error"
    assert done["training"]["tiny"]["of_matrix_rate"] > 0
    assert set(done["clip"]) == {"tiny", "small", "base"}
    assert done["waits"]["after"], "there are steps after tau = 1"
    assert len(done["largest"]) == 6, "three cards, training and sampling"
    for figure in ("attention of", "matrix rate", "waits", "a clip of", "longest clip"):
        assert figure in out


def test_operations_of_equal_steps() -> None:
    """A finished frame that rests saves about a third, which brings sampling to full-sequence's."""
    out = printed("flops.py", "--lengths", 8, "--windows", 0, "--draws", 6, "--steps", 6)
    row = [cell.strip() for cell in out.splitlines()[-1].split("|")[1:-1]]
    uniform, early = (float(cell.split(": ")[1].split(",")[0]) for cell in row[3:5])
    plain, cached = (float(cell.split(": ")[1]) for cell in row[6:])
    assert early < uniform < 1
    assert 1.35 < plain < 1.65
    assert 0.9 < cached < 1.15


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Clips to train on and to score against, and a feature network."""
    folders = [tmp_path / name for name in ("scenes", "others")]
    for seed, folder in enumerate(folders):
        theatre.write_theatre(folder, (12, 6)[seed], size=64, seed=seed, actors="shapes")
    save_file(mobilenet_weights(torch.Generator().manual_seed(0)), tmp_path / "net.safetensors")
    return [*folders, tmp_path / "net.safetensors"]


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was(clips: list[Path], tmp_path: Path) -> None:
    data, real, features = clips
    run = tmp_path / "run"
    words = [data, real, "--run", run, "--features", features, "--codec-steps", 1, "--seeds", 0,
             "--image-steps", 1, "--draws", 2, "--clips", 6, "--sampling-steps", 1]  # fmt: skip
    out = printed("comparison.py", *words, "--steps", 4, "--tables", "gap")
    assert "| flowception, told the lengths | 0 | " in out
    assert "| +0 (+0 to +0) | " in out, "the first row's distance over itself"
    kept = sorted(path.name for path in (run / "plain-seed0").glob("model-*.safetensors"))
    assert kept == ["model-1.safetensors", "model-2.safetensors", "model-4.safetensors"]
    assert model_file.read_card(run / "plain-seed0/model-4.safetensors").steps == 4
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/model-*.safetensors")}
    again = printed("comparison.py", *words, "--steps", 4, "--tables", "gap")
    assert again.splitlines()[-5:] == out.splitlines()[-5:], "nothing is done twice"
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_the_ring_is_trained_sampled_and_held_against_the_posterior_mean(tmp_path: Path) -> None:
    small = ("--clips", 20, "--samples", 2, "--hidden", 32, "--stem-channels", 8, "--place")
    parts = ("--steps", 2, 1, "--shift", 1.5, 5, "--decay", 0, 0.7)
    how = (*parts, "--rotary-values", "--schedule", "power:0.1")
    out = printed("ring.py", "--run", tmp_path / "run", *small, *how).splitlines()
    ideal = [line for line in out if line.startswith("by the posterior mean")]
    assert [float(line.split()[-1]) for line in ideal] == [0, 0], "a guess that makes perfect rings"
    cleaned = [line.split() for line in out if line.startswith("real clips at")]
    best = [float(words[-1]) for words in cleaned]
    assert best == sorted(best, reverse=True)
    assert best[0] > 0.5, "little is known of a clip of which 5 % is seen"
    assert best[-1] < 0.001
    for words, least in zip(cleaned, best, strict=True):
        assert float(words[-3].rstrip(",")) > least, "no network beats it"
