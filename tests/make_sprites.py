"""Turn the LPC sprite sheets (body, shoes, clothes and hair as layers) into a captioned folder.

    python tests/make_sprites.py ../shared/data/sprites_lpc OUT --clips 2000 --seed 0

Each clip is one character in one action and direction, of the action's own length, on a plain
background at the sheets' own size, without loss. `attributes.json` of the sheets says where the
actions stand and gives the words of the captions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from flowcept.data import video

FPS = 10.0
BACKGROUND = (200, 210, 220)  # light blue-grey: no part of a sheet has this colour
ACTIONS = {
    "spellcast": "casting a spell",
    "thrust": "thrusting",
    "walk": "walking",
    "slash": "slashing",
    "shoot": "drawing a bow",
    "hurt": "falling down",
}
DIRECTIONS = {
    "back": "seen from behind",
    "left": "facing left",
    "front": "facing the viewer",
    "right": "facing right",
}
PLURAL = ("pants", "leggings", "shoes", "mail", "hair")  # words that take no article


def with_article(words: str) -> str:
    return words if words.endswith(PLURAL) else f"a {words}"


def caption(
    parts: dict[str, int], action: str, direction: str, words: dict[str, list[str]], trim: int
) -> str:
    """The character in words; `trim` 0..3 says whether trousers and shoes are mentioned."""
    worn = {layer: words[layer][number] for layer, number in parts.items()}
    clothes = [with_article(worn["topwear"])]
    clothes += [with_article(worn["bottomwear"])] * (trim & 1)
    clothes += [worn["shoes"]] * (trim >> 1)
    *firsts, last = clothes
    dress = f"{', '.join(firsts)} and {last}" if firsts else last
    body = worn["body"]
    who = f"a man with {body} and" if body.endswith("skin") else f"a {body} with"
    hair = with_article(worn["hair"]).removeprefix("a ")
    return f"{who} {hair} in {dress} {ACTIONS[action]}, {DIRECTIONS[direction]}"


def draw(
    sheets: dict[tuple[str, int], Image.Image],
    parts: dict[str, int],
    layout: dict[str, Any],
    action: str,
    direction: str,
) -> NDArray[np.uint8] | None:
    """`frames_FHW3` of one clip; None where some piece of clothing is not drawn for the action."""
    cell = layout["cell"]
    row, count = layout["actions"][action]
    # "hurt" has one row only, seen from the front.
    row += 0 if action == "hurt" else layout["directions"].index(direction)
    strip = Image.new("RGBA", (count * cell, cell), BACKGROUND)
    for layer in layout["order"]:
        part = sheets[layer, parts[layer]].crop((0, row * cell, count * cell, (row + 1) * cell))
        if part.getbbox() is None:
            return None
        strip.alpha_composite(part)
    strip_HW3 = np.asarray(strip.convert("RGB"))
    return np.stack(np.split(strip_HW3, count, axis=1))


def write_sprites(folder: Path, out: Path, clips: int, seed: int) -> None:
    """Write `clips` different clips and their metadata.jsonl into the new folder `out`."""
    layout = json.loads((folder / "attributes.json").read_text(encoding="utf-8"))
    words = layout["attributes"]
    sheets = {
        (layer, number): Image.open(folder / layer / f"{number}.png").convert("RGBA")
        for layer in layout["order"]
        for number in range(len(words[layer]))
    }
    out.mkdir(parents=True, exist_ok=False)
    rng = np.random.default_rng(seed)
    seen = set()
    lines = []
    with tqdm(total=clips, unit="clip") as bar:
        while len(lines) < clips:
            parts = {layer: int(rng.integers(len(words[layer]))) for layer in layout["order"]}
            action = str(rng.choice(list(ACTIONS)))
            direction = str(rng.choice(list(DIRECTIONS))) if action != "hurt" else "front"
            trim = int(rng.integers(4))
            what = (*parts.values(), action, direction)
            frames_FHW3 = draw(sheets, parts, layout, action, direction)
            if what in seen or frames_FHW3 is None:
                continue
            seen.add(what)
            name = f"{len(lines):06d}.apng"
            video.write_video(out / name, frames_FHW3, FPS)
            text = caption(parts, action, direction, words, trim)
            lines.append(json.dumps({"file_name": name, "text": text}))
            bar.update()
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheets", type=Path, help="folder with attributes.json")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_sprites(options.sheets, options.out, options.clips, options.seed)
