"""``flowcept info``: what a model is, or how a clip was made."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept import cards
from flowcept.cli.options import Json, takes
from flowcept.errors import UserError
from flowcept.settings import MODEL


@takes()
def info(
    file: Annotated[
        str,
        typer.Argument(
            help=f"a model ({MODEL}), or a clip or picture made by flowcept", metavar="FILE"
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what a model is, or how a clip was made.

    flowcept info out.mp4
    """
    from flowcept.models import is_named

    is_model = is_named(file)
    record = _of_model(file) if is_model else _of_clip(Path(file))
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    elif is_model:
        typer.echo("\n".join(cards.lines(record)))
    else:
        width = max(map(len, record))
        typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in record.items()))


def _of_model(name: str) -> dict[str, Any]:
    from flowcept.adapters import outline
    from flowcept.model_file import describe
    from flowcept.models import find, shipped_models

    model = find(name)
    shipped = model.path in shipped_models().values()
    return {**describe(model.path, outline(model)), "shipped": shipped}


def _of_clip(file: Path) -> dict[str, Any]:
    from flowcept.data import video

    found = video.read_metadata(file)
    if found is None:
        raise UserError(f"{file} does not say how it was made (not by flowcept, or stripped)")
    if "flowcept" not in found:
        names = ", ".join(found)[:60]
        raise UserError(f"{file} was made by another program, which notes in it: {names}")
    return found | {"sha256_of_frames": video.digest(video.Footage.open(file))}
