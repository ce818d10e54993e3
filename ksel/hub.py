"""Whether the Hugging Face hub can be asked, found out once and quickly."""

from __future__ import annotations

import functools
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from huggingface_hub import constants, try_to_load_from_cache

CONNECT_SECONDS = 3.0


@functools.cache
def hub_is_reachable() -> bool:
    """True if the hub may be asked (HF_HUB_OFFLINE is not set) and answers a connection.

    The hub's client retries for a long time when there is no network; asking first keeps a
    run without network from waiting. Behind a proxy it is the proxy that has to answer.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlparse(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlparse(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def in_cache(repository: str, file: str) -> bool:
    """True if the hub's cache on this machine holds the file."""
    return isinstance(try_to_load_from_cache(repository, file), str)


@contextmanager
def offline_switch(settings: Any, offline: bool) -> Iterator[None]:
    """Set the ``HF_HUB_OFFLINE`` of a library's settings for a while."""
    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before
