"""Where a server of this machine listens."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, fields

from tritonrag.errors import SetupError

HOST = "127.0.0.1"
HTTP_PORT, GRPC_PORT, METRICS_PORT, WATCHDOG_PORT = 8000, 8001, 8002, 8003


@dataclass(frozen=True)
class Ports:
    """The ports of Triton (``http``, ``grpc``, ``metrics``) and of its watchdog."""

    http: int = HTTP_PORT
    grpc: int = GRPC_PORT
    metrics: int = METRICS_PORT
    watchdog: int = WATCHDOG_PORT

    def check_free(self) -> None:
        """Check that all are free and none is named twice.

        Raises:
            SetupError: the message names the port and the option.
        """
        if len(set(asdict(self).values())) < len(asdict(self)):
            raise SetupError(
                f"the ports are {self.http}, {self.grpc}, {self.metrics} and {self.watchdog} "
                "(HTTP, gRPC, metrics, watchdog); choose four different ones"
            )
        for name, port in asdict(self).items():
            _check_free(name, port)


def free_ports() -> Ports:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in fields(Ports)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))
    finally:
        for each in sockets:
            each.close()


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"{name} port {port} is in use ({error.strerror}); choose another with "
                f"--{name}-port, or stop what uses it"
            ) from error
