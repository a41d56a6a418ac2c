"""The real sampler with exact oracles in place of the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from fake_device import FakeDevice
from oracle import (
    AR1_LAW,
    ClipOracle,
    Flat,
    Law,
    LengthOracle,
    ar1_clip,
    ar1_cov,
    ar1_mean,
    bound,
    empty,
    generators,
    sample,
    scalar_flow,
    total_variation,
)
from torch import Tensor

from flowcept.process.forward import Flowception, shifted
from flowcept.process.sampler import clip_generator, sample_steps
from flowcept.process.state import FrameState, Given, Prediction, Role
from flowcept.settings import SampleConfig

LAW: Law = {8: 0.2, 12: 0.5, 24: 0.3}


# --- velocity


@dataclass
class FrameOracle:
    """One Gaussian frame, or several whose number and law are known."""

    mean: Tensor
    cov: Tensor
    shift: float = 1.0
    reverse: bool = False

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        del finished_F, may_rest
        rows, count = len(clips), len(self.mean)
        x = state.latent_FCHW[:, 0, 0, 0].double().view(rows, count)
        t = state.time_F.double().view(rows, count)
        s = t / (t + self.shift * (1 - t))
        velocity, _ = scalar_flow(x, 1 - s if self.reverse else s, self.mean, self.cov)
        zeros = torch.zeros(rows, dtype=torch.float64)
        logits = torch.zeros(rows, 1, dtype=torch.float64)
        return Prediction(velocity.reshape(-1, 1, 1, 1), zeros[state.clip_F], zeros, logits)


def one_frame_error(steps: int, shift: float = 1.0, *, reverse: bool = False) -> float:
    """Root mean square over 8 noises of the end against the exact flow's ``mu + s x_0``."""
    mu, deviation = 0.7, 0.5
    oracle = FrameOracle(
        torch.tensor([mu]).double(), torch.tensor([[deviation**2]]).double(), shift, reverse
    )
    given = [Given(torch.zeros(0, 1, 1, 1, dtype=torch.float64), (True,))] * 8
    process = Flowception(shift=shift)
    config = SampleConfig(steps=steps, frames=1)
    run = list(sample_steps(oracle, given, generators(8, 3), config, process, max_length=1))
    start = run[0].state.latent_FCHW[:, 0, 0, 0]
    end = torch.cat([run[-1].done[b] for b in range(8)])[:, 0, 0, 0]
    return float((end - (mu + deviation * start)).square().mean().sqrt())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_velocity_error_halves_when_steps_double(shift: float) -> None:
    errors = [one_frame_error(steps, shift) for steps in (25, 50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.8 < coarse / fine < 2.2, errors
    assert errors[-1] < 0.02


def test_planted_mistake_is_seen_time_reversed() -> None:
    """The mean ends .18 away; the true direction is within .02 at as many steps."""
    assert one_frame_error(200, reverse=True) > 0.1


def test_frames_of_different_times_return_their_covariance() -> None:
    """4,000 clips of three frames at their own ages: errors of a covariance are under .023 x 4."""
    mean, cov = torch.tensor([0.5, -0.5, 0.0]).double(), ar1_cov(3, 0.8, 1.0)
    generator = torch.Generator().manual_seed(0)
    steps, clips = 60, 4000
    x = torch.randn(clips, 3, generator=generator, dtype=torch.float64)
    ages = [[min(max(i - delay, 0), steps) for delay in (0, 20, 45)] for i in range(2 * steps)]
    for now, then in itertools.pairwise(ages):
        t, h = (torch.tensor(a).double() / steps for a in (now, then))
        x = x + (h - t) * scalar_flow(x, t.expand_as(x), mean, cov)[0]
    assert float((x.mean(0) - mean).abs().max()) < 0.08
    assert float((torch.cov(x.T) - cov).abs().max()) < 0.1


# --- the whole process


@pytest.mark.parametrize(
    ("kind", "process", "refine"),
    [("none", Flowception(), 0.0), ("first_last", Flowception(), 0.0),
     ("none", Flowception(first=True), 0.0), ("none", Flowception(first=True), 0.75),
     ("first_last", Flowception(first=True), 0.5), ("none", Flowception(planned=True), 0.0)],
)  # fmt: skip
def test_whole_process_returns_lengths_and_covariances(
    kind: str, process: Flowception, refine: float
) -> None:
    """700 clips at 24 steps against the law of scalar AR(1) clips.

    Whitened by their law, frames have mean 0 and covariance 1, with standard errors of a pooled
    mean of .018 and of a pooled variance of .025. Euler's error at 24 steps adds some .05.
    """
    clips, seeds = 700, torch.Generator().manual_seed(11)
    oracle = ClipOracle(AR1_LAW, ar1_mean, ar1_cov, kind, first=process.first)
    law, given = AR1_LAW, [empty()] * clips
    truth = torch.multinomial(
        torch.tensor(list(AR1_LAW.values())), clips, replacement=True, generator=seeds
    )
    if kind == "first_last":
        ends = [ar1_clip(list(AR1_LAW)[int(i)], seeds)[[0, -1]] for i in truth]
        given = [Given(pair, (False, True, False)) for pair in ends]
    config = SampleConfig(steps=24, refine=refine)
    out = sample(oracle, given, generators(clips, 5), config, process, max_length=6)
    assert total_variation([len(x) for x in out], law) < bound(law, clips) + 0.02
    white, products = [], []
    for n in law:
        x = torch.stack([y.flatten() for y in out if len(y) == n]).double()
        factor = torch.linalg.cholesky(ar1_cov(n))
        y = torch.linalg.solve_triangular(factor, (x - ar1_mean(n)).T, upper=False).T
        white.append(y.flatten())
        products.append((y[:, 1:] * y[:, :-1]).flatten())
    assert abs(float(torch.cat(white).mean())) < 0.08
    assert float(torch.cat(white).var()) == pytest.approx(1, abs=0.13)
    assert abs(float(torch.cat(products).mean())) < 0.08


# --- the clock


def run_clock(steps: int, process: Flowception, given: Given, config: SampleConfig) -> Flat:
    """Checks of one run that hold at any number of steps."""
    model, born, last = Flat(), {}, None
    fixed = len(given.latent_FCHW)
    for step in sample_steps(
        model, [given], [clip_generator(steps)], config, process, max_length=9
    ):
        rows = {name: row for row, name in enumerate(step.name_F.tolist())}
        assert float(step.state.tau_B) == pytest.approx(step.index / steps)
        for name in step.name_F[step.age_F == 0].tolist():
            assert name not in born
            born[name] = (step.index, step.state.latent_FCHW[rows[name]])
            assert float(step.state.time_F[rows[name]]) == 0
        for name, (index, noise) in born.items():
            age = min(step.index - index, steps)
            row = rows[name]
            assert int(step.age_F[row]) == age
            assert float(step.state.time_F[row]) == torch.tensor(age / steps).item()
            progress = shifted(torch.tensor(age / steps), process.shift)
            moved = step.state.latent_FCHW[row] - noise
            torch.testing.assert_close(moved, progress.expand_as(moved), rtol=0, atol=2e-5)
        kept = step.state.role_F != Role.GENERATED
        assert torch.equal(step.state.latent_FCHW[kept], given.latent_FCHW)
        last = step
    assert last is not None
    assert len(born) == last.state.lengths[0] - fixed
    assert (last.state.time_F == 1).all(), "every frame ends at exactly 1"
    assert model.calls == last.index
    return model


def test_clock_at_every_number_of_steps() -> None:
    """1 to 200 steps; all checks at small and at every seventh number, the end at all."""
    given = Given(torch.zeros(1, 1, 1, 1), (False, True))
    for steps in range(1, 201):
        process = Flowception(shift=1.0 if steps % 2 else 3.0)
        config = SampleConfig(steps=steps, frames=4)
        if steps <= 24 or steps % 14 == 0:
            assert run_clock(steps, process, given, config).calls <= 2 * steps
        age = torch.arange(steps + 1)
        assert (age.double() / steps).to(torch.float32)[-1] == 1


# --- given frames, batches, settings


@pytest.mark.parametrize("fill", [0.0, -1.0, -0.0, 3e38, 1e-42, math.inf, math.nan])
def test_given_frames_come_out_bit_for_bit(fill: float) -> None:
    """Whatever they hold, and however wild the velocity that is said of them."""

    def wild(
        state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        said = LengthOracle(LAW)(state, clips, finished_F, may_rest)
        return replace(said, velocity_FCHW=torch.full_like(state.latent_FCHW, math.inf))

    frames = torch.full((3, 2, 2, 2), fill)
    given = Given(frames, (False, True, False, True))
    reference = Given(torch.randn(3, 2, 2, 2), given.open_gaps)
    found = []
    for start in (given, reference):
        config = SampleConfig(steps=5)
        seeds, process = generators(1, 9), Flowception()
        steps = list(sample_steps(wild, [start], seeds, config, process, max_length=24))
        rows = torch.tensor([steps[-1].name_F.tolist().index(name) for name in range(3)])
        out = steps[-1].done[0][rows]
        assert torch.equal(out.view(torch.int32), start.latent_FCHW.view(torch.int32))
        found.append([step.name_F.tolist() for step in steps])
    assert found[0] == found[1], "what frames hold changes nothing else"


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("refine", [0.0, 0.6])
def test_together_equals_alone(refine: float, planned: bool) -> None:
    given = [empty(), Given(torch.ones(1, 1, 1, 1), (False, True)), empty()]

    def go(chosen: Sequence[int]) -> list[Tensor]:
        return sample(
            LengthOracle(LAW), [given[b] for b in chosen], [clip_generator(b) for b in chosen],
            SampleConfig(steps=5, refine=refine), Flowception(planned=planned), max_length=24,
        )  # fmt: skip

    together = go([0, 1, 2])
    for b in range(3):
        assert torch.equal(go([b])[0], together[b])
    for b, latent in zip([2, 0], go([2, 0]), strict=True):
        assert torch.equal(latent, together[b])


REFINED = SampleConfig(steps=4, refine=0.75)


def test_generated_frames_go_back_once_and_together() -> None:
    """In the step in which the last one of their clip finishes, with fresh noise, for one step."""
    starts = [*GIVEN, empty((2, 4, 4))]
    back: dict[int, int] = {}
    done: dict[int, int] = {}
    for step in sample_steps(
        flat, starts, generators(len(starts), 3), REFINED, Flowception(), max_length=12
    ):
        clips = zip(step.clips, step.age_F.split(step.state.lengths), strict=True)
        times = step.state.time_F.split(step.state.lengths)
        latents = step.state.latent_FCHW.split(step.state.lengths)
        names = step.name_F.split(step.state.lengths)
        for (clip, age_F), time_F, latent, name_F in zip(clips, times, latents, names, strict=True):
            assert torch.equal(time_F, (age_F / 4).float())
            given = name_F < len(starts[clip].latent_FCHW)
            assert torch.equal(latent[given], starts[clip].latent_FCHW)
            if clip in step.again:
                assert (age_F[given] == 4).all()
                since = step.index - back.setdefault(clip, step.index)
                assert (age_F[~given] == 3 + since).all()
        done |= dict.fromkeys(step.done, step.index)
    assert set(done) == set(range(len(starts)))
    closed = 5  # of these starts: it generates nothing
    assert {clip: index + 1 for clip, index in back.items()} == {
        clip: index for clip, index in done.items() if clip != closed
    }
    assert len(set(back.values())) > 1
    assert max(done.values()) <= REFINED.most_steps == 9


@pytest.mark.parametrize(("steps", "refine", "age"), [(8, 0.75, 6), (2, 0.75, 2), (1, 0.5, 1),
    (10, 0.01, 1), (8, 0.0, 8), (3, 0.5, 2)])  # fmt: skip
def test_frames_never_go_back_further_than_was_asked(steps: int, refine: float, age: int) -> None:
    config = SampleConfig(steps=steps, refine=refine)
    assert config.refine_age == age
    model = Flat()
    given = Given(torch.zeros(1, 1, 1, 1), (False, True))
    process = Flowception(shift=3.0)
    *_, last = sample_steps(
        model, [given], [clip_generator(1)], replace(config, frames=4), process, max_length=9
    )
    assert model.calls == last.index <= config.most_steps == 3 * steps - age
    assert (last.state.time_F == 1).all()


def test_refined_clips_carry_fresh_noise_of_the_right_amount() -> None:
    """Back at flow time .5 of a data law of variance 4: ``s^2 4 + (1 - s)^2``."""
    clips, process = 4000, Flowception(shift=2.0)
    latent = 2 * torch.randn(clips, 1, 1, 1, generator=torch.Generator().manual_seed(4))
    starts = [empty()] * clips
    first = next(iter(sample_steps(Flat(), starts, generators(clips, 1), SampleConfig(frames=1),
                                   process, max_length=1)))  # fmt: skip
    ready = replace(
        first,
        state=replace(first.state, latent_FCHW=latent, time_F=torch.ones(clips)),
        age_F=torch.full((clips,), first.num_steps),
        index=first.num_steps,
    )
    assert not ready.running
    back = ready.noised_again(4)
    assert len(back.running) == clips
    s = float(shifted(torch.tensor(4 / first.num_steps), 2.0))
    x = back.state.latent_FCHW.flatten()
    assert float(x.var()) == pytest.approx(s**2 * 4 + (1 - s) ** 2, rel=0.1)
    noise = (x - s * latent.flatten()) / (1 - s)
    assert float(noise.var()) == pytest.approx(1, abs=0.09)
    assert abs(float(torch.corrcoef(torch.stack([noise, latent.flatten()]))[0, 1])) < 0.07
    begun = first.state.latent_FCHW.flatten()
    assert abs(float(torch.corrcoef(torch.stack([noise, begun]))[0, 1])) < 0.07, "not the old noise"
    again = replace(back, age_F=torch.full_like(back.age_F, back.num_steps))
    assert again.noised_again(4) is again, "once"


def test_steps_tell_what_happened() -> None:
    """Each clip is done once; its frames are named from 0 on, by the order of their appearance."""
    seen: dict[int, Tensor] = {}
    counts = [0] * 20
    for step in sample_steps(
        LengthOracle(LAW), [empty()] * 20, generators(20, 2), SampleConfig(steps=6),
        Flowception(), max_length=24,
    ):  # fmt: skip
        lengths = step.state.lengths
        assert len(step.clips) == len(lengths)
        per_clip = zip(
            step.clips, step.name_F.split(lengths), step.age_F.split(lengths), strict=True
        )
        for clip, name_F, age_F in per_clip:
            assert clip not in seen
            assert sorted(name_F.tolist()) == list(range(len(name_F)))
            new = sorted(name_F[age_F == 0].tolist())
            assert new == list(range(counts[clip], len(name_F))), "new frames have the last names"
            counts[clip] = len(name_F)
            oldest_first = age_F[name_F.argsort()]
            assert (oldest_first.diff() <= 0).all()
        seen |= step.done
    assert set(seen) == set(range(20))
    assert all(len(seen[clip]) == counts[clip] for clip in seen)


def test_given_needs_a_gap_more_than_frames() -> None:
    with pytest.raises(ValueError, match="gap"):
        Given(torch.zeros(2, 1, 1, 1), (True, False))
    with pytest.raises(ValueError, match="missing"):
        Given(torch.zeros(1, 1, 1, 1), (True, False), (1,))


# --- what travels between the CPU and a device


def flat(state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool) -> Prediction:
    """A model that asks nothing of the device: any size from 0 to 12, all gaps alike."""
    del clips, finished_F, may_rest
    one_F, one_B = torch.ones_like(state.time_F), torch.ones_like(state.tau_B)
    size_BK = state.tau_B.new_zeros(len(state.lengths), 13)
    return Prediction(torch.ones_like(state.latent_FCHW), one_F, one_B, size_BK)


GIVEN = [
    empty((2, 4, 4)),
    Given(torch.ones(1, 2, 4, 4), (False, True)),
    Given(torch.ones(2, 2, 4, 4), (False, True, False)),
    Given(torch.ones(3, 2, 4, 4), (True, False, True, True)),
    Given(torch.ones(2, 2, 4, 4), (True, True, False), (0, 3, 0)),
    Given(torch.ones(2, 2, 4, 4), (False, False, False)),  # done at tau = 1, before all others
]


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("frames", [None, 9])
@pytest.mark.parametrize("refine", [0.0, 0.5])
@pytest.mark.parametrize("planned", [False, True])
def test_a_step_moves_one_tensor_each_way_and_after_the_last_insertion_none(
    steps: int, frames: int | None, refine: float, planned: bool
) -> None:
    """But for the noise of clips that go back once more; of planned clips only the first asks."""
    config = SampleConfig(steps=steps, frames=frames, refine=refine)
    moved, ends, backs = [], set(), []
    with FakeDevice() as device:
        given = [replace(one, latent_FCHW=one.latent_FCHW.to("cuda")) for one in GIVEN]
        seeds, process = generators(len(given), 3), Flowception(shift=2.0, planned=planned)
        device.into.clear()
        for step in sample_steps(flat, given, seeds, config, process, max_length=12):
            moved.append((step.index, list(device.into), list(device.out)))
            device.into.clear()
            device.out.clear()
            ends |= {step.index} if step.done else set()
            backs.append(len(step.again))
            assert step.state.latent_FCHW.is_cuda
    assert len(ends) > 1, "clips end in different steps"
    start, *others = moved
    assert len(start[1]) <= 6, start  # whole tables: roles, open gaps, ages' times, start frames
    assert not start[2]
    for (index, into, out), before, after in zip(others, backs, backs[1:], strict=False):
        assert len(into) <= (index <= steps) + (after > before), (index, into)
        assert len(out) <= (index <= steps), (index, out)
    assert sum(len(into) for _, into, _ in others) > 0
    assert sum(len(out) for _, _, out in others) == (1 if planned else steps)


@pytest.mark.parametrize("refine", [0.0, 0.6])
def test_on_a_device_clips_are_the_same(refine: float) -> None:
    config, process = SampleConfig(steps=5, refine=refine), Flowception()
    here = sample(flat, GIVEN, generators(len(GIVEN), 3), config, process, max_length=12)
    with FakeDevice():
        given = [replace(one, latent_FCHW=one.latent_FCHW.to("cuda")) for one in GIVEN]
        seeds = generators(len(GIVEN), 3)
        there = [x.cpu() for x in sample(flat, given, seeds, config, process, max_length=12)]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
