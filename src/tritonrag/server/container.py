"""Runs the ``tritonserver`` of this machine, such as the container's, under the watchdog.

The watchdog starts the server again within seconds. Where that does not help it ends with status 1,
so that whoever runs the container starts it anew.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from tritonrag.errors import SetupError
from tritonrag.server.control import Control
from tritonrag.server.launch import Launch, Triton, admin_key, end_on_sigterm
from tritonrag.server.monitor import monitored
from tritonrag.server.ports import GRPC_PORT, HOST, HTTP_PORT, METRICS_PORT, Ports
from tritonrag.server.watchdog import START_S, Watchdog

LOG = logging.getLogger(__name__)

_PORTS = (("http", HTTP_PORT), ("grpc", GRPC_PORT), ("metrics", METRICS_PORT))

_HERE = ("", "0.0.0.0", HOST, "localhost")
"""Addresses by which a server also listens at 127.0.0.1; the first is Triton's default."""

EXIT_TIMEOUT_S = 30
"""Triton's own ``--exit-timeout-secs`` where the options say nothing."""


def run(
    command: Sequence[str], watchdog_address: str, watchdog_port: int, start_s: float = START_S
) -> None:
    """Run ``command``, tritonserver with its options, until SIGTERM.

    The key of the closed APIs is that of ``TRITONRAG_ADMIN_KEY``, or else one that nobody knows.
    ``start_s`` is how long the server may take to load its models, in seconds.

    Raises:
        SetupError: the key is too short, an option keeps the watchdog from asking the server, the
            watchdog's port is in use, or the server cannot be started, or not any more.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    end_on_sigterm()
    check(command)
    key = admin_key()
    ports = Ports(*(_option(command, f"{name}-port", default) for name, default in _PORTS))
    triton = Triton(Launch(command, os.environ, key))
    watchdog = Watchdog(triton, Control(ports, key), start_s=start_s)
    with monitored(watchdog, watchdog_address, watchdog_port):
        try:
            triton.start()
            watchdog.run()
        finally:
            triton.end(_option(command, "exit-timeout-secs", EXIT_TIMEOUT_S) + 2)


def check(command: Sequence[str]) -> None:
    """See that the watchdog can ask the server that a command runs.

    Raises:
        SetupError: HTTP or gRPC is off, or does not listen at 127.0.0.1. Where the metrics do not,
            the log says what is not seen.
    """
    for name, _ in _PORTS:
        option = _closing(command, name)
        if option and name != "metrics":
            raise SetupError(
                f"{option}: the watchdog asks the server at {HOST}, over HTTP and gRPC; leave this "
                f"option out, or let --{name}-address be 0.0.0.0 or {HOST}"
            )
        if option:
            LOG.warning(
                "watchdog: %s: without metrics at %s it sees neither models that run no batch nor "
                "the memory that they share, and shows no queues",
                option,
                HOST,
            )


def _closing(command: Sequence[str], name: str) -> str:
    """Return the option by which a service does not listen at 127.0.0.1, or ""."""
    allow, address = _value(command, f"allow-{name}"), _value(command, f"{name}-address")
    if allow.lower() in ("false", "0"):
        return f"--allow-{name}={allow}"
    return "" if address in _HERE else f"--{name}-address={address}"


def _option(command: Sequence[str], name: str, default: int) -> int:
    """Return a number that an option of the command gives."""
    value = _value(command, name)
    return int(value) if value.isdecimal() else default


def _value(command: Sequence[str], name: str) -> str:
    """Return what an option of the command says last, as ``--name=7`` or ``--name 7``, or ""."""
    found = re.findall(rf"(?:^|\s)--{name}[=\s](\S+)", " ".join(command))
    return str(found[-1]) if found else ""
