"""The most memory that ``flowcept interp`` of a long clip takes, ffmpeg's share counted.

python tests/bench/interpolation_memory.py --frames 64
python tests/bench/interpolation_memory.py --frames 256 --weights motion.safetensors

Draws ffmpeg's moving test picture of the size asked for, doubles its rate as a user would, and sums
the resident memory of the command and of all that it starts, 20 times a second. Linux only. A clip
is a stream, so the last quarter of the time should need no more than the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import machine

INTERVAL = 0.05  # seconds between two looks
GIBIBYTE = 1 << 30


@dataclass
class Watched:
    """A command that has ended."""

    out: str = ""
    peaks: dict[str, int] = field(default_factory=dict)  # bytes of programs by name, and of "all"
    sums: list[int] = field(default_factory=list)  # bytes of all processes, at every look


def watched(command: list[str]) -> Watched:
    """Run a command and look at the memory of its process and of those below it, summed."""
    seen, over = Watched(), threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=_look, args=(process.pid, seen, over))
        watcher.start()
        seen.out, _ = process.communicate()
        over.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(command)}")
    return seen


def _look(root: int, seen: Watched, over: threading.Event) -> None:
    while not over.wait(INTERVAL):
        by_name = resident(root)
        by_name["all"] = sum(by_name.values())
        seen.sums.append(by_name["all"])
        for name, size in by_name.items():
            seen.peaks[name] = max(size, seen.peaks.get(name, 0))


def resident(root: int) -> dict[str, int]:
    """Resident bytes of a process and of all below it, by the program's name."""
    statuses = [_status(path) for path in Path("/proc").glob("[0-9]*/status")]
    parents = {int(one["Pid"]): int(one["PPid"]) for one in statuses if one}
    found: dict[str, int] = {}
    for one in statuses:
        pid = int(one.get("Pid", 0))
        while pid and pid != root:
            pid = parents.get(pid, 0)
        if pid == root and "VmRSS" in one:  # a process that has just ended has none
            found[one["Name"]] = found.get(one["Name"], 0) + 1024 * int(one["VmRSS"].split()[0])
    return found


def _status(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def draw_clip(path: Path, frames: int, size: str) -> None:
    """ffmpeg's moving test picture, 24 frames a second."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
    command += ["-i", f"testsrc2=size={size}:rate=24", "-frames:v", str(frames)]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--weights", default="motion", help="a model file, or motion")
    options = parser.parse_args()
    print(machine.described())
    with tempfile.TemporaryDirectory() as folder:
        clip, made = Path(folder, "clip.mp4"), Path(folder, "made.mp4")
        draw_clip(clip, options.frames, options.size)
        words = ["interp", str(clip), "-o", str(made), "--model", options.weights, "--quiet"]
        seen = watched([sys.executable, "-m", "flowcept", *words])
        frames = imageio_ffmpeg.count_frames_and_secs(str(made))[0]
    shares = ", ".join(f"{n} {p / GIBIBYTE:.2f}" for n, p in seen.peaks.items() if n != "all")
    quarters = [max(seen.sums[k * len(seen.sums) // 4 :][: len(seen.sums) // 4]) for k in range(4)]
    print(f"{options.size}, {options.frames} frames in, {frames} out")
    print(f"peak of all together {seen.peaks['all'] / GIBIBYTE:.2f} GiB; of each: {shares}")
    print("by quarters of the time:", *(f"{peak / GIBIBYTE:.2f}" for peak in quarters))
    used = os.times()
    print(f"{(used.children_user + used.children_system) / 60:.1f} minutes of one core")


if __name__ == "__main__":
    main()
