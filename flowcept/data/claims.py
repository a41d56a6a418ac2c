"""Work that several processes share: whoever holds a file's lock does what the file stands for.

The system itself takes a lock back when its process ends, however it ends. So no claim outlives
whoever made it, and none has to be judged by its age.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flowcept.errors import UserError

POLL = 0.5  # seconds between looks at what others are doing


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the lock of a file is this process's now, until the end of the block.

    Raises ``UserError`` where the disk has no locks.
    """
    with path.open("ab") as file:
        try:
            own = _lock(file)
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror}; use another disk") from error
        yield own


def _lock(file: BinaryIO) -> bool:
    """Lock an open file unless another process has done so."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Within, no other process is within a block of the same file."""
    while True:
        with claimed(path) as own:
            if own:
                yield
                return
        time.sleep(POLL)


def shared_out(paths: Sequence[Path], make: Callable[[Path], None]) -> None:
    """Make all files, together with other processes; those that are there are whole.

    ``make`` writes a file whole or not at all. Returns when all are there, so that what another
    process leaves undone is done here.
    """
    while missing := [path for path in paths if not path.exists()]:
        made = [path for path in missing if _made(path, make)]
        if not made:
            time.sleep(POLL)


def _made(path: Path, make: Callable[[Path], None]) -> bool:
    """Whether the file was this process's to make."""
    lock = path.with_suffix(".lock")
    with claimed(lock) as own:
        made = own and not path.exists()
        if made:
            make(path)
    if own:  # whoever takes the lock from here on finds the file there
        with suppress(OSError):
            lock.unlink()
    return made
