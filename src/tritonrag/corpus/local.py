"""Folders and files of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tritonrag.corpus.place import Listing
from tritonrag.corpus.sidecars import of_known_kind, sidecar_names
from tritonrag.documents import Failure, SourceFile
from tritonrag.formats import SUFFIXES


def list_local(root: Path) -> Listing:
    """Return what lies below a folder, hidden files and linked folders left out, or a file."""
    listing = Listing()
    if root.is_dir():
        _walk(root, listing)
    elif not root.exists():
        listing.unlisted.append(Failure(str(root), "no such file or folder"))
    elif root.suffix.lower() not in SUFFIXES:
        reason = f"not a kind that can be indexed ({', '.join(SUFFIXES)})"
        listing.failures.append(Failure(str(root), reason))
    else:
        for path in (root, *map(root.with_name, sidecar_names(root.name))):
            _take(path, path.name, listing)
    return listing


def _walk(root: Path, listing: Listing) -> None:
    unreadable: list[OSError] = []
    for path in _visible(root, unreadable):
        _take(path, path.relative_to(root).as_posix(), listing)
    for error in unreadable:
        reason = f"cannot be read: {error.strerror}"
        listing.unlisted.append(Failure(str(error.filename), reason))


def _visible(root: Path, unreadable: list[OSError]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _take(path: Path, key: str, listing: Listing) -> None:
    known = of_known_kind(key)
    # A link that leads nowhere is refused when it is read, and not taken for a file that is gone.
    if path.is_file() or (known and path.is_symlink()):
        listing.keys.add(key)
        if known:
            listing.files.append(SourceFile(path, key))
