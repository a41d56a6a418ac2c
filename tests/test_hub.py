"""Models by their name on a hub: found, missing, gated, cut off, and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fixtures_diffusers as fixtures
import pytest
from fixtures_hub import COMMIT, OLDER, Hub, serving

from flowcept import hub as hubs
from flowcept.data import video

pytest.importorskip("huggingface_hub", reason='needs pip install ".[diffusers]"')

NEEDED = {
    "model_index.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
}
NOT_NEEDED = {
    "README.md",
    "ltx-video-2b-v0.9.safetensors",
    "media/clip.mp4",
    "text_encoder/pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
SHARDS = [name for name in NEEDED if "-of-" in name]
FETCH = (
    "import sys\nfrom flowcept import errors, hub\n"
    "try:\n    print(hub.fetch(hub.parse(sys.argv[1]), sys.argv[2]))\n"
    "except errors.UserError as error:\n    sys.exit(f'flowcept: {error}')"
)


@pytest.fixture
def hub(tmp_path: Path):
    folder = tmp_path / "served"
    for name in NEEDED | NOT_NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(3000))
    index = {"weight_map": {str(number): Path(name).name for number, name in enumerate(SHARDS)}}
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with serving(Hub({"tiny/ltx": folder})) as served:
        yield served


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path):
    """``fetch(name)`` in a process of its own, with a cache of this test."""

    def run(name: str = "tiny/ltx", part: str = "", **environment: str):
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-c", FETCH, name, part],
            env=os.environ | own | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What is said of a refusal; the hub's own bars may stand before it."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].rpartition("flowcept: ")[2]


def files_of(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_needed_is_fetched_once_and_then_taken_from_the_cache(hub, fetch):
    first = fetch()
    assert files_of(first) == NEEDED
    assert Path(first.stdout.strip()).name == COMMIT
    assert set(hub.fetched) == NEEDED
    asked = hub.asked
    for name in ("tiny/ltx", f"tiny/ltx@{COMMIT}"):
        for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
            assert fetch(name, **offline).stdout == first.stdout
    assert hub.asked == asked


@pytest.mark.parametrize(
    ("part", "folders"), [("vae", {"vae"}), ("text_encoder", {"tokenizer", "text_encoder"})]
)
def test_of_a_part_no_more_is_fetched(hub, fetch, part, folders):
    wanted = {name for name in NEEDED if name.partition("/")[0] in folders} | set(hubs.SETTINGS)
    assert files_of(fetch(part=part)) == wanted
    assert files_of(fetch()) == NEEDED  # what is there is no whole model yet
    assert len(hub.fetched) == len(NEEDED)


def test_a_revision_is_taken_and_a_branch_is_asked_for_again(hub, fetch):
    assert Path(fetch("tiny/ltx@v1").stdout.strip()).name == OLDER
    assert Path(fetch("tiny/ltx@main").stdout.strip()).name == COMMIT
    hub.revisions["main"] = OLDER
    assert Path(fetch("tiny/ltx").stdout.strip()).name == COMMIT
    assert Path(fetch("tiny/ltx@main").stdout.strip()).name == OLDER
    assert Path(fetch(f"tiny/ltx@{COMMIT}").stdout.strip()).name == COMMIT
    host = hub.url.removeprefix("http://")
    assert told(fetch("tiny/ltx@v9")) == f"tiny/ltx on {host} has no revision v9"


def test_what_is_not_there_is_said_in_one_line(hub, fetch):
    host = hub.url.removeprefix("http://")
    no_such = f"no model tiny/ltz here or on {host} (if it is private, log in with: hf auth login)"
    assert told(fetch("tiny/ltz")) == no_such
    assert told(fetch("a--b/c")) == "no model a--b/c: there is no such file or folder"
    hub.gated = True
    assert told(fetch()) == (
        f"tiny/ltx asks you to accept its licence at {hub.url}/tiny/ltx; "
        "then log in with: hf auth login"
    )


def test_cut_off_in_the_middle_it_goes_on_from_there(hub, fetch):
    large = hub.models["tiny/ltx"] / "text_encoder" / "model.safetensors"
    large.write_bytes(os.urandom(24_000_000))  # it is written in parts of ten million bytes
    hub.cuts = 2
    assert files_of(fetch()) == NEEDED
    assert hub.ranges == ["text_encoder/model.safetensors"] * 2
    folder = Path(fetch().stdout.strip())
    for name in NEEDED:
        assert (folder / name).read_bytes() == (hub.models["tiny/ltx"] / name).read_bytes()


def test_what_was_fetched_whole_before_a_failure_is_kept(hub, fetch):
    assert fetch(part="vae").returncode == 0
    hub.forbidden = True
    host = hub.url.removeprefix("http://")
    assert told(fetch()) == f"{host} refused tiny/ltx (status 403): log in with: hf auth login"
    hub.forbidden = False
    before = list(hub.fetched)
    assert files_of(fetch()) == NEEDED
    assert not {name for name in hub.fetched[len(before) :] if name.startswith("vae/")}


def test_without_a_network_a_part_is_not_taken_for_the_whole(hub, fetch):
    missing = f"tiny/ltx {hubs.OFFLINE}"
    assert told(fetch(HF_HUB_OFFLINE="1")) == missing
    assert not hub.asked
    assert fetch(part="vae").returncode == 0
    assert fetch(part="vae", HF_HUB_OFFLINE="1").returncode == 0
    assert told(fetch(HF_HUB_OFFLINE="1")) == missing
    nowhere = fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert told(nowhere) == (
        "tiny/ltx could not be downloaded from 127.0.0.1:9 (finished files are kept; try "
        "again, or give a folder)"
    )


@pytest.mark.parametrize("lost", sorted(NEEDED - {"model_index.json"}))
def test_a_folder_that_lacks_a_file_is_not_whole(hub, lost):
    folder = hub.models["tiny/ltx"]
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").touch()  # is not loaded
    assert not hubs.lacking(folder, "")
    (folder / lost).unlink()
    config_of_several = lost.endswith(("config.json", "index.json")) and not lost.startswith("s")
    assert hubs.lacking(folder, "") != config_of_several


@pytest.mark.parametrize(
    ("text", "model", "revision"),
    [
        ("Lightricks/LTX-Video", "Lightricks/LTX-Video", None),
        ("a/b-0.9.5@v1", "a/b-0.9.5", "v1"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("LTX-Video", None, None),
        ("LTX-Video/", None, None),
        ("a/b/c", None, None),
        ("./a/b", None, None),
        ("../a", None, None),
        ("~/a", None, None),
        ("/a/b", None, None),
        ("a/b@", None, None),
    ],
)
def test_which_texts_are_names_on_a_hub(text, model, revision):
    found = hubs.parse(text)
    assert found == (model and hubs.HubName(model, revision))


@pytest.mark.usefixtures("_pipeline")
def test_a_clip_is_made_by_a_model_s_name(hub, tmp_path):
    """By the command, as a user has it; the clip says by which model."""
    words = ["gen", "a dog surfing", "--frames", "9", "--size", "64x64", "--steps", "1"]
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}

    def gen(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flowcept", *words, "-m", name, "-o", "out.mp4"],
            env=os.environ | own | environment, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = gen("tiny/ltx")
    assert done.returncode == 0, done.stderr
    settings = video.read_metadata(tmp_path / "out.mp4")
    assert (settings["model"], settings["frames"]) == (f"tiny/ltx@{COMMIT}", 9)
    assert not {name for name in hub.fetched if "large" in name}
    asked = hub.asked
    assert gen(settings["model"], HF_HUB_OFFLINE="1").returncode == 0
    assert hub.asked == asked

    other = gen("tiny/flux")
    assert other.returncode == 2
    known = other.stderr.splitlines()[-1]
    assert known.startswith("flowcept: tiny/flux holds a FluxPipeline; flowcept reads LTXPipeline")
    assert hub.fetched[-1] == "model_index.json"  # and no weights


@pytest.fixture
def _pipeline(hub, tmp_path):
    """The hub has a tiny pipeline, and one of another kind."""
    fixtures.require()
    for name in ("ltx", "flux"):
        hub.models[f"tiny/{name}"] = tmp_path / name
    made = fixtures.save_pipeline("ltx", tmp_path / "ltx")
    assert made
    (tmp_path / "ltx" / "large.safetensors").touch()
    (tmp_path / "flux" / "transformer").mkdir(parents=True)
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "flux" / "transformer" / "model.safetensors").touch()
