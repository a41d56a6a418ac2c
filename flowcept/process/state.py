"""The one record that training makes, sampling makes and networks read, and its algebra.

Many clips lie end to end in it, visible frames only: nothing is padded, and no value of a latent
means anything but itself.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, N new frames,
K sizes 0..largest, S prompt tokens, D or V their width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=Any)  # a record of tensors


class Role(IntEnum):
    """What a visible frame is. An active context frame has an open gap to its right."""

    GENERATED = 0
    ACTIVE = 1
    PASSIVE = 2


@dataclass(frozen=True)
class FrameState:
    """The visible frames of many clips at some extended time."""

    latent_FCHW: Tensor  # about unit variance
    time_F: Tensor  # flow time in [0, 1]: 0 noise, 1 data; context frames are at 1
    role_F: Tensor  # int64, values of Role
    tau_B: Tensor  # extended time of each clip
    open_first_B: Tensor  # bool: may frames be inserted before the first one
    lengths: tuple[int, ...]  # visible frames per clip; the sum is F
    # Of processes that plan a clip at ``tau = 0``; int64, -1 while there is no plan:
    index_F: Tensor | None = None  # of each frame in the whole clip
    total_B: Tensor | None = None  # frames of the whole clip
    # The denoising progress, where a sampler says it; else it follows from the flow time:
    progress_F: Tensor | None = None
    # Of video codecs: bool, pictures that stand beside the clip, each encoded alone, right of the
    # group of pictures that ends with it. None: there are none.
    keyframe_F: Tensor | None = None

    def __post_init__(self) -> None:
        num_frames, num_clips = self.latent_FCHW.shape[0], len(self.lengths)
        assert self.latent_FCHW.ndim == 4
        assert self.time_F.shape == self.role_F.shape == (num_frames,)
        assert self.tau_B.shape == self.open_first_B.shape == (num_clips,)
        assert sum(self.lengths) == num_frames

    @property
    def clip_F(self) -> Tensor:
        """Index of the clip that each frame belongs to."""
        lengths = torch.tensor(self.lengths, device=self.time_F.device)
        return torch.repeat_interleave(lengths, output_size=len(self.time_F))

    @property
    def given_F(self) -> Tensor:
        """Whether each frame is a context frame."""
        return self.role_F != Role.GENERATED

    @property
    def open_F(self) -> Tensor:
        """Whether frames may be inserted to the right of each frame."""
        return self.role_F != Role.PASSIVE

    @property
    def asked_B(self) -> Tensor:
        """Clips that may miss frames, if no plan gives their number: ``tau < 1``."""
        early_B = self.tau_B < 1
        return early_B if self.total_B is None else early_B & (self.total_B < 0)

    @property
    def flowing_F(self) -> Tensor:
        """Generated frames that still move."""
        return ~self.given_F & (self.time_F < 1)

    def count_B(self, marked_F: Tensor) -> Tensor:
        """How many frames of each clip are marked, as floats."""
        zero_B = torch.zeros(len(self.lengths), device=marked_F.device)
        return zero_B.index_add(0, self.clip_F, marked_F.float())

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return changed(self, lambda _, x: x.to(device))


@dataclass(frozen=True)
class GapTables:
    """What a network knows of counts of missing frames in any state, ``compositions.count_logits``.

    Counts go up to the largest size.
    """

    left_KH: Tensor  # features of how many frames are left for a gap and those right of it
    total_KH: Tensor  # the same of how many are missing in the whole clip
    count_HK: Tensor  # from features to the logits of a gap's own count

    @property
    def largest(self) -> int:
        """The largest count."""
        return len(self.left_KH) - 1


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for a ``FrameState``."""

    velocity_FCHW: Tensor  # data - noise
    log_missing_F: Tensor  # log of the mean count missing right of each frame
    log_missing_first_B: Tensor  # the same for the gap before the first frame
    size_logits_BK: Tensor  # log-law, up to a constant, of how many frames are generated in all
    image_token_BV: Tensor | None = None  # what given frames show, in the words of prompt tokens
    gap_BG2H: Tensor | None = None  # features of each clip's gaps, to be read with ``tables``
    tables: GapTables | None = None  # None: gaps share missing frames by their means


@dataclass(frozen=True)
class PromptTokens:
    """Encoded prompts of many clips, end to end."""

    token_SD: Tensor
    lengths: tuple[int, ...]  # tokens per clip; the sum is S


@dataclass(frozen=True)
class Given:
    """What a clip starts from: the user's frames and where others may come between them."""

    latent_FCHW: Tensor  # clean; no frame at all for text-to-video
    open_gaps: tuple[bool, ...]  # one more than frames: before the first, then right of each
    missing: tuple[int, ...] | None = None  # exact number of frames to come in each gap, if known
    keyframes: tuple[bool, ...] | None = None  # which stand beside the clip, ``FrameState``

    def __post_init__(self) -> None:
        if len(self.open_gaps) != self.latent_FCHW.shape[0] + 1:
            raise ValueError("there is one gap more than given frames")
        if self.missing is not None and len(self.missing) != len(self.open_gaps):
            raise ValueError("missing needs a count for every gap")
        if self.keyframes is not None and len(self.keyframes) != self.latent_FCHW.shape[0]:
            raise ValueError("keyframes needs a word on every given frame")


@dataclass(frozen=True)
class Rest:
    """What a network is told of finished frames in sampling, where the CPU knows it.

    From ``tau = 1`` on they may rest: nothing is asked of them any more, since no frame can appear
    beside them. ``memory`` is the network's own, one for all evaluations of a request.
    """

    names: tuple[object, ...]  # of the clips, the same in every evaluation
    finished_F: Tensor  # bool, on the CPU
    may_rest: bool
    memory: dict[str, Any] = field(default_factory=dict)


def changed(record: T, change: Callable[[str, Tensor], Tensor], **others: object) -> T:
    """The record with each of its tensors changed, by its name and value, and other fields set."""
    tensors = {name: x for name, x in vars(record).items() if isinstance(x, Tensor)}
    return replace(record, **{name: change(name, x) for name, x in tensors.items()}, **others)


def concat(records: Sequence[T]) -> T:
    """Records of one kind as one: their tensors end to end, and their lengths if they have any."""
    lengths = tuple(n for one in records for n in getattr(one, "lengths", ()))

    def end_to_end(name: str, _: Tensor) -> Tensor:
        return torch.cat([getattr(one, name) for one in records])

    return changed(records[0], end_to_end, **({"lengths": lengths} if lengths else {}))


def rows_of(clips: Sequence[int], x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The rows of the chosen clips, of which each clip has so many. No number goes to a device."""
    parts = x.split(list(lengths))
    return torch.cat([parts[b] for b in clips])


def select(state: FrameState, clips: Sequence[int]) -> FrameState:
    """The chosen clips, in the order in which they are named; at least one."""
    one_each, lengths = [1] * len(state.lengths), tuple(state.lengths[b] for b in clips)

    def rows(name: str, x: Tensor) -> Tensor:
        return rows_of(clips, x, one_each if name.endswith("_B") else state.lengths)

    return changed(state, rows, lengths=lengths)


def insertion_rows(lengths: Sequence[int], counts: Sequence[Sequence[int]]) -> list[int]:
    """Where each frame comes from when ``counts[b][g]`` new ones enter gap g of clip b.

    Gap 0 lies before the first frame, gap g right of the g-th. A row under F is an old frame; row
    F + i is the i-th new one, counted clip by clip and from left to right.
    """
    rows: list[int] = []
    old, new = 0, sum(lengths)
    for length, gaps in zip(lengths, counts, strict=True):
        assert len(gaps) == length + 1
        for gap, count in enumerate(gaps):
            if gap:
                rows.append(old)
                old += 1
            rows.extend(range(new, new + count))
            new += count
    return rows


def insert(
    state: FrameState, counts: Sequence[Sequence[int]], latent_NCHW: Tensor, rows_F: Tensor
) -> FrameState:
    """The state with new generated frames at flow time 0, whose indices are to be told yet.

    ``rows_F`` are the ``insertion_rows`` of these counts, on the state's device.
    """
    new_time_N = state.time_F.new_zeros(len(latent_NCHW))
    new_role_N = state.role_F.new_full((len(latent_NCHW),), Role.GENERATED)
    keyframe_F = state.keyframe_F
    if keyframe_F is not None:
        keyframe_F = torch.cat([keyframe_F, keyframe_F.new_zeros(len(latent_NCHW))])[rows_F]
    return replace(
        state,
        latent_FCHW=torch.cat([state.latent_FCHW, latent_NCHW])[rows_F],
        time_F=torch.cat([state.time_F, new_time_N])[rows_F],
        role_F=torch.cat([state.role_F, new_role_N])[rows_F],
        keyframe_F=keyframe_F,
        index_F=None,
        lengths=tuple(n + sum(gaps) for n, gaps in zip(state.lengths, counts, strict=True)),
    )
