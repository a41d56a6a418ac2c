"""Who plays and what they can do: words for models and for animations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowcept.data.stage.gltf import Model

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
    "1H_Sword_Offhand", "2H_Sword", "2H_Axe", "Badge_Shield", "Round_Shield", "Rectangle_Shield",
    "Spike_Shield", "1H_Axe", "1H_Axe_Offhand", "Barbarian_Round_Shield", "Mug", "1H_Wand",
    "Spellbook", "Spellbook_open", "Knife", "Knife_Offhand", "Throwable", "2H_Crossbow",
    "1H_Crossbow",
)  # fmt: skip

FLYING, SWIMMING = "flying", "swimming"
SHORTEST, LONGEST = 0.75, 1.67  # seconds of an action: what is shorter or longer is stretched
ENOUGH = 1.1  # seconds that an animation which loops is played again for


@dataclass(frozen=True)
class Act:
    """How an animation is played: again and again or once, on the spot or getting ahead."""

    names: tuple[str, ...]  # of animations, the best first
    loops: bool = True
    ahead: float = 0.0  # world units in one turn; where feet touch the ground, at least


# The end of an animation's name, without capitals, tells its action.
ACTS: dict[str, Act] = {
    "walking": Act(("walk", "walking", "walking_a"), ahead=0.3),
    "running": Act(("run", "running", "running_a", "gallop"), ahead=0.7),
    "jumping": Act(("jump_toidle", "jump_full_short", "walkjump", "jump"), loops=False),
    "leaping": Act(("gallop_jump", "runningjump"), loops=False, ahead=1.6),
    "flying": Act(("flying", "bat_attack", "dragon_attack"), ahead=1.6),
    "swimming": Act(("swimming_normal", "swim", "swim.001"), ahead=1.6),
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
    "standing": Act(("idle",)),
}
# Animations that do not show what their names say, and actions that few or no known actors play.
LEFT_OUT = frozenset({"block_attack"})
ONLY = {"swinging a sword": "knight", "casting a spell": "wizard", "standing": ""}
NEVER = frozenset({("blue rabbit", "jumping")})  # it stays in the air

# What an actor plays without an animation of its own, in seconds.
INVENTED: dict[str, float] = {
    "surfing": 1.6, "skateboarding": 1.3, "spinning": 1.1, "bouncing": 1.0, "doing a backflip": 0.9,
    "diving": 1.2,
}  # fmt: skip
NOT_FOR = {  # by how actors get about
    SWIMMING: frozenset({"surfing", "skateboarding", "bouncing", "falling over"}),
    FLYING: frozenset({"falling over"}),
    "": frozenset({"diving"}),
}

# Never drawn for training: they measure later whether a model combines what it knows.
RESERVED: frozenset[tuple[str, str]] = frozenset({
    ("cow", "surfing"), ("robot", "surfing"), ("fox", "walking"), ("zebra", "running"),
    ("knight", "running"), ("frog", "jumping"), ("horse", "leaping"), ("dragon", "flying"),
    ("goldfish", "swimming"), ("stag", "eating"), ("mech", "dancing"), ("robot", "waving"),
    ("alien", "clapping"), ("knight", "cheering"), ("man in a suit", "punching"),
    ("donkey", "kicking"), ("wolf", "attacking"), ("wizard", "sitting down"),
    ("woman", "crouching"), ("crab", "nodding"), ("ranger", "throwing"), ("deer", "spinning"),
    ("pig", "bouncing"), ("bull", "doing a backflip"), ("dolphin", "diving"),
    ("T-rex", "skateboarding"), ("dinosaur", "falling over"),
})  # fmt: skip


@dataclass(frozen=True)
class Actor:
    """A word with the models that it means, all of which play the same actions."""

    models: tuple[Model, ...]
    acts: dict[str, tuple[str, Act]]  # from actions to animations of each model
    way: str  # FLYING, SWIMMING, or "" on the ground

    @property
    def actions(self) -> tuple[str, ...]:
        """All that it can play."""
        able = dict.fromkeys([*self.acts, *INVENTED])
        return tuple(action for action in able if action not in NOT_FOR[self.way])

    def turns(self, action: str) -> int:
        """How often its animation is played in a clip."""
        name, act = self.acts[action]
        return max(1, round(ENOUGH / self.models[0].animations[name].seconds)) if act.loops else 1

    def seconds(self, action: str) -> float:
        """How long the plain action takes."""
        if action not in self.acts:
            return INVENTED[action]
        natural = self.models[0].animations[self.acts[action][0]].seconds
        return min(max(natural * self.turns(action), SHORTEST), LONGEST)


def key_of(path: Path) -> str:
    """A file's folder and name, as in `WORDS`."""
    return f"{path.parent.name}/{path.stem}"


def word_for(path: Path) -> str:
    """What an actor is called in captions; "" where this model does not act."""
    if path.parent.name in FOLDERS:
        return WORDS.get(key_of(path), "")
    return _words(path.stem.rpartition("__")[2]) or path.stem.lower()


def _words(name: str) -> str:
    """A name such as GreatWhite_Shark2 as words."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[A-Za-z]+", apart)).lower()


def actor_of(word: str, models: Sequence[Model], known: bool) -> Actor:
    """An actor of models of one word; those that lack an animation of the first are left out."""
    names = models[0].movements
    alike = tuple(model for model in models if set(names) <= set(model.movements))
    acts = _known_acts(word, names) if known else _all_acts(names)
    return Actor(alike, acts, next((way for way in (SWIMMING, FLYING) if way in acts), ""))


def _known_acts(word: str, names: Sequence[str]) -> dict[str, tuple[str, Act]]:
    """From actions to the animations that show them; each animation shows one."""
    endings = {_ending(name): name for name in reversed(names) if _ending(name) not in LEFT_OUT}
    found: dict[str, tuple[str, Act]] = {}
    for action, act in ACTS.items():
        name = _fitting(act, endings)
        taken = {"", *(name for name, _ in found.values())}
        plays = ONLY.get(action, word) == word and (word, action) not in NEVER
        if plays and name not in taken:
            found[action] = name, act
    return found


def _all_acts(names: Sequence[str]) -> dict[str, tuple[str, Act]]:
    """Also animations without an action of `ACTS`, as actions under their own names."""
    found = _known_acts("", names)
    taken = {name for name, _ in found.values()}
    for name in names:
        words = _words(name.rpartition("|")[2])
        if name not in taken and words and words not in found:
            found[words] = name, Act((_ending(name),))
    return found


def _ending(name: str) -> str:
    return name.rpartition("|")[2].lower()


def _fitting(act: Act, endings: dict[str, str]) -> str:
    """The animation of an act, or ""; the first word of its name may be the actor's."""
    for wanted in act.names:
        for ending, name in endings.items():
            if wanted in (ending, ending.partition("_")[2]):
                return name
    return ""
