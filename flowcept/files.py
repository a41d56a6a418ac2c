"""Files that appear whole or not at all: written under a hidden name first, renamed at the end.

A hidden name says which process of which machine writes it: ``.flowcept-MACHINE-PROCESS-TOKEN``. So
what a killed process left in a folder is told from what a living one writes, and is removed when
something is written there next.
"""

import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowcept.errors import UserError

_LEFT = re.compile(r"\.flowcept-([0-9a-f]+)-([0-9]+)-")
_swept = set[Path]()  # folders where this process has looked for what others left


@contextmanager
def replacing(path: Path, *, numbered: bool = False) -> Iterator[Path]:
    """A hidden temporary name beside `path`, renamed over `path` if the block ends well.

    Missing folders are made. With `numbered` it is to become a folder, whose files are then moved
    out beside it.
    """
    _sweep(path.parent)
    temporary = path.parent / f"{_hidden()}{'' if numbered else path.suffix.lower()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            path.rmdir()  # empty, as `check_output` found
        if numbered:
            for file in sorted(temporary.iterdir()):
                file.rename(path.parent / file.name)
        else:
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _remove(temporary)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A hidden folder in a folder, gone at the end with what is in it."""
    folder = beside / _hidden()
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)


def _hidden() -> str:
    return f".flowcept-{_machine()}-{os.getpid()}-{secrets.token_hex(6)}"


def _machine() -> str:
    """What tells this machine from others that write into the same folder."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, once."""
    if folder in _swept:
        return
    with suppress(OSError):  # it may be about to be made
        for path in list(folder.iterdir()):
            found = _LEFT.match(path.name)
            if found and found[1] == _machine() and not _lives(int(found[2])):
                _remove(path)
        _swept.add(folder)


def _lives(process: int) -> bool:
    """Whether another process is alive, as far as that can be known."""
    if os.name != "posix":
        return True
    if process == os.getpid():  # the number was given again: this one has left nothing here yet
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
