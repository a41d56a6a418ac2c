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
    """Keywords of all four methods."""

    steps: int
    """denoising steps; more steps take longer and show more detail"""
    guidance: float
    """how closely clips follow the prompt; 1: no guidance"""
    rate_temperature: float
    """how much the number and places of new frames vary; 0: the likeliest, over 1: more varied"""
    refine: float
    """when all frames are made, denoise them again from this flow time; 0: off"""
    frames: int | Literal["auto"] | None
    """frames of the clip; auto: the model chooses"""
    min_length: int | None
    """fewest frames; default as in the training clips"""
    max_length: int | None
    """most frames; default as in the training clips"""
    length_scale: float
    """multiplies the number of frames that the model would add"""
    cache: bool
    """compute finished frames only once: a third less work, more memory"""
    negative_prompt: str
    """what the clip should not show"""
    seed: int | None
    """the same seed makes the same clip; default a random one"""
    fps: float | None
    """frames per second; default the model's, or those of the given clip"""
    scale: int | None
    """enlarge frames this many times; default to a short side of at least 256 pixels"""
    loop: bool
    """add frames that lead from the last one back to the first; lengths include them"""
    literal: bool
    """keep your words: replace none by words that the model knows"""
    config: SampleConfig
    """all settings of the sampler at once; keywords change single ones"""
    watch: Watch | None
    """a function that is called with each step of the sampler"""


class PictureKeywords(Keywords, total=False):
    """Keywords of ``i2v``."""

    fit: str
    """how a picture gets the model's size: crop, pad or stretch"""
    exact: bool | None
    """keep the exact pixels of given frames; default where sizes match"""
    anyway: bool
    """continue even if the model cannot show the given pictures well"""


class InterpKeywords(PictureKeywords, total=False):
    """Keywords of ``interp``."""

    multi: int
    """new frames in each gap between keyframes; 0: one for a clip, else the model chooses"""
    clip_fps: float | None
    """frames per second of what is given; default the clip's own, for pictures the model's"""
    sound: str | Path | Sound | None
    """a file whose sound the clip gets; default the given clip's, None: no sound"""


class ExtendKeywords(Keywords, total=False):
    """Keywords of ``extend``."""

    direction: str
    """where new frames go: forward (after the clip), backward (before it) or both"""
    context: int | None
    """frames of the clip that the model sees; default at most 8"""
    anyway: bool
    """continue even if the model cannot show the given pictures well"""
    clip_fps: float | None
    """frames per second of what is given; default the clip's own, for pictures the model's"""
    sound: str | Path | Sound | None
    """a file whose sound the clip gets; default the given clip's, None: no sound"""


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
