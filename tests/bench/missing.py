"""What tells how many frames are missing, and where: lengths, the caption, or what frames show.

flowcept stage CLIPS --models MODELS --clips 256 --seed 810
python tests/bench/missing.py CLIPS --models MODELS

Clips that the model was not trained on, of its actors and actions, part of the way through before
``tau = 1``; --models is the folder that they were drawn from. Mean log score, in nats, of laws of
the missing count: by Bayes' rule from the number of visible frames and the lengths of all training
clips, or the true law of what the caption says, neither of which looks at a picture; and the
network's, without and with the caption. Then, of the same states and the network with the caption,
of laws of all gaps' counts given their sum: each frame by itself by the gaps' means (shares); and,
where the model has compositions, their prior, which knows the means only, and their learned law.
Standard errors are over clips.

Shape suffixes: F frames, C H W a latent, B states, G gaps of a state, H features, K sizes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import judge
import machine
import torch
from torch import Tensor

from flowcept import model_file, models
from flowcept.codecs import to_images
from flowcept.data import video
from flowcept.data.stage.company import Stage
from flowcept.device import autocast, pick_dtype
from flowcept.evaluation.evaluate import STATES, length_logits, log_score
from flowcept.model_file import Weights
from flowcept.process.compositions import LEAST_LOG, by_clip, cross_entropy_sum
from flowcept.process.forward import Target, concat, draw
from flowcept.process.sampler import clip_generator
from flowcept.process.state import FrameState, GapTables, Prediction

CPU = torch.device("cpu")


def states_of(
    image_FCHW: Tensor, weights: Weights, generator: torch.Generator
) -> tuple[FrameState, Target] | None:
    """The clip at several moments before ``tau = 1``, if any was drawn."""
    with autocast(CPU, pick_dtype("auto", CPU)), torch.inference_mode():
        latent_FCHW = weights.codec.encode(image_FCHW).float()
    context = [False] * len(latent_FCHW)
    drawn = (draw(latent_FCHW, context, weights.card.process, generator) for _ in range(STATES))
    pairs = [pair for pair in drawn if pair is not None and float(pair[0].tau_B) < 1]
    return concat(pairs) if pairs else None


def predicted(weights: Weights, state: FrameState, prompt: str) -> Prediction:
    with autocast(CPU, pick_dtype("auto", CPU)), torch.inference_mode():
        said: Prediction = weights.network(state, weights.text([prompt] * len(state.lengths)))
        return said


def count_scores(
    weights: Weights,
    state: FrameState,
    target: Target,
    length_law: dict[int, float],
    of_words: Prediction,
) -> Iterator[tuple[str, float]]:
    """Mean log scores of laws of the missing count."""
    card, size = weights.card, weights.network.largest_size + 1
    of_sizes = {
        "all lengths": length_logits(card.lengths, size).expand(len(state.lengths), -1),
        "the caption's lengths": length_logits(length_law, size),
        "network, no caption": predicted(weights, state, "").size_logits_BK.float(),
        "network": of_words.size_logits_BK.float(),
    }
    for name, size_logits_BK in of_sizes.items():
        logits_BK = card.process.missing_logits(
            size_logits_BK.expand(len(state.lengths), -1), state
        )
        yield name, log_score(logits_BK.double().softmax(-1), target.total_B)


def place_scores(
    said: Prediction, state: FrameState, target: Target
) -> Iterator[tuple[str, float]]:
    """Mean log scores of laws of all gaps' counts, given their sum."""
    open_BG = by_clip(state.open_first_B, state.open_F, state.lengths)
    log_BG = by_clip(said.log_missing_first_B, said.log_missing_F, state.lengths)
    log_BG = torch.where(open_BG, log_BG.double().clamp(min=LEAST_LOG), -torch.inf)
    log_share_BG = log_BG.log_softmax(1).masked_fill(~open_BG, 0.0)

    count_BG = by_clip(target.missing_first_B, target.missing_F, state.lengths).double()
    ways_B = torch.lgamma(count_BG.sum(1) + 1) - torch.lgamma(count_BG + 1).sum(1)
    yield "gaps by shares", float((ways_B + (count_BG * log_share_BG).sum(1)).mean())

    if said.tables is None:
        return
    unknown = GapTables(*map(torch.zeros_like, vars(said.tables).values()))
    laws = {"gaps by the prior": replace(said, tables=unknown), "gaps by compositions": said}
    for name, law in laws.items():
        loss = cross_entropy_sum(law, state, target.missing_F, target.missing_first_B)
        yield name, -float(loss) / len(state.lengths)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="CLIPS")
    parser.add_argument("--models", type=Path, required=True, help="that were drawn")
    parser.add_argument("--model", default=models.DEFAULT)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=77)
    options = parser.parse_args()
    weights = model_file.load(models.find(options.model).path)
    clips = judge.listed(options.folder)[: options.clips]
    stage = Stage(options.models, ",".join({clip.scene.actor for clip in clips}))
    generator, states = clip_generator(options.seed), 0
    found: dict[str, list[float]] = {}
    for clip in clips:
        law = stage.length_law(clip.scene)
        if max(law) > weights.network.largest_size:
            continue  # longer than the model knows
        frames_FHW3, _ = video.fit(clip.frames(), weights.card.size)
        pair = states_of(to_images(frames_FHW3), weights, generator)
        if pair is None:
            continue
        state, target = pair
        states += len(state.lengths)
        of_words = predicted(weights, state, clip.caption)
        scores = dict(count_scores(weights, state, target, law, of_words))
        scores |= place_scores(of_words, state, target)
        for name, score in scores.items():
            found.setdefault(name, []).append(score)
    print(machine.described())
    print(f"{options.model}, {states} states of {len(clips)} clips, seed {options.seed}")
    for name, values in found.items():
        print(f"  {name:<24}{fmean(values):.3f} +- {stdev(values) / len(values) ** 0.5:.3f}")


if __name__ == "__main__":
    main()
