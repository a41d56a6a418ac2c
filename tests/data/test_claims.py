"""Work that processes share: each file is made once, and what a dead process left is taken over."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowcept.data import claims
from flowcept.data.claims import claimed, shared_out
from flowcept.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from flowcept.data.claims import claimed
with claimed(Path(sys.argv[1])) as own:
    print(own, flush=True)
    time.sleep(60)
"""
SHARE = """
import sys, time
from pathlib import Path
from flowcept.data import claims
claims.POLL = 0.01
def make(path):
    time.sleep(0.02)
    with open(path.parent / "made", "a") as log:
        log.write(f"{path.name} {sys.argv[2]}\\n")
    path.touch()
claims.shared_out([Path(sys.argv[1]) / f"{n}.bin" for n in range(20)], make)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Another process that holds a lock until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_claim_ends_with_its_process(tmp_path: Path, holder: Callable):
    lock = tmp_path / "a.lock"
    other = holder(lock)
    with claimed(lock) as own:
        assert not own
    other.kill()  # as the system does it where memory is short
    other.wait()
    with claimed(lock) as own:
        assert own
        with claimed(lock) as again:
            assert not again
    with claimed(lock) as own:
        assert own


def test_what_another_process_leaves_undone_is_done_here(
    tmp_path: Path, holder: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claims, "POLL", 0.01)
    other, made = holder(tmp_path / "1.lock"), list[str]()

    def make(path: Path) -> None:
        made.append(path.name)
        path.touch()
        if len(made) == 2:
            other.kill()

    paths = [tmp_path / f"{number}.bin" for number in range(3)]
    shared_out(paths, make)
    assert made == ["0.bin", "2.bin", "1.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.bin", "1.bin", "2.bin"]


def test_processes_share_without_doing_anything_twice(tmp_path: Path):
    command = [sys.executable, "-c", SHARE, str(tmp_path)]
    running = [subprocess.Popen([*command, name]) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    lines = [line.split() for line in (tmp_path / "made").read_text().splitlines()]
    assert sorted(name for name, _ in lines) == sorted(f"{number}.bin" for number in range(20))
    assert len({who for _, who in lines}) > 1
    assert not list(tmp_path.glob("*.lock"))


def test_an_error_gives_the_claim_back(tmp_path: Path):
    def fail(path: Path) -> None:
        raise UserError(f"no room for {path.name}")

    with pytest.raises(UserError, match="no room"):
        shared_out([tmp_path / "0.bin"], fail)
    began = time.monotonic()
    shared_out([tmp_path / "0.bin"], Path.touch)
    assert time.monotonic() - began < 5
