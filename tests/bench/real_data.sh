#!/usr/bin/env bash
# Trains small models on real input: LPC sprite sheets and real clips.
# Usage: tests/bench/real_data.sh SHARED_DATA OUT   (flowcept installed; about ten minutes, 2 cores)
# Leaves OUT/sprites and OUT/clips: loss.png, samples/, log.jsonl, model.safetensors.
set -euo pipefail
data=$1 out=$2
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
python -c "import platform, torch; print(platform.platform(), platform.python_version(), torch.__version__)"
[ -d "$out/sprites-data" ] || python "$here/make_sprites.py" "$data/sprites_lpc" "$out/sprites-data" --clips 400 --seed 0
flowcept train "$out/sprites-data" -o "$out/sprites" --preset tiny --codec-steps 600 --steps 400 \
  --eval-every 100 --sample-every 200 --held-out 0.05 --seed 0
flowcept train "$data/clips" -o "$out/clips" --preset tiny --codec-steps 400 --steps 700 \
  --eval-every 100 --sample-every 350 --held-out 0.15 --seed 0
tail -n 1 "$out/sprites/log.jsonl" "$out/clips/log.jsonl"
