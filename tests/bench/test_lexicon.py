"""The lexicons that are made: what is chosen, what they hold, and how many prompts they read."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from lexicon import (
    HERE,
    STOP,
    Candidate,
    chosen,
    own_words,
    put,
    read_classes,
    read_prompts,
    read_table,
    write,
)
from lexicon import marked as marks_of

from flowcept.lexicon import WORD, Lexicon, content, stem
from flowcept.model_file import load, read_card

CLASSES, LEXICON = read_classes(HERE / "stage.json"), Lexicon.load(HERE / "stage-lexicon.json")
PROMPTS = read_prompts()


class Glosses:
    """Stands for WordNet, in which long words are well known."""

    def known(self, phrase: str) -> int:
        return min(map(len, WORD.findall(phrase)))


def test_prompts_are_in_other_words_and_have_an_answer():
    assert len({row["prompt"] for row in PROMPTS}) == len(PROMPTS)
    for row in PROMPTS:
        for kind in ("actor", "action"):
            names = row[kind].split("/")
            assert set(names) <= set(CLASSES[kind])
            words = set(map(stem, content(row["prompt"])))
            assert not any({stem(word) for word in content(one)} <= words for one in names), row


def test_prompts_for_stage_cover_it_and_hold_none_of_its_words():
    assert Counter(row["split"] for row in PROMPTS) == {"tune": 30, "test": 30, "fresh": 60}
    actors, actions = (
        {name for row in PROMPTS for name in row[kind].split("/")} for kind in ("actor", "action")
    )
    assert actions == set(CLASSES["action"])
    assert set(CLASSES["actor"]) - actors == {"zebra"}  # for which there is no other word
    names = {word for known in CLASSES.values() for name in known for word in content(name)}
    for row in PROMPTS:
        assert not (names - {"doing", "side", "up"}) & set(content(row["prompt"])), row


@pytest.mark.parametrize("split", ["tune", "test", "fresh"])
def test_most_prompts_are_read_rightly(split):
    marks = [marks_of(LEXICON, row, told=False) for row in read_prompts(split)]
    assert np.all(marks, axis=1).mean() >= 0.85


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a pug doing back flips", "a pug doing a backflip"),
        ("a T-REX takes a plunge", "a T-REX diving"),
        ("A puffer fish fell to the ground", "A pufferfish falling over to the ground"),
        ("the stag and the lambs leapt", "the deer and the sheep jumping"),
        ("a goat in a theater, rear view", "a sheep on a stage, seen from behind"),
        ("a baby dragon in a hurry", "a baby dragon quickly"),
        ("here comes a doe, over a fence, by a rose", "here comes a deer, over a fence, by a rose"),
        ("a dove in a box on the waves", "a dove in a box on the waves"),
        ("a cat doing the cooking", "a cat doing the cooking"),
    ],
)
def test_prompts_for_stage_are_read(prompt, read):
    assert LEXICON.read(prompt).text == read


def test_the_lexicon_is_small_and_clean_and_of_its_list():
    assert (HERE / "stage-lexicon.json").stat().st_size < 200_000
    assert {kind: list(names) for kind, names in LEXICON.classes.items()} == CLASSES
    removed = {(row[0], row[1]) for row in read_table("removed.tsv")}
    for names in LEXICON.classes.values():
        for one, phrases in names.items():
            assert not {(one, phrase) for phrase in phrases} & removed
            assert not [phrase for phrase in phrases if STOP.search(phrase)]


@pytest.mark.parametrize("order", ["plain", "is", "before", "place first"])
def test_captions_in_words_of_classes_are_read_as_they_are(order):
    wheres, hows, views = (["", *CLASSES[kind]] for kind in ("place", "adverb", "view"))
    for number, (actor, action) in enumerate(product(CLASSES["actor"], CLASSES["action"])):
        where, how, view = (names[number % len(names)] for names in (wheres, hows, views))
        subject = f"{'an' if actor[0] in 'aeiou' else 'a'} {actor}"
        told = {
            "plain": (subject, action, how, where),
            "is": (subject, "is", action, how, where),
            "before": (subject, how, action, where),
            "place first": (f"{where},", subject, action, how),
        }[order]
        caption = " ".join(filter(None, told)) + (f", {view}" if view else "")
        reading = LEXICON.read(caption, ["a", "an", "is"])
        assert (reading.text, reading.changes) == (caption, {})
        found = {passage.name for passage in LEXICON.passages(caption)}
        assert found == {actor, action, where, how, view} - {""}


def test_our_own_words_come_first_then_wordnet_then_what_is_near():
    classes = {"actor": ["dog", "wolf"], "action": ["running"]}
    candidates = [
        Candidate("actor", "wolf", "husky", (0, 0.9)),
        Candidate("actor", "dog", "husky", (1, -2)),
        Candidate("actor", "dog", "coyote", (1, -3)),
        Candidate("actor", "wolf", "coyotes", (2, 0)),
        Candidate("actor", "dog", "wolf", (2, 0)),  # a class stays itself
        Candidate("actor", "dog", "toy husky", (1, -4)),  # adds nothing
        Candidate("actor", "dog", "cur", (1, -1)),  # removed by eye
        Candidate("actor", "dog", "bitch", (1, -1)),
        Candidate("action", "running", "in a very long and winding way", (2, 0)),
        Candidate("action", "running", "dashing off", (0, 0.8)),
        Candidate("action", "running", "hounding", (2, 0)),  # no form of it in this kind
        Candidate("actor", "dog", "hound", (2, 0)),
        Candidate("action", "running", "hound", (1, 0)),
    ]
    kept = {(one.name, one.phrase) for one in chosen(classes, candidates, Glosses())}
    assert kept == {
        ("dog", "husky"), ("wolf", "coyotes"), ("running", "dashing off"),
        ("running", "hounding"), ("dog", "hound"),
    }  # fmt: skip


def test_neutral_words_are_dealt_out_evenly_between_two_classes():
    people = [one for one in own_words({"actor": ["man", "woman"]}) if one.phrase != "friend"]
    neutral = next(row[2] for row in read_table("senses.tsv") if row[0] == "man/woman")
    words = {word.strip() for word in neutral.split(",")}
    men = sum(one.name == "man" for one in people if one.phrase in words)
    assert abs(2 * men - len(words)) <= 3
    alone = [one for one in own_words({"actor": ["woman"]}) if one.phrase in words]
    assert {one.phrase for one in alone} == words


def test_a_lexicon_is_written_a_class_a_line(tmp_path: Path):
    lexicon = Lexicon({"actor": {"dog": ("puppy", "hound"), "cat": ()}}, {"ran": "run"})
    write(lexicon, tmp_path / "words.json")
    assert Lexicon.load(tmp_path / "words.json") == lexicon
    text = (tmp_path / "words.json").read_text()
    assert re.search(r'^ *"dog": \["puppy", "hound"\],$', text, re.MULTILINE)


def test_a_lexicon_is_put_into_a_model(tmp_path: Path, tiny_model: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(Path(tiny_model).read_bytes())
    write(Lexicon({"actor": {"dog": ("puppy",), "owl": ("hooter",)}}), tmp_path / "words.json")
    put(argparse.Namespace(lexicon=tmp_path / "words.json", model=path))
    assert read_card(path).lexicon == Lexicon({"actor": {"dog": ("puppy",)}})
    before, after = (load(one).modules().state_dict() for one in (Path(tiny_model), path))
    assert all((before[name] == after[name]).all() for name in before)
