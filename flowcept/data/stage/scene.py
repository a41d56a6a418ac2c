"""What a caption describes: actor, action, place, adverb and view."""

from dataclasses import dataclass

from flowcept.data.drawn import worded
from flowcept.data.stage.places import Rng

FPS = 12
PACE = {"": 1.0, "slowly": 1.5, "quickly": 0.7}  # how an adverb multiplies the natural length
ADVERBS: tuple[str, ...] = tuple(PACE)


@dataclass(frozen=True)
class View:
    """How the camera stands."""

    yaw: float = 52  # degrees by which the actor is turned: 0 to the camera, 90 to the right
    elevation: float = 8  # degrees above the horizon
    filled: float = 0.68  # share of the picture's height


VIEWS: dict[str, View] = {
    "": View(),
    "from the side": View(yaw=90, elevation=6),
    "from the front": View(yaw=6),
    "from behind": View(yaw=160, elevation=12),
    "from above": View(elevation=40, filled=0.64),
    "close up": View(yaw=42, elevation=7, filled=0.98),
    "from far away": View(yaw=55, elevation=9, filled=0.4),
}


@dataclass(frozen=True)
class Scene:
    """Everything that the caption describes."""

    actor: str
    action: str
    place: str = ""
    adverb: str = ""  # of ADVERBS
    view: str = ""  # of VIEWS


def caption(scene: Scene, rng: Rng) -> str:
    """The scene in words, most often in the plain order "a dog running slowly on a beach"."""
    subject = f"{'an' if scene.actor[0] in 'aeiou' else 'a'} {scene.actor}"
    told = worded(subject, scene.action, scene.adverb, scene.place, rng)
    if not scene.view:
        return told
    return (
        f"{told}, seen {scene.view}" if scene.view.startswith("from") else f"{told}, {scene.view}"
    )
