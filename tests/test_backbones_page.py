"""The page on pretrained models: all that it shows runs, with a tiny model for the large one."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import backbones
import fixtures_diffusers as fixtures
import pytest
import torch

from flowcept import cli, hub
from flowcept.data import shapes, video
from flowcept.model_file import read_card

fixtures.require()
PAGE = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What is added to a command as it stands, so that it takes seconds.
SHORTER = {
    "gen": "--steps 1 --scale 1",
    "encode": "--size 32",
    "train": "--steps 2 --tokens 200",
    "evaluate": "--clips 4 --steps 1",
}


def commands() -> list[tuple[str, str]]:
    """Language and text of every line of shell and every block of Python, in order."""
    found = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        lines = text.splitlines() if language == "sh" else [text]
        found += [(language, line) for line in lines]
    return found


def run(line: str, pretrained: bool) -> None:
    """A command of the page, shorter; ``pretrained`` ones get a size, others have their own."""
    words = shlex.split(line, comments=True)
    assert words[0] == "flowcept", line
    more = SHORTER.get(words[1], "") + (" --size 64" if pretrained else "")
    sys.argv = [*words, *more.split()]
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, line


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    fixtures.save_pipeline("ltx", Path("LTX-Video"))
    cached = tmp_path / "cache" / COMMIT
    cached.parent.mkdir()
    cached.symlink_to(tmp_path / "LTX-Video")
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: cached)
    shapes.write_shapes(Path("clips"), 8, size=32)

    ran = 0
    for language, text in commands():
        if text.startswith("pip install"):
            continue
        capsys.readouterr()
        if language == "python":
            exec(compile(text, "page", "exec"), {})
        else:
            of_folder = "-m LTX-Video/" in text or "-m Lightricks/" in text
            run(text, pretrained=of_folder)
            if text.startswith("flowcept gen"):
                frames = len(video.read_video(Path("out.mp4"))[0])
                assert frames == (97 if of_folder else frames)
                Path("out.mp4").unlink()
        ran += 1
    assert ran >= 12
    assert read_card(Path("run/model.safetensors")).base.source == str(tmp_path / "LTX-Video")
    assert read_card(Path("whole.safetensors")).base is None


def test_the_page_has_all_steps():
    shown = {line.split("#")[0].strip() for language, line in commands() if language == "sh"}
    for start in (
        "pip install", "flowcept gen", "flowcept encode clips/ -o shards/ --codec",
        "flowcept info", "flowcept train shards/ --init LTX-Video/ --lora 32", "flowcept merge run",
    ):  # fmt: skip
        assert any(line.startswith(start) for line in shown), start


def test_a_small_model_s_memory_is_counted():
    """The script of the tables, on a model that needs no minute."""
    shape = backbones.Shape(
        "WanPipeline",
        {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": 64,
         "text_dim": 4096},
        {}, 100, (64, 64), 9,
    )  # fmt: skip
    backend = backbones.Backend(shape)
    used = backbones.uses(backend)
    network = backend.network(torch.bfloat16)
    assert backbones.nbytes(network) < 2.1 * backbones.numbers(network)
    assert used["gen"] > used["gen --offload encoder"] >= used["gen --offload blocks"]
    whole, lora = used["train, whole"], used[f"train --lora {backbones.RANK}"]
    assert whole - lora == pytest.approx(
        backbones.TRAINED * backbones.numbers(network) - backbones.nbytes(network)
    )
    sizes = {"gen": 30.0, "gen --offload encoder": 13.0, "train --lora 32": 11.0}
    assert backbones.fitting(sizes, 12) == "`train --lora 32`"
    assert backbones.fitting(sizes, 24) == "`gen --offload encoder`, `train --lora 32`"
    assert backbones.fitting(sizes, 80) == "`gen`, `train --lora 32`"
    assert backbones.fitting({"gen": 90.0}, 80) == "nothing"
