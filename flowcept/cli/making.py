"""What the four commands that make clips do alike: names of outputs, bar, preview, results."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

import flowcept
from flowcept.cli.options import RATE, Job, MakeOptions, check_output, temporary_beside
from flowcept.errors import UserError
from flowcept.settings import seeds, with_flags

if TYPE_CHECKING:
    from flowcept.clip import Clip
    from flowcept.generation import Studio
    from flowcept.process.sampler import Step

    Call = Callable[[Studio, dict[str, Any]], Clip]  # asks a studio for a clip

SUFFIX = ".mp4"  # of an output that nobody named
PREVIEW_EVERY = 4  # steps


class Outputs(NamedTuple):
    """Where one clip and its pictures go."""

    clip: Path | None  # None: to a new name, once it is made
    sheet: Path | None
    trace: Path | None


def make_clips(
    options: MakeOptions,
    jobs: Sequence[Job],
    call: Call,
    *,
    inputs: Sequence[Path] = (),
    own_steps: bool = False,
    **room: Any,  # noqa: ANN401
) -> None:
    """Make and write ``options.count`` clips of each job.

    ``own_steps``: in the number of steps that the model has by itself. ``room`` is what the
    controls do not say of the memory that is needed, as ``Studio.estimate`` has it. Raises
    ``UserError`` where an output cannot be written or is an input.
    """
    clips = [clip for job in jobs for clip in _repeated(job, options.count)]
    with to_stdout(options, len(clips)) as own, warnings.catch_warnings():
        outputs = _outputs(own, clips, inputs)
        if own.quiet:
            warnings.simplefilter("ignore")
        studio = _open(own)
        studio.check_task(own.command)
        if own_steps:
            clips = [replace(job, config=studio.usual(job.config)) for job in clips]
        if own.talks:
            most = max(studio.estimate(job.config, own.scale, **room) for job in jobs)
            typer.echo(f"up to about {most / 2**30:.1f} GiB of memory", err=True)
        told = _tell_of_words(studio, own, jobs)
        _make(studio, own, call, zip(clips, outputs, strict=True), told)


def _tell_of_words(studio: Studio, options: MakeOptions, jobs: Sequence[Job]) -> set[str]:
    """What the model makes of the words of prompts, before the work: those notes."""
    readings = ((job.prompt, job.negative_prompt, job.literal) for job in jobs)
    notes = dict.fromkeys(note for reading in readings for note in studio.word_notes(*reading))
    if options.talks:
        for line in notes:
            options.say(f"note: {with_flags(line)}")
    return set(notes)


@contextmanager
def to_stdout(options: MakeOptions, count: int) -> Iterator[MakeOptions]:
    """Where the clip goes to stdout: a file is made first, whole or not at all, and sent then."""
    temporary_beside(options.output)
    if options.output != Path("-"):
        yield options
        return
    if count > 1 or options.as_json:
        raise UserError("stdout takes one clip and nothing beside it: give --output a name")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"clip.{options.format}"
        yield replace(options, output=file, piped=True)
        with file.open("rb") as made:
            shutil.copyfileobj(made, sys.stdout.buffer)
        sys.stdout.flush()


def _make(
    studio: Studio,
    options: MakeOptions,
    call: Call,
    wanted: Iterable[tuple[Job, Outputs]],
    told: set[str],
) -> None:
    """Tell of each clip, or of all as JSON; what is finished when an error comes is told too.

    Notes that were ``told`` are not told again.
    """
    results = []
    try:
        for job, output in wanted:
            with _bar(options, studio, job.config.most_steps) as watch:
                clip = call(studio, job.keywords() | {"watch": watch})
            results.append(_write(options, clip, output, told))
    finally:
        if options.as_json:
            typer.echo(json.dumps(results, indent=1))


def check_rate(fps: float) -> None:
    """Raise ``UserError`` for a playback rate that follows from an input and cannot be written."""
    if not RATE.holds(fps):
        raise UserError(f"{fps:g} frames a second cannot be written: give --fps {RATE.words}")


def _repeated(job: Job, count: int) -> list[Job]:
    """``count`` clips of one job: the first has its seed, the others seeds made from it."""
    if count == 1:
        return [job]
    return [replace(job, seed=seed) for seed in seeds(job.seed, count)]


def _outputs(options: MakeOptions, jobs: Sequence[Job], inputs: Sequence[Path]) -> list[Outputs]:
    """Where each clip goes: of several, those without a name of their own get numbers.

    Raises ``UserError`` where a file cannot be written, is an input, or would hold two things.
    """
    several = len(jobs) > 1
    outputs: list[Outputs] = []
    for number, job in enumerate(jobs, start=1):
        own = None if job.output is None else Path(job.output)
        name = own or options.output
        taken = name in [output.clip for output in outputs]
        if name and ((several and not own) or taken):
            name = numbered(name, number)
        check_output(name or Path(f"flowcept-{options.command}{SUFFIX}"))
        pictures = (
            numbered(path, number) if path and several else path
            for path in (options.sheet, options.trace)
        )
        outputs.append(Outputs(name, *pictures))

    paths, sheets, traces = zip(*outputs, strict=True)
    check_apart([*paths, options.preview, *sheets, *traces], inputs)
    return outputs


def check_apart(files: Iterable[Path | None], inputs: Sequence[Path]) -> None:
    """Raise ``UserError`` where a file to be written is an input, or holds two things."""
    from flowcept.data import video

    read = {path.resolve() for path in inputs}
    taken, touched = set[video.Claim](), set[video.Claim]()
    for path in filter(None, files):
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
    return flowcept.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
        size=options.size,
        base=options.base,
        offload=options.offload,
        fp8=options.fp8,
        tiling=options.tiling,
    )


@contextmanager
def _bar(options: MakeOptions, studio: Studio, steps: int) -> Iterator[Callable[[Step], None]]:
    """A function that shows every step of the sampler."""
    from tqdm import tqdm

    from flowcept.codecs import to_frames
    from flowcept.data import video

    bar = tqdm(total=steps, desc=options.command, unit="step", disable=options.quiet, delay=1)

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


def _write(options: MakeOptions, clip: Clip, output: Outputs, told: set[str]) -> dict[str, Any]:
    """Write the clip and its pictures and say so; the record of it for JSON."""
    path = output.clip or _new_name(options.command, clip.seed)
    changed = clip.save(path, metadata=not options.no_metadata)
    _draw(clip, output)

    height, width = clip.size
    notes = [*clip.notes, *([changed] if changed else [])]
    if options.talks:
        for line in notes:
            if line not in told:
                options.say(f"note: {with_flags(line)}")
        size, rate = f"{width}x{height}", f"{clip.fps:g} fps"
        name = "stdout" if options.piped else path
        options.say(f"{name}: {len(clip)} frames of {size} at {rate}, seed {clip.seed}")
    written = {"output": str(path), "width": width, "height": height}
    written["notes"] = [with_flags(line) for line in notes]
    return clip.settings | written


def _new_name(command: str, seed: int) -> Path:
    """A name that nobody chose replaces nothing."""
    first = Path(f"flowcept-{command}-{seed}{SUFFIX}")
    later = (numbered(first, number) for number in itertools.count(2))
    return next(path for path in itertools.chain([first], later) if not path.exists())


def _draw(clip: Clip, output: Outputs) -> None:
    """Contact sheet and picture of the growth, where asked for."""
    from flowcept.data import video
    from flowcept.evaluation import report

    if output.sheet:
        video.save_image(video.contact_sheet(clip.shown), output.sheet)
    if output.trace:
        shown = enumerate(clip.shown if clip.ends else ())
        thumbnails = [frame_HW3 for number, frame_HW3 in shown if number in clip.ends] or None
        steps = clip.settings["steps"]
        chart = report.growth_chart(clip.growth, clip.order, thumbnails=thumbnails, num_steps=steps)
        video.save_image(chart, output.trace)
