"""Whether the Hugging Face hub can be asked, found out once and quickly."""

from __future__ import annotations

import functools
import socket
from urllib.parse import urlparse

from huggingface_hub import constants

CONNECT_SECONDS = 3.0


@functools.cache
def hub_is_reachable() -> bool:
    """True if the hub may be asked (HF_HUB_OFFLINE is not set) and answers a connection.

    The hub's client retries for a long time when there is no network; asking first keeps a
    run without network from waiting.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlparse(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False
