"""``flowcept evaluate``: scores of a model against a folder of clips."""

import json
from collections.abc import Iterator
from dataclasses import Field, asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.cli.options import (
    Base,
    Device,
    Dtype,
    Json,
    Overwrite,
    changes,
    check_file,
    helped,
    in_words,
    takes,
)
from flowcept.settings import INPUT, MODEL, OUTPUT, SEED, SampleConfig, defaults, one_of

TASK = one_of("gen", "i2v")
LENGTHS = ("frames", "min_length", "max_length")  # an evaluation takes those of the real clips


def _controls() -> Iterator[tuple[Field[Any], str, str]]:
    """The sampler's controls, their defaults in words, and their group in the help."""
    plain, between = defaults("gen"), defaults("interp")
    for one in fields(SampleConfig):
        if one.name not in LENGTHS:
            start, there = getattr(plain, one.name), getattr(between, one.name)
            shown = in_words(start)
            if start != there:
                shown += f", {in_words(there)} between frames"
            yield one, shown, one.metadata["panel"] or SampleConfig.panel


@takes(controls=changes(_controls()))
def evaluate(
    controls: dict[str, Any],
    model: Annotated[
        str,
        typer.Argument(help=MODEL, metavar="MODEL"),
    ],
    folder: Annotated[Path, typer.Argument(help="a folder of clips and captions", metavar="DATA")],
    task: Annotated[
        str,
        helped("gen: from captions; i2v: from captions and first frames", rule=TASK, panel=INPUT),
    ] = "gen",
    clips: Annotated[int, helped("number of clips to draw from the folder", panel=INPUT)] = 64,
    features: Annotated[
        Path | None, helped("a TorchScript video network, for Fréchet distances", panel=INPUT)
    ] = None,
    seed: Annotated[
        int, helped("for the draw of clips, the noise and the bootstraps", panel=INPUT, shown="0")
    ] = 0,
    output: Annotated[
        Path | None, helped("write the scores to this .json file", "--output", "-o", panel=OUTPUT)
    ] = None,
    sheet: Annotated[
        Path | None, helped("write a picture of the scores to this .png file", panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    base: Base = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    quiet: Annotated[bool, helped("no progress bars", "--quiet", "-q", panel=OUTPUT)] = False,
) -> None:
    """Score a model against a folder of clips.

    flowcept evaluate theatre data/
    """
    config, between = (replace(defaults(command), **controls) for command in ("gen", "interp"))
    TASK.check("task", task)
    SEED.check("seed", seed)
    check_file("--output", output, (".json",), overwrite)
    check_file("--sheet", sheet, (".png",), overwrite)
    from flowcept import __version__, load
    from flowcept.data import video
    from flowcept.evaluation import evaluate as scorer
    from flowcept.evaluation import report
    from flowcept.evaluation.features import FeatureNetwork
    from flowcept.files import replacing
    from flowcept.training.console import Console

    bar = cache(lambda what: Console(quiet=quiet).progress(what, "clip"))

    studio = load(model, device=device, dtype=dtype, base=base)
    network = FeatureNetwork(features, studio.device) if features else None
    maker = scorer.Maker(studio.name, studio, seed, lambda what, *counts: bar(what)(*counts))
    sheets: list[Any] = []
    scores = scorer.evaluate(
        maker, folder, config, between, task=task, clips=clips, network=network,
        show=lambda *shown: sheets.append(report.side_by_side(*shown)) if sheet else None,
    )  # fmt: skip
    text = json.dumps({"flowcept": __version__, **asdict(scores)}, indent=1)
    if output is not None:
        with replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if sheet is not None:
        picture = report.picture(scores, *sheets)
        video.save_image(picture, sheet, metadata={"flowcept": __version__})
    typer.echo(text if as_json else "\n".join(report.table(scores)))
