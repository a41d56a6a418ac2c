"""Where and in which precision to compute, from the words that a user gives."""

from __future__ import annotations

import torch

from flowcept.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises ``UserError`` for an unknown name and for a device that this machine has not.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}: use {', '.join(DEVICES)}")
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if not present[name]:
        raise UserError(f"no {name} device on this machine: use --device cpu or auto")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products; auto takes bfloat16 where the processor is fast at it.

    Raises ``UserError`` for an unknown name and for float16 on a CPU, which is slow there.
    """
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UserError("float16 is for GPUs: use --dtype bfloat16 or float32 on a CPU")
    return DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        # Older releases of torch do not say what a processor can do.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype``, everything that needs it in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
