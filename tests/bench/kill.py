"""Commands that are killed at random moments leave nothing broken, and go on from what they saved.

    python tests/bench/kill.py --output kill
    python tests/bench/kill.py --output kill --only train --first 12 --count 1    # one case again

``train`` (a tiny network on a few clips), ``gen``, ``shapes`` and ``stage`` (two processes) are
begun and get SIGKILL or SIGTERM at a random moment of their time, in one case of ten from the start
of Python on, else once the package is imported. Then: every file that has its final name opens and
is whole; no child is left after a few seconds; SIGTERM leaves no hidden file, and what SIGKILL left
is gone after the next run of the same output. A training that is resumed goes on from its last
saved step, after SIGTERM from the very last one, and ends with the same weights, bit for bit, as
one that nobody killed. Of drawn clips those that are listed are whole: the folder is a smaller
valid one.

A case is its seed, command, signal and number; failing folders are kept. ``--bar`` is how many
failures are let pass.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from PIL import Image
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))

from fixtures_stage import COMPANY, write_models

from flowcept import cli, model_file
from flowcept.data import folder as data
from flowcept.data import shapes, video
from flowcept.settings import DataSettings, TrainConfig
from flowcept.training.state import write_config

ROOT = Path(__file__).parents[2]
WHOLE = 10  # one case in so many begins with Python itself
PATIENCE = 300  # seconds that a command may take
ORPHANS = 10  # seconds after which no child is left
SAVE_EVERY = 4
TINY = TrainConfig().changed(
    size="32", codec_width=16, codec_steps=12, codec_batch=4, hidden=32, depth=1, heads=2,
    stem_channels=8, stem_depth=1, text_width=24, text_depth=1, steps=20, tokens=200,
    micro_tokens=200, warmup=2, seed=5, dtype="float32", device="cpu", log_every=1, eval_every=10,
    save_every=SAVE_EVERY, sample_every=10, export_dtype="float32",
)  # fmt: skip
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


class WrongError(Exception):
    """What a killed command left is not as it should be."""


def right(condition: object, what: str) -> None:
    if not condition:
        raise WrongError(what)


# ---- running and killing -----------------------------------------------------------------------


@dataclass
class Command:
    """A command that is running: a child of this process, first of its own session."""

    process: int
    told: Path

    @staticmethod
    def begin(words: Sequence[str], told: Path, whole: bool) -> Command:
        """``whole`` starts Python anew; else the child has all that is imported already."""
        with told.open("wb") as file:
            if whole:
                command = [sys.executable, "-m", "flowcept", *words]
                paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
                started = subprocess.Popen(
                    command, stdout=file, stderr=file, start_new_session=True,
                    env=os.environ | {"PYTHONPATH": paths},
                )  # fmt: skip
                started.returncode = 0  # it is waited for below
                return Command(started.pid, told)
            child = os.fork()
            if child == 0:
                _be_the_command(words, file.fileno())
        return Command(child, told)

    def ended(self, seconds: float) -> int | None:
        """The exit status, as Python has it, once it ends; None if it has not by then."""
        end = time.monotonic() + seconds
        while True:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.002)

    def kill(self, number: int) -> None:
        os.kill(self.process, number)

    def orphans(self) -> list[str]:
        """What is left of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = path.read_text().rpartition(")")
            except OSError:  # it has just ended
                continue
            state, *_, session = rest.split()[:4]
            if int(session) == self.process and state != "Z":
                found.append(name)
        return found


def _be_the_command(words: Sequence[str], file: int) -> None:
    """What the child does, and nothing else."""
    status = 99
    try:
        os.setsid()
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["flowcept", *words]
        cli.main()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 98
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(words: Sequence[str], told: Path) -> None:
    """A command that nobody kills."""
    command = Command.begin(words, told, whole=False)
    status = command.ended(PATIENCE)
    right(status == 0, f"{' '.join(words)} ended with {status}: {told.read_text()[-2000:]}")


# ---- what is killed, and what must be true then ------------------------------------------------


class Subject(Protocol):
    """A command, and how what it left is looked at."""

    def words(self, folder: Path) -> list[str]:
        """The command, whose output goes into a folder."""

    def prepare(self, folder: Path) -> None:
        """What is there before."""

    def check(self, folder: Path, number: int) -> None:
        """What must be true after that signal."""

    def go_on(self, folder: Path) -> None:
        """The next run, and what it must lead to."""


def hidden(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def check_files(folder: Path) -> None:
    """Every file under its final name opens and is whole."""
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file() or "tensorboard" in path.parts:
            continue
        try:
            _open(path)
        except Exception as error:
            raise WrongError(f"{path.relative_to(folder)} is broken: {error}") from error


def _open(path: Path) -> None:
    if path.name == "model.safetensors":
        model_file.load(path)
    elif path.suffix == ".safetensors":
        model_file.load_tree(path)
    elif path.suffix in {".mp4", ".apng"}:
        video.read_video(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".toml":
        tomllib.loads(path.read_text())
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().split("\n")[:-1]:  # a kill may have cut the last one
            json.loads(line)
    else:
        right(path.suffix in {".bin", ".txt"}, "no such file is expected")


class Train:
    """A training, resumed after it was killed."""

    def __init__(self, shared: Path) -> None:
        self.clips, self.toml = shared / "clips", shared / "tiny.toml"
        shapes.write_shapes(self.clips, 6, size=32, seed=0)
        write_config(TINY, self.toml)
        run(self.words(shared / "straight"), shared / "straight.txt")
        self.straight = weights_of(shared / "straight/run")

    def words(self, folder: Path, *more: str) -> list[str]:
        return ["train", str(self.clips), "-o", str(folder / "run"), "--config", str(self.toml),
                *more]  # fmt: skip

    def prepare(self, folder: Path) -> None:
        pass

    def check(self, folder: Path, number: int) -> None:
        """Of what was logged, at most the last interval is not saved; after SIGTERM nothing."""
        run_folder = folder / "run"
        check_files(run_folder)
        lost = 0 if number == signal.SIGTERM else SAVE_EVERY
        for name, key in (("state", "step"), ("codec-state", "codec_step")):
            logged = _last(run_folder / "log.jsonl", key)
            if name == "codec-state" and (run_folder / "codec.safetensors").exists():
                continue
            saved = _saved(run_folder / f"{name}.safetensors")
            right(logged - saved <= lost, f"{key} {logged} was logged, {saved} saved")

    def go_on(self, folder: Path) -> None:
        begun = (folder / "run/config.toml").exists()
        run(self.words(folder, *(["--resume"] if begun else [])), folder / "again.txt")
        check_files(folder / "run")
        found = weights_of(folder / "run")
        right(found.keys() == self.straight.keys(), "other weights")
        other = [name for name, one in found.items() if not torch.equal(one, self.straight[name])]
        right(not other, f"other values of {other}")


def _last(log: Path, key: str) -> int:
    """The largest number of a step in a log."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return max((json.loads(line).get(key, 0) for line in lines), default=0)


def _saved(path: Path) -> int:
    if not path.exists():
        return 0
    state = model_file.load_tree(path)
    return int(state["step"] if "step" in state else state["num_steps"])


def weights_of(run_folder: Path) -> dict[str, Any]:
    right(_saved(run_folder / "state.safetensors") == TINY.optimizer.steps, "not to the end")
    return model_file.load(run_folder / "model.safetensors").state()


class Gen:
    """A clip with its pictures, where there is an older one of that name."""

    def __init__(self, shared: Path, model: str) -> None:
        self.model, self.old = model, shared / "old.mp4"
        run([*self.words(shared)[:-6], "--frames", "2"], shared / "old.txt")
        (shared / "out.mp4").rename(self.old)

    def words(self, folder: Path) -> list[str]:
        return ["gen", "a dog surfing", "-m", self.model, "--steps", "2", "--seed", "1", "-o",
                str(folder / "out.mp4"), "--frames", "6", "--sheet", str(folder / "sheet.png"),
                "--trace", str(folder / "trace.png")]  # fmt: skip

    def prepare(self, folder: Path) -> None:
        shutil.copy(self.old, folder / "out.mp4")

    def check(self, folder: Path, _: int) -> None:
        check_files(folder)
        right(len(video.read_video(folder / "out.mp4")[0]) in (2, 6), "neither the old nor the new")

    def go_on(self, folder: Path) -> None:
        run(self.words(folder), folder / "again.txt")
        check_files(folder)
        right(len(video.read_video(folder / "out.mp4")[0]) == 6, "not the new clip")


class Drawn:
    """A folder of drawn clips, by one process or by several."""

    def __init__(self, *command: str) -> None:
        self.command, *self.rest = command

    def words(self, folder: Path) -> list[str]:
        return [self.command, str(folder / "clips"), *self.rest]

    def prepare(self, folder: Path) -> None:
        pass

    def check(self, folder: Path, _: int) -> None:
        check_files(folder)
        metadata = folder / "clips/metadata.jsonl"
        lines = metadata.read_text().split("\n")[:-1] if metadata.exists() else []
        listed = [json.loads(line)["file_name"] for line in lines]
        right(all((folder / "clips" / name).exists() for name in listed), "a clip is not there")
        if listed:
            found = data.scan(folder / "clips", DataSettings(size="16"))
            right(len(found.entries) == len(listed), "the folder is not a smaller valid one")

    def go_on(self, folder: Path) -> None:
        """A folder in use is refused: it is removed, as the command says."""
        shutil.rmtree(folder / "clips", ignore_errors=True)
        run(self.words(folder), folder / "again.txt")
        self.check(folder, 0)


def subjects(names: Sequence[str], shared: Path, model: str) -> dict[str, Subject]:
    """What is killed."""
    makers = {
        "train": lambda: Train(shared),
        "gen": lambda: Gen(shared, model),
        "shapes": lambda: Drawn("shapes", "--clips", "30", "--size", "64"),
        "stage": lambda: Drawn(
            "stage", "--models", str(write_models(shared / "models", COMPANY)), "--clips", "12",
            "--size", "32", "--jobs", "2",
        ),
    }  # fmt: skip
    return {name: makers[name]() for name in names}


def timed(subject: Subject, folder: Path) -> dict[bool, float]:
    """Seconds that the command takes by ``whole``."""
    seconds = {}
    for whole in (False, True):
        own = folder / f"timed-{whole}"
        own.mkdir(parents=True)
        begun = time.monotonic()
        command = Command.begin(subject.words(own), own / "told.txt", whole)
        right(command.ended(PATIENCE) == 0, (own / "told.txt").read_text())
        seconds[whole] = time.monotonic() - begun
    return seconds


# ---- cases -------------------------------------------------------------------------------------


def case(
    subject: Subject, folder: Path, number: int, random: Random, seconds: dict[bool, float]
) -> str:
    """How the command ended; ``WrongError`` where something is not as it should be."""
    whole = random.randrange(WHOLE) == 0
    moment = random.uniform(0, seconds[whole])
    subject.prepare(folder)
    told = folder / "told.txt"
    command = Command.begin(subject.words(folder), told, whole)
    status = command.ended(moment)
    if status is None:
        command.kill(number)
        status = command.ended(PATIENCE)
    right(status is not None, "it does not end")
    _check_orphans(command)
    if status == -signal.SIGINT:  # as Python ends where the exception passed through an exec()
        status = 130
    right(status in (0, 130, -number), f"it ended with {status}: {told.read_text()[-2000:]}")
    left = hidden(folder)
    if number == signal.SIGTERM and status != -number:
        right(not left, f"hidden files after SIGTERM: {left}")
        right("Traceback" not in told.read_text(), told.read_text()[-2000:])
    subject.check(folder, number if status == 130 else signal.SIGKILL)
    subject.go_on(folder)
    right(not hidden(folder), f"hidden files after the next run: {hidden(folder)}")
    ended = {0: "ended", 130: "stopped"}.get(status, "killed")
    return f"{ended}, files left" if left else ended


def _check_orphans(command: Command) -> None:
    end = time.monotonic() + ORPHANS
    while left := command.orphans():
        right(time.monotonic() < end, f"children are left: {left}")
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("kill"), help="folder of failures")
    names = ("train", "gen", "shapes", "stage")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=[*SIGNALS])
    parser.add_argument("--count", type=int, default=50, help="moments by command and signal")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bar", type=int, default=0, help="failures that are let pass")
    parser.add_argument("--model", default="theatre", help="that gen makes clips with")
    words = parser.parse_args()

    torch.set_num_threads(1)
    words.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        shared = Path(scratch)
        known = subjects(words.only, shared, words.model)
        seconds = {name: timed(subject, shared / name) for name, subject in known.items()}
        cases = itertools.product(
            range(words.first, words.first + words.count), known.items(), words.signals
        )
        total = words.count * len(known) * len(words.signals)
        for number, (name, subject), sent in tqdm(cases, "moments", total, disable=None):
            key = f"{name} {sent}"
            random = Random(f"{words.seed} {key} {number}")
            ended = _tried(subject, key, number, random, seconds[name], words)
            found.setdefault(key, Counter())[ended] += 1
            (words.output / "counts.json").write_text(json.dumps(found, indent=1))
    return _report(found, words.bar)


def _tried(
    subject: Subject, key: str, number: int, random: Random, seconds: dict[bool, float], words: Any
) -> str:
    """How one case went; a folder that is not as it should be is kept."""
    sent = SIGNALS[key.split()[1]]
    with tempfile.TemporaryDirectory() as folder:
        try:
            return case(subject, Path(folder), sent, random, seconds)
        except WrongError as error:
            place = words.output / f"{key.replace(' ', '-')}-{words.seed}-{number}"
            shutil.copytree(folder, place, dirs_exist_ok=True)
            (place / "failure.txt").write_text(f"{error}\n")
            return "failures"


def _report(counts: dict[str, Counter[str]], bar: int) -> int:
    columns = ("killed", "killed, files left", "stopped", "stopped, files left", "ended",
               "failures")  # fmt: skip
    print(f"| command and signal | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for key, found in counts.items():
        print(f"| {key} | {' | '.join(str(found[column]) for column in columns)} |")
    failed = sum(found["failures"] for found in counts.values())
    print(f"\n{failed} failures of at most {bar}")
    return int(failed > bar)


if __name__ == "__main__":
    sys.exit(main())
