"""Where frames go: the joint law of several gaps, at any number of steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from oracle import JOINT_LAWS, THREE, Arrangements, Means, bound, cut, splits, total_variation

from flowcept.process import compositions
from flowcept.process.compositions import Gaps, cross_entropy_sum, num_scored
from flowcept.process.state import FrameState, GapTables, Prediction, Role
from flowcept.settings import SampleConfig

SEED = 3


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("case", JOINT_LAWS)
def test_counts_of_gaps_follow_their_joint_law(
    case: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, given = JOINT_LAWS[case]
    oracle, clips = Arrangements(law), 1000
    monkeypatch.setattr(compositions, "count_logits", oracle.count_logits)
    found = splits(oracle, given, SampleConfig(steps=steps), clips, SEED)
    assert total_variation(found, law) < bound(law, clips)


@pytest.mark.parametrize("mistake", ["shares", "order forgotten", "what is placed forgotten"])
def test_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "three gaps" if mistake == "what is placed forgotten" else "two gaps"
    law, given = JOINT_LAWS[case]
    oracle = Arrangements(law)

    def mistaken(*arguments: object) -> Prediction:
        said = oracle(*arguments)  # type: ignore[arg-type]
        if mistake == "shares":
            return replace(said, tables=None)
        assert said.gap_BG2H is not None
        entry, adds = said.gap_BG2H.chunk(2, dim=2)
        return replace(said, gap_BG2H=torch.cat([entry, 0 * adds], dim=2))

    def forgetful(*arguments: torch.Tensor) -> torch.Tensor:
        law_1K: torch.Tensor = oracle.count_logits(*arguments)  # type: ignore[arg-type]
        return law_1K.flip(1) if mistake == "order forgotten" else law_1K.clamp(min=-1e4)

    monkeypatch.setattr(compositions, "count_logits", forgetful)
    found = splits(mistaken, given, SampleConfig(steps=4), 500, SEED)
    assert total_variation(found, law) > 1.5 * bound(law, 500)


@pytest.mark.parametrize("steps", [1, 4])
def test_where_nothing_is_known_every_arrangement_is_as_likely(steps: int) -> None:
    clips = 1000
    law, given = JOINT_LAWS["gaps alike"]
    found = splits(Means(Arrangements(law)), given, SampleConfig(steps=steps), clips, SEED)
    assert total_variation(found, law) < bound(law, clips)


def test_bounds_and_known_counts_hold() -> None:
    law, given = JOINT_LAWS["two gaps"]
    model, shown = Means(Arrangements(law)), len(given.latent_FCHW)
    for frames in (4, 9):
        config = SampleConfig(steps=3, frames=shown + frames)
        found = splits(model, given, config, 20, SEED)
        assert {sum(counts) for counts in found} == {frames}
    exact = replace(given, missing=(0, 7, 1, 0))
    assert set(splits(model, exact, SampleConfig(steps=3), 20, SEED)) == {(7, 1)}
    far = SampleConfig(steps=3, frames=shown + 30)  # beyond the tables: by the means
    assert {sum(counts) for counts in splits(model, given, far, 5, SEED)} == {30}


def test_temperature_0_is_the_most_probable_count_of_every_gap() -> None:
    law_K = torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0])
    tables = GapTables(torch.zeros(5, 1), torch.zeros(5, 1), law_K[None].double())
    one = torch.tensor(1.2785).double()  # silu of it is 1
    features = torch.stack([one, one, one])[:, None].expand(-1, 2) * torch.tensor([1.0, 0.0])
    gaps = Gaps(torch.zeros(3).double(), features, tables)
    assert compositions.draw(gaps, 4, 4, 0.0, lambda: 0.999) == [2, 2, 0]


def test_closed_gaps_get_nothing() -> None:
    log_G = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -60.0, -math.inf]).double()
    tables = GapTables(*(torch.zeros(shape).double() for shape in ((9, 2), (9, 2), (2, 9))))
    generator = torch.Generator().manual_seed(0)
    gaps = Gaps(log_G, torch.zeros(6, 4).double(), tables)
    draws = [
        compositions.draw(gaps, 8, 8, 1.0, lambda: float(torch.rand((), generator=generator)))
        for _ in range(100)
    ]
    assert all(sum(counts) == 8 and counts[0] == counts[2] == counts[5] == 0 for counts in draws)
    assert sum(counts[4] for counts in draws) == 0
    share = sum(counts[3] for counts in draws) / 800
    assert share == pytest.approx(math.e / (1 + math.e), abs=0.1)


# --- learning


def whole(counts: tuple[int, ...], tau: float = 0.0) -> FrameState:
    """Given frames with so many hidden ones before, between and after; none is visible."""
    given = len(counts) - 1
    return FrameState(
        torch.zeros(given, 1, 1, 1), torch.ones(given), torch.full((given,), int(Role.ACTIVE)),
        torch.tensor([tau]), torch.tensor([True]), (given,),
    )  # fmt: skip


def said(entry_G2H: torch.Tensor, tables: GapTables, log_G: torch.Tensor) -> Prediction:
    given = len(log_G) - 1
    return Prediction(torch.zeros(given, 1, 1, 1), log_G[1:], log_G[:1], torch.zeros(1, 2),
                      gap_BG2H=entry_G2H[None], tables=tables)  # fmt: skip


def test_cross_entropy_is_minus_the_log_of_what_is_drawn(generator: torch.Generator) -> None:
    """Over all arrangements the probabilities add up to 1, and they are the draws' frequencies."""
    largest, features = 4, 5
    tables = GapTables(
        torch.randn(largest + 1, features, generator=generator),
        torch.randn(largest + 1, features, generator=generator),
        torch.randn(features, largest + 1, generator=generator),
    )
    entry = torch.randn(3, 2 * features, generator=generator)
    log_G = torch.randn(3, generator=generator)
    law = {}
    for counts in itertools.product(range(largest + 1), repeat=3):
        if sum(counts) == largest:
            missing = torch.tensor(counts).float()
            loss = cross_entropy_sum(
                said(entry, tables, log_G), whole(counts), missing[1:], missing[:1]
            )
            law[counts] = math.exp(-float(loss))
    assert sum(law.values()) == pytest.approx(1, abs=1e-5)
    exact = GapTables(*(x.double() for x in vars(tables).values()))
    gaps = Gaps(log_G.double(), entry.double(), exact)

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    found = [tuple(compositions.draw(gaps, largest, largest, 1.0, uniform)) for _ in range(4000)]
    assert total_variation(found, law) < bound(law, 4000)


def test_means_far_apart_leave_the_loss_finite(generator: torch.Generator) -> None:
    """A gap's concentration may vanish beside its left neighbour's; it never becomes 0."""
    tables = GapTables(*(torch.randn(shape, generator=generator).requires_grad_()
                         for shape in ((5, 4), (5, 4), (4, 5))))  # fmt: skip
    entry = torch.zeros(2, 8).requires_grad_()
    for ratio in (0.0, 10, 17, 30, 200):
        log_G = torch.tensor([0.0, -ratio])
        for counts in ((4, 0), (0, 4), (0, 0)):
            missing = torch.tensor(counts).float()
            prediction = said(entry, tables, log_G)
            loss = cross_entropy_sum(prediction, whole(counts), missing[1:], missing[:1])
            loss.backward()
            assert math.isfinite(loss.item())
            assert bool(entry.grad.isfinite().all())


def test_only_early_open_gaps_but_the_last_are_scored(generator: torch.Generator) -> None:
    """Values and gradients; nothing is learned by the means."""
    tables = GapTables(*(torch.randn(shape, generator=generator).requires_grad_()
                         for shape in ((7, 4), (7, 4), (4, 7))))  # fmt: skip
    state = FrameState(
        latent_FCHW=torch.zeros(6, 1, 1, 1),
        time_F=torch.tensor([1.0, 0.5, 1.0, 0.3, 0.5, 1.0]),
        role_F=torch.tensor([Role.ACTIVE, 0, Role.PASSIVE, 0, 0, 0]),
        tau_B=torch.tensor([0.5, 0.4, 1.2]),
        open_first_B=torch.tensor([False, True, True]),
        lengths=(3, 1, 2),
    )
    entry = torch.randn(3, 4, 8, generator=generator).requires_grad_()
    log_F = torch.randn(6, generator=generator).requires_grad_()
    prediction = Prediction(torch.zeros(6, 1, 1, 1), log_F, torch.zeros(3), torch.zeros(3, 7),
                            gap_BG2H=entry, tables=tables)  # fmt: skip
    missing_F = torch.tensor([2.0, 1, 0, 3, 1, 0])
    missing_B = torch.tensor([0.0, 2, 1])
    assert num_scored(state) == 2  # gap 1 of the first clip, gap 0 of the second
    loss = cross_entropy_sum(prediction, state, missing_F, missing_B)
    loss.backward()
    assert log_F.grad is None
    moved = entry.grad.abs().sum(2) > 0
    assert moved.tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4]
    assert all(bool(table.grad.isfinite().all()) for table in vars(tables).values())


def test_the_joint_law_is_learned(generator: torch.Generator) -> None:
    """Of the three gaps that go together, from nothing but their tuples."""
    counts = list(THREE)
    widths = ((7, 16), (7, 16), (16, 7))
    tables = GapTables(*(0.1 * torch.randn(w, generator=generator) for w in widths))
    entry = 0.1 * torch.randn(3, 32, generator=generator)
    log_G = torch.zeros(3)
    learned = [entry, *vars(tables).values()]
    optimizer = torch.optim.Adam([x.requires_grad_() for x in learned], lr=0.03)
    for _ in range(300):
        loss = torch.zeros(())
        for tuple_, p in THREE.items():
            missing = torch.tensor(tuple_).float()
            sum_ = cross_entropy_sum(
                said(entry, tables, log_G), whole(tuple_), missing[1:], missing[:1]
            )
            loss = loss + p * sum_
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    by_total = cut({sum(c): 1.0 for c in counts})
    entropy = -sum(p * math.log(p) for p in THREE.values())
    of_total = -sum(p * math.log(p) for p in (0.1, 0.9))
    assert set(by_total) == {3, 6}
    assert float(loss) == pytest.approx(entropy - of_total, abs=0.02)
