"""Runs the ``tritonserver`` of this machine, such as the container's, under the watchdog.

The watchdog starts the server again within seconds. Where that does not help it ends with status 1,
so that whoever runs the container starts it anew.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tritonrag.server.control import Control
from tritonrag.server.launch import Launch, Triton, admin_key
from tritonrag.server.monitor import monitored
from tritonrag.server.ports import Ports
from tritonrag.server.watchdog import Watchdog

_PORTS = (("http", 8000), ("grpc", 8001), ("metrics", 8002))

EXIT_TIMEOUT_S = 30
"""Triton's own ``--exit-timeout-secs`` where the options say nothing."""


def run(command: Sequence[str], watchdog_address: str, watchdog_port: int) -> None:
    """Run ``command``, tritonserver with its options, until SIGTERM.

    The key of the closed APIs is that of ``TRITONRAG_ADMIN_KEY``, or else one that nobody knows.

    Raises:
        SetupError: the key is too short, the watchdog's port is in use, or the server does not
            start any more.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, _exit)
    key = admin_key()
    ports = Ports(*(_option(command, f"{name}-port", default) for name, default in _PORTS))
    triton = Triton(Launch(command, os.environ, key))
    watchdog = Watchdog(triton, Control(ports, key))
    with monitored(watchdog, watchdog_address, watchdog_port):
        try:
            triton.start()
            watchdog.run()
        finally:
            triton.end(_option(command, "exit-timeout-secs", EXIT_TIMEOUT_S) + 2)


def _option(command: Sequence[str], name: str, default: int) -> int:
    """Return a number that an option of the command gives, as ``--name=7`` or ``--name 7``."""
    found = re.search(rf"(?:^|\s)--{name}[=\s](\d+)(?:\s|$)", " ".join(command))
    return int(found[1]) if found else default


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
