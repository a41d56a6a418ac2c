"""Value, inverse and jump of every schedule agree; names are parsed strictly."""

from __future__ import annotations

import pytest
import torch

from flowcept.process.schedule import Schedule, parse_schedule

SCHEDULES = [Schedule(), Schedule(2.0), Schedule(0.5), Schedule(3.5)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_value_and_inverse_are_one_function(schedule: Schedule) -> None:
    tau = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    kappa = schedule.kappa(tau)
    torch.testing.assert_close(schedule.inverse(kappa), tau, rtol=1e-7, atol=1e-7)
    assert (kappa.diff() > 0).all()
    ends = schedule.kappa(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_linear_is_the_identity_bit_for_bit(generator: torch.Generator) -> None:
    tau = torch.rand(10_000, generator=generator, dtype=torch.float64)
    linear = parse_schedule("linear")
    assert torch.equal(linear.kappa(tau), tau)
    assert torch.equal(linear.inverse(tau), tau)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_jumps_telescope_to_one_minus_kappa(schedule: Schedule) -> None:
    for steps in range(1, 201):
        hidden = 1.0
        for index in range(steps):
            assert hidden == pytest.approx(
                1 - float(schedule.kappa(torch.tensor(index / steps, dtype=torch.float64))),
                abs=1e-12,
            )
            hidden *= 1 - schedule.jump(index / steps, (index + 1) / steps)
        assert hidden == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_delays_follow_kappa(schedule: Schedule, generator: torch.Generator) -> None:
    """20,000 delays: Kolmogorov's distance is over 1.95 / sqrt(n) = .0138 once in a thousand."""
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    ranks = schedule.kappa(schedule.inverse(uniform).sort().values)
    expected = (torch.arange(20_000) + 0.5) / 20_000
    assert float((ranks - expected).abs().max()) < 0.0138


def test_names() -> None:
    assert parse_schedule("linear") == Schedule(1.0)
    assert parse_schedule("power:0.5") == Schedule(0.5)


@pytest.mark.parametrize(
    "name", ["", "Linear", "linear:2", "cosine", "power", "power:", "power:x", "power:0",
             "power:-1", "power:nan", "power:0.009", "power:inf", "powers", " linear"],
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown schedule"):
        parse_schedule(name)
