"""Words that people use, and the words of a model's captions for which they stand.

A lexicon lists words and short phrases by kind and class: of the action "surfing", say, "riding a
wave". It reads prompts, where such words give way to their class, and it words captions anew in
training. It is a part of the model file, so that a file is self-contained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flowcept.errors import UserError
from flowcept.settings import from_mapping, shown

Draw = Callable[[], float]  # a random number, at least 0 and under 1

COMMON_WORDS = frozenset(
    ["a", "an", "the", "in", "on", "at", "of", "and", "with", "to", "is", "are", "by", "from"]
)
# What may stand before a noun. Where a class begins with such a word, those before it give way.
LEADING = frozenset([
    "a", "an", "the", "in", "on", "at", "of", "to", "by", "from", "with", "into", "onto", "through",
    "across", "over", "under", "along", "near", "during", "towards", "toward", "past", "beside",
    "for", "around", "inside", "within", "amid", "among", "its", "his", "her", "their", "this",
    "that", "some",
])  # fmt: skip
# Words that no entry is found by, except by the last of a phrase: "falling over".
PASSED_OVER = COMMON_WORDS | LEADING | {"s", "it", "he", "she", "they", "was", "were", "be", "been"}
REACH = 4  # words from one of a phrase to its next at most: "riding a truly big wave"
VOWELS = frozenset("aeiouy")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """A piece of a text, by characters, that stands for a class."""

    start: int
    end: int
    name: str  # of the class
    again: bool = False  # whether the class stands further left too


@dataclass(frozen=True)
class Reading:
    """A text in the words of classes."""

    text: str
    changes: dict[str, str] = field(default_factory=dict)  # what was written: what it is read as

    def __str__(self) -> str:
        """The changes in one line."""
        return "; ".join(f"{written}: {read}" for written, read in self.changes.items())


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases for classes, and forms of words that no rule makes."""

    classes: dict[str, dict[str, tuple[str, ...]]]  # by kind, then by class
    irregular: dict[str, str] = field(default_factory=dict)  # "ran": "run"

    @staticmethod
    def load(path: Path) -> Lexicon:
        """Read a JSON file; ``UserError``, one line, for one that is missing or no lexicon."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the lexicon {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a lexicon: not JSON ({error})") from error
        try:
            return from_mapping(Lexicon, found)
        except UserError as error:
            raise UserError(f"{path} is not a lexicon: {error}") from error

    def __post_init__(self) -> None:
        """Raise ``UserError`` for a class that no text can hold, or that two kinds have."""
        names = [name for known in self.classes.values() for name in known]
        empty = [name for name in names if not content(name)]
        if empty:
            raise UserError(f"the class {shown(empty[0])} has no word to find it by")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"the class {shown(twice)} is of two kinds")

    def __str__(self) -> str:
        """How much it holds, in words."""
        phrases = sum(map(len, self._words.values()))
        return f"{phrases} words and phrases for {len(self._words)} classes"

    def within(self, known: Collection[str]) -> Lexicon:
        """The same for the classes all of whose words are known."""
        kept = {
            kind: {name: words for name, words in names.items() if {*content(name)} <= {*known}}
            for kind, names in self.classes.items()
        }
        return Lexicon({kind: names for kind, names in kept.items() if names}, self.irregular)

    def stem(self, word: str) -> str:
        """What the forms of a word have in common."""
        return stem(self.irregular.get(word, word))

    def passages(self, text: str) -> list[Passage]:
        """What stands for classes in a text, from left to right; the longest phrase wins."""
        spots = list(WORD.finditer(text.lower()))
        words = [spot[0] for spot in spots]
        found, names, place, free = list[Passage](), set[str](), 0, 0
        while place < len(words):
            last, name = self._longest(words, place)
            if not name:
                place += 1
                continue
            first = place
            while (_lead(name) or name in names) and first > free and words[first - 1] in LEADING:
                first -= 1
            found.append(Passage(spots[first].start(), spots[last].end(), name, name in names))
            names.add(name)
            place = free = last + 1
        return found

    def read(self, text: str, known: Collection[str] = ()) -> Reading:
        """A text with classes in place of what stands for them, each once.

        Single ``known`` words stay.
        """
        changes: dict[str, str] = {}
        for passage in reversed(self.passages(text)):
            written = text[passage.start : passage.end]
            if written.lower() not in (passage.name.lower(), *known):
                changes[written] = passage.name
                text = _replaced(text, passage, "" if passage.again else passage.name)
        return Reading(text, dict(reversed(changes.items())))

    def paraphrase(self, caption: str, share: float, draw: Draw) -> str:
        """A caption with a ``share`` of its classes replaced by words that stand for them."""
        for passage in reversed(self.passages(caption)):
            written, choices = caption[passage.start : passage.end], self._words[passage.name]
            if written.lower() == passage.name.lower() and choices and draw() < share:
                chosen = choices[int(draw() * len(choices))]
                caption = _replaced(caption, passage, _lead(passage.name) + chosen)
        return caption

    @cached_property
    def _words(self) -> dict[str, tuple[str, ...]]:
        return {name: words for names in self.classes.values() for name, words in names.items()}

    @cached_property
    def _entries(self) -> dict[str, list[tuple[list[str], str]]]:
        """Words of a phrase and its class, by the stem of the first word."""
        entries: dict[str, list[tuple[list[str], str]]] = {}
        for name, phrases in self._words.items():
            for phrase in (name, *phrases):
                if words := content(phrase):
                    entries.setdefault(self.stem(words[0]), []).append((words, name))
        return entries

    @cached_property
    def _alone(self) -> frozenset[str]:
        """Stems of words that stand for a class alone."""
        listed = self._entries.items()
        return frozenset(key for key, found in listed if any(len(words) == 1 for words, _ in found))

    def _longest(self, words: Sequence[str], place: int) -> tuple[int, str]:
        """Last word and class of the best entry that begins at a word; no class: there is none.

        Of entries of equally many words the one of which more stand there in the same form wins.
        """
        best = (0, 0)
        last, name = place, ""
        if words[place] in PASSED_OVER:
            return last, name
        for phrase, entry in self._entries.get(self.stem(words[place]), ()):
            places = self._found(phrase, words, place)
            same = sum(words[at] == word for at, word in zip(places, phrase, strict=False))
            if len(places) == len(phrase) and (len(phrase), same) > best:
                best = len(phrase), same
                last, name = places[-1], entry
        return last, name

    def _found(self, phrase: Sequence[str], words: Sequence[str], place: int) -> list[int]:
        """Where the words of a phrase stand, from ``place`` on, as far as they do."""
        places = [place]
        for wanted in phrase[1:]:
            after = self._next(self.stem(wanted), words, places[-1] + 1)
            if after is None:
                break
            places.append(after)
        return places

    def _next(self, wanted: str, words: Sequence[str], start: int) -> int | None:
        """The place of a stem within reach; what stands for a class alone is not passed over."""
        for place in range(start, min(start + REACH, len(words))):
            met = self.stem(words[place])
            if met == wanted:
                return place
            if met in self._alone and words[place] not in PASSED_OVER:
                return None
        return None


def content(phrase: str) -> list[str]:
    """The words of a phrase by which it is found."""
    words = WORD.findall(phrase.lower())
    found = [word for word in words if word not in PASSED_OVER]
    return found + words[-1:] if found and words[-1] in PASSED_OVER else found


def stem(word: str) -> str:
    """A word without -s, -ed or -ing, and without what these change at its end."""
    if not word.endswith(("ss", "us", "is")):  # grass, bus, iris
        word = _without(word, ("ies", "y"), ("s", ""))
    word = _without(word, ("ied", "y"), ("ing", ""), ("ed", "")).removesuffix("e")
    doubled = len(word) > 2 and word[-1] == word[-2]
    return word[:-1] if doubled else word


def _without(word: str, *endings: tuple[str, str]) -> str:
    """A word with the first ending that it has replaced, where a syllable is left."""
    for ending, instead in endings:
        root = word.removesuffix(ending)
        if root != word and len(root) > 1 and VOWELS & set(root + instead):
            return root + instead
    return word


def _lead(name: str) -> str:
    """The words of a class before the first by which it is found: "in the " of "in the snow"."""
    spots = WORD.finditer(name.lower())
    start = next((spot.start() for spot in spots if spot[0] not in PASSED_OVER), 0)
    return name[:start]


def _replaced(text: str, passage: Passage, words: str) -> str:
    """A text with other words for a passage, and the article that fits them."""
    before, after = text[: passage.start], text[passage.end :]
    if not words:
        return before.rstrip() + after
    article = re.search(r"\b(a)n?(\s+)$", before, re.IGNORECASE)
    if article:
        fitting = article[1] + ("n" if words[0] in "aeio" else "")
        before = before[: article.start()] + fitting + article[2]
    return before + words + after
