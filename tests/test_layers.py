"""A file imports only from the rooms and files below its own; help starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flowcept"
# From the ground up. A file may import what stands on a lower line; a folder holds the files of the
# lines below it that begin with its name.
FLOORS = [
    ("errors", "version", "stopping"),
    ("settings", "files", "cards"),
    ("lexicon",),
    ("data.timing", "device"),
    ("data.ffmpeg", "data.buckets", "data.claims"),
    ("data.formats", "data.pictures"),
    ("process.state", "process.schedule", "data.contexts", "data.video"),
    ("process.posterior", "data.drawn", "data.stage", "data.stage.gltf"),
    ("data.shapes", "data.stage.cast", "data.stage.draw"),
    ("data.stage.places",),
    ("data.stage.riding", "data.stage.scene"),
    ("data.stage.take",),
    ("data.stage.company",),
    ("data.stage.folder",),
    ("process.compositions",),
    ("process.growth",),
    ("process.forward",),
    ("process.full_sequence",),
    ("process.loss", "process.sampler"),
    ("process.guidance",),
    ("networks.flow", "data.layers"),
    ("networks.motion",),
    ("data.motion_windows",),
    ("networks.base", "networks.padded", "networks.resting", "networks.layers", "networks.recipes"),
    ("networks.attention",),
    ("networks.layout",),
    ("networks.stem", "networks.text", "networks.compositions", "networks.gaps"),
    ("networks.in_between",),
    ("networks.transformer", "networks.motion_video", "networks.pretrained"),
    ("networks",),
    ("codecs.base",),
    ("codecs.autoencoder", "codecs.pretrained"),
    ("codecs",),
    ("model_file", "data.folder", "data.batches"),
    ("data.shards", "data.encoded", "diffusers_pipelines"),
    ("diffusers_folder", "hub"),
    ("models",),
    ("adapters",),
    ("clip", "lengths", "memory", "request", "sizes"),
    ("sampling", "inputs", "keywords"),
    ("generation", "retime", "evaluation.metrics", "evaluation.features"),
    ("evaluation.evaluate",),
    ("evaluation.report",),
    ("training.console", "training.distributed", "training.lineage", "training.parts"),
    ("training.optimizers",),
    ("training.clock", "training.trainer", "training.motion_law", "training.motion_scores"),
    ("training.state",),
    ("training.plan",),
    ("training.fitting", "training.loop", "training.motion", "training.footage", "training.stored"),
    ("training.session", "training.encoding"),
    ("training.run", "training.motion_run"),
    ("cli.like", "cli.outputs"),
    ("cli.options",),
    ("cli.drawing",),
    (
        "cli.making",
        "cli.encode",
        "cli.evaluate",
        "cli.info",
        "cli.merge",
        "cli.shapes",
        "cli.stage",
        "cli.train",
    ),
    ("cli.retiming",),
    ("cli.extend", "cli.gen", "cli.i2v", "cli.interp"),
    ("cli",),
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
ROOMS = {name.split(".")[0] for name in FLOOR if "." in name}


def module_of(path: Path) -> str:
    """``data.video`` for ``data/video.py``; a folder's own file has the folder's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Modules of the package that a source names in any import, at the top or inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("flowcept.") for alias in node.names
                      if alias.name.startswith("flowcept.")}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            parts = (node.module or "").split(".")
            if parts[0] == "flowcept":
                inside = ".".join(parts[1:])
                if inside in FLOOR and inside not in ROOMS:
                    found.add(inside)
                else:
                    named = {".".join([*parts[1:], alias.name]) for alias in node.names}
                    found |= {name if name in FLOOR else inside for name in named}
    return found - {""}


def wrong_arrows(name: str, source: str) -> list[str]:
    """Imports that do not point strictly down."""
    return sorted(
        other for other in imported(source) if other != name and FLOOR.get(other, -1) >= FLOOR[name]
    )


SOURCES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def test_every_module_has_a_floor() -> None:
    known = set(FLOOR) | ROOMS | {"__init__", "__main__"}
    assert set(SOURCES) <= known, "a new module needs its place in FLOORS"
    assert len(FLOOR) == sum(len(names) for names in FLOORS)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_point_down(name: str) -> None:
    if name in SOURCES:
        assert not wrong_arrows(name, SOURCES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("import flowcept.generation", ["generation"]),
        ("from flowcept.training.run import train", ["training.run"]),
        ("from flowcept import generation, errors", ["generation"]),
        ("from flowcept.training import run as train", ["training.run"]),
        ("def f():\n    from flowcept import cli", ["cli"]),
        ("from flowcept import __version__", []),
        ("from flowcept.process.state import Role", []),
    ],
)
def test_planted_mistake_is_seen(line: str, wrong: list[str]) -> None:
    assert wrong_arrows("networks.transformer", line) == wrong


@pytest.mark.parametrize("module", ["flowcept", "flowcept.cli", "flowcept.data.video"])
def test_importing_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0
