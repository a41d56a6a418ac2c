"""The command line: parse, call, print, exit.

Every command has a file of its own; torch is imported inside commands only, so that help and
completion answer at once.
"""

import errno
import io
import sys
import warnings
from typing import Annotated

import typer

from flowcept import __version__
from flowcept.cli import evaluate, extend, gen, i2v, info, interp, merge, theatre, train
from flowcept.errors import UserError

# What is wrong with the flags; the class of the click that Typer uses, its own or the package.
UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Short videos of a length that the model chooses itself. "
    'Try: flowcept gen "a dog surfing" -o out.mp4',
)
for file in (gen, i2v, interp, extend, train, merge, evaluate, info, theatre):
    app.command()(getattr(file, file.__name__.rpartition(".")[2]))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flowcept {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="the version")
    ] = False,
) -> None:
    """Short videos of a length that the model chooses itself."""


def main() -> None:
    """Entry point. What the user can mend is one line and status 2; Ctrl-C is status 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda told, *_, **__: typer.echo(f"note: {told}", err=True)
        status, message = _run()
    if message:
        typer.echo(f"flowcept: {message}", err=True)
    sys.exit(status)


def _run() -> tuple[int, str]:
    """Exit status of the command, and what is wrong, in one line."""
    try:
        status = app(prog_name="flowcept", standalone_mode=False) or 0
    except UserError as error:
        return 2, str(error)
    except UsageError as error:
        return 2, " ".join(error.format_message().split())
    except (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)):
        return 2, "not enough memory: ask for less at once, or close other programs"
    except OSError as error:
        if error.errno == errno.EPIPE or error.filename is None:
            raise
        return 2, f"{error.strerror}: {str(error.filename)[:60]}"
    return status, "interrupted" if status == 130 else ""
