#!/usr/bin/env bash
# Makes the pictures of the README with the commands that it shows, in float32 on the CPU.
# Usage: docs/pictures.sh   (flowcept installed; about three minutes on two cores)
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
make() { flowcept "$@" --device cpu --dtype float32 --seed 1; }

make gen "a dog surfing" -o "$scratch/1.webp" --scale 1 --sheet gen-1.png --trace growth.png
make gen "a cat jumping slowly at sunset" -o "$scratch/2.webp" --scale 1 --sheet gen-2.png

# Given frames for the other tasks: drawn by the theatre, none of them generated.
flowcept theatre "$scratch/data" --clips 400 --seed 7 --actors emoji --quiet
python - "$scratch" <<'PY'
import json
import sys
from pathlib import Path

from PIL import Image

from flowcept.video import read_video, write_video

scratch = Path(sys.argv[1])
rows = [json.loads(line) for line in (scratch / "data/metadata.jsonl").read_text().splitlines()]


def clip(action: str) -> tuple[dict, "object"]:
    row = next(r for r in rows if r["action"] == action and not r["adverb"])
    return row, read_video(scratch / "data" / row["file_name"])[0]


for action in ("spinning", "flying", "walking"):
    row, frames = clip(action)
    Image.fromarray(frames[0]).save(scratch / f"{action}-first.png")
    Image.fromarray(frames[-1]).save(scratch / f"{action}-last.png")
    write_video(scratch / f"{action}.webp", frames, 12)
    (scratch / f"{action}.txt").write_text(row["caption"])
PY
make i2v "$scratch/spinning-first.png" --prompt "$(cat "$scratch/spinning.txt")" \
  -o "$scratch/3.webp" --scale 1 --sheet i2v.png
make interp "$scratch/flying-first.png" "$scratch/flying-last.png" --frames auto \
  --prompt "$(cat "$scratch/flying.txt")" -o "$scratch/4.webp" --scale 1 --sheet interp.png
make extend "$scratch/walking.webp" --prompt "$(cat "$scratch/walking.txt")" --frames 6 \
  -o "$scratch/5.webp" --sheet extend.png
