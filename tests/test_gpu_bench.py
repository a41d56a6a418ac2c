"""The script that will measure a GPU runs from end to end, as far as a CPU can carry it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "bench" / "gpu.py"


def test_every_section_runs_and_routes_agree(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--pairs", "1"]
    run = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    done = json.loads(output.read_text())
    routes = done["attention"]["routes"]
    assert {"SDPA per segment", "padded SDPA"} <= set(routes)
    assert all(0 < route["error"] < 0.03 for route in routes.values()), "within bf16 error"
    assert done["training"]["tiny"]["of_matrix_rate"] > 0
    assert set(done["clip"]) == {"tiny", "small", "base"}
    assert done["waits"]["after"], "there are steps after tau = 1"
    assert len(done["largest"]) == 6, "three cards, training and sampling"
    for figure in ("attention of", "matrix rate", "waits", "a clip of", "longest clip"):
        assert figure in run.stdout
