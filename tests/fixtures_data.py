"""Small lossless clips whose frames tell which ones they are; films that ffmpeg draws."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from flowcept.data import video

SIZE = (16, 16)


def numbered(frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames whose grey is ten times their index."""
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 10
    return np.broadcast_to(grey, (frames, *size, 3)).copy()


def indices(frames_FHW3: np.ndarray) -> list[int]:
    assert np.ptp(frames_FHW3, axis=(1, 2, 3)).max() == 0
    return (frames_FHW3[:, 0, 0, 0] // 10).tolist()


def put(path: Path, frames: int = 4, fps: float = 10, caption: str | None = None) -> Path:
    """A lossless clip; `caption` goes into the text file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_video(path, numbered(frames), fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def put_images(folder: Path, frames: int) -> Path:
    folder.mkdir(parents=True)
    for i, frame_HW3 in enumerate(numbered(frames)):
        Image.fromarray(frame_HW3).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> bytes:
    """What ffmpeg writes to its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def made(path: Path, *arguments: object, source: str = "testsrc2=s=64x48:r=25:d=1") -> Path:
    """A short moving video."""
    path.parent.mkdir(exist_ok=True)
    run("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", *arguments, path)
    return path
