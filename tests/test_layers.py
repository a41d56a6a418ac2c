"""A file imports only from the layers below its own; the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flowcept"
LAYERS = [
    {"errors"},
    {"settings"},
    {"frames", "schedule", "video", "device"},
    {"process", "theatre"},
    {"attention", "cache", "loss", "metrics", "charts", "features"},
    {"model", "text", "codec", "data"},
    {"sampler", "checkpoint", "memory"},
    {"request"},
    {"tasks", "train", "evaluate"},
    {"cli"},
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
EXEMPT = {"__init__", "__main__"}


def imported(source: str) -> set[str]:
    """Modules of the package that a source names in any import, at the top or inside."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "flowcept":
                    names.add(([*alias.name.split("."), "__init__"])[1])
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level:
                parts = ["flowcept", *[p for p in parts if p]]
            if parts[0] == "flowcept":
                found = parts[1:2] or [alias.name for alias in node.names]
                names |= {name if name in LAYER else "__init__" for name in found}
    return names


def wrong_arrows(name: str, source: str) -> list[str]:
    """Imports that do not point strictly down; ``from flowcept import __version__`` is none."""
    return sorted(
        other
        for other in imported(source) - EXEMPT
        if other != name and LAYER[other] >= LAYER[name]
    )


def test_every_module_has_a_layer() -> None:
    found = {path.relative_to(PACKAGE).as_posix()[:-3] for path in PACKAGE.rglob("*.py")}
    assert found - EXEMPT <= set(LAYER), "a new module needs its place in LAYERS"
    assert len(LAYER) == sum(len(names) for names in LAYERS)


@pytest.mark.parametrize("name", sorted(LAYER))
def test_imports_point_down(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    if not path.exists():
        pytest.skip(f"{name} is not there")
    assert not wrong_arrows(name, path.read_text())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("import flowcept.sampler", ["sampler"]),
        ("from flowcept.text import ByteEncoder", ["text"]),
        ("from flowcept import tasks, frames", ["tasks"]),
        ("from . import sampler", ["sampler"]),
        ("from .codec import Codec", ["codec"]),
        ("def f():\n    from flowcept import cli", ["cli"]),
        ("from flowcept import frames, __version__", []),
    ],
)
def test_planted_mistake_is_seen(line: str, wrong: list[str]) -> None:
    assert wrong_arrows("model", line) == wrong


@pytest.mark.parametrize("module", ["flowcept", "flowcept.cli", "flowcept.video"])
def test_importing_does_not_load_torch(module: str) -> None:
    path = PACKAGE.parent / (module.replace(".", "/") + ".py")
    if module != "flowcept" and not path.exists():
        pytest.skip(f"{module} is not there")
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0
