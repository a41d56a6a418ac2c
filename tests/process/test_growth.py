"""How many frames appear: the real sampler with exact oracles returns the law of lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from oracle import (
    Law,
    LengthOracle,
    bound,
    cut,
    empty,
    generators,
    sample,
    sizes_of,
    total_variation,
)
from torch import Tensor

from flowcept.process.compositions import Gaps
from flowcept.process.forward import Flowception
from flowcept.process.growth import Insertions
from flowcept.process.sampler import Model, clip_generator, sample_steps
from flowcept.process.schedule import Schedule, parse_schedule
from flowcept.process.state import FrameState, Given, Prediction
from flowcept.settings import SampleConfig

LAW: Law = {8: 0.2, 12: 0.5, 24: 0.3}
# 1,000 clips: exact draws have a total variation of .017 +- .009; five deviations above is .062.
CLIPS = 1000


def lengths(
    config: SampleConfig,
    process: Flowception | None = None,
    *,
    law: Law = LAW,
    given: Given | None = None,
    clips: int = CLIPS,
    seed: int = 1,
    model: Model | None = None,
) -> list[int]:
    process = process or Flowception()
    oracle = model or LengthOracle(law, parse_schedule(process.schedule))
    starts = [given or empty()] * clips
    out = sample(oracle, starts, generators(clips, seed), config, process, max_length=64)
    return [len(latent) for latent in out]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lengths_follow_the_law_at_every_number_of_steps(steps: int) -> None:
    assert total_variation(lengths(SampleConfig(steps=steps)), LAW) < bound(LAW, CLIPS)


@pytest.mark.parametrize("schedule", ["power:1", "power:2", "power:0.5", "power:0.1"])
def test_lengths_follow_the_law_for_every_schedule(schedule: str) -> None:
    found = lengths(SampleConfig(steps=4), Flowception(schedule=schedule))
    assert total_variation(found, LAW) < bound(LAW, CLIPS)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("open_gaps", [(True,), (False, True), (True, False), (True, False, True)])
def test_lengths_follow_the_law_where_clips_start_with_their_first_frame(
    open_gaps: tuple[bool, ...], steps: int
) -> None:
    given = Given(torch.zeros(len(open_gaps) - 1, 1, 1, 1), open_gaps)
    config, process = SampleConfig(steps=steps), Flowception(first=True, schedule="power:0.5")
    assert total_variation(lengths(config, process, given=given), LAW) < bound(LAW, CLIPS)
    steps_of = sample_steps(
        LengthOracle(LAW), [given], generators(1, 3), config, process, max_length=64
    )
    start = next(iter(steps_of))
    assert start.state.lengths == (max(len(open_gaps) - 1, 1),), "only where nothing is given"
    assert start.state.open_first_B.item() == (len(open_gaps) > 1 and open_gaps[0])


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("open_gaps", [(True,), (False, True), (True, False, True)])
def test_lengths_of_planned_clips_follow_the_law(open_gaps: tuple[bool, ...], steps: int) -> None:
    given = Given(torch.zeros(len(open_gaps) - 1, 1, 1, 1), open_gaps)
    for first in (False, True):
        process = Flowception(planned=True, first=first, schedule="power:0.5")
        found = lengths(SampleConfig(steps=steps), process, given=given)
        assert total_variation(found, LAW) < bound(LAW, CLIPS)


def test_frames_of_a_planned_clip_keep_their_indices() -> None:
    """None before the first step; then each its own, whole at the end, births as the schedule."""
    process = Flowception(planned=True)
    given = [empty(), Given(torch.zeros(2, 1, 1, 1), (False, True, True))] * 100
    oracle, born, known = LengthOracle(LAW), [], {}
    config = SampleConfig(steps=4)
    for step in sample_steps(oracle, given, generators(200, 2), config, process, max_length=64):
        lengths_, state = step.state.lengths, step.state
        assert state.index_F is not None
        assert state.total_B is not None
        rows = zip(step.clips, state.index_F.split(lengths_), step.name_F.split(lengths_),
                   step.age_F.split(lengths_), state.total_B.tolist(), strict=True)  # fmt: skip
        for clip, index_F, name_F, age_F, total in rows:
            if step.index == 0:
                assert (index_F == -1).all()
                assert total == -1
                continue
            assert (index_F.diff() > 0).all()
            assert 0 <= int(index_F[0]) <= int(index_F[-1]) < total
            for name, index in zip(name_F.tolist(), index_F.tolist(), strict=True):
                assert known.setdefault((clip, name), index) == index
            born += [step.index] * int((age_F == 0).sum())
            assert clip not in step.done or index_F.tolist() == list(range(total))
    counts = torch.tensor([born.count(index) for index in (1, 2, 3, 4)])
    assert float(counts.float().std() / counts.float().mean()) < 0.1
    assert oracle.calls > 4


@pytest.mark.parametrize("settings", [{"frames": 9}, {"min_length": 10}, {"max_length": 8},
    {"rate_temperature": 0.0}, {"length_scale": 2.0}])  # fmt: skip
def test_controls_of_planned_clips_mean_the_same(settings: dict[str, float]) -> None:
    """As in clips that are not planned, of which other tests tell."""
    config = SampleConfig(steps=3, **settings)  # type: ignore[arg-type]
    planned, plain = (
        lengths(config, Flowception(planned=planned), clips=500) for planned in (True, False)
    )
    law = {n: plain.count(n) / 500 for n in set(plain)}
    assert total_variation(planned, law) <= bound(law, 500) * 1.5


@pytest.mark.parametrize("open_gaps", [(False, True), (True, False), (False, True, False)])
def test_lengths_behind_given_frames_follow_the_law(open_gaps: tuple[bool, ...]) -> None:
    given = Given(torch.zeros(len(open_gaps) - 1, 1, 1, 1), open_gaps)
    assert total_variation(lengths(SampleConfig(steps=3), given=given), LAW) < bound(LAW, CLIPS)


class Mistaken(LengthOracle):
    """An oracle with a mistake in it: what a wrong network or sampler would look like."""

    mistake = ""

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        said = super().__call__(state, clips, finished_F, may_rest)
        missing_BK = self.missing(state)
        counts = torch.arange(missing_BK.shape[1]).double()
        mean_B1 = (missing_BK.softmax(1) * counts).sum(1, keepdim=True)
        if self.mistake == "time reversed":
            missing_BK = self.missing(replace(state, tau_B=1 - state.tau_B))
            missing_BK = missing_BK.where(~missing_BK.isneginf(), -1e9)
        if self.mistake == "rate fed as count":
            tau_B1 = state.tau_B.double()[:, None]
            mean_B1 = mean_B1 / (1 - tau_B1).clamp(min=1e-3)
        if self.mistake in ("rate fed as count", "mean only"):  # a Poisson law of this mean
            missing_BK = counts * mean_B1.clamp(min=1e-9).log() - torch.lgamma(counts + 1)
        size_BK = sizes_of(missing_BK, state, self.schedule)
        return replace(said, size_logits_BK=size_BK)


def test_an_oracle_that_speaks_of_missing_frames_says_the_same() -> None:
    """Of a posterior made to a law of sizes the sampler makes the posterior again."""
    found = lengths(SampleConfig(steps=5), clips=500, model=Mistaken(LAW))
    assert total_variation(found, LAW) < bound(LAW, 500)


@pytest.mark.parametrize(
    "mistake", ["time reversed", "rate fed as count", "mean only", "last step dropped", "jump"]
)
def test_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Mistaken(LAW)
    oracle.mistake = mistake
    count = Insertions.count
    if mistake == "last step dropped":
        monkeypatch.setattr(
            Insertions, "count", lambda self, index, g, k: count(self, index, g, k)
            if index < self.config.steps - 1 else [0] * len(self.segments),
        )  # fmt: skip
    if mistake == "jump":  # not divided by what is still hidden
        monkeypatch.setattr(Schedule, "jump", lambda _, a, b: b - a)
    found = lengths(SampleConfig(steps=5), clips=500, model=oracle)
    assert total_variation(found, LAW) > 1.2 * bound(LAW, 500)


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [({"min_length": 10}, 10, 99), ({"max_length": 20}, 0, 20),
     ({"min_length": 9, "max_length": 15}, 9, 15), ({"max_length": 8}, 8, 8)],
)  # fmt: skip
def test_bounds_cut_the_law(settings: dict[str, int], low: int, high: int) -> None:
    law = cut(LAW, low, high)
    assert (
        total_variation(lengths(SampleConfig(steps=4, **settings)), law) < bound(law, CLIPS) + 1e-9
    )


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
        LengthOracle(LAW), [empty()] * CLIPS, generators(CLIPS, 1), config, Flowception(),
        min_length=10, max_length=64,
    )  # fmt: skip
    law = cut(LAW, low, high) if "frames" not in settings else {3: 1.0}
    assert total_variation([len(latent) for latent in out], law) < bound(law, CLIPS) + 1e-9


@pytest.mark.parametrize("wanted", [1, 2, 8, 11, 30, 70])
@pytest.mark.parametrize("steps", [1, 4])
def test_exactly_so_many_frames(wanted: int, steps: int) -> None:
    """Also numbers that the law does not hold, or that are beyond the largest trained."""
    model = LengthOracle(dict.fromkeys(range(1, 25), 1 / 24))
    assert set(lengths(SampleConfig(steps=steps, frames=wanted), clips=20, model=model)) == {wanted}


@pytest.mark.parametrize("steps", [1, 4, 20])
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
    assert total_variation(found, law) < bound(law, CLIPS)
    assert total_variation(found, LAW) > bound(LAW, CLIPS)


def test_at_temperature_0_gaps_share_new_frames_by_their_means() -> None:
    given = Given(torch.zeros(3, 1, 1, 1), (False, True, True, False))
    config = SampleConfig(rate_temperature=0)
    growth = Insertions(given, generators(1, 1)[0], config, (1, 64), Flowception().schedule)
    log_missing_G = torch.tensor([0.0, 6.0, 3.0, 0.0]).log()
    assert growth._place(9, log_missing_G) == [0, 6, 3, 0]


def test_rate_temperature_is_of_the_law_within_bounds_and_behind_given_frames() -> None:
    config = SampleConfig(steps=8, rate_temperature=0, max_length=11)
    assert set(lengths(config, clips=50)) == {8}
    given = Given(torch.zeros(2, 1, 1, 1), (False, False, True))
    config = SampleConfig(steps=8, rate_temperature=0)
    out = sample(
        LengthOracle(LAW), [given] * 50, generators(50, 1), config, Flowception(), max_length=64
    )
    assert {len(latent) for latent in out} == {12}


@pytest.mark.parametrize("steps", [1, 8, 32])
@pytest.mark.parametrize("scale", [0.5, 1.3])
def test_length_scale_multiplies_what_is_still_to_come(scale: float, steps: int) -> None:
    """``1 + scale K`` on average: standard error of 500 lengths about .3 scale."""
    clips = 500
    found = lengths(SampleConfig(steps=steps, length_scale=scale), clips=clips)
    mean = 1 + scale * sum((n - 1) * p for n, p in LAW.items())
    assert sum(found) / clips == pytest.approx(mean, abs=1.2 * scale)
    assert {n for n in found if scale == 0.5} <= {4, 5, 6, 7, 12, 13}


def test_length_scale_is_bounded() -> None:
    found = lengths(SampleConfig(steps=4, length_scale=1.5, max_length=20), clips=400)
    law = {11: 0.1, 12: 0.1, 17: 0.25, 18: 0.25, 20: 0.3}  # 1 + 1.5 times 7, 11 and 23, cut
    assert total_variation(found, law) < bound(law, 400)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_missing_per_gap_is_met(steps: int) -> None:
    values = torch.tensor([5.0, 6.0, 7.0]).view(3, 1, 1, 1)
    missing = (2, 0, 3, 1)
    given = Given(values, (True, False, True, True), missing)
    for seed in range(9):
        out = sample(
            LengthOracle(LAW), [given], generators(1, seed), SampleConfig(steps=steps),
            Flowception(), max_length=9,
        )[0].flatten()  # fmt: skip
        places = [int((out == value).nonzero()) for value in (5.0, 6.0, 7.0)]
        edges = [-1, *places, len(out)]
        assert tuple(b - a - 1 for a, b in itertools.pairwise(edges)) == missing


def test_a_known_length_is_met_at_every_number_of_steps() -> None:
    for steps in range(1, 201):
        config = SampleConfig(steps=steps, frames=8)
        clip = Insertions(empty(), clip_generator(steps), config, (1, 9), Schedule())
        clip.born(clip.start(), (1,))
        for index in range(steps):
            gaps = Gaps(torch.zeros(clip.length + 1, dtype=torch.float64))
            clip.born(clip.count(index, gaps, torch.zeros(10, dtype=torch.float64)), (1,))
        assert clip.length == 8, f"{steps} steps"
        assert clip.complete(steps)
        assert not clip.complete(steps - 1)
