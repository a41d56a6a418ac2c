"""``flowcept evaluate``: scores of a model against a folder of clips."""

import json
from collections.abc import Iterator
from dataclasses import Field, asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.cli.options import Device, Dtype, Json, changes, check_file, helped, takes
from flowcept.settings import SEED, SampleConfig, defaults

LENGTHS = ("frames", "min_length", "max_length")  # those of the real clips, in an evaluation


def _controls() -> Iterator[tuple[Field[Any], str, str]]:
    """The sampler's controls, their defaults in words, and their group in the help."""
    plain, between = defaults("gen"), defaults("interp")
    for one in fields(SampleConfig):
        if one.name not in LENGTHS:
            start, there = getattr(plain, one.name), getattr(between, one.name)
            shown = f"{start}" if start == there else f"{start}; {there} between frames"
            yield one, shown, "Options"


@takes(controls=changes(_controls()))
def evaluate(
    controls: dict[str, Any],
    model: Annotated[str, typer.Argument(help="a model file, or the name of a shipped model")],
    folder: Annotated[Path, typer.Argument(help="clips and captions", metavar="DATA")],
    task: Annotated[str, helped("gen: from captions; i2v: from first frames too")] = "gen",
    clips: Annotated[int, helped("of the folder that are drawn")] = 64,
    features: Annotated[Path | None, helped("a TorchScript video network")] = None,
    seed: Annotated[int, helped("of clips, noise and bootstraps")] = 0,
    output: Annotated[Path | None, helped("the scores, a .json file", "--output", "-o")] = None,
    sheet: Annotated[Path | None, helped("their picture, a .png file")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    quiet: Annotated[bool, helped("no progress bars", "--quiet", "-q")] = False,
) -> None:
    """Score a model against a folder of clips: flowcept evaluate theatre data/"""
    config, between = (replace(defaults(command), **controls) for command in ("gen", "interp"))
    SEED.check("seed", seed)
    check_file("--output", output, (".json",))
    check_file("--sheet", sheet, (".png",))
    from flowcept import load, model_file
    from flowcept.data import video
    from flowcept.evaluation import evaluate as scorer
    from flowcept.evaluation import report
    from flowcept.evaluation.features import FeatureNetwork
    from flowcept.training.console import Console

    bar = cache(lambda what: Console(quiet=quiet).progress(what, "clip"))

    studio = load(model, device=device, dtype=dtype)
    network = FeatureNetwork(features, studio.device) if features else None
    maker = scorer.Maker(
        model_file.find(model).name, studio, seed, lambda what, *counts: bar(what)(*counts)
    )
    sheets: list[Any] = []
    scores = scorer.evaluate(
        maker, folder, config, between, task=task, clips=clips, network=network,
        show=lambda *shown: sheets.append(report.side_by_side(*shown)) if sheet else None,
    )  # fmt: skip
    text = json.dumps(asdict(scores), indent=1)
    if output is not None:
        with video.replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if sheet is not None:
        video.save_image(report.picture(scores, *sheets), sheet)
    typer.echo(text if as_json else "\n".join(report.table(scores)))
