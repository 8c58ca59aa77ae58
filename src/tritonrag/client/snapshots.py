"""Asking a server whether it serves a snapshot: for who has just published one."""

from __future__ import annotations

from tritonrag.client.marshalling import call
from tritonrag.client.synchronous import Client
from tritonrag.errors import NotFound, Unavailable, Unreachable

READ_TIMEOUT_S = 5.0


def why_not_served(
    client: Client, collection: str, snapshot: str, dimension: int, version: int | None = None
) -> str:
    """Return what a server says against a search in this very snapshot; empty where it serves it.

    Args:
        client: of the server.
        collection: its name.
        snapshot: the snapshot's name.
        dimension: of the embedder.
        version: the version of ``retrieve``; None is the highest that the server has loaded.

    Raises:
        TritonragError: the server cannot be asked.
    """
    embedding = [1.0] + [0.0] * (dimension - 1)
    asked = call(
        "retrieve", version, embedding=embedding, collection=collection, top_k=1, snapshot=snapshot
    )
    try:
        client._transport.infer(asked, READ_TIMEOUT_S)
    except Unreachable:
        raise
    except (NotFound, Unavailable) as error:
        return str(error)
    return ""
