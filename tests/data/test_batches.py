"""What one training step sees: which clips, how many, and what is hidden of them."""

import itertools
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from flowcept.data.batches import Batch, Lessons, draw_batch, split_batch, split_held_out
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.process.forward import Flowception
from flowcept.process.state import Role
from flowcept.settings import ContextMixture, ObjectiveSettings

NO_CONTEXT = ContextMixture(1, 0, 0, 0, 0, 0, 0, 0)
FIRST = ContextMixture(0, 1, 0, 0, 0, 0, 0, 0)
TOKENS_PER_FRAME = 5
DROPOUTS = ("prompt_dropout", "given_prompt_dropout", "context_dropout")


class Clips:
    """Clips that hold their own number, named after it; remembers which were looked up."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.captions = [f"clip {i}" for i in range(len(lengths))]
        self.seen: list[int] = []

    def latent(self, i: int) -> torch.Tensor:
        self.seen.append(i)
        return torch.full((self.lengths[i], 1, 2, 2), float(i))


def draw(clips: Clips, order: list[int] | None = None, **changes: object) -> Batch:
    settings = {
        "seed": 0,
        "step": 0,
        "cursor": 0,
        "tokens": 200,
        "tokens_per_frame": TOKENS_PER_FRAME,
        "least": 1,
    } | changes
    shares = {key: settings.pop(key, 0.0) for key in DROPOUTS}
    mixture = settings.pop("mixture", NO_CONTEXT)
    lessons = Lessons(clips, Flowception(), mixture, ObjectiveSettings(**shares))
    return draw_batch(lessons, order or list(range(len(clips.lengths))), **settings)


def sizes(batch: Batch) -> list[int]:
    return [(state.lengths[0] + 1) * TOKENS_PER_FRAME for state, _ in batch.pairs]


def equal(a: Batch, b: Batch) -> bool:
    if (a.prompts, a.taken, len(a.pairs)) != (b.prompts, b.taken, len(b.pairs)):
        return False
    return all(
        torch.equal(torch.as_tensor(getattr(x, f.name)), torch.as_tensor(getattr(y, f.name)))
        if getattr(x, f.name) is not None
        else getattr(y, f.name) is None
        for pair_a, pair_b in zip(a.pairs, b.pairs, strict=True)
        for x, y in zip(pair_a, pair_b, strict=True)
        for f in fields(x)
    )


def test_a_batch_is_a_function_of_its_arguments():
    clips = Clips([3, 5, 8, 2, 13, 7])
    mixture = ContextMixture()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(clips, mixture=mixture, step=4, cursor=9)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, draw(clips, mixture=mixture, step=4, cursor=9))
    for changes in ({"step": 5}, {"cursor": 10}, {"seed": 1}):
        assert not equal(
            first, draw(clips, **{"mixture": mixture, "step": 4, "cursor": 9} | changes)
        )


@pytest.mark.parametrize("tokens", [1, 60, 200, 1000])
def test_a_batch_ends_with_the_clip_that_fills_the_budget(tokens):
    clips = Clips([3, 5, 8, 2, 13, 7])
    for step in range(20):
        own = sizes(draw(clips, step=step, tokens=tokens))
        assert sum(own) >= tokens
        assert sum(own[:-1]) < tokens


def test_a_batch_has_a_clip_for_every_process():
    assert len(draw(Clips([30, 30]), tokens=1, least=3).pairs) == 3


def test_every_pass_takes_every_clip_once_in_new_order():
    clips = Clips([2, 3, 5, 7, 4, 6, 3])
    order = [6, 0, 2, 5]
    cursor = step = 0
    while cursor < 8 * len(order):
        cursor += draw(clips, order, step=step, cursor=cursor, tokens=30 + 40 * (step % 3)).taken
        step += 1
    passes = [tuple(clips.seen[i * 4 : i * 4 + 4]) for i in range(8)]
    assert all(sorted(one) == sorted(order) for one in passes)
    assert len(set(passes)) > 3
    assert len(clips.seen) == cursor


def test_the_batches_of_a_pass_do_not_depend_on_where_they_are_cut():
    whole, cut = Clips([2, 3, 5, 7, 4, 6, 3]), Clips([2, 3, 5, 7, 4, 6, 3])
    draw(whole, tokens=1000)
    cursor = 0
    while cursor < len(whole.seen):
        cursor += draw(cut, cursor=cursor, step=cursor, tokens=1).taken
    assert cut.seen[: len(whole.seen)] == whole.seen


def test_prompts_and_pairs_belong_to_the_same_clip():
    clips = Clips([3, 5, 8, 2, 13, 7])
    batch = draw(clips, tokens=600)
    for (_, target), prompt in zip(batch.pairs, batch.prompts, strict=True):
        clip = int(prompt.removeprefix("clip "))
        visible = target.velocity_FCHW.shape[0]
        assert visible + int(target.total_B) == clips.lengths[clip]


def test_clips_out_of_the_order_are_never_drawn():
    clips = Clips([4] * 10)
    for step in range(30):
        draw(clips, [1, 3, 5], step=step, cursor=7 * step)
    assert set(clips.seen) == {1, 3, 5}


def test_lengths_are_learned_from_all_clips_equally():
    """A draw that teaches nothing goes on to the next clip: drawing again would favour short ones.

    Four clips of 1 frame and four of 12, 150 passes: 600 draws of each kind, of which half have
    tau < 1, whatever the length; standard error 12.2. Drawing again would give 600 to 312.
    """
    clips = Clips([1, 12] * 4)
    early: Counter[int] = Counter()
    cursor = step = 0
    while cursor < 150 * 8:
        batch = draw(clips, step=step, cursor=cursor, tokens=500)
        for state, target in batch.pairs:
            if float(state.tau_B) < 1:
                early[state.lengths[0] + int(target.total_B)] += 1
        cursor += batch.taken
        step += 1
    expected = cursor / 4
    assert abs(early[1] - expected) < 4 * 12.3
    assert abs(early[12] - expected) < 4 * 12.3


def test_prompts_are_dropped_in_their_share():
    """2,000 clips at a share of 0.2: 400 +- 18."""
    clips = Clips([4] * 20)
    batch = draw(clips, tokens=2000 * 5 * 3, prompt_dropout=0.2)
    dropped = sum(prompt == "" for prompt in batch.prompts) / len(batch.prompts)
    error = (0.16 / len(batch.prompts)) ** 0.5
    assert abs(dropped - 0.2) < 4 * error
    assert "" not in draw(clips, tokens=5000).prompts


def test_clips_with_given_frames_have_their_own_share_without_a_prompt():
    """About 500 clips of each kind, 4 standard errors each."""
    clips = Clips([6] * 20)
    half = replace(FIRST, none=FIRST.first)
    batch = draw(
        clips, tokens=10000 * 5, mixture=half, given_prompt_dropout=0.6, prompt_dropout=0.2
    )
    early = [
        (bool(int(state.role_F[0]) != Role.GENERATED), prompt == "")
        for (state, _), prompt in zip(batch.pairs, batch.prompts, strict=True)
        if float(state.tau_B) < 1
    ]
    for given, share in ((True, 0.6), (False, 0.2)):
        dropped = [empty for kind, empty in early if kind == given]
        assert len(dropped) > 300
        error = (share * (1 - share) / len(dropped)) ** 0.5
        assert abs(sum(dropped) / len(dropped) - share) < 4 * error


def test_captions_are_worded_anew_in_their_share_and_nothing_else_is_drawn_otherwise():
    clips = Clips([4] * 8)
    clips.captions = ["a dog surfing"] * 8
    words = {"actor": {"dog": ("puppy", "hound")}, "action": {"surfing": ("riding a wave",)}}
    lexicon, objective = Lexicon({**words}), ObjectiveSettings(prompt_dropout=0, paraphrase=0.3)
    lessons = [
        Lessons(clips, Flowception(), NO_CONTEXT, objective, given) for given in (None, lexicon)
    ]
    sizes = {"tokens": 9000, "tokens_per_frame": TOKENS_PER_FRAME, "least": 1}
    plain, worded = (
        draw_batch(one, range(8), seed=0, step=0, cursor=0, **sizes) for one in lessons
    )
    assert set(plain.prompts) == {"a dog surfing"}
    first = plain.pairs[0][0], worded.pairs[0][0]
    assert torch.equal(first[0].latent_FCHW, first[1].latent_FCHW)

    parts = Counter(word for prompt in worded.prompts for word in prompt.split())
    count = len(worded.prompts)
    assert count > 300
    bound = 4 * (0.3 * 0.7 / count) ** 0.5
    assert parts["riding"] / count == pytest.approx(0.3, abs=bound)
    assert (parts["puppy"] + parts["hound"]) / count == pytest.approx(0.3, abs=bound)
    assert min(parts["puppy"], parts["hound"]) > 0.1 * count
    assert equal(worded, draw_batch(lessons[1], range(8), seed=0, step=0, cursor=0, **sizes))


def test_contexts_are_dropped_in_their_share():
    """Among clips with tau < 1, which are never left out; about 500 of them."""
    clips = Clips([6] * 20)
    batch = draw(clips, tokens=1000 * 5 * 5, mixture=FIRST, context_dropout=0.3)
    shown = [
        int(state.role_F[0]) != Role.GENERATED for state, _ in batch.pairs if float(state.tau_B) < 1
    ]
    assert len(shown) > 300
    share = 1 - sum(shown) / len(shown)
    assert abs(share - 0.3) < 4 * (0.21 / len(shown)) ** 0.5


def test_settings_under_which_no_clip_teaches_anything_are_an_error():
    """Still images whose only frame is always given: without an error this would never end."""

    class Patient(list):
        looks = 0

        def __getitem__(self, i):
            self.looks += 1
            if self.looks > 5_000:
                pytest.fail("still looking for a clip after 5,000")
            return super().__getitem__(i)

    clips = Clips([1, 1, 1])
    clips.lengths = Patient(clips.lengths)
    with pytest.raises(UserError):
        draw(clips, mixture=FIRST)


def test_parts_hold_every_clip_once_within_the_bound():
    batch = draw(Clips([3, 5, 8, 2, 13, 7]), tokens=1500)
    own = sizes(batch)
    for bound in (1, 40, 100, 10_000):
        parts = split_batch(batch, bound, TOKENS_PER_FRAME)
        assert [clip for part in parts for clip in part] == list(range(len(batch.pairs)))
        for part in parts:
            assert len(part) == 1 or sum(own[clip] for clip in part) <= bound
        for part, following in itertools.pairwise(parts):
            assert sum(own[clip] for clip in part) + own[following[0]] > bound
    assert split_batch(replace(batch, pairs=(), prompts=()), 10, TOKENS_PER_FRAME) == []


@pytest.mark.parametrize(
    ("n", "fraction", "held"),
    [(100, 0.1, 10), (10, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (50, 0, 0), (0, 0.1, 0)],
)
def test_held_out_split(n: int, fraction: float, held: int):
    train, out = split_held_out(range(n), fraction, seed=3)
    assert len(out) == held
    assert sorted(train + out) == list(range(n))
    assert (train, out) == split_held_out(range(n), fraction, seed=3)


def test_held_out_split_depends_on_the_seed_and_keeps_groups():
    assert split_held_out(range(100), 0.2, 0) != split_held_out(range(100), 0.2, 1)
    groups = [i // 3 for i in range(60)]
    train, out = split_held_out(groups, 0.25, 0)
    assert len(out) == 15
    assert not {groups[i] for i in train} & {groups[i] for i in out}


def test_batches_are_what_they_were():
    """Recorded before these functions had a file of their own."""
    clips = Clips([3, 5, 8, 2, 13, 7, 1, 21])
    clips.latent = lambda i: torch.arange(clips.lengths[i] * 8).reshape(-1, 2, 2, 2) / 100 + i
    batch = draw(
        clips,
        [0, 1, 2, 4, 5, 6, 7],
        seed=7,
        step=3,
        cursor=12,
        tokens=300,
        least=2,
        mixture=ContextMixture(),
        prompt_dropout=0.1,
        given_prompt_dropout=0.5,
        context_dropout=0.1,
    )
    assert batch.taken == 9
    kept = ("clip 7", "clip 0", "clip 4", "clip 6", "", "clip 1", "clip 2")
    assert batch.prompts == kept
    states = [state for state, _ in batch.pairs]
    assert [state.lengths[0] for state in states] == [21, 1, 10, 1, 12, 5, 8]
    tau = [1.607198, 0.348501, 0.783251, 0.890902, 0.504246, 1.216337, 1.683191]
    assert [float(state.tau_B) for state in states] == pytest.approx(tau, abs=1e-6)
    mean = [6.71211, 0.03271, 1.96191, 5.37533, 2.73445, 0.9746, 2.20275]
    assert [float(s.latent_FCHW.double().mean()) for s in states] == pytest.approx(mean, abs=1e-5)
    missing = [float(target.missing_F.sum()) for _, target in batch.pairs[:3]]
    assert missing == [0, 0, 3]
    assert split_batch(batch, 100, TOKENS_PER_FRAME) == [[0], [1, 2, 3], [4, 5], [6]]
    held = [1, 9, 11]
    assert split_held_out(range(12), 0.25, 5)[1] == held
    assert split_held_out([i // 3 for i in range(12)], 0.25, 5)[1] == [9, 10, 11]


def test_keyframes_of_a_video_codec_are_given_alone():
    """Where others may come before a given picture, with the latent of that picture alone."""
    clips = Clips([6, 5])
    asked: list[tuple[int, int]] = []

    def keyframe(i: int, f: int) -> torch.Tensor:
        asked.append((i, f))
        return torch.full((1, 2, 2), 50.0 + f)

    ends = replace(NO_CONTEXT, none=0, first_last=1)
    objective = ObjectiveSettings(context_dropout=0.0)
    lessons = Lessons(clips, Flowception(), ends, objective, keyframe=keyframe)
    batch = draw_batch(
        lessons, [0, 1], seed=0, step=0, cursor=0, tokens=300, tokens_per_frame=5, least=1
    )
    for state, _ in batch.pairs:
        last_CHW = state.latent_FCHW[-1]
        assert state.keyframe_F.tolist() == [False] * (state.lengths[0] - 1) + [True]
        assert float(last_CHW.min()) in (54.0, 55.0)
    assert {f for _, f in asked} == {4, 5}


def test_stills_are_single_frames_of_many_clips():
    """Any frame of a clip, as many clips as fill the step, each with its prompt or none."""

    class Numbered(Clips):
        def latent(self, i: int) -> torch.Tensor:
            return torch.arange(float(self.lengths[i])).add(100 * i).view(-1, 1, 1, 1)

    seen = Counter[int]()
    for step in range(40):
        batch = draw(Numbered([3, 9, 4]), stills=True, step=step, cursor=20 * step)
        assert sizes(batch) == [2 * TOKENS_PER_FRAME] * 20
        for (state, target), prompt in zip(batch.pairs, batch.prompts, strict=True):
            time = float(state.time_F)
            noise = float(state.latent_FCHW) - time * float(target.velocity_FCHW)
            frame = round(noise + float(target.velocity_FCHW))
            assert prompt == f"clip {frame // 100}"
            seen[frame] += 1
    assert seen.keys() == {0, 1, 2, *range(100, 109), *range(200, 204)}
    assert sum(seen[frame] for frame in range(3)) == pytest.approx(800 / 3, abs=2)  # as many each
    half = draw(Clips([3, 9, 4]), stills=True, prompt_dropout=0.5, tokens=2000)
    assert half.prompts.count("") == pytest.approx(100, abs=30)


def test_stills_of_a_video_codec_are_pictures_alone():
    def keyframe(i: int, f: int) -> torch.Tensor:
        return torch.full((1, 2, 2), 50.0 + 10 * i + f)

    lessons = Lessons(
        Clips([6, 5]), Flowception(), NO_CONTEXT, ObjectiveSettings(), keyframe=keyframe
    )
    for seed in range(20):
        (state, target), _ = lessons.still(1, torch.Generator().manual_seed(seed))
        data = state.latent_FCHW + (1 - state.time_F) * target.velocity_FCHW
        assert round(float(data.mean())) in range(60, 65)
