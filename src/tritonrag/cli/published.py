"""Whether the server serves what was just written, asked of the server itself."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from tritonrag.cli.index import stderr
from tritonrag.cli.terminal import printable
from tritonrag.cli.working import Servers
from tritonrag.client import Client
from tritonrag.client.addresses import address
from tritonrag.client.snapshots import READ_TIMEOUT_S, why_not_served
from tritonrag.errors import TritonragError
from tritonrag.index import layout
from tritonrag.settings import INDEX_DIR_VARIABLE, VectorDbSettings

PICKED_UP_S = 10.0
"""What a server may take to load a small snapshot; it looks twice a second."""

BYTES_PER_S = 50e6
"""Of a larger one, it is given time for so many bytes a second."""

POLL_S = 0.1


@dataclass(frozen=True)
class Written:
    """A live snapshot in an index folder, of an embedder with this SHA-256 and dimension."""

    index_dir: Path
    collection: str
    snapshot: str
    sha256: str
    dimension: int

    @property
    def folder(self) -> Path:
        """The collection's folder."""
        return self.index_dir / self.collection

    @property
    def superseded(self) -> bool:
        """Whether another one has become live since."""
        return layout.current(self.folder, self.sha256) != self.snapshot

    @property
    def seconds(self) -> float:
        """How long servers have to pick it up."""
        size = sum(path.stat().st_size for path in (self.folder / self.snapshot).iterdir())
        return PICKED_UP_S + size / BYTES_PER_S


def is_served(written: Written, servers: Servers, *, new: bool) -> bool | None:
    """Return whether every server of a run serves what is written, and say so where not.

    None where one cannot be asked, which is said only if there is something ``new``.
    """
    end = time.monotonic() + (written.seconds if new else 0)
    for url in servers.urls:
        try:
            with Client(url, servers.protocol, READ_TIMEOUT_S) as client:
                why = _why_not(client, written, servers.version, end)
        except TritonragError as error:
            if new:
                _say(f"whether the server serves it cannot be told: {error}")
            return None
        if why:
            _say(_refusal(written, address(url, servers.protocol), why))
            return False
    return True


def _why_not(client: Client, written: Written, version: int | None, end: float) -> str:
    asked = written.collection, written.snapshot, written.dimension, version
    while (why := why_not_served(client, *asked)) and not written.superseded:
        if time.monotonic() >= end:
            return why
        time.sleep(POLL_S)
    return ""


def _refusal(written: Written, url: str, why: str) -> str:
    ours = written.index_dir.resolve()
    place = f"{ours}{' and in Milvus' if VectorDbSettings.from_environment() else ''}"
    theirs = _index_of(url)
    known = f"It reads {theirs}. " if theirs and theirs != str(ours) else ""
    return (
        f"{written.collection}: snapshot {written.snapshot} is in {place}, but the server at {url} "
        f"does not serve it: {why}\n"
        f"{known}Name the folder that the server reads with --index-dir or {INDEX_DIR_VARIABLE} "
        "(in a container, what is mounted there) and run this again, or start the server with this "
        "folder; VECTOR_DB_URI has to be the same for both, or set for neither"
    )


def _index_of(url: str) -> str:
    """Return the folder that an embedded server of this machine reads, where it is known."""
    with suppress(ImportError, TritonragError):
        from tritonrag.cli.serving import STATE
        from tritonrag.server.process import EmbeddedServer

        running = EmbeddedServer(STATE).running()
        port = url.rsplit(":", 1)[-1].rstrip("/")
        if running and port in (str(running.ports.grpc), str(running.ports.http)):
            return running.index_dir
    return ""


def _say(line: str) -> None:
    stderr().print(Text(printable(line, newlines=True), style="yellow"))
