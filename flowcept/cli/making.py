"""What the four commands that make clips do alike: names of outputs, bar, preview, results."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import flowcept
from flowcept.cli import like
from flowcept.cli.options import RATE, Job, MakeOptions, temporary_beside
from flowcept.cli.outputs import (
    STDOUT,
    check_apart,
    check_free,
    is_folder,
    new_name,
    numbered,
    slug,
)
from flowcept.errors import UserError, counted
from flowcept.settings import seeds, with_flags

if TYPE_CHECKING:
    from flowcept.clip import Clip
    from flowcept.generation import Studio
    from flowcept.process.sampler import Step

    Call = Callable[[Studio, dict[str, Any]], Clip]  # asks a studio for a clip

PREVIEW_EVERY = 4  # steps of the sampler


@dataclass(frozen=True)
class Outputs:
    """Where one clip and its pictures go."""

    clip: Path
    sheet: Path | None
    trace: Path | None
    place: str = ""  # among several clips: 3 of 12


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
        _tell_of_differences(studio, own)
        if own_steps:
            clips = [replace(job, config=studio.usual(job.config)) for job in clips]
        if own.talks:
            most = max(studio.estimate(job.config, own.scale, **room) for job in jobs)
            typer.echo(f"needs up to about {most / 2**30:.1f} GiB of memory", err=True)
        told = _tell_of_words(studio, own, jobs)
        _make(studio, own, call, zip(clips, outputs, strict=True), told)


def _tell_of_differences(studio: Studio, options: MakeOptions) -> None:
    """Print in one line why a clip that is made again may differ."""
    if options.like is not None and options.talks:
        told = like.difference(like.read(options.like), studio.origin)
        if told:
            options.say(f"note: this may not be the same clip as {options.like}: {told}")


def _tell_of_words(studio: Studio, options: MakeOptions, jobs: Sequence[Job]) -> set[str]:
    """Print notes on the words of the prompts before the work, and return them."""
    readings = ((job.prompt, job.negative_prompt, job.literal) for job in jobs)
    notes = dict.fromkeys(note for reading in readings for note in studio.word_notes(*reading))
    if options.talks:
        for line in notes:
            options.say(f"note: {with_flags(line)}")
    return set(notes)


@contextmanager
def to_stdout(options: MakeOptions, count: int) -> Iterator[MakeOptions]:
    """Where the clip goes to stdout: a file is made first, whole or not at all, and sent then."""
    temporary_beside(Path(options.output) if options.output else None)
    if options.output != STDOUT:
        yield options
        return
    if count > 1 or options.as_json:
        raise UserError("stdout takes one clip and nothing else: give --output a name")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"clip{options.suffix}"
        yield replace(options, output=str(file), piped=True)
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
    """Print a line for each clip, or JSON for all; on an error, also what is finished.

    Notes in ``told`` were printed before and are not printed again.
    """
    results = []
    try:
        for job, output in wanted:
            with _bar(options, studio, job, output.place) as watch:
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
    return [replace(job, seed=seed) for seed in seeds(job.seed, count)]


def _outputs(options: MakeOptions, jobs: Sequence[Job], inputs: Sequence[Path]) -> list[Outputs]:
    """Where each clip goes; of several, those that would have one name get numbers.

    Raises ``UserError`` where a file cannot be written, is an input, is not ours to replace, or
    would hold two things.
    """
    from flowcept.data import video

    several = len(jobs) > 1
    clips: list[Path] = []
    for number, job in enumerate(jobs, start=1):
        clip = _clip_file(options, job, inputs, clips)
        if clip in clips or (several and clip == _named(options)):
            clip = numbered(clip, number)
        video.check_output(clip)
        clips.append(clip)

    outputs = []
    for number, clip in enumerate(clips, start=1):
        sheet, trace = (
            numbered(path, number) if path and several else path
            for path in (options.sheet, options.trace)
        )
        place = f"{number} of {len(clips)}" if several else ""
        outputs.append(Outputs(clip, sheet, trace, place))

    sheets, traces = [one.sheet for one in outputs], [one.trace for one in outputs]
    files = [*clips, options.preview, *sheets, *traces]
    check_apart(files, inputs)
    check_free(files, options.overwrite)
    return outputs


def _named(options: MakeOptions) -> Path | None:
    """The file that ``--output`` names, if it names one."""
    named = options.output and not is_folder(options.output)
    return Path(options.output or "") if named else None


def _clip_file(
    options: MakeOptions, job: Job, inputs: Sequence[Path], taken: Sequence[Path]
) -> Path:
    """Where a clip goes: to the name that is given, or to one made from its prompt and seed."""
    text = job.output or options.output
    if text and not is_folder(text):
        return Path(text)
    words = slug(job.prompt) or (slug(inputs[0].stem) if inputs else "") or options.command
    return new_name(Path(text or "") / f"{words}-{job.seed}{options.suffix}", taken)


def _open(options: MakeOptions) -> Studio:
    """The model, on its device; this imports torch.

    Raises ``UserError`` before it is loaded where it is not for the command.
    """
    import torch

    from flowcept.adapters import tasks_of
    from flowcept.device import pick_device, pick_dtype
    from flowcept.models import check_task, find

    if options.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of downloads
    if options.threads:
        torch.set_num_threads(options.threads)
    pick_dtype(options.dtype, pick_device(options.device))  # what is wrong with them comes first
    found = find(options.model)
    check_task(options.command, found.name, tasks_of(found), pretrained=found.is_folder)
    return flowcept.load(
        found,
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
def _bar(
    options: MakeOptions, studio: Studio, job: Job, place: str
) -> Iterator[Callable[[Step], None]]:
    """A function that shows every step of the sampler, in steps as ``--steps`` counts them.

    Frames come one after another and each takes all steps, so that the sampler takes more of its
    own. A clip may be made in parts: windows, and a way back.
    """
    from tqdm import tqdm

    steps, most = job.config.steps, job.config.most_steps
    label = f"clip {place}" if place else options.command
    bar = tqdm(total=steps, desc=label, unit="step", disable=options.quiet, delay=1)
    parts = 0

    def watch(step: Step) -> None:
        nonlocal parts
        if step.index == 0:
            parts += 1
            bar.set_description(f"{label}, part {parts}" if parts > 1 else label, refresh=False)
        length = step.state.lengths[0]
        bar.set_postfix_str(f"{length} frames", refresh=False)
        done = steps if not step.running else steps * step.index // most
        bar.update(done - bar.n)
        if options.preview and step.index % PREVIEW_EVERY == 0 and length:
            _preview(studio, step, options)

    with bar:
        yield watch


def _preview(studio: Studio, step: Step, options: MakeOptions) -> None:
    """Show the clip as it is now."""
    from flowcept.codecs import to_frames
    from flowcept.data import video

    assert options.preview is not None
    frames_FHW3 = to_frames(studio.codec.decode(step.state.latent_FCHW))
    signature = _signature(options)
    video.write_video(options.preview, frames_FHW3, studio.card.fps, metadata=signature)


def _signature(options: MakeOptions) -> dict[str, object] | None:
    """The mark that flowcept made a picture, so that it may replace it."""
    return None if options.no_metadata else {"flowcept": flowcept.__version__}


def _write(options: MakeOptions, clip: Clip, output: Outputs, told: set[str]) -> dict[str, Any]:
    """Write the clip and its pictures and say so; the record of it for JSON."""
    changed = clip.save(output.clip, metadata=not options.no_metadata)
    _draw(clip, output, _signature(options))

    height, width = clip.size
    notes = [*clip.notes, *([changed] if changed else [])]
    if options.talks:
        for line in notes:
            if line not in told:
                options.say(f"note: {with_flags(line)}")
        size, rate = f"{width}x{height}", f"{clip.fps:g} fps"
        name = "stdout" if options.piped else str(output.clip)
        place = f" ({output.place})" if output.place else ""
        frames = counted(len(clip), "frame")
        options.say(f"{name}{place}: {frames} of {size} at {rate}, seed {clip.seed}")
    written = {"output": str(output.clip), "width": width, "height": height}
    written["notes"] = [with_flags(line) for line in notes]
    return clip.settings | written


def _draw(clip: Clip, output: Outputs, signature: Mapping[str, object] | None) -> None:
    """Contact sheet and picture of the growth, where asked for."""
    from flowcept.data import video
    from flowcept.evaluation import report

    if output.sheet:
        video.save_image(video.contact_sheet(clip.shown), output.sheet, metadata=signature)
    if output.trace:
        shown = enumerate(clip.shown if clip.ends else ())
        thumbnails = [frame_HW3 for number, frame_HW3 in shown if number in clip.ends] or None
        steps = clip.settings["steps"]
        chart = report.growth_chart(clip.growth, clip.order, thumbnails=thumbnails, num_steps=steps)
        video.save_image(chart, output.trace, metadata=signature)
