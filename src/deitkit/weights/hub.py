"""Access to the Hugging Face hub: without retries where there is no network, and without advertising."""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import WeightsError

_TIMEOUT_S = 5.0


@contextlib.contextmanager
def hub_access() -> Iterator[bool]:
    """Yields whether the hub can be reached. If not, only what is in the local cache is found, at once.

    The hub's clients would retry each file for half a minute and log every attempt. They are quiet in here.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    level, offline = logging.get_verbosity(), constants.HF_HUB_OFFLINE
    online = not offline and _reachable(constants.ENDPOINT)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    constants.HF_HUB_OFFLINE = not online
    # transformers would otherwise ask a web service to convert a checkpoint, from a background thread.
    converts = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield online
    finally:
        logging.set_verbosity(level)
        constants.HF_HUB_OFFLINE = offline
        if converts is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]


def snapshot(name: str, files: Sequence[str]) -> Path:
    """The folder in the local cache with those of `files` that the model OWNER/NAME of the hub has.

    Raises WeightsError if the hub has no such model, or cannot be reached and the cache has none.
    """
    from huggingface_hub import snapshot_download

    with hub_access() as online:
        try:
            return Path(snapshot_download(name, allow_patterns=list(files)))
        except Exception as error:  # the client has errors of many types
            raise WeightsError(
                f"the hub could not give 'hf:{name}' ({cause(error, online)}); check the name and the network"
            ) from None


def cause(error: Exception, online: bool) -> str:
    """Why a hub did not give a file, for messages."""
    return type(error).__name__ if online else "it is not in the local cache, and the hub cannot be reached"


def _reachable(endpoint: str) -> bool:
    if urllib.request.getproxies():  # the proxy resolves names, and this machine may not
        return True
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True
