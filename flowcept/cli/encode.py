"""``flowcept encode``: encode clips and captions once, as latents and embeddings, to train on."""

from pathlib import Path
from typing import Annotated

import typer

from flowcept.cli.options import Quiet, helped, record, takes
from flowcept.errors import UserError
from flowcept.settings import OUTPUT, EncodeSettings


@takes(settings=record(EncodeSettings()))
def encode(
    settings: EncodeSettings,
    folder: Annotated[Path, typer.Argument(help="clips, with or without captions", metavar="DATA")],
    out: Annotated[Path, helped("folder of the shards", "--output", "-o", panel=OUTPUT)] = Path(
        "shards"
    ),
    quiet: Quiet = False,
) -> None:
    """Encode clips once, to train on.

    flowcept encode clips/ -o shards/ --codec LTX-Video/

    Run it again to continue where it stopped; run it several times at once to share the work.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give a folder of clips")
    if not settings.codec:
        raise UserError("--codec is missing: give a diffusers folder, a model file, or theatre")
    from flowcept.training import encoding

    try:
        encoding.encode(folder, out, settings, quiet=quiet, console=typer.echo)
    except KeyboardInterrupt:
        if (out / "index.json").exists():
            typer.echo("to continue: run the same command again")
        raise
    if not quiet:
        beside = " --lora 32" if settings.text else ""
        typer.echo(f"next: flowcept train {out} --init {settings.codec}{beside}")
