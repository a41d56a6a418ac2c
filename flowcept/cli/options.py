"""Flags: the options that commands share, and how a record of settings becomes flags.

Typer makes flags from the parameters of a function. A command takes whole records instead:
``takes`` gives Typer a parameter for every field, and the command one record of what was given. So
the records are the one table of names, defaults and meanings.
"""

import atexit
import inspect
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flowcept.errors import UserError
from flowcept.settings import (
    FASTEST,
    MODEL,
    OFFLOAD,
    SEED,
    SIZE,
    SLOWEST,
    SampleConfig,
    Settings,
    check_prompt,
    defaults,
    flag,
    setting,
    within,
)


def helped(meaning: str, *names: str) -> Any:  # noqa: ANN401 - as Typer has it
    """A flag of this help text, whose names are by default its parameter's own."""
    return typer.Option(*names, help=meaning)


RATE = within(SLOWEST, FASTEST)
PICTURES = (".png", ".jpg", ".jpeg")  # of contact sheets and growth pictures

BASE = "the pretrained model that an adapter belongs to, where that has moved"

Anyway = Annotated[bool, helped("go on with pictures that the model cannot show", "--anyway")]
Base = Annotated[str | None, helped(BASE, "--base")]
Device = Annotated[str, helped("auto, cpu, cuda or mps")]
Dtype = Annotated[str, helped("auto, float32, bfloat16 or float16")]
Exact = Annotated[
    bool | None, helped("your own pixels in the given frames; default if sizes match")
]
Fit = Annotated[str, helped("how a picture gets the model's size: crop, pad, stretch")]
Json = Annotated[bool, helped("the result as JSON on stdout", "--json")]
NoSound = Annotated[bool, helped("leave the clip's sound out", "--no-sound")]
Prompt = Annotated[str, helped("what happens in the clip", "--prompt", "-p")]
Quiet = Annotated[bool, helped("errors only", "--quiet", "-q")]


@dataclass(frozen=True)
class Job:
    """One clip to make, by flags or by a line of a file."""

    prompt: str
    config: SampleConfig
    negative_prompt: str = ""
    seed: int | None = None  # None: a random one
    fps: float | None = None
    scale: int | None = None
    loop: bool = False
    literal: bool = False  # no word is read as another
    output: str | None = None  # its own, from a line of a file

    def __post_init__(self) -> None:
        SEED.check("seed", self.seed)
        for text in (self.prompt, self.negative_prompt):
            check_prompt(text)
        if self.output is not None:
            check_output(Path(self.output))

    def keywords(self) -> dict[str, Any]:
        """What a studio is asked."""
        return {name: value for name, value in vars(self).items() if name != "output"}


@dataclass(frozen=True)
class MakeOptions(Settings):
    """What the four commands that make clips share, beside the controls of the sampler."""

    command: str
    model: str | None = setting(
        None,
        f"{MODEL}; default $FLOWCEPT_MODEL, else motion "
        "between pictures without a prompt if it is shipped, else theatre",
        names="--model -m",
    )
    base: str | None = setting(None, BASE)
    output: Path | None = setting(
        None, "mp4, webm, mov, gif, webp or apng; a folder or %04d.png for frames; - for stdout",
        names="--output -o",
    )  # fmt: skip
    format: str = setting("mp4", "of a clip on stdout", names="--format")
    negative_prompt: str = setting("", "what to lead away from", names="--negative-prompt -n")
    literal: bool = setting(
        False,
        "prompts as written: no word is read as another that the model knows",
        names="--literal",
    )
    seed: int | None = setting(None, "by default random; always told", SEED)
    count: int = setting(
        1, "clips per prompt; later ones have seeds made from the first", within(1, 10_000)
    )
    fps: float | None = setting(None, "playback rate; default the model's", RATE)
    scale: int | None = setting(
        None, "enlarge by a whole number; default to 256 pixels", within(1, 64)
    )
    size: str | None = setting(
        None,
        "of frames, WIDTHxHEIGHT, of pretrained models, rounded to what they can make; default "
        "their own, of given pictures the aspect of those",
        SIZE,
    )
    loop: bool = setting(
        False, "frames from the last one back to the first, which all lengths count too",
        names="--loop",
    )  # fmt: skip
    device: str = setting("auto", "auto, cpu, cuda or mps")
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16")
    compile: bool = setting(
        False, "torch.compile of the blocks; pays for many clips", names="--compile"
    )
    offload: str = setting(
        "none",
        "of pretrained models: encoder reads the prompt encoder first and lets go of it; blocks "
        "also brings the network's blocks one by one, slower; clips stay the same",
        OFFLOAD,
    )
    fp8: bool = setting(
        False, "of pretrained models: weights in 8 bits, half of bfloat16's; clips change a little",
        names="--fp8",
    )  # fmt: skip
    tiling: bool = setting(
        False,
        "of pretrained models: decode large pictures in overlapping tiles; slower, seams may show",
        names="--tiling",
    )
    threads: int = setting(0, "of the processor; 0: as many as it has", within(0, 1024))
    preview: Path | None = setting(None, "a file that is rewritten while sampling")
    sheet: Path | None = setting(None, "contact sheet, a .png file")
    trace: Path | None = setting(None, "picture of the growth, a .png file")
    as_json: bool = setting(False, "the result as JSON on stdout", names="--json")
    quiet: bool = setting(False, "errors only", names="--quiet -q")
    no_metadata: bool = setting(False, "write no settings into the file", names="--no-metadata")
    piped: bool = False  # whether the clip goes to stdout, and words for people do not

    def __post_init__(self) -> None:
        """Raise ``UserError`` for everything that can be wrong without a model."""
        super().__post_init__()
        to_stdout = self.output == Path("-")
        for path in (Path(f"clip.{self.format}") if to_stdout else self.output, self.preview):
            check_output(path)
        if self.preview is not None and self.preview.suffix.lower() in ("", ".png"):
            raise UserError(f"--preview must be one file, such as preview.mp4: {self.preview}")
        check_file("--sheet", self.sheet, PICTURES)
        check_file("--trace", self.trace, PICTURES)

    @property
    def talks(self) -> bool:
        """Whether the terminal gets lines for people."""
        return not (self.quiet or self.as_json)

    def say(self, line: str) -> None:
        """A line for people."""
        typer.echo(line, err=self.piped)

    def job(self, prompt: str, config: SampleConfig) -> Job:
        """What the flags alone ask for."""
        shared = ("negative_prompt", "seed", "fps", "scale", "loop", "literal")
        return Job(prompt, config, **{name: getattr(self, name) for name in shared})


def check_output(path: Path | None) -> None:
    """Raise ``UserError`` where no clip can be written to ``path``."""
    if path is not None:
        from flowcept.data import video

        video.check_output(path)


def temporary_beside(path: Path | None) -> None:
    """Let libraries put temporary files beside an output where no other folder takes them."""
    try:
        tempfile.gettempdir()
    except OSError:
        beside = (path or Path("-")).absolute().parent
        folder = tempfile.TemporaryDirectory(prefix=".", dir=beside)
        atexit.register(folder.cleanup)
        tempfile.tempdir = folder.name


def check_file(name: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raise ``UserError`` where a file of one of these suffixes cannot be at ``path``."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{name} must be a {suffixes[0]} file, not {path}")
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} for {name}")
    if path.is_dir():
        raise UserError(f"{name} {path} is a folder: give it another name")


def parse_frames(text: str) -> int | None:
    """A number of frames; None of ``auto``."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
        raise UserError(f"--frames must be auto or a number of at least 1, not {text[:20]!r}")
    return int(text)


@dataclass(frozen=True)
class Flags:
    """Flags that reach a command as one argument."""

    parameters: list[inspect.Parameter]
    gather: Callable[..., object]  # the argument, from the flags' values by name


def takes(**groups: Flags) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let Typer see the flags of each group in place of the argument of that name."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name not in groups
        ]
        visible = own + [one for flags in groups.values() for one in flags.parameters]

        def run(**values: Any) -> None:  # noqa: ANN401 - whatever Typer read
            for name, flags in groups.items():
                given = {one.name: values.pop(one.name) for one in flags.parameters}
                values[name] = flags.gather(**given)
            command(**values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {one.name: one.annotation for one in visible}
        run.__signature__ = signature.replace(parameters=visible)  # type: ignore[attr-defined]
        return run

    return wrap


def record(start: Any) -> Flags:  # noqa: ANN401 - a record of settings
    """Flags of all settings of a record, whose values they begin with; the command gets another."""
    settings = [one for one in fields(start) if "help" in one.metadata]
    own = [_parameter(one, getattr(start, one.name)) for one in settings]
    return Flags(own, partial(replace, start))


def making(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command that makes clips: it takes ``options`` and the sampler's ``config``."""
    return takes(options=record(MakeOptions(command)), config=record(defaults(command)))


def changes(settings: Iterable[tuple[Field[Any], str, str]]) -> Flags:
    """Flags of settings, each with the default that is shown and its group in the help.

    The command gets a mapping of those that were given.
    """
    parameters = [_parameter(one, None, shown, group) for one, shown, group in settings]

    def gather(**given: object) -> dict[str, object]:
        return {name: value for name, value in given.items() if value is not None}

    return Flags(parameters, gather)


def _parameter(
    one: Field[Any], default: object, shown: str | bool = True, group: str | None = None
) -> inspect.Parameter:
    """The parameter of a field, whose metadata holds the help text and perhaps the flag's names."""
    kind: Any = one.type if default is not None else one.type | None  # type: ignore[operator]
    plain = flag(one.name)
    if kind in (bool, bool | None):
        plain += f"/--no-{plain[2:]}"
    names = one.metadata["names"] or plain
    option = typer.Option(
        *names.split(), help=one.metadata["help"], show_default=shown, rich_help_panel=group
    )
    if one.name == "frames":
        option.parser, option.metavar, option.show_default = parse_frames, "auto|N", "auto"
    keyword, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[kind, option]
    return inspect.Parameter(one.name, keyword, default=default, annotation=annotation)
