"""How much memory the work of a network takes, told before it is done.

For training the network itself runs on tensors without contents (PyTorch's ``meta`` device), and
every storage that an operation makes is counted from its birth to its end; so no change of the
network can make that wrong. It loads a second's worth of PyTorch, too much to wait for before every
clip: what one evaluation takes is a formula, which a test holds against the count. What neither can
see are measured constants: the program itself, and what an allocator holds beyond what is alive.

Shape suffixes: q queries, k keys, v values of an attention; F frames of all clips, S prompt tokens,
D their width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowcept.networks import attention
from flowcept.networks.transformer import PART, ModelConfig, Network
from flowcept.process.state import FrameState, PromptTokens

PROGRAM = 410 * 2**20  # bytes of Python, PyTorch and its compiled kernels (measured, Linux, x86-64)
HELD = 1.5  # what the allocator holds in training over what is alive (measured on Linux)
HALF = 0.52  # of the bytes of training stay under autocast to half precision (measured)
PROMPT = 8  # tokens of a prompt, about


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, but for those of the weights; the peak."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.sizes = {weight.untyped_storage()._cdata: 0 for weight in weights}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _Fused(TorchFunctionMode):
    """Attention keeps no scores, as on every device but this one, where it would be unfused."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is F.scaled_dot_product_attention:
            q, k, v = args
            if not q.requires_grad or k.shape[2] > attention.SMALL:
                return (q + v.mean()).to(q.dtype)  # of the output's shape, and depends on both
        return func(*args, **(kwargs or {}))


def sampling_bytes(config: ModelConfig, frames: int) -> int:
    """Peak of the activations of one evaluation on so many frames, both sides of guidance counted.

    Either a block of the finest cells takes most, or a block of tokens, or in it the keys that
    local attention gathers: some tensors of all frames that stay, and some that are worked on by
    parts. The same in every precision, since autocast keeps copies in both.
    """
    cells = config.height * config.width * config.cells
    remembered = sum(
        config.height * config.width * channels / 4**size
        for size, channels in enumerate(config.cell_channels)
    )
    tokens = (config.patches + 1) * config.hidden
    of_cells = 3.5 * cells * frames + 4.3 * min(cells * frames, PART)
    of_tokens = 12.4 * tokens * frames + 8.1 * min(tokens * frames, PART)
    seen = 2 * config.window * (config.patches + 1) * frames  # keys, over all queries
    of_keys = 9 * tokens * frames + 2.6 * config.hidden * min(seen, attention.PART)
    return int(4 * (remembered * frames + max(of_cells, of_tokens, of_keys)))


def cached_numbers(config: ModelConfig, frames: int) -> int:
    """What a cache holds of so many frames: keys and values, and cells between convolutions."""
    cells = sum(
        config.height * config.width * channels // (1 << 2 * size)
        for size, channels in enumerate(config.cell_channels)
    )
    tokens = (config.patches + 1) * config.hidden
    return frames * 2 * (config.depth * tokens + config.cell_depth * cells)


def evaluation_bytes(network: Network, lengths: Sequence[int]) -> int:
    """The same for clips of these lengths, counted; float32."""
    with torch.no_grad():
        return _peak(network, lengths)


def training_bytes(network: Network, lengths: Sequence[int]) -> int:
    """Peak of activations and gradients of one step on clips of these lengths, counted; float32.

    Under autocast to half precision it is ``HALF`` as much.
    """
    return _peak(network, lengths)


class _Work(nn.Module):
    """One evaluation, with its backward pass where gradients are on."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: FrameState, prompt: PromptTokens) -> None:
        said = self.network(state, prompt)
        if torch.is_grad_enabled():
            heads = (said.velocity_FCHW, said.log_missing_F, said.log_missing_first_B)
            loss = said.count_logits_BK.square().sum()
            for head in heads:
                loss = loss + head.square().sum()
            loss.backward()


def blank(
    config: ModelConfig, lengths: Sequence[int], device: str = "meta"
) -> tuple[FrameState, PromptTokens]:
    """Clips of so many visible frames, half-way and without given ones, with prompts: all zeros."""
    num_frames, num_clips = sum(lengths), len(lengths)
    state = FrameState(
        torch.zeros(num_frames, config.channels, config.height, config.width, device=device),
        torch.full((num_frames,), 0.5, device=device),
        torch.zeros(num_frames, dtype=torch.long, device=device),
        torch.full((num_clips,), 0.5, device=device),
        torch.ones(num_clips, dtype=torch.bool, device=device),
        tuple(lengths),
    )
    tokens = torch.zeros(PROMPT * num_clips, config.text_width, device=device)
    return state, PromptTokens(tokens, (PROMPT,) * num_clips)


def _peak(network: Network, lengths: Sequence[int]) -> int:
    work = _Work(network)
    weights = {
        name: torch.empty_like(weight, device="meta", dtype=torch.float32).requires_grad_()
        for name, weight in work.named_parameters()
    }
    live = _Live(weights.values())
    with _Fused(), live:
        torch.func.functional_call(work, weights, blank(network.config, lengths))
    return live.peak


def parameter_bytes(*modules: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
