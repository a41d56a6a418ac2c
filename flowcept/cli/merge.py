"""``flowcept merge``: an adapter and its base as one model file."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Overwrite, check_file, helped, takes
from flowcept.errors import UserError
from flowcept.settings import OUTPUT


@takes()
def merge(
    adapter: Annotated[
        Path, typer.Argument(help="a file that train --lora wrote", metavar="ADAPTER")
    ],
    output: Annotated[
        Path, helped("the whole model, a .safetensors file", "--output", "-o", panel=OUTPUT)
    ],
    overwrite: Overwrite = False,
) -> None:
    """Make one model of an adapter and its base.

    flowcept merge a.safetensors -o b.safetensors
    """
    if output.resolve() == adapter.resolve():
        raise UserError(f"{output} is the adapter itself: give the whole model another name")
    check_file("--output", output, (".safetensors",), overwrite)
    from flowcept import adapters

    output.parent.mkdir(parents=True, exist_ok=True)
    adapters.merge(adapter, output)
    typer.echo(f"{output}: a whole model")
