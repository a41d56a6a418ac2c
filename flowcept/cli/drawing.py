"""What the two commands that draw clips to train on do alike: flags, bar, last line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import helped
from flowcept.settings import OUTPUT, within

SIDES = within(16, 1024)

Out = Annotated[Path, typer.Argument(help="a new folder for the clips", metavar="DATA")]
Clips = Annotated[int, helped("number of clips", panel=OUTPUT)]
Size = Annotated[int, helped("pixels along each side", rule=SIDES, panel=OUTPUT)]
Seed = Annotated[int, helped("the same seed draws the same clips", panel=OUTPUT, shown="0")]


@contextmanager
def drawing(what: str, out: Path, clips: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar, as a function of how many clips are drawn; at the end the command that comes next."""
    from tqdm import tqdm

    with tqdm(total=clips, desc=what, unit="clip", disable=quiet, delay=1) as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        yield progress
    if not quiet:
        typer.echo(f"{out}: {clips} clips; next: flowcept train {out}")
