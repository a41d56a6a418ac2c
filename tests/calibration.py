"""Does a prediction agree with the process's own draws, but for noise?

Residuals of targets against an exact oracle must be orthogonal to every function of the state, and
the law of missing frames must be calibrated.
"""

from __future__ import annotations

import functools
from dataclasses import fields

import torch
from oracle import AR1_LAW, ClipOracle, ar1_clip, ar1_cov, ar1_mean, draw_length
from torch import Tensor

from flowcept.data.contexts import draw_context
from flowcept.process import forward
from flowcept.process.forward import Flowception, Target, draw
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Prediction, Role
from flowcept.settings import ContextMixture

KINDS = [f.name for f in fields(ContextMixture)]

# 4,000 clips, about 3,500 draws with something to learn. Some 50 functions are looked at in each of
# eight cases: of 400 normal deviations one is over 4.5 with probability .003, and seeds are fixed.
CLIPS, TOLERANCE = 4000, 4.5

CASES = [
    ("none", Flowception()),
    ("none", Flowception(schedule="power:3", shift=2.0)),
    ("none", Flowception(schedule="power:2")),
    ("none", Flowception(late=0.2)),
    ("first", Flowception()),
    ("first_last", Flowception(shift=0.5)),
    ("alternate", Flowception()),
    ("first_k", Flowception(schedule="power:0.5")),
    ("last_k", Flowception()),
    ("none", Flowception(fill=0.75)),
    ("first_last", Flowception(fill=1.0, shift=2.0)),
    ("none", Flowception(first=True)),
    ("none", Flowception(first=True, fill=0.5, schedule="power:2")),
    ("first", Flowception(first=True)),
    ("last_k", Flowception(first=True, fill=0.5)),
    ("none", Flowception(planned=True)),
    ("first_last", Flowception(first=True, planned=True, fill=0.5, schedule="power:0.5")),
]
IDS = [
    f"{kind}-{p.schedule}-{p.late}-{p.fill}{'-first' * p.first}{'-planned' * p.planned}"
    for kind, p in CASES
]


def only(kind: str) -> ContextMixture:
    """A mixture of one kind of context."""
    return ContextMixture(**{name: float(name == kind) for name in KINDS})


def fresh_draws(
    kind: str, process: Flowception, clips: int, seed: int
) -> tuple[FrameState, Target]:
    """States of ``clips`` clips of the AR(1) law; a draw of None goes on to the next clip."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(clips):
        n = draw_length(AR1_LAW, generator)
        context = draw_context(n, only(kind), generator)
        pair = None
        if context is not None:
            pair = draw(ar1_clip(n, generator), context, process, generator)
        pairs += [pair] if pair is not None else []
    return forward.concat(pairs)


draws = functools.cache(fresh_draws)  # several tests look at the same ones


def oracle_of(kind: str, process: Flowception) -> ClipOracle:
    """Who knows the law of these draws."""
    schedule = parse_schedule(process.schedule)
    return ClipOracle(
        AR1_LAW, ar1_mean, ar1_cov, kind, schedule, shift=process.shift, first=process.first
    )


def deviations(
    state: FrameState, target: Target, said: Prediction, missing_BK: Tensor
) -> dict[str, float]:
    """Standard errors from zero of residuals times functions of the state, summed per clip."""
    clip_F, clips = state.clip_F, len(state.lengths)
    x_F, t_F, tau_F = state.latent_FCHW[:, 0, 0, 0], state.time_F, state.tau_B[state.clip_F]
    count_F = torch.tensor(state.lengths)[clip_F].float()
    starts = torch.tensor([0, *state.lengths[:-1]]).cumsum(0)
    first_F = torch.zeros_like(x_F).index_fill(0, starts, 1.0)
    left_F = torch.where(first_F == 1, 0.0, x_F.roll(1))
    of_state = {
        "1": torch.ones_like(x_F), "x": x_F, "x^2": x_F**2, "time": t_F, "x time": x_F * t_F,
        "tau": tau_F, "x tau": x_F * tau_F, "visible": count_F, "first": first_F,
        "left": left_F, "x left": x_F * left_F, "early": (t_F < 0.3) * 1.0,
        "role": (state.role_F == Role.GENERATED) * 1.0,
    }  # fmt: skip
    velocity_F = (target.velocity_FCHW - said.velocity_FCHW)[:, 0, 0, 0] * state.flowing_F
    early_F = state.open_F & state.asked_B[clip_F]
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
    early_B = state.asked_B
    open_B = state.open_first_B & early_B
    residual_B = torch.where(open_B, target.missing_first_B - said.log_missing_first_B.exp(), 0.0)
    shown_B = torch.tensor(state.lengths).float()
    law_BK = missing_BK.softmax(-1)
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


def worst(found: dict[str, float], prefix: str = "") -> tuple[float, str]:
    """The largest deviation, and of what, among those whose name begins so."""
    return max((z, name) for name, z in found.items() if name.startswith(prefix))
