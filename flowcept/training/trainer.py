"""The trainer: its step, and what changes from step to step.

A step is a function of the seed, its number and the state, so that a resumed run continues exactly
from its last state; on a CPU, bit for bit. Losses stay on the device until they are read.

Shape suffixes: S tokens of all prompts, D width of a token, B clips.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowcept.codecs import Codec, to_frames
from flowcept.data import batches, video
from flowcept.data.batches import Batch, Lessons, by_size, split_batch
from flowcept.data.encoded import EncodedClips
from flowcept.device import autocast
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks import VideoNetwork
from flowcept.networks.layers import hidden_matrices
from flowcept.networks.text import PromptEncoder
from flowcept.process.forward import Process, Target, concat
from flowcept.process.loss import LossConfig, count_terms, loss_sums, total_loss
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import FrameState
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import ObjectiveSettings, SampleConfig, TrainConfig
from flowcept.training.distributed import Machine
from flowcept.training.lineage import ended_training
from flowcept.training.optimizers import Optimizers
from flowcept.training.parts import Clips

SHEET_CLIPS, SHEET_STEPS = 6, 12  # of a contact sheet: prompts, and steps of its sampler
MEASURED = 2048  # tokens at most of the step by which time is measured
HELD_OUT_STEPS = 4  # of training: as many tokens go into a loss of held-out clips
WITH_ALL = ObjectiveSettings(
    prompt_dropout=0.0, given_prompt_dropout=0.0, context_dropout=0.0, paraphrase=0.0
)


class Learner(nn.Module):
    """Network and prompt encoder as one module, whose output is the loss.

    An encoder without a weight to train, say a T5, is not part of the module: it stays in
    evaluation mode, and is neither averaged nor saved with the rest.
    """

    def __init__(
        self, network: VideoNetwork, text: PromptEncoder, weights: LossConfig, process: Process
    ) -> None:
        super().__init__()
        self.network, self.weights, self.process = network, weights, process
        learns = any(weight.requires_grad for weight in text.parameters())
        self.learned_text = text if learns else None
        # In a tuple, a module is not part of this one.
        self.frozen_text: tuple[PromptEncoder, ...] = () if learns else (text.eval(),)

    @property
    def text(self) -> PromptEncoder:
        """The prompt encoder, learned or frozen."""
        return self.frozen_text[0] if self.learned_text is None else self.learned_text

    def trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """All trained weights, and those of them that are hidden matrices of a network of ours."""
        weights: list[Tensor] = [one for one in self.parameters() if one.requires_grad]
        hidden = self.network.hidden_matrices()
        if hidden and self.learned_text is not None:
            hidden += hidden_matrices(self.learned_text)
        return weights, hidden

    def copied(self) -> Learner:
        """A copy with its own weights; frozen weights are shared."""
        frozen = [weight for weight in self.parameters() if not weight.requires_grad]
        return copy.deepcopy(self, {id(one): one for one in (*self.frozen_text, *frozen)})

    def learned(self, module: Learner) -> dict[str, Tensor]:
        """The state of this module or a copy of it, without frozen weights."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        state: dict[str, Tensor] = module.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def forward(
        self,
        state: FrameState,
        target: Target,
        prompts: Sequence[str],
        counts: Mapping[str, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss with the means over ``counts``, and the sums of its terms."""
        tokens = self.text(prompts)
        with torch.no_grad():  # the prompt learns nothing from what frames say of it
            parts = tokens.token_SD.float().split(list(tokens.lengths))
            said = [part.sum(0) * bool(p) for part, p in zip(parts, prompts, strict=True)]
        prediction = self.network(state, tokens)
        sums = loss_sums(prediction, state, target, self.process, torch.stack(said))
        return total_loss(sums, counts, self.weights), sums


class Average:
    """Exponential average of a module's weights, in a copy of it.

    The decay rises from 0 to ``decay``, so that the first weights are forgotten.
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        self.module = learner.copied().eval().requires_grad_(requires_grad=False)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, learner: Learner) -> None:
        """Update the average with the weights after one more step."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        pairs = zip(self.module.parameters(), learner.parameters(), strict=True)
        learned = [(own, new) for own, new in pairs if new.requires_grad]
        own, new = map(list, zip(*learned, strict=True))
        torch._foreach_lerp_(own, new, 1 - decay)
        self.count += 1


class Trainer:
    """Weights, their average, the optimiser and the place in the data, from step to step."""

    counts = ("clips", "tokens")  # that the log also has per second
    curves = ("velocity", "count")  # that are drawn

    def __init__(
        self, weights: Weights, clips: Clips, config: TrainConfig, machine: Machine
    ) -> None:
        self.config, self.clips, self.machine = config, clips, machine
        self.codec, self.card, self.process = weights.codec, weights.card, weights.process
        self.tokens_per_frame = weights.network.tokens_per_frame
        self.buckets = by_size(clips.train, clips.latents.sizes)
        self.cursors = [0] * len(self.buckets)  # clips drawn of each
        self.step = 0
        self.stills = config.optimizer.stills > 0  # whether the next step sees single frames

        objective = config.objective
        terms = LossConfig(missing=objective.rate_weight, count=objective.count_weight)
        weights.text.to(machine.device)
        learner = Learner(weights.network, weights.text, terms, weights.process)
        self.learner = learner.to(machine.device)
        self.average = Average(self.learner, config.optimizer.ema)
        if config.machine.compile:
            self.learner.network.compile_blocks()
        self.shared = DistributedDataParallel(self.learner) if machine.team.size > 1 else None
        self.optimizers = Optimizers(*self.learner.trained(), config.optimizer)

    @property
    def num_held(self) -> int:
        """Number of held-out clips."""
        return len(self.clips.held)

    def learning_rate(self, progress: float) -> float:
        """Learning rate of the next step: linear rise, level, linear fall towards 0 at the end."""
        settings = self.config.optimizer
        rise = min(1.0, (self.step + 1) / max(settings.warmup, 1))
        fall = min(1.0, (1 - progress) / settings.decay) if settings.decay else 1.0
        return settings.learning_rate * rise * max(fall, 0.01)

    @property
    def bucket(self) -> int:
        """Number of the next step's bucket: the one whose clips were shown least often so far."""
        shown = [
            cursor / len(clips) for cursor, clips in zip(self.cursors, self.buckets, strict=True)
        ]
        return shown.index(min(shown))

    def draw(self) -> Batch:
        """The next step's batch, the same in all processes."""
        tokens, seed = self.config.optimizer.tokens, self.config.machine.seed
        clips, cursor = self.buckets[self.bucket], self.cursors[self.bucket]
        objective, at = self.config.objective, (self.step, cursor)
        return self._drawn(clips, objective, tokens, seed, *at, stills=self.stills)

    def advance(self, batch: Batch) -> None:
        """Count a step and move past its batch."""
        self.cursors[self.bucket] += batch.taken
        self.step += 1

    def _drawn(
        self,
        clips: Sequence[int],
        objective: ObjectiveSettings,
        tokens: int,
        seed: int,
        step: int = 0,
        cursor: int = 0,
        *,
        stills: bool = False,
    ) -> Batch:
        words = self.card.lexicon if objective.paraphrase else None
        latents, context = self.clips.latents, self.config.context
        lessons = Lessons(latents, self.process, context, objective, words, latents.keyframe)
        return batches.draw_batch(
            lessons,
            clips,
            seed=seed,
            step=step,
            cursor=cursor,
            tokens=tokens,
            tokens_per_frame=self.tokens_per_frame,
            least=self.machine.team.size,
            stills=stills,
        )

    def train_step(self, progress: float = 0.0) -> dict[str, Tensor | float]:
        """One step of the optimiser: means of the loss terms, gradient norm, rate and counts.

        Tensors are this process's shares of sums over all processes, on the device.
        """
        self.stills = self.stills and progress < self.config.optimizer.stills
        batch, rate, team = self.draw(), self.learning_rate(progress), self.machine.team
        self.learner.train()
        terms = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.optimizer.clip)
        self.optimizers.step(rate)
        self.average.update(self.learner)
        self.advance(batch)

        rows = sum(state.lengths[0] + 1 for state, _ in batch.pairs)
        return {
            **terms,
            "norm": norm / team.size,
            "rate": rate,
            "clips": len(batch.pairs),
            "tokens": rows * self.tokens_per_frame,
        }

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add a batch's gradients; of n processes each works on every n-th clip."""
        team, counts = self.machine.team, counted(batch)
        own = slice(team.rank, None, team.size)
        share = replace(batch, pairs=batch.pairs[own], prompts=batch.prompts[own])
        module = self.shared or self.learner
        parts = split_batch(share, self.config.optimizer.micro_tokens, self.tokens_per_frame)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            alone = nullcontext() if last or self.shared is None else self.shared.no_sync()
            with alone:  # gradients stay here until those of the last part bring all together
                loss, terms = self._forward(module, share, part, counts)
                # Processes average their gradients; the loss is a sum over all of them.
                (loss * team.size).backward()
            add(sums, terms)
        return means(sums, counts)

    def _forward(
        self, module: nn.Module, batch: Batch, part: Sequence[int], counts: Mapping[str, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and sums of some clips of a batch."""
        device, dtype = self.machine.device, self.machine.dtype
        state, target = concat([batch.pairs[clip] for clip in part])
        prompts = [batch.prompts[clip] for clip in part]
        tensors = {one.name: getattr(target, one.name).to(device) for one in fields(target)}
        with autocast(device, dtype):
            loss, sums = module(state.to(device), Target(**tensors), prompts, counts)
        return loss, sums

    def seconds(self, steps: int) -> float:
        """About how long ``steps`` steps take, by timing a part of one; nothing is learned."""
        settings, objective = self.config.optimizer, self.config.objective
        tokens = min(settings.tokens, MEASURED)
        commonest = max(self.buckets, key=len)
        batch = self._drawn(commonest, objective, tokens, self.config.machine.seed)
        self.learner.train()
        for _ in range(2):  # the first one warms up
            begun = time.monotonic()
            float(sum(self._backward(batch).values()))
            self.optimizers.zero_grad()
        return steps * (time.monotonic() - begun) * settings.tokens / tokens

    def told(self, means: Mapping[str, float]) -> str:
        """A short text on the last steps."""
        return f"loss {means['velocity']:.3f}" + " (single frames)" * self.stills

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Losses of the averaged weights on fixed draws of the held-out clips.

        Empty if there are none, or if no context fits these few.
        """
        settings, counts = self.config.optimizer, Counter[str]()
        sums: dict[str, Tensor] = {}
        at_once = min(settings.micro_tokens, settings.tokens)  # no more than a step of training
        for batch in self._held_batches():
            own = counted(batch)
            counts.update(own)
            for part in split_batch(batch, at_once, self.tokens_per_frame):
                _, terms = self._forward(self.average.module, batch, part, own)
                add(sums, terms)
        return {f"held_out_{name}": float(mean) for name, mean in means(sums, counts).items()}

    def _held_batches(self) -> Iterator[Batch]:
        """Batches of held-out clips, one for each size of which some clip fits a context."""
        tokens, seed = HELD_OUT_STEPS * self.config.optimizer.tokens, self.config.machine.seed + 1
        for clips in by_size(self.clips.held, self.clips.latents.sizes):
            share = len(clips) / len(self.clips.held)
            with suppress(UserError):
                yield self._drawn(clips, WITH_ALL, round(tokens * share), seed)

    def weights(self) -> Weights:
        """The averaged model as it goes into a file."""
        # The file of an adapter holds no codec.
        return self._averaged(self.open_codec() if self.card.base is None else self.codec)

    def _averaged(self, codec: Codec) -> Weights:
        learner = self.average.module
        card = ended_training(self.card, self.config, self.step, sum(self.cursors))
        return Weights(learner.network, learner.text, codec, card, self.process)

    def open_codec(self) -> Codec:
        """The codec; for shards it is loaded anew, and only the caller keeps it."""
        latents = self.clips.latents
        if isinstance(latents, EncodedClips):
            return latents.open_codec().to(self.machine.device)
        return self.codec

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """A contact sheet of clips made from held-out prompts, by the averaged weights."""
        device = self.machine.device
        clips = self.clips.held or self.clips.train
        captions = [self.clips.latents.captions[clip] for clip in clips]
        prompts = list(dict.fromkeys(captions))[:SHEET_CLIPS]
        given = [from_nothing(self.card, device)] * len(prompts)
        generators = [clip_generator(number) for number in range(len(prompts))]
        settings = SampleConfig(steps=SHEET_STEPS, frames=1 if self.stills else None)
        with autocast(device, self.machine.dtype):
            negative = [""] * len(prompts)
            averaged = self._averaged(self.codec)
            steps = sample_clips(averaged, given, prompts, negative, generators, settings)
            latents = latents_of(steps)
        codec = self.open_codec()
        pictures = [to_frames(codec.decode(latent)) for latent in latents]
        labels = [prompt or "(no prompt)" for prompt in prompts]
        return video.contact_sheets(pictures, labels, max_columns=32)

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on; the tensors are the live ones."""
        return {
            "step": self.step,
            "cursor": list(self.cursors),
            "stills": self.stills,
            "clips": self.clips.contents,
            "learner": self.learner.learned(self.learner),
            "averaged": self.learner.learned(self.average.module),
            "averages": self.average.count,
            "optimizer": self.optimizers.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ``ValueError`` if it has other clips or other weights."""
        if state["clips"] != self.clips.contents:
            raise ValueError("other clips")
        self.step, cursor = state["step"], state["cursor"]
        self.stills = state.get("stills", False)
        self.cursors = list(cursor) if isinstance(cursor, list) else [cursor]
        if len(self.cursors) != len(self.buckets):
            raise ValueError("other sizes")
        self.average.count = state["averages"]
        try:
            for module, name in ((self.learner, "learner"), (self.average.module, "averaged")):
                if state[name].keys() != self.learner.learned(module).keys():
                    raise KeyError(name)
                module.load_state_dict(state[name], strict=False)
            self.optimizers.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError) as error:
            raise ValueError("other weights") from error


def counted(batch: Batch) -> dict[str, int]:
    """The counts over which the loss terms of a whole batch are means."""
    total: Counter[str] = Counter()
    for (state, _), prompt in zip(batch.pairs, batch.prompts, strict=True):
        total.update(count_terms(state, [prompt]))
    return dict(total)


def add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add to sums in place, on the device."""
    for name, value in terms.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()


def means(sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Means of the loss terms; 0 for those with nothing to score."""
    return {name: value / max(counts[name], 1) for name, value in sums.items()}
