"""From what a user calls a model to a local folder: the embedded one, a folder, or a hub's id."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread
from typing import Final

from minisgl import registry
from minisgl.models.weights import weight_files

_FILES: Final = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "merges.txt"]
_OTHERS: Final = [
    "consolidated*",
    "*/*",
]  # the same weights once more, in their makers' own formats
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PATIENCE: Final = 5.0  # seconds for the hub's first answer


def locate(model: str) -> Path:
    """The folder of ``model``: "tiny", "tiny-awq", a local folder, or a Hugging Face id.

    An id is looked for among what was downloaded before, then on the hub, which is given five
    seconds to answer. Only configuration, tokenizer and safetensors files are downloaded.
    Raises FileNotFoundError for what is not there, ValueError for what cannot be a model,
    ConnectionError for a hub that cannot be reached, PermissionError for a gated model.
    """
    if model in registry.names("embedded"):
        return _checked(Path(registry.find("embedded", model)()))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder.exists():
        raise ValueError(
            f"{model} is a file; give the folder that holds config.json and the weights"
        )
    if not _ID.fullmatch(model):
        raise FileNotFoundError(
            f"{model!r} is no folder here, and no Hugging Face id, which looks like owner/name"
        )
    return _cached(model) or _downloaded(model)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a model folder")
    weight_files(folder)
    return folder


def _cached(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(model, local_files_only=True)))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None  # not there, or a download that was cut short


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    gated = PermissionError(
        f"{model} is gated: accept its licence on https://huggingface.co/{model}, then log in with "
        f"`hf auth login`"
    )
    try:
        _ask(model)
        folder = snapshot_download(model, allow_patterns=_FILES, ignore_patterns=_OTHERS)
    except GatedRepoError:  # a kind of RepositoryNotFoundError
        raise gated from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{model} is neither a folder here nor a model on the Hugging Face hub that this user "
            f"may see"
        ) from None
    return _checked(Path(folder))


def _ask(model: str) -> None:
    """Ask the hub for the model once, without the retries that make a missing hub cost 23 seconds.

    In a thread, since no timeout of the client covers a name server that does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    failures: list[Exception] = []

    def ask() -> None:
        try:
            HfApi().model_info(model, timeout=_PATIENCE)
        except Exception as error:
            failures.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if failures and isinstance(failures[0], RepositoryNotFoundError):
        raise failures[0]
    if failures or thread.is_alive():
        why = str(failures[0]).splitlines()[0] if failures else f"no answer in {_PATIENCE:.0f} s"
        raise ConnectionError(
            f"{model} was not downloaded before, and the Hugging Face hub cannot be reached ({why})"
            f"; give a local folder or 'tiny', or try again online"
        )
