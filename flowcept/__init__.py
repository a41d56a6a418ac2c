"""flowcept: short videos of a length that the model chooses itself (arXiv 2512.11438).

``flowcept.load(model)`` opens a model file; its methods ``generate``, ``i2v``, ``interp`` and
``extend`` are the commands of the same names. Nothing heavy is imported before that call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowcept.generation import Studio

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,  # noqa: A002 - the word of the flag
) -> Studio:
    """Open a model file, or a shipped model by name, ready to make clips.

    ``device`` is auto, cpu, cuda or mps; ``dtype`` is auto, float32, bfloat16 or float16;
    ``compile`` runs torch.compile on the network's blocks.
    Raises ``flowcept.errors.UserError`` when the file or the device cannot be used.
    """
    from flowcept import model_file
    from flowcept.device import pick_device, pick_dtype
    from flowcept.generation import Studio

    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    path = model_file.find(model)
    weights = model_file.load(path)
    if compile:
        weights.network.compile_blocks()
    return Studio(weights, path.stem, where, precision)
