"""Flags: the options that commands share, and how a record of settings becomes flags.

Typer makes flags from the parameters of a function. A command takes whole records instead:
``takes`` gives Typer a parameter for every field, and the command one record of what was given. So
the records are the one table of names, defaults and meanings, of ranges and of the help's panels.
"""

import atexit
import copy
import inspect
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from flowcept.cli import like
from flowcept.cli.outputs import check_format, check_free, check_output
from flowcept.errors import UserError
from flowcept.settings import (
    COMPUTER,
    DEVICE,
    DTYPE,
    FASTEST,
    FIT,
    FORMAT,
    INPUT,
    LENGTH,
    MODEL,
    OFFLOAD,
    OUTPUT,
    RETIMING,
    SAMPLING,
    SEED,
    SIZE,
    SLOWEST,
    TRAINING,
    ClipConfig,
    Rule,
    SampleConfig,
    Settings,
    check_prompt,
    defaults,
    flag,
    setting,
    within,
)

# Panels in their order, then others; and what is used most and stands first in its panel.
PANELS = ("", TRAINING, INPUT, OUTPUT, LENGTH, RETIMING, SAMPLING, COMPUTER)
FIRST = ("prompt", "model", "preset", "network", "steps", "max_hours", "init", "seed", "output")
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT", bool: ""}  # what stands for a value
WIDEST = 20  # letters of choices that stand beside a flag
NAMED = {"output": "PATH", "model": "MODEL", "init": "MODEL", "codec": "MODEL", "size": "WxH"}


def helped(
    meaning: str, *names: str, rule: Rule | None = None, panel: str = "", shown: str = ""
) -> Any:  # noqa: ANN401 - as Typer has it
    """A flag of this help text, whose names are by default its parameter's own.

    ``shown`` is its default in words, where it is not the parameter's.
    """
    option = typer.Option(
        *names, help=meaning, rich_help_panel=panel or None, show_default=shown or True
    )
    option.rule = rule
    return option


RATE = within(SLOWEST, FASTEST)
PICTURES = (".png", ".jpg", ".jpeg")  # of contact sheets and growth pictures

BASE = "the pretrained model that an adapter needs, if it has moved"

Anyway = Annotated[
    bool,
    helped(
        "continue even if the model cannot show the given pictures well", "--anyway", panel=INPUT
    ),
]
Base = Annotated[str | None, helped(BASE, "--base", panel=INPUT)]
Device = Annotated[
    str, helped("where to compute; auto: a GPU if there is one", rule=DEVICE, panel=COMPUTER)
]
Dtype = Annotated[
    str, helped("precision; auto: bfloat16 where that is fast", rule=DTYPE, panel=COMPUTER)
]
Exact = Annotated[
    bool | None,
    helped("keep the exact pixels of given frames; default where sizes match", panel=SAMPLING),
]
Fit = Annotated[str, helped("how a picture gets the model's size", rule=FIT, panel=INPUT)]
Json = Annotated[bool, helped("print the result as JSON on stdout", "--json", panel=OUTPUT)]
NoSound = Annotated[bool, helped("leave out the clip's sound", "--no-sound", panel=OUTPUT)]
Overwrite = Annotated[
    bool, helped("also replace files that flowcept did not make", "--overwrite", panel=OUTPUT)
]
Prompt = Annotated[str, helped("what happens in the clip", "--prompt", "-p", panel=INPUT)]
Quiet = Annotated[bool, helped("print errors only", "--quiet", "-q", panel=OUTPUT)]


def of_clip(name: str, names: str = "", panel: str = "") -> Any:  # noqa: ANN401 - of the field's type
    """A setting as ``ClipConfig`` has it, in a panel."""
    (one,) = (one for one in fields(ClipConfig) if one.name == name)
    return setting(one.default, one.metadata["help"], one.metadata["rule"], names, panel)


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
            check_output(self.output)

    def keywords(self) -> dict[str, Any]:
        """What a studio is asked."""
        return {name: value for name, value in vars(self).items() if name != "output"}


@dataclass(frozen=True)
class MakeOptions(Settings):
    """What the four commands that make clips share, beside the controls of the sampler."""

    panel = OUTPUT

    command: str
    model: str | None = setting(
        None,
        MODEL,
        names="--model -m",
        panel=INPUT,
    )
    base: str | None = setting(None, BASE, panel=INPUT)
    output: str | None = setting(
        None,
        "a clip, out.mp4 (or .webm, .mov, .gif, .webp, .apng); a folder for clips, clips/; "
        "frames, out/%04d.png; or -, stdout (default: named after prompt and seed)",
        names="--output -o",
    )
    seed: int | None = of_clip("seed", panel=INPUT)
    count: int = of_clip("count")
    format: str | None = setting(
        None, "format of clips that get no name from you: in a folder or on stdout", FORMAT
    )
    fps: float | None = of_clip("fps")
    scale: int | None = of_clip("scale")
    size: str | None = setting(
        None,
        "size of frames, only for pretrained models, rounded to what they can make; default their "
        "own, with the aspect of given pictures",
        SIZE,
    )
    loop: bool = of_clip("loop", "--loop", LENGTH)
    negative_prompt: str = of_clip("negative_prompt", "--negative-prompt -n", INPUT)
    like: Path | None = setting(
        None,
        "a clip that flowcept made, to make it again; flags that you add change it",
        panel=INPUT,
    )
    literal: bool = of_clip("literal", "--literal", INPUT)
    sheet: Path | None = setting(None, "a picture of all frames, a .png or .jpg file")
    trace: Path | None = setting(None, "a picture of how the clip grew, a .png or .jpg file")
    preview: Path | None = setting(None, "the clip so far, while it is made, such as preview.gif")
    overwrite: bool = setting(
        False, "also replace files that flowcept did not make", names="--overwrite"
    )
    as_json: bool = setting(False, "print the result as JSON on stdout", names="--json")
    quiet: bool = setting(False, "print errors only", names="--quiet -q")
    no_metadata: bool = setting(False, "write no settings into the file", names="--no-metadata")
    device: str = setting(
        "auto", "where to compute; auto: a GPU if there is one", DEVICE, panel=COMPUTER
    )
    dtype: str = setting(
        "auto", "precision; auto: bfloat16 where that is fast", DTYPE, panel=COMPUTER
    )
    threads: int = setting(
        0, "threads of the processor; 0: as many as it has", within(0, 1024), panel=COMPUTER
    )
    compile: bool = setting(
        False,
        "use torch.compile: a slow start, faster for many clips",
        names="--compile",
        panel=COMPUTER,
    )
    offload: str = setting(
        "none",
        "pretrained models: encoder frees the prompt encoder's memory after use; blocks also "
        "loads the network's blocks one by one, slower; clips stay the same",
        OFFLOAD,
        panel=COMPUTER,
    )
    fp8: bool = setting(
        False,
        "pretrained models: weights in 8 bits, half the memory; clips change a little",
        names="--fp8",
        panel=COMPUTER,
    )
    tiling: bool = setting(
        False,
        "pretrained models: decode large pictures in overlapping tiles; slower, seams may show",
        names="--tiling",
        panel=COMPUTER,
    )
    piped: bool = False  # whether the clip goes to stdout, and words for people do not

    def __post_init__(self) -> None:
        """Raise ``UserError`` for everything that can be wrong without a model."""
        super().__post_init__()
        check_format(self.format, self.output)
        check_output(self.output)
        check_preview(self.preview)
        check_file("--sheet", self.sheet, PICTURES)
        check_file("--trace", self.trace, PICTURES)

    @property
    def suffix(self) -> str:
        """Of clips that get a name here."""
        return f".{self.format or 'mp4'}"

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


def temporary_beside(path: Path | None) -> None:
    """Let libraries put temporary files beside an output where no other folder takes them."""
    try:
        tempfile.gettempdir()
    except OSError:
        place = (path or Path("-")).absolute().parent
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        folder = tempfile.TemporaryDirectory(prefix=".", dir=there)
        atexit.register(folder.cleanup)
        tempfile.tempdir = folder.name


def check_preview(path: Path | None) -> None:
    """Raise ``UserError`` where no file of one clip can be at ``path``."""
    if path is None:
        return
    if path.suffix.lower() in ("", ".png"):
        raise UserError(f"--preview must be one file, such as preview.mp4, not {path}")
    from flowcept.data import video

    video.check_output(path)


def check_file(
    name: str, path: Path | None, suffixes: tuple[str, ...], overwrite: bool = True
) -> None:
    """Raise ``UserError`` where a file of one of these suffixes cannot be at ``path``."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{name} must be a {' or '.join(suffixes)} file, not {path}")
    if path.is_dir():
        raise UserError(f"{name} {path} is a folder: give it another name")
    from flowcept.data import video

    video.check_folder(path.parent)
    check_free([path], overwrite)


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
    """Let Typer see the flags of each group in place of the argument of that name.

    All flags get their range, default and choices into the help, panel by panel.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name not in groups
        ]
        every = own + [one for flags in groups.values() for one in flags.parameters]
        visible = sorted(map(_explained, every), key=_place)

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


def record(start: Any, **shown: str) -> Flags:  # noqa: ANN401 - a record of settings
    """Flags of all settings of a record, whose values they begin with; the command gets another.

    ``shown`` are defaults in words.
    """
    own = []
    for one in fields(start):
        if "help" in one.metadata:
            panel = one.metadata["panel"] or start.panel
            default = getattr(start, one.name)
            own.append(_parameter(one, default, shown.get(one.name, ""), panel))
    return Flags(own, partial(replace, start))


def making(
    command: str, model: str = "theatre", **more: Flags
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command that makes clips: it takes ``options`` and the sampler's ``config``.

    ``model`` says which one is taken by default.
    """
    usual = f"$FLOWCEPT_MODEL, else {model}"
    options = record(MakeOptions(command), model=usual, format="mp4")
    return takes(config=record(defaults(command)), options=options, **more)


def changes(settings: Iterable[tuple[Field[Any], str, str]]) -> Flags:
    """Flags of settings, each with the default that is shown and its panel in the help.

    The command gets a mapping of those that were given.
    """
    parameters = [_parameter(one, None, shown, panel) for one, shown, panel in settings]

    def gather(**given: object) -> dict[str, object]:
        return {name: value for name, value in given.items() if value is not None}

    return Flags(parameters, gather)


def _parameter(
    one: Field[Any], default: object, shown: str = "", panel: str = ""
) -> inspect.Parameter:
    """The parameter of a field, whose metadata holds the help text and perhaps the flag's names."""
    kind: Any = one.type if default is not None else one.type | None  # type: ignore[operator]
    plain = flag(one.name)
    if kind in (bool, bool | None):
        plain += f"/--no-{plain[2:]}"
    names = one.metadata["names"] or plain
    option = helped(
        one.metadata["help"], *names.split(), rule=one.metadata["rule"], panel=panel, shown=shown
    )
    if one.name == "frames":
        option.parser, option.metavar, option.show_default = parse_frames, "auto|N", "auto"
    keyword, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[kind, option]
    return inspect.Parameter(one.name, keyword, default=default, annotation=annotation)


# What the help says of a flag


def _explained(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter whose help text holds its range and default, and whose values are offered."""
    option = _option(parameter)
    if option is None:
        return parameter
    option, kind = copy.copy(option), get_args(parameter.annotation)[0]
    rule: Rule | None = getattr(option, "rule", None)
    shown = option.show_default
    default = shown if isinstance(shown, str) else in_words(parameter.default)
    told = [_range(rule), default and f"default {default}"]
    inside = "; ".join(filter(None, told))
    option.help += f" ({inside})" if inside else ""
    option.show_default = False
    if option.metavar is None:
        option.metavar = _metavar(kind, rule, parameter.name)
    if rule and rule.choices:
        option.autocompletion = _offered(rule.choices)
    if parameter.name == "like":
        option.callback, option.is_eager = like.recall, True
    if parameter.name in like.REPLACED:
        option.callback = like.forget
    return parameter.replace(annotation=Annotated[kind, option])


def _option(parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - as Typer has it
    """Typer's record of a flag; None for an argument."""
    found = getattr(parameter.annotation, "__metadata__", ())
    return next((one for one in found if isinstance(one, typer.models.OptionInfo)), None)


def in_words(default: object) -> str:
    """A default as the help shows it."""
    if default is True:
        return "on"
    if not default or default is inspect.Parameter.empty:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(kind: Any, rule: Rule | None, name: str) -> str | None:  # noqa: ANN401 - a type
    """What stands for a flag's value."""
    if rule and rule.choices:
        return "WORD" if _many(rule) else "|".join(rule.choices)
    kinds = {kind, *get_args(kind)}
    if str in kinds and name in NAMED:
        return NAMED[name]
    return next((word for known, word in METAVARS.items() if known in kinds), None)


def _many(rule: Rule) -> bool:
    """Whether the choices stand in the help text: beside the flag they would leave it no room."""
    return len("|".join(rule.choices)) > WIDEST


def _range(rule: Rule | None) -> str:
    """What a value must be, if it does not stand beside the flag."""
    if rule is None:
        return ""
    return rule.words if rule.choices and _many(rule) else rule.range


def _offered(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What a shell offers while a value is typed."""

    def offer(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return offer


def _place(parameter: inspect.Parameter) -> tuple[int, int]:
    """Arguments come first, then the flags of one panel after the other, the most used first."""
    option = _option(parameter)
    if option is None:
        return -1, 0
    panel, name = option.rich_help_panel or "", parameter.name
    return (
        PANELS.index(panel) if panel in PANELS else len(PANELS),
        FIRST.index(name) if name in FIRST else len(FIRST),
    )
