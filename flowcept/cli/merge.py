"""``flowcept merge``: an adapter and its base as one model file."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import helped
from flowcept.errors import UserError


def merge(
    adapter: Annotated[Path, typer.Argument(help="a file that train --lora wrote")],
    output: Annotated[Path, helped("the whole model, a .safetensors file", "--output", "-o")],
) -> None:
    """One file of an adapter and its base: flowcept merge adapter.safetensors -o all.safetensors"""
    if output.suffix != ".safetensors":
        raise UserError(f"--output must be a .safetensors file, not {output}")
    if output.resolve() == adapter.resolve():
        raise UserError(f"{output} is the adapter itself: give the whole model another name")
    from flowcept import adapters

    adapters.merge(adapter, output)
    typer.echo(f"{output}: a whole model")
