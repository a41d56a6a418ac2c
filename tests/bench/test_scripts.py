"""The scripts of tests/bench run; those that take hours or a GPU to the end, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import comparison
import framewise
import pytest
import torch
from safetensors.torch import save_file
from test_mobilenet import mobilenet_weights

import flowcept
from flowcept import model_file
from flowcept.data import theatre
from flowcept.evaluation.evaluate import clips_like, draw_clips
from flowcept.settings import PRESETS, SampleConfig, TrainConfig
from flowcept.training import run as train

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


class Whole(torch.nn.Module):
    """Features of whole clips: brightness in eight parts."""

    def forward(self, clip_NCTHW: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(clip_NCTHW, 2).flatten(1)


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Clips to train on and to score against, and two feature networks."""
    folders = [tmp_path / name for name in ("scenes", "others")]
    for seed, folder in enumerate(folders):
        theatre.write_theatre(folder, 12, size=64, seed=seed, actors="shapes")
    save_file(mobilenet_weights(torch.Generator().manual_seed(0)), tmp_path / "net.safetensors")
    torch.jit.script(Whole()).save(str(tmp_path / "whole.pt"))
    return [*folders, tmp_path / "whole.pt", tmp_path / "net.safetensors"]


def rows_of(out: str, steps: int, seed: int | str) -> dict[str, list[str]]:
    """Cells of the first table's rows, by arm."""
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in out.splitlines()]
    found: dict[str, list[str]] = {}
    for row in rows:
        if row[:2] == [str(steps), str(seed)]:
            found.setdefault(row[2], row[3:])
    return found


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was(clips: list[Path], tmp_path: Path) -> None:
    data, real, *features = clips
    run = tmp_path / "run"
    words = ["comparison.py", data, real, "--run", run, "--features", *features, "--codec-steps", 1,
             "--image-steps", 1, "--clips", 4, "--sampling-steps", 2, "--counted", 2]  # fmt: skip
    first = printed(*words, "--steps", 1, "--seeds", 0, "--draws", 1)
    arms = [arm.name for arm in comparison.TABLES["learning"]]
    plain, *others = rows_of(first, 1, 0).items()
    assert [plain[0], *(name for name, _ in others)] == arms
    assert not any(";" in cell for cell in plain[1]), "the row that others differ from"
    assert all(" to " in cell for _, cells in others for cell in cells[:4])
    header = next(row for row in first.splitlines() if row.startswith("| steps"))
    scores = [cell.strip() for cell in header.split("|")[4:-1]]
    whole, net = "Fréchet distance of whole", "Fréchet MobileNet distance"
    assert scores[:4] == [whole, f"kernel, {whole}", net, f"kernel, {net}"]
    assert scores[4:] == list(framewise.SCORES)

    fewer = [*words, "--steps", 1, 3, "--arms", "flowception"]
    out = printed(*fewer)
    for steps in (1, 3):
        each = [float(rows_of(out, steps, s)["flowception"][0]) for s in (0, 1, "mean")]
        assert each[2] == pytest.approx((each[0] + each[1]) / 2, rel=1e-3)
    assert model_file.read_card(run / "plain-seed0/model-3.safetensors").steps == 3
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert printed(*fewer) == out
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "nothing is done twice"

    limits = printed(*words, "--steps", 1, "--seeds", 0, "--tables", "limits")
    other, codec = rows_of(limits, 1, 0)["other real clips"], rows_of(limits, 1, 0)["codec alone"]
    assert len(other) == 4, "other captions: frames are not held against each other"
    assert float(codec[0].split(";")[0]) < float(plain[1][0])


@pytest.mark.slow
def test_what_is_recorded_of_made_clips(clips: list[Path], tmp_path: Path) -> None:
    """The same clips as without recording, and the order in which their frames appeared."""
    settings = {"codec_steps": 1, "hidden": 32, "depth": 1, "heads": 2, "stem_channels": 8}
    config = TrainConfig.from_flat(PRESETS["tiny"] | settings | {"steps": 1, "seed": 1})
    model = train.train(clips[0], tmp_path / "run", config, quiet=True)
    maker = framewise.Recorder(
        model.name, flowcept.load(str(model), device="cpu", dtype="float32"), 3
    )
    real, controls = draw_clips(maker, clips[1], 4), SampleConfig(4, frames=9)
    plain = clips_like(maker, real, controls, "gen")
    made = maker.clips(real, controls, "gen", told=False)
    for one, other in zip(plain, made, strict=True):
        assert one.caption == other.caption
        assert torch.equal(one.image_FCHW, other.image_FCHW)
        assert sorted(other.born_F.tolist()) == list(range(9))
    firsts = [clip.born_F.tolist().index(0) for clip in made]
    assert len(set(firsts)) > 1, "the first to appear may be any frame"


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
