"""``flowcept gen``: clips of prompts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.cli.making import make_clips
from flowcept.cli.options import Job, MakeOptions, helped, making
from flowcept.errors import UserError
from flowcept.settings import INPUT, SampleConfig, from_mapping


@making("gen")
def gen(
    options: MakeOptions,
    config: SampleConfig,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="one clip for each", metavar="PROMPT")
    ] = None,
    prompts_file: Annotated[
        Path | None, helped("a file with one prompt per line, or JSON with settings", panel=INPUT)
    ] = None,
) -> None:
    """Make a clip from a prompt.

    flowcept gen "a dog surfing" -o out.mp4
    """
    jobs = [options.job(prompt, config) for prompt in prompts or []]
    if prompts_file is not None:
        jobs += read_jobs(prompts_file, options, config)
    if not jobs:
        raise UserError('no prompt: try flowcept gen "a dog surfing"')
    make_clips(options, jobs, lambda studio, asked: studio.generate(**asked))


def read_jobs(path: Path, options: MakeOptions, config: SampleConfig) -> list[Job]:
    """A job for each line: a prompt, or JSON that begins with {; none for an empty one or # a note.

    Raises ``UserError`` that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # others may stand in a prompt
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the prompts in {path}: save it as UTF-8 text") from error
    jobs = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        try:
            if text.startswith("{"):
                jobs.append(_described(text, options, config))
            elif text and not text.startswith("#"):
                jobs.append(options.job(text, config))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return jobs


def _described(line: str, options: MakeOptions, config: SampleConfig) -> Job:
    """The job of a line of JSON; what it does not say, the flags do."""
    try:
        read = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    values: dict[str, Any] = {name.replace("-", "_"): value for name, value in read.items()}
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise UserError('no prompt: give "prompt": "a dog surfing"')
    if values.get("frames") == "auto":
        values["frames"] = None

    names = ("negative_prompt", "seed", "loop", "literal", "output")
    own = {name: values.pop(name) for name in names if name in values}
    controls = from_mapping(SampleConfig, values, start=config)
    return from_mapping(Job, own, start=options.job(prompt, controls))
