"""Where things are in the index directory: collections, snapshots, and which one is live.

The only module that reads or writes ``CURRENT`` and, beside it, ``CURRENT-<sha256>`` of each
embedder: several versions may be served at once, each from a snapshot of its own.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from tritonrag.contract import COLLECTION_PATTERN
from tritonrag.errors import InvalidRequest, NotFound, SetupError

CURRENT = "CURRENT"
UNFINISHED = ".unfinished-"
"""Prefix of a snapshot folder that is being written."""

_SNAPSHOT = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{4}")


def check_collection(name: str) -> str:
    """Return ``name`` if a collection may be called so.

    Raises:
        InvalidRequest: it may not.
    """
    if not re.fullmatch(COLLECTION_PATTERN, name):
        raise InvalidRequest(
            f"collection: {name[:80]!r} is not a collection's name; use 1 to 64 lower-case "
            "letters, digits, `-` and `_`, a letter or digit first"
        )
    return name


def collections(index_dir: Path) -> list[str]:
    """Return the names of the collections that have a live snapshot, sorted."""
    try:
        names = sorted(entry.name for entry in os.scandir(index_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        name
        for name in names
        if re.fullmatch(COLLECTION_PATTERN, name) and _has_pointer(index_dir / name)
    ]


def _has_pointer(collection: Path) -> bool:
    try:
        return (collection / CURRENT).is_file()
    except PermissionError:
        return True  # Whoever reads it is told, and the other collections are not affected.


def known_collection(index_dir: Path, name: str) -> Path:
    """Return the folder of a collection that has a live snapshot.

    Raises:
        InvalidRequest: a collection may not be called so.
        NotFound: there is none of that name; the message lists those there are.
    """
    known = collections(index_dir)
    if check_collection(name) not in known:
        raise unknown_collection(name, known)
    return index_dir / name


def unknown_collection(name: str, known: list[str], none: str = "there is none yet") -> NotFound:
    """Return the error for a collection that does not exist, naming the ``known`` ones."""
    those = f"there are {', '.join(known)}" if known else none
    return NotFound(
        f"collection: no collection is called {name!r}; {those} "
        "(`tritonrag index add PATH --collection NAME` makes one)"
    )


def new_snapshot(now: datetime) -> str:
    """Return the name of a snapshot made at ``now`` (UTC): names sort by time and are unique."""
    return f"{now:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(2)}"


def snapshots(collection: Path) -> list[str]:
    """Return the names of the finished snapshots of a collection, oldest first."""
    return sorted(entry.name for entry in collection.iterdir() if _SNAPSHOT.fullmatch(entry.name))


def pointer(collection: Path, sha256: str = "") -> Path:
    """Return the file that names the live snapshot of an embedder, by its SHA-256; "" for any."""
    return collection / (f"{CURRENT}-{sha256[:12]}" if sha256 else CURRENT)


def current(collection: Path, sha256: str = "") -> str | None:
    """Return the name of the live snapshot, or None if there is none.

    With the SHA-256 of an embedder it is that one's own; where it has none, ``CURRENT`` counts.

    Raises:
        SetupError: the file holds something that is not a snapshot's name.
    """
    for path in dict.fromkeys((pointer(collection, sha256), pointer(collection))):
        with suppress(FileNotFoundError):
            name = path.read_text(encoding="ascii", errors="replace").strip()
            if not _SNAPSHOT.fullmatch(name):
                raise SetupError(
                    f"{collection.name}/{path.name} does not name a snapshot; "
                    "`tritonrag index rollback --to SNAPSHOT` sets it"
                )
            return name
    return None


def pointers(collection: Path) -> dict[str, str]:
    """Return the live snapshot for each embedder, by the start of its SHA-256; "" is for any."""
    return {
        path.name.removeprefix(CURRENT).removeprefix("-"): path.read_text(
            encoding="ascii", errors="replace"
        ).strip()
        for path in collection.glob(f"{CURRENT}*")
    }


def pointed(collection: Path) -> set[str]:
    """Return the snapshots that are live for any embedder."""
    return set(pointers(collection).values())


def set_current(collection: Path, snapshot: str, sha256: str = "") -> None:
    """Make ``snapshot`` live: readers see the old name or the new one, never anything between.

    With the SHA-256 of an embedder it is live for that one alone.
    """
    target = pointer(collection, sha256)
    new = target.with_name(f".{target.name}.new")
    with new.open("w", encoding="ascii") as file:
        file.write(snapshot + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, target)
    sync_folder(collection)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
