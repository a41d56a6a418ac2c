"""What every figure is printed with."""

import platform

import torch


def described() -> str:
    """Machine, threads and versions, in one line."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"python {platform.python_version()}, torch {torch.__version__}"
    )
