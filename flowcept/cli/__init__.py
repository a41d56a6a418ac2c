"""The command line: parse, call, print, exit.

torch is imported inside commands only, so that help and completion answer at once. Flags are made
from the settings' own records (``settings.py``); what a command does is in ``tasks.py``,
``train.py`` and ``theatre.py``.
"""

from __future__ import annotations

import errno
import inspect
import io
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcept import __version__
from flowcept.errors import UserError
from flowcept.settings import (
    FASTEST,
    FITS,
    SLOWEST,
    SampleConfig,
    TrainConfig,
    check_keyframes,
    defaults,
    leaf_fields,
    random_seed,
)

if TYPE_CHECKING:
    from flowcept.generation import Clip, Studio
    from flowcept.process.sampler import Step

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Short videos of a length that the model chooses itself. "
    'Try: flowcept gen "a dog surfing" -o out.mp4',
)

KINDS: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "int | None": int | None,
}
SUFFIX = ".mp4"  # of an output without a name
# What is wrong with the flags; the class of the click that typer uses, its own or the package.
Usage: type[typer.BadParameter] = typer.BadParameter.__bases__[0]


@dataclass(frozen=True)
class Shared:
    """Flags of every generating command beside those of the sampler."""

    model: str | None
    output: Path | None
    negative_prompt: str
    seed: int | None
    count: int
    fps: float | None
    scale: int | None
    device: str
    dtype: str
    compile: bool
    threads: int
    preview: Path | None
    sheet: Path | None
    trace: Path | None
    as_json: bool
    quiet: bool
    no_metadata: bool


SHARED: dict[str, tuple[Any, Any]] = {
    "model": (
        str | None,
        typer.Option(
            None, "-m", "--model", envvar="FLOWCEPT_MODEL", help="a file or a shipped name"
        ),
    ),
    "output": (
        Path | None,
        typer.Option(
            None,
            "-o",
            "--output",
            help="mp4, webm, mov, gif, webp or apng; a folder or %04d.png for frames",
        ),
    ),
    "negative_prompt": (
        str,
        typer.Option("", "-n", "--negative-prompt", help="what to lead away from"),
    ),
    "seed": (int | None, typer.Option(None, "--seed", help="by default random; always told")),
    "count": (int, typer.Option(1, "--count", help="clips per prompt, of seeds one apart")),
    "fps": (float | None, typer.Option(None, "--fps", help="playback rate; default the model's")),
    "scale": (
        int | None,
        typer.Option(None, "--scale", help="enlarge by a whole number; default to 256 pixels"),
    ),
    "device": (str, typer.Option("auto", "--device", help="auto, cpu, cuda or mps")),
    "dtype": (
        str,
        typer.Option("auto", "--dtype", help="auto, float32, bfloat16 or float16"),
    ),
    "compile": (
        bool,
        typer.Option(False, "--compile", help="torch.compile of the blocks; pays for many clips"),
    ),
    "threads": (int, typer.Option(0, "--threads", help="of the processor; 0: as many as it has")),
    "preview": (
        Path | None,
        typer.Option(None, "--preview", help="a file that is rewritten while sampling"),
    ),
    "sheet": (Path | None, typer.Option(None, "--sheet", help="contact sheet, a .png file")),
    "trace": (
        Path | None,
        typer.Option(None, "--trace", help="picture of the growth, a .png file"),
    ),
    "as_json": (bool, typer.Option(False, "--json", help="the result as JSON on stdout")),
    "quiet": (bool, typer.Option(False, "-q", "--quiet", help="errors only")),
    "no_metadata": (
        bool,
        typer.Option(False, "--no-metadata", help="write no settings into the file"),
    ),
}


def _frames(value: str) -> str:
    """``auto`` or a whole number of frames."""
    number = value.isascii() and value.isdigit() and len(value) < 20 and int(value) > 0
    if value != "auto" and not number:
        raise UserError(f"--frames must be auto or a number of at least 1, not {value[:20]!r}")
    return value


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:  # noqa: ANN401
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _sampler_flags(command: str) -> list[inspect.Parameter]:
    flags, start = [], defaults(command)
    for one in fields(SampleConfig):
        flag, meaning = "--" + one.name.replace("_", "-"), one.metadata["help"]
        if one.name == "frames":
            option = typer.Option("auto", flag, help=meaning, metavar="auto|N")
            flags.append(_parameter("frames", str, option))
        elif one.name != "insertion":  # for benchmarks, from Python
            kind = KINDS[str(one.type)]
            flag += f"/--no-{flag[2:]}" if kind is bool else ""
            option = typer.Option(getattr(start, one.name), flag, help=meaning)
            flags.append(_parameter(one.name, kind, option))
    return flags


def _with_flags(
    flags: Sequence[inspect.Parameter],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command more keyword flags than its own; it gets them as ``**settings``."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

        def run(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            command(*args, **kwargs)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + list(flags)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return wrap


def _sampling(command: str) -> list[inspect.Parameter]:
    """The flags of a generating command beside its own."""
    return [*(_parameter(name, *kind) for name, kind in SHARED.items()), *_sampler_flags(command)]


Fit = Annotated[
    str, typer.Option("--fit", help="how a picture gets the model's size: crop, pad, stretch")
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact/--no-exact", help="your own pixels in the given frames; default if sizes match"
    ),
]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="what happens in the clip")]


class Session:
    """One run of a generating command: its flags, its model, what it has written."""

    def __init__(self, command: str, settings: dict[str, Any]) -> None:
        self.command = command
        shared = Shared(**{name: settings.pop(name) for name in SHARED})
        if shared.seed is None and shared.count > 1:
            shared = replace(shared, seed=random_seed())  # theirs are one apart
        self.shared = shared
        frames = _frames(settings.pop("frames"))
        self.controls = settings | {"frames": None if frames == "auto" else int(frames)}
        self.results: list[dict[str, Any]] = []
        self.told = 0.0  # bytes that were estimated
        self.least = 1  # frames that the sampler holds at once, whatever the controls say
        self._check()

    def _check(self) -> None:
        """Everything that can be wrong without a model, before one is loaded."""
        from flowcept.data import video

        shared = self.shared
        SampleConfig(**self.controls)
        for flag, number, low, high in (
            ("--count", shared.count, 1, 10_000),
            ("--scale", shared.scale, 1, 64),
            ("--fps", shared.fps, SLOWEST, FASTEST),
            ("--threads", shared.threads, 0, 1024),
        ):
            if number is not None and not low <= number <= high:
                raise UserError(f"{flag} must be from {low} to {high}, not {number}")
        _check_seed(shared.seed)
        for path in (shared.output, shared.preview):
            if path is not None:
                video.check_output(path)
        if shared.preview is not None and shared.preview.suffix.lower() in ("", ".png"):
            raise UserError(f"--preview must be one file, such as preview.mp4: {shared.preview}")
        for flag, picture in (("--sheet", shared.sheet), ("--trace", shared.trace)):
            if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
                raise UserError(f"{flag} must be a .png file, not {picture}")
            if picture is not None and not picture.parent.is_dir():
                raise UserError(f"no folder {picture.parent} for {flag}")
            if picture is not None and picture.is_dir():
                raise UserError(f"{flag} {picture} is a folder: give it another name")
        if shared.quiet:
            warnings.simplefilter("ignore")

    def names(
        self, outputs: Sequence[Path | None], inputs: Sequence[Path] = ()
    ) -> list[Path | None]:
        """Where each clip goes, by its own output if it has one; None: a new name, once made.

        ``UserError`` where any two of all files to be written are one, or one is an input.
        """
        from flowcept.data import video

        shared, total = self.shared, len(outputs)
        clips: list[Path | None] = []
        for number, own in enumerate(outputs, start=1):
            name = own or shared.output
            if name and ((own is None and total > 1) or name in clips):
                name = _numbered(name, number)
            video.check_output(name or Path(f"flowcept-{self.command}{SUFFIX}"))
            clips.append(name)
        files = [path for path in (*clips, shared.preview) if path is not None]
        for picture in (shared.sheet, shared.trace):
            if picture is not None:
                files += [
                    _numbered(picture, n) if total > 1 else picture for n in range(1, total + 1)
                ]
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
        return clips

    def open(self) -> Studio:
        """The model, on its device; this imports torch."""
        import torch

        from flowcept import generation as tasks

        if self.shared.threads:
            torch.set_num_threads(self.shared.threads)
        shared = self.shared
        return tasks.load(
            shared.model, device=shared.device, dtype=shared.dtype, compile=shared.compile
        )

    def make(
        self,
        studio: Studio,
        call: Callable[..., Clip],
        total: int,
        number: int,
        seed: int | None,
        output: Path | None,
        **controls: Any,  # noqa: ANN401
    ) -> None:
        """One clip of ``total``: sample with a bar and a preview, write, tell."""
        shared = self.shared
        estimate = studio.estimate(SampleConfig(**controls), shared.scale, self.least)
        if estimate > self.told:
            if not shared.quiet and not shared.as_json:
                typer.echo(f"up to about {estimate / 2**30:.1f} GiB of memory", err=True)
            self.told = estimate
        with self._bar(studio, controls["steps"]) as watch:
            clip = call(
                negative_prompt=shared.negative_prompt,
                seed=seed,
                fps=shared.fps,
                watch=watch,
                **controls,
            )
        path = output or self._new_name(clip)
        note = clip.save(path, metadata=not shared.no_metadata)
        self._pictures(clip, number if total > 1 else 0)
        notes = [*clip.notes, *([note] if note else [])]
        for line in notes:
            self.say(f"note: {line}")
        height, width = clip.frames_FHW3.shape[1:3]
        self.say(
            f"{path}: {len(clip)} frames of {width}x{height} at {clip.fps:g} fps, seed {clip.seed}"
        )
        self.results.append(
            {
                **clip.settings,
                "output": str(path),
                "width": width,
                "height": height,
                "notes": notes,
            }
        )

    def _new_name(self, clip: Clip) -> Path:
        """A name that nobody chose replaces nothing."""
        first = Path(f"flowcept-{self.command}-{clip.seed}{SUFFIX}")
        later = (_numbered(first, number) for number in itertools.count(2))
        return next(path for path in itertools.chain([first], later) if not path.exists())

    def say(self, line: str) -> None:
        if not self.shared.quiet and not self.shared.as_json:
            typer.echo(line)

    def finish(self) -> None:
        if self.shared.as_json:
            typer.echo(json.dumps(self.results, ensure_ascii=False, indent=1))

    @contextmanager
    def _bar(self, studio: Studio, steps: int) -> Iterator[Callable[[Step], None]]:
        from tqdm import tqdm

        bar = tqdm(
            total=2 * steps, desc=self.command, unit="step", disable=self.shared.quiet, delay=1
        )

        def watch(step: Step) -> None:
            if step.index:
                bar.update()
            else:  # a task may take several windows
                bar.n = bar.last_print_n = 0  # bar.reset() would show the bar at once
            bar.set_postfix_str(f"{step.state.lengths[0]} frames", refresh=False)
            if self.shared.preview and step.index % 4 == 0 and step.state.lengths[0]:
                self._preview(studio, step)

        with bar:
            yield watch

    def _preview(self, studio: Studio, step: Step) -> None:
        from flowcept.codecs import to_frames
        from flowcept.data import video

        assert self.shared.preview is not None
        frames_FHW3 = to_frames(studio.weights.codec.decode(step.state.latent_FCHW))
        video.write_video(self.shared.preview, frames_FHW3, studio.card.fps)

    def _pictures(self, clip: Clip, number: int) -> None:
        from flowcept.data import video
        from flowcept.evaluation import charts

        if self.shared.sheet:
            sheet = video.contact_sheet(clip.frames_FHW3)
            video.save_image(
                sheet, _numbered(self.shared.sheet, number) if number else self.shared.sheet
            )
        if self.shared.trace:
            thumbnails = list(clip.frames_FHW3) if len(clip.order) == len(clip) else None
            chart = charts.growth_chart(
                clip.growth, clip.order, thumbnails=thumbnails, num_steps=clip.settings["steps"]
            )
            video.save_image(
                chart, _numbered(self.shared.trace, number) if number else self.shared.trace
            )


def _numbered(path: Path, number: int) -> Path:
    """``out.mp4`` becomes ``out-1.mp4``; a folder gets a folder in it."""
    if not path.suffix:
        return path.with_name(f"{path.name}-{number}")
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _per_clip(
    session: Session, call: Callable[..., Clip], studio: Studio, names: Sequence[Path | None]
) -> None:
    """A clip of one input for each name."""
    try:
        for number, name in enumerate(names):
            seed = None if session.shared.seed is None else session.shared.seed + number
            session.make(studio, call, len(names), number + 1, seed, name, **session.controls)
    finally:
        session.finish()


@app.command()
@_with_flags(_sampling("gen"))
def gen(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="one clip for each", metavar="PROMPT...")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="a prompt a line, or JSONL with settings")
    ] = None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Make a clip of a prompt: flowcept gen "a dog surfing" -o out.mp4"""
    jobs = [{"prompt": prompt} for prompt in prompts or []]
    if prompts_file is not None:
        jobs += _read_jobs(prompts_file)
    if not jobs:
        raise UserError('no prompt: try flowcept gen "a dog surfing"')
    session = Session("gen", settings)
    shared = session.shared
    plans = [_plan(job, session) for job in jobs]
    names = session.names([output for _, output, *_ in plans for _ in range(shared.count)])
    studio, number = session.open(), 0
    try:
        for prompt, _, own_seed, negative, controls in plans:
            for repeat in range(shared.count):
                number += 1
                seed = own_seed if own_seed is not None else shared.seed
                if seed is not None:
                    seed += repeat

                def call(
                    prompt: str = prompt,
                    negative: str | None = negative,
                    **kwargs: Any,  # noqa: ANN401
                ) -> Clip:
                    if negative is not None:
                        kwargs["negative_prompt"] = negative
                    return studio.generate(prompt, scale=shared.scale, **kwargs)

                name = names[number - 1]
                session.make(studio, call, len(names), number, seed, name, **controls)
    finally:
        session.finish()


def _plan(
    job: dict[str, Any], session: Session
) -> tuple[str, Path | None, int | None, str | None, dict[str, Any]]:
    """Prompt, output, seed, negative prompt and controls of one line."""
    from flowcept.data import video

    job = dict(job)
    where = job.pop("where", "")
    prompt, output, seed = job.pop("prompt"), job.pop("output", None), job.pop("seed", None)
    negative = job.pop("negative_prompt", None)
    if job.get("frames") == "auto":
        job["frames"] = None
    controls = session.controls | job
    try:
        SampleConfig(**controls)
        _check_seed(seed)
        if output is not None:
            video.check_output(Path(output))
    except UserError as error:
        raise UserError(f"{where}{error}") from error
    return prompt, None if output is None else Path(output), seed, negative, controls


def _read_jobs(path: Path) -> list[dict[str, Any]]:
    """Prompts of a file, a line each; a line that begins with { is JSON with settings."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # others may stand in a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: {error}") from error
    known = {one.name: str(one.type) for one in fields(SampleConfig)}
    known |= {"prompt": "str", "output": "str", "negative_prompt": "str", "seed": "int"}
    jobs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            jobs.append({"prompt": line.strip()})
            continue
        try:
            job = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        job = {name.replace("-", "_"): value for name, value in job.items()}
        unknown = set(job) - set(known)
        if unknown or not isinstance(job.get("prompt"), str):
            what = f"unknown setting {min(unknown)!r}" if unknown else "no prompt"
            raise UserError(f"{path}, line {number}: {what}")
        for name, value in job.items():
            kinds = {"str": (str,), "float": (int, float), "bool": (bool,)}
            fits = isinstance(value, kinds.get(known[name], (int,)))
            fits &= isinstance(value, bool) == (known[name] == "bool")
            fits |= value is None and known[name] == "int | None"
            if not fits and not (name == "frames" and value == "auto"):
                raise UserError(f"{path}, line {number}: {name} must be of type {known[name]}")
        jobs.append(job | {"where": f"{path}, line {number}: "})
    return jobs


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**62:
        raise UserError(f"--seed must be at least 0 and under 2**62, not {seed}")


@app.command()
@_with_flags(_sampling("i2v"))
def i2v(
    image: Annotated[Path, typer.Argument(help="the first frame")],
    prompt: Prompt = "",
    fit: Fit = "crop",
    exact: Exact = None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Make a clip that begins with a picture: flowcept i2v photo.png -o out.mp4"""
    from flowcept.data import video

    session = Session("i2v", settings)
    _check_fit(fit)
    picture_HW3 = video.read_image(image)
    names = session.names([None] * session.shared.count, [image])
    studio = session.open()

    def call(**kwargs: Any) -> Clip:  # noqa: ANN401
        return studio.i2v(
            picture_HW3, prompt, fit=fit, exact=exact, scale=session.shared.scale, **kwargs
        )

    _per_clip(session, call, studio, names)


@app.command()
@_with_flags(_sampling("interp"))
def interp(
    keyframes: Annotated[list[Path], typer.Argument(help="two pictures or more, or one clip")],
    prompt: Prompt = "",
    multi: Annotated[
        int, typer.Option("--multi", help="exactly so many frames in every gap; for a clip 1")
    ] = 0,
    fit: Fit = "crop",
    exact: Exact = None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Make the frames between keyframes: flowcept interp a.png b.png --frames auto"""
    import numpy as np

    from flowcept.data import video

    session = Session("interp", settings)
    _check_fit(fit)
    fps, sound = session.shared.fps, None
    if len(keyframes) == 1:
        frames_FHW3, rate = video.read_video(keyframes[0])
        if len(frames_FHW3) < 2:
            raise UserError(f"{keyframes[0]} is one picture: give two pictures, or a clip")
        free = session.controls["frames"] or session.controls["max_length"]
        multi = multi or (0 if free or session.controls["min_length"] else 1)
        doubled = rate * (multi + 1) if multi else rate
        fps = fps or doubled
        if video.has_sound(keyframes[0]):
            sound = keyframes[0] if multi and fps == doubled else None
            if sound is None:
                warnings.warn("sound is left out: the clip takes another time", stacklevel=1)
    else:
        pictures = [video.read_image(path) for path in keyframes]
        size = pictures[0].shape[:2]
        fitted = [video.fit(one[None], size, fit)[0] for one in pictures]
        frames_FHW3 = np.concatenate(fitted)
    check_keyframes(SampleConfig(**session.controls), len(frames_FHW3), multi)
    _check_rate(fps)
    session.least = multi + 2 if multi else len(frames_FHW3)
    names = session.names([None] * session.shared.count, keyframes)
    studio = session.open()

    def call(**kwargs: Any) -> Clip:  # noqa: ANN401
        kwargs["fps"] = fps
        return studio.interp(
            frames_FHW3,
            prompt,
            multi=multi,
            fit=fit,
            exact=exact,
            sound=sound,
            scale=session.shared.scale,
            **kwargs,
        )

    _per_clip(session, call, studio, names)


@app.command()
@_with_flags(_sampling("extend"))
def extend(
    clip: Annotated[Path, typer.Argument(help="the clip to go on from")],
    prompt: Prompt = "",
    direction: Annotated[
        str, typer.Option("--direction", help="forward, backward or both")
    ] = "forward",
    context: Annotated[
        int, typer.Option("--context", help="frames of the clip that the model sees")
    ] = 4,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Make a clip longer: flowcept extend clip.mp4 -o longer.mp4 (lengths count new frames)"""
    from flowcept.data import video

    session = Session("extend", settings)
    if session.shared.scale is not None:
        warnings.warn("--scale has no effect: new frames get the clip's own size", stacklevel=1)
    if direction not in ("forward", "backward", "both"):
        raise UserError("--direction must be forward, backward or both")
    if context < 1:
        raise UserError(f"--context must be at least 1, not {context}")
    frames_FHW3, rate = video.read_video(clip)
    _check_rate(session.shared.fps or rate)
    sound = clip if video.has_sound(clip) else None
    names = session.names([None] * session.shared.count, [clip])
    studio = session.open()

    def call(**kwargs: Any) -> Clip:  # noqa: ANN401
        return studio.extend(
            frames_FHW3,
            prompt,
            clip_fps=rate,
            direction=direction,
            context=context,
            sound=sound,
            **kwargs,
        )

    _per_clip(session, call, studio, names)


def _check_rate(fps: float | None) -> None:
    """Of what is to be written, where it follows from what was read."""
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise UserError(f"{fps:g} frames a second cannot be written: give --fps up to {FASTEST}")


def _check_fit(fit: str) -> None:
    if fit not in FITS:
        raise UserError(f"--fit must be one of {', '.join(FITS)}, not {fit!r}")


def _train_flags() -> list[inspect.Parameter]:
    """Every setting of training, each None unless given: the preset decides."""
    flags = []
    for _, one in leaf_fields(TrainConfig):  # the context weights are in a TOML file
        name, meaning = one.name.replace("_", "-"), one.metadata["help"]
        flag = f"--{name}/--no-{name}" if one.type == "bool" else f"--{name}"
        default = str(one.default) if one.default != "" else "none"
        option = typer.Option(None, flag, help=meaning, show_default=default)
        flags.append(_parameter(one.name, KINDS[str(one.type)] | None, option))
    return flags


@app.command()
@_with_flags(_train_flags())
def train(
    folder: Annotated[Path, typer.Argument(help="clips and captions", metavar="DATA")],
    run: Annotated[Path, typer.Option("-o", "--output", help="folder of the run")] = Path("run"),
    preset: Annotated[
        str | None, typer.Option("--preset", help="tiny, small or base", show_default="small")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="settings in a TOML file")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run")] = False,
    check: Annotated[bool, typer.Option("--check", help="only say what the folder holds")] = False,
    pause_at: Annotated[int | None, typer.Option("--pause-at", help="stop after this step")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="errors only")] = False,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Train a model on a folder of clips: flowcept train data/"""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give a folder of clips")
    if pause_at is not None and pause_at < 1:
        raise UserError(f"--pause-at must be at least 1, not {pause_at}")
    if preset and resume:
        raise UserError("--preset is for a new run: a resumed one keeps its settings; leave it out")
    from flowcept.training import run as trainer
    from flowcept.training.state import make_config, read_config

    flags = {name: value for name, value in settings.items() if value is not None}
    made = make_config(preset or "small", config, flags)
    if check:
        for line in trainer.check(folder, made):
            typer.echo(line)
        return
    trainer.train(
        folder,
        run,
        made,
        resume=resume,
        given=[*flags, *(read_config(config) if config else ())],
        pause_at=pause_at,
        quiet=quiet,
        console=typer.echo,
    )


LENGTHS = ("frames", "min_length", "max_length")  # of the clips themselves, in an evaluation


def _evaluation_flags() -> list[inspect.Parameter]:
    """The sampler's controls, each None unless given: frames between others have their defaults."""
    flags = []
    for plain, between in zip(_sampler_flags("gen"), _sampler_flags("interp"), strict=True):
        if plain.name not in LENGTHS:
            start, there = plain.default.default, between.default.default
            shown = f"{start}" if start == there else f"{start}; {there} between frames"
            meaning, names = plain.default.help, plain.default.param_decls
            option = typer.Option(None, *names, help=meaning, show_default=shown)
            flags.append(_parameter(plain.name, plain.annotation | None, option))
    return flags


@app.command()
@_with_flags(_evaluation_flags())
def evaluate(
    model: Annotated[str, typer.Argument(help="a model file, or the name of a shipped model")],
    folder: Annotated[Path, typer.Argument(help="clips and captions", metavar="DATA")],
    task: Annotated[
        str, typer.Option("--task", help="gen: from captions; i2v: from first frames too")
    ] = "gen",
    clips: Annotated[int, typer.Option("--clips", help="of the folder that are drawn")] = 64,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="a TorchScript video network, or a MobileNetV2"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of clips, noise and bootstraps")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the scores, a .json file")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="their picture, a .png file")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="the scores as JSON on stdout")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress bars")] = False,
    **controls: Any,  # noqa: ANN401
) -> None:
    """Score a model against a folder of clips: flowcept evaluate theatre data/"""
    given = {name: value for name, value in controls.items() if value is not None}
    config, between = (replace(defaults(command), **given) for command in ("gen", "interp"))
    _check_seed(seed)
    for flag, path, suffix in (("--output", output, ".json"), ("--sheet", sheet, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"{flag} must be a {suffix} file, not {path}")
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{flag} {path}: no such folder, or a folder itself")
    from tqdm import tqdm

    from flowcept import model_file as checkpoint
    from flowcept.data import video
    from flowcept.evaluation import evaluate as scorer

    bars: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, unit="clip", disable=quiet, delay=1)
        bars[what].update(done - bars[what].n)
        if done >= total:
            bars[what].close()

    scores = scorer.evaluate(
        checkpoint.find(model),
        folder,
        config,
        between=between,
        task=task,
        clips=clips,
        features=features,
        seed=seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    text = json.dumps(scores.as_dict(), ensure_ascii=False, indent=1)
    if output is not None:
        with video.replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if sheet is not None:
        video.save_image(scorer.picture(scores), sheet)
    typer.echo(text if as_json else "\n".join(scorer.table(scores)))


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="a model, or a clip or picture made by flowcept")],
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Say what a model is, or how a clip was made: flowcept info out.mp4"""
    from flowcept.data import video

    if file.suffix == ".safetensors" or not (file.exists() or file.suffix):
        from flowcept import model_file as checkpoint

        record = checkpoint.describe(checkpoint.find(str(file)))
    else:
        found = video.read_metadata(file)
        if found is None:
            raise UserError(f"{file} does not say how it was made (not by flowcept, or stripped)")
        record = found | {"sha256_of_frames": video.digest(video.read_video(file)[0])}
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False, indent=1))
        return
    width = max(len(name) for name in record)
    for name, value in record.items():
        typer.echo(f"{name:<{width}}  {value}")


@app.command()
def theatre(
    out: Annotated[Path, typer.Argument(help="a new folder")],
    clips: Annotated[int, typer.Option("--clips", help="number of clips")] = 1000,
    size: Annotated[int, typer.Option("--size", help="pixels along each side")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="of what is drawn")] = 0,
    actors: Annotated[
        str, typer.Option("--actors", help="auto, emoji, shapes, or names: dog,cat,robot")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="errors only")] = False,
) -> None:
    """Draw captioned clips to train on: flowcept theatre data/ --clips 1000"""
    from tqdm import tqdm

    from flowcept.data import theatre as stage

    with tqdm(total=clips, desc="theatre", unit="clip", disable=quiet, delay=1) as bar:
        stage.write_theatre(
            out,
            clips,
            size=size,
            seed=seed,
            actors=actors,
            progress=lambda done: bar.update(done - bar.n) and None,
        )
    if not quiet:
        typer.echo(f"{out}: {clips} clips; next: flowcept train {out}")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flowcept {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="the version")
    ] = False,
) -> None:
    """Short videos of a length that the model chooses itself."""


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"note: {message}", err=True)


def main() -> None:
    """Entry point. What the user can mend is one line and status 2; Ctrl-C is status 130."""
    warnings.showwarning = _warn
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        typer.echo(f"flowcept: {error}", err=True)
        sys.exit(2)
    except Usage as error:
        message = " ".join(error.format_message().split())
        if message:
            typer.echo(f"flowcept: {message}", err=True)
        sys.exit(2)
    except MemoryError:
        typer.echo("flowcept: not enough memory: lower --scale or --frames", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EPIPE or error.filename is None:
            raise
        typer.echo(f"flowcept: {error.strerror}: {str(error.filename)[:60]}", err=True)
        sys.exit(2)
    if status == 130:
        typer.echo("flowcept: interrupted", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
