"""``flowcept merge``: an adapter and its base as one model file, or its matrices alone."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Base, Overwrite, check_file, helped, takes
from flowcept.errors import UserError
from flowcept.settings import OUTPUT


@takes()
def merge(
    adapter: Annotated[
        str,
        typer.Argument(
            help="a file that train --lora wrote, or the run's folder", metavar="ADAPTER"
        ),
    ],
    output: Annotated[
        Path, helped("the .safetensors file to write", "--output", "-o", panel=OUTPUT)
    ],
    base: Base = None,
    lora_only: Annotated[
        bool,
        helped("write only the LoRA, as diffusers and others read it", "--lora-only", panel=OUTPUT),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make one model file of an adapter and its base.

    flowcept merge run/ -o whole.safetensors
    """
    check_file("--output", output, (".safetensors",), overwrite)
    from flowcept import adapters
    from flowcept.hub import parse
    from flowcept.models import find

    if parse(adapter) and not Path(adapter).exists():
        raise UserError(f"no adapter {adapter}: give a file that flowcept train --lora wrote")
    found = find(adapter)
    if found.is_folder:
        raise UserError(
            f"{adapter} is a pretrained model, not an adapter: there is nothing to merge"
        )
    if output.resolve() == found.path.resolve():
        raise UserError(f"{output} is the adapter itself: give the output another name")
    if lora_only:
        adapters.export_lora(found.path, output)
        typer.echo(f"{output}: the LoRA alone, for pipelines of diffusers")
        return
    adapters.merge(found.path, output, base)
    typer.echo(f"{output}: a whole model")
