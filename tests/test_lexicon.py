"""Words that people use: what is found in a text, what it gives way to, what a file may say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from flowcept.errors import UserError
from flowcept.lexicon import Lexicon, Reading, stem

LEXICON = Lexicon(
    {
        "actor": {
            "dog": ("puppy", "hound"),
            "elephant": ("pachyderm",),
            "unicorn": (),
            "T-rex": (),
        },
        "action": {
            "surfing": ("riding a wave", "hanging ten"),
            "waving": ("wave", "saying goodbye"),
            "running": (),
            "falling over": ("tumbling",),
        },
        "place": {"at sunset": ("dusk",), "in the snow": ("blizzard",)},
        "adverb": {"quickly": ("in a rush",)},
    },
    {"rode": "ride", "ran": "run"},
)
KNOWN = (
    "a",
    "dog",
    "elephant",
    "surfing",
    "waving",
    "running",
    "at",
    "sunset",
    "in",
    "the",
    "snow",
)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a puppy riding a wave at dusk", "a dog surfing at sunset"),
        ("A PUPPY rode big, green waves", "A dog surfing"),
        ("the hounds' wave", "the dog' waving"),
        ("a pachyderm hangs ten", "an elephant surfing"),
        ("an hound", "a dog"),
        ("a puppy runs through a blizzard", "a dog running in the snow"),
        ("a puppy ran", "a dog running"),
        ("dusk", "at sunset"),
        ("riding a dog on a wave", "riding a dog on a waving"),
        ("riding high over the very last wave", "riding high over the very last waving"),
        ("a puppy waves, saying goodbye to a hound at dusk", "a dog waving, at sunset"),
        ("a puppy in a raging blizzard", "a dog in a raging snow"),
        ("a puppy, blizzard", "a dog, in the snow"),
        ("a puppy in a rush", "a dog quickly"),
        ("a puppy falls down over the log", "a dog falling over the log"),
        ("a puppy tumbles", "a dog falling over"),
        ("a puppy falling over in the snow", "a dog falling over in the snow"),
        ("a t-rex and its hound", "a t-rex and its dog"),
        ("a puppy and the hound", "a dog"),
        ("a hound unicorn, a puppy", "a hound unicorn, a dog"),
        ("a pachyderm, puppy", "an elephant, dog"),
        ("a run, he runs", "a run, he running"),
        ("\u0130: a puppy", "\u0130: a dog"),
        ("a chandelier", "a chandelier"),
        ("", ""),
    ],
)
def test_words_give_way_to_their_class(prompt, read):
    assert LEXICON.read(prompt).text == read


def test_what_is_read_otherwise_is_told_in_order():
    reading = LEXICON.read("a puppy riding a\nwave in the snow")
    assert str(reading) == "puppy: dog; riding a wave: surfing"
    assert str(LEXICON.read("a puppy and a dog")) == "puppy: dog; and a dog: left out"
    assert str(LEXICON.read("a dog surfing at sunset")) == ""


def test_a_single_word_that_the_model_knows_stays():
    assert LEXICON.read("a hound in deep snow", ["hound", "snow"]).text == "a hound in deep snow"
    assert LEXICON.read("riding a wave", ["riding", "wave"]).text == "surfing"


def test_words_without_meaning_are_never_forms_of_others():
    lexicon = Lexicon({"action": {"walking": ("toeing",)}, "actor": {"fish": ("herring",)}})
    assert lexicon.read("next to her and into it").changes == {}
    assert lexicon.read("toed herrings").text == "walking fish"


def test_captions_in_words_of_classes_are_read_as_they_are():
    for caption in (
        "a dog surfing at sunset",
        "in the snow, an elephant is running",
        "A Dog waving",
        "a T-rex",
    ):
        assert LEXICON.read(caption, KNOWN) == Reading(caption)


def test_a_longer_phrase_wins_and_then_the_same_form():
    lexicon = Lexicon({"actor": {"fish": ("fly",), "bird": ("flies", "fly fish")}})
    assert [lexicon.read(text).text for text in ("fly", "flies", "flying fish")] == [
        "fish", "bird", "bird",
    ]  # fmt: skip


FORMS = [
    ("swim", "swims", "swimming"),
    ("ride", "rides", "riding"),
    ("hop", "hopped", "hopping"),
    ("fly", "flies", "flying"),
    ("pirouette", "pirouettes", "pirouetting"),
    ("box", "boxes", "boxed"),
    ("pony", "ponies"),
    ("bus", "buses"),
    ("grass", "grasses"),
    ("herring", "herrings"),
]


@pytest.mark.parametrize("forms", FORMS)
def test_forms_of_a_word_have_one_stem(forms):
    assert len(set(map(stem, forms))) == 1


def test_other_words_have_other_stems():
    words = ["king", "ring", "bed", "sled", "red", "bus", *[forms[0] for forms in FORMS[:7]]]
    assert len(set(map(stem, words))) == len(words)


def draws(*values: float):
    """These numbers again and again."""
    return itertools.cycle(values).__next__


def test_captions_are_worded_anew():
    caption = "an unicorn surfing in the snow"
    assert LEXICON.paraphrase(caption, 0.0, draws(0.0)) == caption
    # The last passage is drawn first: whether, which, whether, which.
    choices = draws(0.1, 0.0, 0.1, 0.99)
    assert LEXICON.paraphrase(caption, 0.2, choices) == "an unicorn hanging ten in the blizzard"
    assert LEXICON.paraphrase("a dog", 1.0, draws(0.0)) == "a puppy"
    assert LEXICON.paraphrase("an elephant", 1.0, draws(0.0)) == "a pachyderm"
    places = Lexicon({"place": {"in the sea": ("under the waves", "ocean")}})
    assert places.paraphrase("in the sea", 1.0, draws(0.0)) == "under the waves"
    assert places.paraphrase("in the sea", 1.0, draws(0.9)) == "in the ocean"


def test_what_is_worded_anew_is_read_as_it_was():
    caption = "a dog waving in the snow"
    for value in (0.0, 0.3, 0.6, 0.9):
        worded = LEXICON.paraphrase(caption, 1.0, draws(value))
        assert worded != caption
        assert LEXICON.read(worded).text == caption


def test_classes_with_unknown_words_are_left_out():
    kept = LEXICON.within(["dog", "surfing", "sunset"])
    assert {kind: list(names) for kind, names in kept.classes.items()} == {
        "actor": ["dog"], "action": ["surfing"], "place": ["at sunset"],
    }  # fmt: skip
    assert kept.read("a pachyderm, a puppy").text == "a pachyderm, a dog"
    assert LEXICON.within(["owl"]).classes == {}


def test_a_file_holds_a_lexicon(tmp_path: Path):
    path = tmp_path / "words.json"
    tables = {"classes": LEXICON.classes, "irregular": LEXICON.irregular}
    path.write_text(json.dumps(tables), encoding="utf-8")
    assert Lexicon.load(path) == LEXICON
    path.write_text('{"classes": {"actor": {"dog": ["puppy"]}}}', encoding="utf-8")
    assert str(Lexicon.load(path)) == "1 words and phrases for 1 classes"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ("[]", "must be a table"),
        ("{}", "classes"),
        ('{"classes": {"actor": ["dog"]}}', "classes"),
        ('{"classes": {"actor": {"dog": "puppy"}}}', "classes"),
        ('{"classes": {"actor": {"the": []}}}', "'the'"),
        ('{"classes": {"actor": {"dog": []}, "action": {"dog": []}}}', "'dog'"),
        ('{"classes": {}, "words": {}}', "words"),
    ],
)
def test_a_file_that_is_no_lexicon_is_one_line(tmp_path: Path, text, word):
    path = tmp_path / "words.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        Lexicon.load(path)
    assert word in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
