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
from typing import NamedTuple

from flowcept.errors import UserError
from flowcept.settings import from_mapping, shown

Draw = Callable[[], float]  # a random number, at least 0 and under 1

COMMON_WORDS = frozenset(
    ["a", "an", "the", "in", "on", "at", "of", "and", "with", "to", "is", "are", "by", "from"]
)
DETERMINERS = frozenset(["a", "an", "the", "its", "his", "her", "their", "this", "that", "some"])
PREPOSITIONS = frozenset([
    "in", "on", "at", "of", "to", "by", "from", "with", "into", "onto", "through", "across", "over",
    "under", "along", "near", "during", "towards", "toward", "past", "beside", "for", "around",
    "inside", "within", "amid", "among", "outside", "behind", "between",
])  # fmt: skip
# What may stand before a noun. Where a phrase begins with such a word, those before it give way.
LEADING = DETERMINERS | PREPOSITIONS
JOINING = LEADING | {"and"}  # which give way with a class that has been named
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
    read: str  # what it gives way to: the class, or nothing where that stands further left too


@dataclass(frozen=True)
class Reading:
    """A text in the words of classes."""

    text: str
    changes: dict[str, str] = field(default_factory=dict)  # what was written: what it is read as

    def __str__(self) -> str:
        """The changes in one line."""
        return "; ".join(f"{written}: {read}" for written, read in self.changes.items())


class _Entry(NamedTuple):
    """A phrase that stands for a class."""

    words: list[str]  # by which it is found
    name: str  # of the class
    kind: str
    led: bool  # whether articles and prepositions before it give way


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
        spots = list(WORD.finditer(text))
        words = [spot[0].lower() for spot in spots]
        found, names, free = list[Passage](), set[str](), 0
        for first, last, entry in self._meant(text, spots, words):
            start, read = first, entry.name
            if entry.name in names:
                start, read = _passed(words, first, free, JOINING), ""
            elif entry.led:
                start = _passed(words, first, free, LEADING)
                if free < start == first and _beside(text, *spots[first - 1 : first + 1]):
                    read = entry.name.removeprefix(_lead(entry.name))  # after an adjective
            found.append(Passage(spots[start].start(), spots[last].end(), entry.name, read))
            names.add(entry.name)
            free = last + 1
        return found

    def read(self, text: str, known: Collection[str] = ()) -> Reading:
        """A text with classes in place of what stands for them, each once.

        Single ``known`` words stay.
        """
        changes: dict[str, str] = {}
        for passage in reversed(self.passages(text)):
            written = " ".join(text[passage.start : passage.end].split())
            if written.lower() not in (passage.name.lower(), passage.read.lower(), *known):
                changes[written] = passage.read or "left out"
                text = _replaced(text, passage, passage.read)
        return Reading(text, dict(reversed(changes.items())))

    def paraphrase(self, caption: str, share: float, draw: Draw) -> str:
        """A caption with a ``share`` of its classes replaced by words that stand for them."""
        for passage in reversed(self.passages(caption)):
            written, choices = caption[passage.start : passage.end], self._words[passage.name]
            if written.lower() == passage.name.lower() and choices and draw() < share:
                chosen = choices[int(draw() * len(choices))]
                lead = "" if _lead(chosen) else _lead(passage.name)
                caption = _replaced(caption, passage, lead + chosen)
        return caption

    @cached_property
    def _words(self) -> dict[str, tuple[str, ...]]:
        return {name: words for names in self.classes.values() for name, words in names.items()}

    @cached_property
    def _entries(self) -> dict[str, list[_Entry]]:
        """Phrases by the stem of the first word."""
        entries: dict[str, list[_Entry]] = {}
        for kind, names in self.classes.items():
            for name, phrases in names.items():
                for phrase in (name, *phrases):
                    if words := content(phrase):
                        led = bool(_lead(name) or _lead(phrase))
                        entry = _Entry(words, name, kind, led)
                        entries.setdefault(self.stem(words[0]), []).append(entry)
        return entries

    @cached_property
    def _alone(self) -> frozenset[str]:
        """Stems of words that stand for a class alone."""
        listed = self._entries.items()
        return frozenset(key for key, found in listed if any(len(one.words) == 1 for one in found))

    def _meant(
        self, text: str, spots: Sequence[re.Match[str]], words: Sequence[str]
    ) -> list[tuple[int, int, _Entry]]:
        """First word, last word and entry of all that is found in a text.

        Of two nouns side by side the last is meant: a baby dragon is a dragon.
        """
        found, place = list[tuple[int, int, _Entry]](), 0
        while place < len(words):
            last, entry = self._longest(words, place)
            if entry is None:
                place += 1
                continue
            if found and not entry.led and found[-1][2].kind == entry.kind:
                last_before = spots[found[-1][1]]
                found = found[:-1] if _beside(text, last_before, spots[place]) else found
            found.append((place, last, entry))
            place = last + 1
        return found

    def _longest(self, words: Sequence[str], place: int) -> tuple[int, _Entry | None]:
        """Last word and best entry that begins at a word; none: there is none.

        Of entries of equally many words the one of which more stand there in the same form wins.
        """
        best = (0, 0)
        last, chosen = place, None
        if words[place] in PASSED_OVER:
            return last, chosen
        determined = place > 0 and words[place - 1] in DETERMINERS
        for entry in self._entries.get(self.stem(words[place]), ()):
            places = self._found(entry.words, words, place)
            same = sum(words[at] == word for at, word in zip(places, entry.words, strict=False))
            if determined and _verb(entry.words) and not same:  # "the wave" is not waving
                continue
            if len(places) == len(entry.words) and (len(places), same) > best:
                best = len(places), same
                last, chosen = places[-1], entry
        return last, chosen

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


def _verb(phrase: Sequence[str]) -> bool:
    """Whether a phrase is a single word on -ing: "waving"."""
    return len(phrase) == 1 and phrase[0].endswith("ing")


def _beside(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether nothing but space stands between two words."""
    return not text[one.end() : other.start()].strip()


def _passed(words: Sequence[str], place: int, free: int, what: Collection[str]) -> int:
    """The place, or the first of all words of a kind that stand right before it."""
    while place > free and words[place - 1] in what:
        place -= 1
    return place


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
