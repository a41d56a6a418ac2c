"""The most memory that ``flowcept interp`` of a long clip takes, ffmpeg's share counted.

python tests/bench/interpolation_memory.py --frames 64
python tests/bench/interpolation_memory.py --frames 256 --weights motion.safetensors

Draws ffmpeg's moving test picture of the size asked for, doubles its rate as a user would, and sums
the resident memory of the command and of all that it starts, ten times a second. Linux only. A clip
is a stream, so the last quarter of the time should need no more than the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import machine

INTERVAL = 0.1  # seconds between two looks
GIBIBYTE = 1 << 30


@dataclass
class Watched:
    """A command that has ended."""

    out: str = ""
    sums: list[int] = field(default_factory=list)  # bytes of all processes, at every look
    peaks: dict[str, int] = field(default_factory=dict)  # bytes at most, by program

    def peak(self, program: str) -> int:
        """Bytes at most of the processes of a program that ran at one time."""
        return max(size for name, size in self.peaks.items() if name.startswith(program))


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
        statuses = [status for status in map(_status, below(root)) if "VmRSS" in status]
        seen.sums.append(sum(_bytes(status["VmRSS"]) for status in statuses))
        peaks = Counter[str]()
        for status in statuses:
            peaks[status["Name"]] += _bytes(status["VmHWM"])
        for name, size in peaks.items():
            seen.peaks[name] = max(size, seen.peaks.get(name, 0))


def below(root: int) -> list[int]:
    """A process and all that it started, and that those started."""
    found = [root]
    for pid in found:  # it grows meanwhile
        with suppress(OSError):  # ended meanwhile
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _status(pid: int) -> dict[str, str]:
    """What Linux tells of a process; of one that has ended nothing."""
    lines = []
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _bytes(kibibytes: str) -> int:
    return 1024 * int(kibibytes.removesuffix(" kB"))


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
    print(f"{options.size}, {options.frames} frames in, {frames} out")
    shares = [f"{name} {seen.peak(name) / GIBIBYTE:.2f}" for name in ("python", "ffmpeg")]
    print(f"peak of all together {max(seen.sums) / GIBIBYTE:.2f} GiB; of each: {', '.join(shares)}")
    quarters = [max(seen.sums[k * len(seen.sums) // 4 :][: len(seen.sums) // 4]) for k in range(4)]
    print("by quarters of the time:", *(f"{peak / GIBIBYTE:.2f}" for peak in quarters))
    used = os.times()
    print(f"{(used.children_user + used.children_system) / 60:.1f} minutes of one core")


if __name__ == "__main__":
    main()
