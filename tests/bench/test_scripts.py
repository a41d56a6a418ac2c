"""The scripts of tests/bench run; those that take hours or a GPU to the end, in small."""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path

import comparison
import framewise
import fuzz
import judge
import kill
import missing
import numpy as np
import pytest
import ring
import shipped
import torch
from fixtures_model import write_model
from fixtures_stage import COMPANY, write_models
from safetensors.torch import save_file
from test_mobilenet import mobilenet_weights

import flowcept
from flowcept import model_file
from flowcept.data import shapes
from flowcept.data.stage.folder import write_stage
from flowcept.data.stage.scene import Scene
from flowcept.errors import UserError
from flowcept.evaluation.evaluate import clips_like, draw_clips
from flowcept.process.forward import Target
from flowcept.process.state import FrameState, GapTables, Prediction
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


def test_damaged_files_are_tried_and_counted(tmp_path: Path) -> None:
    words = ("fuzz.py", "--output", tmp_path, "--first", 7, "--count", 2)
    rows = printed(*words).splitlines()
    assert rows[0] == "seed 0, 2 cases of each format from 7"
    table = [line.strip("| ").split(" | ") for line in rows if line.startswith("| ")][1:]
    assert len(table) == 17, "formats, and model headers by values"
    for _, refused, right, failed, _ in table:
        assert int(refused) + int(right) == 2
        assert int(failed) == 0
    kept = {file.name for file in tmp_path.iterdir()}
    assert {"counts.json", "csv.jsonl"} <= kept


@pytest.fixture
def verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., fuzz.Verdict]]:
    """What becomes of a case with a reader; the reader gets the file, and where words are heard."""
    resource_tracker._resource_tracker._stop()  # a child that tests with processes leave
    (tmp_path / "inputs/csv").mkdir(parents=True)
    (tmp_path / "inputs/csv/a.csv").write_text("path,text\n1.png,a\n")
    monkeypatch.setattr(fuzz, "INPUTS", tmp_path / "inputs")
    monkeypatch.setattr(fuzz, "COMMANDS", 10**9)
    with (tmp_path / "said").open("ab+", buffering=0) as said:

        def tried(reader: Callable[[Path, io.FileIO], object]) -> fuzz.Verdict:
            monkeypatch.setitem(fuzz.READERS, "csv", lambda path, _: reader(path, said))
            with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
                return fuzz.tried("csv", 1, 0, Path(folder), said)

        yield tried


def refuses(text: str) -> Callable[..., None]:
    def reader(*_: object) -> None:
        raise UserError(text)

    return reader


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (refuses("two\nlines"), "not one plain line"),
        (refuses("x" * 5000), "not one plain line"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
        (lambda *_: warnings.warn("a", RuntimeWarning, stacklevel=1), "a library said"),
        (lambda _, said: said.write(b"of a library in C"), "a library said"),
        (lambda path, _: path.with_name(".half").write_text(""), "left behind"),
    ],
)
def test_a_reader_that_fails_is_told(verdict, reader, why) -> None:
    found = verdict(reader)
    assert found.kind == "failed"
    assert why in found.why


def test_a_reader_is_right_or_takes_too_much(verdict, monkeypatch) -> None:
    assert verdict(lambda *_: None).kind == "right"
    assert verdict(refuses("one line")) == fuzz.Verdict("refused", "one line")
    with subprocess.Popen(["sleep", "60"]) as child:
        assert verdict(lambda *_: None).why == "a child is left"
        child.kill()
    for name, limit, why in (("BYTES", 1, "were held"), ("SECONDS", -1, "s of the processor")):
        monkeypatch.setattr(fuzz, name, limit)
        assert why in verdict(lambda *_: None).why


@pytest.mark.slow
def test_killed_commands_leave_nothing_broken(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors")
    words = ("kill.py", "--output", tmp_path / "kill", "--count", 1, "--model", model)
    rows = printed(*words, "--only", "train", "gen", "shapes").splitlines()
    table = [line.strip("| ").split(" | ") for line in rows if line.startswith("| ")][1:]
    assert [row[0].split()[0] for row in table] == ["train"] * 2 + ["gen"] * 2 + ["shapes"] * 2
    assert all(sum(map(int, row[1:])) == 1 and row[-1] == "0" for row in table)


@pytest.mark.parametrize(
    ("name", "content", "broken"),
    [
        ("a.png", b"\x89PNG", True),
        ("config.toml", b"[hal", True),
        ("state.safetensors", b"12345678", True),
        ("clip.mp4", b"ftyp", True),
        ("log.jsonl", b'{"step": 1}\n{"st', False),
        ("log.jsonl", b'{"step": 1}\n{"st\n', True),
        ("unknown.xyz", b"", True),
        (".hidden.png", b"\x89PNG", False),
    ],
)
def test_a_broken_file_under_its_final_name_is_seen(
    tmp_path: Path, name: str, content: bytes, broken: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    if broken:
        with pytest.raises(kill.WrongError, match=name):
            kill.check_files(tmp_path)
    else:
        kill.check_files(tmp_path)


def test_a_frame_of_either_form_is_held_against_the_padded_peer() -> None:
    out = printed("frame_cost.py", "--pairs", 1, "--clips", 4, "--steps", 2, "--hidden", 32,
                  "--stem-channels", 8)  # fmt: skip
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == [
        "training", "peer", "old form", "new form", "sampling", "peer", "old form", "new form",
    ]  # fmt: skip
    assert all(float(row[1]) > 0 for row in rows if "clips a second" not in row[1])
    shares = [line for line in out.splitlines() if "products alone" in line]
    assert len(shares) == 6
    for line in shares:
        assert 0 < float(line.split("alone ")[1].split("%")[0]) < 100
        assert line.count("%") == 4, "the products, and three that take the rest"


def test_operations_of_equal_steps() -> None:
    """A finished frame that rests saves about a third, which brings sampling to full-sequence's.

    Where finished frames flow again, nearly every frame that is computed teaches.
    """
    out = printed("flops.py", "--lengths", 8, "--windows", 0, "--draws", 6, "--steps", 6)
    row = [cell.strip() for cell in out.splitlines()[-1].split("|")[1:-1]]
    trained = [[float(x) for x in cell.split(": ")[1].split(", ")] for cell in row[3:6]]
    (uniform, each_uniform), (early, _), (_, each_filled) = trained
    plain, cached, refined = (float(cell.split(": ")[1]) for cell in row[7:])
    assert early < uniform < 1
    assert each_filled < each_uniform
    assert 1.35 < plain < 1.65
    assert 0.9 < cached < 1.15
    assert refined == pytest.approx(cached + 1 / 6, abs=0.011), "one more step of all frames"


def test_places_by_compositions_are_exact_and_by_shares_are_not() -> None:
    words = ("--tables", "where", "--steps", 2, "--clips", 60)
    out = printed("length_law.py", *words).splitlines()
    floor, deviation = (float(out[4].split()[i]) for i in (4, 6))
    together, *_, exact = map(float, out[-2].strip("| ").split(" | ")[1:])
    assert exact < floor + 4 * deviation < together


def test_log_scores_of_places() -> None:
    """Two frames in two equal gaps: one in each is half of the ways, a third of the splits."""
    state = FrameState(
        torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.zeros(1).long(), torch.tensor([0.5]),
        torch.tensor([True]), (1,),
    )  # fmt: skip
    target = Target(torch.zeros(1, 1, 1, 1), torch.ones(1), torch.ones(1), torch.tensor([2]))
    tables = GapTables(torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([[0.0, 1.0, 0.0]]))
    entry = torch.tensor([[[10.0, 0.0], [0.0, 0.0]]])  # a factor of nearly exp(10) for a count of 1
    said = Prediction(torch.zeros(1, 1, 1, 1), torch.ones(1), torch.ones(1), torch.zeros(1, 3),
                      gap_BG2H=entry, tables=tables)  # fmt: skip
    scores = dict(missing.place_scores(said, state, target))
    wanted = {"gaps by shares": 1 / 2, "gaps by the prior": 1 / 3, "gaps by compositions": 1.0}
    assert {name: math.exp(x) for name, x in scores.items()} == pytest.approx(wanted, abs=1e-3)
    without = replace(said, gap_BG2H=None, tables=None)
    assert list(missing.place_scores(without, state, target)) == [*scores.items()][:1]


class Whole(torch.nn.Module):
    """Features of whole clips: brightness in eight parts."""

    def forward(self, clip_NCTHW: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(clip_NCTHW, 2).flatten(1)


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Clips to train on and to score against, and two feature networks."""
    folders = [tmp_path / name for name in ("scenes", "others")]
    for seed, folder in enumerate(folders):
        shapes.write_shapes(folder, 12, size=64, seed=seed)
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


def test_an_arm_is_trained_as_its_name_says(tmp_path: Path) -> None:
    """Whatever the package trains by default: full-sequence and autoregressive flow as well."""
    options = argparse.Namespace(run=tmp_path / "run", features=[], codec="", codec_steps=0)
    work = comparison.Comparison(options)
    for arm in comparison.LEARNING:
        process = work.process(arm, 0)
        assert process.first == ("first" in arm.name)
        assert process.planned == ("planned" in arm.name)
        assert process.fill == (0.75 if "fill" in arm.name else 0)


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
    own = {"steps": 1, "seed": 1, "first": False}
    config = TrainConfig.from_flat(PRESETS["tiny"] | settings | own)
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


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, clips of them, and clips of reserved pairs alone."""
    folder = tmp_path_factory.mktemp("acted")
    write_models(folder / "models", COMPANY)
    how = {
        "models": folder / "models",
        "size": 32,
        "actors": "dog,cow",
        "actions": "surfing,running",
    }
    write_stage(folder / "clips", clips=8, **how)
    write_stage(folder / "reserved", clips=2, reserved=True, **how)
    return folder


@pytest.mark.slow
def test_log_scores_of_a_model_with_compositions(acted: Path, tmp_path: Path) -> None:
    settings = {"codec_steps": 1, "hidden": 32, "depth": 1, "heads": 2, "stem_channels": 8}
    config = TrainConfig.from_flat(PRESETS["tiny"] | settings | {"steps": 2, "seed": 1})
    model = train.train(acted / "clips", tmp_path / "run", config, quiet=True)
    out = printed("missing.py", acted / "clips", "--models", acted / "models", "--model", model)
    found = {line[:26].strip(): float(line[26:].split()[0]) for line in out.splitlines()[2:]}
    assert len(found) == 7
    prior, learned = found["gaps by the prior"], found["gaps by compositions"]
    assert learned == pytest.approx(prior, abs=0.1), "two steps change little"
    assert found["gaps by shares"] < prior < 0, "means that are not learned, for too sure"


def test_a_stage_model_is_judged_to_its_table(acted: Path, tmp_path: Path) -> None:
    """All sections but the slow ones, with a judge that has hardly learned."""
    folders = acted / "clips", acted / "reserved"
    told = printed("judge.py", *folders, "--others", *folders, "--steps", 1, "--output",
                   tmp_path / "judge.safetensors")  # fmt: skip
    assert "2 actors, 2 actions; 10 clips, 1 steps" in told
    assert "reserved, 2 other clips: actor " in told
    model = write_model(tmp_path / "model.safetensors")
    save_file(mobilenet_weights(torch.Generator().manual_seed(0)), tmp_path / "net.safetensors")
    words = ["shipped.py", *folders, "--model", model, "--models", acted / "models", "--judge",
             tmp_path / "judge.safetensors", "--features", tmp_path / "net.safetensors",
             "--output", tmp_path / "out.json", "--clips", 2, "--steps", 2]  # fmt: skip
    sections = ["codec", "gen", "reserved", "words", "lengths", "i2v", "extend"]
    out = printed(*words, "--only", *sections)
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]
    figures = [row[0].strip("| ") for row in rows]
    assert len(figures) == len(set(figures)) == 14
    assert "Fréchet MobileNet distance, 2 clips" in figures
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"out-{name}.png"
        for name in ("gen", "reserved", "words", "i2v-with-prompt", "i2v-without-prompt")
    }
    done = json.loads((tmp_path / "out.json").read_text())
    assert list(done) == ["about", *sections]
    again = printed(*words, "--only", *sections)
    assert again == out[out.index("\nmachine") :], "nothing is done twice"


def test_a_judge_learns_who_and_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red or blue, running or standing; it is told so by colours and by motion alone."""
    monkeypatch.setattr(judge, "BATCH", 8)
    monkeypatch.setattr(judge, "WORN", 2)
    rng = np.random.default_rng(0)

    def clip(actor: int, action: int) -> np.ndarray:
        frames = rng.integers(0, 40, (12, 32, 32, 3), dtype=np.uint8)
        for number, frame in enumerate(frames):
            frame[8:20, 4 + action * number : 14 + action * number, 2 * actor] += 200
        return frames

    pairs = [(number % 2, number // 2 % 2) for number in range(16)]
    frames = np.stack([judge.taken(clip(*pair)) for pair in pairs])
    numbers = torch.tensor(pairs)
    torch.manual_seed(0)
    taught = judge.Judge(["red", "blue"], ["standing", "running"])
    judge.train(taught, judge.Clips(frames, *numbers.T), steps=25, seed=0)
    scenes = [Scene("red/green", "standing"), Scene("blue", "running"), Scene("red", "running")]
    found = judge.right(taught, [clip(0, 0), clip(1, 1), clip(1, 1)], scenes)
    assert found == pytest.approx({"actor": 2 / 3, "action": 1, "both": 2 / 3})


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    shapes.write_shapes(tmp_path / "shapes", 1, size=16)
    for folder in (tmp_path, tmp_path / "shapes"):
        with pytest.raises(UserError, match="was not drawn by flowcept stage"):
            judge.listed(folder)


def test_lengths_are_known_half_of_the_way(acted: Path, tmp_path: Path) -> None:
    judge.save(judge.Judge(["dog"], ["running"]), tmp_path / "judge.safetensors")
    model = write_model(tmp_path / "model.safetensors")
    options = argparse.Namespace(
        model=str(model), models=acted / "models", judge=tmp_path / "judge.safetensors",
        features=[], steps=3, guidance=2.0, refine=0.0, seed=0, output=tmp_path / "out.json",
    )  # fmt: skip
    bench = shipped.Bench(options)
    jobs = [shipped.Job("a dog surfing", seed) for seed in range(6)]
    made = [len(clip) for clip in bench.made(jobs, "gen")]
    assert shipped.grown_lengths(bench, jobs) == made
    assert len(set(made)) > 1


def test_errors_of_mean_lengths() -> None:
    """Running is a tenth too long, walking right on the whole; its adverbs do nothing."""
    adverbs = ("quickly", "", "slowly") * 2
    played = [
        Scene("dog", action, "", adverb) for action in ("running", "walking") for adverb in adverbs
    ]
    true = [7.0, 10.0, 15.0] * 4
    made = [8, 11, 16, 8, 10, 17] + [11, 10, 11] * 2
    found = shipped.of_cells(played, made, true)
    assert found["means"]["running"] == [[8, 7], [10.5, 10], [16.5, 15]]
    assert found["all"] == pytest.approx(134 / 128 - 1)
    assert found["worst_action"] == pytest.approx(35 / 32 - 1)
    assert found["worst"] == pytest.approx(11 / 7 - 1)
    assert (found["ordered"], found["actions"]) == (1, 2)


def test_a_peer_that_halves_makes_the_nearest_frame() -> None:
    """Two gaps, frames named by their time: thirds become the nearest quarters."""

    def quarters(given_GCHW: torch.Tensor, spacing: int) -> torch.Tensor:
        assert spacing == 4
        return torch.tensor([g + m / 4 for g in range(len(given_GCHW) - 1) for m in (1, 2, 3)])

    made = shipped.halving(quarters)(torch.zeros(3, 1, 1, 1), 3)
    assert made.tolist() == [0.25, 0.75, 1.25, 1.75]


@pytest.mark.slow
def test_the_ring_is_trained_sampled_and_held_against_the_posterior_mean(tmp_path: Path) -> None:
    small = ("--clips", 20, "--samples", 2, "--hidden", 32, "--stem-channels", 8, "--place")
    parts = ("--steps", 2, 1, "--shift", 1.5, 5, "--decay", 0, 0.7)
    how = (*parts, "--rotary-values", "--schedule", "power:0.1", "--first", "--fill", 0.75,
           "--refine", 0, 0.75)  # fmt: skip
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
    made = [line for line in out if "2 clips: total variation" in line]
    names = ["50 steps", "50 steps, refined from 0.75", "10 steps", "10 steps, refined from 0.75"]
    assert [line.split(", 2 clips")[0] for line in made] == names
    assert made[0].split(": ")[1] != made[1].split(": ")[1], "frames are cleaned once more"


def test_ring_errors_by_the_order_of_births() -> None:
    """A clip whose last half is of another ring; its frames appeared from the last to the first."""
    first, other = (
        ring.first_frame(*np.random.default_rng(seed).uniform(0, 255, (2, 3))) for seed in (0, 1)
    )
    frames = np.concatenate([ring.turned(first, 1, 8)[:4], ring.turned(other, 1, 8)[4:]])
    made = ring.Made(frames.astype(np.uint8), (7, 6, 5, 4, 3, 2, 1, 0))
    placed, born = (ring.by_quarters([made], born=born) for born in (False, True))
    assert max(placed[:2]) < 0.01 < min(placed[2:])
    assert born == placed[::-1]


def test_rates_of_the_autoencoder(clips: list[Path]) -> None:
    words = ["--size", "32", "--width", "8", "--steps", "40", "--every", "20", "--frames", "80"]
    out = printed("codec_rate.py", clips[0], *words, "--rates", "0.002", "0.001")
    rows = [line.split("|")[1:-1] for line in out.splitlines()[3:]]
    assert [row[0].strip() for row in rows] == ["0.002", "0.001"]
    assert len({row[1] for row in rows}) == 1, "all arms start as the same transform"
    assert all(len({*row[1:]}) == 3 for row in rows), "and learn"
