"""An S3 server for tests, and a door before it that can be shut."""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import boto3
from moto.server import ThreadedMotoServer


class Door(ThreadingTCPServer):
    """Passes connections on to a server; shut, it ends them and takes no request."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.behind = port
        self.shut = False
        self.shut_at: int | None = None
        self.reads: list[str] = []
        self._lock = threading.Lock()

    def passes(self, data: bytes) -> bool:
        """Count the objects read; shut the door at number ``shut_at``."""
        words = data.split(b" ", 2)
        with self._lock:
            if words[0] == b"GET" and b"?" not in words[1]:
                self.reads.append(words[1].decode())
                if self.shut_at is not None and len(self.reads) >= self.shut_at:
                    self.shut, self.shut_at = True, None
        return not self.shut


class _Passage(BaseRequestHandler):
    server: Door

    def handle(self) -> None:
        if self.server.shut:
            return
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.server.behind)) as there,
        ):
            threading.Thread(target=self._back, args=(there,), daemon=True).start()
            for data in iter(lambda: self.request.recv(65536), b""):
                if not self.server.passes(data):
                    return
                there.sendall(data)

    def _back(self, there: socket.socket) -> None:
        with suppress(OSError):
            for data in iter(lambda: there.recv(65536), b""):
                self.request.sendall(data)


class Bucket:
    """A bucket, written to past the door."""

    def __init__(self, name: str, port: int, door: Door) -> None:
        self.name = name
        self.door = door
        self._client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="writer",
            aws_secret_access_key="writer",
        )
        self._client.create_bucket(Bucket=self.name)

    def put(self, key: str, text: str, **options: Any) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=text.encode(), **options)

    def put_all(self, texts: Iterable[tuple[str, str]]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda each: self.put(*each), texts))

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._client.delete_object(Bucket=self.name, Key=key)


@contextmanager
def s3_server() -> Iterator[int]:
    """Yield the port of a server that keeps its buckets as long as this process lives."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextmanager
def s3_bucket(port: int) -> Iterator[Bucket]:
    """Yield a new bucket of the server at ``port``, behind a door of its own."""
    door = Door(port)
    threading.Thread(target=door.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Bucket(f"docs-{uuid.uuid4().hex[:8]}", port, door)
    finally:
        door.shutdown()
        door.server_close()
