"""Results of a long benchmark in a file, so that a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from flowcept.files import replacing

Of = ParamSpec("Of")


class Kept:
    """Rows of numbers by names, which say all that they depend on but the code."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, list[float]] = {}
        if path and path.exists():
            self.known = json.loads(path.read_text())

    def get(
        self, name: str, measure: Callable[Of, list[float]], *of: Of.args, **how: Of.kwargs
    ) -> list[float]:
        """The numbers of that name, measured now if they are not known."""
        if name not in self.known:
            self.known[name] = measure(*of, **how)
            if self.path:
                with replacing(self.path) as temporary:
                    temporary.write_text(json.dumps(self.known, indent=0))
        return self.known[name]


def digest(path: Path) -> str:
    """Names the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
