"""The real sampler with exact oracles in place of the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from oracle import (
    AR1_LAW,
    ClipOracle,
    Law,
    LengthOracle,
    ar1_clip,
    ar1_cov,
    ar1_mean,
    cut,
    empty,
    generators,
    scalar_flow,
    total_variation,
    variation_floor,
)
from torch import Tensor

from flowcept.errors import UserError
from flowcept.networks.resting import Rest
from flowcept.process import sampler
from flowcept.process.forward import ProcessConfig, shifted
from flowcept.process.sampler import (
    Given,
    Growth,
    clip_generator,
    guided,
    inverse_cdf,
    sample,
    sample_steps,
    systematic,
    tempered,
)
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Prediction, PromptTokens, Role
from flowcept.settings import SampleConfig

LAW: Law = {8: 0.2, 12: 0.5, 24: 0.3}
# 1,000 clips: exact draws have a total variation of .017 +- .009; five deviations above is .062.
CLIPS = 1000


def bound(law: Law, clips: int = CLIPS) -> float:
    mean, deviation = variation_floor(law, clips)
    return mean + 5 * deviation


def lengths(
    config: SampleConfig,
    process: ProcessConfig | None = None,
    *,
    law: Law = LAW,
    given: Given | None = None,
    clips: int = CLIPS,
    seed: int = 1,
    model: object = None,
) -> list[int]:
    process = process or ProcessConfig()
    oracle = model or LengthOracle(law, parse_schedule(process.schedule), process.num_start)
    starts = [given or empty()] * clips
    out = sample(oracle, starts, generators(clips, seed), config, process, max_length=64)
    return [len(latent) for latent in out]


# --- velocity


@dataclass
class FrameOracle:
    """One Gaussian frame, or several whose number and law are known."""

    mean: Tensor
    cov: Tensor
    shift: float = 1.0
    reverse: bool = False

    def __call__(
        self, state: FrameState, clips: Sequence[int], resting_F: Tensor | None = None
    ) -> Prediction:
        del resting_F
        rows, count = len(clips), len(self.mean)
        x = state.latent_FCHW[:, 0, 0, 0].double().view(rows, count)
        t = state.time_F.double().view(rows, count)
        s = t / (t + self.shift * (1 - t))
        velocity, _ = scalar_flow(x, 1 - s if self.reverse else s, self.mean, self.cov)
        zeros = torch.zeros(rows, dtype=torch.float64)
        logits = torch.zeros(rows, 1, dtype=torch.float64)
        return Prediction(velocity.reshape(-1, 1, 1, 1), zeros[state.clip_F], zeros, logits)


def one_frame_error(
    steps: int, shift: float = 1.0, *, solver: str = "euler", reverse: bool = False
) -> float:
    """Root mean square over 8 noises of the end against the exact flow's ``mu + s x_0``."""
    mu, deviation = 0.7, 0.5
    oracle = FrameOracle(
        torch.tensor([mu]).double(), torch.tensor([[deviation**2]]).double(), shift, reverse
    )
    given = [Given(torch.zeros(0, 1, 1, 1, dtype=torch.float64), (True,))] * 8
    process = ProcessConfig(shift=shift)
    config = SampleConfig(steps=steps, frames=1, solver=solver)
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


@pytest.mark.parametrize("shift", [1.0, 1.5])  # at 3 the error changes its sign on the way
def test_multistep_error_quarters_when_steps_double(shift: float) -> None:
    errors = [one_frame_error(steps, shift, solver="multistep") for steps in (50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.6 < coarse / fine < 4.8, errors


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sixteen_multistep_steps_beat_a_hundred_of_euler(shift: float) -> None:
    assert one_frame_error(16, shift, solver="multistep") < one_frame_error(100, shift)


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


# --- lengths


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lengths_follow_the_law_at_every_number_of_steps(steps: int) -> None:
    assert total_variation(lengths(SampleConfig(steps=steps)), LAW) < bound(LAW)


@pytest.mark.parametrize(
    ("schedule", "num_start"), [("linear", 0), ("cosine", 1), ("power:2", 3), ("power:0.5", 1)]
)
def test_lengths_follow_the_law_for_every_schedule(schedule: str, num_start: int) -> None:
    process = ProcessConfig(schedule=schedule, num_start=num_start)
    assert total_variation(lengths(SampleConfig(steps=4), process), LAW) < bound(LAW)


@pytest.mark.parametrize("open_gaps", [(False, True), (True, False), (False, True, False)])
def test_lengths_behind_given_frames_follow_the_law(open_gaps: tuple[bool, ...]) -> None:
    given = Given(torch.zeros(len(open_gaps) - 1, 1, 1, 1), open_gaps)
    assert total_variation(lengths(SampleConfig(steps=3), given=given), LAW) < bound(LAW)


@pytest.mark.parametrize("rule", ["systematic", "bernoulli", "poisson"])
def test_the_mean_alone_is_not_enough(rule: str) -> None:
    assert total_variation(lengths(SampleConfig(steps=5, insertion=rule)), LAW) > 4 * bound(LAW)


class Dropped(LengthOracle):
    """An oracle with a mistake in it: what a wrong network or sampler would look like."""

    mistake = ""

    def __call__(
        self, state: FrameState, clips: Sequence[int], resting_F: Tensor | None = None
    ) -> Prediction:
        del resting_F
        said = super().__call__(state, clips)
        tau = state.tau_B.double()[:, None]
        logits = said.count_logits_BK
        if self.mistake == "time reversed":
            said = super().__call__(replace(state, tau_B=1 - state.tau_B), clips)
            logits = said.count_logits_BK.where(~said.count_logits_BK.isneginf(), -1e9)
        if self.mistake == "rate fed as count":
            counts = torch.arange(logits.shape[1]).double()
            mean = (logits.softmax(1) * counts).sum(1, keepdim=True) / (1 - tau).clamp(min=1e-3)
            logits = counts * mean.clamp(min=1e-9).log() - torch.lgamma(counts + 1)
        if self.mistake == "mean only":
            counts = torch.arange(logits.shape[1]).double()
            mean = (logits.softmax(1) * counts).sum(1, keepdim=True)
            logits = counts * mean.clamp(min=1e-9).log() - torch.lgamma(counts + 1)
        return replace(said, count_logits_BK=logits)


@pytest.mark.parametrize(
    "mistake", ["time reversed", "rate fed as count", "mean only", "last step dropped", "jump"]
)
def test_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Dropped(LAW)
    oracle.mistake = mistake
    count = Growth.count
    if mistake == "last step dropped":
        monkeypatch.setattr(
            Growth, "count", lambda self, index, g, k, n: count(self, index, g, k, n)
            if index < self.config.steps - 1 else [0] * (n + 1),
        )  # fmt: skip
    if mistake == "jump":  # not divided by what is still hidden
        linear = type(parse_schedule("linear"))
        monkeypatch.setattr(linear, "jump", lambda _, a, b: b - a)
    found = lengths(SampleConfig(steps=5), clips=500, model=oracle)
    assert total_variation(found, LAW) > 1.2 * bound(LAW, 500)


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [({"min_length": 10}, 10, 99), ({"max_length": 20}, 0, 20),
     ({"min_length": 9, "max_length": 15}, 9, 15), ({"max_length": 8}, 8, 8)],
)  # fmt: skip
def test_bounds_cut_the_law(settings: dict[str, int], low: int, high: int) -> None:
    law = cut(LAW, low, high)
    assert total_variation(lengths(SampleConfig(steps=4, **settings)), law) < bound(law) + 1e-9


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [({}, 10, 99), ({"min_length": 1}, 0, 99), ({"min_length": 13}, 13, 99),
     ({"max_length": 12}, 12, 12), ({"max_length": 8}, 8, 8), ({"frames": 3}, 3, 3)],
)  # fmt: skip
def test_the_shortest_trained_length_bounds_where_settings_do_not(
    settings: dict[str, int], low: int, high: int
) -> None:
    config = SampleConfig(steps=4, **settings)
    out = sample(
        LengthOracle(LAW), [empty()] * CLIPS, generators(CLIPS, 1), config, ProcessConfig(),
        min_length=10, max_length=64,
    )  # fmt: skip
    law = cut(LAW, low, high) if "frames" not in settings else {3: 1.0}
    assert total_variation([len(latent) for latent in out], law) < bound(law) + 1e-9


@pytest.mark.parametrize("wanted", [1, 2, 8, 11, 30, 70])
@pytest.mark.parametrize("steps", [1, 4])
def test_exactly_so_many_frames(wanted: int, steps: int) -> None:
    """Also numbers that the law does not hold, or that are beyond the largest trained."""
    model = LengthOracle(dict.fromkeys(range(1, 25), 1 / 24))
    assert set(lengths(SampleConfig(steps=steps, frames=wanted), clips=20, model=model)) == {wanted}


@pytest.mark.parametrize("steps", [1, 4, 32])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_rate_temperature_sharpens_the_law(temperature: float, steps: int) -> None:
    """At any number of steps lengths have ``p ** (1/T)``, renormalised; at 0 the most probable."""
    config = SampleConfig(steps=steps, rate_temperature=temperature)
    if temperature == 0:
        assert set(lengths(config, clips=50)) == {12}
        return
    powers = {n: p ** (1 / temperature) for n, p in LAW.items()}
    law = {n: p / sum(powers.values()) for n, p in powers.items()}
    found = lengths(config)
    assert total_variation(found, law) < bound(law)
    assert total_variation(found, LAW) > bound(LAW)


def test_rate_temperature_is_of_the_law_within_bounds_and_behind_given_frames() -> None:
    config = SampleConfig(steps=8, rate_temperature=0, max_length=11)
    assert set(lengths(config, clips=50)) == {8}
    given = Given(torch.zeros(2, 1, 1, 1), (False, False, True))
    config = SampleConfig(steps=8, rate_temperature=0)
    out = sample(
        LengthOracle(LAW), [given] * 50, generators(50, 1), config, ProcessConfig(), max_length=64
    )
    assert {len(latent) for latent in out} == {12}


@pytest.mark.parametrize("steps", [1, 8, 32])
@pytest.mark.parametrize("scale", [0.5, 1.3])
def test_length_scale_multiplies_what_is_still_to_come(scale: float, steps: int) -> None:
    """``1 + scale K`` on average: standard error of 1,000 lengths about .2 scale."""
    found = lengths(SampleConfig(steps=steps, length_scale=scale))
    mean = 1 + scale * sum((n - 1) * p for n, p in LAW.items())
    assert sum(found) / CLIPS == pytest.approx(mean, abs=1.0 * scale)
    assert {n for n in found if scale == 0.5} <= {4, 5, 6, 7, 12, 13}


def test_length_scale_is_bounded() -> None:
    found = lengths(SampleConfig(steps=4, length_scale=1.5, max_length=20), clips=400)
    law = {11: 0.1, 12: 0.1, 17: 0.25, 18: 0.25, 20: 0.3}  # 1 + 1.5 times 7, 11 and 23, cut
    assert total_variation(found, law) < bound(law, 400)


# --- the whole process


@pytest.mark.parametrize("kind", ["none", "first_last"])
def test_whole_process_returns_lengths_and_covariances(kind: str) -> None:
    """700 clips at 24 steps against the law of scalar AR(1) clips.

    Whitened by their law, frames have mean 0 and covariance 1, with standard errors of a pooled
    mean of .018 and of a pooled variance of .025. Euler's error at 24 steps adds some .05.
    """
    clips, seeds = 700, torch.Generator().manual_seed(11)
    oracle = ClipOracle(AR1_LAW, ar1_mean, ar1_cov, kind)
    law, given = AR1_LAW, [empty()] * clips
    truth = torch.multinomial(
        torch.tensor(list(AR1_LAW.values())), clips, replacement=True, generator=seeds
    )
    if kind == "first_last":
        ends = [ar1_clip(list(AR1_LAW)[int(i)], seeds)[[0, -1]] for i in truth]
        given = [Given(pair, (False, True, False)) for pair in ends]
    out = sample(
        oracle, given, generators(clips, 5), SampleConfig(steps=24), ProcessConfig(), max_length=6
    )
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


class Flat:
    """Velocity 1 everywhere and equal shares; the calls are counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, state: FrameState, clips: Sequence[int], resting_F: Tensor | None = None
    ) -> Prediction:
        del resting_F
        self.calls += 1
        return Prediction(
            torch.ones_like(state.latent_FCHW), torch.zeros_like(state.time_F),
            torch.zeros(len(clips)), torch.zeros(len(clips), 9),
        )  # fmt: skip


def run_clock(steps: int, process: ProcessConfig, given: Given, config: SampleConfig) -> Flat:
    """Checks of one run that hold at any number of steps."""
    model, born, last = Flat(), {}, None
    fixed = len(given.latent_FCHW)
    for step in sample_steps(
        model, [given], [clip_generator(steps)], config, process, max_length=9
    ):
        rows = {name: row for row, name in enumerate(step.ids[0])}
        if process.kind != "autoregressive":
            assert float(step.state.tau_B) == pytest.approx(step.index / steps)
        for name in step.new[0]:
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
        process = ProcessConfig(shift=1.0 if steps % 2 else 3.0)
        config = SampleConfig(steps=steps, frames=4)
        if steps <= 24 or steps % 14 == 0:
            assert run_clock(steps, process, given, config).calls <= 2 * steps
        age = torch.arange(steps + 1)
        assert (age.double() / steps).to(torch.float32)[-1] == 1
        hidden = 7
        growth = Growth(empty(), clip_generator(steps), replace(config, frames=8), process, 1, 9)
        visible = sum(growth.start())
        for index in range(steps):
            counts = growth.count(index, torch.zeros(1).double(), torch.zeros(9), visible)
            visible += sum(counts)
            hidden -= sum(counts)
        assert visible == 8, f"a known length is met at {steps} steps"
        assert hidden == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 49])
def test_baselines_keep_time_and_length(steps: int) -> None:
    given = Given(torch.ones(2, 1, 1, 1), (False, True, False))
    config = SampleConfig(steps=steps, frames=7)
    assert run_clock(steps, ProcessConfig("full-sequence"), given, config).calls == steps
    for block, rounds in ((1, 5), (2, 3), (9, 1)):
        process = ProcessConfig("autoregressive", block=block)
        assert run_clock(steps, process, given, config).calls == steps * rounds


def test_baselines_need_a_length() -> None:
    for kind in ("full-sequence", "autoregressive"):
        with pytest.raises(ValueError, match="frames"):
            run_clock(4, ProcessConfig(kind), empty(), SampleConfig(steps=4))


@pytest.mark.parametrize("kind", ["flowception", "full-sequence", "autoregressive"])
@pytest.mark.parametrize("order", ["learned", "random", "left-to-right", "bisection"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_missing_per_gap_is_met(kind: str, order: str, steps: int) -> None:
    values = torch.tensor([5.0, 6.0, 7.0]).view(3, 1, 1, 1)
    missing = (2, 0, 3, 1)
    given = Given(values, (True, False, True, True), missing)
    for seed in range(3):
        out = sample(
            Flat(), [given], generators(1, seed), SampleConfig(steps=steps, order=order),
            ProcessConfig(kind), max_length=9,
        )[0].flatten()  # fmt: skip
        places = [int((out == value).nonzero()) for value in (5.0, 6.0, 7.0)]
        edges = [-1, *places, len(out)]
        assert tuple(b - a - 1 for a, b in itertools.pairwise(edges)) == missing


def test_orders_differ_only_in_place() -> None:
    """Names tell the order of appearance: left to right they rise, bisection splits evenly."""
    for order in ("left-to-right", "bisection"):
        config = SampleConfig(steps=200, frames=9, order=order)
        start = generators(1, 0)
        run = sample_steps(Flat(), [empty()], start, config, ProcessConfig(), max_length=9)
        ids = list(run)[-1].ids[0]
        if order == "left-to-right":
            assert list(ids) == sorted(ids)
        else:
            assert ids[0] != 0
            assert 2 <= ids.index(0) <= 6


# --- given frames, batches, settings


@pytest.mark.parametrize("fill", [0.0, -1.0, -0.0, 3e38, 1e-42, math.inf, math.nan])
def test_given_frames_come_out_bit_for_bit(fill: float) -> None:
    """Whatever they hold, and however wild the velocity that is said of them."""

    def wild(state: FrameState, clips: Sequence[int], resting_F: Tensor | None) -> Prediction:
        said = LengthOracle(LAW)(state, clips, resting_F)
        return replace(said, velocity_FCHW=torch.full_like(state.latent_FCHW, math.inf))

    frames = torch.full((3, 2, 2, 2), fill)
    given = Given(frames, (False, True, False, True))
    reference = Given(torch.randn(3, 2, 2, 2), given.open_gaps)
    found = []
    for start in (given, reference):
        config = SampleConfig(steps=5)
        seeds, process = generators(1, 9), ProcessConfig()
        steps = list(sample_steps(wild, [start], seeds, config, process, max_length=24))
        rows = torch.tensor([steps[-1].ids[0].index(name) for name in range(3)])
        out = steps[-1].done[0][rows]
        assert torch.equal(out.view(torch.int32), start.latent_FCHW.view(torch.int32))
        found.append([step.ids for step in steps])
    assert found[0] == found[1], "what frames hold changes nothing else"


def test_together_equals_alone() -> None:
    given = [empty(), Given(torch.ones(1, 1, 1, 1), (False, True)), empty()]

    def go(chosen: Sequence[int]) -> list[Tensor]:
        return sample(
            LengthOracle(LAW), [given[b] for b in chosen], [clip_generator(b) for b in chosen],
            SampleConfig(steps=5), ProcessConfig(), max_length=24,
        )  # fmt: skip

    together = go([0, 1, 2])
    for b in range(3):
        assert torch.equal(go([b])[0], together[b])
    for b, latent in zip([2, 0], go([2, 0]), strict=True):
        assert torch.equal(latent, together[b])


@pytest.mark.parametrize(("kind", "reads"), [("flowception", 6), ("full-sequence", 0)])
def test_counts_are_read_only_while_frames_may_appear(
    kind: str, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device every reading waits for it: none comes after ``tau = 1``."""
    read: list[int] = []
    plain = sampler._per_clip

    def counted(state: FrameState, prediction: Prediction) -> object:
        read.append(len(state.lengths))
        return plain(state, prediction)

    monkeypatch.setattr(sampler, "_per_clip", counted)
    config, process = SampleConfig(steps=6, frames=9), ProcessConfig(kind=kind)
    run = sample_steps(
        LengthOracle(LAW, parse_schedule("linear"), 1), [empty()], generators(1, 2), config,
        process, max_length=24,
    )  # fmt: skip
    steps = list(run)
    assert len(steps[-1].done[0]) == 9
    assert len(read) == reads


def test_steps_tell_what_happened() -> None:
    seen: dict[int, Tensor] = {}
    names: dict[int, list[int]] = {b: [] for b in range(20)}
    for step in sample_steps(
        LengthOracle(LAW), [empty()] * 20, generators(20, 2), SampleConfig(steps=6),
        ProcessConfig(), max_length=24,
    ):  # fmt: skip
        assert len(step.clips) == len(step.ids) == len(step.new) == len(step.state.lengths)
        for clip, ids, new, length in zip(
            step.clips, step.ids, step.new, step.state.lengths, strict=True
        ):
            assert clip not in seen
            names[clip] += new
            assert len(ids) == length
            assert sorted(ids) == sorted(names[clip])
        seen |= step.done
    assert set(seen) == set(range(20))
    assert all(len(seen[b]) == len(names[b]) for b in seen)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"frames": 0}, {"guidance": -1.0}, {"guidance": math.nan},
     {"rate_temperature": -0.1}, {"length_scale": 0.0}, {"length_scale": math.inf},
     {"min_length": 5, "max_length": 4}, {"frames": 9, "max_length": 8},
     {"frames": 2, "min_length": 3}, {"insertion": "x"}, {"order": "x"},
     {"insertion": "poisson", "frames": 4}],
)  # fmt: skip
def test_contradictions_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"."):
        SampleConfig(**settings)


def test_given_needs_a_gap_more_than_frames() -> None:
    with pytest.raises(ValueError, match="gap"):
        Given(torch.zeros(2, 1, 1, 1), (True, False))
    with pytest.raises(ValueError, match="missing"):
        Given(torch.zeros(1, 1, 1, 1), (True, False), (1,))


@pytest.mark.parametrize("rule", ["bernoulli", "poisson"])
def test_rules_from_the_mean_where_the_hazard_has_no_bound(rule: str) -> None:
    """``power:0.5`` rises endlessly fast at first; closed gaps stay closed."""
    given = Given(torch.zeros(1, 1, 1, 1), (False, True))
    out = sample(
        LengthOracle(LAW, parse_schedule("power:0.5")), [given] * 8, generators(8, 1),
        SampleConfig(steps=4, insertion=rule), ProcessConfig(schedule="power:0.5"), max_length=24,
    )  # fmt: skip
    assert all(1 < len(latent) <= 24 for latent in out)
    assert all(latent[0] == 0 for latent in out)


# --- draws


def test_systematic_shares_are_rounded_up_or_down_and_right_on_average() -> None:
    shares = torch.tensor([0.05, 0.0, 0.6, 0.35])
    total, grid = 7, 1000
    counts = torch.tensor([systematic(total, shares, (u + 0.5) / grid) for u in range(grid)])
    assert (counts.sum(1) == total).all()
    assert ((counts - total * shares).abs() < 1).all()
    torch.testing.assert_close(counts.float().mean(0), total * shares, rtol=0, atol=2e-3)


def test_inverse_cdf_has_the_law() -> None:
    law = torch.tensor([0.0, 0.25, 0.0, 0.75])
    drawn = [inverse_cdf(law, (u + 0.5) / 1000) for u in range(1000)]
    assert (drawn.count(1), drawn.count(3)) == (250, 750)
    assert inverse_cdf(law, 0.0) == 1


def test_tempered() -> None:
    log = torch.tensor([0.1, 0.4, 0.5]).double().log()
    torch.testing.assert_close(tempered(log, 1.0).softmax(-1), log.exp())
    assert tempered(log, 0.0).softmax(-1).tolist() == [0, 0, 1]
    assert tempered(torch.zeros(2), 0.0).softmax(-1).tolist() == [0.5, 0.5]
    powered = log.exp() ** 2
    torch.testing.assert_close(tempered(log, 0.5).softmax(-1), powered / powered.sum())


# --- guidance


class Prompted:
    """A network whose outputs follow from the mean of the prompt; its calls are kept."""

    def __init__(self) -> None:
        self.clips: list[int] = []

    def __call__(self, state: FrameState, prompt: PromptTokens, rest: Rest | None) -> Prediction:
        del rest
        self.clips.append(len(state.lengths))
        assert len(prompt.lengths) == len(state.lengths)
        level_B = torch.stack([part.mean() for part in prompt.token_SD.split(list(prompt.lengths))])
        level_F = level_B[state.clip_F]
        logits_BK = torch.stack([level_B * 0, level_B, -level_B], 1) + 3 * level_B[:, None]
        velocity_FCHW = state.latent_FCHW + level_F[:, None, None, None]
        return Prediction(velocity_FCHW, level_F * 2, level_B * 3, logits_BK)


def pack() -> tuple[FrameState, list[PromptTokens], list[PromptTokens]]:
    state = FrameState(
        torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(5),
        torch.zeros(5).long(), torch.zeros(2), torch.ones(2).bool(), (2, 3),
    )  # fmt: skip
    prompts = [PromptTokens(torch.full((n, 1), v), (n,)) for n, v in ((2, 1.0), (3, 2.0))]
    away = [PromptTokens(torch.full((n, 1), v), (n,)) for n, v in ((1, -1.0), (2, 0.5))]
    return state, prompts, away


def test_guidance_of_one_is_one_plain_call() -> None:
    state, prompts, away = pack()
    network = Prompted()
    said = guided(network, prompts, away, 1.0, 1.0)(state, [0, 1], None)
    assert network.clips == [2]
    assert said.log_missing_first_B.tolist() == [3.0, 6.0]


@pytest.mark.parametrize(("guidance", "rate"), [(3.0, 1.0), (1.0, 0.5), (0.0, 2.0), (2.5, 2.5)])
def test_guidance_leans_in_one_packed_call(guidance: float, rate: float) -> None:
    state, prompts, away = pack()
    network = Prompted()
    said = guided(network, prompts, away, guidance, rate)(state, [0, 1], None)
    assert network.clips == [4]
    wanted, unwanted = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    level, rates = (unwanted + w * (wanted - unwanted) for w in (guidance, rate))
    torch.testing.assert_close(
        said.velocity_FCHW[:, 0, 0, 0], state.latent_FCHW[:, 0, 0, 0] + level[state.clip_F]
    )
    torch.testing.assert_close(said.log_missing_F, 2 * rates[state.clip_F])
    torch.testing.assert_close(said.log_missing_first_B, 3 * rates)

    def law(v: Tensor) -> Tensor:
        return torch.stack([v * 0, v, -v], 1).softmax(1)

    posterior = law(unwanted) * (law(wanted) / law(unwanted)) ** rate
    posterior = posterior / posterior.sum(1, keepdim=True)
    torch.testing.assert_close(said.count_logits_BK.softmax(1), posterior)


def test_guidance_names_clips_by_their_place_in_the_request() -> None:
    """When clips have finished, the prompts of those that still run are used."""
    state, prompts, away = pack()
    one = FrameState(
        state.latent_FCHW[:1], torch.zeros(1), torch.zeros(1).long(), torch.zeros(1),
        torch.ones(1).bool(), (1,),
    )  # fmt: skip
    said = guided(Prompted(), prompts, away, 1.0, 1.0)(one, [1], None)
    assert said.log_missing_first_B.tolist() == [6.0]
