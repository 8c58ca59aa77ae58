"""Where files are parsed and passages embedded: on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tritonrag import versions
from tritonrag.client import Client
from tritonrag.errors import InvalidRequest
from tritonrag.versions import EMBED

if TYPE_CHECKING:
    from tritonrag.chunking import Chunker
    from tritonrag.index.embedding import Embedder, EmbedGroups
    from tritonrag.parsing import Limits, Parsers

EMBED_TIMEOUT_S = 120.0

EMBEDDERS = 2
"""Workers of a cluster for each server, so that it has work while one of them ends a group."""


@dataclass(frozen=True)
class Work:
    """What parses and what embeds, for an ``Adder``."""

    parsers: Parsers
    embedder: Embedder
    embed_groups: EmbedGroups


@dataclass(frozen=True)
class Servers:
    """The servers of a run, ``urls`` as given (several between commas), and the embedder's version.

    They embed, each batch on the next one; each process that embeds connects for itself. Without a
    version it is the one that the graph uses.
    """

    url: str | None
    protocol: str
    version: int | None = None

    @classmethod
    def of(cls, url: str | None, protocol: str, repository: Path, version: int) -> Servers:
        """Return them; a version is asked for by its number where the servers may have others."""
        alone = versions.installed(repository, EMBED) == [version]
        return cls(url, protocol, None if alone else version)

    @property
    def urls(self) -> list[str | None]:
        """The servers one by one."""
        return [*self.url.split(",")] if self.url else [None]

    def embed(self, texts: Sequence[str], role: str = "passage") -> npt.NDArray[np.float32]:
        """Return L2-normalised embeddings, float32 ``[texts, dimension]``."""
        url = self.urls[next(_turns) % len(self.urls)]
        return _client(url, self.protocol).embed(texts, role, version=self.version)


@contextmanager
def working(
    chunker: Chunker, limits: Limits, workers: int | None, servers: Servers, ray: str | None
) -> Iterator[Work]:
    """Yield what does the work: on the cluster at ``ray``, or here where that is None.

    Raises:
        InvalidRequest: several servers without a cluster.
        SetupError: Ray is not installed.
        Unavailable: no cluster is there.
    """
    if ray is not None:
        from tritonrag.distributed import connected

        with connected(ray, EMBEDDERS * len(servers.urls)) as cluster:
            parsers = cluster.parsers(chunker, limits, workers)
            yield Work(parsers, servers, cluster.embed_groups)
        return
    from tritonrag.index.embedding import embed_groups
    from tritonrag.parsing import ParserPool

    if len(servers.urls) > 1:
        raise InvalidRequest(f"--url: is {servers.url!r}, expected one server; several need --ray")
    with (
        Client(servers.url, servers.protocol, EMBED_TIMEOUT_S) as client,
        ParserPool(chunker, limits, workers) as pool,
    ):
        embedder = client if servers.version is None else _Version(client, servers.version)
        yield Work(pool, embedder, embed_groups)


@dataclass(frozen=True)
class _Version:
    """One version of the server's embedder, whichever the graph uses."""

    client: Client
    version: int

    def embed(self, texts: Sequence[str], role: str = "passage") -> npt.NDArray[np.float32]:
        return self.client.embed(texts, role, version=self.version)


_turns = count(os.getpid())  # Workers that begin together begin with different servers.


@cache
def _client(url: str | None, protocol: str) -> Client:
    return Client(url, protocol, EMBED_TIMEOUT_S)
