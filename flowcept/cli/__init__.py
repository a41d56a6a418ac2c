"""The command line: parse, call, print, exit.

Every command has a file of its own; torch is imported inside commands only, so that help and
completion answer at once.
"""

import errno
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flowcept import __version__
from flowcept.cli import (
    encode,
    evaluate,
    extend,
    gen,
    i2v,
    info,
    interp,
    merge,
    shapes,
    stage,
    train,
)
from flowcept.errors import UserError, suggestion
from flowcept.settings import with_flags
from flowcept.stopping import stoppable

# What is wrong with the flags; the class of the click that Typer uses, its own or the package.
UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # where stdout may go

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Short videos of a length that the model chooses itself.\n\n"
    'Try: flowcept gen "a dog surfing" -o out.mp4',
)


class Command(TyperCommand):
    """A command whose ``--help`` stands at the end of its help, not in a box before all others."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - as Typer has it
        option = super().get_help_option(ctx)
        if option is not None:
            option.help, option.metavar = "show this page", ""
            option.rich_help_panel = "Help"
        return option


COMMANDS = {
    "Make clips": (gen, i2v, interp, extend),
    "Train models": (encode, train, evaluate, merge),
    "Draw clips to train on": (shapes, stage),
    "See what a file is": (info,),
}
for panel, files in COMMANDS.items():
    for file in files:
        run = getattr(file, file.__name__.rpartition(".")[2])
        epilog = getattr(file, "EPILOG", None)
        app.command(cls=Command, rich_help_panel=panel, epilog=epilog)(run)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flowcept {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Short videos of a length that the model chooses itself."""


def main() -> None:
    """Entry point. What the user can mend is one line and status 2; being stopped is status 130."""
    _tell_nobody()
    # Threads that wait must not spin: beside other work they took five times as long. Torch reads
    # this once, when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings(), stoppable():
        # Of large photographs and odd tags; what keeps a picture from being read is an exception.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").addHandler(logging.NullHandler())
        warnings.showwarning = lambda told, *_, **__: typer.echo(f"note: {told}", err=True)
        status, message = _run()
    if message:
        typer.echo(f"flowcept: {message}", err=True)
    sys.exit(status)


def _tell_nobody() -> None:
    """Drop all output if there is no console, as in a service."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, nowhere)


def _run() -> tuple[int, str]:
    """Exit status of the command, and what is wrong, in one line."""
    try:
        status = app(prog_name="flowcept", standalone_mode=False) or 0
    except UserError as error:
        return 2, with_flags(str(error))
    except UsageError as error:
        return 2, _misused(error)
    except (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)):
        return 2, "not enough memory: lower the size or the length, or close other programs"
    except KeyboardInterrupt:
        return 130, "interrupted"
    except OSError as error:
        if error.filename is not None:
            return 2, f"{error.strerror}: {str(error.filename)[:60]}"
        if error.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would be told at the exit
        return 2, f"cannot write to stdout: {error.strerror}"
    return status, "interrupted" if status == 130 else ""


def _misused(error: typer.BadParameter) -> str:
    """What is wrong with the flags, in one line."""
    told = " ".join(error.format_message().split()).rstrip(".")
    page = f": see {error.ctx.command_path} -h" if error.ctx else ""
    if not told or "Did you mean" in told:  # of nothing at all the help is shown
        return told
    if not hasattr(error, "possibilities"):
        return f"{told}{page}"
    unknown: str = getattr(error, "option_name", "")
    meant = suggestion(unknown, getattr(error, "possibilities", None) or ())
    prompts = "; put a prompt that begins with - after --"
    return f"no option {unknown}{meant or page + prompts}"
