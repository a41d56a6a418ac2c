"""The scripts of tests/bench run; those that take hours or a GPU to the end, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent
LATER = {"comparison", "length_law", "ring"}  # on other interfaces yet
SCRIPTS = sorted(
    path.stem
    for path in BENCH.glob("*.py")
    if not path.stem.startswith("test_") and path.stem not in LATER
)
IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"


def printed(*words: str | int | Path) -> str:
    """What Python prints, called in the folder of the scripts."""
    command = [sys.executable, *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCH)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_script_finds_what_it_imports() -> None:
    assert printed("-c", IMPORT, *SCRIPTS) == "", "what a script does stands in its main"


def test_every_section_of_the_gpu_script_runs_and_routes_agree(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    out = printed("gpu.py", "--device", "cpu", "--tiny", "--pairs", 1, "--output", output)
    done = json.loads(output.read_text())
    routes = done["attention"]["routes"]
    assert {"SDPA per segment", "padded SDPA"} <= set(routes)
    assert all(0 < route["error"] < 0.03 for route in routes.values()), "within bf16 error"
    assert done["training"]["tiny"]["of_matrix_rate"] > 0
    assert set(done["clip"]) == {"tiny", "small", "base"}
    assert done["waits"]["after"], "there are steps after tau = 1"
    assert len(done["largest"]) == 6, "three cards, training and sampling"
    for figure in ("attention of", "matrix rate", "waits", "a clip of", "longest clip"):
        assert figure in out


def test_operations_of_equal_steps() -> None:
    """A finished frame that rests saves about a third, which brings sampling to full-sequence's."""
    out = printed("flops.py", "--lengths", 8, "--windows", 0, "--draws", 6, "--steps", 6)
    row = [cell.strip() for cell in out.splitlines()[-1].split("|")[1:-1]]
    uniform, early = (float(cell.split(": ")[1].split(",")[0]) for cell in row[3:5])
    plain, cached = (float(cell.split(": ")[1]) for cell in row[6:])
    assert early < uniform < 1
    assert 1.35 < plain < 1.65
    assert 0.9 < cached < 1.15
