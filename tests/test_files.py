"""Files appear whole or not at all; what a killed process left is removed, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowcept import files
from flowcept.errors import UserError
from flowcept.files import replacing

LEAVES = """
import os, sys
from pathlib import Path
from flowcept.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        temporary = temporary / "1.png"
    temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


def begun(path: Path, kind: str = "file") -> subprocess.Popen[str]:
    """A process in the middle of writing a file or folder."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", LEAVES, str(path), kind]
    writer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert writer.stdout
    assert Path(writer.stdout.readline().rstrip()).exists()
    return writer


def ended(writer: subprocess.Popen[str]) -> None:
    with writer:
        writer.kill()


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """That has looked for nothing yet."""
    monkeypatch.setattr(files, "_swept", set[Path]())


@pytest.mark.skipif(os.name != "posix", reason="elsewhere it is not known who lives")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path: Path, kind: str):
    ended(begun(tmp_path / "a.mp4", kind))
    (left,) = tmp_path.iterdir()
    own = tmp_path / ".flowcept-notes"
    own.write_text("of the user")
    with replacing(tmp_path / "a.mp4") as temporary:
        temporary.write_text("whole")
    assert not left.exists()
    assert sorted(tmp_path.iterdir()) == [own, tmp_path / "a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "whole"


def test_what_a_living_process_or_another_machine_writes_stays(tmp_path: Path):
    writer = begun(tmp_path / "a.mp4")
    (living,) = tmp_path.iterdir()
    here = living.name.split("-")[1]
    elsewhere = tmp_path / living.name.replace(here, "0badcafe").replace(str(writer.pid), "1" * 9)
    elsewhere.write_text("half")
    with replacing(tmp_path / "b.mp4") as temporary:
        temporary.write_text("whole")
    assert living.exists()
    assert elsewhere.exists()
    ended(writer)


def test_one_process_looks_once_for_each_folder(tmp_path: Path):
    for name in ("a", "b"):
        with replacing(tmp_path / name / "x.txt") as temporary:
            temporary.parent.mkdir(exist_ok=True)
            temporary.write_text("whole")
    (tmp_path / "a" / f".flowcept-{files._machine()}-{os.getpid()}-0.txt").write_text("of a thread")
    with replacing(tmp_path / "a" / "y.txt") as temporary:
        temporary.write_text("whole")
    assert len([*(tmp_path / "a").iterdir()]) == 2, "of its own time it is a leftover, once"
    (tmp_path / "a" / f".flowcept-{files._machine()}-{os.getpid()}-1.txt").write_text("of a thread")
    with replacing(tmp_path / "a" / "z.txt") as temporary:
        temporary.write_text("whole")
    assert len([*(tmp_path / "a").iterdir()]) == 4, "now a thread may be writing it"


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.txt"),
        replacing(tmp_path / "a.txt") as one,
    ):
        one.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as one:
        one.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
