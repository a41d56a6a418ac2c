"""Errors meant for the user: one line that says what is wrong and what to do.

The library's lines, notes too, speak Python: a keyword stands in backquotes, with its value or
without, as in `seed` and `guidance=2`. The command line says them ``settings.with_flags``.
"""

from collections.abc import Iterable
from difflib import get_close_matches

NEAR = 0.7  # how alike two words are, of 1: --wrong and --json are 0.62


class UserError(Exception):
    """Something that the user can fix is wrong: a file, a setting, the machine.

    The message is one line that says what to do. The command line prints it and exits with
    status 2; a caller from Python may catch it. Any other exception is a bug.
    """


def suggestion(word: str, known: Iterable[str]) -> str:
    """``": did you mean steps?"`` for a word that is nearly a known one, else ``""``.

    Of three letters all words are near to some other: gpu to cpu.
    """
    near = get_close_matches(word, list(known), n=1, cutoff=NEAR) if len(word) > 3 else []
    return f": did you mean {near[0]}?" if near else ""


def counted(number: int, what: str) -> str:
    """``3 frames``, ``1 frame``, ``1,000 frames``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def not_finite() -> UserError:
    """The error of a network or codec whose numbers overflow."""
    return UserError(
        "the model gives values that are not finite: get its file again, or compute in float32"
    )
