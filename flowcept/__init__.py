"""flowcept: short videos of a length that the model chooses itself (arXiv 2512.11438).

``flowcept.load(model)`` opens a model; its methods ``generate``, ``i2v``, ``interp`` and ``extend``
make clips, as the commands do. Nothing heavy is imported before that call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from flowcept.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from flowcept.clip import Clip
    from flowcept.generation import Studio
    from flowcept.models import Model

__version__ = "0.1.0"
__all__ = ["Clip", "Studio", "UserError", "__version__", "load"]

_LATER = {"Clip": "flowcept.clip", "Studio": "flowcept.generation"}  # imported when asked for

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _LATER:
            return getattr(import_module(_LATER[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def load(
    model: str | Path | Model | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,  # noqa: A002 - the word of the flag
    size: str | None = None,
    base: str | None = None,
    offload: str = "none",
    fp8: bool = False,
    tiling: bool = False,
) -> Studio:
    """Open a model that makes clips.

    ``model`` is a shipped name, a model file, a run's folder, a diffusers folder, or a name on a
    hub, ``owner/model`` or ``owner/model@revision``. ``base`` names the pretrained model that an
    adapter needs, if it has moved.

    ``device`` is auto, cpu, cuda or mps; ``dtype`` is auto, float32, bfloat16 or float16;
    ``compile`` runs torch.compile on the network's blocks. ``size``, WIDTHxHEIGHT, is for
    pretrained video models and models trained from them, which make clips of many sizes.

    Three options make pretrained video models take less memory. ``offload="encoder"`` frees the
    prompt encoder before the network is loaded; ``offload="blocks"`` also keeps on the device only
    those blocks of the network that are at work, which is slower. ``fp8`` keeps the network's
    weights in 8 bits; clips change a little. ``tiling`` decodes pictures in overlapping tiles;
    seams may show.

    Raises ``flowcept.UserError`` when the file or the device cannot be used.
    """
    from flowcept.adapters import fingerprint, open_model
    from flowcept.device import pick_device, pick_dtype
    from flowcept.generation import Studio
    from flowcept.memory import Thrift
    from flowcept.models import find

    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    found = find(model)
    weights = open_model(found, precision, base=base)
    Thrift(offload, fp8, tiling).apply(weights, precision)
    if compile:
        weights.network.compile_blocks()
    studio = Studio(weights, found.name, where, precision, fingerprint(found.path))
    return studio if size is None else studio.at(size)
