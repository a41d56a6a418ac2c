"""The card says how a model was made, and the same run gives the same file."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from small_runs import TINY

from flowcept import model_file
from flowcept.data.folder import digest_of_files
from flowcept.settings import PRESETS, ContextMixture, MotionTrainConfig, TrainConfig
from flowcept.training import run as train
from flowcept.training.lineage import begun_training, ended_training
from flowcept.training.state import read_config, write_config


def command(config: TrainConfig | MotionTrainConfig) -> str:
    (made,) = begun_training(config, "my clips", "digest")
    return made.command


def test_a_command_holds_what_is_no_default() -> None:
    assert command(TrainConfig()) == "flowcept train 'my clips' -o run1"
    assert command(MotionTrainConfig()) == "flowcept train 'my clips' -o run1 --network motion"
    own = {"steps": 30, "place": True, "log_every": 7, "device": "cpu", "lexicon": "/home/w.json"}
    preset = TrainConfig.from_flat({**PRESETS["tiny"], **own})
    assert command(preset).removeprefix("flowcept train 'my clips' -o run1") == (
        " --preset tiny --lexicon w.json --place --steps 30"
    )
    mixed = command(TrainConfig().changed(context=ContextMixture(first=0.5)))
    assert "--config context.toml  # context.toml: context = {none = 0.45, first = 0.5," in mixed


def test_the_command_of_another_mixture_is_whole(tmp_path: Path) -> None:
    config = TrainConfig().changed(context=ContextMixture(first=0.5, runs=0.0))
    comment = command(config).split("# context.toml: ")[1]
    (tmp_path / "context.toml").write_text(comment)
    assert TrainConfig.from_flat(read_config(tmp_path / "context.toml")) == config


def test_trainings_go_on_from_each_other(folder: Path, whole: Path, tmp_path: Path) -> None:
    first = model_file.read_card(whole / "model.safetensors")
    (made,) = first.trainings
    assert (made.dataset, made.steps, made.seen > 6) == ("clips", 6, True)
    assert made.files == digest_of_files(folder.glob("*.apng"))
    config = TINY.changed(init=str(whole), steps=9, shift=2.0)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    train.train(folder, tmp_path / "run", config, pause_at=2, resume=True, quiet=True)
    second = model_file.read_card(tmp_path / "run" / "model.safetensors").trainings
    assert second[0] == made
    assert "--init run1 -o" not in second[1].command
    assert second[1].command.startswith("flowcept train clips -o run2 ")
    assert "--init run1" in second[1].command
    assert second[1].command.endswith("--pause-at 2")
    assert "--hidden" not in second[1].command


def test_one_command_makes_the_model_again(flow, folder: Path, whole: Path, tmp_path: Path) -> None:
    """Bit for bit, from the clips alone."""
    shutil.copytree(folder, tmp_path / "clips")
    card = model_file.read_card(whole / "model.safetensors")
    _, *words = shlex.split(card.trainings[-1].command)
    made = flow(*words, "--quiet")
    assert made.status == 0, made.err
    again = Path("run1/model.safetensors")
    assert again.read_bytes() == (whole / "model.safetensors").read_bytes()


SAME = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.state import make_config
folder, run = map(Path, sys.argv[1:])
train.train(folder, run, make_config("small", run.parent / "config.toml", {}), quiet=True)
"""


def test_equal_runs_write_equal_files(folder: Path, tmp_path: Path) -> None:
    """Whatever Python hashes words by, and whenever they are made."""
    words = tmp_path / "words.json"
    actions = {"growing": ["getting bigger"], "jumping": ["leaping", "hopping"]}
    words.write_text(json.dumps({"classes": {"action": actions}}))
    write_config(TINY.changed(lexicon=str(words), paraphrase=0.5), tmp_path / "config.toml")
    files = []
    for seed in ("1", "2"):
        run = tmp_path / seed
        made = subprocess.run(
            [sys.executable, "-c", SAME, str(folder), str(run)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(train.__file__).parents[2],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        files.append((run / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_a_training_that_ends_early_says_so(whole: Path) -> None:
    card = model_file.read_card(whole / "model.safetensors")
    assert ended_training(card, TINY, 3, 9).trainings[-1].command.endswith("--pause-at 3")
    timed = TINY.changed(max_hours=1.0)
    assert ended_training(card, timed, 3, 9).trainings[-1].command == card.trainings[-1].command


def test_info_prints_the_card(flow, whole: Path) -> None:
    told = flow("info", whole / "model.safetensors").out
    assert "commands   extend, gen, i2v, interp\n" in told
    assert re.search(r"^words .*(\n .*)*growing", told, re.M)
    assert re.search(r"^made by +flowcept train clips -o run1 .*--steps 6", told, re.M)
    assert re.search(r"^limits +words that are not among these", told, re.M)
    assert max(len(line) for line in told.splitlines() if "flowcept train" not in line) <= 100
    record = json.loads(flow("info", whole / "model.safetensors", "--json").out)
    assert record["trainings"][0]["steps"] == record["steps"] == 6
    assert record["network"]["hidden"] == TINY.network.hidden
