"""The pages: every block runs, every link leads somewhere, generated pages are as generated now."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pytest

from flowcept.settings import PRESETS, MotionTrainConfig, SampleConfig, TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("weights/*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^(?:<!-- ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Pages whose shell and Python blocks run here. On the others stand commands of hours or days, of
# data and models that are not part of this project.
GUIDES = ("README.md", "docs/captions.md", "docs/presets.md", "docs/CONTRIBUTING.md")

# Blocks of the guides that do not run, by the reason that their marker gives.
NOT_RUN = {
    "command: main": 1,  # .ci/run runs these two, in a fresh environment
    "command: tests": 1,
    "not run: installs into the reader's own environment": 1,
    "not run: a minute of the processor; tests/training trains such a model": 1,
    "not run: takes 25 minutes and makes an environment of its own": 1,
}

# What is added to a command as it stands, so that it takes seconds.
SHORTER = {
    "gen": "--steps 2 --scale 1 --length-scale 0.5",
    "i2v": "--steps 2 --scale 1",
    "extend": "--steps 2 --scale 1",
    "shapes": "--clips 12",
    "train": "--steps 1 --codec-steps 1 --codec-width 8 --hidden 32 --heads 1 --depth 1 --size 32",
    "evaluate": "--clips 4 --steps 2",
}
LONGEST = 300  # seconds of one block, on a busy machine


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment on the line above it."""

    marker: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and not self.marker


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page)]


def guide(name: str) -> list[Block]:
    return blocks((ROOT / name).read_text(encoding="utf-8"))


# Every block runs


def command(folder: Path) -> None:
    """Put a ``flowcept`` into the folder that is the real one with flags that make it short."""
    path = folder / "flowcept"
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"shorter = {SHORTER!r}\n"
        "words = sys.argv[1:]\n"
        "more = [] if '--resume' in words else shorter.get(words[0], '').split()\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'flowcept', *words, *more])\n",
        encoding="utf-8",
    )
    path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_every_block_runs_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    """In order, from what the blocks above it made; a block marked as a file becomes that file."""
    tools, folder = tmp_path / "bin", tmp_path / "empty"
    tools.mkdir()
    folder.mkdir()
    command(tools)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    for block in guide(name):
        if block.marker.startswith("file: "):
            (folder / block.marker.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        if not block.runs:
            continue
        shell = ["bash", "-euo", "pipefail", "-c"]
        program = shell if block.language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, block.text], cwd=folder, env={**os.environ, "PATH": path},
            capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}:\n{block.text}\n{done.stderr[-2000:]}"


def test_blocks_that_do_not_run_are_counted() -> None:
    """The list cannot grow unseen: a new one is entered above, with its reason."""
    code = [block for name in GUIDES for block in guide(name) if block.language in ("sh", "python")]
    assert Counter(block.marker for block in code if not block.runs) == NOT_RUN


def test_a_marker_is_read_as_one() -> None:
    page = "<!-- not run: needs a GPU -->\n```sh\ntrue\n```\n\n```python\nprint()\n```\n"
    first, second = blocks(page)
    assert first == Block("not run: needs a GPU", "sh", "true\n")
    assert not first.runs
    assert second.runs


def test_every_page_with_commands_is_a_guide_or_of_long_work() -> None:
    others = {
        "docs/evidence.md", "docs/performance.md", "docs/backbones.md",
        "weights/README.md",
    }  # fmt: skip
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        if name.startswith("docs/archive/") or name in others or name in GUIDES:
            continue
        assert not [block for block in guide(name) if block.runs], f"{name} belongs to GUIDES"


# Links


def without_blocks(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """Names under which GitHub finds the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def dead_links(page: Path) -> list[str]:
    """Links and pictures that lead to no file, or to no heading of it; the web is not asked."""
    text = without_blocks(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    dead = []
    for target in targets:
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two` (3)\n[a](#one-two-3) [b](#one) [c](gone.md) ![d](https://e.f/g)\n")
    assert dead_links(page) == ["#one", "gone.md"]


def test_every_page_is_listed() -> None:
    """``docs/README.md`` leads to every page and picture folder of ``docs``."""
    index = ROOT / "docs" / "README.md"
    listed = set(re.findall(r"\]\(([^)#\s]+)\)", index.read_text(encoding="utf-8")))
    pages = {page.relative_to(index.parent).as_posix() for page in index.parent.rglob("*.md")}
    assert pages - {"README.md"} <= listed


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


# Generated pages


def test_every_field_of_python_has_a_meaning() -> None:
    rows = re.findall(r"^\| `\w+` \|.*", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    assert len(rows) == 20
    assert not [row for row in rows if row.endswith("|  |")]


def test_references_are_as_the_code_is_now() -> None:
    script = ROOT / "docs" / "reference.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout or done.stderr


# Settings

SETTINGS = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
CONFIGS = (TrainConfig, MotionTrainConfig)
RECORDS = [SampleConfig, *(one for kind in CONFIGS for one in get_type_hints(kind).values())]


def told(page: str, record: str) -> dict[str, str]:
    """Defaults by name in the section of a record, of the rows that say when to change them."""
    _, _, rest = page.partition(f": `{record}`\n")
    section, _, _ = rest.partition("\n## ")
    return dict(re.findall(r"^\| `(\w+)` \| `([^`|]+)` \| [^|]*\w[^|]* \|$", section, re.MULTILINE))


def printed(default: object) -> str:
    """A default as the help prints it."""
    return "none" if default in (None, "") else str(default)


@pytest.mark.parametrize("record", RECORDS)
def test_every_setting_stands_on_the_page_with_its_default(record: type) -> None:
    known = {one.name: printed(one.default) for one in fields(record)}
    assert told(SETTINGS, record.__name__) == known


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| `late` | `0.5` |", "| `late` | `0.4` |"),
        ("| `late` | `0.5` |", "| `early` | `0.5` |"),
        ("| `shift` | `1.0` |", "| `shift` |"),
        (": `ProcessSettings`", ": `OtherSettings`"),
    ],
)
def test_planted_mistake_is_seen(right: str, wrong: str) -> None:
    assert right in SETTINGS
    changed = SETTINGS.replace(right, wrong)
    assert told(changed, "ProcessSettings") != told(SETTINGS, "ProcessSettings")


def test_presets_stand_on_the_page() -> None:
    """A column for each preset; where it sets nothing the cell is empty, but for the usual one."""
    usual = TrainConfig().flat()
    changed = {name for preset in PRESETS.values() for name in preset}
    section = SETTINGS.partition("## What the presets set\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE)
    cells = {name: [cell.strip(" `") for cell in row.split("|")] for name, row in rows}
    for column, preset in enumerate(("tiny", "small", "base")):
        given = usual if preset == "small" else PRESETS[preset]
        told_here = {name: row[column] for name, row in cells.items() if row[column]}
        assert told_here == {name: str(given[name]) for name in changed if name in given}
