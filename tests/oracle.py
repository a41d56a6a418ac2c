"""Exact predictions for processes whose law is known: they stand in for the network in tests.

``LengthOracle`` knows the law of lengths alone. ``ClipOracle`` knows the whole law of short scalar
Gaussian clips and enumerates where the visible frames may lie in the clip. Both are written from
the definition of the process and share no code with it but the schedules. Like a network they say
the law of a clip's size, from which the process infers how many frames are missing.

Shape suffixes: F frames of all clips, B clips, G clips of equal shape, J ways in which the visible
frames may lie, M visible frames of a clip, K missing frames or sizes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from flowcept.process.forward import Flowception, Process
from flowcept.process.sampler import Model, latents_of, sample_steps
from flowcept.process.schedule import Schedule
from flowcept.process.state import FrameState, GapTables, Given, Prediction, Role
from flowcept.settings import SampleConfig

Law = Mapping[int, float]  # probability of each number of frames
Tuples = Mapping[tuple[int, ...], float]  # the same of the numbers in all gaps, left to right


def empty(shape: tuple[int, int, int] = (1, 1, 1)) -> Given:
    """What text-to-video starts from."""
    return Given(torch.zeros(0, *shape), (True,))


def generators(count: int, seed: int) -> list[torch.Generator]:
    """One generator per clip."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + clip) for clip in range(count)]


def sample(*args: Any, **settings: Any) -> list[Tensor]:
    """The latents of each clip when ``sample_steps`` is done."""
    return latents_of(sample_steps(*args, **settings))


def cut(law: Law, low: int = 0, high: int = 10**9) -> dict[int, float]:
    """The law between two bounds, both included, renormalised."""
    kept = {n: p for n, p in law.items() if low <= n <= high}
    return {n: p / sum(kept.values()) for n, p in kept.items()}


def total_variation(found: Sequence[Any], law: Mapping[Any, float]) -> float:
    """Half the absolute difference between the frequencies of what was found and the law."""
    counts = Counter(found)
    return 0.5 * sum(abs(counts[n] / len(found) - law.get(n, 0.0)) for n in {*law, *counts})


def variation_floor(law: Mapping[Any, float], clips: int, draws: int = 2000) -> tuple[float, float]:
    """Mean and standard deviation of the total variation of ``clips`` exact draws: the floor."""
    p = torch.tensor(list(law.values()), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(p.expand(draws, -1), clips, replacement=True, generator=generator)
    once = p.new_ones(1, 1).expand_as(rows)
    counts = p.new_zeros(draws, len(p)).scatter_add_(1, rows, once)
    distance = 0.5 * (counts / clips - p).abs().sum(1)
    return float(distance.mean()), float(distance.std())


def bound(law: Mapping[Any, float], clips: int) -> float:
    """A total variation that exact draws of so many clips stay under, by five deviations."""
    mean, deviation = variation_floor(law, clips)
    return mean + 5 * deviation


def blank(state: FrameState, log_F: Tensor, log_B: Tensor, logits_BK: Tensor) -> Prediction:
    """A prediction whose velocity is zero."""
    return Prediction(torch.zeros_like(state.latent_FCHW), log_F, log_B, logits_BK)


def per_clip(state: FrameState, marked_F: Tensor) -> Tensor:
    """How many frames of each clip are marked, ``[B]`` int64."""
    ends = torch.tensor([0, *state.lengths]).cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.long), marked_F.long().cumsum(0)])[ends].diff()


def sizes_of(
    missing_BK: Tensor,
    state: FrameState,
    schedule: Schedule,
    num_start: int = 1,
    *,
    first: bool = False,
) -> Tensor:
    """The law of sizes from which Bayes' rule infers this law of missing frames; logarithms.

    Of ``a + k`` frames that were hidden at first ``a`` have appeared, each with probability kappa:
    binomially many. What ``k`` does not change is left out, as Bayes' rule leaves it out.
    """
    generated_B1 = per_clip(state, state.role_F == Role.GENERATED)[:, None]
    gaps_B = per_clip(state, state.role_F == Role.ACTIVE) + state.open_first_B.long()
    given_B = per_clip(state, state.role_F != Role.GENERATED)
    starts_B1 = num_start * (given_B == 0 if first else gaps_B == 1).long()[:, None]
    kappa_B1 = schedule.kappa(state.tau_B.double().clamp(max=1))[:, None]
    count_K = torch.arange(missing_BK.shape[1]).double()

    appeared_B1 = (generated_B1 - starts_B1).clamp(min=0)
    ways_BK = torch.lgamma(appeared_B1 + count_K + 1) - torch.lgamma(count_K + 1)
    hidden_BK = count_K * (1 - kappa_B1).clamp(min=1e-7).log()
    size_BK = missing_BK - ways_BK - hidden_BK
    count_BK = torch.arange(missing_BK.shape[1]) - generated_B1  # missing, of each size
    return torch.where(count_BK < 0, -math.inf, size_BK.gather(1, count_BK.clamp(min=0)))


class Flat:
    """Velocity 1 everywhere and equal shares; the calls are counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        del finished_F, may_rest
        self.calls += 1
        return Prediction(
            torch.ones_like(state.latent_FCHW), torch.zeros_like(state.time_F),
            torch.zeros(len(clips)), torch.zeros(len(clips), 9),
        )  # fmt: skip


@dataclass
class LengthOracle:
    """Knows the law of lengths, whatever the state; all open gaps have equal shares.

    Holds where the given frames leave one gap open at first (a start frame appears there), or none
    is given at all. What it says of gaps is the exact mean of the missing count.
    """

    law: Law
    schedule: Schedule = field(default_factory=Schedule)
    num_start: int = 1
    calls: int = 0

    def posterior(self, visible: Tensor, given: Tensor, kappa: Tensor) -> Tensor:
        """``[B, K]`` log-law, up to a constant, of the total missing count."""
        largest = max(self.law)
        logits_BK = torch.full((len(visible), largest + 1), -math.inf, dtype=torch.float64)
        for n, p in self.law.items():
            free, shown = (n - given - self.num_start), (visible - given - self.num_start)
            hidden = n - visible
            ok = (hidden >= 0) & (shown >= 0) & (p > 0)
            log_ways = (
                torch.lgamma(free + 1.0)
                - torch.lgamma(shown.clamp(min=0) + 1.0)
                - torch.lgamma(hidden.clamp(min=0) + 1.0)
            )
            log_p = math.log(p or 1) + log_ways
            log_p = log_p + torch.xlogy(shown, kappa) + torch.xlogy(hidden, 1 - kappa)
            rows = torch.arange(len(visible))[ok]
            logits_BK[rows, hidden[ok]] = log_p[ok]
        return logits_BK

    def missing(self, state: FrameState) -> Tensor:
        """``[B, K]`` log-law, up to a constant, of the total missing count of a state."""
        given_B = per_clip(state, state.role_F != Role.GENERATED)
        kappa_B = self.schedule.kappa(state.tau_B.double().clamp(max=1))
        return self.posterior(torch.tensor(state.lengths), given_B, kappa_B)

    def sizes(self, state: FrameState) -> Tensor:
        """``[B, K]`` log-law of the number of generated frames."""
        size_BK = torch.full((len(state.lengths), max(self.law) + 1), -math.inf).double()
        given_B = per_clip(state, state.role_F != Role.GENERATED)
        for n, p in self.law.items():
            rows = (given_B <= n).nonzero().flatten()
            size_BK[rows, n - given_B[rows]] = math.log(p)
        return size_BK

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        del finished_F, may_rest
        assert len(clips) == len(state.lengths)
        self.calls += 1
        law_BK = self.missing(state).softmax(-1).nan_to_num(0)
        mean_B = (law_BK * torch.arange(law_BK.shape[1])).sum(1)
        open_B = per_clip(state, state.open_F) + state.open_first_B
        log_B = (mean_B / open_B.clamp(min=1)).log()
        return blank(state, log_B[state.clip_F], log_B, self.sizes(state))


def scalar_flow(x_M: Tensor, s_M: Tensor, mean_M: Tensor, cov_MM: Tensor) -> tuple[Tensor, Tensor]:
    """Of frames ``x = s data + (1 - s) noise``, data ``N(mean, cov)``: velocity and log-density.

    ``v = m + (Sigma D - (I-D)) (D Sigma D + (I-D)^2)^-1 (x - D m)`` with ``D = diag(s)``; any
    leading dimensions.
    """
    noise_M = 1 - s_M
    x_cov = s_M[..., :, None] * cov_MM * s_M[..., None, :] + torch.diag_embed(noise_M**2)
    v_cov = cov_MM * s_M[..., None, :] - torch.diag_embed(noise_M)
    centred = (x_M - s_M * mean_M)[..., None]
    factor = torch.linalg.cholesky(x_cov)
    solved = torch.cholesky_solve(centred, factor)
    velocity = mean_M + (v_cov @ solved)[..., 0]
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return velocity, -0.5 * ((centred * solved).sum((-2, -1)) + log_det)


def given_prior(kind: str, n: int, context: tuple[bool, ...]) -> float:
    """Probability that a clip of n frames shows these as context, up to a constant factor."""
    count = sum(context)
    wanted = {
        "none": [],
        "first": [0],
        "first_last": [0, n - 1],
        "alternate": list(range(0, n, 2)) if n % 2 else None,
        "first_k": list(range(count)) if 1 <= count <= 8 else None,
        "last_k": list(range(n - count, n)) if 1 <= count <= 8 else None,
    }[kind]
    fits = wanted is not None and count < n and context == tuple(f in wanted for f in range(n))
    return float(fits)


@dataclass
class ClipOracle:
    """Knows everything of scalar Gaussian clips: ``mean(n)`` ``[n]``, ``cov(n)`` ``[n, n]``."""

    law: Law
    mean: Callable[[int], Tensor]
    cov: Callable[[int], Tensor]
    kind: str = "none"
    schedule: Schedule = field(default_factory=Schedule)
    num_start: int = 1
    shift: float = 1.0
    first: bool = False  # clips without given frames start with their first one, others with none
    calls: int = 0

    def __call__(
        self,
        state: FrameState,
        clips: Sequence[int],
        finished_F: Tensor | None = None,
        may_rest: bool = False,
    ) -> Prediction:
        del finished_F, may_rest
        assert len(clips) == len(state.lengths)
        self.calls += 1
        x_F, t_F = state.latent_FCHW[:, 0, 0, 0].double(), state.time_F.double()
        s_F = t_F / (t_F + self.shift * (1 - t_F))
        starts = [sum(state.lengths[:b]) for b in range(len(state.lengths) + 1)]
        roles, first = state.role_F.tolist(), state.open_first_B.tolist()
        indices = [-1] * len(x_F) if state.index_F is None else state.index_F.tolist()
        totals = [-1] * len(first) if state.total_B is None else state.total_B.tolist()
        groups: dict[tuple[tuple[int, ...], bool, tuple[int, ...], int], list[int]] = {}
        for b in range(len(state.lengths)):
            own = slice(starts[b], starts[b + 1])
            key = (tuple(roles[own]), first[b], tuple(indices[own]), totals[b])
            groups.setdefault(key, []).append(b)
        velocity_F, missing_F = torch.zeros_like(x_F), torch.zeros_like(x_F)
        missing_B = torch.zeros(len(state.lengths), dtype=torch.float64)
        law_BK = torch.zeros(len(state.lengths), max(self.law) + 1, dtype=torch.float64)
        for (role_M, open_first, *plan), members in groups.items():
            rows = torch.tensor([range(starts[b], starts[b] + len(role_M)) for b in members])
            rows = rows.reshape(len(members), len(role_M)).long()
            kappa_G = self.schedule.kappa(state.tau_B[members].double().clamp(max=1))
            velocity_GM, gaps_GM, law_GK = self._group(
                x_F[rows], s_F[rows], kappa_G, role_M, open_first, *plan
            )
            velocity_F[rows], missing_F[rows] = velocity_GM, gaps_GM[:, 1:]
            missing_B[members], law_BK[members] = gaps_GM[:, 0], law_GK
        velocity_FCHW = velocity_F.to(state.latent_FCHW).view(-1, 1, 1, 1)
        size_BK = sizes_of(law_BK.log(), state, self.schedule, self.num_start, first=self.first)
        return Prediction(velocity_FCHW, missing_F.log(), missing_B.log(), size_BK)

    def _group(
        self,
        x_GM: Tensor,
        s_GM: Tensor,
        kappa_G: Tensor,
        role_M: tuple[int, ...],
        first: bool,
        index_M: tuple[int, ...],
        total: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity ``[G, M]``, missing by gap ``[G, M+1]`` and law of the total ``[G, K]``.

        Where there is a plan, ``total`` is no -1, one way is left.
        """
        m = len(role_M)
        ways = [
            (n, places, weight)
            for n in self.law
            for places in combinations(range(n), m)
            if total < 0 or (n, places) == (total, index_M)
            if (weight := self._weight(n, places, role_M, first)) > 0
        ]
        assert ways, f"no clip looks like {role_M}, first gap open: {first}"
        n_J = torch.tensor([n for n, _, _ in ways])
        index_J = [torch.tensor(places, dtype=torch.long) for _, places, _ in ways]
        mean_JM = torch.stack([self.mean(n)[i] for (n, _, _), i in zip(ways, index_J, strict=True)])
        cov_JMM = torch.stack(
            [self.cov(n)[i][:, i] for (n, _, _), i in zip(ways, index_J, strict=True)]
        )
        velocity_GJM, log_GJ = scalar_flow(x_GM[:, None], s_GM[:, None], mean_JM, cov_JMM)
        log_GJ = log_GJ + torch.tensor([weight for _, _, weight in ways]).double().log()
        log_GJ = log_GJ + torch.xlogy((n_J - m).double(), 1 - kappa_G[:, None])
        posterior_GJ = log_GJ.softmax(1)
        edges_J = torch.stack([torch.tensor([-1, *places, n]) for n, places, _ in ways])
        gaps_JM = (edges_J.diff(dim=1) - 1).double()
        law_GK = torch.zeros(len(x_GM), max(self.law) + 1, dtype=torch.float64)
        law_GK.index_add_(1, n_J - m, posterior_GJ)
        return (
            (posterior_GJ[..., None] * velocity_GJM).sum(1),
            posterior_GJ @ gaps_JM,
            law_GK,
        )

    def _weight(
        self, n: int, places: tuple[int, ...], role_M: tuple[int, ...], first: bool
    ) -> float:
        """Prior weight of n frames with the visible ones at these places; 0 where it cannot be."""
        given = {p for p, role in zip(places, role_M, strict=True) if role != Role.GENERATED}
        context = tuple(f in given for f in range(n))
        roles = [
            Role.GENERATED
            if p not in given
            else Role.PASSIVE
            if p == n - 1 or p + 1 in given
            else Role.ACTIVE
            for p in places
        ]
        anchored = self.first and not given
        if list(role_M) != roles or first != (not context[0] and not anchored):
            return 0.0
        if self.first:
            shown = not anchored or places[:1] == (0,)
            return shown * self.law[n] * given_prior(self.kind, n, context)
        gaps = sum(not now and (f == 0 or context[f - 1]) for f, now in enumerate(context))
        hidden_or_not = n - len(given)
        num_start = self.num_start if gaps == 1 else 0
        if num_start > len(places) - len(given) or num_start > hidden_or_not:
            return 0.0
        chosen = math.comb(hidden_or_not, num_start)  # each set of start frames is as likely
        return self.law[n] * given_prior(self.kind, n, context) / chosen


def ar1_mean(n: int) -> Tensor:
    """Short clips lie low and long ones high, so that the content tells something of the length."""
    return torch.full((n,), 0.4 * (n - 4.5), dtype=torch.float64)


def ar1_cov(n: int, rho: float = 0.7, scale: float = 0.8) -> Tensor:
    """``scale^2 rho^|i-j|``."""
    index = torch.arange(n, dtype=torch.float64)
    return scale**2 * rho ** (index[:, None] - index[None]).abs()


AR1_LAW: Law = {3: 0.3, 4: 0.2, 5: 0.1, 6: 0.4}


def ar1_clip(n: int, generator: torch.Generator) -> Tensor:
    """One clip ``[n, 1, 1, 1]``."""
    factor = torch.linalg.cholesky(ar1_cov(n))
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return (ar1_mean(n) + factor @ noise).float().view(n, 1, 1, 1)


def draw_length(law: Law, generator: torch.Generator) -> int:
    p = torch.tensor(list(law.values()))
    return list(law)[int(torch.multinomial(p, 1, generator=generator))]


# --- joint laws of several gaps

# Two gaps that make up ten frames, mostly two and eight.
UNEVEN: Tuples = {(2, 8): 0.45, (8, 2): 0.45, (5, 5): 0.1}
THREE: Tuples = {(0, 1, 5): 0.3, (5, 0, 1): 0.3, (1, 5, 0): 0.2, (2, 2, 2): 0.1, (1, 1, 1): 0.1}
ALIKE: Tuples = {(a, 4 - a): 0.2 for a in range(5)}


def by_pictures(values: tuple[float, float]) -> Tuples:
    """Frames before, between and after two given ones of a clip of an AR(1) process."""
    places = [(n, i, j) for n in (5, 6, 7) for i in range(n) for j in range(i + 1, n)]
    weights = {}
    for n, i, j in places:
        pair = torch.tensor([i, j])
        cov = ar1_cov(n, 0.8, 1.0)[pair][:, pair]
        _, log_p = scalar_flow(torch.tensor(values).double(), torch.ones(2).double() - 1e-9,
                               torch.zeros(2).double(), cov)  # fmt: skip
        weights[i, j - i - 1, n - 1 - j] = float(log_p.exp()) / math.comb(n, 2)
    return {counts: w / sum(weights.values()) for counts, w in weights.items()}


# Each with its given frames.
JOINT_LAWS: dict[str, tuple[Tuples, Given]] = {
    "two gaps": (UNEVEN, Given(torch.zeros(3, 1, 1, 1), (False, True, True, False))),
    "three gaps": (THREE, Given(torch.zeros(4, 1, 1, 1), (False, True, True, True, False))),
    "all gaps open, by what is shown": (
        by_pictures((1.0, -0.6)), Given(torch.zeros(2, 1, 1, 1), (True, True, True)),
    ),
    "gaps alike": (ALIKE, Given(torch.zeros(3, 1, 1, 1), (False, True, True, False))),
}  # fmt: skip


def splits(
    model: Model,
    given: Given,
    config: SampleConfig,
    clips: int,
    seed: int,
    process: Process | None = None,
) -> list[tuple[int, ...]]:
    """How many frames each open gap of the given frames got, of every clip."""
    found = []
    for step in sample_steps(
        model, [given] * clips, generators(clips, seed), config, process or Flowception(),
        max_length=64,
    ):  # fmt: skip
        names = step.name_F.split(step.state.lengths)
        row_of = {clip: row for row, clip in enumerate(step.clips)}
        for clip in step.done:
            name_F = names[row_of[clip]]
            at = (name_F < len(given.latent_FCHW)).nonzero().flatten().tolist()
            counts = [b - a - 1 for a, b in itertools.pairwise([-1, *at, len(name_F)])]
            opened = zip(counts, given.open_gaps, strict=True)
            found.append(tuple(count for count, is_open in opened if is_open))
    return found


@dataclass
class Arrangements:
    """Clips of given frames in which the counts of the gaps between them have a joint law.

    ``law`` is over their tuples, gaps from left to right; frames show nothing. All that can be
    known of a state is how many frames are visible in each gap, so the law of what is missing, gap
    by gap, is a sum over tuples. ``count_logits`` stands for the tables of a network.
    """

    law: Tuples
    schedule: Schedule = field(default_factory=Schedule)
    shown: list[tuple[int, ...]] = field(default_factory=list)  # visible frames of gaps, as asked

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        del clips, finished_F, may_rest
        given, tau_B = state.given_F.split(state.lengths), state.tau_B.tolist()
        said = [self._said(tuple(f.tolist()), tau) for f, tau in zip(given, tau_B, strict=True)]
        log_missing, totals, features = zip(*said, strict=True)
        log_first_B = torch.tensor([log[0] for log in log_missing], dtype=torch.float64)
        log_F = torch.tensor([x for log in log_missing for x in log[1:]], dtype=torch.float64)
        sizes_BK = sizes_of(torch.stack(totals).log(), state, self.schedule)
        tables = GapTables(*(torch.zeros(self.largest + 1, self.largest + 1) for _ in range(3)))
        padded_BG2H = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return replace(
            blank(state, log_F, log_first_B, sizes_BK), gap_BG2H=padded_BG2H, tables=tables
        )

    @functools.lru_cache(maxsize=None)  # noqa: B019 - an oracle lives as long as its test
    def _said(self, given_F: tuple[bool, ...], tau: float) -> tuple[list[float], Tensor, Tensor]:
        """Of one clip: log-means by place, weights of total counts, features by place."""
        ends = [f for f, given in enumerate(given_F) if given] + [len(given_F)]
        first = (len(ends) - self.num_gaps) // 2  # 1 where nothing comes before or after
        shown = tuple(b - a - 1 for a, b in itertools.pairwise([-1, *ends]))
        shown = shown[first : first + self.num_gaps]
        stays = 1 - float(self.schedule.kappa(torch.tensor(tau).double().clamp(max=1)))
        weight = {
            hidden: p * math.prod(map(math.comb, counts, shown)) * max(stays, 1e-7) ** sum(hidden)
            for counts, p in self.law.items()
            if min(hidden := tuple(n - v for n, v in zip(counts, shown, strict=True))) >= 0
        }
        total_K = torch.full((self.largest + 1,), 1e-30, dtype=torch.float64)
        for hidden, w in weight.items():
            total_K[sum(hidden)] += w
        mean = [
            sum(w * hidden[g] for hidden, w in weight.items()) / max(sum(weight.values()), 1e-30)
            for g in range(self.num_gaps)
        ]
        gaps = [-1] * first + [g for g, v in enumerate(shown) for _ in range(v + 1)]
        gaps += [-1] * (len(given_F) + 1 - len(gaps))
        log_missing = [
            math.log(max(mean[g], 1e-30) / (shown[g] + 1)) if g >= 0 else -math.inf for g in gaps
        ]
        self.shown.append(shown)
        return log_missing, total_K, self._features(gaps, len(self.shown) - 1)

    @property
    def num_gaps(self) -> int:
        return len(next(iter(self.law)))

    @property
    def largest(self) -> int:
        return max(map(sum, self.law))

    def _features(self, gaps: Sequence[int], row: int) -> Tensor:
        """Of each place: row of ``shown``, gap, how many places of it are left; counts by gap."""
        width = 3 + self.num_gaps
        feature_G2H = torch.zeros(len(gaps), 2 * width, dtype=torch.float64)
        for place, gap in enumerate(gaps):
            if gap >= 0:
                feature_G2H[place, :3] = torch.tensor([row, gap, gaps[place:].count(gap)])
                feature_G2H[place, width + 3 + gap] = 1
        return feature_G2H

    def count_logits(
        self, entry_NH: Tensor, tables: GapTables, left_N: Tensor, total_N: Tensor, prior_N2: Tensor
    ) -> Tensor:
        """The exact law of a place's own count, in the form of ``compositions.count_logits``."""
        del prior_N2
        ((row, gap, places, *used),) = entry_NH.long().tolist()
        key = (self.shown[row], gap, places, tuple(used), int(left_N), int(total_N))
        law_K = self._own_count(*key)
        assert len(law_K) == tables.largest + 1
        return (law_K + 1e-30).log()[None]  # a mistaken sampler comes to states that cannot be

    @functools.lru_cache(maxsize=None)  # noqa: B019 - an oracle lives as long as its test
    def _own_count(
        self, shown: tuple[int, ...], gap: int, places: int, used: tuple[int, ...], left: int,
        total: int,
    ) -> Tensor:  # fmt: skip
        law_K = torch.zeros(self.largest + 1, dtype=torch.float64)
        for counts, p in self.law.items():
            hidden = [n - v for n, v in zip(counts, shown, strict=True)]
            fits = min(hidden) >= 0 and sum(hidden) == total and hidden[:gap] == list(used[:gap])
            for own in range(left + 1):
                rest = hidden[gap] - used[gap] - own
                if fits and rest >= 0:
                    ways = math.comb(rest + places - 2, places - 2) if places > 1 else rest == 0
                    later = math.prod(
                        math.comb(hidden[g] + shown[g], shown[g])
                        for g in range(gap + 1, self.num_gaps)
                    )
                    law_K[own] += p * ways * later
        return law_K

    __hash__ = object.__hash__


@dataclass
class Means:
    """What ``Arrangements`` say of means and sizes, and of joint laws nothing."""

    exact: Arrangements

    def __call__(self, *arguments: Any) -> Prediction:
        said = self.exact(*arguments)
        assert said.gap_BG2H is not None
        sizes = self.exact.largest + 1
        tables = GapTables(torch.zeros(sizes, 1), torch.zeros(sizes, 1), torch.zeros(1, sizes))
        return replace(said, gap_BG2H=0 * said.gap_BG2H[..., :2], tables=tables)
