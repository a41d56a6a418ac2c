"""What the four commands that make clips do alike: names of outputs, bar, preview, results."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import flowcept
from flowcept.cli.options import RATE, Job, MakeOptions, check_output
from flowcept.errors import UserError
from flowcept.settings import mixed, random_seed

if TYPE_CHECKING:
    from flowcept.generation import Clip, Studio
    from flowcept.process.sampler import Step

SUFFIX = ".mp4"  # of an output that nobody named
PREVIEW_EVERY = 4  # steps


def make_clips(
    command: str,
    options: MakeOptions,
    jobs: Sequence[Job],
    call: Callable[[Studio, str, dict[str, Any]], Clip],
    *,
    inputs: Sequence[Path] = (),
    least: int = 1,
) -> None:
    """Make and write ``options.count`` clips of each job; tell of each, or all as JSON at the end.

    ``call`` asks a studio for a clip. ``least`` frames are sampled at once, whatever the controls
    say. What is finished when an error comes is kept and told. Raises ``UserError`` where an output
    cannot be written or is an input.
    """
    clips = [clip for job in jobs for clip in _repeated(job, options.count)]
    names = output_names(command, options, clips, inputs)
    results: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        if options.quiet:
            warnings.simplefilter("ignore")
        studio = _open(options)
        if not options.quiet and not options.as_json:
            most = max(studio.estimate(job.config, options.scale, least) for job in jobs)
            typer.echo(f"up to about {most / 2**30:.1f} GiB of memory", err=True)
        try:
            for number, (job, name) in enumerate(zip(clips, names, strict=True), start=1):
                with _bar(command, options, studio, job.config.steps) as watch:
                    rest = {
                        "config": job.config, "negative_prompt": job.negative_prompt,
                        "seed": job.seed, "fps": options.fps, "scale": options.scale,
                        "watch": watch,
                    }  # fmt: skip
                    clip = call(studio, job.prompt, rest)
                results.append(_write(command, options, clip, name, number, len(clips)))
        finally:
            if options.as_json:
                typer.echo(json.dumps(results, ensure_ascii=False, indent=1))


def check_rate(fps: float) -> None:
    """Raise ``UserError`` for a playback rate that follows from an input and cannot be written."""
    if not RATE.holds(fps):
        raise UserError(f"{fps:g} frames a second cannot be written: give --fps {RATE.words}")


def _repeated(job: Job, count: int) -> list[Job]:
    """``count`` clips of one job: the first has its seed, the others seeds made from it."""
    if count == 1:
        return [job]
    first = random_seed() if job.seed is None else job.seed
    later = [mixed(first, "count", number) for number in range(1, count)]
    return [replace(job, seed=seed) for seed in [first, *later]]


def output_names(
    command: str, options: MakeOptions, jobs: Sequence[Job], inputs: Sequence[Path] = ()
) -> list[Path | None]:
    """Where each clip goes; None: to a new name, once it is made.

    Raises ``UserError`` where any two of all files to be written are one, or one is an input.
    """
    several = len(jobs) > 1
    clips: list[Path | None] = []
    for number, job in enumerate(jobs, start=1):
        name = job.own or options.output
        if name and ((job.own is None and several) or name in clips):
            name = numbered(name, number)
        check_output(name or Path(f"flowcept-{command}{SUFFIX}"))
        clips.append(name)

    files = [path for path in (*clips, options.preview) if path is not None]
    for picture in (options.sheet, options.trace):
        if picture is not None:
            numbers = range(1, len(jobs) + 1)
            files += [numbered(picture, n) for n in numbers] if several else [picture]
    _check_apart(files, inputs)
    return clips


def _check_apart(files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ``UserError`` where a file to be written is an input, or holds two things."""
    from flowcept.data import video

    read = {path.resolve() for path in inputs}
    taken, touched = set[video.Claim](), set[video.Claim]()
    for path in files:
        if path.resolve() in read:
            raise UserError(f"{path} is what is read: give what is written another name")
        takes, touches = video.claims(path)
        if takes & touched or touches & taken:
            raise UserError(f"{path} is to hold two things: give each output its own name")
        taken |= takes
        touched |= touches


def numbered(path: Path, number: int) -> Path:
    """``out.mp4`` becomes ``out-1.mp4``; a folder gets the number at its end."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _open(options: MakeOptions) -> Studio:
    """The model, on its device; this imports torch."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = options.device, options.dtype
    return flowcept.load(options.model, device=device, dtype=dtype, compile=options.compile)


@contextmanager
def _bar(
    command: str, options: MakeOptions, studio: Studio, steps: int
) -> Iterator[Callable[[Step], None]]:
    """A function that shows every step of the sampler."""
    from tqdm import tqdm

    from flowcept.codecs import to_frames
    from flowcept.data import video

    bar = tqdm(total=2 * steps, desc=command, unit="step", disable=options.quiet, delay=1)

    def watch(step: Step) -> None:
        if step.index:
            bar.update()
        else:  # a task may take several windows
            bar.n = bar.last_print_n = 0  # bar.reset() would show the bar at once
        length = step.state.lengths[0]
        bar.set_postfix_str(f"{length} frames", refresh=False)
        if options.preview and step.index % PREVIEW_EVERY == 0 and length:
            frames_FHW3 = to_frames(studio.codec.decode(step.state.latent_FCHW))
            video.write_video(options.preview, frames_FHW3, studio.card.fps)

    with bar:
        yield watch


def _write(
    command: str, options: MakeOptions, clip: Clip, name: Path | None, number: int, total: int
) -> dict[str, Any]:
    """Write the clip and its pictures and say so; the record of it for JSON."""
    path = name or _new_name(command, clip.seed)
    changed = clip.save(path, metadata=not options.no_metadata)
    _draw(options, clip, number if total > 1 else 0)

    height, width = clip.frames_FHW3.shape[1:3]
    notes = [*clip.notes, *([changed] if changed else [])]
    if not options.quiet and not options.as_json:
        for line in notes:
            typer.echo(f"note: {line}")
        size, rate = f"{width}x{height}", f"{clip.fps:g} fps"
        typer.echo(f"{path}: {len(clip)} frames of {size} at {rate}, seed {clip.seed}")
    written = {"output": str(path), "width": width, "height": height, "notes": notes}
    return clip.settings | written


def _new_name(command: str, seed: int) -> Path:
    """A name that nobody chose replaces nothing."""
    first = Path(f"flowcept-{command}-{seed}{SUFFIX}")
    later = (numbered(first, number) for number in itertools.count(2))
    return next(path for path in itertools.chain([first], later) if not path.exists())


def _draw(options: MakeOptions, clip: Clip, number: int) -> None:
    """Contact sheet and picture of the growth, with this number in their names unless it is 0."""
    from flowcept.data import video
    from flowcept.evaluation import report

    sheet, trace = (
        numbered(path, number) if path and number else path
        for path in (options.sheet, options.trace)
    )
    if sheet:
        video.save_image(video.contact_sheet(clip.frames_FHW3), sheet)
    if trace:
        thumbnails = [clip.frames_FHW3[end] for end in clip.ends] or None
        growth, order, steps = clip.growth, clip.order, clip.settings["steps"]
        chart = report.growth_chart(growth, order, thumbnails=thumbnails, num_steps=steps)
        video.save_image(chart, trace)
