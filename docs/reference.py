"""Writes docs/commands.md from the commands' help and docs/api.md from the docstrings.

python docs/reference.py            # writes both pages
python docs/reference.py --check    # only says whether they are as they would be written now
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import typer
import typer.main

import flowcept
from flowcept import cli, errors, generation, settings

DOCS = Path(__file__).parent
WRITTEN = "*Written by `python docs/reference.py`; the tests hold it up to date.*"
PUBLIC = (
    flowcept.load,
    generation.Studio,
    generation.Clip,
    settings.SampleConfig,
    errors.UserError,
)
INSIDE = ("check_task", "estimate", "usual", "refine_age", "most_steps", "shown")  # of the program


def commands_page() -> str:
    """Every command with its arguments and flags, in the groups of its help."""
    group = typer.main.get_command(cli.app)
    top = typer.Context(group, info_name="flowcept")
    lines = ["# Commands", "", WRITTEN, "", "`flowcept COMMAND --help` prints the same.", ""]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=name, parent=top)
        lines += ["", f"## flowcept {name}", "", command.help or "", ""]
        for title, rows in panels(command.get_params(context), context).items():
            lines += [f"### {title}: {name}", "", "| name | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def panels(parameters: list[Any], context: typer.Context) -> dict[str, list[str]]:
    """Rows of the table of each group: names and values, then what they mean."""
    found: dict[str, list[str]] = {}
    for one in parameters:
        record = one.get_help_record(context)
        if record is None or "--help" in one.opts:
            continue
        plain = "Arguments" if one.param_type_name == "argument" else "Options"
        title = getattr(one, "rich_help_panel", None) or plain
        names, meaning = map(in_table, record)
        found.setdefault(title, []).append(f"| `{names}` | {meaning} |")
    return found


def in_table(text: str) -> str:
    """Text that a cell of a table can hold."""
    return " ".join(text.replace("|", "\\|").split())


def api_page() -> str:
    """Every public function and class of Python: signature and docstring."""
    lines = ["# Python", "", WRITTEN, ""]
    for one in PUBLIC:
        lines += ["", *(class_lines(one) if isinstance(one, type) else function_lines(one, "##"))]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def class_lines(kind: type) -> list[str]:
    """A class: its docstring, its fields, its public methods and properties."""
    lines = [f"## {kind.__name__}", "", f"`{kind.__module__}.{kind.__name__}`", "", prose(kind), ""]
    if is_dataclass(kind):
        lines += ["| field | default | meaning |", "|---|---|---|"]
        lines += [*(field_row(kind, one) for one in fields(kind)), ""]
    for name, one in vars(kind).items():
        hidden = name.startswith("_") and name not in ("__len__", "__getitem__", "__iter__")
        if hidden or name in INSIDE:
            continue
        if isinstance(one, property) and one.__doc__:
            lines += [f"### {kind.__name__}.{name}", "", prose(one), ""]
        elif inspect.isfunction(one) and one.__doc__:
            lines += [*function_lines(one, "###", f"{kind.__name__}."), ""]
    return lines


def field_row(kind: type, one: Field[Any]) -> str:
    """A field of a record; what it means, by its metadata or else its comment."""
    value = one.default if one.default_factory is MISSING else one.default_factory()
    default = "" if value is MISSING else f"`{value!r}`"
    meaning = one.metadata.get("help") or comment(kind, one.name)
    return f"| `{one.name}` | {default} | {in_table(meaning)} |"


def comment(kind: type, name: str) -> str:
    """What stands behind a field in the class's source."""
    found = re.search(rf"^    {name}: .*  # (.+)$", inspect.getsource(kind), re.MULTILINE)
    return found[1] if found else ""


def function_lines(function: Any, depth: str, owner: str = "") -> list[str]:  # noqa: ANN401
    """A function: a parameter a line, then its docstring."""
    signature = inspect.signature(function)
    given = [one for one in signature.parameters.values() if one.name != "self"]
    named = [parameter(one) for one in given]
    kinds = [one.kind for one in given]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        named.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")

    returns = signature.return_annotation
    result = "" if returns is signature.empty else f" -> {annotation(returns)}"
    name = f"{owner}{function.__name__}"
    code = f"{name}({', '.join(named)}){result}"
    if len(code) > 80:
        code = f"{name}(\n    " + ",\n    ".join(named) + f",\n){result}"
    return [f"{depth} {name}", "", "```text", code, "```", "", prose(function)]


def parameter(one: inspect.Parameter) -> str:
    """A parameter as it is written in code."""
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    kind = "" if one.annotation is one.empty else f": {annotation(one.annotation)}"
    default = "" if one.default is one.empty else f" = {one.default!r}"
    return f"{stars}{one.name}{kind}{default}"


def annotation(kind: object) -> str:
    """A type as it is written in code."""
    written = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", written)


def prose(thing: object) -> str:
    """A docstring as Markdown; what it says of single keywords becomes a list."""
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    text = re.sub(r"^Keywords:\n", "Keywords:\n\n", text, flags=re.MULTILINE)
    return re.sub(r"^    (\w+): ", r"* `\1`: ", text, flags=re.MULTILINE)


def pages() -> Iterator[tuple[Path, str]]:
    yield DOCS / "commands.md", commands_page()
    yield DOCS / "api.md", api_page()


def main() -> int:
    if "--check" not in sys.argv:
        for path, text in pages():
            path.write_text(text, encoding="utf-8")
        return 0
    old = [path.name for path, text in pages() if path.read_text(encoding="utf-8") != text]
    if old:
        print(f"{', '.join(old)}: not as the code is now; run python docs/reference.py")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
