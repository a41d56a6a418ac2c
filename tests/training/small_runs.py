"""Runs on a dozen tiny clips, and how tests look at them.

Everything is as small as it can be: frames of 32 pixels, a network of some thousand weights, a few
steps.
"""

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from flowcept import model_file
from flowcept.errors import UserError
from flowcept.settings import TrainConfig
from flowcept.training import run as train
from flowcept.training.trainer import Trainer

TINY = TrainConfig().changed(
    size="32",
    held_out=0.15,
    codec_width=16,
    codec_steps=6,
    codec_batch=4,
    hidden=32,
    depth=2,
    heads=2,
    stem_channels=8,
    stem_depth=1,
    between=1,
    text_width=24,
    text_depth=1,
    steps=6,
    tokens=300,
    micro_tokens=300,
    warmup=2,
    seed=5,
    dtype="float32",
    device="cpu",
    log_every=1,
    eval_every=3,
    save_every=2,
    export_dtype="float32",
)


def prepared(folder: Path, run: Path, config: TrainConfig, **more: Any) -> Trainer:
    """The trainer of a run, before its first step."""
    kept: list[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run_to_end", lambda trainer, *_: kept.append(trainer))
        train.train(folder, run, config, quiet=True, **more)
    return kept[0]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path, name: str = "velocity") -> dict[int, float]:
    return {r["step"]: r[name] for r in records(run) if name in r}


def leaves(tree: object, name: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in leaves(sub, f"{name}/{key}").items()}
    if isinstance(tree, list | tuple):
        return leaves(dict(enumerate(tree)), name)
    return {name: tree}


def assert_same_state(run: Path, other: Path) -> None:
    """Weights, averages, optimizer and place in the data, bit for bit."""
    a = leaves(model_file.load_tree(run / "state.safetensors"))
    b = leaves(model_file.load_tree(other / "state.safetensors"))
    assert a.keys() == b.keys()
    assert any(name.startswith("/optimizer/adamw/state/0/exp_avg") for name in a)
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name], name
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def refused(folder: Path, run: Path, config: TrainConfig, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        train.train(folder, run, config, quiet=True, **more)
    text = str(error.value)
    assert text.splitlines() == [text], text
    return text


def interrupt_in(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, call: int) -> None:
    """Ctrl-C, as the system delivers it, while that call of a method is on."""
    real = getattr(kind, name)
    calls = Counter[str]()

    def method(self, *args, **kwargs):
        calls[name] += 1
        result = real(self, *args, **kwargs)
        if calls[name] == call:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)  # where Python looks for signals
        return result

    monkeypatch.setattr(kind, name, method)


PAGE = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")


def rows_of_page(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page on a run's folder."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def assert_on_page(run: Path, network: str) -> None:
    """What a run leaves and logs is on the page, and what the page says of such runs is there."""
    files = {name for name, *_ in rows_of_page("Files")}
    assert {path.name for path in run.iterdir()} <= files
    logged = {key for record in records(run) for key in record}
    keys = {key: where for key, where, *_ in rows_of_page("Keys of the log")}
    assert logged <= keys.keys()
    told = {key for key, where in keys.items() if where in ("network", network)}
    assert told <= logged
