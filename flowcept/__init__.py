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
    size: str | None = None,
) -> Studio:
    """Open a model file, a shipped model by name, or a diffusers folder, ready to make clips.

    ``device`` is auto, cpu, cuda or mps; ``dtype`` is auto, float32, bfloat16 or float16;
    ``compile`` runs torch.compile on the network's blocks. ``size``, WIDTHxHEIGHT, is for
    pretrained video models and what was trained of them, which make clips of many sizes.
    Raises ``flowcept.errors.UserError`` when the file or the device cannot be used.
    """
    from flowcept import model_file
    from flowcept.adapters import open_model
    from flowcept.device import pick_device, pick_dtype
    from flowcept.generation import Studio

    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    path = model_file.find(model)
    weights = open_model(path, precision)
    name = path.resolve().name if path.is_dir() else path.stem
    if compile:
        weights.network.compile_blocks()
    studio = Studio(weights, name, where, precision)
    return studio if size is None else studio.at(size)
