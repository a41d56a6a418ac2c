"""Counts the memory of a network's work on tensors without contents (PyTorch's ``meta`` device)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from blank import blank, no_autocast
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowcept.networks.transformer import Transformer


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, but for those of the weights; the peak."""

    def __init__(self, weights):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {weight.untyped_storage()._cdata: 0 for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key):
        self.now -= self.sizes.pop(key)


class Fused(TorchFunctionMode):
    """Attention keeps no scores, as on every device but this one, where it would be unfused."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, _, v = args
            return (q + v.mean()).to(q.dtype)  # of the output's shape, and depends on both
        return func(*args, **(kwargs or {}))


class Work(nn.Module):
    """One evaluation, with its backward pass where gradients are on."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, state, prompt):
        said = self.network(state, prompt)
        if torch.is_grad_enabled():
            heads = (said.velocity_FCHW, said.log_missing_F, said.log_missing_first_B)
            sum(head.square().sum() for head in (*heads, said.size_logits_BK)).backward()


def peak(network: Transformer, lengths: Sequence[int]) -> int:
    """Bytes alive at most during one evaluation, float32; with gradients one training step."""
    work = Work(network)
    weights = {
        name: torch.empty_like(weight, device="meta").requires_grad_()
        for name, weight in work.named_parameters()
    }
    live = Live(weights.values())
    with no_autocast(), Fused(), live:
        torch.func.functional_call(work, weights, blank(network, lengths))
    return live.peak
