"""How a model is named, everywhere: one rule from what was typed to what lies on disk.

A name is, in this order: that of a shipped model; a ``.safetensors`` file; a run's folder; a
folder of diffusers; a name on a hub, ``owner/model`` or ``owner/model@revision``. Where an
autoencoder or a text encoder is wanted, its own folder will do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowcept import hub
from flowcept.errors import UserError

DEFAULT = "theatre"  # the model that is taken where none is named
FILE, INDEX = "model.safetensors", "model_index.json"  # of a run, of a folder of diffusers
WANTED = {"": "model", "vae": "autoencoder", "text_encoder": "text encoder"}  # by part
KINDS = (
    "a .safetensors file, a run's folder, a diffusers folder, or a name on a hub such as "
    "Lightricks/LTX-Video"
)


@dataclass(frozen=True)
class Model:
    """What a name stands for."""

    path: Path  # a file, or a folder of diffusers
    name: str  # for people
    source: str  # what finds it again: an absolute path, or a name on a hub with its commit

    def __str__(self) -> str:
        return self.source if hub.parse(self.source) else str(self.path)

    @property
    def is_folder(self) -> bool:
        """Whether it is of diffusers, not a file of ours."""
        return self.path.is_dir()


def find(name: str | Path | Model | None, prefer: str = DEFAULT, part: str = "") -> Model:
    """The model of a name; of a ``part``, vae or text_encoder, the folder may be that alone.

    None is the one that ``$FLOWCEPT_MODEL`` names, else the one to ``prefer`` where it came with
    the package, else the default one. Raises ``UserError``, one line, where nothing has that name.
    """
    if isinstance(name, Model):  # found before
        return name
    shipped = shipped_models()
    usual = prefer if prefer in shipped else DEFAULT
    wanted = str(name or os.environ.get("FLOWCEPT_MODEL") or usual)
    if wanted in shipped:
        return _here(shipped[wanted])
    path = _expanded(wanted)
    if path.is_dir():
        return _of_folder(path, part)
    if path.exists():
        return _here(path)
    near = _near(wanted, path, shipped)
    remote = None if path.suffix == ".safetensors" else hub.parse(wanted)
    if remote is not None:
        try:
            return _of_hub(remote, part)
        except UserError as error:
            raise UserError(f"{error}; {near}" if near else str(error)) from error
    on_disk = path.suffix == ".safetensors" or path.name != wanted
    raise UserError(
        f"no model {wanted!r}: {near or ('there is no such file' if on_disk else _known(shipped))}"
    )


def check_task(command: str, name: str, tasks: Collection[str], *, pretrained: bool) -> None:
    """Raise ``UserError`` where a model is not for what a command makes."""
    if command not in tasks:
        does = f"{name} is a model only for {', '.join(sorted(tasks))}"
        remedy = f"use another model, such as {DEFAULT}"
        if pretrained:
            remedy = "train it for that, named by `init`, or use another"
        raise UserError(f"{does}, not for {command}: {remedy}")


def is_named(text: str) -> bool:
    """Whether a text names a model, rather than a clip or picture."""
    path = _expanded(text)
    if path.is_dir():
        return any((path / file).is_file() for file in (INDEX, FILE, "config.json", "config.toml"))
    named = text in shipped_models() or path.suffix == ".safetensors"
    return named or (not path.exists() and (not path.suffix or hub.parse(text) is not None))


def shipped_models() -> dict[str, Path]:
    """Models that came with the package, by name: in the wheel, or beside a source checkout."""
    here = Path(__file__).parent
    folders = (here.parent / "weights", here / "weights")
    return {file.stem: file for folder in folders for file in folder.glob("*.safetensors")}


def places(source: str, given: str | None) -> Iterator[str]:
    """Where a recorded ``source`` may lie: where it is ``given``, or else, in this order, in the
    folders that ``$FLOWCEPT_BASES`` lists, and where it was.
    """
    if given:
        yield given
        return
    own = Path(source.partition("@")[0]).name
    for folder in filter(None, os.environ.get("FLOWCEPT_BASES", "").split(os.pathsep)):
        if (Path(folder) / own).is_dir():
            yield str(Path(folder) / own)
    yield source


def _here(path: Path) -> Model:
    return Model(path, path.stem, str(path.absolute()))


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"no model {text!r}: there is no such user") from error


def _inside(folder: Path) -> Path | None:
    """The model that a folder is, or holds."""
    if (folder / INDEX).is_file():
        return folder
    return folder / FILE if (folder / FILE).is_file() else None


def _of_folder(folder: Path, part: str) -> Model:
    """A run's model file, or a folder of diffusers."""
    own = folder.resolve()
    alone = part and any((at / "config.json").is_file() for at in (folder, folder / part))
    inside = folder if alone else _inside(folder)
    if inside is not None:
        return Model(inside, own.name, str(inside.absolute()))
    if (folder / "config.toml").is_file():
        raise UserError(
            f"the run in {folder} has written no {FILE} yet: wait, or continue it with --resume"
        )
    if (folder / "config.json").is_file() and (own.parent / INDEX).is_file():
        raise UserError(f"{folder} is one part of a model: give the whole folder, {own.parent}")
    files = f"a run's {FILE}, {INDEX} of diffusers" + (", config.json of its own" if part else "")
    raise UserError(f"{folder} holds no {WANTED[part]}: looked for {files}")


def _of_hub(name: hub.HubName, part: str) -> Model:
    """Settings first: a model that cannot be used is refused before its weights are fetched."""
    if not part:
        from flowcept.diffusers_folder import check

        settings = hub.fetch(name, settings_only=True)
        try:
            check(settings)
        except UserError as error:
            raise UserError(str(error).replace(str(settings), str(name))) from error
        name = hub.HubName(name.model, settings.name)
    folder = hub.fetch(name, part)
    source = f"{name.model}@{folder.name}"
    return Model(folder, source, source)


def _near(wanted: str, path: Path, shipped: Iterable[str]) -> str:
    """A question that offers names of models that are much like this one; nothing if none are."""
    beside = path.parent
    try:
        others = [one for one in beside.iterdir() if one.suffix == ".safetensors" or _inside(one)]
    except OSError:
        others = []
    names = {one.name: str(one) for one in others}
    if wanted == path.name:
        names |= {one: one for one in shipped}
    found = difflib.get_close_matches(Path(wanted).name, names, n=2)
    return f"did you mean {' or '.join(names[one] for one in found)}?" if found else ""


def _known(shipped: Iterable[str]) -> str:
    names = ", ".join(sorted(shipped)) or "none"
    return f"give a shipped name ({names}), {KINDS}"
