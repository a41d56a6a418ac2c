"""A codec is fitted once; runs that do not test it start from a copy of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import (
    TINY,
)

from flowcept.data import shapes
from flowcept.training import run as train
from flowcept.training.loop import Reports


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order everywhere, also in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "clips"
    shapes.write_shapes(out, 14, size=32)
    return out


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few clips, for networks that were pretrained."""
    out = tmp_path_factory.mktemp("data") / "clips"
    shapes.write_shapes(out, 8, size=32)
    return out


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train.train(folder, run, TINY, quiet=True)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A new run that finds codec and caches made."""
    new = tmp_path / "run"
    shutil.copytree(whole / "cache", new / "cache")
    shutil.copy(whole / "codec.safetensors", new)
    return new


@pytest.fixture
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reports, "sheet", lambda _: None)
