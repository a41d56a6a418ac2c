"""The package without what is optional: everything imports, and what is missing is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowcept import diffusers_folder
from flowcept.codecs import CodecConfig, build_codec
from flowcept.errors import UserError
from flowcept.models import find
from flowcept.networks import build_network
from flowcept.networks.pretrained import WAN, BackboneConfig
from flowcept.networks.text import TextConfig, build_encoder

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "diffusers", "transformers", "peft", "accelerate", "ftfy", "sentencepiece", "huggingface_hub",
    "xformers", "tensorboard",
)  # fmt: skip
HIDE = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"  # None: no such module
EXTRA = r'pip install ".\[diffusers\]"'


def test_every_module_imports_without_them() -> None:
    walk = (
        "import importlib, pkgutil, flowcept\n"
        "for one in pkgutil.walk_packages(flowcept.__path__, 'flowcept.'):\n"
        "    if not one.name.endswith('__main__'): importlib.import_module(one.name)\n"
        "sys.exit(any(sys.modules.get(name) for name in " + repr(OPTIONAL) + "))"
    )
    done = subprocess.run([sys.executable, "-c", f"{HIDE}\n{walk}"], cwd=ROOT, check=False)
    assert done.returncode == 0


COMMANDS = [
    ["--help"],
    ["gen", "--help"],
    ["gen", "a dog surfing", "--frames", "2", "--steps", "1", "-o", "gen.gif"],
    ["interp", "a.png", "b.png", "--multi", "1", "-o", "interp.gif"],
    ["info", "theatre"],
]


def test_shipped_models_and_help_do_without_them(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    run = (
        "from flowcept import cli\n"
        f"for words in {COMMANDS!r}:\n"
        "    sys.argv = ['flowcept', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as stop: assert not stop.code, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{HIDE}\n{run}"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "gen.gif").exists()
    assert (tmp_path / "interp.gif").exists()


@pytest.fixture
def _hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_hidden")
def test_what_needs_them_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=EXTRA):
        find("tiny/ltx")
    codec = CodecConfig("diffusers-video", 8, 8, source="AutoencoderKLWan", source_config="{}")
    with pytest.raises(UserError, match=EXTRA):
        build_codec(codec)
    with pytest.raises(UserError, match=EXTRA):
        build_network(BackboneConfig(WAN, "{}", 8, 4, 4, 8, 4, 8), 1.0)
    with pytest.raises(UserError, match=EXTRA):
        build_encoder(TextConfig("wan", heads=1, source=str(tmp_path)))
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    (folder / "x.safetensors").touch()
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(UserError, match=EXTRA):
        diffusers_folder.load(tmp_path, torch.float32)
