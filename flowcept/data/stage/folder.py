"""Writing folders of drawn clips, with several processes if wanted."""

import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from flowcept.data.drawn import Progress, check_folder, write_clip, write_folder
from flowcept.data.stage.cast import RESERVED
from flowcept.data.stage.company import Stage
from flowcept.data.stage.scene import FPS
from flowcept.errors import UserError

CHUNK = 2  # clips that a process draws before it reports


@dataclass(frozen=True)
class Order:
    """What is drawn, and where to."""

    out: Path
    models: Path
    size: int
    seed: int
    actors: str
    actions: str
    reserved: bool


class _Writer:
    """Draws the clips of an order."""

    def __init__(self, order: Order, stage: Stage) -> None:
        self.order, self.stage = order, stage

    def write(self, index: int) -> dict[str, str]:
        """Write a clip; its line of metadata."""
        order = self.order
        words, scene, frames_FHW3 = self.stage.clip(
            order.seed, index, order.size, reserved=order.reserved
        )
        return write_clip(order.out, index, {"caption": words} | asdict(scene), frames_FHW3, FPS)


_writers: list[_Writer] = []  # the one of a process of a pool


def _start(order: Order) -> None:
    warnings.simplefilter("ignore")  # the first process has told them,
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and ends this one
    _writers.append(_Writer(order, Stage(order.models, order.actors, order.actions)))


def _write(index: int) -> dict[str, str]:
    return _writers[0].write(index)


def _written(order: Order, stage: Stage, clips: int, jobs: int) -> Iterator[dict[str, str]]:
    """Lines of metadata in the order of clips, each after its clip is written."""
    if jobs == 1:
        yield from map(_Writer(order, stage).write, range(clips))
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, fresh, _start, (order,)) as pool:
        try:
            yield from pool.map(_write, range(clips), chunksize=CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def write_stage(
    out: Path,
    models: Path,
    clips: int,
    *,
    size: int = 128,
    seed: int = 0,
    actors: str = "all",
    actions: str = "all",
    reserved: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write a data folder: 000000.apng and so on, metadata.jsonl with captions, stage.json.

    Clip i depends on models, actors, actions, reserved, seed and i alone. It appears only whole,
    and its line in metadata.jsonl after it, so an interrupted folder is a smaller valid one.

    `models` is a folder of .glb files; `actors` and `actions` are names with commas between them,
    or "all"; `reserved` draws only the pairs that are otherwise never drawn; `jobs` is a number of
    processes; `progress` hears the number of clips done. UserError for a folder in use, models that
    are no use, or settings that make no sense.
    """
    check_folder(clips, size, seed)
    if jobs < 1:
        raise UserError(f"cannot draw with {jobs} processes: ask for at least 1")
    stage = Stage(models, actors, actions)
    stage.pairs(reserved=reserved)  # refuses where there are none
    order = Order(out, models, size, seed, actors, actions, reserved)
    about: dict[str, object] = {"seed": seed, "size": size, "fps": FPS, "clips": clips}
    about |= {"actors": list(stage.actors), "actions": list(stage.actions)}
    about |= {"reserved": sorted(RESERVED), "reserved_only": reserved}
    try:
        write_folder(out, "stage", about, _written(order, stage, clips, jobs), progress)
    except BrokenProcessPool as error:
        raise UserError("a drawing process was ended: try again with fewer --jobs") from error
