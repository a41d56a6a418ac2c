"""The page of settings names every setting of sampling and training, each with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from flowcept.settings import MotionTrainConfig, SampleConfig, TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
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
    page = PAGE.read_text(encoding="utf-8")
    known = {one.name: printed(one.default) for one in fields(record)}
    assert told(page, record.__name__) == known


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
    page = PAGE.read_text(encoding="utf-8")
    assert right in page
    changed = page.replace(right, wrong)
    assert told(changed, "ProcessSettings") != told(page, "ProcessSettings")
