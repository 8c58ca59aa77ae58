"""Where a server is, by protocol."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from tritonrag.errors import InvalidRequest

DEFAULT_URLS = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
"""Triton's own ports on this machine."""


def address(url: str | None, protocol: str) -> str:
    """Return ``url``, or the protocol's default.

    Raises:
        InvalidRequest: the protocol is unknown, or the URL is of the other one.
    """
    if protocol not in DEFAULT_URLS:
        raise InvalidRequest(f"protocol: is {protocol!r}, expected {' or '.join(DEFAULT_URLS)}")
    if url and protocol == "grpc" and "://" in url:
        raise InvalidRequest(f"url: is {url!r}, expected host:port for gRPC; or say protocol http")
    return url or DEFAULT_URLS[protocol]


def on_this_machine(url: str) -> bool:
    """Return whether ``url``, ``host:port`` or a whole one, leads to this machine: no proxy does.

    gRPC and httpx both read ``http_proxy`` and ask the proxy for 127.0.0.1 unless told not to.
    """
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
