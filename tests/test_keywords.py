"""Keywords of the four methods: typed and documented one by one, as the records have them.

``python tests/test_keywords.py`` writes flowcept/keywords.py anew where a record has changed.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import Field, fields
from pathlib import Path

import pytest

from flowcept import keywords
from flowcept.generation import Studio
from flowcept.keywords import OF_COMMAND, records
from flowcept.settings import ClipConfig, SampleConfig

PAGE = Path(keywords.__file__)
METHODS = {"gen": "generate", "i2v": "i2v", "interp": "interp", "extend": "extend"}
START, END = "# ---- from the records", "# ---- to here"

# What each class has beside what it inherits, and of which type, where a record says it otherwise.
OF_ALL = [
    *(one.name for one in fields(SampleConfig)),
    *("negative_prompt", "seed", "fps", "scale", "loop", "literal", "config", "watch"),
]
OF_INTERP = ["multi", "clip_fps", "sound"]
OF_EXTEND = ["direction", "context", "anyway", "clip_fps", "sound"]
CLASSES: dict[str, tuple[str, list[str], str]] = {
    "Keywords": ("TypedDict, total=False", OF_ALL, "Keywords of all four methods"),
    "PictureKeywords": ("Keywords, total=False", ["fit", "exact", "anyway"], "Keywords of ``i2v``"),
    "InterpKeywords": ("PictureKeywords, total=False", OF_INTERP, "Keywords of ``interp``"),
    "ExtendKeywords": ("Keywords, total=False", OF_EXTEND, "Keywords of ``extend``"),
}  # fmt: skip
TYPES = {"frames": 'int | Literal["auto"] | None', "sound": "str | Path | Sound | None"}


def type_of(one: Field) -> str:
    if one.name in TYPES:
        return TYPES[one.name]
    return one.type.__name__ if isinstance(one.type, type) else str(one.type)


def written() -> str:
    """The classes, as the records have them."""
    lines = []
    for name, (parents, names, meaning) in CLASSES.items():
        lines += ["", "", f"class {name}({parents}):", f'    """{meaning}."""', ""]
        for key in names:
            one = records()[key]
            told = textwrap.wrap(one.metadata["help"], 90)
            quoted = [f'"""{told[0]}', *told[1:]]
            quoted[-1] += '"""'
            lines += [f"    {key}: {type_of(one)}", *(f"    {line}" for line in quoted)]
    return "\n".join(lines) + "\n\n\n"


def replaced(source: str) -> str:
    """The file's text with its classes written anew."""
    before, _, rest = source.partition(START)
    rule, _, _ = rest.partition("\n")
    after = source[source.index(END) :]
    return f"{before}{START}{rule}\n{written()}{after}"


def test_classes_are_as_the_records() -> None:
    source = PAGE.read_text(encoding="utf-8")
    assert replaced(source) == source, "run python tests/test_keywords.py"
    for planted in ("    seed: int | None\n", records()["seed"].metadata["help"][:20]):
        assert source != source.replace(planted, "")
        assert replaced(source.replace(planted, "")) == source


def test_every_setting_of_a_clip_is_a_keyword() -> None:
    every = {name for kind in OF_COMMAND.values() for name in kind.__annotations__}
    asked = {one.name for kind in (SampleConfig, ClipConfig) for one in fields(kind)}
    assert asked - every == {"count"}  # which decides what is returned, so a parameter
    assert every - asked == {"config", "watch", "clip_fps", "sound"}


@pytest.mark.parametrize("command", METHODS)
def test_help_and_signature_name_every_keyword(command: str) -> None:
    method = getattr(Studio, METHODS[command])
    parameters = inspect.signature(method).parameters
    told = inspect.getdoc(method)
    for name in OF_COMMAND[command].__annotations__:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n    {name}: " in told
        assert records()[name].metadata["help"][:40] in told
    assert parameters["count"].default == 1
    assert parameters["frames"].default == "auto"
    assert parameters["steps"].default == (4 if command == "interp" else 8)
    kinds = {one.kind for one in parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
