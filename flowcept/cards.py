"""The card of a model in words: what it makes, what it knows, how it was made, what it cannot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from flowcept.errors import counted

WIDTH, MARGIN = 100, 11  # characters of a line, and of the names beside it

LIMITS = {
    "words": "words that are not among these do nothing; commands name them",
    "lengths": "lengths beyond those of the clips that it learned from are a guess",
    "size": "it makes frames of one size; pictures that are given are fitted to it",
    "kind": "pictures unlike those that it learned from come out badly, or are refused",
    "motion": "it reads no words, and knows nothing of before the first or after the last picture",
    "gaps": "where pictures differ by more than motion, what lies between dissolves",
}


def lines(record: Mapping[str, Any]) -> list[str]:
    """What ``model_file.describe`` found, in the order in which people ask."""
    facts = [*_what(record), *_knowledge(record), *_origin(record), *_limits(record)]
    return [line for name, text in facts for line in _wrapped(name, text)]


def _wrapped(name: str, text: str) -> list[str]:
    """A name and its text beside it, on as many lines as it takes; commands stay whole."""
    if text.startswith("flowcept "):
        return [f"{name:<{MARGIN}}{text}"]
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{name:<{MARGIN}}", subsequent_indent=" " * MARGIN
    )


def _what(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    million = record["parameters"]["total"] / 1e6
    size = f"{million:.1f} million weights"
    if "file" in record:
        size = f"{record['bytes'] / 1e6:.1f} MB, {size}"
    yield "model", f"{record.get('file') or record['name']}: {size}"
    yield "commands", record["tasks"]
    yield "makes", f"{record['frames']}; clips of {record['lengths']}"


def _knowledge(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "words" in record:
        yield "words", record["words"]
    if "prompts" in record:
        yield "prompts", record["prompts"]
    if "lexicon" in record:
        yield "lexicon", f"{record['lexicon']}: prompts are read in these, too"


def _origin(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the model learned from, and the commands that make it."""
    trainings = record["trainings"]
    if record["steps"]:
        steps = counted(record["steps"], "step")
        yield "learned", f"from {record['dataset']}; {steps} of training"
    else:
        yield "learned", f"not by flowcept: {record['dataset']}"
    if "base" in record:
        yield "base", f"{record['base']['source']}, without which this adapter makes nothing"
    for number, training in enumerate(trainings):
        seen = f"{counted(training['steps'], 'step')}, {counted(training['seen'], 'clip')} seen"
        if "--max-hours" in training["command"]:
            seen += "; hours end it, so that another machine takes more or fewer steps"
        yield "made by" if number == 0 else "", training["command"]
        yield "", f"({seen})"
    if record["codec_psnr"] is not None:
        rebuilt = f"{record['codec_psnr']:.1f} dB or better"
        yield "codec", f"19 of 20 pictures that it learned from are rebuilt at {rebuilt}"
    if record.get("shipped"):
        yield "more", "figures, data and licence: weights/README.md in the source"


def _limits(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = ["lengths", "kind"]
    if record["tasks"] == "interp":
        names = ["motion", "gaps"]
    elif "lora" not in record["network"]:  # no pretrained one, which makes other sizes as well
        names.insert(1, "size")
    if "words" in record and record["text"]["kind"] == "bytes":  # it read no others before
        names.insert(0, "words")
    for name in names:
        yield "limits" if name == names[0] else "", LIMITS[name]
