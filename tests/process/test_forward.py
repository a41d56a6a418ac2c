"""The forward process against exact oracles, and the rules of contexts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import fields, replace

import pytest
import torch
from oracle import (
    AR1_LAW,
    ClipOracle,
    ar1_clip,
    ar1_cov,
    ar1_mean,
    blank,
    cut,
    draw_length,
    empty,
)
from torch import Tensor

from flowcept.errors import UserError
from flowcept.process import forward as process
from flowcept.process.forward import ProcessConfig, Target, draw, draw_context, roles_of
from flowcept.process.sampler import Given, sample_steps
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Prediction, Role
from flowcept.settings import ContextMixture, SampleConfig

KINDS = [f.name for f in fields(ContextMixture)]


def only(kind: str) -> ContextMixture:
    return ContextMixture(**{name: float(name == kind) for name in KINDS})


def draws(
    kind: str, config: ProcessConfig, clips: int, seed: int
) -> tuple[FrameState, Target, ClipOracle]:
    """States of ``clips`` clips of the AR(1) law; a draw of None goes on to the next clip."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(clips):
        n = draw_length(AR1_LAW, generator)
        context = draw_context(n, only(kind), generator)
        pair = None
        if context is not None:
            pair = draw(ar1_clip(n, generator), context, config, generator)
        pairs += [pair] if pair is not None else []
    oracle = ClipOracle(
        AR1_LAW, ar1_mean, ar1_cov, kind, parse_schedule(config.schedule), config.num_start,
        config.shift,
    )  # fmt: skip
    return *process.concat(pairs), oracle


def deviations(state: FrameState, target: Target, said: Prediction) -> dict[str, float]:
    """Standard errors from zero of residuals times functions of the state, summed per clip."""
    clip_F, clips = state.clip_F, len(state.lengths)
    x_F, t_F, tau_F = state.latent_FCHW[:, 0, 0, 0], state.time_F, state.tau_B[state.clip_F]
    count_F = torch.tensor(state.lengths)[clip_F].float()
    first_F = (state.index_F == 0).float()
    left_F = torch.where(first_F == 1, 0.0, x_F.roll(1))
    of_state = {
        "1": torch.ones_like(x_F), "x": x_F, "x^2": x_F**2, "time": t_F, "x time": x_F * t_F,
        "tau": tau_F, "x tau": x_F * tau_F, "visible": count_F, "first": first_F,
        "left": left_F, "x left": x_F * left_F, "early": (t_F < 0.3) * 1.0,
        "role": (state.role_F == Role.GENERATED) * 1.0,
    }  # fmt: skip
    velocity_F = (target.velocity_FCHW - said.velocity_FCHW)[:, 0, 0, 0] * state.flowing_F
    early_F = state.open_F & (tau_F < 1)
    missing_F = torch.where(early_F, target.missing_F - said.log_missing_F.exp(), 0.0)
    result = {}

    def note(name: str, residual_B: Tensor) -> None:
        residual_B = residual_B.double()
        spread = residual_B.std() / clips**0.5
        result[name] = abs(float(residual_B.mean() / spread)) if spread > 0 else 0.0

    for name, f_F in of_state.items():
        for kind, residual_F in (("velocity", velocity_F), ("missing", missing_F)):
            per_clip = torch.zeros(clips, dtype=torch.float64)
            note(f"{kind} * {name}", per_clip.index_add_(0, clip_F, (residual_F * f_F).double()))
    early_B = state.tau_B < 1
    open_B = state.open_first_B & early_B
    residual_B = torch.where(open_B, target.missing_first_B - said.log_missing_first_B.exp(), 0.0)
    shown_B = torch.tensor(state.lengths).float()
    law_BK = said.count_logits_BK.softmax(-1)
    of_clip = {
        "1": torch.ones(clips),
        "tau": state.tau_B,
        "visible": shown_B,
        "tau^2": state.tau_B**2,
    }
    for name, f_B in of_clip.items():
        note(f"missing first * {name}", residual_B * f_B)
        for k in range(law_BK.shape[1]):
            calibration_B = ((target.total_B == k) * 1.0 - law_BK[:, k]) * early_B
            note(f"P({k} missing) * {name}", calibration_B * f_B)
    return result


CASES = [
    ("none", ProcessConfig()),
    ("none", ProcessConfig(schedule="cosine", num_start=0, shift=2.0)),
    ("none", ProcessConfig(schedule="power:2", num_start=2)),
    ("none", ProcessConfig(late=0.2)),
    ("first", ProcessConfig()),
    ("first_last", ProcessConfig(shift=0.5)),
    ("alternate", ProcessConfig()),
    ("first_k", ProcessConfig(schedule="power:0.5")),
    ("last_k", ProcessConfig()),
]
IDS = [f"{kind}-{config.schedule}-{config.late}" for kind, config in CASES]
# 4,000 clips, about 3,500 draws with something to learn. Some 50 functions are looked at in each of
# eight cases: of 400 normal deviations one is over 4.5 with probability .003, and seeds are fixed.
CLIPS, TOLERANCE = 4000, 4.5


@pytest.mark.parametrize(("kind", "config"), CASES, ids=IDS)
def test_targets_are_the_oracle_plus_noise(kind: str, config: ProcessConfig) -> None:
    """``target - oracle`` is orthogonal to functions of the state, and the posterior calibrated."""
    state, target, oracle = draws(kind, config, CLIPS, seed=3)
    worst = deviations(state, target, oracle(state, range(len(state.lengths))))
    assert max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


def size_logits(state: FrameState) -> Tensor:
    """The law of generated frames behind the given ones of each clip, ``[B, K]``."""
    given_B = [int(part.sum()) for part in state.given_F.long().split(state.lengths)]
    logits_BK = torch.full((len(given_B), max(AR1_LAW) + 1), process.BEYOND)
    for row, given in enumerate(given_B):
        for n, p in AR1_LAW.items():
            if n > given:
                logits_BK[row, n - given] = math.log(p)
    return logits_BK


@pytest.mark.parametrize(("kind", "config"), CASES, ids=IDS)
def test_the_law_of_sizes_is_all_that_a_posterior_needs(kind: str, config: ProcessConfig) -> None:
    """How many have appeared by when turns it into a calibrated posterior of the missing ones."""
    state, target, oracle = draws(kind, config, CLIPS, seed=5)
    if kind == "alternate":  # the given frames say how many there are
        given_B = torch.tensor([int(p.sum()) for p in state.given_F.long().split(state.lengths)])
        logits_BK = torch.full((len(given_B), max(AR1_LAW) + 1), process.BEYOND)
        logits_BK[torch.arange(len(given_B)), given_B - 1] = 0
    else:
        logits_BK = size_logits(state)
    said = replace(
        oracle(state, range(len(state.lengths))),
        count_logits_BK=process.missing_logits(logits_BK, state, config),
    )
    found = deviations(state, target, said)
    worst = {name: z for name, z in found.items() if name.startswith("P(")}
    assert max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("mistake", ["start frame forgotten", "wrong schedule", "no evidence"])
def test_a_mistake_in_the_posterior_is_seen(mistake: str) -> None:
    config = ProcessConfig()
    state, target, oracle = draws("none", config, CLIPS, seed=5)
    wrong = {
        "start frame forgotten": ProcessConfig(num_start=0),
        "wrong schedule": ProcessConfig(schedule="power:2"),
        "no evidence": ProcessConfig(kind="full-sequence"),
    }[mistake]
    said = oracle(state, range(len(state.lengths)))
    said = replace(said, count_logits_BK=process.missing_logits(size_logits(state), state, wrong))
    found = deviations(state, target, said)
    assert max(z for name, z in found.items() if name.startswith("P(")) > TOLERANCE


def test_sizes_out_of_reach_are_unlikely_and_finite() -> None:
    """With more frames visible than the law knows, and after ``tau = 1``."""
    state, _, _ = draws("none", ProcessConfig(), 200, seed=6)
    logits_BK = process.missing_logits(torch.zeros(len(state.lengths), 3), state, ProcessConfig())
    assert logits_BK.isfinite().all()
    visible_B1 = torch.tensor(state.lengths)[:, None]
    beyond_BK = visible_B1 + torch.arange(3) > 2
    assert (logits_BK[beyond_BK] < -5000).all()
    assert (logits_BK[~beyond_BK] > -100).all()


@pytest.mark.parametrize(
    "mistake",
    ["time reversed", "rate fed as count", "tau depends on delays", "redrawn for short clips",
     "start frame forgotten", "wrong schedule", "shift forgotten"],
)  # fmt: skip
def test_planted_mistake_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProcessConfig()
    if mistake == "tau depends on delays":
        monkeypatch.setattr(
            process, "draw_tau", lambda d, _, g: float(torch.rand((), generator=g) * d.max())
        )  # fmt: skip
    if mistake == "redrawn for short clips":
        original = process.draw_tau
        monkeypatch.setattr(
            process, "draw_tau", lambda d, c, g: original(d, c, g) / (1 if len(d) > 3 else 4)
        )
    state, target, oracle = draws("none", config, CLIPS, seed=4)
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
    worst = max(deviations(state, target, said).values())
    assert worst > TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_obey_the_rules(kind: str, generator: torch.Generator) -> None:
    """Passive exactly where nothing is missing to the right; gap 0 closed exactly by context."""
    config, seen = ProcessConfig(), 0
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
        pair = draw(torch.randn(n, 1, 1, 1, generator=generator), context, config, generator)
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
@pytest.mark.parametrize("num_start", [0, 1, 3])
def test_training_and_sampling_start_alike(
    kind: str, num_start: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """At ``tau = 0`` a draw is, up to the noise, what the sampler starts from."""
    monkeypatch.setattr(process, "draw_tau", lambda *_: 0.0)
    config, seen = ProcessConfig(num_start=num_start), 0
    for _ in range(60):
        n = int(torch.randint(2, 16, (), generator=generator))
        context = draw_context(n, only(kind), generator)
        if context is None:
            continue
        seen += 1
        clip = torch.randn(n, 1, 1, 1, generator=generator)
        state, _target = draw(clip, context, config, generator)
        runs = [False] * (sum(context) + 1)  # which gaps between context frames miss something
        place = 0
        for now in context:
            place += now
            runs[place] |= not now
        start = Given(clip[torch.tensor(context)], tuple(runs))
        steps = sample_steps(
            lambda *_: None, [start], [generator], SampleConfig(frames=n), config, max_length=n
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


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_behind_a_context_are_the_data_cut_to_those_that_fit(
    kind: str, generator: torch.Generator
) -> None:
    """6,000 clips: per number of context frames, chi-square within five deviations of its mean.

    Runs have some eighty keys, so there eight deviations: one in ten thousand for a single key.
    """
    law = {n: w / 40 for n, w in {4: 6, 7: 9, 9: 12, 12: 8, 15: 5}.items()}
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for _ in range(6000):
        n = draw_length(law, generator)
        context = draw_context(n, only(kind), generator)
        if context is None:
            continue
        shown = [f for f in range(n) if context[f]]
        starts = [f for f in shown if f == 0 or not context[f - 1]]
        runs = [next(e for e in range(s, n + 1) if e == n or not context[e]) - s for s in starts]
        # Whether either end is open is seen by a model, so the law must hold given that too.
        edges = (not context[0], not context[-1]) if kind == "runs" else ()
        counts[(len(runs) - 1, len(shown), *edges) if kind == "runs" else (len(shown),)][n] += 1
    assert counts
    for key, count in counts.items():
        frames = sum(key)
        least = {
            "none": 1, "first": 2, "first_last": 3, "keyframes": frames + 1,
            "runs": frames, "first_k": frames + 1, "last_k": frames + 1,
        }.get(kind)  # fmt: skip
        if kind == "alternate":
            assert set(count) == {2 * frames - 1}
            continue
        expected = cut(law, least)
        total = sum(count.values())
        assert set(count) <= set(expected)
        chi = sum((count[n] - total * p) ** 2 / (total * p) for n, p in expected.items())
        free = max(len(expected) - 1, 1)
        if total * min(expected.values()) > 5:
            deviations = 8 if kind == "runs" else 5
            assert chi < free + deviations * (2 * free) ** 0.5, (key, dict(count))


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
                pair = draw(latent, context, ProcessConfig(), generator)
                if pair is None:
                    continue
                state, target = pair
                tensors = (state.time_F, state.role_F, target.missing_F, target.total_B)
                shapes.add(tuple(tuple(t.tolist()) for t in tensors))
                given = state.role_F != Role.GENERATED
                assert torch.equal(state.latent_FCHW[given], latent[torch.tensor(context)])
            assert len(shapes) <= 1


def test_full_sequence_shows_every_frame(generator: torch.Generator) -> None:
    config = ProcessConfig(kind="full-sequence")
    for _ in range(50):
        state, target = draw(torch.zeros(5, 1, 1, 1), [True] + [False] * 4, config, generator)
        assert state.lengths == (5,)
        assert int(target.total_B) == 0
        assert len(set(state.time_F[1:].tolist())) == 1


@pytest.mark.parametrize("block", [1, 2])
def test_autoregressive_shows_clean_frames_and_one_block(
    block: int, generator: torch.Generator
) -> None:
    config = ProcessConfig(kind="autoregressive", block=block)
    for _ in range(100):
        pair = draw(torch.zeros(6, 1, 1, 1), [True] + [False] * 5, config, generator)
        if pair is None:
            continue
        state, target = pair
        flowing = state.flowing_F.nonzero().flatten().tolist()
        assert flowing == list(range(flowing[0], state.lengths[0]))
        assert len(flowing) <= block
        assert (flowing[0] - 1) % block == 0
        assert (target.missing_F[:-1] == 0).all()


@pytest.mark.parametrize(
    "settings",
    [{"kind": "x"}, {"schedule": "x"}, {"num_start": -1}, {"block": 0}, {"shift": 0.0},
     {"late": 0.0}, {"late": 1.0}, {"late": float("nan")},
     {"shift": float("inf")}, {"shift": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ProcessConfig(**settings)


def test_where_a_state_says_tau_0_no_frame_has_appeared(generator: torch.Generator) -> None:
    """Half of the frames have by a ``tau`` of 1e-10; a state holds it in single precision."""
    config = ProcessConfig(schedule="power:0.01")
    early = 0
    for _ in range(3000):
        pair = draw(torch.zeros(9, 1, 1, 1), [False] * 9, config, generator)
        if pair is not None and float(pair[0].tau_B) == 0:
            early += 1
            assert pair[0].lengths == (config.num_start,)
    assert early > 30


@pytest.mark.parametrize("schedule", ["linear", "cosine", "power:0.1", "power:2"])
@pytest.mark.parametrize("late", [0.1, 0.5, 0.9])
def test_late_is_the_share_of_draws_after_the_last_insertion(
    late: float, schedule: str, generator: torch.Generator
) -> None:
    """Before it most draws are even in ``tau``, a tenth in the share of frames there are."""
    config = ProcessConfig(late=late, schedule=schedule)
    drawn = torch.tensor([process.draw_tau(torch.zeros(1), config, generator) for _ in range(4000)])
    after = drawn >= 1
    deviation = (late * (1 - late) / len(drawn)) ** 0.5
    assert abs(float(after.double().mean()) - late) < 4 * deviation
    early = drawn[~after]
    law = 0.9 * early + 0.1 * parse_schedule(schedule).kappa(early)
    for part in (law, drawn[after] - 1):  # uniform
        edge = 1.63 / len(part) ** 0.5  # Kolmogorov and Smirnov's, at the level of 1 %
        steps = torch.arange(len(part)) / len(part)
        assert float((part.sort().values - steps).abs().max()) < edge


@pytest.mark.parametrize("weights", [{"none": -1.0}, dict.fromkeys(KINDS, 0.0)])
def test_impossible_mixtures_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match="weights"):
        ContextMixture(**weights)


def test_oracle_of_nothing_visible_knows_the_law() -> None:
    """A check of the oracle: at tau 0 with no frame its posterior is the law of lengths."""
    given = empty()
    state = FrameState(
        given.latent_FCHW, torch.zeros(0), torch.zeros(0).long(), torch.zeros(1),
        torch.tensor([True]), (0,),
    )  # fmt: skip
    said = ClipOracle(AR1_LAW, ar1_mean, ar1_cov, num_start=0)(state, [0])
    law = said.count_logits_BK[0].exp()
    assert {n: pytest.approx(float(law[n])) for n in AR1_LAW} == AR1_LAW
    mean = sum(n * p for n, p in AR1_LAW.items())
    assert float(said.log_missing_first_B.exp()) == pytest.approx(mean)
    assert blank(state, torch.zeros(0), torch.zeros(1), law[None]).velocity_FCHW.shape[0] == 0
