"""Folders and files of this machine.

Links to files below the folder that was named are files like others. What lies outside is indexed
only where links are to be followed; what is named itself may be a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tritonrag.corpus.place import Listing
from tritonrag.corpus.sidecars import Refused, of_known_kind, sidecar_names
from tritonrag.documents import OUTSIDE, Failure, SourceFile
from tritonrag.formats import SUFFIXES

UNDESCRIBED = (
    "is a link to a file with a sidecar, which would not count here and may close it; give the "
    "link a sidecar too"
)


def list_local(root: Path, *, follow_links: bool = False) -> Listing:
    """Return what lies below a folder, hidden files left out, or a file.

    Linked folders are left out too, and named where they lie outside, unless ``follow_links``.
    """
    listing = Listing()
    if root.is_dir():
        _walk(root, listing, None if follow_links else root.resolve())
    elif not root.exists():
        listing.unlisted.append(Failure(str(root), "no such file or folder"))
    elif root.suffix.lower() not in SUFFIXES:
        reason = f"not a kind that can be indexed ({', '.join(SUFFIXES)})"
        listing.failures.append(Failure(str(root), reason))
    else:
        _take(root, root.name, listing, None)
        within = None if follow_links else root.parent.resolve()
        for path in map(root.with_name, sidecar_names(root.name)):
            _take(path, path.name, listing, within)
    return listing


def _walk(root: Path, listing: Listing, within: Path | None) -> None:
    unreadable: list[OSError] = []
    for path in _visible(root, unreadable, listing, within):
        _take(path, path.relative_to(root).as_posix(), listing, within)
    for error in unreadable:
        reason = f"cannot be read: {error.strerror}"
        listing.unlisted.append(Failure(str(error.filename), reason))


def _visible(
    root: Path, unreadable: list[OSError], listing: Listing, within: Path | None
) -> Iterator[Path]:
    walk = os.walk(root, onerror=unreadable.append, followlinks=within is None)
    for folder, folders, names in walk:
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            if reason := _why_not(Path(folder, name), within):
                listing.failures.append(Failure(os.path.join(folder, name), reason))
                folders.remove(name)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _why_not(link: Path, within: Path | None) -> str:
    """Return why a linked folder is not gone into; empty where it may be, or is left out."""
    target = link.resolve()
    if within is not None:
        return "" if target.is_relative_to(within) else OUTSIDE
    loop = link.parent.resolve().is_relative_to(target)
    return "is a link to a folder that it lies in; it would never end" if loop else ""


def _take(path: Path, key: str, listing: Listing, within: Path | None) -> None:
    known = of_known_kind(key)
    # A link that leads nowhere, or out, is refused when it is read, and not taken for a file that
    # is gone.
    if path.is_file() or (known and path.is_symlink()):
        listing.keys.add(key)
        if known:
            reader = Refused(UNDESCRIBED) if _leaves_sidecar_behind(path) else None
            listing.files.append(SourceFile(path, key, root=within, reader=reader))


def _leaves_sidecar_behind(path: Path) -> bool:
    """Return whether a link leads to a file with a sidecar and has none itself."""
    if not path.is_symlink() or _has_sidecar(path):
        return False
    return _has_sidecar(Path(os.path.realpath(path)))


def _has_sidecar(path: Path) -> bool:
    return any(os.path.lexists(path.with_name(name)) for name in sidecar_names(path.name))
