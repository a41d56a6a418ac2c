"""Keywords of the four methods that make clips, for type checkers, editors and ``help``.

The classes stand here as the records of settings have them, name for name; where a record has
changed, ``python tests/test_keywords.py`` writes them anew.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from flowcept.data.video import Sound
from flowcept.errors import suggestion
from flowcept.request import Request, Watch
from flowcept.settings import ClipConfig, SampleConfig, defaults

One = Literal[1]
Prompts = str | list[str] | tuple[str, ...]
Method = TypeVar("Method", bound=Callable[..., Any])

# ---- from the records --------------------------------------------------------------------------


class Keywords(TypedDict, total=False):
    """Of all four methods."""

    steps: int
    """denoising steps; more take longer and show more detail"""
    guidance: float
    """how closely clips follow the prompt; 1: no guidance"""
    rate_temperature: float
    """how much lengths and places of frames vary; 0: always the likeliest, over 1: more"""
    refine: float
    """once all frames are there, clean them again from this flow time on; 0: off"""
    frames: int | Literal["auto"] | None
    """frames of the clip; auto: the model chooses"""
    min_length: int | None
    """fewest frames; default as in training"""
    max_length: int | None
    """most frames; default as in training"""
    length_scale: float
    """multiplies the number of frames that the model wants to add"""
    cache: bool
    """compute finished frames once, after the last frame has come: a third less work"""
    negative_prompt: str
    """what the clip should not show"""
    seed: int | None
    """the same seed makes the same clip; default a random one"""
    fps: float | None
    """frames a second of playing; default the model's or the clip's"""
    scale: int | None
    """enlarge so many times; default to a short side of 256 pixels"""
    loop: bool
    """add frames from the last one back to the first; lengths count them"""
    literal: bool
    """read no word as another one that the model knows"""
    config: SampleConfig
    """all controls of the sampler at once; keywords replace single ones"""
    watch: Watch | None
    """a function that is called with every step of the sampler"""


class PictureKeywords(Keywords, total=False):
    """Of ``i2v``."""

    fit: str
    """how a picture gets the model's size: crop, pad or stretch"""
    exact: bool | None
    """put your own pixels into the given frames; default where sizes match"""
    anyway: bool
    """go on with pictures that the model cannot show well"""


class InterpKeywords(PictureKeywords, total=False):
    """Of ``interp``."""

    multi: int
    """frames between one keyframe and the next; default 1 in a clip"""
    clip_fps: float | None
    """rate of what is given; default the clip's own, of pictures the model's"""
    sound: str | Path | Sound | None
    """a file whose sound is kept; default the clip's, None: silent"""


class ExtendKeywords(Keywords, total=False):
    """Of ``extend``."""

    direction: str
    """where new frames go: forward, after the clip, backward, or both"""
    context: int | None
    """frames of the clip that the model sees; default 8 or what it can"""
    anyway: bool
    """go on with pictures that the model cannot show well"""
    clip_fps: float | None
    """rate of what is given; default the clip's own, of pictures the model's"""
    sound: str | Path | Sound | None
    """a file whose sound is kept; default the clip's, None: silent"""


# ---- to here -----------------------------------------------------------------------------------

OF_COMMAND = {
    "gen": Keywords,
    "i2v": PictureKeywords,
    "interp": InterpKeywords,
    "extend": ExtendKeywords,
}


def records() -> dict[str, Field[Any]]:
    """The field of every keyword."""
    kinds = (Request, ClipConfig, SampleConfig)
    return {one.name: one for kind in kinds for one in fields(kind)}


def check_known(command: str, words: Iterable[str]) -> None:
    """Raise ``TypeError`` for a keyword that the method of a command does not have."""
    names = ["count", *OF_COMMAND[command].__annotations__]
    for word in words:
        if word not in names:
            raise TypeError(f"{command} has no keyword {word!r}{suggestion(word, names)}")


def documented(command: str) -> Callable[[Method], Method]:
    """Let ``help`` and notebooks see each keyword of a method, its default and its meaning."""
    own, types = records(), OF_COMMAND[command].__annotations__
    usual = {**vars(defaults(command)), "frames": "auto", "config": None}
    words = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=usual.get(name, own[name].default),
            annotation=kind,
        )
        for name, kind in types.items()
    ]
    told = [f"    {name}: {own[name].metadata['help']}" for name in ("count", *types)]

    def decorated(method: Method) -> Method:
        signature = inspect.signature(method)
        given = list(signature.parameters.values())[:-1]  # without what takes all keywords
        completed = signature.replace(parameters=[*given, *words])
        method.__signature__ = completed  # type: ignore[attr-defined]
        method.__doc__ = "\n".join([inspect.cleandoc(method.__doc__ or ""), "", "Keywords:", *told])
        return method

    return decorated
