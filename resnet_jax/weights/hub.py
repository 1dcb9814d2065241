"""Weights on the Hugging Face hub, by addresses such as `hf://user/name`.

A model there is a folder with `FILE`, as `resnet_jax.export_torch` writes it.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from types import ModuleType

from resnet_jax.errors import UserError, needing

PREFIX = "hf://"
FILE = "model.safetensors"


def is_address(weights: str | os.PathLike[str]) -> bool:
    """Returns whether a name of weights is an address of the hub."""
    return os.fspath(weights).startswith(PREFIX)


def repository_of(address: str) -> str:
    """Returns what an address names, or raises UserError if that is no user's."""
    repository = address.removeprefix(PREFIX)
    if not re.fullmatch(r"[^/@]+/[^/@]+(@.+)?", repository):
        raise UserError(f"{address}: an address of the hub is hf://user/name")
    return repository


def fetch(address: str) -> pathlib.Path:
    """Returns the file of weights at an address, which is downloaded once.

    Args:
      address: `hf://user/name`, or `hf://user/name@revision`.

    Raises:
      UserError: if there is none, the hub is out of reach, or huggingface_hub is missing.
    """
    repository, _, revision = repository_of(address).partition("@")
    with _hub(address) as hub:
        return pathlib.Path(hub.hf_hub_download(repository, FILE, revision=revision or None))


def publish(folder: pathlib.Path, address: str) -> None:
    """Uploads the folder of a model, which is made there if need be.

    Args:
      folder: it holds `FILE` and what belongs beside it.
      address: `hf://user/name`.

    Raises:
      UserError: if there is no token, the hub refuses or is out of reach, or huggingface_hub is
        missing.
    """
    repository = repository_of(address)
    with _hub(address) as hub:
        if hub.get_token() is None:
            raise UserError(f"{address} needs a token of the hub; run `hf auth login`")
        repository = hub.create_repo(repository, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=folder)


@contextlib.contextmanager
def _hub(address: str) -> Iterator[ModuleType]:
    """Yields huggingface_hub, whose errors become one line."""
    with needing("hub", address):
        import huggingface_hub
    try:
        yield huggingface_hub
    except UserError:
        raise
    except Exception as error:  # of many libraries for HTTP, which versions of it exchange
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{address} can't be used: {reason[:300]}") from None
