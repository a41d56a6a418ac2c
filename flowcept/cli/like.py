"""``--like clip``: the settings that made a clip become the defaults of the command.

Typer looks for what no flag says in the context's ``default_map``. So flags that are given count
more, and what a file says is checked as if it had been typed. Only settings that shape the clip
are read from it: a file of somebody else cannot name outputs.
"""

import re
from pathlib import Path
from typing import Any

import typer

from flowcept.errors import UserError

COMMANDS = ("gen", "i2v", "interp", "extend")
LENGTHS = ("frames", "min_length", "max_length", "multi")
# What a flag that is given replaces beside itself.
REPLACED = {
    **dict.fromkeys(LENGTHS, LENGTHS),
    "prompts_file": ("prompts",),
    "device": ("dtype", "threads"),
}
SETTINGS = (
    *("model", "prompt", "negative_prompt", "literal", "seed", "fps", "scale", "size", "loop"),
    *("steps", "guidance", "rate_temperature", "refine", "length_scale", "cache"),
    *("min_length", "max_length", "multi", "dtype", "threads", "fit", "exact", "anyway"),
    *("direction", "context", "target_fps", "slow", "dedupe"),
)
# Without all of these alike, numbers may be rounded in another order.
ORIGIN = {
    "model_digest": "model file",
    "flowcept": "flowcept",
    "torch": "torch",
    "device": "device",
    "dtype": "dtype",
    "threads": "threads",
}


def recall(context: typer.Context, like: Path | None) -> Path | None:
    """Let a clip's settings be the defaults of a command. Raises ``UserError`` if it has none."""
    if like is not None and not context.resilient_parsing:
        record = read(like)
        command, made = str(context.info_name), record.get("command")
        if made not in COMMANDS:
            raise UserError(f"{like} is not a clip and holds no settings: give the clip itself")
        if made != command:
            raise UserError(f"{like} was made by {made}: use flowcept {made} --like {like}")
        context.default_map = defaults(record, command)
    return like


def read(clip: Path) -> dict[str, Any]:
    """The settings that a clip's file holds."""
    from flowcept.data import video

    record = video.read_metadata(clip)
    if record is None or "flowcept" not in record:
        raise UserError(f"{clip} holds no settings of flowcept: give a clip as flowcept wrote it")
    return record


def defaults(record: dict[str, Any], command: str) -> dict[str, Any]:
    """Values of flags by name."""
    found = {name: record[name] for name in SETTINGS if name in record}
    if not re.fullmatch(r"[\w. -]+", str(found.get("model", "theatre"))):
        del found["model"]  # a file of somebody else opens no path and no address
    if record.get("length") is not None:
        found["frames"] = str(record["length"])
    if record.get("device") == "cpu":
        found["device"] = "cpu"
    if command == "gen":
        found["prompts"] = [found.pop("prompt", "")]
    if command == "extend":
        found.pop("scale", None)  # new frames get the clip's size
    return found


def forget(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:  # noqa: ANN401
    """Drop remembered settings that a given flag replaces: a length, all other lengths.

    Typer handles flags that are given before those that are not.
    """
    source = context.get_parameter_source(parameter.name or "")
    if context.default_map and source is not None and source.name == "COMMANDLINE":
        for name in REPLACED[parameter.name or ""]:
            context.default_map.pop(name, None)
    return value


def difference(record: dict[str, Any], now: dict[str, Any]) -> str:
    """Why a clip that is made again may not be the same, "" if nothing speaks against it."""
    told = [
        f"{word} {_short(now.get(name))} (was {_short(record.get(name))})"
        for name, word in ORIGIN.items()
        if record.get(name) != now.get(name)
    ]
    return ", ".join(told)


def _short(value: object) -> str:
    """A value, of a digest its first letters."""
    return "not recorded" if value is None else str(value)[:12]
