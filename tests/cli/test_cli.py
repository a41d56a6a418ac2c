"""The command line: files that are whole, one line for what is wrong, status 0, 2 or 130."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import Result
from fixtures_model import LEXICON, SIZE, write_model
from PIL import Image
from typer.testing import CliRunner

import flowcept
from flowcept import cli
from flowcept import generation as tasks
from flowcept.data import formats, video
from flowcept.data.timing import Timing
from flowcept.data.video import Sound
from flowcept.errors import UserError
from flowcept.settings import mixed

COMMANDS = ["gen", "i2v", "interp", "extend", "train", "merge", "evaluate", "info"]
COMMANDS += ["shapes", "stage"]
GENERATING = COMMANDS[:4]
ABSENT = "absent.safetensors"  # settings are checked before this is missed


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWCEPT_MODEL", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of programs that tests start


@pytest.fixture
def made(flow, tiny_model):
    """A generating command with a tiny model that must succeed; later flags overrule."""

    def run(command, *words, scale=("--scale", 1)):
        fast = [
            "-m",
            tiny_model,
            "--steps",
            2,
            "--seed",
            1,
            *(scale if command != "extend" else ()),
        ]
        result = flow(command, *fast, *words)
        assert result.status == 0, result.err
        return result

    return run


def refused(result, *words):
    """Status 2, nothing on stdout, and one line on stderr that holds these words."""
    assert result.status == 2, result
    assert result.out == ""
    assert re.fullmatch(r"flowcept: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


def files():
    return sorted(path.name for path in Path().iterdir())


def noise(frames, height=SIZE, width=SIZE, seed=0):
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(name, height=SIZE, width=SIZE, seed=0):
    (image_HW3,) = noise(1, height, width, seed)
    Image.fromarray(image_HW3).save(name)
    return image_HW3


def command_line(command):
    """A command with inputs that exist and a model that does not."""
    picture("a.png", seed=1)
    picture("b.png", seed=2)
    video.write_video(Path("clip.apng"), noise(3), 12)
    inputs = {
        "gen": ["a dog"],
        "i2v": ["a.png"],
        "interp": ["a.png", "b.png"],
        "extend": ["clip.apng"],
    }[command]
    return [command, *inputs, "-m", ABSENT]


# ---- what comes out ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["o.mp4", "o.MP4", "o.mov", "o.webm", "o.gif", "o.webp", "o.apng", "o/%03d.png"]
)
def test_every_format_holds_what_was_told(made, flow, name):
    result = made("gen", "a dog", "-o", name)
    told = re.fullmatch(
        rf"{re.escape(name)}: (\d+) frames of 32x32 at 12 fps, seed 1\n", result.out
    )
    frames_FHW3, fps = video.read_video(Path("o" if "/" in name else name))
    assert frames_FHW3.shape == (int(told[1]), SIZE, SIZE, 3)
    assert fps == 12
    assert files() == [name.split("/")[0]]
    shown = flow("info", name.replace("%03d", "001"), "--json")
    record = json.loads(shown.out)
    assert (record["prompt"], record["seed"], record["steps"]) == ("a dog", 1, 2)
    assert record["frames"] == len(frames_FHW3)
    if "%" not in name:
        assert record["sha256_of_frames"] == video.digest(frames_FHW3)
    assert re.search(r"^prompt +a dog$", flow("info", name.replace("%03d", "001")).out, re.M)


def test_no_metadata(made, flow):
    made("gen", "a dog", "--no-metadata", "-o", "o.mp4")
    refused(flow("info", "o.mp4"), "o.mp4")
    assert b"a dog" not in Path("o.mp4").read_bytes()


def test_same_seed_same_file_and_default_name(made, flow, tiny_model):
    made("gen", "a dog", "-o", "x.mp4")
    result = made("gen", "a dog")
    assert files() == ["a-dog-1.mp4", "x.mp4"]
    assert Path("x.mp4").read_bytes() == Path("a-dog-1.mp4").read_bytes()
    assert "seed 1" in result.out
    result = flow("gen", "a dog", "-m", tiny_model, "--steps", 1, "--scale", 1)
    seed = re.search(r"seed (\d+)$", result.out.strip())[1]
    assert Path(f"a-dog-{seed}.mp4").is_file()


def test_a_name_that_nobody_chose_replaces_nothing(made):
    for prompt in ("a dog", "A dog!", "a  DOG"):
        made("gen", prompt)
    names = ["a-dog-1.mp4", "a-dog-1-2.mp4", "a-dog-1-3.mp4"]
    assert files() == sorted(names)
    prompts = [video.read_metadata(Path(name))["prompt"] for name in names]
    assert prompts == ["a dog", "A dog!", "a  DOG"]


def test_default_scale_reaches_256_pixels(made):
    result = made("gen", "a dog", "--frames", 2, "-o", "o.apng", scale=())
    assert "2 frames of 256x256" in result.out


def test_several_prompts_and_counts(made):
    result = made("gen", "a dog", "a cat", "--count", 2, "-o", "o.apng", "--sheet", "s.png")
    names = [f"o-{n}.apng" for n in (1, 2, 3, 4)] + [f"s-{n}.png" for n in (1, 2, 3, 4)]
    assert files() == names
    second = str(mixed(1, "count", 1))
    assert re.findall(r"seed (\d+)", result.out) == ["1", second, "1", second]
    prompts = [video.read_metadata(Path(name))["prompt"] for name in names[:4]]
    assert prompts == ["a dog", "a dog", "a cat", "a cat"]


def test_no_clip_of_a_run_overwrites_another(made):
    """Two like prompts of one seed have one name; a line's output may be made several times."""
    made("gen", "a dog", "a dog")
    assert files() == ["a-dog-1-2.mp4", "a-dog-1.mp4"]
    Path("jobs.txt").write_text('{"prompt": "a dog", "output": "j.apng"}\n')
    made("gen", "--prompts-file", "jobs.txt", "--count", 2)
    assert {"j.apng", "j-2.apng"} <= set(files())


def test_prompts_file(made):
    lines = [
        "\ufeffa dog",
        "",
        "  # a comment",
        '{"prompt": "a cat", "frames": 3, "seed": 9, "output": "cat.apng", "negative-prompt": "x"}',
        '{"prompt": "a", "frames": "auto", "min_length": null, "max-length": 4, "cache": false}',
    ]
    Path("p.txt").write_text("\n".join(lines), encoding="utf-8")
    result = made("gen", "surfing", "--prompts-file", "p.txt", "--json", "-o", "o.apng")
    records = json.loads(result.out)
    assert [record["prompt"] for record in records] == ["surfing", "a dog", "a cat", "a"]
    assert [record["seed"] for record in records] == [1, 1, 9, 1]
    names = [record["output"] for record in records]
    assert names == ["o-1.apng", "o-2.apng", "cat.apng", "o-4.apng"]
    assert records[2]["frames"] == video.probe(Path("cat.apng")).num_frames == 3
    assert records[2]["negative_prompt"] == "x"
    assert (records[3]["cache"], records[3]["max_length"]) == (False, 4)
    assert records[2]["cache"] is True
    assert records[3]["frames"] <= 4


def test_no_clip_takes_the_place_of_another(flow, made, tiny_model):
    """Neither a numbered one, nor a preview; a name that two ask for is numbered."""
    Path("p.txt").write_text('{"prompt": "one", "output": "o-2.webp"}\ntwo\n')
    words = ["-m", tiny_model, "-o", "o.webp"]
    refused(flow("gen", "--prompts-file", "p.txt", *words), "o-2.webp", "named for two outputs")
    refused(
        flow("gen", "a", "b", *words, "--preview", "o-1.webp"), "o-1.webp", "named for two outputs"
    )
    Path("sub").mkdir()
    refused(flow("gen", "a", *words, "--preview", "sub/../o.webp"), "named for two outputs")
    assert files() == ["p.txt", "sub"]
    Path("p.txt").write_text('{"prompt": "one", "output": "o.webp"}\n' * 2)
    made("gen", "--prompts-file", "p.txt")
    assert files() == ["o-2.webp", "o.webp", "p.txt", "sub"]


def test_frames_of_png_are_files_that_others_must_not_take(flow, tiny_model):
    words = ["-m", tiny_model, "-o"]
    refused(
        flow("gen", "a", *words, "f_%04d.png", "--sheet", "f_0001.png"), "named for two outputs"
    )
    lines = [f'{{"prompt": "a", "output": "f_%{width}d.png"}}' for width in ("03", "")]
    Path("p.txt").write_text("\n".join(lines))
    refused(flow("gen", "--prompts-file", "p.txt", "-m", tiny_model), "named for two outputs")
    assert files() == ["p.txt"]


def test_names_that_no_file_can_have(flow):
    long = "n" * 300
    for words in (["info", long], ["gen", "a", "-m", long], ["train", long]):
        refused(flow(*words), "too long")


def test_a_least_length_beyond_the_trained_ones_is_met(made):
    """Only the bound is known then, at any number of steps."""
    for steps in (1, 9):
        made("gen", "a", "--steps", steps, "--min-length", 20, "--max-length", 40, "-o", "o.apng")
        assert video.probe(Path("o.apng")).num_frames == 20


def test_the_seed_told_of_a_later_clip_makes_it_again(made, flow, tiny_model):
    """Seeds of clips and of their neighbours do not overlap, given or drawn."""
    made("gen", "a dog", "--count", 3, "-o", "o.apng")
    seeds = [video.read_metadata(Path(f"o-{n}.apng"))["seed"] for n in (1, 2, 3)]
    assert len({*seeds, 2, 3}) == 5
    made("gen", "a dog", "--seed", seeds[2], "-o", "again.apng")
    assert Path("o-3.apng").read_bytes() == Path("again.apng").read_bytes()

    words = ["-m", tiny_model, "--steps", 1, "--scale", 1, "--count", 2, "--json"]
    first, second = (clip["seed"] for clip in json.loads(flow("gen", "a", *words).out))
    assert second == mixed(first, "count", 1)


def test_a_prompt_may_hold_other_line_ends(made):
    Path("p.txt").write_text("one\u2028two\n" + json.dumps({"prompt": "a\x85b"}), "utf-8")
    told = json.loads(made("gen", "--prompts-file", "p.txt", "--json").out)
    assert [clip["prompt"] for clip in told] == ["one\u2028two", "a\x85b"]


def test_finished_outputs_are_kept_and_told_when_a_later_one_fails(flow, tiny_model, monkeypatch):
    generate = tasks.Studio.generate

    def failing(studio, prompt, **settings):
        if prompt == "a cat":
            raise UserError("no luck")
        return generate(studio, prompt, **settings)

    monkeypatch.setattr(tasks.Studio, "generate", failing)
    words = ["gen", "a dog", "a cat", "a", "-m", tiny_model, "--steps", 1, "-o", "o.apng"]
    result = flow(*words, "--json")
    assert result.status == 2
    assert result.err == "flowcept: no luck\n"
    assert files() == ["o-1.apng"]
    assert [record["output"] for record in json.loads(result.out)] == ["o-1.apng"]
    video.read_video(Path("o-1.apng"))


def test_json_and_quiet(made):
    result = made("gen", "a zebra", "--json", "-o", "o.mp4", "--fps", 7)
    (record,) = json.loads(result.out)
    frames_FHW3, fps = video.read_video(Path("o.mp4"))
    assert (record["frames"], record["height"], record["width"]) == frames_FHW3.shape[:3]
    assert record["fps"] == fps == 7
    assert "zebra" in record["notes"][0]
    assert result.err == ""
    long = made("gen", "zebra " * 1700, "-q", "-o", "q.mp4")
    assert (long.out, long.err) == ("", "")


def test_words_are_told_before_the_work_and_once(flow, tmp_path, monkeypatch):
    model = write_model(tmp_path / "words.safetensors", lexicon=LEXICON)
    fast = ["-m", model, "--steps", 1, "--scale", 1, "--frames", 2]
    result = flow("gen", "a puppy", "a zebra", "--count", 2, *fast, "-o", "o.mp4")
    lines = result.out.splitlines()
    assert "puppy: dog" in lines[0]
    assert "'zebra'" in lines[1]
    assert sum(line.startswith("note:") for line in lines) == 2
    assert "puppy" in flow("gen", "a puppy", "--literal", *fast, "-o", "o.mp4").out.splitlines()[0]
    assert "lexicon" in flow("info", model).out

    Path("p.jsonl").write_text('{"prompt": "a puppy", "literal": true, "output": "p.apng"}')
    (record,) = json.loads(flow("gen", "--prompts-file", "p.jsonl", "--json", *fast).out)
    assert record["literal"] is True
    assert "never saw 'puppy'" in record["notes"][0]

    def fails(*_, **__):
        raise UserError("no work today")

    monkeypatch.setattr(tasks.Studio, "generate", fails)
    assert "puppy: dog" in flow("gen", "a puppy", *fast, "-o", "o.mp4").out


def test_notes_are_told(made):
    assert "note: the model never saw 'zebra'" in made("gen", "zebra", "-o", "o.mp4").out
    assert "cut to its first 256" in made("gen", "a " * 5000, "-o", "o.mp4").err
    video.write_video(Path("odd.apng"), noise(3, 33, 47), 12)
    result = made("extend", "odd.apng", "-o", "odd.mp4", "--json")
    assert "padded from 47x33 to 48x34" in json.loads(result.out)[0]["notes"][-1]
    assert "--scale has no effect" in made("extend", "odd.apng", "--scale", 2, "-o", "o.mp4").out


def test_pictures_on_the_way(made):
    result = made(
        "gen", "a dog", "-o", "o.mp4", "--steps", 6,
        "--preview", "p.gif", "--sheet", "s.png", "--trace", "t.png",
    )  # fmt: skip
    assert files() == ["o.mp4", "p.gif", "s.png", "t.png"]
    count = int(re.search(r"(\d+) frames", result.out)[1])
    assert video.probe(Path("p.gif")).num_frames <= count
    columns = -(-count // -(-count // 8))
    assert Image.open("s.png").width == columns * (SIZE + 2) + 2
    assert np.asarray(Image.open("t.png")).std() > 10


def test_fps_is_playback_only(made):
    made("gen", "a dog", "-o", "a.apng")
    made("gen", "a dog", "-o", "b.apng", "--fps", 30)
    (first, slow), (second, fast) = (video.read_video(Path(n)) for n in ("a.apng", "b.apng"))
    np.testing.assert_array_equal(first, second)
    assert (slow, fast) == (12, 30)


@pytest.mark.parametrize("command", GENERATING)
def test_exact_and_bounded_lengths(made, command):
    words = command_line(command)[:-2]
    own = 3 if command == "extend" else 0
    for flags, allowed in (
        (["--frames", 7], {7}),
        (["--min-length", 5, "--max-length", 6], {5, 6}),
        (["--frames", "auto"], set(range(1, 13))),
    ):
        made(*words, *flags, "-o", "o.apng")
        assert video.probe(Path("o.apng")).num_frames - own in allowed


def test_i2v_pixels_fit_and_exif(made):
    (image_HW3,) = noise(1)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(image_HW3).save("turned.png", exif=exif)
    made("i2v", "turned.png", "-o", "o.apng")
    frames_FHW3, _ = video.read_video(Path("o.apng"))
    np.testing.assert_array_equal(frames_FHW3[0], image_HW3[::-1, ::-1])
    made("i2v", "turned.png", "--no-exact", "-o", "o.apng")
    assert (video.read_video(Path("o.apng"))[0][0] != frames_FHW3[0]).any()
    wide_HW3 = picture("wide.png", 20, 48)
    for fit, said in (("crop", "cropped from"), ("pad", "black bars"), ("stretch", "resized")):
        result = made("i2v", "wide.png", "--fit", fit, "--exact", "-o", "o.apng")
        assert f"note: {said}" in result.out or said in result.out
        expected = video.fit(wide_HW3[None], (SIZE, SIZE), fit)[0]
        np.testing.assert_array_equal(video.read_video(Path("o.apng"))[0][:1], expected)


def test_interp_keyframes_multi_and_doubling(made):
    pictures = np.stack([picture(f"{n}.png", seed=n) for n in range(3)])
    made("interp", "0.png", "1.png", "2.png", "--multi", 4, "-o", "o.apng")
    frames_FHW3, fps = video.read_video(Path("o.apng"))
    assert (len(frames_FHW3), fps) == (11, 12)
    np.testing.assert_array_equal(frames_FHW3[::5], pictures)
    video.write_video(Path("clip.webp"), noise(15), 10)
    made("interp", "clip.webp", "-o", "twice.webp")
    frames_FHW3, fps = video.read_video(Path("twice.webp"))
    assert (len(frames_FHW3), fps) == (29, 20)
    np.testing.assert_array_equal(frames_FHW3[::2], noise(15))


def tone(path, seconds=1):
    arguments = ["-v", "error", "-f", "lavfi", "-i", f"sine=440:duration={seconds}", str(path)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *arguments], check=True)


def loudness(path):
    """Of every tenth of a second."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    command += ["-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    samples = np.frombuffer(raw, np.int16).astype(float)
    return np.sqrt((samples[: len(samples) // 800 * 800].reshape(-1, 800) ** 2).mean(1))


def test_extend_keeps_sound_at_its_place(made):
    tone("tone.wav")
    video.write_video(Path("clip.mp4"), noise(10), 10, sound=Sound(Path("tone.wav"), 0))
    made("extend", "clip.mp4", "--frames", 5, "-o", "after.mp4")
    made("extend", "clip.mp4", "--frames", 5, "--direction", "backward", "-o", "before.mp4")
    after, before = loudness("after.mp4"), loudness("before.mp4")
    assert after[1:9].min() > 1000
    assert before[:4].max() < 100
    assert before[6:14].min() > 1000
    result = made("extend", "clip.mp4", "--frames", 5, "--fps", 30, "-o", "fast.mp4")
    assert "sound" in result.out
    assert not video.has_sound(Path("fast.mp4"))


def test_interp_keeps_sound_while_the_clip_takes_as_long(made):
    tone("tone.wav")
    video.write_video(Path("clip.mp4"), noise(10), 10, sound=Sound(Path("tone.wav"), 0))
    result = made("interp", "clip.mp4", "-o", "twice.mp4")
    assert "sound" not in result.out + result.err
    assert loudness("twice.mp4")[1:9].min() > 1000
    result = made("interp", "clip.mp4", "--fps", 10, "-o", "slow.mp4")
    assert "sound is left out" in result.out
    assert not video.has_sound(Path("slow.mp4"))


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_extend_keeps_the_clip_bit_for_bit(made, direction):
    clip = noise(5, 33, 47)
    video.write_video(Path("clip.apng"), clip, 10)
    words = ["--direction", direction, "--frames", 15, "--context", 9]
    made("extend", "clip.apng", *words, "-o", "frames/%04d.png")
    frames_FHW3, fps = video.read_video(Path("frames"))
    start = 0 if direction == "forward" else 15
    np.testing.assert_array_equal(frames_FHW3[start : start + 5], clip)
    assert len(frames_FHW3) == (35 if direction == "both" else 20)
    assert fps == 10


@pytest.mark.parametrize(
    ("command", "inputs", "flags"),
    [
        ("extend", ["clip.apng"], ["-o", "clip.apng"]),
        ("interp", ["clip.apng"], ["--preview", "./clip.apng"]),
        ("i2v", ["a.png"], ["--sheet", "a.png"]),
        ("interp", ["a.png", "a-2.png"], ["--trace", "a.png", "--count", "2"]),
    ],
)
def test_nothing_is_written_over_what_is_read(flow, command, inputs, flags):
    video.write_video(Path("clip.apng"), noise(5), 10)
    for name in ("a.png", "a-2.png"):
        Image.fromarray(noise(1)[0]).save(name)
    before = {name: Path(name).read_bytes() for name in files()}
    refused(flow(command, *inputs, "-m", ABSENT, *flags), "another name")
    assert {name: Path(name).read_bytes() for name in files()} == before


def test_a_rate_that_cannot_be_written_is_refused_first(flow, tiny_model, monkeypatch):
    video.write_video(Path("clip.apng"), noise(3), 10)
    read = video.read_video
    monkeypatch.setattr(video, "read_video", lambda path: (read(path)[0], 2000.0))
    monkeypatch.setattr(video, "probe", lambda _: Timing(2000.0, 3))
    refused(flow("extend", "clip.apng", "-m", ABSENT), "--fps")
    refused(flow("interp", "clip.apng", "-m", tiny_model), "--fps")


def test_model_from_the_environment(flow, tiny_model, monkeypatch):
    monkeypatch.setenv("FLOWCEPT_MODEL", str(tiny_model))
    assert flow("gen", "a dog", "--steps", 1, "--scale", 1, "-o", "o.gif").status == 0
    assert video.read_metadata(Path("o.gif"))["model"] == "tiny"


@pytest.mark.parametrize(
    "prompt", ["", " ", "🏄 ein Hund, größer als 'das' \"Meer\"; # = \\", "x" * 10_000, "a\nb\tc"]
)
def test_strange_prompts(made, prompt):
    made("gen", prompt, "--steps", 1, "--frames", 2, "-o", "o.mp4")
    assert video.read_metadata(Path("o.mp4"))["prompt"] == prompt


def test_strange_names(made):
    for name in ("größer 🏄.mp4", "two words;'$(x).webp", "-.gif", "a%b.apng", "caf\udce9.apng"):
        made("gen", "a", "--steps", 1, "--frames", 2, f"--output={name}")
        assert video.probe(Path(name)).num_frames == 2
    picture("ä b.png")
    made("i2v", "ä b.png", "--frames", 2, "-o", "o.gif")


def test_text_that_is_no_text(made):
    """Bytes of the shell that are not UTF-8 arrive as lone surrogates."""
    result = made("gen", "caf\udce9", "--json", "-o", "o.mp4")
    assert json.loads(result.out)[0]["prompt"] == "caf\udce9"


# ---- what is refused ---------------------------------------------------------------------------

COUNTS = ["--steps", "--min-length", "--max-length", "--frames", "--count", "--scale"]
NUMBERS = ["--guidance", "--rate-temperature", "--length-scale", "--fps"]
BAD_NUMBERS = [
    *((flag, value) for flag in COUNTS for value in ("0", "-1", "1.5", "nan", "inf", "x", "")),
    *((flag, value) for flag in NUMBERS for value in ("nan", "inf", "-inf", "-1", "1e300", "x")),
    *((flag, "0") for flag in ("--length-scale", "--fps")),
    *((flag, "9" * 30) for flag in (*COUNTS, "--seed", "--threads")),
    *(("--seed", value) for value in ("-1", "nan", "1.5", str(2**63))),
    *(("--threads", value) for value in ("-1", "nan")),
    ("--frames", "9" * 5000),
    ("--fps", "2000"),
    ("--fps", "1e-9"),
]


@pytest.mark.parametrize(("flag", "value"), BAD_NUMBERS)
def test_bad_numbers(flow, flag, value):
    refused(flow("gen", "a dog", "-m", ABSENT, f"{flag}={value}"), flag)
    assert files() == []


CONTRADICTIONS = [
    ("gen", ["--min-length", "9", "--max-length", "8"], "--min-length"),
    ("gen", ["--frames", "9", "--max-length", "8"], "--frames"),
    ("gen", ["--frames", "3", "--min-length", "4"], "--frames"),
    ("gen", ["--device", "tpu"], "device"),
    ("gen", ["--dtype", "int8"], "dtype"),
    ("gen", ["--device", "cpu", "--dtype", "float16"], "float16"),
    ("gen", ["--bogus"], "--bogus"),
    ("gen", ["--seed"], "--seed"),
    ("gen", ["-o", "o.xyz"], ".xyz"),
    ("gen", ["-o", "o.png"], "frame_%04d.png"),
    ("gen", ["-o", "o_%04d.mp4"], "give a folder"),
    ("gen", ["-o", "a.png/o.mp4"], "a.png is a file"),
    ("gen", ["-o", "a.png/"], "a.png is a file"),
    ("gen", ["-o", "out"], "out.mp4 for one clip, or out/ for a folder"),
    ("gen", ["-o", "o.mp4", "--format", "webp"], "--format"),
    ("gen", ["-o", ".mp4"], ".mp4"),
    ("gen", ["-o", "x" * 300 + ".mp4"], "too long"),
    ("gen", ["-o", "%04d.png"], "frames named %04d.png"),
    ("gen", ["-o", "full/%04d.png", "--overwrite"], "frames named %04d.png"),
    ("gen", ["-o", "a.png/%04d.png"], "a.png is a file"),
    ("gen", ["--preview", "a.png/p.mp4"], "a.png is a file"),
    ("gen", ["--preview", "folder.mp4"], "folder.mp4"),
    ("gen", ["--preview", "p"], "--preview"),
    ("gen", ["--preview", "p%04d.png"], "--preview"),
    ("gen", ["-o", "o.mp4", "--preview", "./o.mp4"], "o.mp4"),
    ("gen", ["--sheet", "s.mp4"], ".png or .jpg"),
    ("gen", ["--prompts-file", "none.txt"], "none.txt: No such file or directory\n"),
    ("gen", ["--prompts-file", "a.png"], "UTF-8"),
    ("gen", ["--sheet", "a.png/s.png"], "a.png is a file"),
    ("gen", ["--sheet", "folder.png"], "folder.png"),
    ("gen", ["--sheet", "s.png", "--trace", "s.png"], "s.png"),
    ("i2v", ["--fit", "squeeze"], "--fit"),
    ("i2v", ["--frames", "9", "--max-length", "8"], "--frames"),
    ("interp", ["--fit", "squeeze"], "--fit"),
    ("interp", ["--multi", "-1"], "--multi"),
    ("interp", ["--multi", "2", "--frames", "9"], "--multi"),
    ("interp", ["--multi", "2", "--min-length", "9"], "--multi"),
    ("interp", ["--frames", "1"], "keyframes"),
    ("interp", ["--max-length", "1"], "keyframes"),
    ("extend", ["--direction", "up"], "--direction"),
    ("extend", ["--context", "0"], "--context"),
    ("extend", ["--context", "-3"], "--context"),
]


@pytest.mark.parametrize(("command", "flags", "word"), CONTRADICTIONS)
def test_settings_are_checked_before_a_model_is_loaded(flow, command, flags, word):
    words = command_line(command)
    for folder in ("full", "folder.mp4", "folder.png"):
        Path(folder).mkdir()
        (Path(folder) / "0001.png").touch()
    Path("0007.png").touch()
    before = files()
    result = flow(*words, *flags)
    refused(result, word)
    assert ABSENT not in result.err
    assert files() == before


def test_cuda_where_there_is_none(flow):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused(flow("gen", "a dog", "-m", ABSENT, "--device", "cuda"), "cuda", "cpu")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"prompt": "a"', "not JSON"),
        ("{}", "no prompt"),
        ('{"prompt": 3}', "no prompt"),
        ('{"prompt": "a", "lenght": 3}', "lenght"),
        ('{"prompt": "a", "steps": "2"}', "steps"),
        ('{"prompt": "a", "steps": 2.5}', "steps"),
        ('{"prompt": "a", "seed": true}', "seed"),
        ('{"prompt": "a", "cache": 1}', "cache"),
        ('{"prompt": "a", "seed": -1}', "--seed"),
        ('{"prompt": "a", "steps": 0}', "--steps"),
        ('{"prompt": "a", "guidance": NaN}', "--guidance"),
        ('{"prompt": "a", "frames": 3, "max_length": 2}', "--frames"),
        ('{"prompt": "a", "output": "o.xyz"}', ".xyz"),
        ('{"prompt": "a", "output": "p.jsonl/o.mp4"}', "p.jsonl is a file"),
        ('{"prompt": "a", "output": "a\\u0000.mp4"}', "no name can have"),
        ('{"prompt": "a", "output": "\\ud800.mp4"}', "no name can have"),
        ('{"prompt": ' + "[" * 100_000, "not JSON"),
    ],
)
def test_broken_prompts_files_name_the_line(flow, line, word):
    Path("p.jsonl").write_text(f"a dog\n\n{line}\n")
    refused(flow("gen", "--prompts-file", "p.jsonl", "-m", ABSENT), "p.jsonl, line 3", word)
    assert files() == ["p.jsonl"]


def test_prompts_files_that_are_none(flow):
    Path("empty.txt").touch()
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, word in (("empty.txt", "prompt"), ("bytes.txt", "bytes.txt"), ("none", "none")):
        refused(flow("gen", "--prompts-file", name, "-m", ABSENT), word)
    refused(flow("gen", "--prompts-file", ".", "-m", ABSENT))
    refused(flow("gen", "-m", ABSENT), "no prompt")


@pytest.mark.parametrize("command", ["i2v", "interp", "extend", "info"])
def test_broken_inputs(flow, command):
    Path("empty.png").touch()
    Path("empty.mp4").touch()
    Path("text.png").write_text("hello")
    Path("text.mp4").write_text("hello" * 100)
    Path("notes.txt").write_text("hello")
    Path("folder").mkdir()
    model = [] if command == "info" else ["-m", ABSENT]
    inputs = ["none.png", "none.mp4", "empty.png", "empty.mp4", "text.png", "text.mp4"]
    for name in [*inputs, "notes.txt", "folder"]:
        result = flow(command, name, *model)
        refused(result, name)
        assert ABSENT not in result.err
    assert files() == sorted({*inputs[2:], "notes.txt", "folder"})


def test_wrong_kinds_of_input(flow):
    words = command_line("i2v")
    refused(flow(*words[:1], "clip.apng", "-m", ABSENT), "clip.apng")
    refused(flow("interp", "a.png", "-m", ABSENT), "a.png")
    refused(flow("interp", "a.png", "clip.apng", "-m", ABSENT), "clip.apng")
    refused(flow("info", "a.png"), "a.png")


@pytest.mark.parametrize("command", [*GENERATING, "info"])
def test_models_that_are_none(flow, command):
    words = ["info"] if command == "info" else command_line(command)[:-1]
    Path("cut.safetensors").write_bytes(b"\x10" * 100)
    Path("empty.safetensors").touch()
    Path("dir.safetensors").mkdir()
    before = files()
    for name in (ABSENT, "cut.safetensors", "empty.safetensors", "dir.safetensors", "unknown"):
        refused(flow(*words, name), name)
    assert files() == before


def test_missing_arguments(flow):
    for words in (["i2v"], ["interp"], ["extend"], ["info"], ["nonsense"], ["gen", "-m"]):
        refused(flow(*words))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_of_somebody_else(flow, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    refused(flow("gen", "a dog", "-m", ABSENT, "-o", "theirs/o.mp4"), "theirs")


def test_no_half_written_file_after_a_full_disk(flow, tiny_model, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.ANIMATIONS, ".apng", full)
    words = ["gen", "a dog", "-m", tiny_model, "--steps", 1, "--scale", 1, "-o", "o.apng"]
    refused(flow(*words), "o.apng", "No space left")
    assert files() == []


# ---- as a program ------------------------------------------------------------------------------


def program(*words, **options):
    command = [sys.executable, "-m", "flowcept", *map(str, words)]
    path = os.pathsep.join([str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        **options,
    )  # fmt: skip


def test_program_makes_a_clip_and_refuses(tiny_model):
    words = ["gen", "a dog", "--steps", 1, "--scale", 1, "-o", "o.mp4"]
    with program(*words, "-m", tiny_model) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert out.startswith("o.mp4: ")
    with program(*words, "-m", ABSENT, "--steps", "x") as process:
        out, err = process.communicate(timeout=120)
    refused(Result(process.returncode, out, err), "--steps")


def test_no_half_of_a_bar_stays(made):
    """A bar that was shown ends its line, or the next message would stand behind it."""
    video.write_video(Path("clip.apng"), noise(3), 12)
    assert made("extend", "clip.apng", "--frames", 30, "-o", "o.apng").err == ""  # three windows


@pytest.mark.skipif(os.name != "posix", reason="no SIGINT to send")
def test_interrupt_keeps_what_is_finished_and_leaves_no_halves(tiny_model):
    jobs = [
        {"prompt": "a dog", "output": "first.webp", "steps": 1},
        {"prompt": "a cat", "output": "second.webp", "steps": 100_000},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    words = ["gen", "--prompts-file", "p.jsonl", "-m", tiny_model, "--preview", "p.webp"]
    with program(*words, "--scale", 1) as process:
        first, preview, deadline = Path("first.webp"), Path("p.webp"), time.monotonic() + 100

        def underway() -> bool:
            """Whether the second clip was shown."""
            both = first.exists() and preview.exists()
            return both and preview.stat().st_mtime_ns > first.stat().st_mtime_ns

        while not underway() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.count("\n") == 1
    assert err.endswith("flowcept: interrupted\n")
    assert "Traceback" not in err
    assert files() == ["first.webp", "p.jsonl", "p.webp"]
    for name in ("first.webp", "p.webp"):
        video.read_video(Path(name))


def test_help_imports_nothing_heavy():
    code = """
import sys
import flowcept
from flowcept import cli
heavy = {"torch", "numpy", "PIL", "imageio_ffmpeg", "safetensors"}
for words in (["--help"], ["gen", "-h"], ["train", "--help"], ["gen", "a", "--steps", "0"]):
    sys.argv = ["flowcept", *words]
    try:
        cli.main()
    except SystemExit:
        pass
    assert "torch" not in sys.modules, words
    assert "a" in words or not heavy & set(sys.modules), words
"""
    path = str(Path(cli.__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def test_help_answers_in_half_a_second():
    def seconds():
        before = os.times()
        with program("-h") as process:
            out, _ = process.communicate(timeout=60)
        after = os.times()
        assert "flowcept [OPTIONS] COMMAND" in out
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    assert min(seconds() for _ in range(3)) < 0.5  # of the processor: others may be at work


def test_the_memory_error_of_a_device_is_one_line(flow, tiny_model, monkeypatch):
    def failing(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flowcept, "load", failing)
    refused(flow("gen", "a", "-m", tiny_model), "not enough memory")


def test_quiet_leaves_the_filters_of_warnings_alone(made):
    before = list(warnings.filters), warnings.showwarning
    assert made("gen", "a " * 5000, "-q", "-o", "o.mp4").err == ""
    assert (list(warnings.filters), warnings.showwarning) == before


def test_help_and_version(flow):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    top = runner.invoke(cli.app, ["--help"])
    assert top.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", top.output)
        shown = runner.invoke(cli.app, [command, "--help"])
        assert shown.exit_code == 0
        assert f"flowcept {command}" in shown.output  # a command line to copy
    shown = runner.invoke(cli.app, ["gen", "--help"]).output
    for flag in ("--steps", "--frames", "--seed", "--output", "--rate-temperature", "--json"):
        assert flag in shown
    assert flow("--version").out == f"flowcept {cli.__version__}\n"
    assert flow().status == 2


def test_what_training_would_not_do_is_refused(flow):
    Path("data").mkdir()
    refused(flow("train", "data", "--pause-at", 0), "--pause-at")
    refused(flow("train", "data", "--preset", "tiny", "--resume"), "--preset")


def test_a_model_of_nobody_and_a_prompt_of_no_end(flow):
    refused(flow("gen", "a", "-m", "~nosuchuser/model.safetensors"), "no such user")
    refused(flow("gen", "\u72ac" * 25_000), "too long")
