"""The package without what is optional: everything imports, and what is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowcept import diffusers_folder
from flowcept.codecs import CodecConfig, build_codec
from flowcept.errors import UserError
from flowcept.networks import build_network
from flowcept.networks.pretrained import WAN, BackboneConfig
from flowcept.networks.text import TextConfig, build_encoder

ROOT = Path(__file__).parents[1]
OPTIONAL = ("diffusers", "transformers", "peft", "accelerate", "ftfy", "xformers", "tensorboard")
EXTRA = r'pip install ".\[diffusers\]"'


def test_every_module_imports_without_them() -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"  # None: no such module
    walk = (
        "import importlib, pkgutil, flowcept\n"
        "for one in pkgutil.walk_packages(flowcept.__path__, 'flowcept.'):\n"
        "    if not one.name.endswith('__main__'): importlib.import_module(one.name)\n"
        "sys.exit(any(sys.modules.get(name) for name in " + repr(OPTIONAL) + "))"
    )
    done = subprocess.run([sys.executable, "-c", f"{hide}\n{walk}"], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.fixture
def _hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_hidden")
def test_what_needs_them_names_the_extra(tmp_path: Path) -> None:
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
