"""Folders and files of this machine.

Links to files below the folder that was named are files like others. What lies outside is indexed
only where links are to be followed; what is named itself may be a link.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tritonrag.corpus.place import Listing
from tritonrag.corpus.sidecars import ENDINGS, Refused, is_sidecar, of_known_kind, target_of
from tritonrag.documents import OUTSIDE, Failure, SourceFile
from tritonrag.formats import SUFFIXES

UNDESCRIBED = (
    "is a link to a file with a sidecar, which would not count here and may close it; give the "
    "link a sidecar too"
)

LOOP = "is a link to a folder that it lies in; it would never end"
TWICE = "is a link to a folder that another link leads to, which is followed"
MAX_LINKS = 40
"""So many links one after the other are followed, as by Linux."""


def list_local(root: Path, *, follow_links: bool = False) -> Listing:
    """Return what lies below a folder, hidden files left out, or a file.

    Linked folders are left out too, and named where they lie outside, unless ``follow_links``.
    """
    if root.is_dir():
        local = _Local(None if follow_links else root.resolve())
        local.walk(root)
        return local.listing
    local = _Local(None)
    if not root.exists():
        local.listing.unlisted.append(Failure(str(root), "no such file or folder"))
    elif root.suffix.lower() not in SUFFIXES:
        reason = f"not a kind that can be indexed ({', '.join(SUFFIXES)})"
        local.listing.failures.append(Failure(str(root), reason))
    else:
        local.take(root, root.name)
        local.within = None if follow_links else root.parent.resolve()
        for path in map(root.with_name, local.sidecars(root)):
            local.take(path, path.name)
    return local.listing


class _Local:
    """Lists files; those outside of the folder ``within``, if any, are not to be indexed."""

    def __init__(self, within: Path | None) -> None:
        self.listing = Listing()
        self.within = within
        self._followed: set[Path] = set()
        self._sidecars: dict[Path, dict[str, list[str]]] = {}

    def walk(self, root: Path) -> None:
        unreadable: list[OSError] = []
        for path in self._visible(root, unreadable):
            self.take(path, path.relative_to(root).as_posix())
        for error in unreadable:
            reason = f"cannot be read: {error.strerror}"
            self.listing.unlisted.append(Failure(str(error.filename), reason))

    def _visible(self, root: Path, unreadable: list[OSError]) -> Iterator[Path]:
        walk = os.walk(root, onerror=unreadable.append, followlinks=self.within is None)
        for folder, folders, names in walk:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
                if reason := self._why_not(Path(folder, name)):
                    self.listing.failures.append(Failure(os.path.join(folder, name), reason))
                    folders.remove(name)
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))

    def _why_not(self, link: Path) -> str:
        """Return why a linked folder is not gone into; empty where it may be, or is left out."""
        target = link.resolve()
        if self.within is not None:
            return "" if target.is_relative_to(self.within) else OUTSIDE
        if any(folder.resolve().is_relative_to(target) for folder in link.parents):
            return LOOP
        if target in self._followed:  # links among many folders have ways without number
            return TWICE
        self._followed.add(target)
        return ""

    def take(self, path: Path, key: str) -> None:
        known = of_known_kind(key)
        # A link that leads nowhere, or out, is refused when it is read, and not taken for a file
        # that is gone.
        if path.is_file() or (known and path.is_symlink()):
            self.listing.keys.add(key)
            if known:
                reader = Refused(UNDESCRIBED) if self._leaves_sidecar_behind(path) else None
                self.listing.files.append(SourceFile(path, key, root=self.within, reader=reader))

    def _leaves_sidecar_behind(self, path: Path) -> bool:
        """Return whether a link has no sidecar itself, but what it leads to or over has one."""
        if not path.is_symlink() or self.sidecars(path):
            return False
        return any(map(self.sidecars, _hops(path)))

    def sidecars(self, path: Path) -> list[str]:
        """Return the names of a file's sidecars, whatever the case of their endings."""
        if path.parent not in self._sidecars:
            self._sidecars[path.parent] = _sidecars_in(path.parent)
        listed = self._sidecars[path.parent].get(path.name, [])
        return listed or [
            path.name + ending
            for ending in ENDINGS
            if os.path.lexists(path.with_name(path.name + ending))
        ]


def _hops(link: Path) -> Iterator[Path]:
    """Yield what a link leads to, and on to the file at the end."""
    for _ in range(MAX_LINKS):
        if not link.is_symlink():
            return
        link = link.parent / os.readlink(link)
        yield link


def _sidecars_in(folder: Path) -> dict[str, list[str]]:
    """Return the names of the sidecars in a folder by that of their file; none if not readable."""
    found: dict[str, list[str]] = defaultdict(list)
    with suppress(OSError):
        for name in filter(is_sidecar, sorted(os.listdir(folder))):
            found[target_of(name)].append(name)
    return dict(found)
