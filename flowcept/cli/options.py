"""Flags: the options that commands share, and how a record of settings becomes flags.

Typer makes flags from the parameters of a function. A command takes whole records instead:
``takes`` gives Typer one parameter for every field of a record, and the command one record of what
was given. So the records are the one table of names, defaults and meanings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flowcept.errors import UserError
from flowcept.settings import FASTEST, FITS, SLOWEST, SampleConfig

LARGEST_SEED = 2**62 - 1
PICTURES = (".png", ".jpg", ".jpeg")  # of contact sheets and growth pictures

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
Exact = Annotated[
    bool | None,
    typer.Option(help="your own pixels in the given frames; default if sizes match"),
]
Fit = Annotated[str, typer.Option(help="how a picture gets the model's size: crop, pad, stretch")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="what happens in the clip")]


@dataclass(frozen=True)
class MakeOptions:
    """What the four commands that make clips share, beside the controls of the sampler."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", envvar="FLOWCEPT_MODEL", help="a file or the name of a shipped model"
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="mp4, webm, mov, gif, webp or apng; a folder or %04d.png for frames",
        ),
    ] = None
    negative_prompt: Annotated[
        str, typer.Option("--negative-prompt", "-n", help="what to lead away from")
    ] = ""
    seed: Annotated[int | None, typer.Option(help="by default random; always told")] = None
    count: Annotated[
        int, typer.Option(help="clips per prompt; all but the first get seeds made from its seed")
    ] = 1
    fps: Annotated[float | None, typer.Option(help="playback rate; default the model's")] = None
    scale: Annotated[
        int | None, typer.Option(help="enlarge by a whole number; default to 256 pixels")
    ] = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile of the blocks; pays for many clips")
    ] = False
    threads: Annotated[int, typer.Option(help="of the processor; 0: as many as it has")] = 0
    preview: Annotated[
        Path | None, typer.Option(help="a file that is rewritten while sampling")
    ] = None
    sheet: Annotated[Path | None, typer.Option(help="contact sheet, a .png file")] = None
    trace: Annotated[Path | None, typer.Option(help="picture of the growth, a .png file")] = None
    as_json: Annotated[bool, typer.Option("--json", help="the result as JSON on stdout")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="errors only")] = False
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="write no settings into the file")
    ] = False

    def __post_init__(self) -> None:
        """Raise ``UserError`` for everything that can be wrong without a model."""
        check_range("--count", self.count, 1, 10_000)
        check_range("--scale", self.scale, 1, 64)
        check_range("--fps", self.fps, SLOWEST, FASTEST)
        check_range("--threads", self.threads, 0, 1024)
        check_range("--seed", self.seed, 0, LARGEST_SEED)
        for path in (self.output, self.preview):
            check_output(path)
        if self.preview is not None and self.preview.suffix.lower() in ("", ".png"):
            raise UserError(f"--preview must be one file, such as preview.mp4: {self.preview}")
        check_file("--sheet", self.sheet, PICTURES)
        check_file("--trace", self.trace, PICTURES)


def check_range(flag: str, number: float | None, low: float, high: float) -> None:
    """Raise ``UserError`` for a number outside low..high; None was not given."""
    if number is not None and not low <= number <= high:
        raise UserError(f"{flag} must be from {low} to {high}, not {number}")


def check_fit(fit: str) -> None:
    """Raise ``UserError`` for an unknown way to fit a picture."""
    if fit not in FITS:
        raise UserError(f"--fit must be one of {', '.join(FITS)}, not {fit!r}")


def check_output(path: Path | None) -> None:
    """Raise ``UserError`` where no clip can be written to ``path``."""
    if path is not None:
        from flowcept.data import video

        video.check_output(path)


def check_file(flag: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raise ``UserError`` where a file of one of these suffixes cannot be at ``path``."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{flag} must be a {suffixes[0]} file, not {path}")
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} for {flag}")
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give it another name")


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

    parameters: tuple[inspect.Parameter, ...]
    gather: Callable[[dict[str, Any]], object]  # the argument, from the flags' values by name


def takes(**groups: Flags) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let Typer see the flags of each group in place of the argument of that name."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name not in groups
        ]
        added = [parameter for flags in groups.values() for parameter in flags.parameters]

        def run(**values: Any) -> None:  # noqa: ANN401 - whatever Typer read
            for name, flags in groups.items():
                given = {one.name: values.pop(one.name) for one in flags.parameters}
                values[name] = flags.gather(given)
            command(**values)

        visible = [*own, *added]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {one.name: one.annotation for one in visible}
        run.__signature__ = signature.replace(parameters=visible)  # type: ignore[attr-defined]
        return run

    return wrap


def make_options() -> Flags:
    """Flags of ``MakeOptions``."""
    hints = get_type_hints(MakeOptions, include_extras=True)
    parameters = [_parameter(one.name, hints[one.name], one.default) for one in fields(MakeOptions)]
    return Flags(tuple(parameters), lambda given: MakeOptions(**given))


def sample_config(start: SampleConfig) -> Flags:
    """Flags of the sampler's controls, which begin as ``start``."""
    hints = get_type_hints(SampleConfig)
    parameters = [
        setting_flag(one, hints[one.name], getattr(start, one.name)) for one in fields(SampleConfig)
    ]
    return Flags(tuple(parameters), lambda given: SampleConfig(**given))


def changes(settings: Iterable[tuple[Field[Any], Any, str]]) -> Flags:
    """Flags of settings, each with its type and the default that is shown.

    The command gets a mapping of those that were given.
    """
    parameters = [setting_flag(one, kind | None, None, shown) for one, kind, shown in settings]

    def gather(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if value is not None}

    return Flags(tuple(parameters), gather)


def setting_flag(
    one: Field[Any],
    kind: Any,  # noqa: ANN401
    default: object,
    shown: str | bool = True,
) -> inspect.Parameter:
    """The flag of a field of ``settings.py``, whose metadata holds its help text."""
    name, meaning = one.name.replace("_", "-"), one.metadata["help"]
    if one.name == "frames":
        option = typer.Option(
            "--frames", help=meaning, parser=parse_frames, metavar="auto|N", show_default="auto"
        )
        return _parameter(one.name, Annotated[kind, option], default)
    flag = f"--{name}/--no-{name}" if kind in (bool, bool | None) else f"--{name}"
    option = typer.Option(flag, help=meaning, show_default=shown)
    return _parameter(one.name, Annotated[kind, option], default)


def _parameter(name: str, kind: Any, default: object) -> inspect.Parameter:  # noqa: ANN401
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
