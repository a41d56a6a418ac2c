"""Where and in which precision to compute, from the words that a user gives, and in what memory.

The formulas of memory hold on a network of tokens after a stem of convolutions. Their constants
were counted: each storage of one evaluation, and of one training step, from its birth to its end
(on tensors without contents, PyTorch's ``meta`` device), for networks of 128 to 512 wide, 4 to 16
blocks, 17 to 257 tokens a frame. They hold to 25% from 100 frames on.
"""

import math
from contextlib import suppress
from pathlib import Path

import torch

from flowcept.errors import UserError
from flowcept.settings import DEVICES

PROGRAM = 410 * 2**20  # bytes of Python, PyTorch and its compiled kernels (Linux, x86-64)
HELD = 1.5  # what an allocator holds in training over what is alive (Linux, the small preset)
HALF = 0.52  # of the bytes of training stay under autocast to half precision
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises ``UserError`` for an unknown name and for a device that this machine has not.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}: use {', '.join(DEVICES)}")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    present = {"cuda": cuda, "mps": mps, "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if not present[name]:
        raise UserError(f'no {name} device on this machine: use `device="cpu"` or auto')
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
        raise UserError('float16 is for GPUs: use `dtype="bfloat16"` or float32 on a CPU')
    return DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Older releases of torch do not say what a processor can do.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype``, everything that needs it in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def free_memory(device: torch.device) -> float:
    """Bytes that a device can still give, as far as the system says so.

    What CUDA's allocator holds in reserve and does not use is free for the next clip.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + idle)
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return math.inf


def sampling_bytes(
    frames: int, tokens: int, width: int, depth: int, stem: int, dtype: torch.dtype
) -> float:
    """Peak of sampling beside the weights, both sides of guidance counted as ``frames``.

    A frame has ``tokens`` of ``width`` numbers, and ``stem`` numbers in the stem's finest layer.
    Activations are the same in every precision, since autocast keeps copies in both; beside them
    stand the keys and values that finished frames leave in each of ``depth`` blocks.
    """
    activations = 4 * max(14 * tokens * width, 7 * stem)
    cached = 2 * depth * tokens * width * dtype.itemsize
    return frames * (activations + cached)


def training_bytes(
    frames: int, tokens: int, width: int, depth: int, stem: int, *, weights: int, half: bool
) -> float:
    """What a training step on so many frames at once takes, the program and all else included.

    With each of the ``weights`` go its gradient, two moments, the average and two temporaries of a
    step, of 4 bytes each, and in half precision one more copy.
    """
    work = 4 * frames * (30 * depth * tokens * width + 45 * stem)
    return PROGRAM + (30 * weights + HELD * HALF * work if half else 28 * weights + HELD * work)
