"""Contexts are drawn without looking at a clip's length, so its law stays the data's own."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from calibration import KINDS, only
from oracle import cut, draw_length

from flowcept.data.contexts import LONGEST_RUN, draw_context
from flowcept.errors import UserError
from flowcept.settings import ContextMixture


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


@pytest.mark.parametrize("weights", [{"none": -1.0}, dict.fromkeys(KINDS, 0.0)])
def test_impossible_mixtures_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match="weights"):
        ContextMixture(**weights)


def test_a_clip_goes_on_from_one_given_frame_as_often_as_from_several(
    generator: torch.Generator,
) -> None:
    """Prefixes of clips of 26 frames: half have one frame, to four deviations of 8,000 draws."""
    prefixes: Counter[int] = Counter()
    for _ in range(8000):
        given = draw_context(26, ContextMixture(), generator)
        if given and any(given) and given == sorted(given, reverse=True):
            prefixes[sum(given)] += 1
    total, alone = sum(prefixes.values()), prefixes[1]
    assert set(prefixes) == set(range(1, LONGEST_RUN + 1))
    assert abs(alone / total - 0.5) < 4 * 0.5 / total**0.5
    assert total / 8000 == pytest.approx(0.21 / 1.07, abs=0.02)
