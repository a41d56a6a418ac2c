"""Who plays and what they can do: words for models and for animations."""

import re
from dataclasses import dataclass
from pathlib import Path

# folder/file: word, or nothing where the model is no actor. Other models of these folders do not
# act; those of other folders have the words of their file names.
WORDS: dict[str, str] = {
    "animals_pack/ShibaInu": "dog", "animals_pack/Husky": "husky", "animals_pack/Fox": "fox",
    "animals_pack/Wolf": "wolf", "animals_pack/Horse": "horse", "animals_pack/Bull": "bull",
    "animals_pack/Horse_White": "white horse", "animals_pack/Donkey": "donkey",
    "animals_pack/Alpaca": "alpaca", "animals_pack/Deer": "deer", "animals_pack/Stag": "stag",
    "farm/Farm_Animals_Animated___Cow": "cow", "farm/Farm_Animals_Animated___Zebra": "zebra",
    "farm/Farm_Animals_Animated___Pig": "pig", "farm/Farm_Animals_Animated___Sheep": "sheep",
    "farm/Farm_Animals_Animated___Pug": "pug", "farm/Farm_Animals_Animated___Llama": "llama",
    "dinosaurs_pack/Trex": "T-rex", "dinosaurs_pack/Triceratops": "triceratops",
    "dinosaurs_pack/Stegosaurus": "stegosaurus", "dinosaurs_pack/Apatosaurus": "apatosaurus",
    "dinosaurs_pack/Velociraptor": "velociraptor", "dinosaurs_pack/Parasaurolophus": "dinosaur",
    "easy_enemies_pack/Frog": "frog", "easy_enemies_pack/Rat": "rat",
    "easy_enemies_pack/Snake": "snake", "easy_enemies_pack/Spider": "spider",
    "platformer_game_pack/Crab": "crab", "platformer_game_pack/Character": "blue rabbit",
    "platformer_game_pack/Enemy": "green monster", "farm/Monster_Pack_Animated__Slime": "slime",
    "farm/Monster_Pack_Animated__Skeleton": "skeleton", "farm/Animated_Robot__Robot": "robot",
    "farm/Alien_Animated__Alien": "alien", "mech_pack/Mike": "mech",
    "farm/Animated_Men_Characters__Male_Casual": "man",
    "farm/Animated_Men_Characters__Male_LongSleeve": "man",
    "farm/Animated_Men_Characters__Male_Shirt": "man",
    "farm/Animated_Men_Characters__Male_Suit": "man in a suit",
    "farm/Animated_Women_Characters__Female_Alternative": "woman",
    "farm/Animated_Women_Characters__Female_Casual": "woman",
    "farm/Animated_Women_Characters__Female_Dress": "woman in a red dress",
    "kaykit/Knight": "knight", "kaykit/Mage": "wizard", "kaykit/Barbarian": "barbarian",
    "kaykit/Rogue": "rogue", "kaykit/Rogue_Hooded": "ranger",
    "platformer_game_pack/Bee": "bee", "easy_enemies_pack/Wasp": "wasp",
    "farm/Monster_Pack_Animated__Bat": "bat", "farm/Monster_Pack_Animated__Dragon": "dragon",
    "fish_pack/Shark": "shark", "fish_pack/Dolphin": "dolphin", "fish_pack/Whale": "whale",
    "fish_pack/Manta_ray": "manta ray", "fish_pack/Fish1": "fish", "fish_pack/Fish2": "blue fish",
    "fish_pack/Fish3": "clownfish", "cute_fish_pack/Goldfish": "goldfish",
    "cute_fish_pack/Puffer": "pufferfish", "cute_fish_pack/Anglerfish": "anglerfish",
    "cute_fish_pack/Swordfish": "swordfish", "cute_fish_pack/Piranha": "piranha",
    "cute_fish_pack/Koi": "koi", "cute_fish_pack/ParrotFish": "parrotfish",
}  # fmt: skip
FOLDERS = frozenset(key.partition("/")[0] for key in WORDS) | {
    "nature_pack", "simple_nature_pack", "single_knight_pack",
}  # fmt: skip

# What each actor's hands do not hold; models come with all their things at once.
HIDDEN: tuple[str, ...] = (
    "1H_Sword_Offhand", "2H_Sword", "2H_Axe", "Badge_Shield", "Round_Shield", "Rectangle_Shield", "Spike_Shield", "1H_Axe",
    "1H_Axe_Offhand", "Barbarian_Round_Shield", "Mug", "1H_Wand", "Spellbook", "Spellbook_open",
    "Knife", "Knife_Offhand", "Throwable", "2H_Crossbow", "1H_Crossbow",
)  # fmt: skip

FLYING, SWIMMING = "flying", "swimming"


@dataclass(frozen=True)
class Act:
    """How an animation is played: again and again or once, on the spot or covering ground."""

    names: tuple[str, ...]  # of animations, the best first
    loops: bool = True
    travels: bool = False


# The end of an animation's name, without capitals, tells its action.
ACTS: dict[str, Act] = {
    "walking": Act(("walk", "walking", "walking_a"), travels=True),
    "running": Act(("run", "running", "running_a", "gallop"), travels=True),
    "jumping": Act(("jump_toidle", "jump_full_short", "walkjump", "jump"), loops=False),
    "leaping": Act(("gallop_jump", "runningjump"), loops=False, travels=True),
    "flying": Act(("flying", "bat_attack", "dragon_attack"), travels=True),
    "swimming": Act(("swimming_normal", "swim", "swim.001"), travels=True),
    "eating": Act(("eating",)),
    "dancing": Act(("dance",)),
    "waving": Act(("wave", "hello")),
    "clapping": Act(("clapping",)),
    "cheering": Act(("cheer",)),
    "punching": Act(("punch", "unarmed_melee_attack_punch_a"), loops=False),
    "kicking": Act(("attack_kick", "kick", "unarmed_melee_attack_kick"), loops=False),
    "attacking": Act(("attack", "attack_headbutt", "bite_front"), loops=False),
    "sitting down": Act(("sit_floor_down",), loops=False),
    "crouching": Act(("sitting", "duck"), loops=False),
    "falling over": Act(("death", "death_a"), loops=False),
    "nodding": Act(("yes",)),
    "throwing": Act(("throw",), loops=False),
    "casting a spell": Act(("spellcast_long",), loops=False),
    "swinging a sword": Act(("1h_melee_attack_slice_horizontal",), loops=False),
}
# Animations that do not show what their names say, and things that only one has in hand.
LEFT_OUT = frozenset({"block_attack"})
ONLY = {"swinging a sword": "knight", "casting a spell": "wizard"}
NEVER = frozenset({("blue rabbit", "jumping")})  # it stays in the air

# Played by any actor without an animation of its own, in seconds.
INVENTED: dict[str, float] = {
    "surfing": 1.6, "skateboarding": 1.3, "spinning": 1.1, "bouncing": 1.0, "doing a backflip": 0.9,
    "diving": 1.2,
}  # fmt: skip
GROUND_ONLY = frozenset({"surfing", "skateboarding", "bouncing"})  # no fish does
ALOFT_ONLY = frozenset({"diving"})

# Never drawn for training: they measure later whether a model combines what it knows.
RESERVED: frozenset[tuple[str, str]] = frozenset({
    ("cow", "surfing"), ("robot", "surfing"), ("fox", "walking"), ("zebra", "running"),
    ("knight", "dancing"), ("frog", "jumping"), ("horse", "leaping"), ("dragon", "flying"),
    ("goldfish", "swimming"), ("stag", "eating"), ("mech", "dancing"), ("robot", "waving"),
    ("alien", "clapping"), ("knight", "cheering"), ("man in a suit", "punching"),
    ("donkey", "kicking"), ("wolf", "attacking"), ("wizard", "sitting down"),
    ("skeleton", "running"), ("crab", "nodding"), ("ranger", "throwing"), ("deer", "spinning"),
    ("pig", "bouncing"), ("bull", "doing a backflip"), ("dolphin", "diving"), ("T-rex", "skateboarding"), ("woman", "walking"),
    ("dinosaur", "falling over"), ("barbarian", "jumping"), ("shark", "spinning"),
})  # fmt: skip


def word_for(path: Path) -> str:
    """What an actor is called in captions; "" where this model does not act."""
    key = f"{path.parent.name}/{path.stem}"
    if key in WORDS or path.parent.name in FOLDERS:
        return WORDS.get(key, "")
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem.rpartition("__")[2])
    return " ".join(re.findall(r"[A-Za-z]+", apart)).lower()


def _ending(name: str) -> str:
    return name.rpartition("|")[2].lower()


def acts_of(word: str, names: list[str], known: bool) -> dict[str, tuple[str, Act]]:
    """From actions to the animations that show them.

    Animations without an action of `ACTS` are left out where the words of the model are known, and
    are actions under their own names otherwise.
    """
    endings = {_ending(name): name for name in reversed(names) if _ending(name) not in LEFT_OUT}
    found: dict[str, tuple[str, Act]] = {}
    taken = {""}
    for action, act in ACTS.items():
        name = _fitting(act, endings)
        if name in taken or (known and not _plays(word, action)):
            continue
        found[action] = name, act
        taken.add(name)
    for ending, name in endings.items():
        if not known and name not in taken:
            found[" ".join(re.findall(r"[a-z]+", ending))] = name, Act((ending,))
    return found


def _fitting(act: Act, endings: dict[str, str]) -> str:
    for wanted in act.names:
        for ending, name in endings.items():
            if wanted in (ending, ending.partition("_")[2]):
                return name
    return ""


def _plays(word: str, action: str) -> bool:
    return ONLY.get(action, word) == word and (word, action) not in NEVER
