"""Models by their name on a hub (huggingface.co, or what ``HF_ENDPOINT`` names).

What is in the local cache already is taken from there and the network is not asked; else
huggingface_hub fetches the files that are needed, with its progress bars. Files that were fetched
whole are kept when a download is cut off. ``HF_HUB_OFFLINE`` forbids the network.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcept.errors import UserError

# What files of a name hold, by what is wanted of it: a whole pipeline, or one part of it.
ENCODER = ("tokenizer", "text_encoder")
FOLDERS = {
    "": ("transformer", "vae", *ENCODER, "scheduler"),
    "vae": ("vae",),
    "text_encoder": ENCODER,
}
# A part may also stand alone under a name, with its files at the top.
ALONE = {
    "": (),
    "vae": ("config.json", "diffusion_pytorch_model*.safetensors"),
    "text_encoder": (
        "config.json", "model*.safetensors", "tokenizer*", "special_tokens_map.json",
        "spiece.model", "vocab.json", "merges.txt",
    ),
}  # fmt: skip
SETTINGS = ("model_index.json", "transformer/config.json", "vae/config.json")  # of all parts
# Weights as they are loaded: in one file or several, no copy in half floats.
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
COPIES = ("*.bin", "*.fp16*", "*.bf16*", "*.fp32*", "*.msgpack", "*.h5", "*.onnx*", "*.gguf")
NAME = re.compile(r"(?P<model>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
OFFLINE = "is not in the cache, or only in part, and HF_HUB_OFFLINE is set: unset it to download"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """``owner/model``, or ``owner/model@revision``: a branch, a tag or a commit."""

    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.model if self.revision is None else f"{self.model}@{self.revision}"


def parse(name: str) -> HubName | None:
    """The name on a hub that a text is; None of any other text."""
    found = NAME.fullmatch(name)
    return found and HubName(found["model"], found["revision"])


def fetch(name: HubName, part: str = "", *, settings_only: bool = False) -> Path:
    """The folder of a model in the local cache, whose name is the commit; fetched if need be.

    ``part`` is one of ``FOLDERS``; ``settings_only`` leaves weights out. A revision that is given
    and is no commit may move on, so the hub is asked for it. Raises ``UserError``, one line.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f'{name} is a model on a hub: to download it, pip install ".[diffusers]"'
        ) from error
    allowed = [*SETTINGS, *(f"{one}/*" for one in FOLDERS[part]), *ALONE[part]]
    kinds = {
        "allow_patterns": allowed,
        "ignore_patterns": [*COPIES, *(["*.safetensors"] if settings_only else [])],
    }

    def snapshot(**where: Any) -> Path:  # noqa: ANN401
        where |= {"revision": name.revision, **kinds}
        return Path(huggingface_hub.snapshot_download(name.model, **where))

    fixed = name.revision is None or COMMIT.fullmatch(name.revision)
    try:
        if fixed:
            with suppress(FileNotFoundError):
                kept = snapshot(local_files_only=True)
                if not lacking(kept, part, settings_only):
                    return kept
        folder = snapshot()
    except Exception as error:
        raise _refused(error, name) from error
    if huggingface_hub.constants.is_offline_mode() and lacking(folder, part, settings_only):
        raise UserError(f"{name} {OFFLINE}")
    return folder


def lacking(folder: Path, part: str, settings_only: bool = False) -> bool:
    """Whether some of the files are not there; no list of them is needed for that."""
    if not (folder / "model_index.json").is_file():  # a part that stands alone
        return not list(folder.glob("*config.json"))
    return any(_lacking(folder / one, settings_only) for one in FOLDERS[part])


def _lacking(folder: Path, settings_only: bool) -> bool:
    names = {path.name for path in folder.glob("*")}
    if settings_only or folder.name in ("tokenizer", "scheduler"):
        return not names
    weights = {name for name in names if WEIGHTS.fullmatch(name)}
    return not weights or not _shards(folder) <= names


def _shards(folder: Path) -> set[str]:
    """Files over which weights are spread, as the folder's index has them."""
    files: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            files |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            files.add(index.name + " that can be read")
    return files


def _refused(error: Exception, name: HubName) -> UserError:
    """What went wrong at the hub, in one line, with the remedy."""
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT
    log_in = "log in with: hf auth login"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{name.model}"
        return UserError(f"{name} asks you to accept its licence at {page}; then {log_in}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"no model {name} here or on {host} (if it is private, {log_in})")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name.model} on {host} has no revision {name.revision}")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"no model {name}: there is no such file or folder")
    if constants.is_offline_mode():
        return UserError(f"{name} {OFFLINE}")
    for one in (error, error.__cause__):
        answer = getattr(getattr(one, "response", None), "status_code", None)
        if answer is not None:
            remedy = log_in if answer in (401, 403) else "try again later"
            return UserError(f"{host} refused {name} (status {answer}): {remedy}")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{name} cannot be written to the cache: {error.strerror}")
    cut = "finished files are kept; try again, or give a folder"
    return UserError(f"{name} could not be downloaded from {host} ({cut})")
