"""``flowcept info``: what a model is, or how a clip was made."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept import cards
from flowcept.cli.options import Json
from flowcept.errors import UserError


def info(
    file: Annotated[Path, typer.Argument(help="a model, or a clip or picture made by flowcept")],
    as_json: Json = False,
) -> None:
    """Say what a model is, or how a clip was made: flowcept info out.mp4"""
    is_model = file.suffix == ".safetensors" or not (file.exists() or file.suffix)
    if is_model:
        import torch

        from flowcept import model_file
        from flowcept.adapters import open_model

        path = model_file.find(str(file))
        record = model_file.describe(path, open_model(path, torch.float32))
    else:
        record = _of_clip(file)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    elif is_model:
        typer.echo("\n".join(cards.lines(record)))
    else:
        width = max(map(len, record))
        typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in record.items()))


def _of_clip(file: Path) -> dict[str, Any]:
    from flowcept.data import video

    found = video.read_metadata(file)
    if found is None:
        raise UserError(f"{file} does not say how it was made (not by flowcept, or stripped)")
    if "flowcept" not in found:
        names = ", ".join(found)[:60]
        raise UserError(f"{file} was made by another program, which notes in it: {names}")
    return found | {"sha256_of_frames": video.digest(video.Footage.open(file))}
