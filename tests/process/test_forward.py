"""The forward process against exact oracles, and the rules of contexts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibration import (
    CASES,
    CLIPS,
    IDS,
    KINDS,
    TOLERANCE,
    deviations,
    draws,
    fresh_draws,
    only,
    oracle_of,
    worst,
)
from oracle import AR1_LAW, ClipOracle, ar1_cov, ar1_mean, blank, empty

from flowcept.data.contexts import draw_context
from flowcept.process.forward import Flowception, beside, draw, draw_still, roles_of
from flowcept.process.loss import count_terms
from flowcept.process.sampler import sample_steps
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Given, Role
from flowcept.settings import SampleConfig


@pytest.mark.parametrize(("kind", "process"), CASES, ids=IDS)
def test_targets_are_the_oracle_plus_noise(kind: str, process: Flowception) -> None:
    """``target - oracle`` is orthogonal to functions of the state, and the posterior calibrated."""
    state, target = draws(kind, process, CLIPS, seed=3)
    said = oracle_of(kind, process)(state, range(len(state.lengths)))
    missing_BK = process.missing_logits(said.size_logits_BK, state)
    found = deviations(state, target, said, missing_BK)
    assert worst(found)[0] < TOLERANCE, worst(found)


@pytest.mark.parametrize(
    "mistake",
    ["time reversed", "rate fed as count", "tau depends on delays", "redrawn for short clips",
     "start frame forgotten", "wrong schedule", "shift forgotten",
     "a start frame beside given ones"],
)  # fmt: skip
def test_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process, original, drawn = Flowception(), Flowception.draw_tau, draws
    if mistake == "tau depends on delays":
        drawn = fresh_draws
        monkeypatch.setattr(
            Flowception, "draw_tau", lambda _, d, g: float(torch.rand((), generator=g) * d.max())
        )
    if mistake == "redrawn for short clips":
        drawn = fresh_draws
        monkeypatch.setattr(
            Flowception, "draw_tau", lambda p, d, g: original(p, d, g) / (1 if len(d) > 3 else 4)
        )
    kind = "none"
    if mistake == "a start frame beside given ones":
        kind, process = "first", Flowception(first=True)
    state, target = drawn(kind, process, CLIPS, seed=3)
    oracle = oracle_of(kind, process)
    if mistake == "a start frame beside given ones":
        process = Flowception(first=False)
    if mistake == "start frame forgotten":
        oracle.num_start = 0
    if mistake == "wrong schedule":
        oracle.schedule = parse_schedule("power:2")
    if mistake == "shift forgotten":
        oracle.shift = 3.0
    said = oracle(state, range(len(state.lengths)))
    if mistake == "time reversed":
        flipped = replace(state, time_F=torch.where(state.flowing_F, 1 - state.time_F, 1.0))
        said = oracle(flipped, range(len(state.lengths)))
    if mistake == "rate fed as count":
        hazard_B = 1 / (1 - state.tau_B.clamp(max=0.99))
        said = replace(said, log_missing_F=said.log_missing_F + hazard_B[state.clip_F].log())
    missing_BK = process.missing_logits(said.size_logits_BK, state)
    assert worst(deviations(state, target, said, missing_BK))[0] > TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_obey_the_rules(kind: str, generator: torch.Generator) -> None:
    """Passive exactly where nothing is missing to the right; gap 0 closed exactly by context."""
    process, seen = Flowception(), 0
    for _ in range(300):
        n = int(torch.randint(1, 16, (), generator=generator))
        context = draw_context(n, only(kind), generator)
        if context is None:
            continue
        seen += 1
        assert len(context) == n
        assert not all(context)
        assert any(context) == (kind != "none")
        roles = roles_of(context)
        for f, role in enumerate(roles):
            last = f == n - 1 or context[f + 1]
            wanted = Role.GENERATED if not context[f] else Role.PASSIVE if last else Role.ACTIVE
            assert role == wanted
        pair = draw(torch.randn(n, 1, 1, 1, generator=generator), context, process, generator)
        if pair is None:
            continue
        state, target = pair
        assert bool(state.open_first_B) == (not context[0])
        assert float(target.missing_first_B) == 0 or bool(state.open_first_B)
        assert (target.missing_F[~state.open_F] == 0).all(), "a closed gap misses nothing"
        assert int(target.total_B) == n - state.lengths[0]
        assert target.missing_F.sum() + target.missing_first_B.sum() == target.total_B
        given = state.role_F != Role.GENERATED
        assert int(given.sum()) == sum(context), "context frames are always visible"
        assert (state.time_F[given] == 1).all()
        assert not (state.flowing_F & given).any()
    assert seen > 20


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_sampling_start_alike(
    kind: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """At ``tau = 0`` a draw is, up to the noise, what the sampler starts from."""
    monkeypatch.setattr(Flowception, "draw_tau", lambda *_: 0.0)
    process, seen = Flowception(), 0
    for _ in range(60):
        n = int(torch.randint(2, 16, (), generator=generator))
        context = draw_context(n, only(kind), generator)
        if context is None:
            continue
        seen += 1
        clip = torch.randn(n, 1, 1, 1, generator=generator)
        state, _target = draw(clip, context, process, generator)
        runs = [False] * (sum(context) + 1)  # which gaps between context frames miss something
        place = 0
        for now in context:
            place += now
            runs[place] |= not now
        start = Given(clip[torch.tensor(context)], tuple(runs))
        steps = sample_steps(
            lambda *_: None, [start], [generator], SampleConfig(frames=n), process, max_length=n
        )
        begun = next(iter(steps)).state
        assert begun.lengths == state.lengths
        assert begun.time_F.sort().values.tolist() == state.time_F.sort().values.tolist()
        assert torch.equal(begun.time_F, state.time_F)
        assert torch.equal(begun.role_F, state.role_F)
        assert torch.equal(begun.tau_B, state.tau_B)
        assert torch.equal(begun.open_first_B, state.open_first_B)
        given = state.role_F != Role.GENERATED
        assert torch.equal(begun.latent_FCHW[given], state.latent_FCHW[given])
    assert seen > 10


@pytest.mark.parametrize("process", [Flowception(first=True), Flowception(planned=True, shift=3.0)])
def test_a_still_teaches_its_velocity_and_no_count(
    process: Flowception, generator: torch.Generator
) -> None:
    frame = torch.full((1, 1, 1, 1), 4.0)
    times = list[float]()
    for _ in range(400):
        state, target = draw_still(frame, process, generator)
        (time,) = state.time_F.tolist()
        assert state.tau_B.tolist() == [time]
        assert state.role_F.tolist() == [Role.GENERATED]
        s = time / (time + process.shift * (1 - time))
        noise = 4.0 - float(target.velocity_FCHW)
        assert float(state.latent_FCHW) == pytest.approx((1 - s) * noise + s * 4.0, abs=1e-5)
        counts = count_terms(state, ["a dog"])
        assert counts.pop("velocity") == 1
        assert not any(counts.values())
        times.append(time)
    quarters = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quarters, torch.tensor([0.25, 0.5, 0.75]), atol=0.08, rtol=0)


def test_a_clip_without_given_frames_may_start_with_its_first(generator: torch.Generator) -> None:
    """Nothing comes before it, and it is the oldest; behind given frames nothing starts."""
    process = Flowception(first=True, schedule="power:0.1")
    clip = torch.arange(9.0).view(9, 1, 1, 1)
    for _ in range(100):
        delay_F = process.draw_delays([False] * 9, generator)
        assert float(delay_F[0]) == 0
        assert (delay_F[1:] > 0).all()
        assert (process.draw_delays([True] + [False] * 8, generator)[1:] > 0).all()
        assert (process.draw_delays([False] * 8 + [True], generator)[:8] > 0).all()
        pair = draw(clip, [False] * 9, process, generator)
        if pair is not None:
            assert not pair[0].open_first_B.item()
            assert pair[1].missing_first_B.item() == 0


@pytest.mark.parametrize("context", ["1....", "....1", "1...1", "11..1", "1.1.1", ".1..1", "..1.."])
def test_beside_given_frames_first_only_leaves_out_the_start_frame(context: str) -> None:
    """Open gaps stay open; where there are several, which have no start frame, nothing changes."""
    given = [one == "1" for one in context]
    clip = torch.arange(5.0).view(5, 1, 1, 1)
    several = len(context.replace("1", " ").split()) > 1
    compared = 0
    for seed in range(20):
        plain, first = (
            draw(clip, given, Flowception(first=first), torch.Generator().manual_seed(seed))
            for first in (False, True)
        )
        assert not several or (plain is None) == (first is None)
        if plain is None or first is None:
            continue
        compared += 1
        assert torch.equal(plain[0].open_first_B, first[0].open_first_B)
        given_roles = [pair[0].role_F[pair[0].given_F].tolist() for pair in (plain, first)]
        assert given_roles[0] == given_roles[1]
        for part, other in zip(plain, first, strict=True):
            for name, value in vars(part).items():
                if several and isinstance(value, torch.Tensor):
                    assert torch.equal(value, vars(other)[name]), name
    assert compared > 5


def test_finished_frames_flow_again_in_so_many_late_clips(generator: torch.Generator) -> None:
    """Their flow times are uniform; early clips, flowing and given frames stay as they were."""
    process, context = Flowception(fill=0.6, late=0.9), [True, *[False] * 5]
    given_F = torch.tensor(context)
    refilled, late, times = 0, 0, []
    for _ in range(2000):
        delay_F = process.draw_delays(context, generator)
        tau = process.draw_tau(delay_F, generator)
        plain_F = torch.where(given_F, 1.0, (tau - delay_F).clamp(0, 1))
        time_F = process.draw_times(tau, delay_F, given_F, generator)
        changed_F = time_F != plain_F
        assert torch.equal(time_F[plain_F < 1], plain_F[plain_F < 1])
        assert time_F[0] == 1
        assert tau >= 1 or not changed_F.any()
        finished_F = (plain_F == 1) & ~given_F
        if tau >= 1 and finished_F.any():
            assert bool(changed_F.any()) == bool(changed_F[finished_F].all())
            refilled += bool(changed_F.any())
            late += 1
            times += time_F[changed_F].tolist()
    assert abs(refilled / late - 0.6) < 4 * (0.6 * 0.4 / late) ** 0.5
    drawn = torch.tensor(times).sort().values
    steps = torch.arange(len(drawn)) / len(drawn)
    assert float((drawn - steps).abs().max()) < 1.63 / len(drawn) ** 0.5


def test_content_is_never_looked_at() -> None:
    """Zeros, -1, huge values and repeated frames give the same structure and exact context."""
    base = torch.randn(7, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    fills = [base, base * 0, base * 0 - 1, base * 1e6, base[:1].expand(7, -1, -1, -1)]
    for kind in KINDS:
        for seed in range(20):
            shapes = set()
            for latent in fills:
                generator = torch.Generator().manual_seed(seed)
                context = draw_context(7, only(kind), generator)
                if context is None:
                    continue
                pair = draw(latent, context, Flowception(), generator)
                if pair is None:
                    continue
                state, target = pair
                tensors = (state.time_F, state.role_F, target.missing_F, target.total_B)
                shapes.add(tuple(tuple(t.tolist()) for t in tensors))
                given = state.role_F != Role.GENERATED
                assert torch.equal(state.latent_FCHW[given], latent[torch.tensor(context)])
            assert len(shapes) <= 1


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "x"}, {"shift": 0.0}, {"shift": float("inf")}, {"shift": float("nan")},
     {"late": 0.0}, {"late": 1.0}, {"late": float("nan")}, {"fill": 1.1}, {"fill": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Flowception(**settings)


def test_where_a_state_says_tau_0_no_frame_has_appeared(generator: torch.Generator) -> None:
    """Half of the frames have by a ``tau`` of 1e-10; a state holds it in single precision."""
    process = Flowception(schedule="power:0.01")
    early = 0
    for _ in range(3000):
        pair = draw(torch.zeros(9, 1, 1, 1), [False] * 9, process, generator)
        if pair is not None and float(pair[0].tau_B) == 0:
            early += 1
            assert pair[0].lengths == (1,)
    assert early > 30


@pytest.mark.parametrize("schedule", ["linear", "power:0.1", "power:2"])
@pytest.mark.parametrize("late", [0.1, 0.5, 0.9])
def test_late_is_the_share_of_draws_after_the_last_insertion(
    late: float, schedule: str, generator: torch.Generator
) -> None:
    """Before it most draws are even in ``tau``, a tenth in the share of frames there are."""
    process = Flowception(late=late, schedule=schedule)
    drawn = torch.tensor([process.draw_tau(torch.zeros(1), generator) for _ in range(4000)])
    after = drawn >= 1
    deviation = (late * (1 - late) / len(drawn)) ** 0.5
    assert abs(float(after.double().mean()) - late) < 4 * deviation
    early = drawn[~after]
    law = 0.9 * early + 0.1 * parse_schedule(schedule).kappa(early)
    for part in (law, drawn[after] - 1):  # uniform
        edge = 1.63 / len(part) ** 0.5  # Kolmogorov and Smirnov's, at the level of 1 %
        steps = torch.arange(len(part)) / len(part)
        assert float((part.sort().values - steps).abs().max()) < edge


def test_oracle_of_nothing_visible_knows_the_law() -> None:
    """A check of the oracle: at tau 0 with no frame its law of sizes is the law of lengths."""
    given = empty()
    state = FrameState(
        given.latent_FCHW, torch.zeros(0), torch.zeros(0).long(), torch.zeros(1),
        torch.tensor([True]), (0,),
    )  # fmt: skip
    said = ClipOracle(AR1_LAW, ar1_mean, ar1_cov, num_start=0)(state, [0])
    law = said.size_logits_BK[0].softmax(-1)
    assert {n: pytest.approx(float(law[n])) for n in AR1_LAW} == AR1_LAW
    mean = sum(n * p for n, p in AR1_LAW.items())
    assert float(said.log_missing_first_B.exp()) == pytest.approx(mean)
    assert blank(state, torch.zeros(0), torch.zeros(1), law[None]).velocity_FCHW.shape[0] == 0


@pytest.mark.parametrize(
    ("context", "given", "keyframes"),
    [
        ("1...", "1...", "...."),
        ("1..1", "1...1", "....k"),
        ("..11", "...11", "...k."),
        ("1.1.1", "1..1..1", "...k..k"),
        ("....", "....", "...."),
        (".1", "..1", "..k"),
    ],
)
def test_given_pictures_that_others_may_come_before_stand_beside(
    context: str, given: str, keyframes: str
) -> None:
    """Right of the group that ends with them, which is to be generated; as a sampler is asked."""
    latent_FCHW = torch.arange(len(context)).float()[:, None, None, None].expand(-1, 1, 2, 2)
    asked = [one == "1" for one in context]
    rows, is_given, stands = beside(latent_FCHW, asked, lambda f: torch.full((1, 2, 2), 100.0 + f))
    assert "".join(".1"[one] for one in is_given) == given
    assert "".join(".k"[one] for one in stands) == keyframes
    own = [one for one, k in zip(rows[:, 0, 0, 0].tolist(), stands, strict=True) if not k]
    assert own == list(range(len(context)))
    alone = [one for one, k in zip(rows[:, 0, 0, 0].tolist(), stands, strict=True) if k]
    assert alone == [100.0 + f for f, one in enumerate(asked) if one and f and not asked[f - 1]]


@pytest.mark.parametrize("process", [Flowception(), Flowception(first=True, fill=1.0, late=0.8)])
def test_keyframes_are_visible_clean_and_no_targets(
    process: Flowception, generator: torch.Generator
) -> None:
    latent_FCHW = torch.full((4, 1, 2, 2), 5.0)
    rows, given, stands = beside(latent_FCHW, [True, False, False, True], lambda _: latent_FCHW[0])
    for _ in range(20):
        drawn = draw(rows, given, process, generator, stands)
        if drawn is None:
            continue
        state, target = drawn
        assert state.keyframe_F.tolist()[0] is False
        assert state.keyframe_F.tolist()[-1] is True
        assert state.role_F[-1] == Role.PASSIVE
        assert float(state.latent_FCHW[-1].min()) == 5.0
        assert int(target.total_B) + state.lengths[0] == 5
        assert not bool((state.keyframe_F & state.flowing_F).any())
