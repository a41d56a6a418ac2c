"""What a newcomer reads: help pages, suggestions, completion, and the bar of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from tqdm import tqdm
from typer.testing import CliRunner

from flowcept import cli
from flowcept.settings import PRESETS

COMMANDS = ["gen", "i2v", "interp", "extend", "train", "evaluate", "merge"]
COMMANDS += ["shapes", "stage", "info"]
MAKING = ["Input", "Output", "Length", "Sampling", "Device", "Help"]


def page(*words, columns=120):
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"})
    shown = runner.invoke(cli.app, [*words, "-h"])
    assert shown.exit_code == 0
    return shown.output


def panels(text):
    return [title.strip() for title in re.findall(r"^╭─ (.*?) ─*╮$", text, re.MULTILINE)]


def told(text, flag):
    """The help text of a flag, on one line."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    start = next(n for n, line in enumerate(lines) if re.match(rf"(\* +)?{flag}\b", line))
    rest = iter(lines[start + 1 :])
    more = []
    while (line := next(rest)) and not line.startswith(("--", "╰", "*")):
        more.append(line)
    return re.sub(r"\s+", " ", " ".join([lines[start], *more]))


def test_the_first_page_names_commands_by_what_they_are_for():
    text = page()
    assert panels(text)[1:] == [
        "Make clips",
        "Train models",
        "Draw clips to train on",
        "See what a file is",
    ]
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", text, re.MULTILINE)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_pages_fit_their_width_and_begin_with_a_command_to_copy(command, columns):
    text = page(command, columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    assert f"\n flowcept {command} " in text
    assert "Options" not in panels(text), "every flag has a panel of its own"
    assert "…" not in text


def test_panels_of_a_command_that_makes_clips():
    assert panels(page("gen")) == ["Arguments", *MAKING]
    whole = "Whole clips at another frame rate or speed"
    assert panels(page("interp")) == ["Arguments", *MAKING[:3], whole, *MAKING[3:]]


def test_panels_of_training_begin_with_what_every_run_needs():
    text = page("train")
    assert panels(text)[:4] == ["Arguments", "Training", "Output", "Device"]
    inside = text.split("─ Training ─")[1].split("╰")[0]
    first = re.findall(r"^│ (--[a-z-]+)", inside, re.MULTILINE)[:6]
    assert first == ["--preset", "--network", "--steps", "--max-hours", "--init", "--seed"]
    for family in ("transformer", "motion"):
        assert f"Training (--network {family} only)" in panels(text)


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        ("gen", "--model", "(default $FLOWCEPT_MODEL, else theatre)"),
        ("interp", "--model", "else motion, or theatre with a prompt)"),
        ("gen", "--steps", "(default 8)"),
        ("interp", "--steps", "(default 4)"),
        ("gen", "--refine", "(0 to under 1)"),
        ("gen", "--scale", "(1 to 64)"),
        ("gen", "--cache", "(default on)"),
        ("gen", "--device", "auto|cpu|cuda|mps"),
        ("gen", "--dtype", "(auto, float32, bfloat16 or float16; default auto)"),
        ("gen", "--format", "(mp4, webm, mov, gif, webp or apng; default mp4)"),
        ("i2v", "--fit", "crop|pad|stretch"),
        ("extend", "--direction", "(forward, backward or both; default forward)"),
        ("train", "--preset", "tiny|small|base"),
        ("train", "--preset", "(default small)"),
        ("train", "--held-out", "(0 to under 1; default 0.02, motion 0.1)"),
        ("train", "--steps", "(default 20000)"),
        ("evaluate", "--steps", "(default 8, 4 between frames)"),
        ("evaluate", "--task", "gen|i2v"),
        ("shapes", "--size", "(16 to 1024; default 64)"),
    ],
)
def test_ranges_choices_and_defaults_are_shown(command, flag, words):
    assert words in told(page(command), flag)


def test_what_presets_set_is_said():
    words = " ".join(page("train").split())
    assert "--preset small sets nothing" in words
    for name in ("tiny", "base"):
        sets = words.split(f"--preset {name} sets ")[1].split(". ")[0]
        assert sets.count("--") == len(PRESETS[name])
        assert f"--hidden {PRESETS[name]['hidden']} " in sets


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["gne"], "Did you mean 'gen'?"),
        (["gen", "a", "--stpes", "3"], "no option --stpes: did you mean --steps?"),
        (["gen", "a", "--format", "webmm"], "not 'webmm': did you mean webm?"),
        (["i2v", "a.png", "--fit", "strech"], "not 'strech': did you mean stretch?"),
        (["train", "data", "--network", "motoin"], "not 'motoin': did you mean motion?"),
        (["train", "data", "--preset", "smal"], "not 'smal': did you mean small?"),
        (["extend", "a", "--direction", "backwards"], "did you mean backward?"),
        (["gen", "--prompts-file", "p.jsonl"], "unknown setting 'lenght_scale': did you mean"),
    ],
)
def test_did_you_mean(flow, words, meant):
    Path("p.jsonl").write_text('{"prompt": "a", "lenght_scale": 2}')
    Image.new("RGB", (8, 8)).save("a.png")
    Path("data").mkdir()
    result = flow(*words)
    assert (result.status, result.out) == (2, "")
    assert meant in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [["gen", "a", "--wrong"], ["gen", "a", "--seed", "x"], ["i2v"]])
def test_what_has_no_suggestion_names_the_page_to_read(flow, words):
    result = flow(*words)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"see flowcept {words[0]} -h" in result.err
    assert flow("gen", "a", "--device", "gpu").err.endswith("not 'gpu'\n"), "it is not cpu"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gen a --device ", {"auto", "cpu", "cuda", "mps"}),
        ("gen a --format web", {"webm", "webp"}),
        ("i2v a.png --fit ", {"crop", "pad", "stretch"}),
        ("train data --preset ", {"tiny", "small", "base"}),
        ("train data --network mo", {"motion"}),
    ],
)
def test_completion_offers_values(typed, offered):
    asked = {"_FLOWCEPT_COMPLETE": "complete_bash", "COMP_WORDS": f"flowcept {typed}"}
    asked |= {"COMP_CWORD": str(len(f"flowcept {typed}".split(" ")) - 1)}
    shown = CliRunner(env=asked).invoke(cli.app, prog_name="flowcept")
    assert set(shown.output.split()) == offered


class Bar(tqdm):
    """A bar that is remembered."""

    made: list[Bar] = []  # noqa: RUF012 - on purpose for all of them

    def __init__(self, *args, **words):
        super().__init__(*args, **words)
        self.labels = [self.desc]
        self.made.append(self)

    def set_description(self, desc=None, refresh=True):
        super().set_description(desc, refresh)
        self.labels.append(self.desc.removesuffix(": "))


def test_the_bar_counts_what_steps_counts(flow, tiny_model, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    fast = ["-m", tiny_model, "--scale", 1]
    assert flow("gen", "a", "b", "--steps", 5, *fast, "-o", "o.mp4").status == 0
    assert [bar.labels[0] for bar in Bar.made] == ["clip 1 of 2", "clip 2 of 2"]
    assert [(bar.n, bar.total) for bar in Bar.made] == [(5, 5), (5, 5)]

    Bar.made.clear()
    assert flow("extend", "o-1.mp4", "--frames", 30, "--steps", 2, *fast[:2]).status == 0
    (bar,) = Bar.made
    assert (bar.n, bar.total) == (2, 2)
    assert bar.labels[-1].startswith("extend, part ")
