"""Damaged files of every format that is read: each is refused in one line, or read right.

    python tests/bench/fuzz.py --output fuzz
    python tests/bench/fuzz.py --output fuzz --only mp4 --first 1234 --count 1   # one case again

Small files are made, 32x24 pixels and six frames, of each format several. Every case changes one at
random (bytes, headers, lengths, parts that change places or come from another file, values of JSON
and TOML) and reads it by the functions that the commands use, one in 20 by the whole command. A
case is its seed, format and number. It fails where anything but ``UserError`` comes out, where that
is more than one line, where what was read is not as it says it is, where a library's words reach
the terminal, where the process dies or hangs, a child or a hidden file is left, it takes more than
20 s of the processor or holds more than 2 GB. Failing files are kept in the output folder, with
what happened; ``FORMAT.jsonl`` there has all verdicts, and ``counts.json`` how many there were of
each. ``--bar`` is how many failures are let pass.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import imageio_ffmpeg
import mutations
import numpy as np
import tomli_w
import torch
from PIL import Image, ImageCms, PngImagePlugin
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))

import fixtures_model
from fixtures_stage import strip as strip_of_bones

import flowcept
from flowcept import cli, model_file
from flowcept.cli.gen import read_jobs
from flowcept.cli.options import MakeOptions
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.data.stage.gltf import read_model as read_gltf
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.settings import DataSettings, MotionTrainConfig, SampleConfig, TrainConfig
from flowcept.training.parts import check_parts
from flowcept.training.state import Files, make_config, make_motion_config, write_config

SECONDS = 20  # of the processor that a case may take
PATIENCE = 200  # seconds after which it hangs, however busy the machine is
BYTES = 2 << 30  # that a case may hold
LONGEST = 600  # characters of a refusal
EXPECTED = re.compile(r"^note: |^needs up to about |\d%\|")  # lines of a command, and its bars
COMMANDS = 20  # one case in so many goes through the whole command
WIDTH, HEIGHT, FRAMES = 32, 24, 6

FILMS = ("mp4", "webm", "mkv", "mov")
ANIMATIONS = ("gif", "webp", "apng")
PICTURES = ("png", "jpg", "tif")
FORMATS = (
    *FILMS, *ANIMATIONS, *PICTURES, "safetensors", "card", "toml", "jsonl", "csv", "lexicon", "glb",
)  # fmt: skip
SUFFIXES = {"card": "safetensors", "lexicon": "json"}


# ---- files to begin with -----------------------------------------------------------------------


def make_inputs(folder: Path) -> None:
    """A folder ``FORMAT/`` of files for every format, and ``clips/``, a folder to train on."""
    for name in (*FORMATS, "clips"):
        (folder / name).mkdir(parents=True)
    _make_films(folder)
    _make_animations(folder)
    _make_pictures(folder)
    _make_models(folder)
    _make_texts(folder)
    (folder / "glb/Shark.glb").write_bytes(strip_of_bones("Armature|Swim").data())
    (folder / "glb/Cow.glb").write_bytes(strip_of_bones("Walk", "Idle").data())


def _make_films(folder: Path) -> None:
    sound = "-f lavfi -i sine=r=8000:d=0.5 -shortest"
    films = {
        "mp4/h264.mp4": f"{sound} -c:v libx264 -c:a aac -bf 2 -metadata comment={{}}",
        "mp4/hevc.mp4": "-c:v libx265 -x265-params log-level=error -tag:v hvc1",
        "mp4/mpeg4.mp4": f"{sound} -c:v mpeg4 -c:a aac -movflags +frag_keyframe+empty_moov",
        "webm/vp9.webm": f"{sound} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus",
        "webm/vp8.webm": "-pix_fmt yuva420p -c:v libvpx -auto-alt-ref 0",
        "mkv/h264.mkv": f"{sound} -c:v libx264 -c:a flac -metadata title=a",
        "mkv/ffv1.mkv": "-pix_fmt rgb24 -c:v ffv1",
        "mkv/mpeg2.mkv": "-c:v mpeg2video -flags +ildct",
        "mov/prores.mov": f"{sound} -c:v prores_ks -c:a pcm_s16le",
        "mov/mjpeg.mov": "-c:v mjpeg -pix_fmt yuvj420p -movflags +faststart",
        "mov/png.mov": "-pix_fmt rgba -c:v png",
    }
    source = f"testsrc2=s={WIDTH}x{HEIGHT}:r=12:d=0.5"
    exact = "-fflags +bitexact -flags:v +bitexact -flags:a +bitexact"
    for name, words in films.items():
        pixels = "" if "-pix_fmt" in words or "prores" in words else "-pix_fmt yuv420p"
        command = f"-v error -y -f lavfi -i {source} {words} {pixels} {exact}"
        tool = imageio_ffmpeg.get_ffmpeg_exe()
        subprocess.run([tool, *command.split(), folder / name], check=True)


def _frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8)


def _make_animations(folder: Path) -> None:
    frames_FHW3 = _frames()
    about = {"flowcept": "0", "prompt": "a dog"}
    for suffix in ANIMATIONS:
        video.write_video(folder / suffix / f"own.{suffix}", frames_FHW3, 12, metadata=about)
    for number in range(4):
        video.write_video(folder / "clips" / f"{number}.apng", frames_FHW3[: 2 + number], 12)

    clear = [Image.fromarray(frame).convert("RGBA") for frame in frames_FHW3]
    for number, picture in enumerate(clear):
        picture.paste((0, 0, 0, 0), (number, number, number + 9, number + 9))
    rest = {"save_all": True, "append_images": clear[1:], "duration": 80}
    clear[0].save(folder / "gif/clear.gif", disposal=2, **rest)
    clear[0].save(folder / "webp/lossy.webp", quality=30, exif=_exif(), **rest)
    clear[0].save(folder / "webp/alone.webp", lossless=True)
    clear[0].save(folder / "apng/clear.apng", format="PNG", disposal=1, blend=1, **rest)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif[0x010E] = "a picture"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0{}"
    return exif


def _make_pictures(folder: Path) -> None:
    picture = Image.fromarray(_frames()[0])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", '{"flowcept": "0", "fps": 12}')
    png, jpg, tif = (folder / name for name in PICTURES)
    picture.save(png / "rgb.png", pnginfo=text, icc_profile=srgb, exif=_exif())
    picture.quantize(16).save(png / "palette.png", transparency=0)
    Image.fromarray(_frames()[0, ..., 0].astype(np.uint16) * 200).save(png / "deep.png")
    picture.save(jpg / "rgb.jpg", icc_profile=srgb, exif=_exif())
    picture.convert("CMYK").save(jpg / "cmyk.jpg", progressive=True, icc_profile=profile)
    picture.convert("L").save(jpg / "grey.jpg")
    picture.save(tif / "lzw.tif", compression="tiff_lzw", icc_profile=srgb)
    Image.fromarray(_frames()[0, ..., 0].astype(np.float32)).save(tif / "float.tif")
    pages = [picture.convert("1"), picture.convert("L"), picture]
    pages[2].save(tif / "pages.tif", save_all=True, append_images=pages[:2])
    picture.convert("1").save(tif / "fax.tif", compression="group4")
    picture.save(tif / "jpeg.tif", compression="jpeg")


def _make_models(folder: Path) -> None:
    lexicon = fixtures_model.LEXICON
    fixtures_model.write_model(folder / "card/words.safetensors", lexicon=lexicon)
    fixtures_model.write_motion(folder / "card/motion.safetensors")
    fixtures_model.write_model(folder / "card/pixels.safetensors", "pixels")
    for model in (folder / "card").iterdir():
        shutil.copy(model, folder / "safetensors")
    state = {"step": 3, "weights": [torch.ones(4), {"mean": torch.zeros(2, 2)}], "hours": 0.5}
    model_file.save_tree(state, folder / "safetensors/state.safetensors")


def _make_texts(folder: Path) -> None:
    write_config(TrainConfig().changed(size="32"), folder / "toml/transformer.toml")
    write_config(MotionTrainConfig(), folder / "toml/motion.toml")
    (folder / "toml/few.toml").write_text("steps = 10\n[context]\nnone = 0.5\n")
    jobs = [
        {"prompt": "a dog surfing", "frames": 4, "seed": 7, "output": "a.mp4"},
        {"prompt": "a cat", "frames": "auto", "guidance": 1.5, "steps": 2, "loop": True},
        {"prompt": "ein Bär", "negative-prompt": "rain", "min_length": 2, "max_length": 5},
    ]
    clips = [{"file_name": f"{number}.apng", "text": f"a dog {number}"} for number in range(4)]
    for name, rows in (("prompts", jobs), ("metadata", clips)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"jsonl/{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = "".join(f'{number}.apng,"a dog, {number}",x\n' for number in range(4))
    (folder / "csv/metadata.csv").write_text("file_name,caption,other\n" + rows)
    (folder / "csv/tail.csv").write_text("path,prompt\r\n0.apng,a\r\n1.apng,\r\n")
    record = json.dumps(asdict(fixtures_model.LEXICON))
    (folder / "lexicon/lexicon.json").write_text(record)


# ---- one case: what is changed -----------------------------------------------------------------


def mutated(kind: str, inputs: Path, random: Random) -> tuple[str, bytes]:
    """The name of a file of a format, and what it holds after the change."""
    files = sorted((inputs / kind).iterdir())
    file = random.choice(files)
    content = file.read_bytes()
    others = [one.read_bytes() for one in files]
    if kind == "card":
        return file.name, _other_header(content, random)
    if kind == "glb" and random.random() < 0.6:
        return file.name, _other_gltf(content, random)
    if kind in {"toml", "jsonl", "lexicon"} and random.random() < 0.6:
        with suppress(ValueError, TypeError, UnicodeError):
            return file.name, _other_text(kind, content.decode(), random)
    return file.name, mutations.changed(content, kind, random, others)


def _other_header(content: bytes, random: Random) -> bytes:
    """A model file whose card, or list of tensors, has wrong values."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.8:
        card = json.loads(header["__metadata__"]["flowcept"])
        card = mutations.with_other_values(card, random)
        header["__metadata__"]["flowcept"] = json.dumps(card)
    else:
        header = mutations.with_other_values(header, random)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _other_gltf(content: bytes, random: Random) -> bytes:
    """A model of triangles whose JSON has wrong values."""
    end = 20 + int.from_bytes(content[12:16], "little")
    tree = mutations.with_other_values(json.loads(content[20:end]), random)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    length = (12 + 8 + len(text) + len(content) - end).to_bytes(4, "little")
    head = content[:8] + length + len(text).to_bytes(4, "little") + content[16:20]
    return head + text + content[end:]


def _other_text(kind: str, text: str, random: Random) -> bytes:
    """Text of the same format with wrong values."""
    if kind == "lexicon":
        return json.dumps(mutations.with_other_values(json.loads(text), random)).encode()
    if kind == "toml":
        values = [value for value in mutations.VALUES if value is not None]
        import tomllib

        return tomli_w.dumps(
            mutations.with_other_values(tomllib.loads(text), random, values)
        ).encode()
    rows = [json.loads(line) for line in text.splitlines()]
    rows = mutations.with_other_values(rows, random)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# ---- one case: what reads it -------------------------------------------------------------------


class WrongError(Exception):
    """What was read is not as it should be."""


def _right(condition: object, what: str) -> None:
    if not condition:
        raise WrongError(what)


def _is_clip(frames_FHW3: np.ndarray, fps: float) -> None:
    _right(frames_FHW3.dtype == np.uint8 and frames_FHW3.ndim == 4, "no uint8 [F, H, W, 3]")
    _right(min(frames_FHW3.shape) >= 1 and frames_FHW3.shape[3] == 3, "no frames")
    _right(0 < fps < float("inf"), f"{fps} frames a second")


def read_clip(path: Path, random: Random) -> None:
    """As ``extend``, ``interp``, ``info`` and ``train`` do."""
    [_read_whole, _read_piecewise, _read_reel, _read_about, _take_sound][
        random.choice((0, 0, 0, 1, 1, 2, 2, 3, 4))
    ](path)


def _read_whole(path: Path) -> None:
    _is_clip(*video.read_video(path))


def _read_piecewise(path: Path) -> None:
    footage = video.Footage.open(path)
    shapes = [frame_HW3.shape for frame_HW3 in footage]
    _right(len(shapes) == len(footage) and len(set(shapes)) == 1, "another number of frames")
    _right(isinstance(footage.lost, str), "no note")


def _read_reel(path: Path) -> None:
    reel = video.open_reel(path)
    _right(np.isfinite(reel.edges).all() and (np.diff(reel.edges) > 0).all(), "times do not grow")
    _right(0 < reel.fps < float("inf"), f"{reel.fps} frames a second")
    channels = 4 if reel.transparent else 3
    for frame_HWC in reel.pictures():
        _right(frame_HWC.shape[2] == channels, "not the channels it says")


def _read_about(path: Path) -> None:
    about = video.read_metadata(path)
    json.dumps(about)
    _right(about is None or isinstance(about, dict), "metadata")


def _take_sound(path: Path) -> None:
    sound = video.sound_of(path)
    output = path.with_name("sound.mp4")
    video.write_stream(output, np.zeros((6, 24, 32, 3), np.uint8), 12, sound=sound)
    _right(video.probe(output).num_frames == 6, "frames were lost beside the sound")


def read_picture(path: Path, random: Random) -> None:
    """As ``i2v``, ``interp``, ``info`` and ``train`` do."""
    how = random.randrange(5)
    if how < 2:
        picture_HWC = video.read_image(path, alpha=how == 1)
        _right(picture_HWC.dtype == np.uint8 and picture_HWC.ndim == 3, "no uint8 [H, W, C]")
        _right(min(picture_HWC.shape) >= 1 and picture_HWC.shape[2] == 3 + how, "no picture")
    elif how == 2:
        _read_whole(path)
    elif how == 3:
        _read_piecewise(path)
    else:
        video.is_moving(path)
        _read_about(path)


def read_model(path: Path, random: Random) -> None:
    """As ``gen`` and ``info`` do; a model that is accepted makes a clip or says why not."""
    if path.name.startswith("state"):
        model_file.load_tree(path)
        return
    model_file.is_model(path)
    studio = flowcept.load(str(path), device="cpu")
    weights = studio.weights.state()
    _right(all(tensor.isfinite().all() for tensor in weights.values()), "weights are not finite")
    json.dumps(model_file.describe(path, studio.weights))
    studio.word_notes("a puppy surfing", "", False)
    frames = random.choice((None, 3))
    if "gen" in studio.weights.network.tasks:
        clip = studio.generate("a dog", steps=1, frames=frames, seed=1)
    else:
        ends = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
        clip = studio.interp(ends, steps=1, frames=frames, seed=1)
    _is_clip(clip.frames_FHW3, clip.fps)
    _right(frames is None or len(clip) == frames, f"{len(clip)} frames, not {frames}")


def read_settings(path: Path, random: Random) -> None:
    """As ``train --config`` and ``train --resume`` do."""
    if path.name.startswith("motion"):
        make_motion_config(path, {})
    elif random.randrange(2):
        check_parts(make_config("tiny", path, {}), "transformer")
    else:
        run = path.parent / "run"
        run.mkdir()
        shutil.copy(path, run / "config.toml")
        Files(run).recorded(TrainConfig(), ["steps"])


def read_list(path: Path, _: Random) -> None:
    """As ``gen --prompts-file`` and ``train`` do."""
    if path.name.startswith("prompts"):
        for job in read_jobs(path, MakeOptions("gen"), SampleConfig()):
            _right(isinstance(job.prompt, str), "a prompt that is no text")
        return
    found = data.scan(_with_clips(path), DataSettings(size="16"))
    _right(found.entries and all(one.path.is_file() for one in found.entries), "no clips")
    found.summary()
    data.caption_notes(path.parent, found)


def _with_clips(path: Path) -> Path:
    """The folder of a list under its usual name, with clips."""
    if path.name not in ("metadata.jsonl", "metadata.csv"):
        path.rename(path.with_name("metadata.csv"))
    for clip in (INPUTS / "clips").iterdir():
        shutil.copy(clip, path.parent)
    return path.parent


def read_lexicon(path: Path, _: Random) -> None:
    """As ``train --lexicon`` does."""
    lexicon = Lexicon.load(path)
    _right(isinstance(str(lexicon), str), "no words")
    lexicon.passages("a puppy riding a wave")
    lexicon.within(["dog"])


def read_triangles(path: Path, _: Random) -> None:
    """As ``stage`` does."""
    model = read_gltf(path)
    for name in model.movements:
        for share in (0, 0.5, 1):
            mesh = model.pose(name, share * model.animations[name].seconds)
            _right(mesh.point_V3.shape == model.mesh.point_V3.shape, "another mesh")


READERS: dict[str, Callable[[Path, Random], None]] = {
    **dict.fromkeys(FILMS + ANIMATIONS, read_clip),
    **dict.fromkeys(PICTURES, read_picture),
    **dict.fromkeys(("safetensors", "card"), read_model),
    "toml": read_settings,
    **dict.fromkeys(("jsonl", "csv"), read_list),
    "lexicon": read_lexicon,
    "glb": read_triangles,
}


def command_for(kind: str, path: Path, random: Random) -> list[str]:
    """Words of a command that reads the file."""
    file, model = str(path), str(INPUTS / "card/words.safetensors")
    making = ["--frames", "2", "--steps", "1", "--seed", "1", "-o", str(path.with_name("o.apng"))]
    if kind in FILMS + ANIMATIONS:
        train = ["train", str(path.parent), "--check", "--size", "16"]
        longer = ["extend", file, "--anyway", "-m", model, *making]
        other = ["interp", file, "-o", str(path.with_name("o.webp")), "--steps", "1"]
        return random.choice((["info", file], train, longer, longer, other))
    if kind in PICTURES:
        return ["i2v", file, "-m", model, "--anyway", *making]
    if kind in {"safetensors", "card"}:
        return random.choice((["info", file], ["gen", "a dog", "-m", file, *making]))
    if kind == "toml":
        return ["train", str(INPUTS / "clips"), "--check", "--config", file]
    if kind == "glb":
        clips = str(path.with_name("clips"))
        return ["stage", clips, "--models", str(path.parent), "--clips", "1", "--size", "16"]
    if kind == "lexicon":
        return ["train", str(INPUTS / "clips"), "--check", "--lexicon", file]
    if path.name.startswith("prompts"):
        return ["gen", "--prompts-file", file, "-m", "none.safetensors"]
    return ["train", str(_with_clips(path)), "--check"]


# ---- the worker --------------------------------------------------------------------------------

INPUTS = Path()  # the worker's


@dataclass(frozen=True)
class Verdict:
    """What became of a case."""

    kind: str  # refused, right or failed
    why: str = ""


def tried(kind: str, number: int, seed: int, folder: Path, said: io.FileIO) -> Verdict:
    """One case, in a folder of its own."""
    random = Random(f"{seed} {kind} {number}")
    name, content = mutated(kind, INPUTS, random)
    path = folder / name
    path.write_bytes(content)
    said.truncate(0)
    began = _seconds()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command does
        if random.randrange(COMMANDS) == 0:
            verdict = _by_command(command_for(kind, path, random), said)
        else:
            verdict = _by_function(READERS[kind], path, random)
    foreign = [f"{one.filename}: {one.message}" for one in told if not _is_ours(one)]
    words = os.pread(said.fileno(), 4000, 0).decode(errors="replace")
    if (took := _seconds() - began) > SECONDS:
        return Verdict("failed", f"it took {took:.0f} s of the processor; {verdict.why}")
    if verdict.kind != "failed" and (foreign or words):
        return Verdict("failed", f"a library said: {foreign or words}")
    return verdict if verdict.kind == "failed" else (_left(folder) or verdict)


def _seconds() -> float:
    """Of the processor, that this process and its children took."""
    return sum(os.times()[:4])


def _is_ours(told: warnings.WarningMessage) -> bool:
    ours = str(Path(flowcept.__file__).parent)
    return told.category is UserWarning and told.filename.startswith((ours, str(Path(__file__))))


def _left(folder: Path) -> Verdict | None:
    """A failure where a child or hidden files are left, or too much memory was held."""
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return Verdict("failed", "a child that ended is left")
        return Verdict("failed", "a child is left")
    except ChildProcessError:
        pass
    if hidden := [file.name for file in folder.rglob(".*")]:
        return Verdict("failed", f"left behind: {hidden}")
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        held = resource.getrusage(who).ru_maxrss << 10
        if held > BYTES:
            return Verdict("failed", f"{held / 2**30:.1f} GiB were held")
    return None


def _by_function(reader: Callable[[Path, Random], None], path: Path, random: Random) -> Verdict:
    try:
        reader(path, random)
    except UserError as error:
        return _refused(str(error))
    except Exception:
        return Verdict("failed", traceback.format_exc())
    return Verdict("right")


def _refused(text: str) -> Verdict:
    if text.splitlines() != [text] or not text.isprintable() or len(text) > LONGEST:
        return Verdict("failed", f"not one plain line: {text[:1000]!r}")
    return Verdict("refused", text)


def _by_command(words: list[str], said: io.FileIO) -> Verdict:
    """The whole command, in a child of this process, which has all it needs in memory."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["flowcept", *words]
            sys.stdout = os.fdopen(1, "w", closefd=False)
            cli.main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 98
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = os.pread(said.fileno(), 100_000, 0).decode(errors="replace").splitlines()
    said.truncate(0)
    told = [line for line in lines if line and not EXPECTED.search(line)]
    if status == 0 and not told:
        return Verdict("right")
    if status == 2 and len(told) == 1 and told[0].startswith("flowcept: "):
        return _refused(told[0])
    return Verdict("failed", f"{words}\nstatus {status}\n" + "\n".join(lines))


def work(inputs: Path, seed: int) -> None:
    """Cases named on stdin, one a line; a line when it begins, and verdicts as JSON on stdout."""
    global INPUTS  # noqa: PLW0603 - one folder for the life of the process
    INPUTS = inputs
    torch.set_num_threads(1)
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # this, too
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 4 * BYTES,) * 2)
    answers.write("ready\n")
    with (inputs.parent / f"said-{os.getpid()}").open("ab+", buffering=0) as said:
        os.dup2(said.fileno(), 2)
        for line in sys.stdin:
            kind, number = line.split()
            with tempfile.TemporaryDirectory(dir=inputs.parent) as folder, chdir(folder):
                verdict = tried(kind, int(number), seed, Path(folder), said)
            answers.write(json.dumps(asdict(verdict)) + "\n")


# ---- the parent --------------------------------------------------------------------------------


class Worker:
    """A process that tries cases, begun anew when it dies or hangs."""

    def __init__(self, inputs: Path, seed: int) -> None:
        self.command = [sys.executable, __file__, "--worker", str(inputs), "--seed", str(seed)]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, number: int) -> Verdict:
        """The verdict on a case; this process outlives whatever it does."""
        if self.process is None:
            self._begin()
        process = self.process
        assert process
        assert process.stdin
        print(kind, number, file=process.stdin, flush=True)
        line = self._heard(PATIENCE)
        if line:
            verdict = Verdict(**json.loads(line))
            if "were held" in verdict.why or "child" in verdict.why:
                self.end()  # both are counted from the beginning of a process
            return verdict
        status = process.poll()
        self.end()
        if status is None:
            return Verdict("failed", f"it hangs: more than {PATIENCE} s")
        return Verdict("failed", f"the process died: {status}")

    def _begin(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._heard(300), "the worker does not begin"

    def _heard(self, seconds: float) -> str:
        """A line of the process, "" if it says none."""
        assert self.process
        assert self.process.stdout
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if readable else ""
        if readable and not line:
            self.process.wait()
        return line

    def end(self) -> None:
        """End the process and all that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def fuzz(kind: str, numbers: range, worker: Worker, inputs: Path, output: Path) -> dict[str, int]:
    """How many cases of a format were refused, right and failed; those that failed are kept."""
    counts = Counter[str](dict.fromkeys(("refused", "right", "failed"), 0))
    begun = time.monotonic()
    with (output / f"{kind}.jsonl").open("w") as verdicts:
        for number in tqdm(numbers, kind, disable=None):
            verdict = worker.ask(kind, number)
            counts[verdict.kind] += 1
            verdicts.write(json.dumps({"number": number, **asdict(verdict)}) + "\n")
            if verdict.kind == "failed":
                _keep(kind, number, verdict, worker, inputs, output)
    return {**counts, "seconds": round(time.monotonic() - begun)}


def _keep(
    kind: str, number: int, verdict: Verdict, worker: Worker, inputs: Path, output: Path
) -> None:
    """The failing file, what happened, and how to try it again."""
    seed = worker.command[-1]
    name, content = mutated(kind, inputs, Random(f"{seed} {kind} {number}"))
    (output / f"{kind}-{seed}-{number}-{name}").write_bytes(content)
    again = f"python tests/bench/fuzz.py --output {output} --seed {seed} --only {kind} "
    told = f"{again}--first {number} --count 1\n\n{verdict.why[:4000]}\n"
    (output / f"{kind}-{seed}-{number}.txt").write_text(told)


def main() -> int:
    shape = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder of failures")
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--count", type=int, default=2000, help="cases of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bar", type=int, default=0, help="failures that are let pass")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        work(words.worker, words.seed)
        return 0

    words.output.mkdir(parents=True, exist_ok=True)
    kept = words.output / "counts.json"
    counts: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        make_inputs(inputs)
        worker = Worker(inputs, words.seed)
        numbers = range(words.first, words.first + words.count)
        for kind in words.only:
            counts[kind] = fuzz(kind, numbers, worker, inputs, words.output)
            kept.write_text(json.dumps(counts, indent=1))
        worker.end()
    print(f"seed {words.seed}, {words.count} cases of each format from {words.first}")
    print("\n| format | refused | right | failures | seconds |\n|---|---|---|---|---|")
    for kind in words.only:
        print(f"| {kind} | {' | '.join(str(value) for value in counts[kind].values())} |")
    failed = sum(counts[kind]["failed"] for kind in words.only)
    print(f"\n{failed} failures of at most {words.bar}")
    return int(failed > words.bar)


if __name__ == "__main__":
    sys.exit(main())
