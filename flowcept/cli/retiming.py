"""Whole clips at another frame rate or speed, for ``flowcept interp``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowcept.cli.making import to_stdout
from flowcept.cli.options import MakeOptions
from flowcept.cli.outputs import SUFFIX, check_apart, check_free, is_folder, new_name
from flowcept.errors import UserError, counted
from flowcept.settings import BETWEEN, RetimeConfig, SampleConfig, flag

if TYPE_CHECKING:
    from flowcept.retime import Retimed, Retimer

INTERRUPTED = 130  # exit status


def retimes(
    options: MakeOptions, config: SampleConfig, retiming: RetimeConfig, files: Sequence[Path]
) -> bool:
    """Whether files are clips to be retimed by motion, rather than keyframes of the sampler.

    One clip is keyframes where a flag asks for what the sampler alone does, or its model is another
    one. Raises ``UserError`` where retiming is asked of pictures, of such a model or with such a
    flag.
    """
    from flowcept.data import video

    moving = [video.is_moving(path) for path in files]
    if retiming.asked and not all(moving):
        still = files[moving.index(False)]
        raise UserError(f"{still} is a picture: --target-fps, --slow and --dedupe need clips")
    if not all(moving):
        return False
    for path in files:
        video.probe(path)  # what is wrong with a clip is said before anything of the model
    needed = retiming.asked or len(files) > 1
    flags = _of_the_sampler(options, config)
    if flags and needed:
        raise UserError(f"{flags[0]} has no effect on whole clips: leave it out")
    if flags or not _is_motion(options.model):
        if needed:
            raise UserError("whole clips are retimed by motion: leave out --model and --prompt")
        return False
    return True


def _of_the_sampler(options: MakeOptions, config: SampleConfig) -> list[str]:
    """Flags that were given and that the sampler alone understands."""
    asked = {
        **{name: getattr(config, name) for name in ("frames", "min_length", "max_length")},
        **{name: getattr(options, name) for name in ("scale", "preview", "sheet", "trace")},
        "count": options.count > 1,
        "loop": options.loop,
        "device": options.device not in ("auto", "cpu"),
    }
    return [flag(name) for name, value in asked.items() if value]


def _is_motion(model: str | None) -> bool:
    """Whether a model is one of motion."""
    from flowcept.model_file import read_card
    from flowcept.models import find
    from flowcept.networks.motion import MotionConfig

    found = find(model)
    return not found.is_folder and isinstance(read_card(found.path).network, MotionConfig)


def retime_clips(
    options: MakeOptions,
    config: RetimeConfig,
    clips: Sequence[Path],
    multi: int = 0,
    *,
    silent: bool = False,
) -> None:
    """Write each clip at its new times; of several each gets its own name in the output's folder.

    Ctrl-C keeps what is finished. Raises ``UserError`` where a file cannot be read or written.
    """
    BETWEEN.check("multi", multi)
    if multi and config.target_fps:
        raise UserError("--multi and --target-fps name two rates: leave one out")
    with to_stdout(options, len(clips)) as own:
        stopped = _retime_all(own, config, clips, multi, silent)
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _retime_all(
    options: MakeOptions, config: RetimeConfig, clips: Sequence[Path], multi: int, silent: bool
) -> bool:
    """Write each clip; whether that was interrupted."""
    from flowcept.model_file import load
    from flowcept.models import find
    from flowcept.networks.motion_video import MotionVideo
    from flowcept.retime import Retimer
    from flowcept.stopping import noticed

    outputs = _outputs(options, clips, config)
    check_apart(outputs, clips)
    check_free(outputs, options.overwrite)
    _use_threads(options.threads)
    network = load(find(options.model).path).network
    assert isinstance(network, MotionVideo)
    retimer = Retimer(network.motion, config=config, multi=multi, fps=options.fps, silent=silent)
    results: list[dict[str, Any]] = []
    stopped = False
    try:
        with noticed() as came:
            for number, (clip, output) in enumerate(zip(clips, outputs, strict=True), start=1):
                place = f"{number} of {len(clips)}" if len(clips) > 1 else ""
                label = f"clip {place}" if place else clip.name
                # What was there stays until all of the new clip is: a part has a name of its own.
                file = new_name(_part(output), outputs) if output.exists() else output
                made = _retime(options, retimer, clip, file, label, lambda: bool(came))
                if made.whole:
                    file = file.replace(output)
                results.append(_told(options, file, place, made))
                if came:
                    break
            stopped = bool(came)
    finally:
        if options.as_json:
            typer.echo(json.dumps(results, indent=1))
    return stopped


def _part(output: Path) -> Path:
    return output.with_name(f"{output.stem}-part{output.suffix}")


def _use_threads(threads: int) -> None:
    import cv2
    import torch

    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)


def _retime(
    options: MakeOptions,
    retimer: "Retimer",
    clip: Path,
    output: Path,
    label: str,
    stopped: Callable[[], bool],
) -> "Retimed":
    """One clip, under a bar of its frames."""
    from tqdm import tqdm

    bar = tqdm(desc=label, unit="frame", disable=options.quiet, delay=1)

    def watch(total: int) -> None:
        bar.total = total
        bar.update()

    with bar:
        metadata = not options.no_metadata
        return retimer.retime(clip, output, metadata=metadata, watch=watch, stopped=stopped)


def _told(options: MakeOptions, output: Path, place: str, made: "Retimed") -> dict[str, Any]:
    """Say what was written; the record of it for JSON."""
    if options.talks:
        for line in made.notes:
            options.say(f"note: {line}")
        size, rate = f"{made.width}x{made.height}", f"{made.grid.fps:g} fps"
        name = "stdout" if options.piped else str(output)
        beside = f" ({place})" if place else ""
        options.say(f"{name}{beside}: {counted(made.count, 'frame')} of {size} at {rate}")
    return {
        "output": str(output),
        "frames": made.count,
        "fps": made.grid.fps,
        "width": made.width,
        "height": made.height,
        "notes": made.notes,
    }


def _outputs(options: MakeOptions, clips: Sequence[Path], config: RetimeConfig) -> list[Path]:
    """Where each clip goes: names that nobody chose are new ones."""
    from flowcept.data import video

    named = options.output
    if named is not None and not is_folder(named):
        if len(clips) > 1:
            raise UserError(f"several clips go into a folder: --output clips/, not {named}")
        video.check_output(Path(named))
        return [Path(named)]
    outputs: list[Path] = []
    for clip in clips:
        suffix = options.suffix if options.format else _suffix(clip)
        first = Path(named or "") / f"{clip.stem}{_ending(config)}{suffix}"
        outputs.append(new_name(first, outputs))
    for output in outputs:
        video.check_output(output)
    return outputs


def _ending(config: RetimeConfig) -> str:
    """What is added to the name of a clip."""
    pace = f"-slow{config.slow:g}" if config.slow != 1 else ""
    rate = f"-{config.target_fps:g}fps" if config.target_fps else ""
    return pace + rate or "-smooth"


def _suffix(clip: Path) -> str:
    from flowcept.data import video

    suffix = clip.suffix.lower()
    return suffix if suffix in video.OUTPUT_SUFFIXES - {".png"} else SUFFIX
